"""Where on the path a match starts and ends, and which images the student sees at each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.run.errors import InputError

SAMPLINGS = ("continuous", "integer")


@dataclass(frozen=True)
class SegmentSampler:
    """Draws (start, target) in epochs.

    ``continuous``: start ~ U[min_start_epoch, bound], real (MCT, "continuous sampling").  ``integer``: a whole epoch
    from min_start_epoch up to but excluding the bound, as MTT draws it.  The target lies ``expert_epochs`` later, at most
    at the path's end.  With ``growth_iterations`` > 0 the bound rises linearly from ``initial_start_epoch`` to
    ``max_start_epoch`` over that many iterations ("floating upper bound" of MCT, growing window of DATM), and the earliest
    start from ``initial_min_start_epoch`` (None: fixed) to ``min_start_epoch``.
    """

    expert_epochs: float
    max_start_epoch: float
    min_start_epoch: float = 0.0
    sampling: str = "continuous"
    growth_iterations: int = 0
    initial_start_epoch: float = 0.0
    initial_min_start_epoch: float | None = None

    def check(self, epochs: int, *, continuous_path: bool) -> None:
        """Raises :class:`InputError` if no segment of a path of ``epochs`` fits."""
        if self.sampling not in SAMPLINGS:
            raise InputError(f"sampling: unknown {self.sampling!r}; choose one of {', '.join(SAMPLINGS)}")
        if not 0 < self.expert_epochs <= epochs:
            raise InputError(
                f"expert_epochs: {self.expert_epochs:g} does not fit a path of {epochs} epochs; give above 0, at most {epochs}"
            )
        if not 0 <= self.min_start_epoch <= self.max_start_epoch:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} is not in 0..max_start_epoch ({self.max_start_epoch:g}); lower it"
            )
        first = self.initial_min_start_epoch
        if first is not None and not 0 <= first <= self.min_start_epoch:
            raise InputError(
                f"initial_min_start_epoch: {first:g} is not in 0..min_start_epoch ({self.min_start_epoch:g}); lower it"
            )
        if self.min_start_epoch >= epochs:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} leaves nothing of a path of {epochs} epochs; give less than {epochs}"
            )
        if self.max_start_epoch > epochs:
            raise InputError(
                f"max_start_epoch: {self.max_start_epoch:g} exceeds the path's {epochs} epochs; give at most {epochs}"
            )
        if self.sampling == "integer":
            whole = all(float(v).is_integer() for v in (self.expert_epochs, self.min_start_epoch, self.max_start_epoch))
            if not whole or self.max_start_epoch <= self.min_start_epoch:
                raise InputError(
                    "sampling: 'integer' needs whole epochs and max_start_epoch above min_start_epoch; round or use 'continuous'"
                )
        elif not continuous_path:
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
