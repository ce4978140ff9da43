"""What a run looks like: a picture of the images, curves, and one HTML page that needs nothing but itself.

Everything is read from the run's folder; a run that is still going, or was killed, gives a page too.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mct_fast.data import TableTransform
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import PRIVACY, nearest_text, table_frame
from mct_fast.evaluate import baseline_text
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, reading
from mct_fast.run.folder import Run, chosen_images
from mct_fast.run.progress import duration
from mct_fast.tasks import format_metric, metric_label, metric_scale, metric_title
from mct_fast.trajectory import TrajectoryStore

PAGE, CURVES, IMAGES, TABLE, DISTILLED = "report.html", "curves.png", "images.png", "distilled.csv", "distilled"
_MTT_CHECKPOINTS = 51  # what MTT's buffer.py keeps of an expert: 50 epochs and the beginning
_SHOWN_ROWS = 100  # rows of a table on the page
_SHOWN_A_CLASS = 50  # images of a class on the page; a distilled set can hold thousands


@dataclass(frozen=True)
class _Ink:
    """Colours of a figure. The page's are readable on a light and on a dark ground; a file's ground is white."""

    text: str
    grid: str
    ground: str | None
    line: str = "#2f7fd6"
    other: str = "#e07b1f"


_ON_PAGE = _Ink(text="#808894", grid="#80889440", ground=None)
_ON_WHITE = _Ink(text="#333333", grid="#dddddd", ground="white")


def write_report(path: str | Path) -> Path:
    """Writes ``report.html``, ``curves.png`` and ``images.png`` into the run's folder ``path``; returns the page's path.

    A table's rows are written to ``distilled.csv`` in place of ``images.png``.

    Raises:
        InputError: ``path`` holds no run, or a part of it is damaged.
    """
    run = Run.open(path)
    with reading("run", run.path):
        facts = _Facts.of(run)
        write_curves(run, run.path / CURVES)
        if facts.distilled is not None:
            _write_preview(facts.distilled, run.path)
        page = _page(facts)
    atomic_write(run.path / PAGE, lambda temporary: _write_text(temporary, page))
    return run.path / PAGE


def _write_preview(distilled: DistilledDataset, folder: Path) -> None:
    if isinstance(distilled.transform, TableTransform):
        distilled.to_csv(folder / TABLE)
    else:
        write_images(distilled, folder / IMAGES)


_COLUMNS = 10
"""Images side by side in the PNG."""


def write_images(distilled: DistilledDataset, path: str | Path) -> Path:
    """Writes a PNG of all images, transform undone, under their class names; returns ``path``.

    One image a class: a picture and its name each. More: each class begins a row of its own.
    """
    pixels, classes = distilled.pixels(), _classes(distilled)
    single = len(pixels) == distilled.num_classes
    order = torch.argsort(classes, stable=True)
    groups = (order,) if single else order.split(torch.bincount(classes).tolist())
    lines = [line for group in groups if len(group) for line in group.split(_COLUMNS)]
    rows, columns = len(lines), max(len(line) for line in lines)
    figure = Figure(figsize=(1.1 * columns, 1.4 * rows), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flatten():
        axis.set_axis_off()
    for line, beside in zip(lines, axes, strict=True):
        for position, (index, axis) in enumerate(zip(line.tolist(), beside, strict=False)):
            image = pixels[index].permute(1, 2, 0).numpy()
            gray = image.shape[2] == 1
            axis.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=1)
            if single or position == 0:
                name = _short(distilled.class_names[int(classes[index])])
                axis.set_title(name, fontsize=9, color=_ON_WHITE.text, parse_math=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.08, hspace=0.32)
    return _save(figure, path, trim=True)


_LETTERS = 30  # of a name in a picture


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"


def write_curves(run: Run, path: str | Path) -> Path:
    """Writes a PNG of the loss, the task's metric and the step size over the iterations; returns ``path``."""
    records = run.metrics()
    figure = Figure(figsize=(15, 4), facecolor="white")
    FigureCanvasAgg(figure)
    loss, score, step_size = figure.subplots(1, 3)
    _draw_loss(loss, records, _ON_WHITE)
    _draw_score(score, records, _ON_WHITE)
    _draw_step_size(step_size, records, _ON_WHITE)
    figure.tight_layout()
    return _save(figure, path)


