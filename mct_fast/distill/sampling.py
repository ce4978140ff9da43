"""Which images the student sees at each step."""

from __future__ import annotations

import torch
from torch import Tensor


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
