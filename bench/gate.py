"""The gate before the race: nobody with another result is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.contestants import Contestant, Outcome

LOSS_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 5e-3
"""Relative, for float32.  Rounding alone makes 1e-6, but a ReLU whose input lies within rounding of zero may switch, and each
one that does moves the gradient by up to 3e-3 (:mod:`bench.accuracy`); a truncated gradient is off by 0.1 and more."""


@dataclass(frozen=True)
class Agreement:
    """How far a contestant's first iteration is from the judge's.

    ``loss``, ``images``, ``lr`` are relative errors; a truncated contestant's pixel gradient is judged by the truncated
    gradient, and ``cosine`` and ``length`` say how it stands to the exact one.
    """

    name: str
    judge: str
    loss: float
    images: float
    lr: float
    cosine: float
    length: float
    passed: bool


def agreement(
    contestant: Contestant, found: Outcome, judge: str, exact: Outcome, truncated: Outcome | None
) -> Agreement:
    """Compares ``found`` with the exact outcome, and a truncated contestant's gradients with the truncated one."""
    wanted = truncated if contestant.gradient == "truncated" and truncated is not None else exact
    loss = relative(found.loss, exact.loss)
    images = relative(found.grad_images / contestant.scale, wanted.grad_images)
    lr = relative(found.grad_lr, wanted.grad_lr)
    errors = (loss <= LOSS_TOLERANCE, images <= GRADIENT_TOLERANCE, lr <= GRADIENT_TOLERANCE)
    return Agreement(
        contestant.name,
        judge if wanted is exact else "truncated gradient",
        loss,
        images,
        lr,
        _cosine(found.grad_images, exact.grad_images),
        float(found.grad_images.double().norm() / exact.grad_images.double().norm()),
        all(errors),
    )


def pick_judge(outcomes: Mapping[str, Outcome]) -> str:
    """Whose word counts: the reference itself, else PyTorch's double backward, else torch.func."""
    return next(name for name in ("mtt", "unrolled", "torch_func") if name in outcomes)


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, infinite for anything that is not finite."""
    found, wanted = found.detach().double().cpu().flatten(), wanted.detach().double().cpu().flatten()
    error = float((found - wanted).norm() / wanted.norm())
    return error if math.isfinite(error) else math.inf


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().cpu().flatten(), b.double().cpu().flatten()
    return float(a @ b / (a.norm() * b.norm()))
