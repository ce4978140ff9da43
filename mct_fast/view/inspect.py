"""What a trajectory store holds: sizes, encodings, errors, pace of its paths, and the accuracy of the networks along them.

The accuracy answers what MCT rests on: are the points of the convex path, between SGD's checkpoints too, as good as SGD's?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mct_fast.data import Dataset, load_noted
from mct_fast.models import FunctionalModel, build_model
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import generator
from mct_fast.run.settings import AUTO
from mct_fast.students import Student, student_for
from mct_fast.tasks import Task, metric_digits, metric_label, metric_scale, metric_title, task_from_state
from mct_fast.training import SGD, FlatStack, scores
from mct_fast.trajectory import DiscreteTrajectory, Trajectory, TrajectoryStore

MTT_CHECKPOINTS = 51
"""What MTT's buffer.py keeps of an expert, in float32: 50 epochs and the beginning."""
_STUDENTS, _IMAGES = 8, 256  # points and images of one forward pass: what it holds in memory
_NAMED = 16  # layers that a legend can still tell apart


@dataclass(frozen=True)
class Curve:
    """Scores of one expert; ``checkpoints`` has None where SGD left no checkpoint, or the store keeps none."""

    expert: int
    times: tuple[float, ...]
    convex: tuple[float, ...]
    checkpoints: tuple[float | None, ...]


@dataclass(frozen=True)
class AlongPath:
    """The ``metric`` at ``times`` in epochs, on ``samples`` images of ``split``."""

    split: str
    metric: str
    samples: int
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Pace:
    """``progress[l][t]`` of the tensor ``names[l]`` at epoch t, mean over ``experts`` experts, from 0 to waypoints - 1."""

    names: tuple[str, ...]
    waypoints: int
    experts: int
    progress: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class StoreReport:
    """What :func:`inspect_store` found.  ``bytes`` counts every file of the folder."""

    path: str
    format_version: int
    experts: int
    epochs: int | None
    dataset: Mapping[str, Any]
    model: Mapping[str, Any]
    recipe: Mapping[str, Any]
    parameters: int
    tensors: int
    bytes: int
    bytes_a_parameter: float | None
    """Bytes an expert's parameter."""
    mtt_ratio: float | None
    """How many times more MTT's 51 float32 checkpoints of as many experts take."""
    encodings: Mapping[str, int]
    """Experts by encoding."""
    origins: Mapping[str, int]
    """Experts by where theta_0 comes from: ``"seed"``, or ``"stored"`` and its encoding."""
    error: Mapping[str, float] | None
    """``median`` and ``max`` of :func:`encoding_errors` over all experts, or None where encoding changed nothing known."""
    keeps_checkpoints: bool
    """Whether SGD's checkpoints of the first sound expert were kept."""
    metric: str
    """What experts were scored by: the headline of their task."""
    score: Mapping[str, float] | None
    """``mean``, ``worst``, ``best`` of the trained experts, as noted when they were."""
    broken: tuple[str, ...] | None
    """Files that fail their check, or None if they were not checked."""
    pace: Pace | None = None
    along: AlongPath | None = None
    not_evaluated: str | None = None
    """Why :attr:`along` is absent."""

    def json(self) -> dict[str, Any]:
        return asdict(self)


def inspect_store(
    store: TrajectoryStore | str | Path,
    *,
    accuracy: bool = True,
    data_path: str | None = None,
    split: str | None = None,
    samples: int = 500,
    experts: int = 1,
    points: int = 11,
    verify: bool = False,
    device: str = AUTO,
    progress: Progress = quiet(),
) -> StoreReport:
    """Looks at ``store``.

    ``accuracy``: also evaluate ``points`` whole epochs and the times half way between them, of the first ``experts``
    experts, on ``samples`` random images of ``split`` (default: validation, or test where there is none) of the dataset
    that the manifest names; ``data_path`` says where that lies now.  ``verify``: check every file's SHA-256.  Without
    ``verify`` a damaged file among those read raises :class:`InputError`; a dataset that cannot be loaded is noted in
    ``not_evaluated``, and raises if ``data_path`` was given.
    """
    for name, value in (("samples", samples), ("experts", experts)):
        if value < 1:
            raise InputError(f"{name}: got {value}; give at least 1")
    if points < 2:
        raise InputError(f"points: got {points}; give at least 2, the path's ends")
    store = store if isinstance(store, TrajectoryStore) else TrajectoryStore.open(store)
    broken = _broken(store, progress) if verify else None
    report = _facts(store, broken)
    sound = [i for i in range(len(store)) if not broken or _name(store, i) not in broken][:experts]
    if not sound:
        return replace(report, not_evaluated="the store holds no sound expert")
    model = FunctionalModel(build_model(store.manifest["model"]))
    report = replace(
        report,
        epochs=store[sound[0]].epochs,
        keeps_checkpoints=kept_checkpoints(store, sound[0]) is not None,
        pace=_pace(store, sound, model.names),
    )
    if not accuracy:
        return replace(report, not_evaluated="not asked for")
    try:
        dataset = _dataset(store.manifest["dataset"], data_path, device, progress)
        along = _along(store, sound, model, dataset, split, samples, points, progress)
    except InputError as error:
        if data_path is not None or split is not None:
            raise
        return replace(report, not_evaluated=str(error))
    return replace(report, along=along)


