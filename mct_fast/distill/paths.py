"""Experts by number for the outer loop, kept on its device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from mct_fast.run.errors import InputError
from mct_fast.trajectory import Trajectory, TrajectoryStore

KEPT_BYTES = 4 << 30
"""Paths kept on another device than the processor's, at most; the least recently used makes room."""


class ExpertPaths:
    """The experts of a store or of a list, as paths of one kind on ``device``.

    On the processor they are the source's own (a store has a cache of its own); elsewhere a path is copied once and stays, within
    ``kept_bytes``, so that drawing a match moves nothing.

    Raises:
        InputError: the source is empty.
    """

    def __init__(
        self,
        source: TrajectoryStore | Sequence[Trajectory],
        kind: str,
        device: torch.device | str = "cpu",
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._source, self._kind, self._device, self._room = source, kind, torch.device(device), kept_bytes
        self._kept: OrderedDict[int, Trajectory] = OrderedDict()
        if len(source) == 0:
            raise InputError("trajectories: hold no expert; train or compress some first")

    def of_kind(self, kind: str) -> ExpertPaths:
        """The same experts as paths of another kind."""
        return self if kind == self._kind else ExpertPaths(self._source, kind, self._device, self._room)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Trajectory:
        if self._device.type == "cpu":
            return self._read(i)
        if i not in self._kept:
            path = self._read(i).to(self._device)
            while self._kept and self._held() + path.nbytes > self._room:
                self._kept.popitem(last=False)
            self._kept[i] = path
        self._kept.move_to_end(i)
        return self._kept[i]

    def _held(self) -> int:
        return sum(path.nbytes for path in self._kept.values())

    def _read(self, i: int) -> Trajectory:
        if isinstance(self._source, TrajectoryStore):
            return self._source.trajectory(i, self._kind)
        return self._source[i]
