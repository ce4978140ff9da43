"""Atomic writes, JSON, hashes and locks: what every file format of the package is built on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mct_fast.run.errors import InputError

_CHUNK = 1 << 20


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    `write` receives the path of a temporary file in the folder of `path`; when it returns, that file is
    flushed to the disk and renamed onto `path`. Missing parent folders are created. If `write` raises, `path`
    is untouched and the temporary file is removed. So are those that killed processes left of the same file.

    Raises:
        InputError: the folder cannot be created or written to, or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        # Created here, not by tempfile, so that the result has the permissions that any new file gets. The
        # suffix is kept because some writers (Pillow) choose their format by it.
        temporary = target.with_name(f".{target.stem[:_STEM]}-{secrets.token_hex(8)}{target.suffix[:_STEM]}")
        handle = _locked(temporary)  # which says that its writer lives
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {target}: {reason}; choose a folder that you may write to") from error
    try:
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a writer that replaces the file (safetensors) makes it private
        _fsync(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(
                f"cannot write {target}: {error.strerror or error}; free some space or choose another folder, "
                "what was written before is kept"
            ) from error
        raise
    finally:
        os.close(handle)
    _fsync_folder(target.parent)


_STEM = 100  # characters of a name that its temporary file's name repeats


def _sweep(target: Path) -> None:
    """Removes the temporary files of ``target`` whose writers are dead."""
    begin, end = f".{target.stem[:_STEM]}-", target.suffix[:_STEM]
    for name in os.listdir(target.parent):
        if name.startswith(begin) and re.fullmatch("[0-9a-f]{16}", name[len(begin) : len(name) - len(end)]):
            remove_dead(target.with_name(name))


def remove_dead(temporary: Path) -> None:
    """Removes a temporary file of :func:`atomic_write`, unless its writer lives."""
    with contextlib.suppress(OSError):
        handle = os.open(temporary, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink(missing_ok=True)
        finally:
            os.close(handle)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON, atomically. NaN and infinities are refused (ValueError)."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda temporary: _write_text(temporary, text))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or malformed.
    """
    return parse_json(path, read_bytes(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, read at once; :class:`InputError` if it is missing or unreadable."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}; check the path") from error


def parse_json(path: str | os.PathLike[str], data: bytes) -> Any:
    """``data``, the content of ``path``, as JSON: UTF-8, every name once in its object, no NaN, of a sane depth.

    Raises:
        InputError: it is none.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        detail = " ".join(str(error).split())
        raise InputError(f"{path} is not valid JSON ({detail}); restore it or write it again") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


@contextlib.contextmanager
def reading(argument: str, place: str | os.PathLike[str]) -> Iterator[None]:
    """Where what ``place`` holds is taken apart: a part that is missing or of another kind becomes an InputError.

    ``argument``: what the message begins with.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        detail = str(error).replace("\n", " ") or type(error).__name__
        raise InputError(
            f"{argument}: {place} is damaged, or another release wrote it ({detail}); restore it"
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python would silently keep the last of two equal names.
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


class RowSpool:
    """Vectors of one length gathered in ``file``, not in memory. A context manager.

    What the file holds is forgotten, but for the part that ``kept``, an earlier :meth:`noted`, speaks of.

    Raises:
        InputError: the file cannot be written, or holds something else than what was noted.
    """

    def __init__(self, file: Path, kept: Mapping[str, Any] | None = None) -> None:
        self._path, self._digest = file, hashlib.sha256()
        self._row: Tensor | None = None
        self._length = 0 if kept is None else int(kept["bytes"])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(file, "w+b" if kept is None else "r+b")  # noqa: SIM115 (closed by __exit__)
            if kept is not None:
                self._check(str(kept["sha256"]))
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, row: Tensor) -> None:
        """One more vector (n,), of the dtype of the first. InputError on a full disk."""
        self._row = row.detach().cpu().contiguous()
        data = self._row.view(torch.uint8).numpy().data
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self._digest.update(data)
        self._length += len(data)

    def noted(self) -> dict[str, Any]:
        """What the file holds, once it is on the disk: its length and SHA-256."""
        os.fsync(self._file.fileno())
        return {"bytes": self._length, "sha256": self._digest.hexdigest()}

    def rows(self) -> Tensor:
        """All vectors as (count, n), mapped from the file."""
        assert self._row is not None, "append a row first"
        mapped = np.memmap(self._file, np.uint8, "c", shape=(self._length,))
        return torch.from_numpy(mapped).view(self._row.dtype).view(-1, len(self._row))

    def _check(self, sha256: str) -> None:
        left = self._length
        while left and (data := self._file.read(min(left, _CHUNK))):
            self._digest.update(data)
            left -= len(data)
        if left or self._digest.hexdigest() != sha256:
            raise InputError(
                f"out: {self._path} does not match its checksum, it is damaged; delete it and the file beside it, and the expert "
                "is trained from its beginning"
            )
        self._file.truncate(self._length)
        self._file.seek(self._length)

    def _failed(self, error: OSError) -> InputError:
        return InputError(
            f"cannot keep checkpoints in {self._path}: {error.strerror or error}; free some space or choose another folder"
        )


@contextlib.contextmanager
def exclusive(lock: str | os.PathLike[str], what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds the file ``lock`` for this process; ``what`` names what it guards in the error.

    Another holder is waited for, or refused.

    The operating system's own lock (``flock``): it vanishes with the process however that ends, so a file which a dead
    process left is simply taken over. The file says who holds it.

    Raises:
        InputError: another process, or another holder in this one, has it; or the folder cannot be written to.
    """
    path = Path(lock)
    try:
        handle = _locked(path, wait)
    except BlockingIOError as error:
        raise InputError(
            f"{what} is being written by {_owner(path)}; wait until it is done or choose another folder"
        ) from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose a writable folder") from error
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its owner stays unnamed
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(owner).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(handle)


def is_locked(lock: str | os.PathLike[str]) -> bool:
    """Whether somebody holds the file ``lock`` by :func:`exclusive`, as far as this machine knows."""
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _locked(path: Path, wait: bool = False) -> int:
    """The file ``path``, made where there is none and locked for this process, open."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed the file between our opening and locking it: then we hold a ghost.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _owner(lock: Path) -> str:
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


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
