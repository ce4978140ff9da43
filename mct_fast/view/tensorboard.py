"""A run's metrics as TensorBoard event files, for those who look at runs there. Optional: ``pip install tensorboard``."""

from __future__ import annotations

import shutil
from pathlib import Path

from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run

FOLDER = "tensorboard"


def write_events(path: str | Path) -> Path:
    """Writes the metrics of the run at ``path`` to its subfolder ``tensorboard``, anew each time; returns that folder.

    Raises:
        InputError: ``path`` holds no run, or TensorBoard is not installed.
    """
    run = Run.open(path)
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard: is not installed; pip install tensorboard") from error
    folder = run.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for record in run.metrics():
            kind, iteration = record.get("kind", "other"), record.get("iteration", 0)
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "iteration":
                    writer.add_scalar(f"{kind}/{name}", value, iteration)
    return folder
