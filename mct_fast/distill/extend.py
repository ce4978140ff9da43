"""A run that goes on to another number of iterations, as if it had been begun with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mct_fast.distilled import DistilledDataset
from mct_fast.run.errors import InputError
from mct_fast.run.files import reading
from mct_fast.run.folder import EVALUATIONS, Run
from mct_fast.settings import DistillConfig


def change_iterations(run: Run, config: DistillConfig) -> None:
    """Makes ``run``, which this process holds, one of ``config.optimizer.iterations``.

    What only its end called for is taken back: the final record, and an evaluation that was not due otherwise.  The
    configuration is written last; killed before that, the run has its old end, and comes to it again.

    Raises:
        InputError: it has done more iterations, its settings depend on their number, or an earlier release ended it.
    """
    wanted, was = config.optimizer.iterations, run.config.get("iterations")
    if config.flat().get("cosine"):
        raise InputError(
            f"iterations: the step sizes of {run.path} fall along a cosine over its {was} iterations; "
            f"begin a new run for {wanted}"
        )
    saved = run.checkpoint()
    if saved is not None:
        with reading("resume", run.path):
            _take_back(run, *saved[:2], every=config.evaluation.eval_it, wanted=wanted)
    if (run.path / "first").is_dir():
        first = DistilledDataset.load(run.path / "first")
        noted = {**first.provenance.get("config", {}), "iterations": wanted}
        run.keep_first(replace(first, provenance={**first.provenance, "config": noted}))
    # Of images that are not the run's any more.
    if (run.path / EVALUATIONS).is_file():
        (run.path / EVALUATIONS).replace(run.path / f"{Path(EVALUATIONS).stem}-{was}.json")
    run.change(iterations=wanted)


def _take_back(run: Run, tensors: dict[str, Tensor], state: dict[str, Any], *, every: int, wanted: int) -> None:
    """Brings the checkpoint and the records to where the last iteration ended and nothing else."""
    done = state["iteration"]
    if wanted < done:
        raise InputError(
            f"iterations: {wanted} are fewer than the {done} that {run.path} has done; give at least {done}"
        )
    scheduled = every > 0 and done % every == 0
    if not scheduled and state["evaluated"] == done:
        if "earlier" in state:
            state["best"] = state.pop("earlier")
            for name in ("images", "labels"):
                tensors[f"best_{name}"] = tensors.pop(f"earlier_{name}")
        elif state["best"]["iteration"] == done:
            raise InputError(
                f"iterations: {run.path} was finished by an earlier release, which kept only the images of its end as the "
                "best; begin a new run"
            )
        state["evaluated"] = done - done % every if every else -1
    due = scheduled and state["evaluated"] == done
    records = run.metrics()
    kept = sum(r.get("kind") == "iter" and r["iteration"] <= done for r in records)
    kept += sum(r.get("kind") == "eval" and (r["iteration"] < done or due) for r in records if r["iteration"] <= done)
    run.go_back(tensors, state, kept)
