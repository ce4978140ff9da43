"""The commands: each a function that takes the words after its name.

What a command needs is imported inside it, so that ``mct-fast --help`` answers at once. The first line of each docstring
stands in the overview. Annotations are evaluated here (no ``from __future__ import annotations``): tyro reads the types of
the classes that the commands define.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from mct_fast.cli import docs
from mct_fast.cli.output import distilled_rows, percent, print_rows, run_rows, store_rows, written_rows
from mct_fast.cli.parsing import json_object, parse, preset_in
from mct_fast.cli.session import progress_bars, resumable, session
from mct_fast.cli.stored import buildable, check_preset, dataset_of, distilled_at, models, stored_config
from mct_fast.cli.sweep import sweep_command
from mct_fast.run.errors import InputError


def _experts(words: list[str]) -> None:
    """Train experts on real data into a store of convexified trajectories."""
    from mct_fast.experts import train_experts
    from mct_fast.settings import ExpertConfig

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train experts on real data; of each, only its convexified trajectory is kept.

        The same command again goes on where an interrupted one stopped.
        """

        out: Path
        """Folder of the trajectory store to write."""
        preset: str | None = None
        """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
        config: OmitArgPrefixes[ExpertConfig] = ExpertConfig()

    chosen = preset_in(words)
    default = None if chosen is None else Arguments(tyro.MISSING, chosen.name, chosen.experts)
    given = parse("experts", Arguments, words, default)
    with session() as communicator:
        with resumable("the same command again goes on with the experts that are missing"):
            store = train_experts(
                given.config, given.out, progress=progress_bars(communicator), communicator=communicator
            )
        communicator.lead(lambda: print_rows(store_rows(store)))


@dataclasses.dataclass(frozen=True)
class _CompressArguments:
    """Convexify MTT's replay_buffer_N.pt, or take over the waypoint and step files of the official MCT code.

    The result is the trajectory store --out. The same command again goes on where a failed one stopped.
    With --to-mtt FOLDER the source is a store, and replay_buffer_N.pt for MTT's distill.py are written.
    """

    source: Positional[Path]
    """A replay_buffer_N.pt or waypoint_buffer_N.pt, or the folder that holds them; with --to-mtt a store."""
    out: Path | None = None
    """Folder of the trajectory store to write."""
    dataset: str | None = None
    """Name of the dataset that the experts were trained on, e.g. cifar10."""
    data_path: str | None = None
    """Folder that holds the dataset."""
    zca: bool = False
    """The experts were trained on ZCA-whitened images."""
    model: str | None = None
    """The network as JSON, e.g. '{"name": "ConvNet", "depth": 4, "image_size": 64, "num_classes": 200}'.
    Left out, a ConvNet is recognised from its shapes."""
    norm: str | None = None
    """Normalisation of a ConvNet that is recognised: instance, group, layer or none. Left out, instance, where the
    shapes allow it: they do not tell it from group norm, or from batch norm, which is not supported."""
    files: str | None = None
    """Which files of a folder, e.g. waypoint_buffer_ip4. Left out, replay_buffer, else the only kind there is."""
    waypoints: int | tuple[int, ...] = 2
    """Checkpoints that the convex path runs through: 2 is the paper's, 4 the official code's default; or their
    epochs, e.g. 0 6 25 50."""
    schedule: str = "arc_length"
    """Pace along the path: arc_length, uniform, decreasing or projected."""
    smooth: bool = False
    """Average each later waypoint with its neighbours, as the official code does."""
    keep_checkpoints: bool = False
    """Also keep every checkpoint (about 25 times the space), which MTT needs."""
    encoding: str = "fp16"
    """How experts are stored: fp16, int8 (half the space), int4 (a quarter), float32 (exact, twice the space)."""
    start_encoding: str = "float32"
    """How an expert's first parameters are stored, whose seed nobody knows: float32 (exact), or as above."""
    to_mtt: Path | None = None
    """Write MTT's files into this folder: the kept checkpoints, or the convex path at whole epochs."""
    per_file: int = 10
    """Experts a file with --to-mtt: what memory holds at once."""