@dataclass(frozen=True)
class _Facts:
    """A run, read once."""

    run: Run
    records: list[dict[str, Any]]
    distilled: DistilledDataset | None
    store: TrajectoryStore | None
    evaluations: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Run) -> _Facts:
        folder = run.path / DISTILLED
        distilled = DistilledDataset.load(folder) if folder.is_dir() else None
        return cls(run, run.metrics(), distilled, _store(run), run.evaluations())

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("kind") == kind]

    @property
    def noun(self) -> str:
        """What the set holds, in the plural."""
        is_table = self.distilled is not None and isinstance(self.distilled.transform, TableTransform)
        return "rows" if is_table else "images"

    @property
    def metric(self) -> str:
        """What the networks were scored by."""
        return _metric([*self.of_kind("eval"), *self.of_kind("final")])

    @property
    def final(self) -> dict[str, Any] | None:
        return next(iter(self.of_kind("final")[-1:]), None)


def _metric(records: Sequence[Mapping[str, Any]]) -> str:
    return next((str(record["metric"]) for record in reversed(records) if "metric" in record), "accuracy")


def _store(run: Run) -> TrajectoryStore | None:
    place = run.config.get("trajectories")
    if not isinstance(place, str):
        return None
    try:
        return TrajectoryStore.open(place)
    except InputError:
        return None  # moved or deleted since; the run stands without it


# Figures


def _draw_loss(axis: Axes, records: Sequence[Mapping[str, Any]], ink: _Ink) -> None:
    points = [(r["iteration"], r["loss"]) for r in records if r.get("kind") == "iter" and r.get("loss") is not None]
    _prepare(axis, "matching loss", ink)
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


def _draw_step_size(axis: Axes, records: Sequence[Mapping[str, Any]], ink: _Ink) -> None:
    points = [(r["iteration"], _number(r["syn_lr"])) for r in records if r.get("kind") == "iter"]
    _prepare(axis, "step size of the student", ink)
    if points:
        axis.plot(*zip(*points, strict=True), color=ink.line, linewidth=1.5)


def _draw_score(axis: Axes, records: Sequence[Mapping[str, Any]], ink: _Ink) -> None:
    evaluations = [r for r in records if r.get("kind") == "eval"]
    finals = [r for r in records if r.get("kind") == "final"]
    metric = _metric([*evaluations, *finals])
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


def _figure(draw: Any, records: Sequence[Mapping[str, Any]]) -> str:
    figure = Figure(figsize=(4.2, 2.9))
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    draw(figure.subplots(), records, _ON_PAGE)
    figure.tight_layout()
    return _data_uri(_png(figure))


def _png(figure: Figure, *, trim: bool = False) -> bytes:
    buffer = io.BytesIO()
    # No date and no version in the file: the same run gives the same picture.
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight" if trim else None, metadata={"Software": None})
    return buffer.getvalue()


def _save(figure: Figure, path: str | Path, *, trim: bool = False) -> Path:
    def write(temporary: Path) -> None:
        temporary.write_bytes(_png(figure, trim=trim))

    atomic_write(path, write)
    return Path(path)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


# The page


def _page(facts: _Facts) -> str:
    config = facts.run.config
    name = str(config.get("dataset", "a dataset"))
    title = f"{name}, {config.get('ipc', '?')} {facts.noun[: -1 if config.get('ipc') == 1 else None]} a class"
    sections = [
        _tiles(facts),
        _section(facts.noun.capitalize(), _rows(facts) if facts.noun == "rows" else _images(facts)),
        _section("Curves", _curves(facts)),
        _section("Other networks", _evaluations(facts)),
        _section("Storage of the experts", _storage(facts)),
        _section("Time", _timings(facts)),
        _section("Configuration", _table(sorted(config.items()))),
        _section("Provenance", _provenance(facts)),
    ]
    return _FRAME.format(title=escape(title), sections="\n".join(part for part in sections if part), style=_STYLE)


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def _tiles(facts: _Facts) -> str:
    final, evaluations, iterations = facts.final, facts.of_kind("eval"), facts.of_kind("iter")
    tiles: list[tuple[str, str, str]] = []
    label = metric_label(facts.metric)
    if final is not None:
        count = f"{final['num_eval']} networks ({final['model']}), test split"
        tiles.append((f"Test {label}", format_metric(facts.metric, final["test_mean"], final["test_std"]), count))
        random = baseline_text(final)
        if random is not None and final["test_mean"] is not None:
            gain = final["test_mean"] - final["random_real_mean"]
            scale, unit = metric_scale(facts.metric)
            shown = f"{scale * abs(gain):.1f} points" if unit else f"{abs(gain):.3f}"
            tiles.append(
                (
                    f"As many random real {facts.noun}",
                    random,
                    f"the distilled ones are {shown} {'better' if gain >= 0 else 'worse'}",
                )
            )
        chosen = "validation" if final.get("select_on", "val") == "val" else "the test split (optimistic)"
        began = "" if final["iteration"] else f"; {chosen_images(final, facts.run.config).partition(',')[0]}"
        tiles.append(("Chosen iteration", str(final["iteration"]), f"by {label} on {chosen}{began}"))
    elif evaluations:
        best = max(evaluations, key=lambda r: (r["mean"] is not None, r["mean"]))
        tiles.append(
            (
                f"Best {label} so far",
                format_metric(facts.metric, best["mean"], best["std"]),
                f"{best['split']}, iteration {best['iteration']}",
            )
        )
    if facts.distilled is not None:
        shape = "×".join(str(size) for size in facts.distilled.images.shape[1:])
        tiles.append((facts.noun.capitalize(), str(len(facts.distilled)), f"of {shape} values"))
        learned, own = facts.distilled.syn_lr, facts.distilled.lr_net
        note = f"saved with the {facts.noun}" if own == learned else f"networks are trained with {own:.4g}"
        tiles.append(("Learned step size", f"{learned:.4g}", note))
    if iterations:
        wanted = facts.run.config.get("iterations", "?")
        skipped = iterations[-1].get("skipped", 0)
        note = "none skipped" if not skipped else f"{skipped} skipped (not finite or exploding)"
        tiles.append(("Iterations", f"{iterations[-1]['iteration']} of {wanted}", note))
    cells = "\n".join(
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in tiles
    )
    return f'<div class="tiles">\n{cells}\n</div>' if tiles else "<p>Nothing has been measured yet.</p>"


