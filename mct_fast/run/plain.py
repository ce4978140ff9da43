"""Files of ``torch.save`` from other programs, read without running anything in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from mct_fast.run.errors import InputError


def read_plain(argument: str, file: Path, remedy: str) -> Any:
    """What ``file`` holds: plain containers and tensors, read with ``weights_only=True`` and checked against their CRC-32.

    A file of today's format (since PyTorch 1.6) is mapped into memory; one that is compressed, or older, is read whole.

    Raises:
        InputError: it names ``argument`` and ends in ``remedy``; the file is damaged, asks for code to be run, or cannot be read.
    """
    try:
        mapped = _may_be_mapped(argument, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; either it loads or it is refused
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except Exception as error:  # a damaged or foreign file can fail in every layer of the reader
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{argument}: cannot read {file} ({error.strerror}); check the path") from error
        raise InputError(
            f"{argument}: {file} is not a plain file of tensors ({type(error).__name__}), and nothing in it was run; {remedy}"
        ) from error


def _may_be_mapped(argument: str, file: Path) -> bool:
    """Whether ``file`` is a zip whose records lie in it as they are: mapped, PyTorch would take compressed ones for numbers.

    It checks no CRC-32 either, so all are checked here.  Files saved without have 0 for each.
    """
    with open(file, "rb") as opened:
        if opened.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        damaged = archive.testzip() if any(record.CRC for record in records) else None
    if damaged is not None:
        raise InputError(f"{argument}: {file} is damaged: its record {damaged} does not match its CRC-32; restore it")
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)
