"""Several networks of one architecture that train together: the step, its direction and its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mct_fast import ops
from mct_fast.models import FunctionalModel, has_dropout, without_dropout
from mct_fast.run.seeds import derive_seed
from mct_fast.run.tensors import check_mode
from mct_fast.students import Student, student_for
from mct_fast.tasks import Task


@dataclass(frozen=True)
class SGD:
    """PyTorch's SGD rule: buf = momentum * buf + (g + weight_decay * theta), theta -= lr * buf."""

    momentum: float = 0.0
    weight_decay: float = 0.0


class Descent(Protocol):
    """The direction in which a step goes: losses ``(E,)`` and directions ``(E, P)`` from parameters and a batch."""

    def __call__(self, student: Student, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...


class Steepest:
    """The gradient."""

    def __call__(self, student: Student, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return student.gradient(params, x, y)


@dataclass(frozen=True)
class GSAM:
    """Towards flat minima: GSAM (Zhuang et al., ICLR 2022, algorithm 1), with which FTD trains its experts.

    With g the gradient at theta and g_p that at theta + rho g / |g|, the direction is g_p - alpha g_perp, where g_perp is the
    part of g orthogonal to g_p.  Costs two gradients a step.
    """

    rho: float
    alpha: float

    def __call__(self, student: Student, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = student.gradient(params, x, y)
        tiny = torch.finfo(params.dtype).tiny
        perturbed = params + self.rho * grad / grad.norm(dim=1, keepdim=True).clamp_min(tiny)
        _, flat = student.gradient(perturbed, x, y)
        along = (grad * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True).clamp_min(tiny)
        return loss, flat - self.alpha * (grad - along * flat)


class NetworkStack(Protocol):
    """E networks of one architecture in training."""

    def __len__(self) -> int: ...

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        """One SGD step on ``x (E, b, C, H, W)``, ``y (E, b[, k])``; returns the losses ``(E,)`` before it."""
        ...

    def forget_momentum(self) -> None:
        """Starts the optimiser afresh, as the reference does when the learning rate drops."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Outputs ``(E, n, k)`` on ``x (n, C, H, W)`` in evaluation mode."""
        ...


class FlatStack:
    """Networks without buffers, as rows of one parameter matrix ``params (E, P)``, stepped together."""

    def __init__(self, student: Student, params: Tensor, rule: SGD, descent: Descent | None = None) -> None:
        self.params = params.clone()
        self.student, self._rule = student, rule
        self._descent: Descent = descent or Steepest()
        self._velocity = torch.zeros_like(self.params) if rule.momentum else None

    def __len__(self) -> int:
        return len(self.params)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        return self.step_by(x, y, self.params.new_full((len(self),), lr))

    def step_by(self, x: Tensor, y: Tensor, lrs: Tensor) -> Tensor:
        """:meth:`step` with a step size a network, ``lrs (E,)``; reads nothing from the device."""
        loss, grad = self._descent(self.student, self.params, x, y)
        ops.sgd_step_(self.params, grad, self._velocity, lrs, self._rule.momentum, self._rule.weight_decay)
        return loss

    def state(self) -> list[Tensor]:
        """The tensors that a step changes, in place."""
        return [self.params] if self._velocity is None else [self.params, self._velocity]

    def forget_momentum(self) -> None:
        if self._velocity is not None:
            self._velocity.zero_()

    def logits(self, x: Tensor) -> Tensor:
        return self.student.logits(self.params, x)


class ModuleStack:
    """Networks with state beside their parameters (batch norm's running statistics) or dropout, one after another.

    ``seeds``: one a network, from which its dropout is drawn; the global generators keep their states.
    """

    def __init__(self, modules: Sequence[nn.Module], task: Task, rule: SGD, seeds: Sequence[int]) -> None:
        self._modules, self._task, self._rule, self._seeds = list(modules), task, rule, list(seeds)
        self._steps = 0
        self._optimizers: list[torch.optim.SGD] = []
        self.forget_momentum()

    def __len__(self) -> int:
        return len(self._modules)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        losses = []
        rows = zip(self._modules, self._optimizers, self._seeds, x, y, strict=True)
        for module, optimizer, seed, images, labels in rows:
            optimizer.param_groups[0]["lr"] = lr
            module.train()
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(derive_seed(seed, "dropout", self._steps))
                loss = self._task.loss(module(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        self._steps += 1
        return torch.stack(losses)

    def forget_momentum(self) -> None:
        rule = self._rule
        self._optimizers = [
            torch.optim.SGD(module.parameters(), lr=0.0, momentum=rule.momentum, weight_decay=rule.weight_decay)
            for module in self._modules
        ]

    def logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([module.eval()(x) for module in self._modules])


def build_stack(
    make: Callable[[], nn.Module], seeds: Sequence[int], task: Task, rule: SGD, device: str
) -> NetworkStack:
    """One freshly initialised network a seed; ``make`` builds the architecture."""
    check_mode(device)
    template = make()
    functional = FunctionalModel(without_dropout(template))
    initial = torch.stack([functional.init(seed) for seed in seeds])
    if not has_dropout(template) and not any(True for _ in template.buffers()):
        return FlatStack(student_for(functional, task, device), initial.to(device), rule)
    modules = []
    for params in initial:
        module = make()
        nn.utils.vector_to_parameters(params, module.parameters())
        modules.append(module.to(device))
    return ModuleStack(modules, task, rule, seeds)