def _compress(words: list[str]) -> None:
    """Make a store of experts that exist (MTT, MCT), or MTT's files of a store."""
    from mct_fast.compress import compress, to_mtt

    given = parse("compress", _CompressArguments, words)
    if given.to_mtt is not None:
        if given != _CompressArguments(given.source, to_mtt=given.to_mtt, per_file=given.per_file):
            raise InputError("to_mtt: the store says all else; leave out every option but --to-mtt and --per-file")
        written = to_mtt(given.source, given.to_mtt, per_file=given.per_file, progress=progress_bars())
        print_rows(written_rows(given.to_mtt, written))
        return
    if given.out is None or given.dataset is None:
        name = "out" if given.out is None else "dataset"
        raise InputError(f"{name}: missing; give --out STORE and --dataset NAME, or --to-mtt FOLDER")
    with resumable("the same command again goes on with the experts that are missing"):
        store = compress(
            given.source,
            given.out,
            dataset=given.dataset,
            data_path=given.data_path,
            zca=given.zca,
            model=json_object("model", given.model),
            norm=given.norm,
            files=given.files,
            waypoints=given.waypoints,
            schedule=given.schedule,
            smooth=given.smooth,
            keep_checkpoints=given.keep_checkpoints,
            encoding=given.encoding,
            start_encoding=given.start_encoding,
            progress=progress_bars(),
        )
    print_rows(store_rows(store))


def _bezier(words: list[str]) -> None:
    """Fit the control points of Bézier paths for the experts of a store."""
    from statistics import fmean

    from mct_fast.experts.bezier import fit_bezier
    from mct_fast.settings import BezierConfig

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Fit a control point between the two ends of each expert, so that the loss stays low along a quadratic Bézier
        curve, and add it to the store (4 bytes a parameter and expert).

        Then 'mct-fast distill --trajectory bezier' matches these curves. Experts that have a control point keep it; the
        same command again goes on where an interrupted one stopped.
        """

        store: Positional[Path]
        """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
        config: OmitArgPrefixes[BezierConfig] = BezierConfig()

    given = parse("bezier", Arguments, words)
    with resumable("the same command again goes on with the experts that are missing"):
        store = fit_bezier(given.store, given.config, progress=progress_bars())
    infos = [store.entry(i)["control"]["info"] for i in range(len(store))]
    line, curve = (fmean(fmean(info[name]) for info in infos) for name in ("loss_line", "loss_curve"))
    rows = [("store", str(store.path)), ("control points", str(len(infos)))]
    print_rows([*rows, ("training loss between the ends", f"{line:.4g} on the line, {curve:.4g} on the curve")])


def _distill(words: list[str]) -> None:
    """Distil a dataset along the trajectories of a store."""
    from mct_fast.distill import distill
    from mct_fast.settings import DistillConfig
    from mct_fast.view.report import write_report

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Distil a dataset into --ipc images a class, into the run folder --out.

        A new run needs --trajectories and --out; --resume goes on with a killed run, with the run's own settings
        (--trajectories and --data-path say where its folders have moved to).
        """

        trajectories: Path | None = None
        """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
        out: Path | None = None
        """Run folder to write: configuration, metrics, checkpoints, images, report."""
        resume: Path | None = None
        """Run folder to go on with."""
        preset: str | None = None
        """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
        config: OmitArgPrefixes[DistillConfig] = DistillConfig()

    chosen = preset_in(words)
    default = None if chosen is None else Arguments(preset=chosen.name, config=chosen.distill)
    given = parse("distill", Arguments, words, default)

    def asked() -> tuple[DistillConfig, Path, Path]:
        """Configuration, store and run folder."""
        if given.resume is not None:
            data_path = given.config.engine.data_path
            if given != Arguments(given.trajectories, resume=given.resume, config=DistillConfig(data_path=data_path)):
                raise InputError(
                    "resume: a run goes on with its own settings; leave out every other option "
                    "but --trajectories and --data-path, for folders that have moved"
                )
            config, stored = stored_config(given.resume)
            if data_path is not None:
                config = dataclasses.replace(config, data_path=data_path)
            return config, given.trajectories or stored, given.resume
        if given.trajectories is None:
            raise InputError("trajectories: missing; give --trajectories STORE and --out RUN, or --resume RUN")
        if given.out is None:
            raise InputError("out: missing; give --out RUN, the folder to write")
        if chosen is not None:
            check_preset(chosen, given.trajectories)
        return given.config, given.trajectories, given.out

    with session() as communicator:
        config, trajectories, out = communicator.tell(asked)
        with resumable(f"go on with: mct-fast distill --resume {out}"):
            distill(
                config,
                trajectories,
                out=out,
                resume=given.resume is not None,
                progress=progress_bars(communicator),
                communicator=communicator,
            )
            page = communicator.lead(lambda: write_report(out))
        communicator.lead(lambda: print_rows([*run_rows(out), ("report", str(page))]))


def _evaluate(words: list[str]) -> None:
    """Train fresh networks on a distilled set and score them."""
    from mct_fast.evaluate import baseline_text, default_model
    from mct_fast.run.folder import Run
    from mct_fast.settings import EvalConfig
    from mct_fast.tasks import format_metric

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train fresh networks on a distilled set and on as many random real images, and score them.

        Given a run, results on its own data are kept there, and 'mct-fast report' shows them.
        """

        path: Positional[Path]
        """A run folder, or the folder of a distilled set."""
        model: str | None = None
        """Networks, separated by commas: ConvNet, MLP, AlexNet, VGG11, ResNet18, LeNet, or a variant such as
        ConvNetD4 or ResNet18BN. Left out, the one that the set was distilled with."""
        split: Literal["test", "val"] = "test"
        """The split to score on: test or val."""
        random_real: bool = True
        """Also train on as many random real images, the baseline."""
        dataset: str | None = None
        """Dataset to score on; left out, the one that the set was distilled from."""
        data_path: str | None = None
        """Folder that holds the dataset; left out, the one noted with the experts."""
        config: OmitArgPrefixes[EvalConfig] = EvalConfig()

    given = parse("evaluate", Arguments, words)
    names = None if given.model is None else models(given.model)
    with session() as communicator:
        distilled, run_path = communicator.tell(lambda: distilled_at(given.path))
        dataset = communicator.lead_first(
            lambda: dataset_of(distilled, run_path, given.dataset, given.data_path, given.config.protocol.device)
        )
        own = distilled.provenance.get("model")
        # Of data that the set was not distilled from, the run's page has nothing to say.
        kept_in = run_path if dataset.fingerprint == distilled.provenance.get("fingerprint") else None
        networks: list[Any] = (
            [default_model(dataset, distilled.provenance)]
            if names is None
            else buildable(names, own, dataset, distilled.task)
        )
        rows: list[tuple[str, ...]] = [("network", given.split, *(["random real"] if given.random_real else []))]
        done = f"networks that were finished are {'kept' if kept_in else 'printed above; nothing is kept'}"
        with resumable(done):
            for network in networks:
                record = _measured(
                    distilled,
                    dataset,
                    given.config,
                    given.random_real,
                    model=network,
                    split=given.split,
                    progress=progress_bars(communicator),
                    communicator=communicator,
                )
                result = format_metric(record["metric"], record["mean"], record["std"])
                rows.append((record["model"], result, *([baseline_text(record) or ""] if given.random_real else [])))
                if kept_in is not None:
                    communicator.lead(lambda record=record: Run.open(kept_in).add_evaluation(record))
        communicator.lead(lambda: print_rows(rows))


