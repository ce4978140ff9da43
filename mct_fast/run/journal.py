"""A file of records, one JSON object a line, that notices what was changed, taken out or added between its lines.

The last entry of a line, ``sum``, is the beginning of the SHA-256 of the ``sum`` before and of the line with 16 zeros in its
place. Lines of earlier releases have none; after a line that has one, all must.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mct_fast.run.errors import InputError

_DIGITS = 16
_ZEROS = "0" * _DIGITS
_TAIL = re.compile(rb'"sum": "([0-9a-f]{16})"\}')
_END = len(_ZEROS) + 2  # with the quotation mark and the bracket that close the line
_WHOLE = len('"sum": "') + _END


class Journal:
    """The records in the file ``path``, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: str | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """One more record; InputError where the disk is full, and then the file is as it was."""
        before = self._sum_before() if self._last is None else self._last
        text = json.dumps({**record, "sum": _ZEROS}, allow_nan=False)
        digest = _digest(before, text.encode())
        try:
            with open(self._path, "ab", buffering=0) as file:
                length = file.tell()
                line = f'{text[:-_END]}{digest}"}}\n'.encode()
                try:
                    written = file.write(line)
                    if written < len(line):
                        raise OSError(None, "the disk is full")
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(length)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error
        self._last = digest

    def records(self, at_least: int = 0) -> list[dict[str, Any]]:
        """All records. A torn last line, left by a kill, is passed over.

        Raises:
            InputError: a line before it is damaged, or the file has fewer bytes than ``at_least``.
        """
        data = self._read()
        self._check_length(len(data), at_least)
        records, before, summed = [], "", False
        # split leaves b"" after a final newline; anything else there is a torn line
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line.decode("utf-8"))
                found = _TAIL.fullmatch(line[-_WHOLE:])
                if not isinstance(record, dict) or (found is None and (summed or "sum" in record)):
                    raise ValueError
                if found is not None:
                    summed = True
                    if _digest(before, line[:-_END] + _ZEROS.encode() + b'"}') != found[1].decode():
                        raise ValueError
                    before = record.pop("sum")
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"run: {self._path} is damaged in line {number}; restore it, or begin a new run"
                ) from error
            records.append(record)
        return records

    def length_of(self, count: int) -> int:
        """How many bytes the first ``count`` records take."""
        return sum(map(len, self._read().splitlines(keepends=True)[:count]))

    def flush(self) -> int:
        """Puts the file on the disk and returns its length in bytes."""
        try:
            with open(self._path, "ab") as file:
                os.fsync(file.fileno())
                return file.tell()
        except OSError as error:
            raise self._unwritable(error) from error

    def cut(self, length: int) -> None:
        """Forgets what comes after ``length`` bytes; InputError if there are fewer."""
        size = self._path.stat().st_size if self._path.exists() else 0
        self._check_length(size, length)
        if size > length:
            os.truncate(self._path, length)
        self._last = None

    def _check_length(self, length: int, at_least: int) -> None:
        if length < at_least:
            raise InputError(
                f"run: {self._path} has {length} bytes, but {at_least} when the checkpoint beside it was written; "
                "restore it, or begin a new run"
            )

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise InputError(f"run: cannot read {self._path} ({error.strerror}); check the path") from error

    def _sum_before(self) -> str:
        found = _TAIL.fullmatch(self._read().rstrip(b"\n")[-_WHOLE:])
        return "" if found is None else found[1].decode()

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"out: cannot write {self._path} ({error.strerror}); free some space")


def _digest(before: str, line: bytes) -> str:
    return hashlib.sha256(before.encode() + line).hexdigest()[:_DIGITS]
