"""What every expert path offers, and the checks that all of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.trajectory.point import PathPoint


class Trajectory(Protocol):
    """A path of one expert; time is counted in epochs of its training."""

    @property
    def epochs(self) -> int:
        """K: the last time."""
        ...

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of the L parameter tensors, in flat order."""
        ...

    @property
    def continuous(self) -> bool:
        """Whether :meth:`at` is defined between whole epochs."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the models that the path holds in memory."""
        ...

    def to(self, device: torch.device | str) -> Trajectory:
        """The same path with its models on ``device``."""
        ...

    def at(self, t: float) -> Tensor:
        """The parameters ``(P,)`` at time ``t`` in [0, epochs]."""
        ...

    def point(self, t: float) -> PathPoint:
        """The same, as a mixture of the models that are stored; it takes no memory of their size."""
        ...


def check_time(t: float, epochs: int) -> float:
    """``t`` if it lies on the path."""
    if not math.isfinite(t) or not 0 <= t <= epochs:
        raise InputError(f"t: {t} is not on the path; give a time from 0 to {epochs} epochs")
    return float(t)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One checkpoint's tensors as ``(P,)``, detached."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def check_checkpoints(checkpoints: Sequence[Sequence[Tensor]]) -> tuple[torch.Size, ...]:
    """The common shapes of two or more checkpoints."""
    if len(checkpoints) < 2:
        raise InputError(f"checkpoints: got {len(checkpoints)}; a path needs at least two")
    shapes = tuple(tensor.shape for tensor in checkpoints[0])
    for epoch, checkpoint in enumerate(checkpoints):
        if tuple(tensor.shape for tensor in checkpoint) != shapes:
            raise InputError(
                f"checkpoints: number {epoch} has other shapes than number 0; give one network's checkpoints"
            )
    return shapes
