"""How the matching loss is carried back to pixels, labels and step size.

Notation as in ``docs/architecture.md``: the student makes N steps theta_{i+1} = theta_i - alpha * g_i on batches
x_i = A_i S[idx_i]; the loss is |theta_N - target|^2 / |start - target|^2, averaged over S students.  With
lambda_N = dloss/dtheta_N,

    dloss/dx_i  = -alpha * d<g_i, lambda_{i+1}>/dx_i,      dloss/dS[idx_i] += A_i^T dloss/dx_i
    dloss/dalpha -= <g_i, lambda_{i+1}>
    lambda_i     = lambda_{i+1} - alpha * H_i lambda_{i+1}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data.augment import AugmentPlan
from mct_fast.models import FunctionalModel
from mct_fast.student import Student, Tape
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
class MatchingProblem:
    """One matching problem, checked: shapes as in :func:`mct_fast.matching.match`, S always present."""

    model: FunctionalModel
    student: Student
    task: Task
    images: Tensor
    labels: Tensor
    syn_lr: Tensor
    start: Tensor
    target: Tensor
    batches: Tensor
    augment: AugmentPlan | None

    @property
    def num_students(self) -> int:
        return self.start.shape[0]

    @property
    def syn_steps(self) -> int:
        return self.batches.shape[1]

    def indices(self, step: int) -> Tensor:
        """Rows ``(S, b)`` of the synthetic set used at ``step``; a shorter batch is padded by -1 at its end."""
        rows = self.batches[:, step]
        return rows[:, : int((rows[0] >= 0).sum())]

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The augmented batch ``(S, b, C, H, W)`` of ``step`` and its labels."""
        rows = self.indices(step)
        x = images[rows]
        return (x if self.augment is None else self.augment.apply(step, x)), labels[rows]

    def to_pixels(self, step: int, grad_x: Tensor) -> Tensor:
        """Carries a gradient by the augmented batch back to the batch's pixels."""
        return grad_x if self.augment is None else self.augment.transpose(step, grad_x)

    def denominator(self) -> Tensor:
        """|start - target|^2 of each student, ``(S,)``."""
        return (self.start - self.target).square().sum(1)

    def terminal(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss ``(S,)`` at ``theta (S, P)`` and the gradient of its mean over students."""
        miss, denominator = theta - self.target, self.denominator()
        loss = miss.square().sum(1) / denominator
        return loss, miss * (2 / (denominator * self.num_students))[:, None]


class Adjoint(Protocol):
    """A strategy for the gradient of the matching loss."""

    def solve(self, problem: MatchingProblem) -> MatchResult: ...


@dataclass(frozen=True)
class Unrolled:
    """Exact, by PyTorch's double backward through all N steps, as MTT's reference does.

    Memory grows with N times the activations of a step (and their gradients); 9 convolution passes a step.
    The yardstick for the others.
    """

    def solve(self, problem: MatchingProblem) -> MatchResult:
        soft = problem.labels.is_floating_point()
        with torch.enable_grad():
            images = problem.images.detach().requires_grad_()
            labels = problem.labels.detach().requires_grad_(soft)
            syn_lr = problem.syn_lr.detach().requires_grad_()
            ends = [self._unroll(problem, s, images, labels, syn_lr) for s in range(problem.num_students)]
            final = torch.stack(ends)
            loss = (final - problem.target).square().sum(1) / problem.denominator()
            wanted = (images, syn_lr, labels) if soft else (images, syn_lr)
            found = torch.autograd.grad(loss.mean(), wanted, allow_unused=True, materialize_grads=True)
        return MatchResult(loss.detach(), found[0], found[1], found[2] if soft else None, final.detach())

    @staticmethod
    def _unroll(problem: MatchingProblem, s: int, images: Tensor, labels: Tensor, syn_lr: Tensor) -> Tensor:
        theta = problem.start[s].detach().requires_grad_()
        for step in range(problem.syn_steps):
            rows = problem.indices(step)[s]
            x = images[rows]
            if problem.augment is not None:
                x = problem.augment.draws[s][step].apply(x)
            loss = problem.task.loss(problem.model(theta, x), labels[rows])
            (g,) = torch.autograd.grad(loss, theta, create_graph=True)
            theta = theta - syn_lr * g
        return theta


@dataclass(frozen=True)
class Exact:
    """Exact, in memory constant in N: the adjoint recursion with each step recomputed.

    Keeps theta_0 ... theta_N (N * P numbers) and the activations of one step; 11 convolution passes a step.  The first
    steps' activations are kept instead of recomputed as far as they fit into ``keep_bytes``: 9 passes for those.
    """

    keep_bytes: int = 0

    def solve(self, problem: MatchingProblem) -> MatchResult:
        return _sweep(problem, carry_curvature=True, keep_bytes=self.keep_bytes)


@dataclass(frozen=True)
class Truncated:
    """Approximate: lambda_N stands for every lambda_i, the gradient of TESLA and of MCT's official code.

    The terms that reach a batch through later steps are dropped.  The references lose a factor 2 in the pixel gradient
    (they repeat a tuple); it is present here, so that at ``syn_steps=1`` all strategies agree.
    """

    def solve(self, problem: MatchingProblem) -> MatchResult:
        return _sweep(problem, carry_curvature=False, keep_bytes=0)


def _sweep(problem: MatchingProblem, *, carry_curvature: bool, keep_bytes: int) -> MatchResult:
    """Forward over the steps, then back over them."""
    student, alpha = problem.student, problem.syn_lr
    path = [problem.start]
    tapes: dict[int, Tape] = {}
    for step in range(problem.syn_steps):
        batch = problem.batch(step, problem.images, problem.labels)
        if keep_bytes > 0:
            _, g, tape = student.gradient_keeping(path[-1], *batch)
            if tape is not None and tape.nbytes <= keep_bytes:
                tapes[step] = tape
                keep_bytes -= tape.nbytes
            else:
                keep_bytes = 0
        else:
            _, g = student.gradient(path[-1], *batch)
        path.append(torch.add(path[-1], g, alpha=-float(alpha)))
    loss, costate = problem.terminal(path[-1])

    grad_images = torch.zeros_like(problem.images)
    grad_labels = torch.zeros_like(problem.labels) if problem.labels.is_floating_point() else None
    grad_lr = torch.zeros((), dtype=torch.float64, device=alpha.device)
    for step in reversed(range(problem.syn_steps)):
        batch = problem.batch(step, problem.images, problem.labels)
        tangent = student.gradient_tangent(path[step], costate, *batch, tape=tapes.pop(step, None))
        grad_lr -= tangent.loss_dot.double().sum()
        for rows, grad in _per_student(problem, step, tangent.grad_x_dot):
            grad_images.index_add_(0, rows, grad * -alpha)
        if grad_labels is not None and tangent.grad_y_dot is not None:
            for rows, grad in zip(problem.indices(step), tangent.grad_y_dot, strict=True):
                grad_labels.index_add_(0, rows, grad * -alpha)
        if carry_curvature:
            costate = torch.sub(costate, tangent.hvp, alpha=float(alpha))
    return MatchResult(loss, grad_images, grad_lr.to(alpha.dtype), grad_labels, path[-1])


def _per_student(problem: MatchingProblem, step: int, grad_x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    # Within one student's batch no row repeats, so adding student by student gives the same bits on every device.
    return zip(problem.indices(step), problem.to_pixels(step, grad_x), strict=True)


ADJOINTS: dict[str, Adjoint] = {"exact": Exact(), "unrolled": Unrolled(), "truncated": Truncated()}
