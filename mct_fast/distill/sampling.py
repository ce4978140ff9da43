"""Where on the path a match starts and ends, and which images the student sees at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.settings import Checked, Epochs, Natural


@dataclass(frozen=True)
class SegmentSampler(Checked):
    """Which path, and which segments of it: a match starts at a random time and should arrive expert_epochs later.

    The target lies at most at the path's end.  While the window of starts grows, its bounds rise linearly ("floating upper
    bound" of MCT, growing window of DATM).
    """

    expert_epochs: Epochs = 2.0
    """M: how many expert epochs ahead the target lies; may be a fraction on a convex path."""
    max_start_epoch: Epochs = 10.0
    """Latest start on the expert's path, in epochs (integer sampling excludes it)."""
    min_start_epoch: Epochs = 0.0
    """Earliest start, in epochs."""
    sampling: Literal["continuous", "integer"] = "continuous"
    """Starts: 'continuous' (real times) or 'integer' (whole epochs)."""
    growth_iterations: Natural = 0
    """Iterations over which the latest start grows to max_start_epoch (floating upper bound); 0: fixed."""
    initial_start_epoch: Epochs = 0.0
    """Latest start at the first iteration when it grows."""
    initial_min_start_epoch: Epochs | None = None
    """Earliest start at the first iteration when it grows, too; None: min_start_epoch throughout."""
    trajectory: Literal["convex", "discrete", "bezier"] = "convex"
    """The expert's path: 'convex' (MCT), 'discrete' (MTT; the store must hold checkpoints) or 'bezier' (control points)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_start_epoch <= self.max_start_epoch:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} is not in 0..max_start_epoch ({self.max_start_epoch:g}); lower it"
            )
        first = self.initial_min_start_epoch
        if first is not None and not 0 <= first <= self.min_start_epoch:
            raise InputError(
                f"initial_min_start_epoch: {first:g} is not in 0..min_start_epoch ({self.min_start_epoch:g}); lower it"
            )
        if self.sampling == "integer":
            whole = all(float(v).is_integer() for v in (self.expert_epochs, self.min_start_epoch, self.max_start_epoch))
            if not whole or self.max_start_epoch <= self.min_start_epoch:
                raise InputError(
                    "sampling: 'integer' needs whole epochs and max_start_epoch above min_start_epoch; round or use 'continuous'"
                )

    def check(self, epochs: int, *, continuous_path: bool) -> None:
        """Raises :class:`InputError` if no segment of a path of ``epochs`` fits."""
        if not 0 < self.expert_epochs <= epochs:
            raise InputError(
                f"expert_epochs: {self.expert_epochs:g} does not fit a path of {epochs} epochs; give above 0, at most {epochs}"
            )
        if self.min_start_epoch >= epochs:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} leaves nothing of a path of {epochs} epochs; give less than {epochs}"
            )
        if self.max_start_epoch > epochs:
            raise InputError(
                f"max_start_epoch: {self.max_start_epoch:g} exceeds the path's {epochs} epochs; give at most {epochs}"
            )
        if self.sampling == "continuous" and not continuous_path:
            raise InputError(
                "sampling: 'continuous' needs a convex trajectory; use sampling='integer' with checkpoints"
            )

    def window(self, iteration: int) -> tuple[float, float]:
        """The bounds of the start at ``iteration``."""
        if iteration >= self.growth_iterations:
            return self.min_start_epoch, self.max_start_epoch
        share = iteration / self.growth_iterations
        first = self.min_start_epoch if self.initial_min_start_epoch is None else self.initial_min_start_epoch
        last = max(self.initial_start_epoch, first)
        low = first + share * (self.min_start_epoch - first)
        if self.sampling == "integer":
            low = float(int(low))
        high = min(last + share * (self.max_start_epoch - last), self.max_start_epoch)
        return low, max(high, low)

    def draw(self, epochs: int, iteration: int, generator: torch.Generator) -> tuple[float, float]:
        """``(start, target)`` on a path of ``epochs``."""
        low, high = self.window(iteration)
        share = float(torch.rand((), dtype=torch.float64, generator=generator))
        if self.sampling == "integer":
            count = max(int(high - low), 1)
            start = low + min(int(share * count), count - 1)
        else:
            start = low + share * (high - low)
        # A start at the very end of the path would leave an empty segment.
        start = min(start, epochs - min(self.expert_epochs, 1e-3))
        return start, min(start + self.expert_epochs, float(epochs))


def draw_batches(num_images: int, batch: int, steps: int, generator: torch.Generator) -> Tensor:
    """Rows ``(steps, batch)`` int64 for ``steps`` batches, drawn as MTT draws them.

    Without replacement until the set is used up, then reshuffled; where ``batch`` does not divide ``num_images`` one batch
    a round is shorter and padded with -1.
    """
    batch = min(batch, num_images)
    rows = torch.full((steps, batch), -1, dtype=torch.int64)
    chunks: list[Tensor] = []
    for step in range(steps):
        if not chunks:
            chunks = list(torch.randperm(num_images, generator=generator).split(batch))
        chunk = chunks.pop()
        rows[step, : len(chunk)] = chunk
    return rows
