"""Peak memory of one iteration counted instead of measured: the real code runs on meta tensors, which have sizes and no data.

Counts what PyTorch's tensors hold; not an allocator's blocks, not a library's workspace, not a CUDA context.  So it says
what an iteration of any size needs on a machine that could not hold it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bench.problem import Setting
from mct_fast.matching.adjoint import Adjoint
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchingProblem
from mct_fast.matching.terminal import PathDistance
from mct_fast.models import FunctionalModel
from mct_fast.students import FusedStudent, GenericStudent, MicroBatched, Student
from mct_fast.tasks import Classification


class Meter(TorchDispatchMode):
    """Follows the storages that operators make: ``peak`` is the most bytes alive at once while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.is_meta:
                self.follow(value)
        return result

    def ignore(self, tensor: Tensor) -> None:
        """Does not count a tensor's storage, which was there before, nor views of it."""
        self._seen.add(tensor.untyped_storage()._cdata)

    def follow(self, tensor: Tensor) -> None:
        """Counts a tensor's storage from now on, once, until nothing holds it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        nbytes = storage.nbytes()
        self.alive += nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.alive -= nbytes


@dataclass(frozen=True)
class Count:
    """Bytes: ``peak`` above the images, labels and ends that a run holds anyway (``held``)."""

    peak: int
    held: int


def count(setting: Setting, adjoint: Adjoint, *, micro_batch: int | None = None, fused: bool = True) -> Count:
    """What one match of ``setting`` holds at most; ``fused`` on the project's operators, else on PyTorch's."""
    problem = _problem(setting, micro_batch=micro_batch, fused=fused)
    named = (problem.images, problem.labels, problem.start.dense(), problem.terminal.target.dense(), problem.batches)
    meter = Meter()
    for tensor in (*named, problem.syn_lr):
        meter.ignore(tensor)
    with meter:
        adjoint.solve(problem)
    return Count(meter.peak, sum(t.nbytes for t in named))


def _problem(setting: Setting, *, micro_batch: int | None, fused: bool) -> MatchingProblem:
    model = FunctionalModel(setting.convnet().to("meta"))
    student: Student = FusedStudent(model) if fused else GenericStudent(model, Classification())
    if micro_batch is not None:
        student = MicroBatched(student, micro_batch)
    images = torch.empty(setting.num_images, *setting.image_shape, device="meta")
    labels = torch.empty(setting.num_images, dtype=torch.int64, device="meta")
    ends = torch.empty(2, 1, model.num_params, device="meta")
    batches = torch.empty(1, setting.syn_steps, setting.batch_syn, dtype=torch.int64, device="meta")
    start, target = map(Points.of_values, ends)
    sizes = (setting.batch_syn,) * setting.syn_steps
    alpha = torch.empty((), device="meta")
    return MatchingProblem(
        model, student, Classification(), images, labels, alpha, start, PathDistance(target), batches, sizes, None
    )


def extrapolated(setting: Setting, adjoint: Adjoint, **how: Any) -> Count:
    """:func:`count` for an adjoint whose memory grows linearly with ``syn_steps``, from 2 and 4 steps."""
    few, more = (count(replace(setting, syn_steps=steps), adjoint, **how) for steps in (2, 4))
    return Count(more.peak + (more.peak - few.peak) * (setting.syn_steps - 4) // 2, more.held)
