"""Where each parameter lies in the kernels' order.

A convolution's weights lie as [tap][ci][co], the first one's as [window column][co] with the window filled up to 16 or 32
columns, the classifier's as [output][pixel][channel]. Every tensor begins at a multiple of `BLOCK` and of the width, and what
lies between them is zero and stays zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mct_fast.students.planes.geometry import Geometry

BLOCK = 256
"""Numbers that a program of the update handles."""


@dataclass(frozen=True)
class Segment:
    """One tensor: where it begins, how many numbers it has in the kernels' order, and how many of them are parameters."""

    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """The segments of a network by name: ``w0``, ``bias0``, ``gamma0``, ``beta0``, ``w1``, ..., ``w``, ``b``."""

    geometry: Geometry

    @cached_property
    def _pieces(self) -> dict[str, Tensor]:
        """For each tensor, in the model's order: where its numbers lie in the model's vector, -1 for filling."""
        g, c = self.geometry, self.geometry.width
        pieces: dict[str, Tensor] = {}
        start = 0

        def take(*shape: int) -> Tensor:
            nonlocal start
            size = math.prod(shape)
            start += size
            return torch.arange(start - size, start).reshape(shape)

        for i in range(g.depth):
            w = take(c, g.channels if i == 0 else c, 3, 3)
            if i == 0:
                windows = torch.full((g.window, c), -1)
                windows[: g.channels * 9] = w.reshape(c, -1).T
                pieces["w0"] = windows
            else:
                pieces[f"w{i}"] = w.permute(2, 3, 1, 0)
            for name in ("bias", "gamma", "beta"):
                pieces[f"{name}{i}"] = take(c)
        rows, columns = g.sides[-1]
        pieces["w"] = take(g.outputs, c, rows, columns).permute(0, 2, 3, 1)
        pieces["b"] = take(g.outputs)
        return {name: piece.reshape(-1) for name, piece in pieces.items()}

    @cached_property
    def segments(self) -> dict[str, Segment]:
        align = math.lcm(BLOCK, self.geometry.width)
        found, start = {}, 0
        for name, piece in self._pieces.items():
            found[name] = Segment(start, piece.numel())
            start += -(-piece.numel() // align) * align
        return found

    @cached_property
    def size(self) -> int:
        """Numbers of a network in the kernels' order."""
        align = math.lcm(BLOCK, self.geometry.width)
        last = self.segments["b"]
        return last.start + -(-last.size // align) * align

    @cached_property
    def num_params(self) -> int:
        """P, the length of the model's vector."""
        return sum(int((piece >= 0).sum()) for piece in self._pieces.values())

    @cached_property
    def index(self) -> Tensor:
        """``(size,)`` int64: the place in the model's vector of each number, -1 for filling."""
        index = torch.full((self.size,), -1)
        for name, piece in self._pieces.items():
            start = self.segments[name].start
            index[start : start + piece.numel()] = piece
        return index

    @cached_property
    def layers(self) -> Tensor:
        """``(size,)`` int64: which of the model's tensors each number belongs to; 0 for filling."""
        layers = torch.zeros(self.size, dtype=torch.int64)
        for layer, segment in enumerate(self.segments.values()):
            layers[segment.start : segment.start + segment.size] = layer
        return layers

    @cached_property
    def inverse(self) -> Tensor:
        """``(P,)`` int64: the place of each of the model's numbers in the kernels' order."""
        inverse = torch.empty(self.num_params, dtype=torch.int64)
        used = self.index >= 0
        inverse[self.index[used]] = torch.arange(self.size)[used]
        return inverse

    def at(self, name: str) -> int:
        """Where a tensor begins."""
        return self.segments[name].start
