"""Epochs of training for a stack of networks, and what they then score.

Every network has its own random streams, so its result does not depend on how many are trained beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.data.augment import Augment, AugmentPlan
from mct_fast.data.windows import draw_windows
from mct_fast.students.recording import Recorder
from mct_fast.tasks import Task, spread_order
from mct_fast.training.recorded import Examples, RecordedSteps
from mct_fast.training.stacks import NetworkStack


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
    streams: Sequence[torch.Generator],
    *,
    augment: Augment | None,
    shared: bool = True,
    strata: Tensor | None = None,
    window: tuple[int, int] | None = None,
    tick: Callable[[int, Tensor], None] | None = None,
    recorder: Recorder | None = None,
    done: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Trains ``stack`` and yields ``(epoch, mean loss (E,))`` after each epoch, from 1.

    ``images (n, ...)`` are ``shared`` by all networks, or ``(E, n, ...)`` their own, labels likewise.  ``streams`` are the
    random streams of the networks, on the CPU: their orders of batches and their augmentation.  ``strata (n,)`` int64 are
    groups of shared rows of which every batch gets its share (:func:`mct_fast.tasks.spread_order`).  With ``window`` the
    images are canvases, of which each batch takes random windows of that size (:mod:`mct_fast.data.windows`).
    ``tick(images, losses (E,))`` is called after each step with the number of images that all networks together have seen
    in it.  On a GPU the steps are recorded and replayed by ``recorder`` (default: as a CUDA graph), with the same bits.
    With ``done`` epochs before, whose ends ``stack`` and ``streams`` are at, it goes on from there.
    """
    count = images.shape[0] if shared else images.shape[1]
    examples = Examples(images, labels, shared)
    shape = tuple(images.shape[1 if shared else 2 :]) if window is None else (images.shape[-3], *window)
    recorded = RecordedSteps.of(stack, examples, recorder) if window is None else None
    for epoch in range(done, schedule.epochs):
        lr = schedule.lr_at(epoch)
        if epoch > 0 and lr != schedule.lr_at(epoch - 1):
            stack.forget_momentum()
        order = torch.stack([_order(count, strata, g) for g in streams]).to(images.device, non_blocking=True)
        total = torch.zeros(len(stack), dtype=torch.float64, device=images.device)
        for rows in order.split(schedule.batch, dim=1):
            windows = None if window is None else _random_windows(examples, rows, window, streams)
            plan = None
            if augment is not None:
                plan = AugmentPlan(tuple((augment.draw(rows.shape[1], shape, g),) for g in streams))
            losses = recorded(rows, plan, lr) if recorded is not None and recorded.takes(plan) else None
            if losses is None:
                x, y = windows or examples.batch(rows)
                losses = stack.step(x if plan is None else plan.apply(0, x), y, lr)
            total += losses.double() * rows.shape[1]
            if tick is not None:
                tick(rows.numel(), losses)
        yield epoch + 1, total / count


_FAR_OFF = 3.0
"""Times the loss of guessing; a network that learns nothing at all stays near it."""


def largest_loss(task: Task, labels: Tensor, num_classes: int) -> float:
    """The mean training loss on ``labels`` above which a network has diverged: it is further off than guessing is.

    A loss that is no number is not at most this either: write ``not loss <= largest_loss(...)``.
    """
    silent = torch.zeros(len(labels), task.num_outputs(num_classes))
    return _FAR_OFF * float(task.loss(silent, labels.detach().cpu()))


def _order(count: int, strata: Tensor | None, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator) if strata is None else spread_order(strata.cpu(), generator)


def _random_windows(
    examples: Examples, rows: Tensor, size: tuple[int, int], streams: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """A random window of each of the canvases ``rows (E, b)``, and their labels."""
    canvases, labels = examples.batch(rows)
    each = torch.arange(rows.shape[1], device=rows.device)
    cut = [draw_windows(each, own.shape, size, g).cut(own) for own, g in zip(canvases, streams, strict=True)]
    return torch.stack(cut), labels


def scores(stack: NetworkStack, images: Tensor, labels: Tensor, task: Task, chunk: int = 512) -> list[float]:
    """The task's score of every network on ``images (n, C, H, W)``."""
    return [task.score(logits, labels) for logits in outputs(stack, images, chunk)]


def outputs(
    stack: NetworkStack, images: Tensor, chunk: int = 512, *, tick: Callable[[int], None] | None = None
) -> Tensor:
    """Logits ``(E, n, k)`` of every network on ``images (n, C, H, W)``.

    ``tick(images)`` is called with the number of images that all networks have seen since the last time.
    """
    found = []
    for part in images.split(chunk):
        found.append(stack.logits(part))
        if tick is not None:
            tick(len(part))
    return torch.cat(found, dim=1)
