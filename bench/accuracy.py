"""How exact the fast path is: errors of the image gradient in float32, ours and PyTorch's, against float64."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Line:
    """Relative errors of the image gradient, one a seed, and the ratio of their medians."""

    setting: Setting
    ours: tuple[float, ...]
    pytorch: tuple[float, ...]
    ratio: float
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
    for seed in range(setting.seed, setting.seed + seeds):
        problem = build(replace(setting, seed=seed, dtype="float32"))
        # Plain PyTorch in float64: independent of the kernels, memory constant in the number of steps.
        oracle = judge(build(replace(setting, seed=seed, dtype="float64"))).grad_images
        batches = problem.batches()
        plan = problem.augmentation(batches)
        batches = batches.to(problem.images.device)
        for adjoint, errors in (("exact", ours), ("unrolled", pytorch)):
            found = Matcher(problem.model, adjoint=adjoint)(
                problem.images, problem.labels, problem.syn_lr, problem.start, problem.target, batches, augment=plan
            )
            errors.append(relative(found.grad_images, oracle))
    ratio = statistics.median(ours) / statistics.median(pytorch)
    return Line(setting, tuple(ours), tuple(pytorch), ratio, ratio <= LIMIT)


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
            f"{line.ratio:.2f}" if line.passed else f"[bold red]{line.ratio:.2f}[/bold red]",
        ]
        for line in lines
    ]
    columns = ("problem", "steps", "ours, median", "worst", "PyTorch, median", "worst", "ratio")
    caption = f"PyTorch: double backward in float32; the ratio of medians may be at most {LIMIT:g}"
    return tables.table("relative error of the image gradient against float64", columns, rows, caption)
