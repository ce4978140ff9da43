"""A whole match as one CUDA graph: its thousand launches are recorded once a shape and replayed with one call.

What a graph reads and writes lies at fixed addresses, so a match copies its inputs into buffers, replays, and copies its
results out. Sampling stays outside: batches and augmentation are inputs like the others, and so are the stored models around
start and target with their weights, between which the recorded match interpolates.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.data.augment import AugmentPlan
from mct_fast.matching.adjoint import Adjoint
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchingProblem, StudentGradients
from mct_fast.matching.terminal import Terminal
from mct_fast.students.recording import CudaGraphs, Recorder, say_unrecorded

_INPUTS = ("images", "labels", "syn_lr", "batches")


class Graphed:
    """``adjoint``, recorded once a shape where ``recorder`` takes the problem, and replayed; elsewhere as it is.

    Holds up to ``most`` recordings, the latest used; each keeps the memory of its match (on a GPU, a pool of its own).
    Results are the same bits as without. A match that cannot be recorded is solved as it is, after one line in the log.
    """

    def __init__(self, adjoint: Adjoint, recorder: Recorder | None = None, most: int = 2) -> None:
        self._adjoint, self._recorder, self._most = adjoint, recorder or CudaGraphs(), most
        self._kept: OrderedDict[Any, _Recording | None] = OrderedDict()

    def solve(self, problem: MatchingProblem) -> StudentGradients:
        if not self._recorder.takes(problem.student, problem.images):
            return self._adjoint.solve(problem)
        with torch.cuda.device_of(problem.images):
            return self._solve(problem)

    def _solve(self, problem: MatchingProblem) -> StudentGradients:
        key = _key(problem)
        if key not in self._kept:
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            self._kept[key] = self._recorded(problem)
        self._kept.move_to_end(key)
        recording = self._kept[key]
        return self._adjoint.solve(problem) if recording is None else recording(problem)

    def _recorded(self, problem: MatchingProblem) -> _Recording | None:
        try:
            return _Recording(self._adjoint, self._recorder, problem)
        except RuntimeError as error:
            say_unrecorded("this match", error, "it runs without")
            return None


class _Recording:
    """One recorded match: its input buffers, its results, and what fills these from those."""

    def __init__(self, adjoint: Adjoint, recorder: Recorder, problem: MatchingProblem) -> None:
        self._inputs = {name: getattr(problem, name).clone() for name in _INPUTS}
        plan = problem.augment
        self._tables = _Tables.of(plan, problem.images.device) if isinstance(plan, AugmentPlan) else None
        self._ends = _Ends.of(problem)
        held = replace(
            problem, **self._inputs, start=self._ends.start, terminal=self._ends.terminal, augment=self._tables
        )

        def run() -> StudentGradients:
            return adjoint.solve(replace(held))  # a fresh one: nothing computed from an earlier run's inputs

        self._results, self._replay = recorder.record(run)

    def __call__(self, problem: MatchingProblem) -> StudentGradients:
        for name, buffer in self._inputs.items():
            buffer.copy_(getattr(problem, name), non_blocking=True)
        self._ends.copy_(problem)
        if self._tables is not None and isinstance(problem.augment, AugmentPlan):
            self._tables.copy_(problem.augment)
        self._replay()
        found = self._results
        labels = None if found.grad_labels is None else found.grad_labels.clone()
        copies = (t.clone() for t in (found.loss, found.grad_images, found.grad_lr, found.final_params))
        loss, images, lr, params = copies
        return StudentGradients(loss, images, lr, labels, params)


@dataclass(frozen=True)
class _Ends:
    """Buffers of where students start and should arrive: one for each tensor, which both share as those of ``like`` do."""

    start: Points
    terminal: Terminal
    leaves: tuple[Tensor, ...]

    @staticmethod
    def of(like: MatchingProblem) -> _Ends:
        copies = {id(leaf): leaf.clone() for leaf in _leaves(like)}

        def place(leaf: Tensor) -> Tensor:
            return copies[id(leaf)]

        return _Ends(like.start.placed(place), like.terminal.placed(place), tuple(copies.values()))

    def copy_(self, problem: MatchingProblem) -> None:
        for own, leaf in zip(self.leaves, _leaves(problem), strict=True):
            own.copy_(leaf, non_blocking=True)


def _leaves(problem: MatchingProblem) -> list[Tensor]:
    """The tensors of both ends, each once."""
    return list({id(leaf): leaf for leaf in (*problem.start.leaves, *problem.terminal.leaves)}.values())


def _shared(problem: MatchingProblem) -> tuple[Any, ...]:
    """Which of :func:`_leaves` stands in which place, and their shapes."""
    leaves = _leaves(problem)
    order = {id(leaf): number for number, leaf in enumerate(leaves)}
    places = (order[id(leaf)] for leaf in (*problem.start.leaves, *problem.terminal.leaves))
    return *places, *((leaf.shape, leaf.dtype) for leaf in leaves)


@dataclass(frozen=True)
class _Tables:
    """An augmentation plan on a device: ``kinds (steps, S)``, and the parameters of all steps one after the other.

    ``params[step]`` is a table ``(S, b, 4)`` of it.
    """

    kinds: Tensor
    flat: Tensor
    params: tuple[Tensor, ...]

    @staticmethod
    def of(plan: AugmentPlan, device: torch.device) -> _Tables:
        kinds, params = plan.flat
        flat = params.to(device).clone()
        sizes = [len(plan.draws) * row.batch * 4 for row in plan.draws[0]]
        tables = (part.view(len(plan.draws), -1, 4) for part in flat.split(sizes))
        return _Tables(kinds.to(device).clone(), flat, tuple(tables))

    def copy_(self, plan: AugmentPlan) -> None:
        kinds, params = plan.flat
        self.kinds.copy_(kinds, non_blocking=True)
        self.flat.copy_(params, non_blocking=True)

    def tables(self, steps: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """As :meth:`AugmentPlan.tables`; ``device`` is the tables' own."""
        if len(steps) == len(self.params):
            return self.kinds.view(-1), self.flat.view(len(steps) * self.kinds.shape[1], -1, 4)
        return torch.cat([self.kinds[step] for step in steps]), torch.cat([self.params[step] for step in steps])

    def apply(self, step: int, x: Tensor) -> Tensor:
        return ops.dsa(x.contiguous(), self.kinds[step], self.params[step])

    def transpose(self, step: int, g: Tensor) -> Tensor:
        return ops.dsa_transpose(g.contiguous(), self.kinds[step], self.params[step])


def _key(problem: MatchingProblem) -> Any:
    """What a recording depends on beside the values of its inputs."""
    tensors = tuple((t.shape, t.dtype, t.device) for t in (getattr(problem, name) for name in _INPUTS))
    ends = (problem.start.sizes, type(problem.terminal), problem.terminal.form, _shared(problem))
    return id(problem.student), tensors, ends, problem.sizes, problem.sets, problem.augment is None
