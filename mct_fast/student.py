"""One inner step of the student and its tangent: all that the matching gradient needs of a network.

Everything carries a leading student dimension S: S networks of one architecture, each with its own parameters and its
own batch.  :class:`GenericStudent` takes any ``nn.Module`` through autograd; :class:`mct_fast.fused.FusedStudent`
runs ConvNet and MLP on the project's operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mct_fast.models import FunctionalModel
from mct_fast.tasks import Task


@dataclass(frozen=True)
class Tangent:
    """Derivative at 0 of ``(loss, g, dloss/dx, dloss/dy)`` along ``params + eps * tangent``.

    ``loss_dot (S,)`` is <g, tangent>; ``hvp (S, P)`` the Hessian times the tangent; ``grad_x_dot (S, b, C, H, W)`` is
    the gradient by the images of <g, tangent>; ``grad_y_dot (S, b, k)`` the same by soft labels, None for hard ones.
    """

    loss_dot: Tensor
    hvp: Tensor
    grad_x_dot: Tensor
    grad_y_dot: Tensor | None


class Tape(Protocol):
    """What a student keeps of a step so that its tangent need not recompute it."""

    @property
    def nbytes(self) -> int: ...

    def lighter(self) -> Tape | None:
        """The tape without what is large and soon computed again, or None where there is no such thing."""
        ...


class Student(Protocol):
    """S networks of one architecture, as functions of flat parameters ``(S, P)``."""

    @property
    def num_params(self) -> int: ...

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(loss (S,), dloss/dparams (S, P))`` for batches ``x (S, b, C, H, W)``, labels ``(S, b)`` or ``(S, b, k)``."""
        ...

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
        """:meth:`gradient` and a :class:`Tape` for :meth:`gradient_tangent` of the same step, or None."""
        ...

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Any = None) -> Tangent:
        """The derivative of the step along ``tangent (S, P)``; with the step's ``tape`` some work is spared."""
        ...

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        """Outputs ``(S, n, k)`` of all S networks on the same images ``(n, C, H, W)``, without a graph."""
        ...


class GenericStudent:
    """Any ``nn.Module`` through autograd: one student after another, so memory does not grow with S.

    The tangent is taken as the gradient of <g, tangent> (reverse over reverse): every module that can be
    differentiated twice works, which forward mode cannot promise.
    """

    def __init__(self, model: FunctionalModel, task: Task) -> None:
        self._model = model
        self._task = task

    @property
    def num_params(self) -> int:
        return self._model.num_params

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses, grads = [], []
        for theta, images, labels in zip(params, x, y, strict=True):
            with torch.enable_grad():
                theta = theta.detach().requires_grad_()
                loss = self._task.loss(self._model(theta, images), labels)
                (g,) = torch.autograd.grad(loss, theta)
            losses.append(loss.detach())
            grads.append(g)
        return torch.stack(losses), torch.stack(grads)

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        return *self.gradient(params, x, y), None

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: None = None) -> Tangent:
        soft = y.is_floating_point()
        rows = [self._tangent_of_one(*row, soft=soft) for row in zip(params, tangent, x, y, strict=True)]
        loss_dot, hvp, x_dot, y_dot = zip(*rows, strict=True)
        return Tangent(
            torch.stack(loss_dot), torch.stack(hvp), torch.stack(x_dot), torch.stack(y_dot) if soft else None
        )

    def _tangent_of_one(
        self, theta: Tensor, tangent: Tensor, images: Tensor, labels: Tensor, *, soft: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            theta, images = theta.detach().requires_grad_(), images.detach().requires_grad_()
            labels = labels.detach().requires_grad_() if soft else labels
            loss = self._task.loss(self._model(theta, images), labels)
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            loss_dot = torch.dot(g, tangent)
            wanted = (theta, images, labels) if soft else (theta, images)
            # materialize: a linear network has no curvature, and its Hessian product is zero rather than absent.
            found = torch.autograd.grad(loss_dot, wanted, allow_unused=True, materialize_grads=True)
        return loss_dot.detach(), found[0], found[1], found[-1]

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([self._model(theta, x) for theta in params])
