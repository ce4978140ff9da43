"""How the matching loss is carried back to pixels, labels and step size.

Notation as in ``docs/architecture.md``: the student makes N steps theta_{i+1} = theta_i - alpha * g_i on batches
x_i = A_i S[idx_i]; the loss is |theta_N - target|^2 / |start - target|^2.  With lambda_N = dloss/dtheta_N,

    dloss/dx_i  = -alpha * d<g_i, lambda_{i+1}>/dx_i,      dloss/dS[idx_i] += A_i^T dloss/dx_i
    dloss/dalpha -= <g_i, lambda_{i+1}>
    lambda_i     = lambda_{i+1} - alpha * H_i lambda_{i+1}

Each student's gradient is summed up by itself; the mean over students is taken last, in the order of the students.  So it
does not matter which of them are computed together, or on which machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data.augment import AugmentPlan
from mct_fast.matching.points import Points
from mct_fast.models import FunctionalModel
from mct_fast.run.distributed import Communicator
from mct_fast.students import PlaneStudent, Student, Tape
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
        labels = problem.labels if problem.labels.is_floating_point() else None
        return StudentGradients(
            problem.images.new_zeros(0),
            problem.images.new_zeros(0, *problem.images.shape),
            problem.images.new_zeros(0, dtype=torch.float64),
            None if labels is None else labels.new_zeros(0, *labels.shape),
            problem.images.new_zeros(0, problem.start.shape[1]),
        )

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


@dataclass(frozen=True)
class MatchingProblem:
    """One matching problem, checked: shapes as in :func:`mct_fast.matching.match`, S always present.

    ``sizes``: images in the batch of each step, the same for all students.
    """

    model: FunctionalModel
    student: Student
    task: Task
    images: Tensor
    labels: Tensor
    syn_lr: Tensor
    start: Points
    target: Points
    batches: Tensor
    sizes: tuple[int, ...]
    augment: Augmentation | None

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
        start, target = self.start.of(rows), self.target.of(rows)
        return replace(self, start=start, target=target, batches=self.batches[rows], augment=augment)

    @cached_property
    def theta(self) -> Tensor:
        """The parameters ``(S, P)`` that students start from; not to be written to."""
        return self.start.dense()

    @cached_property
    def denominator(self) -> Tensor:
        """|start - target|^2 of each student, ``(S,)``."""
        return self.target.distance(self.theta, self.theta.new_ones(self.num_students))[0]

    def indices(self, step: int) -> Tensor:
        """Rows ``(S, b)`` of the synthetic set used at ``step``; a shorter batch is padded by -1 at its end."""
        return self.batches[:, step, : self.sizes[step]]

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented batch ``(S, b, C, H, W)`` of ``step`` and its labels."""
        rows = self.indices(step)
        x = images[rows]
        return (x if self.augment is None else self.augment.apply(step, x)), labels[rows]

    def to_pixels(self, step: int, grad_x: Tensor) -> Tensor:
        """Carries a gradient by the augmented batch back to the batch's pixels."""
        return grad_x if self.augment is None else self.augment.transpose(step, grad_x)

    def terminal(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss ``(S,)`` at ``theta (S, P)`` and its gradient, each student's by itself."""
        return self.target.distance(theta, self.denominator)


class Adjoint(Protocol):
    """A strategy for the gradient of the matching loss."""

    def solve(self, problem: MatchingProblem) -> StudentGradients: ...


@dataclass(frozen=True)
class Unrolled:
    """Exact, by PyTorch's double backward through all N steps, as MTT's reference does.

    Memory grows with N times the activations of a step (and their gradients); 9 convolution passes a step.
    The yardstick for the others.
    """

    def solve(self, problem: MatchingProblem) -> StudentGradients:
        soft = problem.labels.is_floating_point()
        targets = problem.target.dense()
        rows = [self._solve_one(problem, s, targets[s], soft=soft) for s in range(problem.num_students)]
        loss, images, lr, labels, final = zip(*rows, strict=True)
        return StudentGradients(
            torch.stack(loss),
            torch.stack(images),
            torch.stack(lr).double(),
            torch.stack(labels) if soft else None,
            torch.stack(final),
        )

    def _solve_one(self, problem: MatchingProblem, s: int, target: Tensor, *, soft: bool) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            images = problem.images.detach().requires_grad_()
            labels = problem.labels.detach().requires_grad_(soft)
            syn_lr = problem.syn_lr.detach().requires_grad_()
            final = self._unroll(problem, s, images, labels, syn_lr)
            loss = (final - target).square().sum() / problem.denominator[s]
            wanted = (images, syn_lr, labels) if soft else (images, syn_lr)
            found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return loss.detach(), found[0], found[1], found[-1], final.detach()

    @staticmethod
    def _unroll(problem: MatchingProblem, s: int, images: Tensor, labels: Tensor, syn_lr: Tensor) -> Tensor:
        theta = problem.theta[s].detach().requires_grad_()
        for step in range(problem.syn_steps):
            rows = problem.indices(step)[s]
            x = images[rows]
            if problem.augment is not None:
                assert isinstance(problem.augment, AugmentPlan)  # this one is never recorded
                x = problem.augment.draws[s][step].apply(x)
            loss = problem.task.loss(problem.model(theta, x), labels[rows])
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - syn_lr * g
        return theta


@dataclass(frozen=True)
class Exact:
    """Exact, in memory constant in N: the adjoint recursion with each step recomputed.

    Keeps theta_0 ... theta_N (N * P numbers) and the activations of one step; 11 convolution passes a step.  Activations are
    kept instead of recomputed as far as they fit into ``keep_bytes``: 9 passes for those steps, or 9 and that of the first
    block where keeping the rest lets more steps fit.  The bits are the same.
    """

    keep_bytes: int = 0

    def solve(self, problem: MatchingProblem) -> StudentGradients:
        return _sweep(problem, carry_curvature=True, keep_bytes=self.keep_bytes)


@dataclass(frozen=True)
class Truncated:
    """Approximate: lambda_N stands for every lambda_i, the gradient of TESLA and of MCT's official code.

    The terms that reach a batch through later steps are dropped.  The references lose a factor 2 in the pixel gradient
    (they repeat a tuple); it is present here, so that at ``syn_steps=1`` all strategies agree.
    """

    keep_bytes: int = 0

    def solve(self, problem: MatchingProblem) -> StudentGradients:
        return _sweep(problem, carry_curvature=False, keep_bytes=self.keep_bytes)


def _sweep(problem: MatchingProblem, *, carry_curvature: bool, keep_bytes: int) -> StudentGradients:
    """Forward over the steps, then back over them.  Reads no number from the device: it can be captured in a CUDA graph."""
    student, alpha = problem.student, problem.syn_lr
    if isinstance(student, PlaneStudent) and student.takes(problem.images):
        from mct_fast.matching.plane_sweep import sweep  # imports Triton

        engine = student.engine(problem.images.device)
        return StudentGradients(*sweep(problem, engine, carry_curvature=carry_curvature, keep_bytes=keep_bytes))
    minus_alpha = -alpha.reshape(1, 1)
    path = [problem.theta]
    tapes: dict[int, Tape] = {}
    for step in range(problem.syn_steps):
        batch = problem.batch(step, problem.images, problem.labels)
        if keep_bytes > 0:
            _, g, tape = student.gradient_keeping(path[-1], *batch)
            tape = _that_fits(tape, keep_bytes, problem.syn_steps - step - 1)
            if tape is not None:
                tapes[step] = tape
            keep_bytes = 0 if tape is None else keep_bytes - tape.nbytes
        else:
            _, g = student.gradient(path[-1], *batch)
        path.append(torch.addcmul(path[-1], g, minus_alpha))
    loss, costate = problem.terminal(path[-1])

    count = problem.num_students
    grad_images = problem.images.new_zeros(count, *problem.images.shape)
    labels = problem.labels
    grad_labels = labels.new_zeros(count, *labels.shape) if labels.is_floating_point() else None
    grad_lr = torch.zeros(count, dtype=torch.float64, device=alpha.device)
    for step in reversed(range(problem.syn_steps)):
        batch = problem.batch(step, problem.images, labels)
        tangent = student.gradient_tangent(path[step], costate, *batch, tape=tapes.pop(step, None))
        grad_lr -= tangent.loss_dot.double()
        rows = problem.indices(step)
        _add_rows(grad_images, rows, problem.to_pixels(step, tangent.grad_x_dot), alpha)
        if grad_labels is not None and tangent.grad_y_dot is not None:
            _add_rows(grad_labels, rows, tangent.grad_y_dot, alpha)
        if carry_curvature:
            costate = torch.addcmul(costate, tangent.hvp, minus_alpha)
    return StudentGradients(loss, grad_images, grad_lr, grad_labels, path[-1])


def _that_fits(tape: Tape | None, room: int, later: int) -> Tape | None:
    """``tape`` if ``room`` also takes light ones of all ``later`` steps; else a light one, if that fits."""
    if tape is None:
        return None
    light = tape.lighter()
    if light is None:
        return tape if tape.nbytes <= room else None
    if tape.nbytes + later * light.nbytes <= room:
        return tape
    return light if light.nbytes <= room else None


def _add_rows(total: Tensor, rows: Tensor, grad: Tensor, alpha: Tensor) -> None:
    """total[s][rows[s]] -= alpha * grad[s]; no row twice in a batch, so every device adds in one order."""
    for into, at, values in zip(total, rows, grad, strict=True):
        into.index_add_(0, at, values * -alpha)


KEEP_BYTES = 448 << 20
"""Activations that a strategy asked for by name keeps; their time is a fifth of a match's, their bytes are bounded."""

ADJOINTS: dict[str, Adjoint] = {
    "exact": Exact(KEEP_BYTES),
    "unrolled": Unrolled(),
    "truncated": Truncated(KEEP_BYTES),
}
