"""Who races: each contestant makes the same whole iteration, from drawing batches to updating pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import reference
from bench.problem import Problem
from bench.reference import Learned
from bench.torch_func import TorchFuncStudent
from mct_fast.distill import DistillConfig, adjoint_of
from mct_fast.matching import Matcher
from mct_fast.matching.adjoint import Adjoint, Exact, Truncated, Unrolled
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchingProblem, MatchResult
from mct_fast.matching.terminal import PathDistance
from mct_fast.models import FunctionalModel
from mct_fast.students import GenericStudent, Student
from mct_fast.tasks import Classification

LR_IMG, LR_LR = 1e-3, 1e-9
"""Steps so small that the problem stays the same over the rounds; an update costs the same whatever its size."""

OURS = "mct_fast"


@dataclass(frozen=True)
class Outcome:
    """What an iteration found, before its update."""

    loss: Tensor
    grad_images: Tensor
    grad_lr: Tensor


Iterate = Callable[[], Outcome]


@dataclass(frozen=True)
class Contestant:
    """Someone in the race.

    ``build(problem)`` does what happens once a run and returns one iteration.  ``gradient`` is ``exact`` or
    ``truncated``; ``scale`` what a known slip in a reference multiplies its pixel gradient by; ``grows`` whether memory
    grows with ``syn_steps``.
    """

    name: str
    title: str
    build: Callable[[Problem], Iterate]
    gradient: str = "exact"
    scale: float = 1.0
    grows: bool = False


def contestants(mtt: str | None = None, mct: str | None = None, tesla: str | None = None) -> dict[str, Contestant]:
    """All contestants, ours first; ``mtt``, ``mct`` and ``tesla`` are the paths of the reference clones, if there are any.

    MCT's official code took TESLA's loop over as it is: they differ in the networks and augmentation that they import.
    """
    found = [
        Contestant(OURS, "mct_fast, exact", ours(adjoint_of(DistillConfig()))),
        Contestant("mct_fast_lean", "mct_fast, exact, nothing kept", ours(_recorded(Exact(keep_bytes=0)))),
        Contestant("unrolled", "plain PyTorch, double backward", ours(Unrolled()), grows=True),
        Contestant("torch_func", "torch.func, jvp of grad", _torch_func(compiled=False)),
        Contestant("torch_compile", "the same, torch.compile", _torch_func(compiled=True)),
    ]
    if mtt is not None:
        found.append(Contestant("mtt", "mtt-distillation", _reference(mtt, reference.mtt_iteration), grows=True))
    if mct is not None or tesla is not None:
        truncated = ours(adjoint_of(DistillConfig(adjoint="truncated")))
        found.append(Contestant("mct_fast_truncated", "mct_fast, truncated", truncated, gradient="truncated"))
    for name, title, path in (("mct", "MCT, official (truncated)", mct), ("tesla", "TESLA (truncated)", tesla)):
        if path is not None:
            build = _reference(path, reference.mct_iteration)
            found.append(Contestant(name, title, build, gradient="truncated", scale=0.5))
    return {contestant.name: contestant for contestant in found}


def _recorded(adjoint: Adjoint) -> Adjoint:
    """As the outer loop takes it: on a GPU an iteration is recorded once and replayed."""
    return Graphed(adjoint)


def judge(problem: Problem, *, truncated: bool = False) -> Outcome:
    """The gradient by plain PyTorch in memory constant in ``syn_steps``, in the problem's precision; never timed."""
    student = GenericStudent(problem.model, Classification())
    result = _solve(problem, student, Truncated() if truncated else Exact(keep_bytes=0), problem.images, problem.syn_lr)
    return Outcome(result.loss[0], result.grad_images, result.grad_lr)


def _solve(problem: Problem, student: Student, adjoint: Adjoint, images: Tensor, syn_lr: Tensor) -> MatchResult:
    batches = problem.batches()
    task, plan = Classification(), problem.augmentation(batches)
    start, target = (Points.of_values(end[None]) for end in (problem.start, problem.target))
    sizes = tuple((batches >= 0).sum(1).tolist())
    batches = batches.to(images.device)[None]
    found = adjoint.solve(
        MatchingProblem(
            problem.model,
            student,
            task,
            images,
            problem.labels,
            syn_lr,
            start,
            PathDistance(target),
            batches,
            sizes,
            plan,
        )
    )
    return found.mean()


def _updated(learned: Learned, result: MatchResult) -> Outcome:
    learned.images.grad = result.grad_images
    learned.syn_lr.grad = result.grad_lr.to(learned.syn_lr.dtype).reshape(())
    learned.step()
    return Outcome(result.loss[0], result.grad_images, result.grad_lr)


def ours(adjoint: Adjoint) -> Callable[[Problem], Iterate]:
    """An iteration by our matcher with that adjoint."""

    def build(problem: Problem) -> Iterate:
        matcher = Matcher(problem.model, adjoint=adjoint)
        learned = Learned.of(problem, LR_IMG, LR_LR)

        def iterate() -> Outcome:
            batches = problem.batches()
            plan = problem.augmentation(batches)
            ends = (problem.start, problem.target)
            device = problem.images.device
            result = matcher(learned.images, problem.labels, learned.syn_lr, *ends, batches.to(device), augment=plan)
            return _updated(learned, result)

        return iterate

    return build


def _torch_func(*, compiled: bool) -> Callable[[Problem], Iterate]:
    def build(problem: Problem) -> Iterate:
        network = problem.setting.convnet().to(problem.images)
        student = TorchFuncStudent(FunctionalModel(network), network, compiled=compiled)
        learned = Learned.of(problem, LR_IMG, LR_LR)
        if compiled:  # compile now, for the shapes of a full batch: it is no part of an iteration
            rows = torch.arange(min(problem.setting.batch_syn, len(problem.images)))
            x, y, start = problem.images[rows][None], problem.labels[rows][None], problem.start[None]
            student.gradient(start, x, y)
            student.gradient_tangent(start, start, x, y)

        def iterate() -> Outcome:
            images, syn_lr = learned.images.detach(), learned.syn_lr.detach()
            return _updated(learned, _solve(problem, student, Exact(keep_bytes=0), images, syn_lr))

        return iterate

    return build


def _reference(
    path: str, iteration: Callable[[reference.Clone, Problem, Learned], Tensor]
) -> Callable[[Problem], Iterate]:
    def build(problem: Problem) -> Iterate:
        clone = reference.load(path)
        learned = Learned.of(problem, LR_IMG, LR_LR)

        def iterate() -> Outcome:
            loss = iteration(clone, problem, learned)
            images, syn_lr = learned.images.grad, learned.syn_lr.grad
            assert images is not None and syn_lr is not None
            return Outcome(loss, images, syn_lr)

        return iterate

    return build
