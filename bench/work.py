"""Where a benchmark keeps what is finished."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def work_folder(folder: str | None) -> Iterator[Path]:
    """``folder``, or a temporary one that is deleted afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="mct_fast_bench_") as temporary:
        yield Path(temporary)
