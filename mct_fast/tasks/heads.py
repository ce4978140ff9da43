"""The last linear layer of S networks together with the task's loss: its gradient and its tangent, without a graph.

A head is what the fused students need of a task.  Shapes: ``h (S, B, F)`` inputs of the layer, ``w (S, K, F)``,
``b (S, K)``, targets ``y (S, B, K)``; results as the operators of :mod:`mct_fast.ops` return them.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from mct_fast import ops

Gradient: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
TangentOfGradient: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Head(Protocol):
    """A loss fused with the linear layer before it."""

    def targets(self, y: Tensor, num_outputs: int, like: Tensor) -> Tensor:
        """Labels ``(S, B)`` or ``(S, B, k)`` as targets ``(S, B, num_outputs)`` of the dtype of ``like``, contiguous."""
        ...

    def gradient(self, h: Tensor, w: Tensor, b: Tensor, y: Tensor, /) -> Gradient:
        """``(loss (S,), gh, gw, gb)``."""
        ...

    def tangent(
        self, h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor, /
    ) -> TangentOfGradient:
        """``(loss_dot (S,), gh, ghdot, gwdot, gbdot, gydot (S, B, K))``."""
        ...


class CrossEntropyHead:
    """Softmax and cross-entropy."""

    gradient = staticmethod(ops.linear_ce)
    tangent = staticmethod(ops.linear_ce_tangent)

    @staticmethod
    def targets(y: Tensor, num_outputs: int, like: Tensor) -> Tensor:
        if y.is_floating_point():
            return y.to(like.dtype).contiguous()
        targets = like.new_zeros(*y.shape, num_outputs)
        return targets.scatter_(2, y.unsqueeze(2), 1)


class BinaryCrossEntropyHead:
    """Sigmoid and binary cross-entropy of each output: weights ``pos`` of its positive and ``neg`` of its negative term.

    One number each stands for all outputs.  The loss is the mean over outputs of the weighted terms.
    """

    def __init__(self, pos: tuple[float, ...], neg: tuple[float, ...]) -> None:
        self._pos, self._neg = pos, neg
        # Made once a kind of tensor: a copy to the device would end the capture of a CUDA graph.
        self._weights: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    @staticmethod
    def targets(y: Tensor, num_outputs: int, like: Tensor) -> Tensor:
        return y.to(like.dtype).reshape(*y.shape[:2], num_outputs).contiguous()

    def gradient(self, h: Tensor, w: Tensor, b: Tensor, y: Tensor, /) -> Gradient:
        return ops.linear_bce(h, w, b, y, *self._weights_for(y))

    def tangent(
        self, h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor, /
    ) -> TangentOfGradient:
        return ops.linear_bce_tangent(h, hdot, w, wdot, b, bdot, y, *self._weights_for(y))

    def weights(self, outputs: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """The weights ``(outputs,)`` of the positive and the negative terms in the sum over outputs."""
        key = (outputs, dtype, device)
        if key not in self._weights:
            pos, neg = (torch.tensor(w, dtype=torch.float64).expand(outputs) for w in (self._pos, self._neg))
            self._weights[key] = ((pos / outputs).to(device, dtype), (neg / outputs).to(device, dtype))
        return self._weights[key]

    def _weights_for(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.weights(y.shape[2], y.dtype, y.device)
