"""One run on several processes: students, experts and evaluation networks are split over them.

A :class:`Communicator` is handed down to whoever splits work.  :class:`Single` is one process alone; :class:`Distributed`
the processes that ``torchrun`` started, over ``torch.distributed``.  What is split is always a row of things that know
nothing of each other (students, networks); results are put together in the order of that row, so that the sum of S
students' gradients has the same bits on one process and on many.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mct_fast.run.errors import InputError, PeerError

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others before it gives up.  One that died is noticed at once."""


class Communicator(Protocol):
    """The processes of one run, numbered from 0; number 0 leads: it alone writes files."""

    @property
    def rank(self) -> int:
        """This process's number."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: consecutive ones, shares differ by one at most."""
        ...

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """All ``count`` rows in order, from each process those of its :meth:`share`."""
        ...

    def gather_all(self, value: T) -> list[T]:
        """Every process's ``value``, in the order of their numbers."""
        ...

    def collect(self, value: T) -> list[T]:
        """On the leader every process's ``value``, in order; nothing elsewhere."""
        ...

    def lead(self, work: Callable[[], T]) -> T | None:
        """``work()`` done by the leader alone; None elsewhere.  Its InputError is raised by all."""
        ...

    def tell(self, work: Callable[[], T]) -> T:
        """``work()`` done by the leader alone, its result given to all."""
        ...

    def lead_first(self, work: Callable[[], T]) -> T:
        """``work()`` done by all, by the leader before the others: what it downloads or caches they find."""
        ...


class Single:
    """One process alone."""

    rank, size = 0, 1

    def share(self, count: int) -> range:
        return range(count)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        return rows

    def gather_all(self, value: T) -> list[T]:
        return [value]

    def collect(self, value: T) -> list[T]:
        return [value]

    def lead(self, work: Callable[[], T]) -> T | None:
        return work()

    def tell(self, work: Callable[[], T]) -> T:
        return work()

    def lead_first(self, work: Callable[[], T]) -> T:
        return work()


class Distributed:
    """The processes of PyTorch's default process group.

    Objects travel pickled, between processes of one run that trust each other; nothing from a file is unpickled.
    Raises :class:`PeerError` where another process has failed.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, count: int) -> range:
        return _share(count, self.rank, self.size)

    def gather(self, rows: Tensor, count: int) -> Tensor:
        widths = [len(_share(count, rank, self.size)) for rank in range(self.size)]
        if len(rows) != widths[self.rank]:
            raise ValueError(f"process {self.rank} gave {len(rows)} rows of its {widths[self.rank]}")
        padded = rows.new_zeros(max(widths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in widths]
        with _peers():
            dist.all_gather(parts, padded)
        return torch.cat([part[:width] for part, width in zip(parts, widths, strict=True)])

    def gather_all(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def collect(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with _peers():
            dist.gather_object(value, values)
        return values or []

    def lead(self, work: Callable[[], T]) -> T | None:
        result = self._led(work, tell=False)
        return result if self.rank == 0 else None

    def tell(self, work: Callable[[], T]) -> T:
        return self._led(work, tell=True)

    def lead_first(self, work: Callable[[], T]) -> T:
        if self.rank == 0:
            return self._led(work, tell=False)
        self._led(work, tell=False)
        return work()

    def _led(self, work: Callable[[], T], *, tell: bool) -> T:
        result: Any = None
        complaint: str | None = None
        if self.rank == 0:
            try:
                result = work()
            except InputError as error:
                complaint = str(error)
        message = [complaint, result if tell and complaint is None else None]
        with _peers():
            dist.broadcast_object_list(message, src=0)
        if message[0] is not None:
            raise InputError(message[0])
        return result if self.rank == 0 else message[1]


def _share(count: int, rank: int, size: int) -> range:
    each, more = divmod(count, size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerError("another process of this run has failed; its own message says why") from error


def check_agreement(communicator: Communicator, what: str, digest: str) -> None:
    """Raises :class:`PeerError` unless all processes hold the same ``digest`` of ``what``.

    Processes on unlike processors may round differently; their copies of the images would drift apart unseen.
    """
    if len(set(communicator.gather_all(digest))) > 1:
        raise PeerError(f"the processes of this run hold different {what}; run them on machines of one kind")


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    except ValueError as error:
        raise _not_torchrun(error) from error


def _not_torchrun(error: ValueError) -> InputError:
    return InputError(
        f"torchrun: the environment variables that it sets hold something else ({error}); unset WORLD_SIZE"
    )


def leave(status: int) -> NoReturn:
    """Ends this process at once, after another of its run has failed: Gloo's threads may abort a normal exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def session() -> Iterator[Communicator]:
    """Joins the processes that ``torchrun`` started; alone, :class:`Single`.

    On GPUs the process takes number LOCAL_RANK, so that device "cuda" is its own; tensors there travel by NCCL, others by
    Gloo.  Leaving after an error does not wait for the others: their next word to this process fails.
    """
    if not started_by_torchrun():
        yield Single()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    try:
        with _peers():
            dist.init_process_group(backend, timeout=PATIENCE)
    except ValueError as error:
        raise _not_torchrun(error) from error
    yield Distributed()
    dist.destroy_process_group()
