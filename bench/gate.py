"""The gate before the race: nobody with another result is timed.

The judge is plain PyTorch in float64.  A float32 result may be as far from it as rounding brings PyTorch itself: over many
steps ReLUs whose inputs lie within rounding of zero switch (:mod:`bench.accuracy`), and that moves everybody's gradient.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.contestants import Contestant, Outcome

LOSS_LIMIT = (5e-4, 2e-2)
GRADIENT_LIMIT = (1e-3, 5e-2)
"""Relative: an error below the first always passes, one above the second never; between them up to :data:`FACTOR` times
PyTorch's own error on the same problem.  A truncated gradient is off by 0.1 and more."""

FACTOR = 3.0

YARDSTICKS = ("mtt", "unrolled", "torch_func")
"""Contestants in plain eager PyTorch; the median of their errors is PyTorch's own, so that one of them may be wrong."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of an outcome against float64."""

    loss: float
    images: float
    lr: float

    @property
    def gradients(self) -> float:
        return max(self.images, self.lr)


@dataclass(frozen=True)
class Limits:
    """The largest errors that pass."""

    loss: float
    gradients: float


@dataclass(frozen=True)
class Agreement:
    """How far a contestant's first iteration is from float64.

    A truncated contestant's gradients are compared with the truncated ones, its pixel gradient after the known factor that
    its code loses; ``cosine`` and ``length`` say how its pixel gradient, as it is, stands to the exact one.
    """

    name: str
    gradient: str
    errors: Errors
    cosine: float
    length: float
    passed: bool


def agreements(
    contestants: Mapping[str, Contestant], outcomes: Mapping[str, Outcome], exact: Outcome, truncated: Outcome | None
) -> tuple[list[Agreement], Limits]:
    """Compares all outcomes with the float64 ones."""
    errors = {}
    for name, found in outcomes.items():
        wanted = truncated if contestants[name].gradient == "truncated" else exact
        assert wanted is not None
        errors[name] = Errors(
            relative(found.loss, exact.loss),
            relative(found.grad_images / contestants[name].scale, wanted.grad_images),
            relative(found.grad_lr, wanted.grad_lr),
        )
    limits = limits_of(errors)
    found_all = [
        Agreement(
            name,
            contestants[name].gradient,
            errors[name],
            _cosine(outcomes[name].grad_images, exact.grad_images),
            float(outcomes[name].grad_images.double().norm().cpu() / exact.grad_images.double().norm().cpu()),
            errors[name].loss <= limits.loss and errors[name].gradients <= limits.gradients,
        )
        for name in outcomes
    ]
    return found_all, limits


def limits_of(errors: Mapping[str, Errors]) -> Limits:
    """What passes, from the errors of the contestants in plain PyTorch."""
    plain = [errors[name] for name in YARDSTICKS if name in errors]

    def limit(own: list[float], bounds: tuple[float, float]) -> float:
        return min(max(FACTOR * statistics.median(own or [0.0]), bounds[0]), bounds[1])

    return Limits(limit([e.loss for e in plain], LOSS_LIMIT), limit([e.gradients for e in plain], GRADIENT_LIMIT))


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, infinite for anything that is not finite."""
    found, wanted = found.detach().double().cpu().flatten(), wanted.detach().double().cpu().flatten()
    error = float((found - wanted).norm() / wanted.norm())
    return error if math.isfinite(error) else math.inf


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().cpu().flatten(), b.double().cpu().flatten()
    return float(a @ b / (a.norm() * b.norm()))
