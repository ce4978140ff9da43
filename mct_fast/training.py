"""Plain training of several networks at once: experts on real data, evaluation networks on synthetic data.

Every network has its own random streams, so its result does not depend on how many are trained beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mct_fast import ops
from mct_fast.data.augment import Augment, AugmentPlan
from mct_fast.fused import student_for
from mct_fast.models import FunctionalModel, has_dropout, without_dropout
from mct_fast.seeds import derive_seed, generator
from mct_fast.student import Student
from mct_fast.tasks import Task, spread_order
from mct_fast.textures import draw_windows


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
        self._student, self._rule = student, rule
        self._descent: Descent = descent or Steepest()
        self._velocity = torch.zeros_like(self.params) if rule.momentum else None

    def __len__(self) -> int:
        return len(self.params)

    def step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        loss, grad = self._descent(self._student, self.params, x, y)
        lrs = torch.full((len(self),), lr, dtype=self.params.dtype, device=self.params.device)
        ops.sgd_step_(self.params, grad, self._velocity, lrs, self._rule.momentum, self._rule.weight_decay)
        return loss

    def forget_momentum(self) -> None:
        if self._velocity is not None:
            self._velocity.zero_()

    def logits(self, x: Tensor) -> Tensor:
        return self._student.logits(self.params, x)


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
    template = make()
    functional = FunctionalModel(without_dropout(template))
    initial = torch.stack([functional.init(seed) for seed in seeds])
    if not has_dropout(template) and not any(True for _ in template.buffers()):
        return FlatStack(student_for(functional, task), initial.to(device), rule)
    modules = []
    for params in initial:
        module = make()
        nn.utils.vector_to_parameters(params, module.parameters())
        modules.append(module.to(device))
    return ModuleStack(modules, task, rule, seeds)


@dataclass(frozen=True)
class Schedule:
    """Epochs of training and how the step size runs: ``lr``, times 0.1 after epoch ``decay_after`` (None: never)."""

    epochs: int
    batch: int
    lr: float
    decay_after: int | None = None

    def lr_at(self, epoch: int) -> float:
        decayed = self.decay_after is not None and epoch > self.decay_after
        return self.lr * (0.1 if decayed else 1.0)


def train_epochs(
    stack: NetworkStack,
    images: Tensor,
    labels: Tensor,
    schedule: Schedule,
    streams: Sequence[tuple[int | str, ...]],
    *,
    seed: int,
    augment: Augment | None,
    shared: bool = True,
    strata: Tensor | None = None,
    window: tuple[int, int] | None = None,
    tick: Callable[[int, Tensor], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Trains ``stack`` and yields ``(epoch, mean loss (E,))`` after each epoch, from 1.

    ``images (n, ...)`` are ``shared`` by all networks, or ``(E, n, ...)`` their own, labels likewise.  ``streams`` names
    the random stream of each network: its order of batches and its augmentation.  ``strata (n,)`` int64 are groups of
    shared rows of which every batch gets its share (:func:`mct_fast.tasks.spread_order`).  With ``window`` the images are
    canvases, of which each batch takes random windows of that size (:mod:`mct_fast.textures`).  ``tick(images, losses
    (E,))`` is called after each step with the number of images that all networks together have seen in it.
    """
    count = images.shape[0] if shared else images.shape[1]
    own = torch.arange(len(stack), device=images.device)[:, None]
    generators = [generator(seed, *stream) for stream in streams]
    for epoch in range(schedule.epochs):
        lr = schedule.lr_at(epoch)
        if epoch > 0 and lr != schedule.lr_at(epoch - 1):
            stack.forget_momentum()
        order = torch.stack([_order(count, strata, g) for g in generators]).to(images.device)
        total = torch.zeros(len(stack), dtype=torch.float64, device=images.device)
        for rows in order.split(schedule.batch, dim=1):
            x, y = (images[rows], labels[rows]) if shared else (images[own, rows], labels[own, rows])
            if window is not None:
                x = torch.stack([_random_windows(xs, window, g) for xs, g in zip(x, generators, strict=True)])
            if augment is not None:
                shape = tuple(x.shape[2:])
                plan = AugmentPlan(tuple((augment.draw(x.shape[1], shape, g),) for g in generators))
                x = plan.apply(0, x)
            losses = stack.step(x, y, lr)
            total += losses.double() * rows.shape[1]
            if tick is not None:
                tick(rows.numel(), losses)
        yield epoch + 1, total / count


def _order(count: int, strata: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator) if strata is None else spread_order(strata.cpu(), generator)


def _random_windows(canvases: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    rows = torch.arange(len(canvases), device=canvases.device)
    return draw_windows(rows, canvases.shape, size, generator).cut(canvases)


def scores(stack: NetworkStack, images: Tensor, labels: Tensor, task: Task, chunk: int = 512) -> list[float]:
    """The task's score of every network on ``images (n, C, H, W)``."""
    return [task.score(logits, labels) for logits in _outputs(stack, images, chunk)]


def measures(
    stack: NetworkStack, images: Tensor, labels: Tensor, task: Task, chunk: int = 512
) -> list[dict[str, float]]:
    """All metrics of the task, by name, of every network on ``images (n, C, H, W)``."""
    return [task.metrics(logits, labels) for logits in _outputs(stack, images, chunk)]


def _outputs(stack: NetworkStack, images: Tensor, chunk: int) -> Tensor:
    return torch.cat([stack.logits(part) for part in images.split(chunk)], dim=1)
