"""One expert's files in a store: read, checked against the manifest, and what is written of a path."""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mct_fast.models.init import GENERATOR, draw, plan_from_json
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_file
from mct_fast.run.sealed import mapped_tensors
from mct_fast.trajectory.bezier import BezierTrajectory
from mct_fast.trajectory.convex import ConvexTrajectory
from mct_fast.trajectory.discrete import StoredCheckpoints
from mct_fast.trajectory.encoding import Encoding, find_encoding
from mct_fast.trajectory.manifest import MANIFEST

CACHE_BYTES = 64 << 20
"""Decoded paths that an open store keeps, by default."""


class Shards:
    """Reads the shards of the store in ``folder``, whose manifest has these ``version``, ``shapes`` and ``init``.

    A shard's SHA-256 is checked when it is first read, and again if the file changes; ``cache_bytes`` of decoded paths are
    kept.
    """

    def __init__(
        self, folder: Path, version: int, shapes: Sequence[torch.Size], init: Any, *, cache_bytes: int
    ) -> None:
        self.shapes, self.cache_bytes = tuple(shapes), cache_bytes
        self._folder, self._version, self._init = folder, version, init
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._verified_starts: set[str] = set()
        self._cache: OrderedDict[str, ConvexTrajectory] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes of the decoded paths that are kept."""
        return sum(path.waypoints.nbytes for path in self._cache.values())

    def forget(self) -> None:
        """Checks and reads everything anew from now on."""
        self._verified.clear()
        self._verified_starts.clear()
        self._cache.clear()

    def line(self, entry: Mapping[str, Any]) -> ConvexTrajectory:
        """The convex path of the expert with this ``entry``; its tensors are shared with later calls."""
        return self._cached(entry, self.checked(entry))

    def curve(self, entry: Mapping[str, Any]) -> BezierTrajectory:
        """The curve with the expert's control point, which it must have."""
        line = self.line(entry)
        shard = self.checked(entry["control"])
        with _naming(shard):
            control = mapped_tensors(shard)[0]["control"]
            points = torch.stack([line.waypoints[0], control, line.waypoints[-1]])
            return BezierTrajectory(points, line.epochs, self.shapes)

    def checkpoints(self, entry: Mapping[str, Any]) -> StoredCheckpoints:
        """Every epoch's checkpoint; each is read when it is asked for."""
        file = self.checked(entry)
        with _naming(file):
            with safe_open(str(file), framework="pt") as shard:
                kept = "checkpoints" in shard.keys()  # noqa: SIM118 (not a dict)
            if kept:
                return StoredCheckpoints(file, "checkpoints", self.shapes)
        raise InputError(f"trajectory: {file} keeps no checkpoints; train with --keep-checkpoints, or use 'convex'")

    def checked(self, entry: Mapping[str, Any]) -> Path:
        """The shard of ``entry``, once its bytes are known to be those that were written."""
        file = self._folder / entry["file"]
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"trajectories: {file} is missing; restore it or train this expert again") from error
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(file.name) != seen:
            self._cache.pop(file.name, None)
            if status.st_size != entry["bytes"]:
                raise InputError(
                    f"trajectories: {file} has {status.st_size} bytes, not {entry['bytes']}; "
                    "the file is damaged, restore or retrain it"
                )
            if sha256_file(file) != entry["sha256"]:
                raise InputError(
                    f"trajectories: {file} does not match its SHA-256; the file is damaged, restore or retrain it"
                )
            self._verified[file.name] = seen
        return file

    def _cached(self, entry: Mapping[str, Any], file: Path) -> ConvexTrajectory:
        path = self._cache.pop(file.name, None)
        if path is None:
            with _naming(file):
                path = self._decode(entry, file)
        self._cache[file.name] = path
        total = sum(kept.waypoints.nbytes for kept in self._cache.values())
        while total > self.cache_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            total -= dropped.waypoints.nbytes
        return path

    def _decode(self, entry: Mapping[str, Any], file: Path) -> ConvexTrajectory:
        shapes = self.shapes
        tensors, _ = mapped_tensors(file, skip=["checkpoints"])
        if self._version == 1:
            return ConvexTrajectory(tensors["waypoints"], tensors["progress"], shapes)
        encoding, origin = find_encoding(entry["encoding"]), entry["origin"]
        if origin["kind"] == "seed":
            start = self._drawn(file, origin)
        else:
            parts = {name.removeprefix("start_"): part for name, part in tensors.items() if name.startswith("start_")}
            start = find_encoding(origin["encoding"]).decode(parts, shapes)
        stacked = {name: tensors[name] for name in tensors if name != "progress" and not name.startswith("start_")}
        points = [start]
        for j in range(min(len(part) for part in stacked.values())):
            point = encoding.decode({name: part[j] for name, part in stacked.items()}, shapes)
            points.append(points[-1] + point if encoding.relative else point)
        return ConvexTrajectory(torch.stack(points), tensors["progress"], shapes)

    def _drawn(self, file: Path, origin: Mapping[str, Any]) -> Tensor:
        if origin["generator"] != GENERATOR:
            raise InputError(
                f"trajectories: {file} begins with generator {origin['generator']!r}, this release knows {GENERATOR!r}; "
                "use a matching release of mct_fast"
            )
        start = draw(plan_from_json(self._init), self.shapes, int(origin["seed"]))
        if file.name not in self._verified_starts:
            if _sha256(start) != origin["sha256"]:
                raise InputError(
                    f"trajectories: theta_0 of {file}, drawn from seed {origin['seed']}, does not match the SHA-256 in "
                    f"{MANIFEST}; use the release of mct_fast that wrote the store, or train this expert again"
                )
            self._verified_starts.add(file.name)
        return start


