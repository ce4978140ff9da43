"""A folder of expert paths: one safetensors file (shard) an expert and a manifest.

A shard is written whole or not at all, and named in the manifest only after it is on disk, so a killed training run loses
the experts it was working on and nothing else.  Nothing is ever unpickled.  The format: ``docs/trajectory-store.md``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mct_fast.models.init import GENERATOR, draw, plan_from_json
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, exclusive, remove_dead, sha256_file
from mct_fast.run.form import SOURCE, misfit
from mct_fast.run.sealed import BLANK, mapped_tensors, read_sealed, seal, write_tensors
from mct_fast.trajectory.bezier import BezierTrajectory
from mct_fast.trajectory.convex import ConvexTrajectory
from mct_fast.trajectory.discrete import StoredCheckpoints
from mct_fast.trajectory.encoding import Encoding, find_encoding
from mct_fast.trajectory.path import Trajectory

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CACHE_BYTES = 64 << 20
"""Decoded paths that an open store keeps, by default."""

_READABLE = (1, 2)
_LOCK = ".lock"
_FORM = {
    "model": {"name?": str},
    "shapes": [[int]],
    "dataset": SOURCE,
    "recipe": dict,
    "experts": dict,
    "init?": ([dict], None),
    "task?": ({"name": str}, None),
}
_FILE = {"file": object, "sha256": str, "bytes": int}
_SCORES = {f"{name}?": (float, None) for name in ("seconds", "accuracy", "auroc", "macro_auroc")}
_TABLE = [[(float, None)]]
_ENCODED = {
    "encoding": str,
    "origin": {"kind": str, "seed?": str, "generator?": str, "sha256?": str, "encoding?": str},
    "error": ({"expert_epochs": [float], "start": [float], "point": _TABLE, "segment": _TABLE}, None),
    "control?": {**_FILE, "info?": {"loss_line?": [float], "loss_curve?": [float]}},
}
_ENTRY = {1: {**_FILE, "info": _SCORES}, 2: {**_FILE, "info": _SCORES, **_ENCODED}}
_TEMPORARY = re.compile(r"\.(expert_\d+(_control)?|manifest)-[0-9a-f]{16}\.(safetensors|json)")


class TrajectoryStore:
    """Expert paths on disk; ``store[i]`` reads one.

    ``manifest`` holds ``format_version``, ``model`` (a spec for :func:`mct_fast.models.build_model`), ``shapes``,
    ``dataset``, ``recipe``, ``init`` (how the first parameters are drawn, if they are), and ``experts``: a mapping from each
    expert's number to its entry (see :meth:`entry`).

    Shards are memory-mapped and read when asked for, so a store may be larger than memory; ``cache_bytes`` of decoded
    paths are kept.  A shard's SHA-256 is checked when it is first read, and again if the file changes.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], *, cache_bytes: int = CACHE_BYTES) -> None:
        self.path, self.manifest, self.cache_bytes = path, manifest, cache_bytes
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._verified_starts: set[str] = set()
        self._cache: OrderedDict[str, ConvexTrajectory] = OrderedDict()
        self._writing = 0

    # Opening

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any]) -> TrajectoryStore:
        """A new store, or the existing one at ``path`` if it was begun with the same ``manifest``.

        Of ``dataset`` the ``fingerprint`` decides where both have one: the data may have moved since, and then the
        manifest follows.  Where one has none, the other entries decide, but for ``data_path``.
        """
        path = Path(path)
        fresh = {"format_version": FORMAT_VERSION, **json.loads(json.dumps(manifest)), "experts": {}}
        store = cls.open(path) if (path / MANIFEST).exists() else None
        if store is not None and len(store):
            store._check_same(fresh)
            moved = fresh["dataset"].get("data_path")
            if moved is not None and moved != store.manifest["dataset"].get("data_path"):
                with store.writing():
                    store.manifest["dataset"]["data_path"] = moved
                    store._write_manifest(store.manifest)
            return store
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"out: cannot write to {path} ({error.strerror}); choose a writable folder") from error
        if not (path / MANIFEST).exists():
            _refuse_results(path)
        # Absent, or begun but empty: nothing that another recipe could be mixed with.
        with exclusive(path / _LOCK, f"out: {path}"):
            if (path / MANIFEST).exists() and len(cls.open(path)):
                return cls.create(path, manifest)  # another process was faster
            store = cls(path, fresh)
            store._write_manifest(fresh)
        return store

    @classmethod
    def open(cls, path: str | Path, *, cache_bytes: int = CACHE_BYTES) -> TrajectoryStore:
        """Opens a store; the shards are checked when they are first read."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(
                f"trajectories: {path} holds no {MANIFEST}; make a store with 'mct-fast experts' or 'compress'"
            )
        return cls(path, _read_manifest(path / MANIFEST), cache_bytes=cache_bytes)

    def _check_extensible(self) -> None:
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"out: {self.path / MANIFEST} is of format {self.manifest['format_version']}, which is read but not "
                "extended; choose an empty folder"
            )

    def _check_same(self, fresh: Mapping[str, Any]) -> None:
        self._check_extensible()
        # What explains most comes first: another width has other shapes and another plan of initialisation.
        order = [key for key in ("model", "task", "recipe") if key in fresh]
        for key in ("dataset", *order, *sorted(fresh.keys() - {"experts", "dataset", *order})):
            ours: Any = self.manifest.get(key)
            theirs = fresh[key]
            if _same_data(ours, theirs) if key == "dataset" else ours == theirs:
                continue
            raise InputError(
                f"out: {self.path} holds experts of another {key}{_difference(ours, theirs)}; "
                "choose an empty folder or delete this one"
            )

    # What it holds

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

    # Reading

    def trajectory(self, i: int, kind: str = "convex") -> Trajectory:
        """The i-th complete expert's path: ``"convex"``, ``"discrete"`` if its checkpoints were kept, ``"bezier"`` if a

        control point was fitted.

        A discrete path reads a checkpoint when it is asked for it.  The tensors of a convex path are shared with later
        calls: do not write into them.
        """
        entry = self._entry(i)
        file = self._check_file(entry)
        if kind == "convex":
            return self._cached(entry, file)
        if kind == "bezier":
            return self._curve(i, entry, file)
        if kind != "discrete":
            raise InputError(f"trajectory: unknown kind {kind!r}; choose 'convex', 'discrete' or 'bezier'")
        with _naming(file):
            with safe_open(str(file), framework="pt") as shard:
                kept = "checkpoints" in shard.keys()  # noqa: SIM118 (not a dict)
            if kept:
                return StoredCheckpoints(file, "checkpoints", self.shapes)
        raise InputError(f"trajectory: {file} keeps no checkpoints; train with --keep-checkpoints, or use 'convex'")

    def has_control(self, i: int) -> bool:
        """Whether the i-th complete expert has a control point."""
        return "control" in self._entry(i)

    def _curve(self, i: int, entry: Mapping[str, Any], file: Path) -> BezierTrajectory:
        if "control" not in entry:
            raise InputError(
                f"trajectory: expert {self.experts[i]} of {self.path} has no control point; "
                f"run 'mct-fast bezier {self.path}', or use 'convex'"
            )
        line = self._cached(entry, file)
        shard = self._check_file(entry["control"])
        with _naming(shard):
            control = mapped_tensors(shard)[0]["control"]
            points = torch.stack([line.waypoints[0], control, line.waypoints[-1]])
            return BezierTrajectory(points, line.epochs, self.shapes)

    def verify(self) -> None:
        """Reads everything: the hash of every shard, every path, every control point, every drawn theta_0.

        Raises:
            InputError: naming every expert that is damaged.
        """
        self._verified.clear()
        self._verified_starts.clear()
        self._cache.clear()
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
        if self.manifest["format_version"] == 1:
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
        start = draw(plan_from_json(self.manifest["init"]), self.shapes, int(origin["seed"]))
        if file.name not in self._verified_starts:
            if _sha256(start) != origin["sha256"]:
                raise InputError(
                    f"trajectories: theta_0 of {file}, drawn from seed {origin['seed']}, does not match the SHA-256 in "
                    f"{MANIFEST}; use the release of mct_fast that wrote the store, or train this expert again"
                )
            self._verified_starts.add(file.name)
        return start

    def _entry(self, i: int) -> dict[str, Any]:
        numbers = self.experts
        if not -len(numbers) <= i < len(numbers):
            raise IndexError(f"expert {i} of {len(numbers)}")
        return self.manifest["experts"][str(numbers[i])]

    def _check_file(self, entry: Mapping[str, Any]) -> Path:
        """The shard of ``entry``, once its bytes are known to be those that were written."""
        file = self.path / entry["file"]
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

    # Writing

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
            self.manifest = _read_manifest(self.path / MANIFEST)
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
        origin, start_parts = self._begin(waypoints[0], init_seed, start_encoding)
        start = (
            waypoints[0] if init_seed is not None else find_encoding(start_encoding).decode(start_parts, self.shapes)
        )
        coded = find_encoding(encoding)
        parts, points = _encode(coded, start, waypoints[1:], self.shapes)
        decoded = ConvexTrajectory(points, path.progress, path.shapes)
        whole = ConvexTrajectory(waypoints, path.progress, path.shapes)
        tensors = {"progress": path.progress, **{f"start_{name}": part for name, part in start_parts.items()}, **parts}
        if checkpoints is not None:
            tensors["checkpoints"] = checkpoints.cpu().float()
        try:
            noted = json.loads(json.dumps(dict(info), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"info: of expert {number} is not plain JSON ({error}); leave NaN and objects out"
            ) from error
        file = self.path / f"expert_{number:05d}.safetensors"
        with self.writing():
            self._check_extensible()
            if str(number) in self.manifest["experts"]:
                raise InputError(f"number: {self.path} holds expert {number} already; give another number")
            digest = write_tensors(file, tensors)
            entry = {
                "file": file.name,
                "sha256": digest,
                "bytes": file.stat().st_size,
                "encoding": coded.name,
                "origin": origin,
                "error": _error(whole, decoded),
                "info": noted,
            }
            added = {**self.manifest, "experts": {**self.manifest["experts"], str(number): entry}}
            try:
                self._write_manifest(added)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            self.manifest = added

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
            self._check_extensible()
            entry = self.manifest["experts"].get(str(number))
            if entry is None or "control" in entry:
                state = "is not in the store" if entry is None else "has a control point already"
                raise InputError(f"number: expert {number} {state}; give another number")
            digest = write_tensors(file, {"control": control.float()})
            noted = {"file": file.name, "sha256": digest, "bytes": file.stat().st_size, "info": dict(info)}
            changed = {**self.manifest["experts"], str(number): {**entry, "control": noted}}
            added = {**self.manifest, "experts": changed}
            try:
                self._write_manifest(added)
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            self.manifest = added

    def _begin(self, start: Tensor, seed: int | None, start_encoding: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The note about theta_0 and what of it is stored."""
        if seed is None:
            encoding = find_encoding(start_encoding, "start_encoding")
            return {"kind": "stored", "encoding": encoding.name}, encoding.encode(start, self.shapes)
        plan = self.manifest.get("init")
        if plan is None:
            raise InputError(
                f"init_seed: {self.path} does not say how parameters are drawn; create the store with 'init', or leave it out"
            )
        digest = _sha256(start)
        if _sha256(draw(plan_from_json(plan), self.shapes, seed)) != digest:
            raise InputError(f"init_seed: {seed} does not draw the path's first point; leave init_seed out")
        return {"kind": "seed", "seed": str(seed), "generator": GENERATOR, "sha256": digest}, {}

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        # One line an expert.  The checksum is that of the file with its own digits zero.
        lines = [f'"format_version": {manifest["format_version"]}', f'"checksum": "{BLANK}"']
        for key, value in manifest.items():
            if key == "experts":
                rows = [f"{json.dumps(number)}: {_compact(entry)}" for number, entry in value.items()]
                lines.append('"experts": {\n' + ",\n".join(rows) + "\n}")
            elif key not in ("format_version", "checksum"):
                lines.append(f"{json.dumps(key)}: {_compact(value)}")
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        atomic_write(self.path / MANIFEST, lambda temporary: _write_bytes(temporary, seal(text)))