def _facts(store: TrajectoryStore, broken: tuple[str, ...] | None) -> StoreReport:
    parameters = sum(shape.numel() for shape in store.shapes)
    size, count = store.nbytes, len(store)
    entries = [store.entry(i) for i in range(count)]
    errors = [value for entry in entries for value in encoding_errors(entry)]
    metric = task_from_state(store.manifest.get("task")).headline
    noted = [float(info[metric]) for info in map(store.info, range(count)) if info.get(metric) is not None]
    return StoreReport(
        path=str(store.path),
        format_version=store.manifest["format_version"],
        experts=count,
        epochs=None,
        dataset=store.manifest["dataset"],
        model=store.manifest["model"],
        recipe=store.manifest["recipe"],
        parameters=parameters,
        tensors=len(store.shapes),
        bytes=size,
        bytes_a_parameter=size / (count * parameters) if count else None,
        mtt_ratio=MTT_CHECKPOINTS * 4 * parameters * count / size if count else None,
        encodings=dict(Counter(entry["encoding"] for entry in entries)),
        origins=dict(Counter(_origin(entry["origin"]) for entry in entries)),
        error={"median": median(errors), "max": max(errors)} if errors else None,
        keeps_checkpoints=False,
        metric=metric,
        score={"mean": fmean(noted), "worst": min(noted), "best": max(noted)} if noted else None,
        broken=broken,
    )


def encoding_errors(entry: Mapping[str, Any]) -> list[float]:
    """Of a store's entry: the error of the target of each match that was noted, relative to the length of its segment."""
    noted = entry.get("error")
    return [] if noted is None else [value for row in noted["point"] for value in row if value is not None]


def _origin(origin: Mapping[str, Any]) -> str:
    return "seed" if origin["kind"] == "seed" else f"stored as {origin['encoding']}"


def _name(store: TrajectoryStore, i: int) -> str:
    return str(store.entry(i)["file"])


def _broken(store: TrajectoryStore, progress: Progress) -> tuple[str, ...]:
    found = []
    with progress.task("verify, experts", len(store)) as bar:
        fresh = TrajectoryStore.open(store.path, cache_bytes=0)  # which has checked nothing yet
        for i in range(len(fresh)):
            files = {"convex": _name(fresh, i)}
            if fresh.has_control(i):
                files["bezier"] = str(fresh.entry(i)["control"]["file"])
            for kind, name in files.items():
                try:
                    fresh.trajectory(i, kind)
                except InputError:
                    found.append(name)
                    break  # a curve stands on its ends
            bar.advance(1)
    return tuple(found)


def _pace(store: TrajectoryStore, experts: Sequence[int], names: Sequence[str]) -> Pace:
    tables = [_convex(store, i).progress for i in experts]
    mean = torch.stack(tables).mean(0)
    return Pace(tuple(names), round(float(mean[0, -1])) + 1, len(tables), tuple(tuple(row) for row in mean.tolist()))


def _convex(store: TrajectoryStore, i: int) -> Any:
    """The convex path, whose ``progress`` no protocol promises."""
    return store.trajectory(i)


def _dataset(noted: Mapping[str, Any], data_path: str | None, device: str, progress: Progress) -> Dataset:
    dataset = load_noted(noted, data_path=data_path, device=device, progress=progress)
    if noted.get("fingerprint") not in (None, dataset.fingerprint):
        raise InputError(
            f"dataset: {dataset.name} is not the data the experts were trained on (fingerprints differ); "
            "give its folder with --data-path, or leave the accuracy out with --no-accuracy"
        )
    return dataset


