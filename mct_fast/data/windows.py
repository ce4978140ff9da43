"""Textures (MTT, section 4.4): canvases larger than an image, whose edges meet; a student sees random windows of them.

A window at (y, x) of a canvas is the image of its pixels at (y + i mod H, x + j mod W): a linear map, whose transpose adds a
window's gradient back to the canvas where the window was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` pixels in canvases: number k is cut from canvas ``rows[k]`` at ``corners[k]`` (y, x)."""

    rows: Tensor
    corners: Tensor
    size: tuple[int, int]

    def cut(self, canvases: Tensor) -> Tensor:
        """The windows ``(m, C, h, w)`` of ``canvases (n, C, H, W)``."""
        return canvases[self._index(canvases.shape)]

    def transpose(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        """Carries a gradient by the windows ``(m, C, h, w)`` back to canvases of ``shape``."""
        zero = torch.zeros(tuple(shape), dtype=grad.dtype, device=grad.device)
        return zero.index_put_(self._index(zero.shape), grad, accumulate=True)

    def _index(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = self.rows.device
        channel = torch.arange(shape[1], device=device)
        y = (self.corners[:, :1] + torch.arange(self.size[0], device=device)) % shape[2]
        x = (self.corners[:, 1:] + torch.arange(self.size[1], device=device)) % shape[3]
        return self.rows[:, None, None, None], channel[None, :, None, None], y[:, None, :, None], x[:, None, None, :]


def draw_windows(rows: Tensor, canvas: Sequence[int], size: tuple[int, int], generator: torch.Generator) -> Windows:
    """A random window for each of ``rows (m,)``; ``canvas`` is the canvases' (..., H, W)."""
    count = len(rows)
    y = torch.randint(canvas[-2], (count,), generator=generator)
    x = torch.randint(canvas[-1], (count,), generator=generator)
    return Windows(rows, torch.stack([y, x], 1).to(rows.device), size)
