"""What a network is trained to do: the loss, and how well it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.errors import InputError


class Task(Protocol):
    """A loss over a batch, with checks of its labels and a score."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of ``logits (n, k)`` against ``labels``, a scalar, differentiable twice."""
        ...

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """Quality in [0, 1] of ``logits (n, k)``; larger is better."""
        ...

    def check(self, labels: Tensor, num_outputs: int) -> None:
        """Raises :class:`InputError` if ``labels`` do not fit a network with ``num_outputs`` outputs."""
        ...


@dataclass(frozen=True)
class Classification:
    """Mean cross-entropy over hard labels ``(n,)`` int64 or soft labels ``(n, k)`` of float; score is accuracy."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return -(labels * F.log_softmax(logits, dim=-1)).sum(-1).mean()
        return F.cross_entropy(logits, labels)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        hard = labels.argmax(-1) if labels.is_floating_point() else labels
        return (logits.argmax(-1) == hard).double().mean().item()

    def check(self, labels: Tensor, num_outputs: int) -> None:
        if labels.is_floating_point():
            if labels.ndim != 2 or labels.shape[1] != num_outputs:
                raise InputError(
                    f"labels: soft labels have shape {tuple(labels.shape)}; give (n, {num_outputs}), one column a class"
                )
            if not torch.isfinite(labels).all():
                raise InputError("labels: soft labels hold NaN or infinity; give finite weights")
            return
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; give int64 (n,) or float (n, classes)"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_outputs):
            raise InputError(
                f"labels: values span {int(labels.min())}..{int(labels.max())}, out of range for {num_outputs} classes; "
                f"number the classes 0..{num_outputs - 1} or build the model with more classes"
            )