_RESULTS = ("config.json", "distilled.safetensors")


def _refuse_results(path: Path) -> None:
    """Refuses to begin a store in the folder of a run or a distilled set: it could not be told from them."""
    found = next((name for name in _RESULTS if (path / name).exists()), None)
    if found is not None:
        raise InputError(f"out: {path} holds other results ({found}); choose a new or an empty folder")


def _read_manifest(file: Path) -> dict[str, Any]:
    manifest, sealed = read_sealed(
        file,
        "trajectories",
        "restore it, or set its checksum to null if you changed it yourself; the shards are untouched",
        _READABLE,
    )
    version = manifest["format_version"]
    if version > 1 and sealed is None:
        raise InputError(f"trajectories: {file} lacks its checksum; the file is damaged, restore it")
    wrong = misfit(manifest, _FORM, str(file)) or _wrong_entries(file, version, manifest["experts"])
    if wrong is None and any(size < 0 for shape in manifest["shapes"] for size in shape):
        wrong = f"{file} has a negative size among its shapes"
    if wrong is not None:
        raise InputError(f"trajectories: {wrong}; the file is damaged, restore it")
    return manifest


def _wrong_entries(file: Path, version: int, experts: dict[str, Any]) -> str | None:
    names: set[str] = set()
    for number, entry in experts.items():
        wrong = misfit(entry, _ENTRY[version], f"{file} expert {number}")
        if wrong is not None or not re.fullmatch("0|[1-9][0-9]{0,17}", number):
            return wrong or f"{file} has an expert {number!r}, which is no number"
        for name in [entry["file"], *([entry["control"]["file"]] if "control" in entry else [])]:
            if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", name):
                return f"{file} names {name!r} for expert {number}, which is no file of this folder"
            if name in names:
                return f"{file} names {name} as two experts"
            names.add(name)
    return None


