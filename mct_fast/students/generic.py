"""Any ``nn.Module`` as a student, through autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from mct_fast.models import FunctionalModel
from mct_fast.students.protocol import Tangent
from mct_fast.tasks import Task


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
