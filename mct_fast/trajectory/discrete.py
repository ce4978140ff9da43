"""The path as MTT keeps it: every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.trajectory.path import check_checkpoints, check_time, flatten
from mct_fast.trajectory.point import PathPoint


class DiscreteTrajectory:
    """All K + 1 checkpoints of an expert; defined at whole epochs only.

    ``checkpoints``: K + 1 lists of parameter tensors, or one tensor ``(K + 1, P)`` together with ``shapes``.
    """

    def __init__(
        self, checkpoints: Sequence[Sequence[Tensor]] | Tensor, shapes: Sequence[torch.Size] | None = None
    ) -> None:
        if isinstance(checkpoints, Tensor):
            if shapes is None or checkpoints.ndim != 2 or len(checkpoints) < 2:
                raise InputError("checkpoints: a tensor must be (epochs + 1, P) and come with shapes=...")
            if sum(shape.numel() for shape in shapes) != checkpoints.shape[1]:
                raise InputError("shapes: do not add up to the columns of checkpoints; give the model's shapes")
            self.checkpoints, self._shapes = checkpoints.detach(), tuple(shapes)
        else:
            self._shapes = check_checkpoints(checkpoints)
            self.checkpoints = torch.stack([flatten(tensors) for tensors in checkpoints])

    @property
    def epochs(self) -> int:
        return len(self.checkpoints) - 1

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._shapes

    @property
    def continuous(self) -> bool:
        return False

    @property
    def nbytes(self) -> int:
        return self.checkpoints.nbytes

    def to(self, device: torch.device | str) -> DiscreteTrajectory:
        """The same path with its checkpoints on ``device``."""
        return DiscreteTrajectory(self.checkpoints.to(device), self._shapes)

    def at(self, t: float) -> Tensor:
        """The checkpoint ``(P,)`` of epoch ``t``; a time between epochs is refused."""
        t = check_time(t, self.epochs)
        if t != int(t):
            raise InputError(f"t: {t} lies between checkpoints; use sampling='integer' or a convex trajectory")
        return self._checkpoint(int(t))

    def point(self, t: float) -> PathPoint:
        """The checkpoint of epoch ``t``, alone in its mixture."""
        return PathPoint((self.at(t),), torch.ones(1, len(self._shapes), dtype=torch.float64), self._shapes)

    def _checkpoint(self, epoch: int) -> Tensor:
        return self.checkpoints[epoch]


class StoredCheckpoints(DiscreteTrajectory):
    """The same, read from the tensor ``name`` of a safetensors file: each checkpoint when it is asked for."""

    def __init__(self, file: Path, name: str, shapes: Sequence[torch.Size]) -> None:
        self._file, self._name, self._shapes = file, name, tuple(shapes)
        with safe_open(str(file), framework="pt") as shard:
            rows, columns = shard.get_slice(name).get_shape()
        if rows < 2 or columns != sum(shape.numel() for shape in self._shapes):
            raise InputError(f"checkpoints: {file} holds those of another model; restore the file")
        self._rows = rows

    @property
    def checkpoints(self) -> Tensor:
        """All of them, ``(K + 1, P)``, read anew."""
        with safe_open(str(self._file), framework="pt") as shard:
            return shard.get_tensor(self._name)

    @property
    def epochs(self) -> int:
        return self._rows - 1

    @property
    def nbytes(self) -> int:
        """Of all checkpoints, as :meth:`to` brings them into memory."""
        return 4 * self._rows * sum(shape.numel() for shape in self._shapes)

    def _checkpoint(self, epoch: int) -> Tensor:
        with safe_open(str(self._file), framework="pt") as shard:
            return shard.get_slice(self._name)[epoch]