def _along(
    store: TrajectoryStore,
    experts: Sequence[int],
    model: FunctionalModel,
    dataset: Dataset,
    split: str | None,
    samples: int,
    points: int,
    progress: Progress,
) -> AlongPath:
    name = split or ("val" if len(dataset.val.labels) else "test")
    held_out = dataset.split(name)
    drawn = torch.randperm(len(held_out.labels), generator=generator(0, "inspect"))[:samples].to(held_out.labels.device)
    images, labels = held_out.images[drawn], held_out.labels[drawn]
    task = task_from_state(store.manifest.get("task"), dataset.task)
    student = student_for(model, task, images.device)
    times = path_times(store[experts[0]].epochs, points)
    curves = []
    with progress.task("accuracy along the path, experts", len(experts)) as bar:
        for i in experts:
            convex, discrete = store.trajectory(i), kept_checkpoints(store, i)
            whole = [t for t in times if t == int(t)] if discrete is not None else []
            thetas = [(convex, t) for t in times] + [(discrete, t) for t in whole if discrete is not None]
            accuracies = _accuracies(student, task, thetas, images, labels)
            by_time = dict(zip(whole, accuracies[len(times) :], strict=True))
            kept = tuple(by_time.get(t) for t in times)
            curves.append(Curve(store.experts[i], times, tuple(accuracies[: len(times)]), kept))
            bar.advance(1)
    return AlongPath(name, task.headline, len(labels), tuple(curves))


def path_times(epochs: int, points: int) -> tuple[float, ...]:
    """About ``points`` whole epochs from 0 to ``epochs``, evenly spread, and between each two the time half an epoch on.

    Where two of them are neighbours the time between is half way; else it is half an epoch after the earlier one: between
    checkpoints, where SGD has nothing to compare with.
    """
    points = min(points, epochs + 1)  # more are each of them
    whole = sorted({round(i * epochs / (points - 1)) for i in range(points)}) if points > 1 else [0]
    return tuple(sorted([*map(float, whole), *(t + 0.5 for t in whole[:-1])]))


def kept_checkpoints(store: TrajectoryStore, i: int) -> DiscreteTrajectory | None:
    """SGD's checkpoints of the i-th expert, or None if the store keeps none."""
    try:
        found = store.trajectory(i, "discrete")
    except InputError:
        store.trajectory(i)  # raises if it was the file that is damaged
        return None
    assert isinstance(found, DiscreteTrajectory)
    return found


def _accuracies(
    student: Student, task: Task, points: Sequence[tuple[Trajectory, float]], images: Tensor, labels: Tensor
) -> list[float]:
    """The score of the network at each point; several points are students of one pass."""
    found: list[float] = []
    for begin in range(0, len(points), _STUDENTS):
        group = points[begin : begin + _STUDENTS]
        params = torch.stack([path.at(t) for path, t in group]).to(images.device)
        found += scores(FlatStack(student, params, SGD()), images, labels, task, chunk=_IMAGES)
    return found


# For people


def rows(report: StoreReport) -> list[tuple[str, str]]:
    """The report's facts as (name, text)."""
    found = [
        ("store", report.path),
        ("experts", str(report.experts)),
        ("dataset", str(report.dataset["name"])),
        ("network", _listing(report.model)),
        ("parameters", f"{report.parameters:,} in {report.tensors} tensors"),
        ("recipe", _listing(report.recipe)),
    ]
    if report.experts:
        found += [
            (
                "size",
                f"{report.bytes:,} bytes, {report.bytes_a_parameter:.3g} a parameter; "
                f"MTT's 51 checkpoints would take {report.mtt_ratio:.1f} times",
            ),
            ("encoding", _counts(report.encodings)),
            ("theta_0", _counts(report.origins)),
        ]
    if report.error is not None:
        found.append(("error", _error(report.error)))
    if report.epochs is not None:
        found.append(("epochs", f"{report.epochs}{', every checkpoint kept' if report.keeps_checkpoints else ''}"))
    if report.score is not None:
        unit = metric_scale(report.metric)[1]
        mean, worst = (
            f"{metric_digits(report.metric, report.score[which])}{unit and f' {unit}'}" for which in ("mean", "worst")
        )
        found.append((metric_label(report.metric), f"{mean} on average, {worst} the worst"))
    if report.broken is not None:
        found.append(("verified", _verdict(report)))
    if report.not_evaluated not in (None, "not asked for"):
        found.append(("along the path", f"not evaluated ({report.not_evaluated})"))
    return found


