"""What a reader of a table is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.tabular.tables import RawTable


@dataclass(frozen=True)
class TableOptions:
    """What a reader may need; the fields mean what the arguments of `load_dataset` mean."""

    data_path: Path | None = None
    table: TableSpec = TableSpec()
    grid: TimeGrid = TimeGrid()
    progress: Progress = field(default_factory=quiet)

    def file(self, name: str) -> Path:
        """The file of the dataset `name`."""
        if self.data_path is None:
            raise InputError(f"data_path is missing: {name} needs the file to read, e.g. --data-path patients.csv")
        return self.data_path

    def folder(self, name: str, what: str) -> Path:
        """The folder of the dataset `name`, which should be `what`."""
        if self.data_path is None:
            raise InputError(f"data_path is missing: {name} needs data_path={what}")
        if not self.data_path.is_dir():
            raise InputError(f"data_path: {self.data_path} is no folder; give {what}")
        return self.data_path


TableReader: TypeAlias = Callable[[TableOptions], tuple[RawTable, TableSpec]]
"""Reads a source; also returns the columns' parts, the recipe's own included."""
