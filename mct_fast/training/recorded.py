"""Training steps on a GPU, recorded once a batch size and replayed: the host no longer launches every kernel of every step.

What a recording reads and writes lies at fixed addresses: the images and labels, the networks' parameters and momentum, and
buffers for what is drawn anew each step, which are filled before it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.data.augment import AugmentPlan
from mct_fast.students.recording import CudaGraphs, Recorder, say_unrecorded
from mct_fast.training.stacks import FlatStack


@dataclass(frozen=True)
class Examples:
    """What networks train on: ``images (n, ...)`` ``shared`` by all, or ``(E, n, ...)`` their own; labels likewise."""

    images: Tensor
    labels: Tensor
    shared: bool

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels ``(E, b, ...)`` of ``rows (E, b)``."""
        if self.shared:
            return self.images[rows], self.labels[rows]
        own = torch.arange(len(rows), device=rows.device)[:, None]
        return self.images[own, rows], self.labels[own, rows]


@dataclass(frozen=True)
class _Step:
    """A recorded step: buffers of what is drawn, the losses that a replay fills, and the replay."""

    rows: Tensor
    tables: tuple[Tensor, Tensor] | None
    lrs: Tensor
    losses: Tensor
    replay: Callable[[], None]


class RecordedSteps:
    """The steps of ``stack`` on ``examples``: gather, augment, gradient and update as one replay, with the same bits.

    A step that cannot be recorded is done as it is, after one line in the log.
    """

    def __init__(self, stack: FlatStack, examples: Examples, recorder: Recorder) -> None:
        self._stack, self._examples, self._recorder = stack, examples, recorder
        self._kept: dict[tuple[int, bool], _Step | None] = {}

    @classmethod
    def of(cls, stack: object, examples: Examples, recorder: Recorder | None = None) -> RecordedSteps | None:
        """Those of ``stack`` where they can be recorded, else None."""
        recorder = recorder or CudaGraphs()
        if not isinstance(stack, FlatStack) or not recorder.takes(stack.student, examples.images):
            return None
        return cls(stack, examples, recorder)

    def takes(self, plan: AugmentPlan | None) -> bool:
        """Whether steps with draws such as ``plan`` have tables, by which they are augmented."""
        return plan is None or (not plan.noise and min(self._examples.images.shape[-2:]) > 1)

    def __call__(self, rows: Tensor, plan: AugmentPlan | None, lr: float) -> Tensor | None:
        """The step on ``rows (E, b)``; returns the losses ``(E,)`` before it, or None if it was not done."""
        key = rows.shape[1], plan is None
        if key not in self._kept:
            self._kept[key] = self._recorded(rows, plan)
        step = self._kept[key]
        if step is None:
            return None
        step.rows.copy_(rows)
        step.lrs.fill_(lr)
        if step.tables is not None and plan is not None:
            for buffer, drawn in zip(step.tables, plan.table(0), strict=True):
                buffer.copy_(drawn, non_blocking=True)
        step.replay()
        return step.losses.clone()

    def _recorded(self, rows: Tensor, plan: AugmentPlan | None) -> _Step | None:
        stack, rows = self._stack, rows.clone()
        lrs = stack.params.new_zeros(len(stack))
        tables = None
        if plan is not None:
            kinds, params = (table.to(rows.device) for table in plan.table(0))
            tables = kinds, params

        def run() -> Tensor:
            x, y = self._examples.batch(rows)
            if tables is not None:
                x = ops.dsa(x.contiguous(), *tables)
            return stack.step_by(x, y, lrs)

        before = [tensor.clone() for tensor in stack.state()]
        try:
            with torch.cuda.device_of(rows):
                losses, replay = self._recorder.record(run)
        except RuntimeError as error:
            say_unrecorded("training steps", error, "they are launched one by one")
            return None
        finally:
            for tensor, old in zip(stack.state(), before, strict=True):
                tensor.copy_(old)
        return _Step(rows, tables, lrs, losses, replay)
