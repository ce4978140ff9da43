"""The match of an iteration: which experts, which segments of their paths, which batches and augmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.data import AugmentPlan, augmentation
from mct_fast.distill.config import adjoint_of, layout_of
from mct_fast.distill.job import Job
from mct_fast.distill.pixels import Shown
from mct_fast.distill.sampling import draw_batches
from mct_fast.distill.state import State
from mct_fast.matching import Asked, Matcher, MatchResult
from mct_fast.run.distributed import Communicator
from mct_fast.run.seeds import generator
from mct_fast.trajectory import PathPoint


@dataclass(frozen=True)
class Segment:
    """A student's way: which expert, from when to when, in epochs."""

    expert: int
    start: float
    target: float


@dataclass(frozen=True)
class _Drawn:
    """All that is random in an iteration's match; ``stream`` goes on where the draws ended."""

    iteration: int
    segments: Sequence[Segment]
    starts: Sequence[PathPoint]
    targets: Sequence[PathPoint]
    rows: Tensor
    sizes: tuple[int, ...]
    plan: AugmentPlan | None
    stream: torch.Generator


class Draws:
    """Draws the matches of a run.  All that is random in iteration i comes from (seed, i): nothing is carried over."""

    def __init__(self, job: Job) -> None:
        config = job.config
        self._job, self._config = job, config
        self._layout = layout_of(config)
        chosen = config.augmentation
        self._augment = augmentation(job.dataset.kind, chosen.dsa, chosen.dsa_strategy, chosen.jitter)
        self._next: _Drawn | None = None

    def take(self, state: State) -> tuple[Asked, Shown, Segment]:
        """The match of the iteration that ``state`` is at, the way back from it, and the segment of its first student."""
        ready, self._next = self._next, None
        if ready is None or ready.iteration != state.iteration:
            ready = self._draw(state.iteration, len(state.images))
        shown = self._layout.show(state.images.detach(), state.labels.value, ready.rows, ready.stream)
        asked = Asked(
            shown.images, shown.labels, state.step_size.value, ready.starts, ready.targets, shown.batches, ready.sizes,
            ready.plan,
        )  # fmt: skip
        return asked, shown, ready.segments[0]

    def prepare(self, iteration: int, count: int) -> None:
        """Draws the match of ``iteration`` over ``count`` images ahead, while a device is at work."""
        self._next = self._draw(iteration, count)

    def _draw(self, iteration: int, count: int) -> _Drawn:
        """The draws of an iteration over ``count`` images."""
        config = self._config
        stream = generator(config.engine.seed, "iteration", iteration)
        segments, batches = [], []
        for student in range(config.student.students):
            segments.append(self._segment(iteration, student, stream))
            batches.append(draw_batches(count, config.student.batch_syn or count, config.student.syn_steps, stream))
        sizes = tuple((batches[0] >= 0).sum(1).tolist())
        plan = self._plan(sizes, stream)
        if plan is not None and config.engine.device != "cpu" and self._job.dataset.kind == "images":
            _ = plan.flat  # made now, while the device works
        starts, targets = zip(*map(self._ends, segments), strict=True)
        rows = torch.stack(batches).to(config.engine.device)
        return _Drawn(iteration, segments, starts, targets, rows, sizes, plan, stream)

    def _segment(self, iteration: int, student: int, stream: torch.Generator) -> Segment:
        """Experts take turns in a fresh order each round."""
        turn, count = iteration * self._config.student.students + student, len(self._job.paths)
        order = torch.randperm(count, generator=generator(self._config.engine.seed, "experts", turn // count))
        expert = int(order[turn % count])
        return Segment(expert, *self._config.path.draw(self._job.paths[expert].epochs, iteration, stream))

    def _ends(self, segment: Segment) -> tuple[PathPoint, PathPoint]:
        path = self._job.paths[segment.expert]
        return path.point(segment.start), path.point(segment.target)

    def _plan(self, sizes: Sequence[int], stream: torch.Generator) -> AugmentPlan | None:
        if self._augment is None:
            return None
        students, shape = self._config.student.students, self._job.dataset.image_shape
        return self._augment.plan(students, self._config.student.syn_steps, sizes, shape, stream)


class Matches:
    """Solves the matches of runs of equal shapes, several at once; each run has the bits that it has alone.

    On a GPU the next matches are drawn while the device works on these.
    """

    def __init__(self, jobs: Sequence[Job], communicator: Communicator) -> None:
        first = jobs[0]
        self._draws = [Draws(job) for job in jobs]
        self._matcher = Matcher(
            first.student(),
            task=first.task,
            adjoint=adjoint_of(first.config),
            micro_batch=first.config.engine.micro_batch,
            communicator=communicator,
        )
        self._checked: set[int] = set()
        self.device = first.config.engine.device

    def solve(self, states: Mapping[int, State]) -> dict[int, tuple[MatchResult, Segment]]:
        """The match of the iteration that each state is at, by the number of its run, and its first student's segment."""
        taken = {run: self._draws[run].take(state) for run, state in states.items()}
        for run in taken.keys() - self._checked:  # what is made here is the same kind of thing every time
            self._matcher.check(taken[run][0])
            self._checked.add(run)
        found = self._matcher.trusted([asked for asked, _, _ in taken.values()])
        solved = {
            run: (shown.back(result), segment)
            for (run, (_, shown, segment)), result in zip(taken.items(), found, strict=True)
        }
        for run, state in states.items():
            if state.images.is_cuda:
                self._draws[run].prepare(state.iteration + 1, len(state.images))
        return solved
