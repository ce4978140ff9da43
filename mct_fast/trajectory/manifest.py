"""The manifest of a trajectory store: what its shards are, checked when it is read, sealed and replaced whole when written.

The format: ``docs/trajectory-store.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write
from mct_fast.run.form import SOURCE, misfit
from mct_fast.run.sealed import BLANK, read_sealed, seal

FORMAT_VERSION = 2
MANIFEST = "manifest.json"

_READABLE = (1, 2)
_FORM = {
    "model": {"name?": str},
    "shapes": [[int]],
    "dataset": SOURCE,
    "recipe": dict,
    "experts": dict,
    "init?": ([({"fan_in": int}, {"constant": float})], None),
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


def read_manifest(file: Path) -> dict[str, Any]:
    """The manifest ``file``.

    Raises:
        InputError: it is damaged, or no manifest of a release that is known here.
    """
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


def write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest ``file``, atomically."""
    # One line an expert.  The checksum is that of the file with its own digits zero.
    lines = [f'"format_version": {manifest["format_version"]}', f'"checksum": "{BLANK}"']
    for key, value in manifest.items():
        if key == "experts":
            rows = [f"{json.dumps(number)}: {_compact(entry)}" for number, entry in value.items()]
            lines.append('"experts": {\n' + ",\n".join(rows) + "\n}")
        elif key not in ("format_version", "checksum"):
            lines.append(f"{json.dumps(key)}: {_compact(value)}")
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    atomic_write(file, lambda temporary: _write_bytes(temporary, seal(text)))


def check_extensible(manifest: Mapping[str, Any], path: Path) -> None:
    """Raises :class:`InputError` for the manifest of the store at ``path`` if it is of a format that is only read."""
    if manifest["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"out: {path / MANIFEST} is of format {manifest['format_version']}, which is read but not "
            "extended; choose an empty folder"
        )


def check_same(manifest: Mapping[str, Any], fresh: Mapping[str, Any], path: Path) -> None:
    """Raises :class:`InputError` if experts of ``fresh`` do not belong into the store at ``path``, naming the difference."""
    check_extensible(manifest, path)
    # What explains most comes first: another width has other shapes and another plan of initialisation.
    order = [key for key in ("model", "task", "recipe") if key in fresh]
    for key in ("dataset", *order, *sorted(fresh.keys() - {"experts", "dataset", *order})):
        ours: Any = manifest.get(key)
        theirs = fresh[key]
        if _same_data(ours, theirs) if key == "dataset" else ours == theirs:
            continue
        raise InputError(
            f"out: {path} holds experts of another {key}{_difference(ours, theirs)}; "
            "choose an empty folder or delete this one"
        )


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


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
