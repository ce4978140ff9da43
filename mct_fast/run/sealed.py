"""Files that know their own checksum: JSON objects and tensors, each whole in one file, read once and checked.

The checksum is the SHA-256, in hexadecimal, of the file's bytes with these 64 digits themselves replaced by zeros. In JSON it
is the entry ``checksum``, in a safetensors file the same entry of its metadata. JSON whose checksum is null is taken as it is:
whoever edits it by hand can say so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, parse_json, read_bytes

BLANK = "0" * 64
_KEY = "checksum"
_DIGEST = re.compile("[0-9a-f]{64}")
_OTHERS = ("fingerprint", "sha256", "tensors")  # entries that hold digests of something else


def seal(text: str) -> bytes:
    """``text`` as UTF-8, with its own checksum in place of the first :data:`BLANK`."""
    return text.replace(BLANK, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def write_sealed(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` and its checksum as indented JSON, atomically. NaN and infinities are refused (ValueError)."""
    text = json.dumps({_KEY: BLANK, **content}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: _write_bytes(temporary, seal(text)))


def read_sealed(
    path: str | Path, argument: str, remedy: str, versions: Collection[int] | None = None
) -> tuple[dict[str, Any], bool | None]:
    """The content of a JSON file, and whether it was checked: False: its checksum is null; None: an earlier release wrote none.

    ``versions``: those of its ``format_version`` that are known; without them it has none.

    Raises:
        InputError: ``argument: the file is ...; remedy``, where it cannot be read, is no JSON object, is of another version, or
            has changed.
    """
    data = read_bytes(path)
    content = parse_json(path, data)
    if not isinstance(content, dict):
        raise InputError(f"{argument}: {path} is no JSON object; {remedy}")
    if versions is not None:
        _check_version(path, content.get("format_version"), argument, versions)
    if _KEY not in content:
        if _lost_its_name(content):
            raise InputError(f"{argument}: {path} has a checksum without its name, it was damaged or changed; {remedy}")
        return content, None
    checksum = content.pop(_KEY)
    if checksum is not None and not _fits(data, checksum):
        raise InputError(f"{argument}: {path} does not match its checksum, it was damaged or changed; {remedy}")
    return content, checksum is not None


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Writes tensors as a safetensors file, atomically, one after another; returns the file's SHA-256.

    With ``metadata`` the file seals itself, and its checksum is returned instead. The library's writer copies all tensors
    first, and refuses those that share memory.
    """
    # Wider types first, so that each tensor begins at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": {_KEY: BLANK, **metadata}}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        about = {"dtype": _DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = {**about, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = (len(text) + -len(text) % 8).to_bytes(8, "little") + text + b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for piece in _pieces(text, tensors, order):
                digest.update(piece)
                file.write(piece)
            if metadata is not None:
                file.seek(text.index(BLANK.encode()))
                file.write(digest.hexdigest().encode())

    atomic_write(path, write)
    return digest.hexdigest()


def read_tensors(path: str | Path, argument: str, remedy: str) -> tuple[dict[str, Tensor], dict[str, str], str | None]:
    """The tensors of a safetensors file by name, its metadata, and its checksum: None where it has none.

    Raises:
        InputError: ``argument: the file is ...; remedy``, where it cannot be read, or has changed.
    """
    data = read_bytes(path)
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        checksum = metadata.pop(_KEY, None)
        if _lost_its_name(metadata) if checksum is None else not _fits(data, checksum):
            raise InputError(f"{argument}: {path} does not match its checksum, it is damaged; {remedy}")
        return load(data), metadata, checksum
    except (SafetensorError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        detail = " ".join(str(error).split())
        raise InputError(f"{argument}: {path} is damaged, no safetensors file ({detail}); {remedy}") from error


def mapped_tensors(path: str | Path, skip: Collection[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, but those in ``skip``, mapped into memory, and its metadata; nothing is checked.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    with safe_open(str(path), framework="pt") as file:
        names = [name for name in file.keys() if name not in skip]  # noqa: SIM118 (not a mapping)
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _check_version(path: str | Path, found: object, argument: str, versions: Collection[int]) -> None:
    if type(found) is not int or found not in versions:
        raise InputError(
            f"{argument}: {path} has format version {found}, this release reads {' and '.join(map(str, versions))}; "
            "use a matching release of mct_fast"
        )


def _lost_its_name(entries: Mapping[str, Any]) -> bool:
    """Whether a checksum lies under another name than its own: a file of an earlier release has none at all."""
    found = [name for name, value in entries.items() if isinstance(value, str) and _DIGEST.fullmatch(value)]
    return any(name not in _OTHERS for name in found)


def _fits(data: bytes, checksum: object) -> bool:
    if not isinstance(checksum, str) or not checksum.isascii() or len(checksum) != len(BLANK):
        return False
    at = data.find(checksum.encode())
    whole = memoryview(data)
    return at >= 0 and _digest((whole[:at], BLANK.encode(), whole[at + len(BLANK) :])) == checksum


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _pieces(header: bytes, tensors: Mapping[str, Tensor], order: Iterable[str]) -> Iterator[bytes | memoryview]:
    yield header
    for name in order:
        if tensors[name].numel():
            yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


_DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
