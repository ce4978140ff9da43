"""The match of an iteration: which experts, which segments of their paths, which batches and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.data import AugmentPlan, augmentation
from mct_fast.distill.config import adjoint_of, layout_of
from mct_fast.distill.job import Job
from mct_fast.distill.sampling import draw_batches
from mct_fast.distill.state import State
from mct_fast.matching import Matcher, MatchResult
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


class Matches:
    """Draws and solves the matches of a run.  All that is random in iteration i comes from (seed, i): nothing is carried over.

    On a GPU the next match is drawn while the device works on this one.
    """

    def __init__(self, job: Job, communicator: Communicator) -> None:
        config = job.config
        self._job, self._config = job, config
        self._matcher = Matcher(
            job.student(),
            task=job.task,
            adjoint=adjoint_of(config),
            micro_batch=config.engine.micro_batch,
            communicator=communicator,
        )
        self._layout = layout_of(config)
        chosen = config.augmentation
        self._augment = augmentation(job.dataset.kind, chosen.dsa, chosen.dsa_strategy, chosen.jitter)
        self._checked = False
        self._next: _Drawn | None = None

    def solve(self, state: State) -> tuple[MatchResult, Segment]:
        """The match of the iteration that ``state`` is at, and the segment of its first student."""
        ready, self._next = self._next, None
        count = len(state.images)
        drawn = (
            ready if ready is not None and ready.iteration == state.iteration else self._draw(state.iteration, count)
        )

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> MatchResult:
            given = (images, labels, state.step_size.value, drawn.starts, drawn.targets, rows)
            if self._checked:
                return self._matcher.trusted(*given, sizes=drawn.sizes, augment=drawn.plan)
            self._checked = True  # what is made here is the same kind of thing every time
            return self._matcher(*given, augment=drawn.plan)

        images = state.images.detach()
        result = self._layout.match(images, state.labels.value, drawn.rows, drawn.stream, match)
        if images.is_cuda:
            self._next = self._draw(state.iteration + 1, count)
        return result, drawn.segments[0]

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
