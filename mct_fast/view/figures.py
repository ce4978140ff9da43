"""Curves of a run, for its page and as a file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mct_fast.run.files import atomic_write
from mct_fast.run.folder import Run
from mct_fast.tasks import metric_label, metric_scale

Records: TypeAlias = Sequence[Mapping[str, Any]]


def metric_of(records: Records) -> str:
    """What the networks of ``records`` were scored by."""
    return next((str(record["metric"]) for record in reversed(records) if "metric" in record), "accuracy")


@dataclass(frozen=True)
class _Ink:
    """Colours of a figure. The page's are readable on a light and on a dark ground; a file's ground is white."""

    text: str
    grid: str
    ground: str | None
    line: str = "#2f7fd6"
    other: str = "#e07b1f"


Draw: TypeAlias = Callable[[Axes, Records, _Ink], None]
_ON_PAGE = _Ink(text="#808894", grid="#80889440", ground=None)
_ON_WHITE = _Ink(text="#333333", grid="#dddddd", ground="white")


def draw_loss(axis: Axes, records: Records, ink: _Ink) -> None:
    """The loss at each iteration: of the match, or on real data."""
    points = [(r["iteration"], r["loss"]) for r in records if r.get("kind") == "iter" and r.get("loss") is not None]
    _prepare(axis, "loss", ink)
    if not points:
        return
    iterations, losses = zip(*points, strict=True)
    window = max(1, len(points) // 50)
    axis.plot(iterations, losses, color=ink.line, alpha=0.35 if window > 1 else 1.0, linewidth=0.8)
    if window > 1:
        smooth = [median(losses[max(0, i - window + 1) : i + 1]) for i in range(len(losses))]
        axis.plot(iterations, smooth, color=ink.line, linewidth=1.8, label=f"median of {window}")
        _legend(axis, ink)
    # An outlier must not flatten the curve.
    axis.set_ylim(0, 1.25 * sorted(losses)[int(0.95 * (len(losses) - 1))])


def draw_step_size(axis: Axes, records: Records, ink: _Ink) -> None:
    """The learned step size at each iteration."""
    points = [(r["iteration"], _number(r["syn_lr"])) for r in records if r.get("kind") == "iter"]
    _prepare(axis, "step size of the student", ink)
    if points:
        axis.plot(*zip(*points, strict=True), color=ink.line, linewidth=1.5)


def draw_score(axis: Axes, records: Records, ink: _Ink) -> None:
    """What networks scored at each evaluation."""
    evaluations = [r for r in records if r.get("kind") == "eval"]
    finals = [r for r in records if r.get("kind") == "final"]
    metric = metric_of([*evaluations, *finals])
    scale, unit = metric_scale(metric)
    _prepare(axis, f"{metric_label(metric)}{unit and f', {unit}'}", ink)
    if evaluations:
        iterations = [r["iteration"] for r in evaluations]
        means, spreads = ([scale * _number(r[name]) for r in evaluations] for name in ("mean", "std"))
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        label = "validation" if evaluations[-1]["split"] == "val" else evaluations[-1]["split"]
        axis.plot(iterations, means, color=ink.line, linewidth=1.5, marker="o", markersize=3, label=label)
        axis.fill_between(iterations, low, high, color=ink.line, alpha=0.2, linewidth=0)
    if finals:
        final = finals[-1]
        axis.errorbar(
            [final["iteration"]],
            [scale * _number(final["test_mean"])],
            [scale * _number(final["test_std"])],
            color=ink.other,
            marker="D",
            markersize=5,
            capsize=3,
            label="test, of the best",
        )
        if final.get("random_real_mean") is not None:
            random = scale * final["random_real_mean"]
            axis.axhline(random, color=ink.text, linestyle="--", linewidth=1, label="random real, test")
    if evaluations or finals:
        _legend(axis, ink)


_LINES = ("#2f7fd6", "#e07b1f", "#3a9e5c", "#b04fc4", "#c94a4a", "#8a7f2b", "#4bb3b3", "#808894")


def inline_scores(runs: Sequence[tuple[str, Records]]) -> str:
    """What networks scored at each evaluation, a line a run, for the page."""
    figure = Figure(figsize=(8.4, 3.6))
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    metric = metric_of([record for _, records in runs for record in records if record.get("kind") == "eval"])
    scale, unit = metric_scale(metric)
    _prepare(axis, f"{metric_label(metric)}{unit and f', {unit}'}", _ON_PAGE)
    for number, (name, records) in enumerate(runs):
        evaluations = [r for r in records if r.get("kind") == "eval"]
        points = [r["iteration"] for r in evaluations], [scale * _number(r["mean"]) for r in evaluations]
        colour, style = _LINES[number % len(_LINES)], ("-", "--", ":")[number // len(_LINES) % 3]
        shown = name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"
        axis.plot(*points, color=colour, linestyle=style, linewidth=1.5, label=shown.replace("$", r"\$"))
    _legend(axis, _ON_PAGE)
    figure.tight_layout()
    return data_uri(png(figure))


_LETTERS = 40  # of a run's name in a legend


def _number(value: float | None) -> float:
    """NaN, of which a record has null, is not drawn."""
    return math.nan if value is None else value


def _prepare(axis: Axes, title: str, ink: _Ink) -> None:
    axis.set_title(title, color=ink.text, fontsize=11, loc="left")
    axis.set_xlabel("iteration", color=ink.text, fontsize=9)
    axis.tick_params(colors=ink.text, labelsize=9)
    axis.grid(color=ink.grid, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink.text)
    axis.patch.set_alpha(0)


def _legend(axis: Axes, ink: _Ink) -> None:
    axis.legend(fontsize=8, frameon=False, labelcolor=ink.text, loc="best")


def inline(draw: Draw, records: Records) -> str:
    """A figure for the page, as the text of its address."""
    figure = Figure(figsize=(4.2, 2.9))
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    draw(figure.subplots(), records, _ON_PAGE)
    figure.tight_layout()
    return data_uri(png(figure))


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG."""
    buffer = io.BytesIO()
    # No date and no version in the file: the same run gives the same picture.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _save(figure: Figure, path: str | Path) -> Path:
    def write(temporary: Path) -> None:
        temporary.write_bytes(png(figure))

    atomic_write(path, write)
    return Path(path)


def data_uri(content: bytes) -> str:
    """The PNG ``content`` as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def write_curves(run: Run, path: str | Path) -> Path:
    """Writes a PNG of the loss, the task's metric and the step size over the iterations; returns ``path``."""
    records = run.metrics()
    figure = Figure(figsize=(15, 4), facecolor="white")
    FigureCanvasAgg(figure)
    loss, score, step_size = figure.subplots(1, 3)
    draw_loss(loss, records, _ON_WHITE)
    draw_score(score, records, _ON_WHITE)
    draw_step_size(step_size, records, _ON_WHITE)
    figure.tight_layout()
    return _save(figure, path)
