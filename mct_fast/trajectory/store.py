"""A folder of expert paths: one safetensors file (shard) an expert and a manifest.

A shard is written whole or not at all, and named in the manifest only after it is on disk, so a killed training run loses
the experts it was working on and nothing else.  Nothing is ever unpickled.  The format: ``docs/trajectory-store.md``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.files import exclusive, remove_dead
from mct_fast.run.sealed import write_tensors
from mct_fast.trajectory.convex import ConvexTrajectory
from mct_fast.trajectory.encoding import find_encoding
from mct_fast.trajectory.fidelity import encoding_error
from mct_fast.trajectory.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    check_extensible,
    check_same,
    read_manifest,
    write_manifest,
)
from mct_fast.trajectory.shards import CACHE_BYTES, encoded
from mct_fast.trajectory.stored import StoredExperts

UNFINISHED = "unfinished"
"""The folder in a store that holds what is kept of experts under way."""

_LOCK = ".lock"
_TEMPORARY = re.compile(r"\.(expert_\d+(_control)?|manifest)-[0-9a-f]{16}\.(safetensors|json)")


class TrajectoryStore(StoredExperts):
    """Expert paths on disk; ``store[i]`` reads one.

    ``manifest`` holds ``format_version``, ``model`` (a spec for :func:`mct_fast.models.build_model`), ``shapes``,
    ``dataset``, ``recipe``, ``init`` (how the first parameters are drawn, if they are), and ``experts``: a mapping from each
    expert's number to its entry (see :meth:`entry`).

    Shards are memory-mapped and read when asked for, so a store may be larger than memory; ``cache_bytes`` of decoded
    paths are kept.  A shard's SHA-256 is checked when it is first read, and again if the file changes.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], *, cache_bytes: int = CACHE_BYTES) -> None:
        super().__init__(path, manifest, cache_bytes=cache_bytes)
        self._writing = 0

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> TrajectoryStore:
        """A new store, or the existing one at ``path`` if it was begun with the same ``manifest``.

        Of ``dataset`` the ``fingerprint`` decides where both have one: the data may have moved since, and then the
        manifest follows.  Where one has none, the other entries decide, but for ``data_path``.  A store without experts,
        and without unfinished ones, is begun anew.
        """
        path = Path(path)
        fresh = {"format_version": FORMAT_VERSION, **json.loads(json.dumps(manifest)), "experts": {}}
        store = cls.open(path) if (path / MANIFEST).exists() else None
        if store is not None and (len(store) or any(path.glob(f"{UNFINISHED}/*.safetensors"))):
            check_same(store.manifest, fresh, path)
            moved = fresh["dataset"].get("data_path")
            if moved is not None and moved != store.manifest["dataset"].get("data_path"):
                with store.writing():
                    store.manifest["dataset"]["data_path"] = moved
                    write_manifest(path / MANIFEST, store.manifest)
            return store
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out: cannot write to {path} ({error.strerror}); choose a writable folder") from error
        if not (path / MANIFEST).exists():
            _refuse_results(path)
        # Absent, or begun but empty: nothing that another recipe could be mixed with.  What is unfinished is no expert yet,
        # but one that trains on: a run that was killed early keeps its recipe.
        with exclusive(path / _LOCK, f"out: {path}"):
            if (path / MANIFEST).exists() and len(cls.open(path)):
                return cls.create(path, manifest)  # another process was faster
            store = cls(path, fresh)
            write_manifest(path / MANIFEST, fresh)
        return store

    @classmethod
    def open(cls, path: str | Path, *, cache_bytes: int = CACHE_BYTES) -> TrajectoryStore:
        """Opens a store; the shards are checked when they are first read."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"trajectories: {path} holds no {MANIFEST}; make a store with 'mct-fast experts' or 'compress'"
            )
        return cls(path, read_manifest(path / MANIFEST), cache_bytes=cache_bytes)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps every other writer out; within it ``manifest`` is what is on disk.  :meth:`add` enters it by itself.

        Raises:
            InputError: another process is writing to the store; the error names it.
        """
        if self._writing:
            self._writing += 1
            try:
                yield
            finally:
                self._writing -= 1
            return
        with exclusive(self.path / _LOCK, f"out: {self.path}"):
            self.manifest = read_manifest(self.path / MANIFEST)
            for file in self.path.iterdir():
                if _TEMPORARY.fullmatch(file.name):
                    remove_dead(file)
            self._writing = 1
            try:
                yield
            finally:
                self._writing = 0

    def add(
        self,
        number: int,
        path: ConvexTrajectory,
        info: Mapping[str, Any],
        checkpoints: Tensor | None = None,
        *,
        encoding: str = "float32",
        init_seed: int | None = None,
        start_encoding: str = "float32",
    ) -> None:
        """Writes expert ``number`` in float32 or fewer bytes.

        ``checkpoints (K + 1, P)`` are kept beside the convex path if given, in float32.  ``encoding``: a name of
        :data:`ENCODINGS`, for the waypoints after the first.  ``init_seed``: the seed from which the store's ``init`` draws
        the first, which then takes no space; without it, ``start_encoding`` keeps the first (float32: 4 bytes a
        parameter, fp16: 2).  Each waypoint is encoded against the decoded one before, so errors do not add up.
        """
        if path.shapes != self.shapes:
            raise InputError(f"path: expert {number} has other parameter shapes than the store; use one store a model")
        waypoints = path.waypoints.cpu().float()
        if not bool(torch.isfinite(waypoints).all()):
            raise InputError(f"path: expert {number} is not finite; lower lr_teacher if the expert diverged")
        whole = ConvexTrajectory(waypoints, path.progress, path.shapes)
        how = {"encoding": encoding, "init_seed": init_seed, "start_encoding": start_encoding}
        tensors, decoded, origin = encoded(whole, self.manifest.get("init"), **how)
        if checkpoints is not None:
            tensors["checkpoints"] = checkpoints.cpu().float()
        described = {
            "encoding": find_encoding(encoding).name,
            "origin": origin,
            "error": encoding_error(whole, decoded),
            "info": _noted(info, number),
        }
        file = self.path / f"expert_{number:05d}.safetensors"
        with self.writing():
            check_extensible(self.manifest, self.path)
            if str(number) in self.manifest["experts"]:
                raise InputError(f"number: {self.path} holds expert {number} already; give another number")
            self._write(file, tensors, lambda shard: {str(number): {**shard, **described}})

    def add_control(self, number: int, control: Tensor, info: Mapping[str, Any]) -> None:
        """Writes the control point ``(P,)`` of a Bézier curve between the ends of expert ``number``, in float32.

        ``info`` (JSON) says how it was fitted.  Raises :class:`InputError` if the expert is missing or has one already.
        """
        count = sum(shape.numel() for shape in self.shapes)
        if control.shape != (count,) or not bool(torch.isfinite(control).all()):
            raise InputError(
                f"control: of expert {number} is not {count} finite numbers; fit it with a smaller step size"
            )
        file = self.path / f"expert_{number:05d}_control.safetensors"
        with self.writing():
            check_extensible(self.manifest, self.path)
            entry = self.manifest["experts"].get(str(number))
            if entry is None or "control" in entry:
                state = "is not in the store" if entry is None else "has a control point already"
                raise InputError(f"number: expert {number} {state}; give another number")
            self._write(
                file,
                {"control": control.float()},
                lambda shard: {str(number): {**entry, "control": {**shard, "info": dict(info)}}},
            )

    def _write(
        self, file: Path, tensors: Mapping[str, Tensor], entries: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    ) -> None:
        """Writes a shard, and then the manifest with the ``entries`` that its name, checksum and size give."""
        digest = write_tensors(file, tensors)
        shard = {"file": file.name, "sha256": digest, "bytes": file.stat().st_size}
        added = {**self.manifest, "experts": {**self.manifest["experts"], **entries(shard)}}
        try:
            write_manifest(self.path / MANIFEST, added)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        self.manifest = added


def _noted(info: Mapping[str, Any], number: int) -> dict[str, Any]:
    """``info`` as plain JSON."""
    try:
        return json.loads(json.dumps(dict(info), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"info: of expert {number} is not plain JSON ({error}); leave NaN and objects out") from error


_RESULTS = ("config.json", "distilled.safetensors")


def _refuse_results(path: Path) -> None:
    """Refuses to begin a store in the folder of a run or a distilled set: it could not be told from them."""
    found = next((name for name in _RESULTS if (path / name).exists()), None)
    if found is not None:
        raise InputError(f"out: {path} holds other results ({found}); choose a new or an empty folder")
