"""Atomic writes, JSON and hashes: what every file format of the package is built on."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.errors import InputError

_CHUNK = 1 << 20


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    `write` receives the path of a temporary file in the folder of `path`; when it returns, that file is
    flushed to the disk and renamed onto `path`. Missing parent folders are created. If `write` raises, `path`
    is untouched and the temporary file is removed.

    Raises:
        InputError: the folder cannot be created or written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Created here, not by tempfile, so that the result has the permissions that any new file gets. The
        # suffix is kept because some writers (Pillow) choose their format by it.
        temporary = target.with_name(f".{target.stem}-{secrets.token_hex(8)}{target.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; choose a folder that you may write to"
        ) from error
    try:
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a writer that replaces the file (safetensors) makes it private
        _fsync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_folder(target.parent)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON, atomically. NaN and infinities are refused (ValueError)."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or malformed.
    """
    target = Path(path)
    try:
        return json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{target} does not exist; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read {target}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        detail = str(error).replace("\n", " ")
        raise InputError(f"{target} is not valid JSON ({detail}); restore it or write it again") from error


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces of 1 MiB.

    Raises:
        InputError: the file is missing or unreadable.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return digest.hexdigest()


def sha256_tensor(tensor: Tensor) -> str:
    """SHA-256, in hexadecimal, of a tensor's dtype, shape and values; device and strides do not matter."""
    # detach + resolve_*: a lazily conjugated or negated tensor must hash by value.
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest = hashlib.sha256(f"{values.dtype}{tuple(values.shape)}".encode())
    if values.numel():
        # Viewed as bytes, so that dtypes without a NumPy counterpart (bfloat16) hash too; no copy is made.
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _fsync_folder(path: Path) -> None:
    # Makes the rename itself durable; folders cannot be opened for this on every platform.
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
