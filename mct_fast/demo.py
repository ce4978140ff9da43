"""The whole pipeline on real data in a few minutes: scikit-learn's handwritten digits, one synthetic image a class."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mct_fast.distill import distill
from mct_fast.experts import train_experts
from mct_fast.presets import preset
from mct_fast.run.folder import Run
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import DistillConfig, ExpertConfig
from mct_fast.view.report import write_report

# On the processor wherever it runs: it prints the same, and kernels for a GPU would take longer to compile.
EXPERTS = replace(preset("digits").experts, device="cpu")
DISTILL = replace(preset("digits").distill, device="cpu")


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: the final record of the run's metrics, the page, and the seconds of each stage."""

    final: dict[str, Any]
    page: Path
    expert_seconds: float
    distill_seconds: float


def run_demo(
    out: str | Path,
    *,
    experts: ExpertConfig = EXPERTS,
    config: DistillConfig = DISTILL,
    progress: Progress = quiet(),
) -> DemoResult:
    """Trains experts into ``out/experts``, distils into ``out/run`` and writes the page there.

    Work that an earlier, interrupted call finished is not done again.
    """
    out = Path(out)
    began = time.perf_counter()
    store = train_experts(experts, out / "experts", progress=progress)
    trained = time.perf_counter()
    distill(config, store, out=out / "run", resume=Run.holds_one(out / "run"), progress=progress)
    page = write_report(out / "run")
    done = time.perf_counter()
    final = next(r for r in reversed(Run.open(out / "run").metrics()) if r["kind"] == "final")
    return DemoResult(final, page, trained - began, done - trained)
