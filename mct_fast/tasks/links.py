"""From a network's outputs to probabilities, and back: what soft labels that are learned move along."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_LEAST = 1e-6  # of a probability whose number is sought


class Link(Protocol):
    """Probabilities ``y`` of numbers ``z``, both ``(n, ...)``."""

    def forward(self, z: Tensor) -> Tensor:
        """``y`` of ``z``."""
        ...

    def inverse(self, y: Tensor) -> Tensor:
        """A ``z`` of ``y``; probabilities of 0 (and 1) are taken for 1e-6 (from it)."""
        ...

    def pull(self, y: Tensor, grad: Tensor) -> Tensor:
        """The gradient by ``z`` of what has the gradient ``grad`` by ``y``."""
        ...

    def smoothed(self, y: Tensor, confidence: float = 0.9) -> Tensor:
        """Hard labels ``y`` of 0 and 1 as probabilities: ``confidence`` for what is said, the rest for what is not."""
        ...


class Softmax:
    """Classes that exclude each other: a row of ``y (n, k)`` sums to 1."""

    def forward(self, z: Tensor) -> Tensor:
        return z.softmax(-1)

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp_min(_LEAST).log()

    def pull(self, y: Tensor, grad: Tensor) -> Tensor:
        return y * (grad - (grad * y).sum(-1, keepdim=True))

    def smoothed(self, y: Tensor, confidence: float = 0.9) -> Tensor:
        rest = (1 - confidence) / max(y.shape[-1] - 1, 1)
        return torch.where(y > 0.5, confidence, rest).to(y.dtype)


class Sigmoid:
    """Labels that apply or not, each by itself."""

    def forward(self, z: Tensor) -> Tensor:
        return z.sigmoid()

    def inverse(self, y: Tensor) -> Tensor:
        return y.clamp(_LEAST, 1 - _LEAST).logit()

    def pull(self, y: Tensor, grad: Tensor) -> Tensor:
        return y * (1 - y) * grad

    def smoothed(self, y: Tensor, confidence: float = 0.9) -> Tensor:
        return torch.where(y > 0.5, confidence, 1 - confidence).to(y.dtype)
