"""From a study's folder to one JSON document, whatever part of the study is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench.harness import Pieces
from bench.study.plans import Arm, Study
from bench.tables import note
from mct_fast.run.errors import InputError
from mct_fast.run.files import read_json
from mct_fast.run.folder import Run

SCHEMA = "mct_fast.study/1"
_ONCE = ("experts", "storage", "random", "paths", "step-sizes")
"""The pieces that a study has beside its runs."""
_WHERE = ("machine", "versions", "compiled_kernels", "commit", "dirty")


def pieces_of(study: Study, out: Path, say: Callable[[str], None] = note) -> Pieces:
    """The parts of a study that are done, in its folder."""
    return Pieces(out / "pieces", study.name, say)


def collect(study: Study, out: Path) -> dict[str, Any]:
    """The results so far: ``experts``, ``storage``, ``random``, ``paths``, ``step_sizes`` (None: not done), ``runs``, and
    where and when they were ``made``."""
    done = pieces_of(study, out).done()

    def found(name: str) -> Any:
        return done[name]["found"] if name in done else None

    runs = [_run(arm, seed, out / "runs" / f"{arm.name}-{seed}") for arm in study.arms for seed in study.seeds]
    begun = [run for run in runs if run is not None]
    complete = len(begun) == len(runs) and all(run["final"] is not None for run in begun)
    return {
        "schema": SCHEMA,
        "plan": read_json(out / "study.json"),
        "says": {arm.name: arm.says for arm in study.arms},
        "published": dict(study.published),
        "complete": complete and all(found(name) is not None for name in _ONCE),
        "experts": found("experts"),
        "storage": found("storage"),
        "random": found("random"),
        "paths": found("paths"),
        "step_sizes": found("step-sizes"),
        "runs": begun,
        "made": _made(done.values()),
    }


def _run(arm: Arm, seed: int, path: Path) -> dict[str, Any] | None:
    """A run's curve: what was found at each evaluation, and the seconds of distilling until then."""
    try:
        run = Run.open(path)
    except InputError:
        return None  # not begun
    seconds, losses, curve = [0.0], [], []
    skipped, final, syn_lr = 0, None, run.config["lr_teacher"]
    for record in run.metrics():
        if record["kind"] == "iter":
            seconds.append(record["seconds"])
            losses.append(record["loss"])
            skipped, syn_lr = record["skipped"], record["syn_lr"]
        elif record["kind"] == "eval":
            i = record["iteration"]
            recent = [loss for loss in losses[-50:] if loss is not None]
            curve.append(
                {
                    "iteration": i,
                    "seconds": sum(seconds[: i + 1]),
                    "loss": sum(recent) / len(recent) if recent else None,
                    "syn_lr": syn_lr,
                    "lr_net": record["lr"],
                    record["split"]: record["scores"],
                    **({"test": record["test"]["scores"]} if "test" in record else {}),
                }
            )
        else:
            final = {key: value for key, value in record.items() if key != "kind"}
    return {
        "arm": arm.name,
        "seed": seed,
        "iterations": len(losses),
        "skipped": skipped,
        "seconds_an_iteration": _undisturbed(seconds[1:]),
        "curve": curve,
        "final": final,
    }


def _undisturbed(seconds: Sequence[float]) -> float | None:
    """The 10th percentile: a study runs in the background, and most iterations share the machine with other work."""
    return quantiles(seconds, n=10)[0] if len(seconds) > 1 else None


def _made(pieces: Any) -> list[dict[str, Any]]:
    """Machine, versions and commit, once each, with the first and last date and the seconds spent there."""
    places: list[dict[str, Any]] = []
    for piece in sorted(pieces, key=lambda piece: piece["date"]):
        where: Mapping[str, Any] = {name: piece[name] for name in _WHERE}
        machine = {key: value for key, value in where["machine"].items() if key != "load_average"}
        entry = {**where, "machine": machine}
        known = next((p for p in places if all(p[k] == v for k, v in entry.items())), None)
        if known is None:
            places.append({**entry, "first": piece["date"], "last": piece["date"], "seconds": piece["seconds"]})
        else:
            known["last"] = piece["date"]
            known["seconds"] += piece["seconds"]
    return places