def _images(facts: _Facts) -> str:
    distilled = facts.distilled
    if distilled is None:
        return "<p>None yet: they are written at the first evaluation.</p>"
    pixels, classes = distilled.pixels(), _classes(distilled)
    names = distilled.class_names
    if len(pixels) == distilled.num_classes:
        order = torch.argsort(classes, stable=True).tolist()
        return '<div class="cards">\n' + "\n".join(_card(pixels[i], names[int(classes[i])]) for i in order) + "\n</div>"
    rows: list[str] = []
    for number, name in enumerate(names):
        own = pixels[classes == number]
        left_out = len(own) - _SHOWN_A_CLASS
        more = f' <span class="note">and {left_out} more</span>' if left_out > 0 else ""
        strip = "".join(_picture(image, f"{name}, image {i + 1}") for i, image in enumerate(own[:_SHOWN_A_CLASS]))
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td class="strip">{strip}{more}</td></tr>')
    return '<table class="classes">\n' + "\n".join(rows) + "\n</table>"


def _rows(facts: _Facts) -> str:
    """A table's rows in original units and categories, under what they are not."""
    distilled = facts.distilled
    if distilled is None:
        return "<p>None yet: they are written at the first evaluation.</p>"
    frame = table_frame(distilled)
    nearest = distilled.provenance.get("nearest_real")
    note = f"<p>{escape(PRIVACY)}</p>" + (f"<p>{escape(nearest_text(nearest))}</p>" if nearest else "")
    cells = [[_cell(value) for value in row] for row in frame.head(_SHOWN_ROWS).itertuples(index=False)]
    left_out = len(frame) - len(cells)
    more = f'<p class="note">and {left_out} more in {TABLE}</p>' if left_out > 0 else ""
    return f'{note}<div class="wide">{_grid([str(name) for name in frame.columns], cells)}</div>{more}'


def _cell(value: Any) -> str:
    if value is None or str(value) in ("nan", "NaT", "<NA>"):  # <NA> says nothing to a comparison, not even of itself
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _card(image: Tensor, name: str) -> str:
    return f'<figure class="card">{_picture(image, name)}<figcaption>{escape(name)}</figcaption></figure>'


def _picture(image: Tensor, alt: str) -> str:
    buffer = io.BytesIO()
    shown = image if image.shape[0] in (1, 3) else image.mean(0, keepdim=True)
    picture: Image.Image = to_pil_image(shown)
    picture.save(buffer, format="PNG", optimize=True)
    return f'<img class="pixels" src="{_data_uri(buffer.getvalue())}" alt="{escape(alt)}" title="{escape(alt)}">'


def _curves(facts: _Facts) -> str:
    if not facts.records:
        return ""
    drawn = [
        (
            _draw_score,
            f"{metric_title(facts.metric)} of fresh networks trained on the {facts.noun}; the band is one standard deviation",
        ),
        (_draw_loss, "Matching loss at each iteration"),
        (_draw_step_size, "The learned step size at each iteration"),
    ]
    pictures = (
        f'<img class="curve" src="{_figure(draw, facts.records)}" alt="{escape(text)}">' for draw, text in drawn
    )
    return '<div class="curves">\n' + "\n".join(pictures) + "\n</div>"


