"""The gate before the race: nobody with another result is timed.

The judge is plain PyTorch in float64.  A float32 result may be as far from it as rounding brings PyTorch itself.  Over many
steps ReLUs whose inputs lie within rounding of zero switch (:mod:`bench.accuracy`), which moves anybody's gradient by a
percent or two, and whose it moves is luck.  So a long race is judged twice: its first :data:`FIRST_STEPS` steps closely, all
of them within what switching does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bench.contestants import Contestant, Outcome

LOSS_LIMIT = (5e-4, 2e-2)
GRADIENT_LIMIT = (5e-3, 5e-2)
"""Relative: an error below the first always passes, one above the second never; between them up to :data:`FACTOR` times
PyTorch's own error on the same problem, or, where the first steps have passed so, all.  A truncated gradient is off by 0.1
and more."""

FIRST_STEPS = 2
"""Steps of the close look at a longer race."""

FACTOR = 3.0

YARDSTICKS = ("mtt", "unrolled", "torch_func")
"""Contestants in plain eager PyTorch; the (lower) median of their errors is PyTorch's own, so that one of them may be wrong."""


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


@dataclass(frozen=True)
class Verdict:
    """All contestants over the same steps: closely over up to :data:`FIRST_STEPS`, else within what switched ReLUs do."""

    steps: int
    agreements: tuple[Agreement, ...]
    limits: Limits

    @property
    def failed(self) -> tuple[str, ...]:
        """Who has another result."""
        return tuple(a.name for a in self.agreements if not a.passed)


def verdict(
    steps: int,
    contestants: Mapping[str, Contestant],
    outcomes: Mapping[str, Outcome],
    exact: Outcome,
    truncated: Outcome | None,
) -> Verdict:
    """Compares all outcomes after ``steps`` with the float64 ones."""
    errors = {}
    for name, outcome in outcomes.items():
        wanted = truncated if contestants[name].gradient == "truncated" else exact
        assert wanted is not None
        errors[name] = Errors(
            relative(outcome.loss, exact.loss),
            relative(outcome.grad_images / contestants[name].scale, wanted.grad_images),
            relative(outcome.grad_lr, wanted.grad_lr),
        )
    limits = limits_of(errors) if steps <= FIRST_STEPS else Limits(LOSS_LIMIT[1], GRADIENT_LIMIT[1])
    found = tuple(
        Agreement(
            name,
            contestants[name].gradient,
            errors[name],
            _cosine(outcomes[name].grad_images, exact.grad_images),
            float(outcomes[name].grad_images.double().norm().cpu() / exact.grad_images.double().norm().cpu()),
            errors[name].loss <= limits.loss and errors[name].gradients <= limits.gradients,
        )
        for name in outcomes
    )
    return Verdict(steps, found, limits)


def limits_of(errors: Mapping[str, Errors]) -> Limits:
    """What passes, from the errors of the contestants in plain PyTorch."""
    plain = [errors[name] for name in YARDSTICKS if name in errors]

    def limit(own: list[float], bounds: tuple[float, float]) -> float:
        return min(max(FACTOR * statistics.median_low(own or [0.0]), bounds[0]), bounds[1])

    return Limits(limit([e.loss for e in plain], LOSS_LIMIT), limit([e.gradients for e in plain], GRADIENT_LIMIT))


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, infinite for anything that is not finite."""
    found, wanted = found.detach().double().cpu().flatten(), wanted.detach().double().cpu().flatten()
    error = float((found - wanted).norm() / wanted.norm())
    return error if math.isfinite(error) else math.inf


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double().cpu().flatten(), b.double().cpu().flatten()
    return float(a @ b / (a.norm() * b.norm()))
