"""Work on a GPU recorded once and replayed with one call: its hundreds of launches become one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mct_fast.students.fused import FusedStudent
from mct_fast.students.microbatch import MicroBatched
from mct_fast.students.planes.student import PlaneStudent
from mct_fast.students.protocol import Student

T = TypeVar("T")
log = logging.getLogger("mct_fast")


class Recorder(Protocol):
    """Records work that can be done again on the same addresses."""

    def takes(self, student: Student, like: Tensor) -> bool:
        """Whether what ``student`` does on tensors such as ``like`` can be recorded here."""
        ...

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What ``run`` returns, and a function that fills the same tensors anew from the same inputs' new values.

        ``run`` may be called any number of times before that.
        """
        ...


class CudaGraphs:
    """Records with ``torch.cuda.CUDAGraph``: the project's own kernels on a CUDA device."""

    def takes(self, student: Student, like: Tensor) -> bool:
        whole = student.student if isinstance(student, MicroBatched) else student
        return like.is_cuda and isinstance(whole, FusedStudent | PlaneStudent)

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        # First on a side stream: kernels are compiled and tuned, libraries make their workspaces, none of it recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run()
        return found, graph.replay


class Launches:
    """Records nothing: what is launched stays launched."""

    def takes(self, student: Student, like: Tensor) -> bool:
        return False

    def record(self, run: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        raise RuntimeError("nothing is recorded here")


def recorder_for(cuda_graphs: bool) -> Recorder:
    """What the setting ``cuda_graphs`` asks for."""
    return CudaGraphs() if cuda_graphs else Launches()


def say_unrecorded(what: str, error: RuntimeError, instead: str) -> None:
    """Says on the package's log that ``what`` cannot be recorded, why, and what is done ``instead``."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    log.warning("mct_fast: %s cannot be recorded as a CUDA graph (%s); %s", what, reason, instead)
