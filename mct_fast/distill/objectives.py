"""What synthetic images are to achieve, as strategies: students that follow experts' paths, or that do well on real data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data import AugmentPlan
from mct_fast.distill.job import Job
from mct_fast.matching import Asked, RealLoss
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.students import Student
from mct_fast.students.recording import Recorder, recorder_for
from mct_fast.tasks.layout import balanced_rows
from mct_fast.training import SGD, FlatStack
from mct_fast.training.recorded import Examples, RecordedSteps
from mct_fast.trajectory import PathPoint


@dataclass(frozen=True)
class Segment:
    """A student's way: along which expert's path, from when to when, in epochs; or without one, in steps of its own."""

    expert: int
    start: float
    target: float


class Course(Protocol):
    """The drawn ways of an iteration's students."""

    def ask(self, asked: Asked) -> Asked:
        """The match of ``asked``, which has all steps of the students but not yet their ends."""
        ...


class Objective(Protocol):
    """Where students begin, how far they go, and what they should reach."""

    def steps(self, iteration: int) -> int:
        """Steps that each student makes."""
        ...

    def segment(self, iteration: int, student: int, steps: int, stream: torch.Generator) -> Segment:
        """The way of one of the students, which makes the ``steps`` of the iteration."""
        ...

    def course(self, iteration: int, segments: Sequence[Segment]) -> Course:
        """The ways of all of them."""
        ...


class Matching:
    """Students begin on an expert's path and should arrive further along it (MTT, MCT)."""

    def __init__(self, job: Job) -> None:
        assert job.paths is not None
        self._paths, self._config = job.paths, job.config

    def steps(self, iteration: int) -> int:
        return self._config.student.syn_steps

    def segment(self, iteration: int, student: int, steps: int, stream: torch.Generator) -> Segment:
        """Experts take turns in a fresh order each round."""
        paths, seed = self._paths, self._config.engine.seed
        turn, count = iteration * self._config.student.students + student, len(paths)
        order = torch.randperm(count, generator=generator(seed, "experts", turn // count))
        expert = int(order[turn % count])
        return Segment(expert, *self._config.path.draw(paths[expert].epochs, iteration, stream))

    def course(self, iteration: int, segments: Sequence[Segment]) -> Course:
        paths = [self._paths[segment.expert] for segment in segments]
        return _OnPaths(
            [path.point(segment.start) for path, segment in zip(paths, segments, strict=True)],
            [path.point(segment.target) for path, segment in zip(paths, segments, strict=True)],
        )


@dataclass(frozen=True)
class _OnPaths:
    starts: Sequence[PathPoint]
    targets: Sequence[PathPoint]

    def ask(self, asked: Asked) -> Asked:
        return replace(asked, start=self.starts, target=self.targets)


class Unrolled:
    """Students with fresh parameters train, and should do well on a batch of real data (RaT-BPTT, ICLR 2024).

    An iteration's students make a random number of steps, ``window`` at least and ``syn_steps`` at most, or what these have
    ``growing`` grown to; the loss where they arrive is carried back through the last ``window`` of them.  ``student`` gives the
    student on a device.
    """

    def __init__(self, job: Job, student: Callable[[torch.device], Student]) -> None:
        self._job, self._config, self._model = job, job.config, job.student()
        self._fresh = _FreshStudents(student, recorder_for(job.config.engine.cuda_graphs))
        self._window = job.config.goal.window or job.config.student.syn_steps

    def steps(self, iteration: int) -> int:
        most, growing = self._config.student.syn_steps, self._config.goal.growing
        if iteration < growing:
            most = self._window + (most - self._window) * iteration // growing
        stream = generator(self._config.engine.seed, "window", iteration)
        return int(torch.randint(self._window, most + 1, (), generator=stream))

    def segment(self, iteration: int, student: int, steps: int, stream: torch.Generator) -> Segment:
        return Segment(-1, float(steps - self._window), float(steps))

    def course(self, iteration: int, segments: Sequence[Segment]) -> Course:
        seed, train = self._config.engine.seed, self._job.dataset.train
        count, device = min(self._config.goal.real_batch, len(train)), train.images.device
        seeds = [derive_seed(seed, "student", iteration, s) for s in range(len(segments))]
        streams = [generator(seed, "real-batch", iteration, s) for s in range(len(segments))]
        rows = torch.stack([self._real_rows(count, stream) for stream in streams]).to(device)
        theta = torch.stack([self._model.init(one) for one in seeds])
        before = int(segments[0].start)
        return _FromFresh(self._fresh, theta, RealLoss(train.images[rows], train.labels[rows]), before)

    def _real_rows(self, count: int, stream: torch.Generator) -> Tensor:
        labels = self._job.dataset.train.labels
        if not self._config.goal.balanced:
            return torch.randperm(len(labels), generator=stream)[:count]
        return balanced_rows(self._job.task.strata(labels).cpu(), count, stream)


@dataclass(frozen=True)
class _FromFresh:
    fresh: _FreshStudents
    theta: Tensor
    real: RealLoss
    before: int

    def ask(self, asked: Asked) -> Asked:
        device, later = asked.images.device, self.before
        theta = self.fresh.train(self.theta.to(device), asked, self.before)
        plan = asked.augment
        if plan is not None and later:
            plan = AugmentPlan(tuple(row[later:] for row in plan.draws))
        real = RealLoss(self.real.images.to(device), self.real.labels.to(device))
        batches, sizes = asked.batches[:, later:], asked.sizes[later:]
        return replace(asked, start=theta, target=real, batches=batches, sizes=sizes, augment=plan)


class _FreshStudents:
    """Trains students by plain steps, without a gradient through them; on a GPU these are recorded."""

    def __init__(self, student: Callable[[torch.device], Student], recorder: Recorder) -> None:
        self._student, self._recorder = student, recorder
        self._kept: tuple[FlatStack, Examples, RecordedSteps | None] | None = None

    def train(self, theta: Tensor, asked: Asked, steps: int) -> Tensor:
        """Where the students from ``theta (S, P)`` are after the first ``steps`` of ``asked``."""
        if steps == 0:
            return theta
        stack, examples, recorded = self._ready(theta, asked)
        for step in range(steps):
            rows = asked.batches[:, step, : asked.sizes[step]]
            plan = asked.augment
            plan = None if plan is None else AugmentPlan(tuple((row[step],) for row in plan.draws))
            done = recorded(rows, plan, asked.syn_lr) if recorded is not None and recorded.takes(plan) else None
            if done is None:
                x, y = examples.batch(rows)
                stack.step(x if plan is None else plan.apply(0, x), y, asked.syn_lr)
        return stack.params.clone()

    def _ready(self, theta: Tensor, asked: Asked) -> tuple[FlatStack, Examples, RecordedSteps | None]:
        """Everything at the addresses that it had the last time."""
        if self._kept is None or self._kept[1].images.shape != asked.images.shape:
            stack = FlatStack(self._student(theta.device), theta, SGD())
            examples = Examples(asked.images.clone(), asked.labels.clone(), shared=True)
            self._kept = stack, examples, RecordedSteps.of(stack, examples, self._recorder)
        stack, examples, _ = self._kept
        stack.params.copy_(theta)
        examples.images.copy_(asked.images)
        examples.labels.copy_(asked.labels)
        return self._kept
