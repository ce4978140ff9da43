"""The idx files of MNIST and its kin, packed with gzip or not, as their authors and Debian ship them."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from mct_fast.run.errors import InputError

_PARTS = {"train": "train", "test": "t10k"}


def find_idx(*folders: Path) -> dict[str, tuple[Path, Path]] | None:
    """The files (images, labels) of "train" and "test" in the first of `folders` that holds all four; None: none does."""
    for folder in folders:
        found = {
            part: tuple(_packed_or_not(folder / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
            for part, prefix in _PARTS.items()
        }
        if all(file.is_file() for files in found.values() for file in files):
            return {part: (images, labels) for part, (images, labels) in found.items()}
    return None


def _packed_or_not(file: Path) -> Path:
    return file if file.is_file() else file.with_name(file.name + ".gz")


def read_idx(file: Path) -> np.ndarray:
    """The bytes of an idx file in its shape.

    Raises:
        InputError: the file is damaged, or holds other numbers than bytes.
    """
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data_path: {file} cannot be read ({error}); fetch it again") from error
    # Two zero bytes, the type (8: bytes), the number of sizes, and each size in four bytes.
    start = 4 + 4 * content[3] if len(content) > 3 and content[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(content[4 : max(4, start) // 4 * 4], ">u4").tolist() if len(content) >= start else []
    if not sizes or len(content) != start + math.prod(sizes):
        raise InputError(f"data_path: {file} is no whole idx file of bytes; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)
