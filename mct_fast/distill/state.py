"""What an iteration changes: pixels, labels, step size, their optimisers, and the best images so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mct_fast.distill.learned import ImageAverage, Labels, StepSize
from mct_fast.matching import MatchResult
from mct_fast.settings.distill import OptimizerConfig

_RECENT = 200
"""Gradients whose median length says what is long."""


@dataclass(frozen=True)
class Best:
    """The images that scored best, and where they come from; ``test``: what is known of them on the test split."""

    images: Tensor
    labels: Tensor
    syn_lr: float
    score: float = -1.0
    iteration: int = 0
    test: dict[str, Any] | None = None

    def state_dict(self, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors under ``prefix``, and the rest."""
        numbers = {"score": self.score, "iteration": self.iteration, "syn_lr": self.syn_lr}
        if self.test is not None:
            numbers["test"] = self.test
        return {f"{prefix}_images": self.images, f"{prefix}_labels": self.labels}, numbers


class State:
    """The state of a run after ``iteration`` iterations: what a checkpoint holds."""

    def __init__(self, images: Tensor, labels: Labels, lr_teacher: float, config: OptimizerConfig) -> None:
        self._config = config
        self.images = images.requires_grad_()
        self.labels = labels
        self.step_size = StepSize(lr_teacher, config.lr_lr, config.mom_img)
        self._average = ImageAverage(self.images, config.ema) if config.ema else None
        self._optimizer = _optimizer(self.images, config)
        self._norms: deque[float] = deque(maxlen=_RECENT)  # lengths of the last gradients, where they are clipped
        self.iteration, self.skipped, self.seconds = 0, 0, 0.0
        self.skipped_in_a_row = 0
        self.why_skipped: str | None = None  # the last iteration
        self.evaluated = -1  # the last iteration whose images were evaluated
        self.best = Best(self.images.detach().clone(), labels.value, lr_teacher)
        self.earlier: Best | None = None  # what an evaluation replaced that only the end of the run called for

    @property
    def shown(self) -> Tensor:
        """The images that are evaluated and saved: the pixels, or their average."""
        return self.images.detach() if self._average is None else self._average.value

    def advance(self, result: MatchResult) -> dict[str, float]:
        """One iteration along the gradients of ``result``, or none where one is not finite or the loss is too large.

        Returns the loss and the norm of the gradient by the pixels.
        """
        loss, norm, grad_lr, grad_labels = _numbers(result)
        why = self._refusal(loss, (norm, grad_lr, grad_labels))
        if why is None:
            result, grad_lr = self._clipped(result, norm, grad_lr)
        if why is None and not self._descend(result, grad_lr):
            why = "the step overflowed"
        self.why_skipped = why
        self.skipped += why is not None
        self.skipped_in_a_row = 0 if why is None else self.skipped_in_a_row + 1
        self.iteration += 1
        if self._average is not None:
            self._average.update(self.images, self.iteration)
        return {"loss": loss, "grad_norm": norm}

    def _clipped(self, result: MatchResult, norm: float, grad_lr: float) -> tuple[MatchResult, float]:
        """The gradients, shortened where ``norm`` is above ``clip`` times its running median."""
        if not self._config.clip:
            return result, grad_lr
        self._norms.append(norm)
        most = self._config.clip * sorted(self._norms)[len(self._norms) // 2]
        if norm <= most:
            return result, grad_lr
        labels = None if result.grad_labels is None else result.grad_labels * (most / norm)
        shorter = replace(result, grad_images=result.grad_images * (most / norm), grad_labels=labels)
        return shorter, grad_lr * (most / norm)

    def _refusal(self, loss: float, gradients: Sequence[float]) -> str | None:
        """Why a match is not to be followed, or None."""
        if not math.isfinite(loss):
            return "the loss overflowed"
        if loss > self._config.max_loss:
            return f"the loss was above max_loss={self._config.max_loss:g}"
        return None if all(map(math.isfinite, gradients)) else "the gradient overflowed"

    def _descend(self, result: MatchResult, grad_lr: float) -> bool:
        """One step of pixels, labels and step size; undone, and False, if pixels or labels would not be finite."""
        images, labels = self.images.detach().clone(), self.labels.state_dict()
        self._set_lr_img()
        self.images.grad = result.grad_images
        self._optimizer.step()
        self.labels.step(result.grad_labels)
        finite = torch.isfinite(self.images.detach()).all() & torch.isfinite(self.labels.value).all()
        if not bool(finite):
            with torch.no_grad():
                self.images.copy_(images)
            self._optimizer.state.clear()  # the momentum has overflowed as well
            self.labels.load_state_dict(labels)
            return False
        self.step_size.step(grad_lr)
        return True

    def _set_lr_img(self) -> None:
        config = self._config
        decays = self.iteration // config.lr_decay_every if config.lr_decay_every else 0
        lr = config.lr_img * config.lr_decay**decays
        if config.cosine:
            lr *= 0.5 * (1 + math.cos(math.pi * self.iteration / config.iterations))
        for group in self._optimizer.param_groups:
            group["lr"] = lr

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and the rest as plain numbers: a run's checkpoint."""
        best_tensors, best = self.best.state_dict("best")
        tensors = {"images": self.images, **best_tensors}
        tensors |= {f"labels.{name}": value for name, value in self.labels.state_dict().items()}
        if self._average is not None:
            tensors["average"] = self._average.value
        moments = self._optimizer.state[self.images]
        tensors |= {f"optimizer.{name}": value for name, value in moments.items() if isinstance(value, Tensor)}
        numbers = {
            "iteration": self.iteration,
            "syn_lr": self.step_size.value,
            "syn_lr_velocity": self.step_size.velocity,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": self.seconds,
            "evaluated": self.evaluated,
            "best": best,
            **({"norms": list(self._norms)} if self._norms else {}),
        }
        if self.earlier is not None:
            earlier_tensors, numbers["earlier"] = self.earlier.state_dict("earlier")
            tensors |= earlier_tensors
        return {name: value.detach().cpu() for name, value in tensors.items()}, numbers

    def load_state_dict(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Goes back to what :meth:`state_dict` gave; a KeyError or RuntimeError where that was another run's."""
        device = self.images.device
        with torch.no_grad():
            self.images.copy_(tensors["images"])
        if self._average is not None:
            self._average.value = tensors["average"].to(device)
        self.labels.load_state_dict(_under("labels.", tensors))
        # Adam keeps its step count as a CPU tensor; the moments live with the images.
        moments = {name: v if v.ndim == 0 else v.to(device) for name, v in _under("optimizer.", tensors).items()}
        if moments:
            self._optimizer.state[self.images] = cast(dict, moments)
        self.iteration, self.skipped, self.seconds = numbers["iteration"], numbers["skipped"], numbers["seconds"]
        self.step_size.value, self.step_size.velocity = numbers["syn_lr"], numbers["syn_lr_velocity"]
        self.evaluated, self.skipped_in_a_row = numbers["evaluated"], numbers.get("skipped_in_a_row", 0)
        self._norms = deque(numbers.get("norms", ()), maxlen=_RECENT)
        self.best = Best(tensors["best_images"].to(device), tensors["best_labels"].to(device), **numbers["best"])


def _optimizer(images: Tensor, config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.img_optimizer == "adam":
        return torch.optim.Adam([images], lr=config.lr_img)
    return torch.optim.SGD([images], lr=config.lr_img, momentum=config.mom_img)


def _numbers(result: MatchResult) -> tuple[float, float, float, float]:
    """The mean loss, the norm of the pixels' gradient, the step size's gradient and the norm of the labels': read at once."""
    labels = result.grad_labels
    read = [
        result.loss.mean().double(),
        result.grad_images.double().norm(),
        result.grad_lr.double(),
        result.loss.new_zeros(()).double() if labels is None else labels.double().norm(),
    ]
    loss, norm, grad_lr, grad_labels = torch.stack([value.to(read[0].device) for value in read]).tolist()
    return loss, norm, grad_lr, grad_labels


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
