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

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data.augment import AugmentPlan
from mct_fast.matching.problem import MatchingProblem, StudentGradients
from mct_fast.students import PlaneStudent, Tape


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
        rows = [self._solve_one(problem, s, soft=soft) for s in range(problem.num_students)]
        loss, images, lr, labels, final = zip(*rows, strict=True)
        return StudentGradients(
            torch.stack(loss),
            torch.stack(images),
            torch.stack(lr).double(),
            torch.stack(labels) if soft else None,
            torch.stack(final),
        )

    def _solve_one(self, problem: MatchingProblem, s: int, *, soft: bool) -> tuple[Tensor, ...]:
        begin = (problem.sets.first + s) // problem.sets.students * problem.num_images if problem.sets.count > 1 else 0
        own = slice(begin, begin + problem.num_images)
        with torch.enable_grad():
            images = problem.images[own].detach().requires_grad_()
            labels = problem.labels[own].detach().requires_grad_(soft)
            syn_lr = problem.alpha[s].detach().requires_grad_()
            final = self._unroll(problem, s, images, labels, syn_lr)
            loss = problem.terminal.loss(problem, s, final, problem.theta[s])
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
    kept instead of recomputed for as many steps as fit into ``keep_bytes``: 9 passes for those.  The bits are the same.
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
    student, alpha = problem.student, problem.alpha
    noise = isinstance(problem.augment, AugmentPlan) and problem.augment.noise
    if isinstance(student, PlaneStudent) and student.takes(problem.images) and not noise:
        from mct_fast.matching.plane_sweep import sweep  # imports Triton

        engine = student.engine(problem.images.device)
        return sweep(problem, engine, carry_curvature=carry_curvature, keep_bytes=keep_bytes)
    minus_alpha = -alpha[:, None]
    path = [problem.theta]
    tapes: dict[int, Tape] = {}
    for step in range(problem.syn_steps):
        batch = problem.batch(step, problem.images, problem.labels)
        if keep_bytes > 0:
            _, g, tape = student.gradient_keeping(path[-1], *batch)
            keep_bytes -= keep_bytes if tape is None else tape.nbytes
            if tape is not None and keep_bytes >= 0:
                tapes[step] = tape
        else:
            _, g = student.gradient(path[-1], *batch)
        path.append(torch.addcmul(path[-1], g, minus_alpha))
    loss, costate = problem.terminal.value(problem, path[-1], problem.theta)

    labels = problem.labels
    grad_images, grad_labels = problem.zeros(problem.num_students)
    grad_lr = torch.zeros(problem.num_students, dtype=torch.float64, device=alpha.device)
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


def _add_rows(total: Tensor, rows: Tensor, grad: Tensor, alpha: Tensor) -> None:
    """total[s][rows[s]] -= alpha[s] * grad[s]; no row twice in a batch, so every device adds in one order."""
    for into, at, values, step_size in zip(total, rows, grad, alpha, strict=True):
        into.index_add_(0, at, values * -step_size)


KEEP_BYTES = 448 << 20
"""Activations that a strategy asked for by name keeps; their time is a fifth of a match's, their bytes are bounded."""

ADJOINTS: dict[str, Adjoint] = {
    "exact": Exact(KEEP_BYTES),
    "unrolled": Unrolled(),
    "truncated": Truncated(KEEP_BYTES),
}
