"""A run's metrics as TensorBoard event files, for those who look at runs there. Optional: ``pip install tensorboard``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run

FOLDER = "tensorboard"
LIVE = "tensorboard-live"
"""The folder in a run or a store that is written while it is made."""
_FLUSH = 10  # seconds


def write_events(path: str | Path) -> Path:
    """Writes the metrics of the run at ``path`` to its subfolder ``tensorboard``, anew each time; returns that folder.

    Raises:
        InputError: ``path`` holds no run, or TensorBoard is not installed.
    """
    run = Run.open(path)
    folder = run.path / FOLDER
    with Events(folder) as events:
        shutil.rmtree(folder, ignore_errors=True)
        for record in run.metrics():
            events.record(record)
    return folder


class Events:
    """A :class:`mct_fast.run.watch.Watcher` that writes event files to ``folder``, which it makes at the first event.

    A context manager: what TensorBoard has not seen yet is written at its end, and every ten seconds before.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise InputError("tensorboard: is not installed; pip install 'mct-fast[tensorboard]'") from error
        self._folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def record(self, record: Mapping[str, Any]) -> None:
        """Every number of ``record`` as a scalar, ``kind/name``."""
        kind, iteration = record.get("kind", "other"), record.get("iteration", 0)
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "iteration":
                self._open().add_scalar(f"{kind}/{name}", value, iteration)

    def images(self, iteration: int, picture: Callable[[], Any]) -> None:
        """The picture as an image, ``images``."""
        import numpy as np

        self._open().add_image("images", np.asarray(picture().convert("RGB")), iteration, dataformats="HWC")

    def _open(self) -> Any:
        if self._writer is None:
            try:
                self._writer = self._make(str(self._folder), flush_secs=_FLUSH)
            except OSError as error:
                raise InputError(
                    f"tensorboard: cannot write {self._folder} ({error.strerror}); leave the option out"
                ) from error
        return self._writer


def live_events(folder: Path, rank: int) -> Events:
    """What is written to ``folder`` while it is made; of several processes each has a place of its own."""
    place = folder / LIVE
    return Events(place / f"process_{rank}" if rank else place)
