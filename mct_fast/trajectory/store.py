"""A folder of expert paths: one safetensors file an expert and a manifest.

A file is written whole or not at all, and named in the manifest only after it is on disk, so a killed training run loses
the expert it was working on and nothing else.  Nothing is ever unpickled.  The format: ``docs/trajectory-store.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mct_fast.errors import InputError
from mct_fast.files import atomic_write, read_json, sha256_file, write_json
from mct_fast.trajectory.convex import ConvexTrajectory
from mct_fast.trajectory.discrete import DiscreteTrajectory
from mct_fast.trajectory.path import Trajectory

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class TrajectoryStore:
    """Expert paths on disk; ``store[i]`` reads one.

    ``manifest`` holds ``format_version``, ``model`` (a spec for :func:`mct_fast.models.build_model`), ``shapes``,
    ``dataset``, ``recipe``, and a list ``experts`` of ``{file, sha256, bytes, info}``.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self._verified: set[str] = set()

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> TrajectoryStore:
        """A new store, or the existing one at ``path`` if it was begun with the same ``manifest``."""
        path = Path(path)
        fresh = {"format_version": FORMAT_VERSION, **manifest, "experts": {}}
        if (path / MANIFEST).exists():
            store = cls.open(path)
            if not len(store):  # begun but empty: nothing that another recipe could be mixed with
                write_json(path / MANIFEST, fresh)
                return cls(path, fresh)
            for key in manifest:
                if store.manifest.get(key) != manifest[key]:
                    raise InputError(
                        f"out: {path} holds experts of another {key}; choose an empty folder or delete this one"
                    )
            return store
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / MANIFEST, fresh)
        except OSError as error:
            raise InputError(f"out: cannot write to {path} ({error.strerror}); choose a writable folder") from error
        return cls(path, fresh)

    @classmethod
    def open(cls, path: str | Path) -> TrajectoryStore:
        """Opens a store; the shards are checked when they are first read."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"trajectories: {path} holds no {MANIFEST}; make a store with 'mct-fast experts' or 'compress'"
            )
        manifest = read_json(path / MANIFEST)
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"trajectories: {path / MANIFEST} has format version {version}, this release reads {FORMAT_VERSION}; "
                "use a matching release of mct_fast"
            )
        missing = [key for key in ("model", "shapes", "dataset", "recipe", "experts") if key not in manifest]
        if missing:
            raise InputError(
                f"trajectories: {path / MANIFEST} lacks {', '.join(missing)}; the file is damaged, restore it"
            )
        return cls(path, manifest)

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

    def info(self, i: int) -> dict[str, Any]:
        """What was noted when the i-th complete expert was added (accuracy, seconds, ...)."""
        return dict(self._entry(i)["info"])

    def trajectory(self, i: int, kind: str = "convex") -> Trajectory:
        """The i-th complete expert's path: ``"convex"``, or ``"discrete"`` if its checkpoints were kept."""
        entry = self._entry(i)
        if kind == "convex":
            tensors = self._read(entry, "waypoints", "progress")
            return ConvexTrajectory(tensors["waypoints"], tensors["progress"], self.shapes)
        if kind != "discrete":
            raise InputError(f"trajectory: unknown kind {kind!r}; choose 'convex' or 'discrete'")
        tensors = self._read(entry, "checkpoints")
        if not tensors:
            raise InputError(
                f"trajectory: {self.path / entry['file']} keeps no checkpoints; train with --keep-checkpoints, or use 'convex'"
            )
        return DiscreteTrajectory(tensors["checkpoints"], self.shapes)

    def add(
        self, number: int, path: ConvexTrajectory, info: Mapping[str, Any], checkpoints: Tensor | None = None
    ) -> None:
        """Writes expert ``number``; ``checkpoints (K + 1, P)`` are kept beside the convex path if given."""
        if path.shapes != self.shapes:
            raise InputError(f"path: expert {number} has other parameter shapes than the store; use one store a model")
        tensors = {"waypoints": path.waypoints.cpu().contiguous(), "progress": path.progress.contiguous()}
        if checkpoints is not None:
            tensors["checkpoints"] = checkpoints.cpu().contiguous()
        file = self.path / f"expert_{number:05d}.safetensors"
        try:
            atomic_write(file, lambda temporary: save_file(tensors, str(temporary)))
            entry = {"file": file.name, "sha256": sha256_file(file), "bytes": file.stat().st_size, "info": dict(info)}
            self.manifest["experts"][str(number)] = entry
            write_json(self.path / MANIFEST, self.manifest)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"out: cannot write {file} ({error}); free some space or choose another folder, finished experts are kept"
            ) from error

    def _entry(self, i: int) -> dict[str, Any]:
        numbers = self.experts
        if not -len(numbers) <= i < len(numbers):
            raise IndexError(f"expert {i} of {len(numbers)}")
        return self.manifest["experts"][str(numbers[i])]

    def _read(self, entry: Mapping[str, Any], *names: str) -> dict[str, Tensor]:
        """Those of the tensors ``names`` that the shard holds."""
        file = self.path / entry["file"]
        if not file.is_file():
            raise InputError(f"trajectories: {file} is missing; restore it or train this expert again")
        if file.name not in self._verified:
            if sha256_file(file) != entry["sha256"]:
                raise InputError(
                    f"trajectories: {file} does not match its SHA-256; the file is damaged, restore or retrain it"
                )
            self._verified.add(file.name)
        with safe_open(str(file), framework="pt") as shard:
            return {name: shard.get_tensor(name) for name in shard.keys() if name in names}  # noqa: SIM118 (not a dict)
