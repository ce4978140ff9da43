"""A student whose steps go through the network in pieces, so that a batch of any size fits into memory.

The loss is a mean over the batch, so with pieces of b_k of b images loss = sum_k (b_k / b) loss_k, and the same holds for
its gradient, its Hessian product and (piece by piece) its derivatives by images and labels: nothing is approximated.
Instance norm looks at one image at a time; batch norm does not, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mct_fast.run.errors import InputError
from mct_fast.students.protocol import Student, Tangent, Tape


@dataclass(frozen=True)
class _Tapes:
    """The pieces' tapes, in order."""

    parts: tuple[Tape, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class MicroBatched:
    """``student``, at most ``images`` of each student's batch at a time.

    Raises :class:`InputError` for fewer than one image.
    """

    def __init__(self, student: Student, images: int) -> None:
        if images < 1:
            raise InputError(f"micro_batch: got {images}; give at least 1, or leave it out to take whole batches")
        self.student, self._images = student, images

    @property
    def num_params(self) -> int:
        return self.student.num_params

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses, grads = _Sum(), _Sum()
        for share, part, labels in self._pieces(x, y):
            loss, grad = self.student.gradient(params, part, labels)
            losses.add(loss, share)
            grads.add(grad, share)
        return losses.total, grads.total

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
        losses, grads, tapes = _Sum(), _Sum(), []
        for share, part, labels in self._pieces(x, y):
            loss, grad, tape = self.student.gradient_keeping(params, part, labels)
            losses.add(loss, share)
            grads.add(grad, share)
            tapes.append(tape)
        return losses.total, grads.total, None if any(tape is None for tape in tapes) else _Tapes(tuple(tapes))

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Any = None) -> Tangent:
        dots, products = _Sum(), _Sum()
        by_images, by_labels = [], []
        for i, (share, part, labels) in enumerate(self._pieces(x, y)):
            kept = None if tape is None else tape.parts[i]
            found = self.student.gradient_tangent(params, tangent, part, labels, tape=kept)
            dots.add(found.loss_dot, share)
            products.add(found.hvp, share)
            by_images.append(_scaled(found.grad_x_dot, share))
            if found.grad_y_dot is not None:
                by_labels.append(_scaled(found.grad_y_dot, share))
        labelled = torch.cat(by_labels, 1) if by_labels else None
        return Tangent(dots.total, products.total, torch.cat(by_images, 1), labelled)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        return self.student.logits(params, x)

    def _pieces(self, x: Tensor, y: Tensor) -> Iterator[tuple[float, Tensor, Tensor]]:
        """(share of the batch, images, labels) of each piece."""
        whole = x.shape[1]
        for part, labels in zip(x.split(self._images, 1), y.split(self._images, 1), strict=True):
            yield part.shape[1] / whole, part, labels


class _Sum:
    """A weighted sum, in the order in which its terms come."""

    total: Tensor

    def __init__(self) -> None:
        self._empty = True

    def add(self, term: Tensor, share: float) -> None:
        self.total = _scaled(term, share) if self._empty else self.total.add_(term, alpha=share)
        self._empty = False


def _scaled(term: Tensor, share: float) -> Tensor:
    return term if share == 1 else term * share


def check_pieces(module: nn.Module) -> None:
    """Raises :class:`InputError` for a network whose output for one image depends on the others of its batch."""
    if any(isinstance(part, _BatchNorm) for part in module.modules()):
        raise InputError(
            "micro_batch: batch norm looks at the whole batch; leave micro_batch out, or use instance norm"
        )