def encoded(
    path: ConvexTrajectory, init: Any, *, encoding: str, init_seed: int | None, start_encoding: str
) -> tuple[dict[str, Tensor], ConvexTrajectory, dict[str, Any]]:
    """What a shard keeps of ``path``, float32 on the CPU; the path as it will be read; and the note about its theta_0.

    The arguments are those of :meth:`TrajectoryStore.add`; ``init`` is the manifest's.
    """
    waypoints, shapes = path.waypoints, path.shapes
    origin, start_parts = _origin(waypoints[0], shapes, init, init_seed, start_encoding)
    start = waypoints[0] if init_seed is not None else find_encoding(start_encoding).decode(start_parts, shapes)
    parts, points = _encode(find_encoding(encoding), start, waypoints[1:], shapes)
    tensors = {"progress": path.progress, **{f"start_{name}": part for name, part in start_parts.items()}, **parts}
    return tensors, ConvexTrajectory(points, path.progress, shapes), origin


def _origin(
    start: Tensor, shapes: Sequence[torch.Size], plan: Any, seed: int | None, start_encoding: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The note about theta_0 and what of it is stored."""
    if seed is None:
        encoding = find_encoding(start_encoding, "start_encoding")
        return {"kind": "stored", "encoding": encoding.name}, encoding.encode(start, shapes)
    if plan is None:
        raise InputError(
            "init_seed: the store does not say how parameters are drawn; create the store with 'init', or leave it out"
        )
    digest = _sha256(start)
    if _sha256(draw(plan_from_json(plan), shapes, seed)) != digest:
        raise InputError(f"init_seed: {seed} does not draw the path's first point; leave init_seed out")
    return {"kind": "seed", "seed": str(seed), "generator": GENERATOR, "sha256": digest}, {}


def _encode(
    encoding: Encoding, start: Tensor, waypoints: Tensor, shapes: Sequence[torch.Size]
) -> tuple[dict[str, Tensor], Tensor]:
    """What is stored of the waypoints after the first, and all as they will be read: ``(w, P)``."""
    points, coded = [start], []
    for waypoint in waypoints:
        parts = encoding.encode(waypoint - points[-1] if encoding.relative else waypoint, shapes)
        decoded = encoding.decode(parts, shapes)
        points.append(points[-1] + decoded if encoding.relative else decoded)
        coded.append(parts)
    return {name: torch.stack([parts[name] for parts in coded]) for name in coded[0]}, torch.stack(points)


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors about a shard's content name the shard."""
    try:
        yield
    except InputError as error:
        if file.name in str(error):
            raise
        raise InputError(f"trajectories: {file} does not fit its manifest ({error})") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        text = str(error).replace("\n", " ")
        raise InputError(
            f"trajectories: {file} is no shard of this format ({type(error).__name__}: {text}); restore or retrain it"
        ) from error


def _sha256(params: Tensor) -> str:
    return hashlib.sha256(params.contiguous().numpy().astype("<f4", copy=False).data).hexdigest()