def _evaluations(facts: _Facts) -> str:
    if not facts.evaluations:
        return ""
    rows = [
        [
            record["model"],
            format_metric(record.get("metric", "accuracy"), record["mean"], record["std"]),
            baseline_text(record) or "–",
            record["split"],
            len(record["scores"]),
            f"{record['lr']:.4g}",
        ]
        for record in facts.evaluations
    ]
    return _grid(
        ["network", metric_label(facts.metric), f"random real {facts.noun}", "split", "networks", "step size"], rows
    )


def _storage(facts: _Facts) -> str:
    store = facts.store
    if store is None or len(store) == 0:
        return ""
    parameters = sum(shape.numel() for shape in store.shapes)
    experts, mtt = len(store), 4 * parameters * _MTT_CHECKPOINTS * len(store)
    rows = [
        ["this store", experts, _bytes(store.nbytes), f"{store.nbytes / (parameters * experts):.2f}", "1"],
        [
            f"MTT, {_MTT_CHECKPOINTS} checkpoints in float32 (computed)",
            experts,
            _bytes(mtt),
            str(4 * _MTT_CHECKPOINTS),
            f"{mtt / store.nbytes:.1f}",
        ],
    ]
    note = f'<p class="note">{parameters:,} parameters in {len(store.shapes)} tensors; {escape(str(store.path))}</p>'
    return _grid(["", "experts", "size", "bytes a parameter", "relative"], rows) + note


def _timings(facts: _Facts) -> str:
    rows: list[tuple[str, Any]] = []
    store, iterations, evaluations = facts.store, facts.of_kind("iter"), facts.of_kind("eval")
    if store is not None and len(store):
        seconds = [store.info(i).get("seconds") for i in range(len(store))]
        known = [s for s in seconds if s is not None]
        if known:
            rows.append((f"training {len(known)} experts", f"{duration(sum(known))}, {duration(fmean(known))} each"))
    if iterations:
        spent = [r["seconds"] for r in iterations]
        rows.append((f"{len(spent)} iterations", f"{duration(sum(spent))}, {duration(median(spent))} each (median)"))
    if evaluations:
        spent = [r["seconds"] for r in evaluations]
        rows.append((f"{len(spent)} evaluations", f"{duration(sum(spent))}, {duration(fmean(spent))} each"))
    return _table(rows) if rows else ""


def _provenance(facts: _Facts) -> str:
    rows: list[tuple[str, Any]] = [("run", str(facts.run.path.resolve()))]
    if facts.distilled is not None:
        shown = {k: v for k, v in facts.distilled.provenance.items() if k not in ("config", "test")}
        rows += sorted(shown.items())
    if facts.store is not None:
        rows.append(("expert recipe", facts.store.manifest["recipe"]))
    rows += facts.run.environment().items()
    return _table(rows)


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    body = "\n".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_shown(value))}</td></tr>' for key, value in rows
    )
    return f"<table>\n{body}\n</table>"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="grid">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _classes(distilled: DistilledDataset) -> Tensor:
    """The class ``(n,)`` of each image; of soft labels, the likeliest."""
    return distilled.labels if distilled.labels.ndim == 1 else distilled.labels.argmax(1)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f4f5f7; --text: #1b1f24; --faint: #5d6570; --rule: #d9dde2; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --panel: #1d2127; --text: #e4e7eb; --faint: #9aa3ae; --rule: #323841; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; font-weight: 650; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; font-weight: 600; }
.note { color: var(--faint); font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: .75rem; margin-top: 1.5rem; }
.tile { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; }
.tile .label { color: var(--faint); font-size: .85rem; }
.tile .value { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)); gap: .75rem; }
.card { margin: 0; text-align: center; }
.card img { width: 100%; }
.card figcaption { font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.pixels { image-rendering: pixelated; border-radius: .2rem; vertical-align: top; }
.strip img { width: 3.25rem; margin: 0 .2rem .2rem 0; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.curve { width: 100%; background: var(--panel); border-radius: .5rem; padding: .5rem; }
table { border-collapse: collapse; font-size: .9rem; max-width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--faint); white-space: nowrap; }
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="note">A dataset distilled by mct_fast: training on it stands in for training on all of them.</p>
{sections}
</main>
</body>
</html>
"""