def _difference(ours: Any, theirs: Any) -> str:
    """The first entry in which two objects differ, with both values."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ""
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if name not in ("data_path", "report") and ours.get(name) != theirs.get(name):
            return f" ({name}: {ours.get(name)!r} there, {theirs.get(name)!r} here)"
    return ""


def _same_data(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a.get("fingerprint") is not None and b.get("fingerprint") is not None:
        return a["fingerprint"] == b["fingerprint"]
    common = (a.keys() & b.keys()) - {"data_path", "fingerprint"}
    return all(a[key] == b[key] for key in common)


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


def _error(whole: ConvexTrajectory, decoded: ConvexTrajectory) -> dict[str, Any]:
    """See :meth:`TrajectoryStore.entry`."""
    epochs = whole.epochs
    lengths = [m for m in (1, 2, 4) if m <= epochs]
    starts = sorted({round(share * (epochs - lengths[-1]), 3) for share in (0, 0.25, 0.5, 0.75, 1)})
    times = sorted({t + m for t in starts for m in (0, *lengths)})
    # Each tensor's path is first point + sum of share_i(t) * step_i, linear in the steps: all norms wanted are quadratic
    # forms of one small Gram matrix a tensor, so that no point of the path need be made.
    pieces = torch.arange(len(whole.waypoints) - 1, dtype=torch.float64)
    shares = {t: (whole.pace(t)[:, None] - pieces).clamp(0, 1) for t in times}  # (L, w - 1)
    sizes = [shape.numel() for shape in whole.shapes]
    grams = []
    for true, coded in zip(whole.waypoints.split(sizes, dim=1), decoded.waypoints.split(sizes, dim=1), strict=True):
        off = coded.double() - true.double()
        grams.append((_gram(true.double().diff(dim=0)), _gram(torch.cat([off[:1], off.diff(dim=0)]))))
    steps, offs = (torch.stack(list(kind)) for kind in zip(*grams, strict=True))
    error: dict[str, Any] = {"expert_epochs": lengths, "start": starts, "point": [], "segment": []}
    first = torch.ones(len(sizes), 1, dtype=torch.float64)
    for length in lengths:
        point, segment = [], []
        for t in starts:
            moved = shares[t + length] - shares[t]
            size = _norm(steps, moved)
            point.append(_share(_norm(offs, torch.cat([first, shares[t + length]], dim=1)), size))
            segment.append(_share(_norm(offs, torch.cat([0 * first, moved], dim=1)), size))
        error["point"].append(point)
        error["segment"].append(segment)
    return error


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _norm(grams: Tensor, factors: Tensor) -> float:
    return float(torch.einsum("li,lij,lj->", factors, grams, factors).clamp(min=0).sqrt())


def _share(error: float, size: float) -> float | None:
    return float(f"{error / size:.3g}") if size > 0 else None


def _sha256(params: Tensor) -> str:
    return hashlib.sha256(params.contiguous().numpy().astype("<f4", copy=False).data).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
