"""The match of an iteration: which experts, which segments of their paths, which batches and augmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.data import AugmentPlan, augmentation
from mct_fast.distill.config import adjoint_of, layout_of
from mct_fast.distill.job import Job
from mct_fast.distill.objectives import Course, Matching, Objective, Segment, Unrolled
from mct_fast.distill.pixels import Shown
from mct_fast.distill.sampling import draw_batches
from mct_fast.distill.state import State
from mct_fast.matching import Asked, Matcher, MatchResult
from mct_fast.run.distributed import Communicator
from mct_fast.run.seeds import generator


@dataclass(frozen=True)
class _Drawn:
    """All that is random in an iteration's match; ``stream`` goes on where the draws ended."""

    iteration: int
    segment: Segment
    course: Course
    rows: Tensor
    sizes: tuple[int, ...]
    plan: AugmentPlan | None
    stream: torch.Generator


class Draws:
    """Draws the matches of a run.  All that is random in iteration i comes from (seed, i): nothing is carried over."""

    def __init__(self, job: Job, objective: Objective) -> None:
        config = job.config
        self._job, self._config, self._objective = job, config, objective
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
        alpha = state.step_size.value
        asked = Asked(shown.images, shown.labels, alpha, (), (), shown.batches, ready.sizes, ready.plan)
        return ready.course.ask(asked), shown, ready.segment

    def prepare(self, iteration: int, count: int) -> None:
        """Draws the match of ``iteration`` over ``count`` images ahead, while a device is at work."""
        self._next = self._draw(iteration, count)

    def _draw(self, iteration: int, count: int) -> _Drawn:
        """The draws of an iteration over ``count`` images."""
        config = self._config
        stream = generator(config.engine.seed, "iteration", iteration)
        steps, segments, batches = self._objective.steps(iteration), [], []
        for student in range(config.student.students):
            segments.append(self._objective.segment(iteration, student, steps, stream))
            batches.append(draw_batches(count, config.student.batch_syn or count, steps, stream))
        sizes = tuple((batches[0] >= 0).sum(1).tolist())
        plan = self._plan(sizes, stream)
        if plan is not None and config.engine.device != "cpu" and self._job.dataset.kind == "images":
            _ = plan.flat  # made now, while the device works
        course = self._objective.course(iteration, segments)
        rows = torch.stack(batches).to(config.engine.device)
        return _Drawn(iteration, segments[0], course, rows, sizes, plan, stream)

    def _plan(self, sizes: Sequence[int], stream: torch.Generator) -> AugmentPlan | None:
        if self._augment is None:
            return None
        students, shape = self._config.student.students, self._job.dataset.image_shape
        return self._augment.plan(students, len(sizes), sizes, shape, stream)


class Matches:
    """Solves the matches of runs of equal shapes, several at once; each run has the bits that it has alone.

    On a GPU the next matches are drawn while the device works on these.
    """

    def __init__(self, jobs: Sequence[Job], communicator: Communicator) -> None:
        first = jobs[0]
        self._matcher = Matcher(
            first.student(),
            task=first.task,
            adjoint=adjoint_of(first.config),
            micro_batch=first.config.engine.micro_batch,
            communicator=communicator,
        )
        self._draws = [Draws(job, self._objective(job)) for job in jobs]
        self._checked: set[int] = set()
        self.device = first.config.engine.device

    def _objective(self, job: Job) -> Objective:
        if job.config.goal.objective == "unrolled":
            return Unrolled(job, self._matcher.student)
        return Matching(job)

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
