"""What the commands print: rows of cells in aligned columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def store_rows(store: Any) -> list[tuple[str, str]]:
    """What a trajectory store holds."""
    from mct_fast.view.inspect import inspect_store, rows

    return rows(inspect_store(store, accuracy=False))


def written_rows(folder: Path, written: Any) -> list[tuple[str, str]]:
    """What ``compress --to-mtt`` wrote."""
    result = [("folder", str(folder)), ("files", f"{len(written.files)}, from {written.files[0].name} on")]
    if written.checkpoints:
        result.append(("experts", f"{written.checkpoints} with every checkpoint of SGD, bit for bit"))
    if written.convex:
        result.append(
            (
                "experts",
                f"{written.convex} as points of the convex path at whole epochs: the store keeps no checkpoints",
            )
        )
    return result


def run_rows(path: Path) -> list[tuple[str, ...]]:
    """How far a run is and what it found."""
    from mct_fast.run.files import reading
    from mct_fast.run.folder import Run

    with reading("run", path):
        return _run_rows(Run.open(path))


def _run_rows(run: Any) -> list[tuple[str, ...]]:
    from mct_fast.evaluate import baseline_text
    from mct_fast.run.folder import chosen_images
    from mct_fast.tasks import format_metric, metric_label

    path, records = run.path, run.metrics()
    done = max((r["iteration"] for r in records if r["kind"] == "iter"), default=0)
    rows = [
        ("run", str(path)),
        ("iterations", f"{done} of {run.config.get('iterations', '?')}"),
    ]
    skipped = max((r["skipped"] for r in records if r["kind"] == "iter"), default=0)
    if skipped:
        rows.append(("skipped", f"{skipped} iterations ({100 * skipped / done:.0f} %), which changed nothing"))
    for record in [r for r in records if r["kind"] == "eval"][-1:]:
        shown = format_metric(record.get("metric", "accuracy"), record["mean"], record["std"])
        rows.append((f"latest {record['split']}", f"{shown} at iteration {record['iteration']}"))
    for record in [r for r in records if r["kind"] == "final"][-1:]:
        networks = f"({record['num_eval']} networks, {chosen_images(record, run.config)})"
        metric = record.get("metric", "accuracy")
        label = "" if metric == "accuracy" else f"{metric_label(metric)} "
        rows.append(("test", f"{label}{format_metric(metric, record['test_mean'], record['test_std'])} {networks}"))
        random = baseline_text(record)
        if random is not None:
            rows.append(("random real", f"{label}{random}"))
        if record.get("nearest_real"):
            rows += [("rows", str(path / "distilled.csv")), *_privacy_rows(record["nearest_real"])]
    return rows


def _privacy_rows(nearest: Any) -> list[tuple[str, ...]]:
    from mct_fast.distilled.table import PRIVACY, nearest_text

    return [("nearest real row", nearest_text(nearest)), ("privacy", PRIVACY)]


def distilled_rows(distilled: Any) -> list[tuple[str, ...]]:
    """What a distilled set is and where it came from."""
    shape = " x ".join(str(size) for size in distilled.images.shape[1:])
    rows = [
        ("images", f"{len(distilled)} of {shape}"),
        ("classes", ", ".join(distilled.class_names)),
        ("step size", f"{distilled.syn_lr:.6g}"),
        ("transform", str(distilled.transform.state()[1].get("kind"))),
    ]
    rows += [(key, str(value)) for key, value in distilled.provenance.items() if key != "nearest_real"]
    nearest = distilled.provenance.get("nearest_real")
    return rows + (_privacy_rows(nearest) if nearest else [])


def preset_rows(known: Iterable[Any]) -> list[tuple[str, ...]]:
    """A line a preset, and one above them."""
    rows: list[tuple[str, ...]] = [
        ("preset", "N", "M", "starts", "lr_img", "lr_lr", "lr_teacher", "batch_syn", "zca", "waypoints")
    ]
    for preset in known:
        path, student, steps = preset.distill.path, preset.distill.student, preset.distill.optimizer
        given = preset.experts.path.waypoints
        waypoints = str(given) if isinstance(given, int) else ",".join(map(str, given))
        numbers = (
            student.syn_steps,
            f"{path.expert_epochs:g}",
            f"{path.min_start_epoch:g}-{path.max_start_epoch:g}",
            f"{steps.lr_img:g}",
            f"{steps.lr_lr:g}",
            f"{student.lr_teacher:g}",
            student.batch_syn or "all",
            "yes" if preset.experts.data.zca else "no",
            "-" if path.trajectory == "discrete" else waypoints,
        )
        rows.append((preset.name, *map(str, numbers)))
    return rows


def percent(mean: float, std: float) -> str:
    """A share as people read it."""
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    """Rows of cells in aligned columns."""
    rows = list(rows)
    columns = max(len(row) for row in rows)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]))
