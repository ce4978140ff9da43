"""How exact the fast path is: errors of the image gradient in float32, ours and PyTorch's, against float64.

The gradient of a ReLU network jumps where an input of a ReLU crosses zero.  In float32 one that lies within rounding of
zero may come out on the other side: then the gradient differs by about 1e-3 from float64's, whoever computes it, and by
1e-6 otherwise.  Which problem is hit is luck, so lines compare problems that nobody was hit on, and count the others; where
every problem is hit (many steps of a wide network) they compare root mean squares over all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench import tables
from bench.contestants import judge
from bench.gate import relative
from bench.problem import Setting, build
from mct_fast.matching import Matcher

LIMIT = 3.0
"""Our error may be this many times that of PyTorch's double backward on the same problems."""


SWITCHED = 5e-5
"""An error above this is a ReLU on the other side."""


@dataclass(frozen=True)
class Line:
    """Relative errors of the image gradient, one a seed, and their ratio, over the seeds that it is ``based_on``."""

    setting: Setting
    ours: tuple[float, ...]
    pytorch: tuple[float, ...]
    ratio: float
    based_on: str
    passed: bool


def compare(setting: Setting, steps: Sequence[int], seeds: int) -> list[Line]:
    """Random and trained weights, each number of ``steps``; ``seeds`` problems a line."""
    return [
        _line(replace(setting, syn_steps=count, weights=weights), seeds)
        for weights in ("random", "trained")
        for count in steps
    ]


def _line(setting: Setting, seeds: int) -> Line:
    ours, pytorch = [], []
    tables.note(f"accuracy: {setting.weights} weights, {setting.syn_steps} steps")
    for seed in range(setting.seed, setting.seed + seeds):
        problem = build(replace(setting, seed=seed, dtype="float32"))
        # Plain PyTorch in float64: independent of the kernels, memory constant in the number of steps.
        oracle = judge(problem.to("float64")).grad_images
        batches = problem.batches()
        plan = problem.augmentation(batches)
        batches = batches.to(problem.images.device)
        for adjoint, errors in (("exact", ours), ("unrolled", pytorch)):
            found = Matcher(problem.model, adjoint=adjoint)(
                problem.images, problem.labels, problem.syn_lr, problem.start, problem.target, batches, augment=plan
            )
            errors.append(relative(found.grad_images, oracle))
    ratio, based_on = ratio_of(ours, pytorch)
    return Line(setting, tuple(ours), tuple(pytorch), ratio, based_on, ratio <= LIMIT)


def ratio_of(ours: Sequence[float], pytorch: Sequence[float]) -> tuple[float, str]:
    """Our error over PyTorch's, and what it is based on; see the module's documentation."""
    smooth = [pair for pair in zip(ours, pytorch, strict=True) if max(pair) < SWITCHED]
    if smooth:
        own, theirs = zip(*smooth, strict=True)
        return statistics.median(own) / statistics.median(theirs), f"medians of {len(smooth)} of {len(ours)}"
    return math.hypot(*ours) / math.hypot(*pytorch), f"rms of all {len(ours)}"


def shown(lines: Sequence[Line]) -> Any:
    """The lines as a table."""
    rows = [
        [
            f"{line.setting.weights} weights, IPC {line.setting.ipc}",
            str(line.setting.syn_steps),
            f"{statistics.median(line.ours):.1e}",
            f"{max(line.ours):.1e}",
            f"{statistics.median(line.pytorch):.1e}",
            f"{max(line.pytorch):.1e}",
            f"{sum(e >= SWITCHED for e in line.ours)} / {sum(e >= SWITCHED for e in line.pytorch)}",
            f"{line.ratio:.2f}" if line.passed else f"[bold red]{line.ratio:.2f}[/bold red]",
            line.based_on,
        ]
        for line in lines
    ]
    columns = ("problem", "steps", "ours", "worst", "PyTorch", "worst", "switched", "ratio", "ratio of")
    caption = (
        f"PyTorch: double backward in float32. Switched: problems where a ReLU within rounding of zero came out on the "
        f"other side (ours / PyTorch), by luck. The ratio may be at most {LIMIT:g}"
    )
    return tables.table("relative error of the image gradient against float64", columns, rows, caption)