def show(report: StoreReport, console: Console) -> None:
    """Prints the table of the accuracy along the path."""
    if report.along is None:
        return
    metric = report.along.metric
    unit = metric_scale(metric)[1]
    about = f"of {report.along.samples} {report.along.split} images"
    title = f"{metric_title(metric)} along the path{unit and f', {unit}'} {about}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("epoch", justify="right")
    for curve in report.along.curves:
        table.add_column(f"SGD, expert {curve.expert}", justify="right")
        table.add_column(f"convex, expert {curve.expert}", justify="right")
    for position, time in enumerate(report.along.curves[0].times):
        cells = [f"{time:g}"]
        for curve in report.along.curves:
            kept = curve.checkpoints[position]
            cells += [
                "" if kept is None else metric_digits(metric, kept),
                metric_digits(metric, curve.convex[position]),
            ]
        table.add_row(*cells)
    console.print(table)


def draw(report: StoreReport, path: str | Path) -> Path:
    """Writes a PNG: on the left the pace of each parameter tensor, on the right the accuracy along the path.

    Raises :class:`InputError` if the store has no expert to draw, or ``path`` cannot be written.
    """
    if report.pace is None:
        raise InputError(f"out: {report.path} holds no sound expert to draw; train or compress some first")
    path = Path(path)
    figure = Figure(figsize=(13, 4.8), facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_pace(left, report.pace, figure)
    _draw_along(right, report)
    figure.tight_layout()
    try:
        atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    except OSError as error:
        raise InputError(f"out: cannot write {path} ({error.strerror or error}); choose another file") from error
    return path


def _draw_pace(axis: Axes, pace: Pace, figure: Figure) -> None:
    colours = ScalarMappable(Normalize(0, max(1, len(pace.names) - 1)), "viridis")
    shades = colours.to_rgba(np.arange(len(pace.names)))
    for layer, (name, row) in enumerate(zip(pace.names, pace.progress, strict=True)):
        axis.plot(range(len(row)), row, color=tuple(shades[layer]), linewidth=1.2, label=name)
    single = pace.waypoints == 2
    axis.set_title("Pace: β of each parameter tensor" if single else "Pace: piece + β of each parameter tensor")
    axis.set_xlabel("epoch")
    axis.set_ylabel("β" if single else "piece + β")
    axis.grid(color="#dddddd")
    if len(pace.names) <= _NAMED:
        axis.legend(fontsize=7, ncols=2)
    else:
        figure.colorbar(colours, ax=axis, label="parameter tensor, first to last")


def _draw_along(axis: Axes, report: StoreReport) -> None:
    axis.set_xlabel("epoch")
    if report.along is None:
        axis.set_title("Along the path: not evaluated")
        axis.set_axis_off()
        return
    scale, unit = metric_scale(report.along.metric)
    for position, curve in enumerate(report.along.curves):
        first = position == 0
        axis.plot(
            curve.times,
            [scale * value for value in curve.convex],
            color="#2f7fd6",
            linewidth=1.3,
            marker=".",
            label="convex path" if first else None,
        )
        kept = [
            (t, scale * value) for t, value in zip(curve.times, curve.checkpoints, strict=True) if value is not None
        ]
        if kept:
            axis.plot(*zip(*kept, strict=True), color="#e07b1f", linewidth=0, marker="o", markersize=5, fillstyle="none",
                      label="SGD's checkpoints" if first else None)  # fmt: skip
    axis.set_title(
        f"{metric_title(report.along.metric)} along the path ({report.along.samples} {report.along.split} images)"
    )
    axis.set_ylabel(unit)
    axis.grid(color="#dddddd")
    axis.legend()


def _error(error: Mapping[str, float]) -> str:
    if error["max"] == 0:
        return "none"
    return f"{error['median']:.2g} of a match's segment (median), {error['max']:.2g} at most"


def _verdict(report: StoreReport) -> str:
    if not report.broken:
        return f"all {report.experts} files match their SHA-256"
    return f"{len(report.broken)} of {report.experts} files are damaged or missing: {', '.join(report.broken)}"


def _listing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(key if len(values) == 1 else f"{key} ({count} experts)" for key, count in values.items())
