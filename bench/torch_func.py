"""The step and its tangent by ``torch.func``: what a strong user of PyTorch would write, eager or compiled.

Forward over reverse (``jvp`` of ``grad``) in plain PyTorch; with :class:`mct_fast.matching.adjoint.Exact` on top it is the exact
gradient in constant memory, without this project's kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jvp

from mct_fast.models import FunctionalModel
from mct_fast.students import Tangent


class TorchFuncStudent:
    """One student of a network with hard labels; a :class:`mct_fast.students.generic.Student`.

    ``network`` must give its parameters in the order of ``model``'s flat vector.  With ``compiled`` both functions go
    through ``torch.compile`` at their first call.
    """

    def __init__(self, model: FunctionalModel, network: nn.Module, *, compiled: bool) -> None:
        self._model = model
        names = [name for name, _ in network.named_parameters()]
        sizes = [shape.numel() for shape in model.shapes]

        def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            parts = zip(names, theta.split(sizes), model.shapes, strict=True)
            parameters = {name: part.view(shape) for name, part, shape in parts}
            return F.cross_entropy(functional_call(network, parameters, (x,)), y)

        def gradient(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found: Any = grad_and_value(loss)(theta, x, y)
            return found

        def tangent(theta: Tensor, direction: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            both = grad(loss, argnums=(0, 1))
            found: Any = jvp(lambda point: both(point, x, y), (theta,), (direction,))
            (g, _), (hvp, x_dot) = found
            return torch.dot(g, direction), hvp, x_dot

        wrap: Callable[[Any], Any] = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self._gradient, self._tangent = wrap(gradient), wrap(tangent)

    @property
    def num_params(self) -> int:
        return self._model.num_params

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            g, loss = self._gradient(params[0], x[0], y[0])
        return loss.detach()[None], g.detach()[None]

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, None]:
        return *self.gradient(params, x, y), None

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: None = None) -> Tangent:
        with torch.enable_grad():
            loss_dot, hvp, x_dot = self._tangent(params[0], tangent[0], x[0], y[0])
        return Tangent(loss_dot.detach()[None], hvp.detach()[None], x_dot.detach()[None], None)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._model(params[0], x)[None]
