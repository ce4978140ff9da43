"""What students should reach: a loss of their last parameters, and its gradient there, from which the co-state begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mct_fast.matching.points import Points
from mct_fast.models import FunctionalModel
from mct_fast.students import Student
from mct_fast.tasks import Task


class Students(Protocol):
    """What a terminal reads of a :class:`mct_fast.matching.problem.MatchingProblem`."""

    @property
    def model(self) -> FunctionalModel: ...

    @property
    def student(self) -> Student: ...

    @property
    def task(self) -> Task: ...


class Terminal(Protocol):
    """The end of S students' training."""

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of, which another match has other values of."""
        ...

    @property
    def form(self) -> Any:
        """What a recording depends on beside the shapes of its leaves."""
        ...

    def placed(self, place: Callable[[Tensor], Tensor]) -> Terminal:
        """The same with ``place`` of each leaf."""
        ...

    def of(self, rows: slice) -> Terminal:
        """That of some students."""
        ...

    def value(self, problem: Students, theta: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The loss ``(S,)`` at ``theta (S, P)`` of students that began at ``start (S, P)``, and its gradient."""
        ...

    def loss(self, problem: Students, s: int, theta: Tensor, start: Tensor) -> Tensor:
        """The loss ``()`` of student s, which began at ``start (P,)``, at ``theta (P,)``; for autograd."""
        ...


@dataclass(frozen=True)
class PathDistance:
    """|theta - target|^2 / |start - target|^2: the matching loss of MTT (CVPR 2022, eq. 2)."""

    target: Points

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.target.leaves

    @property
    def form(self) -> Any:
        return self.target.sizes

    def placed(self, place: Callable[[Tensor], Tensor]) -> PathDistance:
        return PathDistance(self.target.placed(place))

    def of(self, rows: slice) -> PathDistance:
        return PathDistance(self.target.of(rows))

    def denominator(self, start: Tensor) -> Tensor:
        """|start - target|^2 of each student, ``(S,)``; NaN where it overflows: divided by infinity any loss would be 0."""
        found = self.target.distance(start, start.new_ones(len(start)))[0]
        return torch.where(found.isfinite(), found, torch.nan)

    def value(self, problem: Students, theta: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        return self.target.distance(theta, self.denominator(start))

    def loss(self, problem: Students, s: int, theta: Tensor, start: Tensor) -> Tensor:
        one = slice(s, s + 1)
        divisor = self.of(one).denominator(start[None])[0]
        return (theta - self.target.of(one).dense()[0]).square().sum() / divisor


@dataclass(frozen=True)
class RealLoss:
    """The student's own loss on a batch of real data: ``images (S, b, C, H, W)``, ``labels (S, b)`` or ``(S, b, k)``.

    The objective of data distillation as a bilevel problem (Wang et al., 2018), whose gradient RaT-BPTT (Feng et al., ICLR
    2024) carries back through the last steps alone.
    """

    images: Tensor
    labels: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.images, self.labels

    @property
    def form(self) -> Any:
        return ()

    def placed(self, place: Callable[[Tensor], Tensor]) -> RealLoss:
        return replace(self, images=place(self.images), labels=place(self.labels))

    def of(self, rows: slice) -> RealLoss:
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def value(self, problem: Students, theta: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        return problem.student.gradient(theta, self.images, self.labels)

    def loss(self, problem: Students, s: int, theta: Tensor, start: Tensor) -> Tensor:
        return problem.task.loss(problem.model(theta, self.images[s]), self.labels[s])
