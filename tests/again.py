"""Recorders that count: a stand-in for a GPU that records, and a GPU's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import TypeVar

from torch import Tensor

from mct_fast.students import Student
from mct_fast.students.recording import CudaGraphs

T = TypeVar("T")


class Again:
    """ "Replays" by running again, into the tensors of the first time."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def takes(self, student: Student, like: Tensor) -> bool:
        return True

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        self.recorded += 1
        found = run()

        def replay() -> None:
            self.replayed += 1
            for old, new in zip(_tensors(found), _tensors(run()), strict=True):
                old.copy_(new)

        return found, replay


class Watched(CudaGraphs):
    """Counts what a GPU recorded: work that fell back to its launches would be equal as well."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        found = super().record(run)
        self.recorded += 1
        return found


def _tensors(found: object) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif is_dataclass(found):
        for field in fields(found):
            yield from _tensors(getattr(found, field.name))
