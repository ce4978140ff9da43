"""Parameters as the kernels read them, the partial sums of their gradients, and the update that these end in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.kernels.planes import params
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.launches import blocks, launch, splits
from mct_fast.students.planes.layout import BLOCK, Layout
from mct_fast.students.planes.memory import Parts, Precision

PARTS_AT_ONCE = 8


@dataclass(frozen=True)
class Weights:
    """Parameters in the kernels' order: ``values (S, size)`` float32, ``half (S, halves * size)``."""

    values: Tensor
    half: Tensor


def power_of_two(vectors: Tensor) -> Tensor:
    """For each row the power of two that brings its largest number to [1, 2); 1 where there is none."""
    largest = vectors.abs().amax(1)
    usable = (largest > 1e-30) & (largest < 1e30)
    return torch.where(usable, torch.exp2(-torch.floor(torch.log2(largest))), torch.ones_like(largest))


class Parameters:
    """The parameters of one network on one device: into the kernels' order and back, gradients and updates."""

    def __init__(self, geometry: Geometry, how: Precision, device: torch.device) -> None:
        self.layout = Layout(geometry)
        self._geometry, self._how, self._device = geometry, how, device
        self._index, self._inverse = self.layout.index.to(device), self.layout.inverse.to(device)
        self._layers = self.layout.layers.to(device)
        self._parts: dict[tuple[int, int], Parts] = {}

    def room(self, students: int) -> Weights:
        """Room for parameters."""
        size = self.layout.size
        return Weights(
            torch.empty(students, size, device=self._device),
            torch.empty(students, self._how.halves * size, dtype=self._how.half, device=self._device),
        )

    def pack(self, vector: Tensor, into: Weights, scale: Tensor | None = None) -> None:
        """``vector (S, P)`` in the model's order, times ``scale (S,)``."""
        self._permute(vector, self._index, into.values, into.half, scale)

    def pack_point(self, origin: Tensor, end: Tensor, weights: Tensor, into: Weights) -> None:
        """``weights[0] origin + weights[1] end`` of models ``(S, P)``; weights ``(2, S, L)`` of L tensors, or of all as one."""
        students, size = into.values.shape
        count = weights.shape[2]
        layers = self._layers if count > 1 else torch.zeros_like(self._layers)
        launch(
            params.point_kernel, (blocks(size, BLOCK), students),
            origin, end, weights, self._index, layers, into.values, into.half, origin.shape[1], size, students, count,
            C=self._geometry.width, HALVES=self._how.halves,
        )  # fmt: skip

    def unpack(self, values: Tensor) -> Tensor:
        """``(S, size)`` back in the model's order, ``(S, P)``."""
        out = torch.empty(values.shape[0], self.layout.num_params, device=self._device)
        self._permute(values, self._inverse, out, None, None)
        return out

    def _permute(self, source: Tensor, index: Tensor, out: Tensor, half: Tensor | None, scale: Tensor | None) -> None:
        students, size = out.shape
        launch(
            params.permute_kernel, (blocks(size, BLOCK), students),
            source, index, out, out if half is None else half, source.shape[1], size, out if scale is None else scale,
            C=self._geometry.width, HALVES=self._how.halves, HALF=half is not None, SCALE=scale is not None,
        )  # fmt: skip

    def parts(self, students: int, batch: int) -> Parts:
        """How partial sums lie for batches of that size."""
        key = students, batch
        if key not in self._parts:
            counts = {}
            for name in self.layout.segments:
                kind, block = name.rstrip("0123456789"), name.lstrip("abegimstw")
                counts[name] = {"bias": 0, "gamma": batch, "beta": batch, "b": 1, "w": 1}[kind]
                if kind == "w" and block:
                    counts[name] = batch if block == "0" else splits(self._geometry, int(block), batch)
            self._parts[key] = Parts.of(self.layout, students, counts, self._device)
        return self._parts[key]

    def arena(self, students: int, sizes: Iterable[int]) -> Tensor:
        """Room for the partial sums of batches of these sizes."""
        return torch.empty(max(self.parts(students, size).size for size in set(sizes)), device=self._device)

    def update(self, before: Tensor, arena: Tensor, parts: Parts, alpha: Tensor, tau: Tensor, after: Weights) -> None:
        """after = before - alpha ``(S,)`` g, with its halves; g from the parts, over tau."""
        self._update(before, arena, parts, alpha, tau, after.values, after.half, gradient=False)

    def gradient(self, arena: Tensor, parts: Parts, tau: Tensor, students: int) -> Tensor:
        """The gradient ``(S, P)`` in the model's order, from the parts, over tau."""
        out = torch.empty(students, self.layout.size, device=self._device)
        self._update(out, arena, parts, tau, tau, out, out, gradient=True)
        return self.unpack(out)

    def _update(
        self, before: Tensor, arena: Tensor, parts: Parts, alpha: Tensor, tau: Tensor, after: Tensor, half: Tensor,
        *, gradient: bool,
    ) -> None:  # fmt: skip
        students, size = after.shape
        launch(
            params.update_kernel, (size // BLOCK, students),
            before, arena, parts.table, alpha, tau, after, half, size,
            C=self._geometry.width, HALVES=self._how.halves, PARTS=PARTS_AT_ONCE, GRADIENT=gradient,
        )  # fmt: skip
