"""Images as the first block reads them, and the gradients by images that come back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.kernels.planes import first, params
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.launches import blocks, launch
from mct_fast.students.planes.memory import Precision


@dataclass(frozen=True)
class Batch:
    """Images as the first block reads them: patches, and sums ``(S B, KP)`` of an image's windows."""

    patches: Tensor
    sums: Tensor


class Patches:
    """Cuts images of one geometry into the windows of the first convolution."""

    def __init__(self, geometry: Geometry, how: Precision, device: torch.device) -> None:
        self._geometry, self._how, self._device = geometry, how, device

    @property
    def nbytes(self) -> int:
        """Bytes of an image's patches."""
        g = self._geometry
        return g.tiles * 256 * g.window * self._how.halves * self._how.half.itemsize

    def room(self, images: int) -> Batch:
        """Room for patches."""
        g = self._geometry
        return Batch(
            torch.empty(images, g.tiles * 256, self._how.halves * g.window, dtype=self._how.half, device=self._device),
            torch.empty(images, g.window, device=self._device),
        )

    def cut(self, x: Tensor, into: Batch) -> None:
        """The patches of augmented images ``x (images, C, H, W)``, contiguous."""
        g = self._geometry
        ph, pw = g.sides[1]
        launch(
            first.patches_kernel, (x.shape[0],),
            x, into.patches, into.sums, g.tiles, ph, pw, *g.image_size, BORDER=g.border, CHANNELS=g.channels,
            KP=g.window, HALVES=self._how.halves,
        )  # fmt: skip

    def add_gradients(self, steps: Tensor, position: Tensor, alpha: Tensor, sigma: Tensor, out: Tensor) -> None:
        """``out (S, n, ...)`` += -alpha / sigma times the sum over the steps of an image's gradients.

        steps ``(rows of all steps, ...)`` holds them; position ``(S, steps, n)`` the row of an image in each step's, or -1.
        """
        students, count, n = position.shape
        values = out[0, 0].numel()
        block = min(1024, 1 << (values - 1).bit_length())
        launch(
            params.pixels_kernel, (n, blocks(values, block), students),
            steps, position, alpha, sigma, out, count, n, steps.numel() // (count * values), values, SIZE=block,
        )  # fmt: skip