def _measured(distilled: Any, dataset: Any, config: Any, random_real: bool, **common: Any) -> dict[str, Any]:
    """What a run notes of networks trained on ``distilled`` and, if asked, on as many random real images."""
    from mct_fast.evaluate import baseline_lrs, evaluate, evaluate_random_real

    result = evaluate(distilled, dataset, config, **common)
    if not random_real:
        return result.record()
    ipc = len(distilled) // distilled.num_classes
    lrs = baseline_lrs(distilled, result.lr) if len(dataset.val) else (result.lr,)
    random = evaluate_random_real(ipc, dataset, config, task=distilled.task, lrs=lrs, **common)
    return {**result.record(), **random.baseline()}


def _report(words: list[str]) -> None:
    """Write a run's page: images, curves, configuration, storage, timings."""
    from mct_fast.view.report import write_report
    from mct_fast.view.tensorboard import write_events

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Write report.html, images.png and curves.png into a run's folder."""

        run: Positional[Path]
        """Run folder that 'mct-fast distill' wrote."""
        tensorboard: bool = False
        """Also write TensorBoard event files (needs the package tensorboard)."""

    given = parse("report", Arguments, words)
    rows = [("report", str(write_report(given.run)))]
    if given.tensorboard:
        rows.append(("tensorboard", str(write_events(given.run))))
    print_rows(rows)


