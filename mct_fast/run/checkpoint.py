"""A checkpoint: tensors, and the rest of a state as JSON in the file's metadata; sealed, and replaced atomically."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.sealed import read_tensors, write_tensors

_FORMAT_VERSION = "2"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: ``tensors``, a ``state``, and ``notes`` about it; files of earlier releases are not ``sealed``."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    notes: dict[str, str]
    sealed: bool

    @classmethod
    def read(cls, file: Path, argument: str, remedy: str) -> Checkpoint:
        """The checkpoint in ``file``.

        Raises:
            InputError: ``argument: the file is ...; remedy``, where it cannot be read, is of another release, or has changed.
        """
        tensors, notes, checksum = read_tensors(file, argument, remedy)
        if notes.pop("format_version", None) != ("1" if checksum is None else _FORMAT_VERSION):
            raise InputError(f"{argument}: {file} has an unknown format version; use a matching release of mct_fast")
        try:
            state = json.loads(notes.pop("state"))
        except (KeyError, ValueError, RecursionError) as error:
            raise InputError(f"{argument}: {file} is damaged ({error}); {remedy}") from error
        if not isinstance(state, dict):
            raise InputError(f"{argument}: {file} is damaged; {remedy}")
        return cls(tensors, state, notes, checksum is not None)


def write_checkpoint(file: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], **notes: str) -> None:
    """Replaces the checkpoint in ``file``, atomically. ``state`` is JSON-able; floats survive exactly."""
    write_tensors(file, tensors, {"format_version": _FORMAT_VERSION, "state": json.dumps(state), **notes})


@contextlib.contextmanager
def restoring(argument: str, place: object, remedy: str) -> Iterator[None]:
    """Where a state is taken out of a checkpoint: a part that is missing, or of another kind, becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{argument}: the checkpoint in {place} is none of this release ({reason}); go on with the release that wrote it, "
            f"or {remedy}"
        ) from error
