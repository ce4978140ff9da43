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


class Matches:
    """Draws and solves the matches of a run.  All that is random in iteration i comes from (seed, i): nothing is carried over."""

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

    def solve(self, state: State) -> tuple[MatchResult, Segment]:
        """The match of the iteration that ``state`` is at, and the segment of its first student."""
        config, iteration = self._config, state.iteration
        stream = generator(config.engine.seed, "iteration", iteration)
        segments, batches = [], []
        count = len(state.images)
        for student in range(config.student.students):
            segments.append(self._segment(iteration, student, stream))
            batches.append(draw_batches(count, config.student.batch_syn or count, config.student.syn_steps, stream))
        plan = self._plan(batches, stream)
        starts, targets = zip(*map(self._ends, segments), strict=True)
        sizes = tuple((batches[0] >= 0).sum(1).tolist())

        def match(images: Tensor, labels: Tensor, rows: Tensor) -> MatchResult:
            given = (images, labels, state.step_size.value, starts, targets, rows)
            if self._checked:
                return self._matcher.trusted(*given, sizes=sizes, augment=plan)
            self._checked = True  # what is made here is the same kind of thing every time
            return self._matcher(*given, augment=plan)

        rows = torch.stack(batches).to(config.engine.device)
        return self._layout.match(state.images.detach(), state.labels.value, rows, stream, match), segments[0]

    def _segment(self, iteration: int, student: int, stream: torch.Generator) -> Segment:
        """Experts take turns in a fresh order each round."""
        turn, count = iteration * self._config.student.students + student, len(self._job.paths)
        order = torch.randperm(count, generator=generator(self._config.engine.seed, "experts", turn // count))
        expert = int(order[turn % count])
        return Segment(expert, *self._config.path.draw(self._job.paths[expert].epochs, iteration, stream))

    def _ends(self, segment: Segment) -> tuple[PathPoint, PathPoint]:
        path = self._job.paths[segment.expert]
        return path.point(segment.start), path.point(segment.target)

    def _plan(self, batches: Sequence[Tensor], stream: torch.Generator) -> AugmentPlan | None:
        if self._augment is None:
            return None
        sizes = (batches[0] >= 0).sum(1).tolist()
        shape = self._job.dataset.image_shape
        return self._augment.plan(len(batches), self._config.student.syn_steps, sizes, shape, stream)