def _inspect(words: list[str]) -> None:
    """Say what a trajectory store, a run or a distilled set holds."""
    from mct_fast.run.folder import CONFIG

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Say what a trajectory store, a run or a distilled set holds.

        Of a store also the accuracy of the networks along the path: SGD's checkpoints, where they were kept, against the
        convex path. All options are for stores.
        """

        path: Positional[Path]
        """Folder of a trajectory store, a run or a distilled set."""
        accuracy: bool = True
        """Evaluate networks along the path."""
        data_path: str | None = None
        """Folder that holds the dataset; left out, the one noted with the experts."""
        split: str | None = None
        """The split to evaluate on: test or val. Left out, val, or test where there is none."""
        samples: int = 500
        """Random images of the split to evaluate on."""
        experts: int = 1
        """Experts to evaluate."""
        points: int = 11
        """Whole epochs to evaluate, from the first to the last; after each, also a time half an epoch on."""
        verify: bool = False
        """Check every file against its SHA-256."""
        out: Path | None = None
        """Picture (PNG) to write: pace of each layer, accuracy along the path."""
        json: bool = False
        """Print everything as JSON instead."""
        device: str = "auto"
        """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve."""

    given = parse("inspect", Arguments, words)
    path = given.path
    if not path.is_dir():
        raise InputError(f"path: {path} is no folder; give a trajectory store, a run or a distilled set")
    if (path / "manifest.json").is_file():
        _inspect_store(given)
        return
    if given != Arguments(path):
        raise InputError(f"path: {path} is no trajectory store, which every other option is for; leave them out")
    if (path / CONFIG).is_file():
        print_rows(run_rows(path))
    else:
        distilled, _ = distilled_at(path)
        print_rows(distilled_rows(distilled))


def _inspect_store(given: Any) -> None:
    from rich.console import Console

    from mct_fast.view.inspect import draw, inspect_store, rows, show

    report = inspect_store(
        given.path,
        accuracy=given.accuracy,
        data_path=given.data_path,
        split=given.split,
        samples=given.samples,
        experts=given.experts,
        points=given.points,
        verify=given.verify,
        device=given.device,
        progress=progress_bars(),
    )
    if given.json:
        print(json.dumps(report.json(), indent=1))
    else:
        print_rows(rows(report))
        show(report, Console())
    if given.out is not None:
        draw(report, given.out)
    if report.broken:
        raise InputError(
            f"verify: {len(report.broken)} of {report.experts} files of {given.path} are damaged or missing "
            f"({', '.join(report.broken)}); restore them or train these experts again"
        )


def _presets(words: list[str]) -> None:
    """List the settings that --preset takes."""
    from mct_fast.presets import presets

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """List the settings that 'mct-fast experts' and 'mct-fast distill' take by --preset NAME.

        'mct-fast distill --preset NAME --help' shows a preset in full.
        """

    parse("presets", Arguments, words)
    rows: list[tuple[str, ...]] = [
        ("preset", "N", "M", "starts", "lr_img", "lr_lr", "lr_teacher", "batch_syn", "zca", "waypoints", "source"),
    ]
    for known in presets():
        path, student, steps = known.distill.path, known.distill.student, known.distill.optimizer
        starts = f"{path.min_start_epoch:g}-{path.max_start_epoch:g}"
        numbers = (student.syn_steps, f"{path.expert_epochs:g}", starts, f"{steps.lr_img:g}", f"{steps.lr_lr:g}")
        rest = (f"{student.lr_teacher:g}", student.batch_syn or "all", "yes" if known.experts.data.zca else "no")
        rows.append(
            (
                known.name,
                *map(str, (*numbers, *rest)),
                _waypoints(path.trajectory, known.experts.path.waypoints),
                known.source,
            )
        )
    print_rows(rows)
    print(
        "\nN: syn_steps, M: expert_epochs, starts: min_start_epoch-max_start_epoch, waypoints: of the convex path, how many or "
        "at which epochs (-: every epoch's checkpoint)"
    )


def _waypoints(trajectory: str, given: int | tuple[int, ...]) -> str:
    if trajectory == "discrete":
        return "-"
    return str(given) if isinstance(given, int) else ",".join(map(str, given))


def _demo(words: list[str]) -> None:
    """Distil real handwritten digits in a few minutes, no download needed."""
    from mct_fast.demo import run_demo
    from mct_fast.run.progress import duration

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train experts on scikit-learn's handwritten digits, distil one image a class, and write a page about it."""

        out: Path = Path("runs/demo")
        """Folder to write."""

    given = parse("demo", Arguments, words)
    with resumable(f"go on with: mct-fast demo --out {given.out}"):
        result = run_demo(given.out, progress=progress_bars())
    final = result.final
    random = percent(final["random_real_mean"], final["random_real_std"])
    print_rows(
        [
            ("test accuracy, trained on", f"({final['num_eval']} networks)"),
            ("10 random real images", random),
            ("10 distilled images", percent(final["test_mean"], final["test_std"])),
            ("training experts took", duration(result.expert_seconds)),
            ("distilling took", duration(result.distill_seconds)),
            ("look at", str(result.page)),
        ]
    )


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "experts": _experts,
    "compress": _compress,
    "bezier": _bezier,
    "distill": _distill,
    "sweep": sweep_command,
    "evaluate": _evaluate,
    "report": _report,
    "inspect": _inspect,
    "presets": _presets,
    "demo": _demo,
    "docs": docs.run,
}

SPLIT = (_experts, _distill, sweep_command, _evaluate)
"""Commands whose work is split where torchrun starts several processes."""
