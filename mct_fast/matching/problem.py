"""One matching problem and what its match yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data.augment import AugmentPlan
from mct_fast.matching.points import Points
from mct_fast.matching.terminal import Terminal
from mct_fast.models import FunctionalModel
from mct_fast.run.distributed import Communicator
from mct_fast.students import Student
from mct_fast.tasks import Task


@dataclass(frozen=True)
class MatchResult:
    """What one match yields.

    ``loss (S,)`` per student; ``grad_images (n, C, H, W)``, ``grad_lr ()`` and ``grad_labels (n, k)`` (None for hard
    labels) of the mean over students; ``final_params (S, P)`` where the students arrived.
    """

    loss: Tensor
    grad_images: Tensor
    grad_lr: Tensor
    grad_labels: Tensor | None
    final_params: Tensor


@dataclass(frozen=True)
class StudentGradients:
    """The gradients of S matches, one a row: no row depends on the others.

    ``loss (S,)``, ``grad_images (S, n, C, H, W)``, ``grad_lr (S,)`` float64, ``grad_labels (S, n, k)`` or None,
    ``final_params (S, P)``.
    """

    loss: Tensor
    grad_images: Tensor
    grad_lr: Tensor
    grad_labels: Tensor | None
    final_params: Tensor

    @staticmethod
    def none(problem: MatchingProblem) -> StudentGradients:
        """Those of no student of ``problem``."""
        images, labels = problem.zeros(0)
        nothing = images.new_zeros(0)
        return StudentGradients(nothing, images, nothing.double(), labels, images.new_zeros(0, problem.start.shape[1]))

    def of(self, students: slice) -> StudentGradients:
        """Those of some students."""
        labels = None if self.grad_labels is None else self.grad_labels[students]
        rows = (self.loss, self.grad_images, self.grad_lr, self.final_params)
        loss, images, lr, params = (row[students] for row in rows)
        return StudentGradients(loss, images, lr, labels, params)

    def gathered(self, communicator: Communicator, count: int) -> StudentGradients:
        """Those of all ``count`` students, of which each process has its share."""
        rows = (self.loss, self.grad_images, self.grad_lr, self.final_params)
        loss, images, lr, params = (communicator.gather(row, count) for row in rows)
        labels = None if self.grad_labels is None else communicator.gather(self.grad_labels, count)
        return StudentGradients(loss, images, lr, labels, params)

    def mean(self) -> MatchResult:
        """The gradient of the mean loss."""
        labels = None if self.grad_labels is None else _mean_in_order(self.grad_labels)
        lr = _mean_in_order(self.grad_lr).to(self.loss.dtype)
        return MatchResult(self.loss, _mean_in_order(self.grad_images), lr, labels, self.final_params)


def _mean_in_order(rows: Tensor) -> Tensor:
    if len(rows) == 1:
        return rows[0]
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)


class Augmentation(Protocol):
    """Affine maps of batches, one a student and step: an :class:`mct_fast.data.AugmentPlan`, or its tables on a device."""

    def apply(self, step: int, x: Tensor) -> Tensor: ...

    def transpose(self, step: int, g: Tensor) -> Tensor: ...

    def tables(self, steps: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Sets:
    """Several synthetic sets of one size side by side: ``count`` of them, ``students`` that see each, in their order.

    ``first``: the number, among the students of all sets, of the first that is here.
    """

    count: int = 1
    students: int = 1
    first: int = 0


@dataclass(frozen=True)
class MatchingProblem:
    """Matching problems, checked: shapes as in :func:`mct_fast.matching.match`, S always present.

    ``sizes``: images in the batch of each step, the same for all students.  ``syn_lr`` is ``()``, or ``(S,)``.  Where there are
    several ``sets``, their images and labels lie one after the other, and ``batches`` number those of a student's own.
    """

    model: FunctionalModel
    student: Student
    task: Task
    images: Tensor
    labels: Tensor
    syn_lr: Tensor
    start: Points
    terminal: Terminal
    batches: Tensor
    sizes: tuple[int, ...]
    augment: Augmentation | None
    sets: Sets = Sets()

    @property
    def num_images(self) -> int:
        """Images of a set."""
        return len(self.images) // self.sets.count

    @property
    def alpha(self) -> Tensor:
        """The step size of each student, ``(S,)``."""
        return self.syn_lr.reshape(-1).expand(self.num_students).contiguous()

    @property
    def num_students(self) -> int:
        return self.start.shape[0]

    @property
    def syn_steps(self) -> int:
        return self.batches.shape[1]

    def of(self, students: range) -> MatchingProblem:
        """The same problem for some of its students, at least one."""
        if students == range(self.num_students):
            return self
        rows = slice(students.start, students.stop)
        augment = AugmentPlan(self.augment.draws[rows]) if isinstance(self.augment, AugmentPlan) else self.augment
        start, terminal = self.start.of(rows), self.terminal.of(rows)
        syn_lr = self.syn_lr[rows] if self.syn_lr.ndim else self.syn_lr
        sets = replace(self.sets, first=self.sets.first + students.start)
        return replace(
            self, syn_lr=syn_lr, start=start, terminal=terminal, batches=self.batches[rows], augment=augment, sets=sets
        )

    @cached_property
    def theta(self) -> Tensor:
        """The parameters ``(S, P)`` that students start from; not to be written to."""
        return self.start.dense()

    def indices(self, step: int) -> Tensor:
        """Rows ``(S, b)`` of each student's synthetic set used at ``step``."""
        return self.batches[:, step, : self.sizes[step]]

    def among_all(self, rows: Tensor) -> Tensor:
        """Rows ``(..., S, b)`` of each student's set as rows of :attr:`images`."""
        if self.sets.count == 1:
            return rows
        students = torch.arange(self.num_students, device=rows.device) + self.sets.first
        return rows + (students // self.sets.students * self.num_images)[:, None]

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented batch ``(S, b, C, H, W)`` of ``step`` and its labels."""
        rows = self.among_all(self.indices(step))
        x = images[rows]
        return (x if self.augment is None else self.augment.apply(step, x)), labels[rows]

    def zeros(self, students: int) -> tuple[Tensor, Tensor | None]:
        """Gradients by images, and by soft labels, of so many students, to which nothing has been added."""
        images, labels = (
            like.new_zeros(students, self.num_images, *like.shape[1:]) for like in (self.images, self.labels)
        )
        return images, labels if labels.is_floating_point() else None

    def to_pixels(self, step: int, grad_x: Tensor) -> Tensor:
        """Carries a gradient by the augmented batch back to the batch's pixels."""
        return grad_x if self.augment is None else self.augment.transpose(step, grad_x)
