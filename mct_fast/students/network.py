"""What a network on the operators is, and what it keeps of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

NORM_EPS = 1e-5
"""PyTorch's default epsilon of the instance norm, which the reference ConvNet uses."""


@dataclass(frozen=True)
class Tape:
    """What `FusedStudent.gradient_keeping` leaves for the tangent of the same step: activations and their cotangents.

    Holding it saves 2 of the 11 convolution passes of a gradient with its tangent. `nbytes` is its size.
    """

    saved: tuple[tuple[Any, ...], ...]
    """Tensors of each layer: its input where it is not the batch, what its operators returned, its output's cotangent."""
    top: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for entry in (*self.saved, (self.top,)) for t in entry if t is not None)

    def output(self, layer: int) -> Tensor:
        """The output of a layer, which the next one keeps as its input; of the last one in any shape."""
        return self.saved[layer + 1][0] if layer + 1 < len(self.saved) else self.top


class Network(Protocol):
    """A network on the operators; parameters come as a list of (S, ...) views in the order of the flat vector."""

    def gradient(
        self, params: list[Tensor], x: Tensor, y: Tensor, keep: bool
    ) -> tuple[Tensor, list[Tensor], Tape | None]: ...

    def tangent(
        self, params: list[Tensor], dots: list[Tensor], x: Tensor, y: Tensor, tape: Tape | None
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]: ...

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor: ...
