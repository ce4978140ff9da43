"""The experts of a store, as they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mct_fast.run.errors import InputError
from mct_fast.trajectory.path import Trajectory
from mct_fast.trajectory.shards import CACHE_BYTES, Shards


class StoredExperts:
    """The complete experts in the folder ``path`` with that ``manifest``; ``experts[i]`` reads the i-th one's convex path."""

    def __init__(self, path: Path, manifest: dict[str, Any], *, cache_bytes: int = CACHE_BYTES) -> None:
        self.path, self.manifest = path, manifest
        self.shards = Shards(
            path, manifest["format_version"], self.shapes, manifest.get("init"), cache_bytes=cache_bytes
        )

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return tuple(torch.Size(shape) for shape in self.manifest["shapes"])

    @property
    def experts(self) -> list[int]:
        """The numbers of the experts that are complete, ascending."""
        return sorted(int(number) for number in self.manifest["experts"])

    @property
    def nbytes(self) -> int:
        """Bytes on disk, manifest included."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    def __len__(self) -> int:
        return len(self.manifest["experts"])

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Trajectory:
        """The convex path of the i-th complete expert."""
        return self.trajectory(i)

    def shuffled(self, generator: torch.Generator | None = None, kind: str = "convex") -> Iterator[Trajectory]:
        """Every path once in random order, each read when its turn comes."""
        order = torch.randperm(len(self), generator=generator).tolist()
        return (self.trajectory(i, kind) for i in order)

    def info(self, i: int) -> dict[str, Any]:
        """What was noted when the i-th complete expert was added (accuracy, seconds, ...)."""
        return dict(self._entry(i)["info"])

    def entry(self, i: int) -> dict[str, Any]:
        """The i-th complete expert on disk: ``number``, ``file``, ``bytes``, ``sha256``, ``encoding``, ``origin``, ``error``.

        ``origin``: ``{"kind": "seed", "seed": decimal digits, "generator", "sha256" of theta_0}``, or ``{"kind":
        "stored", "encoding"}``.  ``error`` (None in format 1, which had one exact encoding): for each number of
        ``expert_epochs`` M and each ``start`` t, ``point[M][t]`` = |d(t + M)| / |theta(t + M) - theta(t)| and
        ``segment[M][t]`` = |d(t + M) - d(t)| / |theta(t + M) - theta(t)|, with theta the path before it was encoded and d
        what encoding added to it; None where the path stands still.
        """
        number = self.experts[i]
        entry = self.manifest["experts"][str(number)]
        found = {key: value for key, value in entry.items() if key != "info"}
        plain = {"encoding": "float32", "origin": {"kind": "stored", "encoding": "float32"}, "error": None}
        return {"number": number, **plain, **found}

    def trajectory(self, i: int, kind: str = "convex") -> Trajectory:
        """The i-th complete expert's path.

        ``kind``: ``"convex"``, ``"discrete"`` if its checkpoints were kept, ``"bezier"`` if a control point was fitted.  A
        discrete path reads a checkpoint when it is asked for it.  The tensors of a convex path are shared with later
        calls: do not write into them.
        """
        entry = self._entry(i)
        if kind == "convex":
            return self.shards.line(entry)
        if kind == "discrete":
            return self.shards.checkpoints(entry)
        if kind != "bezier":
            raise InputError(f"trajectory: unknown kind {kind!r}; choose 'convex', 'discrete' or 'bezier'")
        if "control" not in entry:
            raise InputError(
                f"trajectory: expert {self.experts[i]} of {self.path} has no control point; "
                f"run 'mct-fast bezier {self.path}', or use 'convex'"
            )
        return self.shards.curve(entry)

    def has_control(self, i: int) -> bool:
        """Whether the i-th complete expert has a control point."""
        return "control" in self._entry(i)

    def verify(self) -> None:
        """Reads everything: the hash of every shard, every path, every control point, every drawn theta_0.

        Raises:
            InputError: naming every expert that is damaged.
        """
        self.shards.forget()
        broken = []
        for i in range(len(self)):
            try:
                self.trajectory(i, "bezier" if self.has_control(i) else "convex")
            except InputError as error:
                broken.append(str(error).removeprefix("trajectories: "))
        if broken:
            raise InputError(
                f"trajectories: {len(broken)} of {len(self)} experts cannot be read: " + " | ".join(broken)
            )

    def _entry(self, i: int) -> dict[str, Any]:
        numbers = self.experts
        if not -len(numbers) <= i < len(numbers):
            raise IndexError(f"expert {i} of {len(numbers)}")
        return self.manifest["experts"][str(numbers[i])]
