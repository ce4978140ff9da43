"""The command line: ``mct-fast COMMAND``.

Every command is a function that takes the words after its name. What it needs is imported inside it, so that
``mct-fast --help`` answers at once. Annotations are evaluated here (no ``from __future__ import annotations``):
tyro reads the types of the classes that the commands define.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from mct_fast import __version__
from mct_fast.errors import InputError, PeerError

T = TypeVar("T")


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line ``words`` (default: those of the process).

    Returns the exit status: 0; 2 after wrong input, explained in one line on stderr; 1 where another process of the same
    run has failed; 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="mct-fast: %(message)s")
    words = list(sys.argv[1:] if words is None else words)
    try:
        return _dispatch(words)
    except InputError as error:
        print(f"mct-fast: {_process()}error: {error}", file=sys.stderr)
        return 2
    except PeerError as error:
        print(f"mct-fast: {_process()}error: {error}", file=sys.stderr)
        if _processes() > 1:
            from mct_fast.distributed import leave

            leave(1)
        return 1
    except _Interrupted as interrupted:
        print(f"\nmct-fast: interrupted; {interrupted}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nmct-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"mct-fast {__version__}")
        return 0
    command = _COMMANDS.get(words[0])
    if command is None:
        hint = _nearest(words[0], _COMMANDS)
        raise InputError(f"unknown command {words[0]!r}{hint}; the commands are {', '.join(_COMMANDS)}")
    if _processes() > 1 and command not in _SPLIT:
        raise InputError(f"{words[0]} runs in one process: start it without torchrun")
    try:
        command(words[1:])
    except SystemExit as stop:  # tyro, after printing a help text
        return int(stop.code or 0)
    return 0


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {(run.__doc__ or '').splitlines()[0]}" for name, run in _COMMANDS.items())
    return (
        "usage: mct-fast COMMAND [OPTIONS]\n\n"
        "Distils a dataset into a few synthetic images by matching the training paths of experts.\n\n"
        f"commands:\n{commands}\n\n"
        "mct-fast COMMAND --help lists a command's options; mct-fast --version prints the version."
    )


# Commands. The first line of each docstring stands in the overview.


def _experts(words: list[str]) -> None:
    """Train experts on real data into a store of convexified trajectories."""
    from mct_fast.experts import ExpertConfig, train_experts

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

    chosen = _preset_in(words)
    default = None if chosen is None else Arguments(tyro.MISSING, chosen.name, chosen.experts)
    given = _parse("experts", Arguments, words, default)
    with _session() as communicator:
        with _resumable("the same command again goes on with the experts that are missing"):
            store = train_experts(given.config, given.out, progress=_progress(communicator), communicator=communicator)
        communicator.lead(lambda: _print_rows(_store_rows(store)))


def _compress(words: list[str]) -> None:
    """Make a store of experts that exist (MTT, MCT), or MTT's files of a store."""
    from mct_fast.compress import compress, to_mtt

    @dataclasses.dataclass(frozen=True)
    class Arguments:
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
        files: str | None = None
        """Which files of a folder, e.g. waypoint_buffer_ip4. Left out, replay_buffer, else the only kind there is."""
        waypoints: int = 2
        """Checkpoints that the convex path runs through: 2 is the paper's, 4 the official code's default."""
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

    given = _parse("compress", Arguments, words)
    if given.to_mtt is not None:
        if given != Arguments(given.source, to_mtt=given.to_mtt, per_file=given.per_file):
            raise InputError("to_mtt: the store says all else; leave out every option but --to-mtt and --per-file")
        written = to_mtt(given.source, given.to_mtt, per_file=given.per_file, progress=_progress())
        _print_rows(_written_rows(given.to_mtt, written))
        return
    if given.out is None or given.dataset is None:
        name = "out" if given.out is None else "dataset"
        raise InputError(f"{name}: missing; give --out STORE and --dataset NAME, or --to-mtt FOLDER")
    with _resumable("the same command again goes on with the experts that are missing"):
        store = compress(
            given.source,
            given.out,
            dataset=given.dataset,
            data_path=given.data_path,
            zca=given.zca,
            model=_json_object("model", given.model),
            files=given.files,
            waypoints=given.waypoints,
            schedule=given.schedule,
            smooth=given.smooth,
            keep_checkpoints=given.keep_checkpoints,
            encoding=given.encoding,
            start_encoding=given.start_encoding,
            progress=_progress(),
        )
    _print_rows(_store_rows(store))


def _bezier(words: list[str]) -> None:
    """Fit the control points of Bézier paths for the experts of a store."""
    from statistics import fmean

    from mct_fast.bezier_fit import BezierConfig, fit_bezier

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

    given = _parse("bezier", Arguments, words)
    with _resumable("the same command again goes on with the experts that are missing"):
        store = fit_bezier(given.store, given.config, progress=_progress())
    infos = [store.entry(i)["control"]["info"] for i in range(len(store))]
    line, curve = (fmean(fmean(info[name]) for info in infos) for name in ("loss_line", "loss_curve"))
    rows = [("store", str(store.path)), ("control points", str(len(infos)))]
    _print_rows([*rows, ("training loss between the ends", f"{line:.4g} on the line, {curve:.4g} on the curve")])


def _distill(words: list[str]) -> None:
    """Distil a dataset along the trajectories of a store."""
    from mct_fast.distill import DistillConfig, distill
    from mct_fast.report import write_report

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

    chosen = _preset_in(words)
    default = None if chosen is None else Arguments(preset=chosen.name, config=chosen.distill)
    given = _parse("distill", Arguments, words, default)

    def asked() -> tuple[DistillConfig, Path, Path]:
        """Configuration, store and run folder."""
        if given.resume is not None:
            data_path = given.config.data_path
            if given != Arguments(given.trajectories, resume=given.resume, config=DistillConfig(data_path=data_path)):
                raise InputError(
                    "resume: a run goes on with its own settings; leave out every other option "
                    "but --trajectories and --data-path, for folders that have moved"
                )
            config, stored = _stored_config(given.resume, DistillConfig)
            config = dataclasses.replace(config, data_path=data_path or config.data_path)
            return config, given.trajectories or stored, given.resume
        if given.trajectories is None:
            raise InputError("trajectories: missing; give --trajectories STORE and --out RUN, or --resume RUN")
        if given.out is None:
            raise InputError("out: missing; give --out RUN, the folder to write")
        return given.config, given.trajectories, given.out

    with _session() as communicator:
        config, trajectories, out = communicator.tell(asked)
        with _resumable(f"go on with: mct-fast distill --resume {out}"):
            distill(
                config,
                trajectories,
                out=out,
                resume=given.resume is not None,
                progress=_progress(communicator),
                communicator=communicator,
            )
            page = communicator.lead(lambda: write_report(out))
        communicator.lead(lambda: _print_rows([*_run_rows(out), ("report", str(page))]))


def _evaluate(words: list[str]) -> None:
    """Train fresh networks on a distilled set and score them."""
    from mct_fast.evaluate import EvalConfig, evaluate, evaluate_random_real
    from mct_fast.run import Run
    from mct_fast.tasks import format_metric

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train fresh networks on a distilled set and on as many random real images, and score them.

        Given a run, the results are kept there, and 'mct-fast report' shows them.
        """

        path: Positional[Path]
        """A run folder, or the folder of a distilled set."""
        model: str | None = None
        """Networks, separated by commas: ConvNet, MLP, AlexNet, VGG11, ResNet18, LeNet, or a variant such as
        ConvNetD4 or ResNet18BN. Left out, the one that the set was distilled with."""
        split: str = "test"
        """The split to score on: test or val."""
        random_real: bool = True
        """Also train on as many random real images, the baseline."""
        dataset: str | None = None
        """Dataset to score on; left out, the one that the set was distilled from."""
        data_path: str | None = None
        """Folder that holds the dataset; left out, the one noted with the experts."""
        config: OmitArgPrefixes[EvalConfig] = EvalConfig()

    given = _parse("evaluate", Arguments, words)
    with _session() as communicator:
        distilled, run_path = communicator.tell(lambda: _distilled_at(given.path))
        dataset = communicator.lead_first(
            lambda: _dataset_of(distilled, run_path, given.dataset, given.data_path, given.config.device)
        )
        common: dict[str, Any] = {
            "split": given.split, "progress": _progress(communicator), "communicator": communicator
        }  # fmt: skip
        own = distilled.provenance.get("model")
        networks: list[Any] = [own or "ConvNet"] if given.model is None else _models(given.model, own)
        rows: list[tuple[str, ...]] = [("network", given.split, *(["random real"] if given.random_real else []))]
        with _resumable("networks that were finished are kept"):
            for network in networks:
                result = evaluate(distilled, dataset, given.config, model=network, **common)
                record = result.record()
                row = [result.model, format_metric(result.metric, result.mean, result.std)]
                if given.random_real:
                    ipc = len(distilled) // distilled.num_classes
                    lrs = (result.lr, 0.01) if len(dataset.val) else (result.lr,)
                    random = evaluate_random_real(
                        ipc, dataset, given.config, model=network, task=distilled.task, lrs=lrs, **common
                    )
                    record |= random.baseline()
                    row.append(format_metric(random.metric, random.mean, random.std))
                rows.append(tuple(row))
                if run_path is not None:
                    communicator.lead(lambda record=record: Run.open(run_path).add_evaluation(record))
        communicator.lead(lambda: _print_rows(rows))


def _report(words: list[str]) -> None:
    """Write a run's page: images, curves, configuration, storage, timings."""
    from mct_fast.report import write_report
    from mct_fast.tensorboard import write_events

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Write report.html, images.png and curves.png into a run's folder."""

        run: Positional[Path]
        """Run folder that 'mct-fast distill' wrote."""
        tensorboard: bool = False
        """Also write TensorBoard event files (needs the package tensorboard)."""

    given = _parse("report", Arguments, words)
    rows = [("report", str(write_report(given.run)))]
    if given.tensorboard:
        rows.append(("tensorboard", str(write_events(given.run))))
    _print_rows(rows)


def _inspect(words: list[str]) -> None:
    """Say what a trajectory store, a run or a distilled set holds."""
    from mct_fast.run import CONFIG

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
        device: str = "cpu"
        """Where to compute, e.g. 'cpu' or 'cuda'."""

    given = _parse("inspect", Arguments, words)
    path = given.path
    if not path.is_dir():
        raise InputError(f"path: {path} is no folder; give a trajectory store, a run or a distilled set")
    if (path / "manifest.json").is_file():
        _inspect_store(given)
        return
    if given != Arguments(path):
        raise InputError(f"path: {path} is no trajectory store, which every other option is for; leave them out")
    if (path / CONFIG).is_file():
        _print_rows(_run_rows(path))
    else:
        distilled, _ = _distilled_at(path)
        _print_rows(_distilled_rows(distilled))


def _inspect_store(given: Any) -> None:
    from rich.console import Console

    from mct_fast.inspect import draw, inspect_store, rows, show

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
        progress=_progress(),
    )
    if given.json:
        print(json.dumps(report.json(), indent=1, ensure_ascii=False))
    else:
        _print_rows(rows(report))
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

    _parse("presets", Arguments, words)
    rows: list[tuple[str, ...]] = [
        ("preset", "N", "M", "starts", "lr_img", "lr_lr", "lr_teacher", "batch_syn", "zca", "source"),
    ]
    for known in presets():
        c = known.distill
        numbers = (c.syn_steps, f"{c.expert_epochs:g}", f"{c.min_start_epoch:g}-{c.max_start_epoch:g}", f"{c.lr_img:g}")
        rest = (f"{c.lr_lr:g}", f"{c.lr_teacher:g}", c.batch_syn or "all", "yes" if known.experts.zca else "no")
        rows.append((known.name, *map(str, (*numbers, *rest)), known.source))
    _print_rows(rows)
    print("\nN: syn_steps, M: expert_epochs, starts: min_start_epoch-max_start_epoch")


def _demo(words: list[str]) -> None:
    """Distil real handwritten digits in a few minutes, no download needed."""
    from mct_fast.demo import run_demo
    from mct_fast.progress import duration

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Train experts on scikit-learn's handwritten digits, distil one image a class, and write a page about it."""

        out: Path = Path("runs/demo")
        """Folder to write."""

    given = _parse("demo", Arguments, words)
    with _resumable(f"go on with: mct-fast demo --out {given.out}"):
        result = run_demo(given.out, progress=_progress())
    final = result.final
    random = _percent(final["random_real_mean"], final["random_real_std"])
    _print_rows(
        [
            ("test accuracy, trained on", f"({final['num_eval']} networks)"),
            ("10 random real images", random),
            ("10 distilled images", _percent(final["test_mean"], final["test_std"])),
            ("training experts took", duration(result.expert_seconds)),
            ("distilling took", duration(result.distill_seconds)),
            ("look at", str(result.page)),
        ]
    )


_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "experts": _experts,
    "compress": _compress,
    "bezier": _bezier,
    "distill": _distill,
    "evaluate": _evaluate,
    "report": _report,
    "inspect": _inspect,
    "presets": _presets,
    "demo": _demo,
}

_SPLIT = (_experts, _distill, _evaluate)
"""Commands whose work is split where torchrun starts several processes."""


# Several processes


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _process() -> str:
    """Which of several processes speaks."""
    return f"process {os.environ.get('RANK', '0')}: " if _processes() > 1 else ""


def _session() -> Any:
    from mct_fast.distributed import session

    return session()


# Parsing


def _parse(command: str, arguments: type[T], words: list[str], default: T | None = None) -> T:
    """``words`` as an instance of the dataclass ``arguments``; wrong words become an :class:`InputError` of one line.

    What ``words`` leave out is taken from ``default``, or from the defaults of the class.
    """
    _refuse_unknown_options(arguments, words)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            prog = f"mct-fast {command}"
            if default is None:
                return tyro.cli(arguments, prog=prog, args=words, use_underscores=True)
            return tyro.cli(arguments, prog=prog, args=words, use_underscores=True, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_first_sentence(complaint.getvalue(), command)) from None


def _preset_in(words: Sequence[str]) -> Any:
    """The preset that ``words`` name, or None. Looked up before parsing: it is what the other options default to."""
    from mct_fast.presets import preset

    chosen = None
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == "--preset" and following is not None:
            chosen = following
        elif word.startswith("--preset="):
            chosen = word.partition("=")[2]
    return None if chosen is None else preset(chosen)


def _refuse_unknown_options(arguments: type, words: Iterable[str]) -> None:
    known = set(_options(arguments))
    for word in words:
        if word == "--":
            return
        if not word.startswith("--") or word == "--help":
            continue
        name = word[2:].partition("=")[0].replace("-", "_")
        if name not in known:
            raise InputError(f"unknown option --{name}{_nearest(name, known, '--')}")


def _options(arguments: type) -> Iterator[str]:
    for field in dataclasses.fields(arguments):
        if dataclasses.is_dataclass(field.default) and not isinstance(field.default, type):
            yield from _options(type(field.default))
        else:
            yield field.name
            if isinstance(field.default, bool):
                yield f"no_{field.name}"


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {prefix}{close[0]}?" if close else ""


def _first_sentence(complaint: str, command: str) -> str:
    """tyro's message without its frame: what stands before the first rule, on one line."""
    words: list[str] = []
    for line in complaint.splitlines():
        text = line.strip("│ ").strip()
        if text.startswith("╭"):
            continue
        if not text or text[0] in "─╰":
            break
        words += text.split()
    message = " ".join(words) or "wrong arguments"
    return f"{message[0].lower()}{message[1:]}; see mct-fast {command} --help"


def _json_object(name: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: {text!r} is not JSON ({error}); see --help for an example") from error
    if not isinstance(value, dict):
        raise InputError(f'{name}: {text!r} is no JSON object; give {{"name": ...}}')
    return value


# What the commands read


def _stored_config(path: Path, kind: type[T]) -> tuple[T, Path]:
    """The frozen configuration of a run, and its trajectory store."""
    from mct_fast.run import Run

    config = dict(Run.open(path).config)
    trajectories = config.get("trajectories")
    if trajectories is None:
        raise InputError(f"resume: {path} was made from trajectories in memory; go on with distill(..., resume=True)")
    names = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in config.items() if name in names}), Path(trajectories)


def _distilled_at(path: Path) -> tuple[Any, Path | None]:
    """The distilled set at ``path``, and the run it belongs to if ``path`` is a run."""
    from mct_fast.distilled import DistilledDataset
    from mct_fast.run import CONFIG

    if not (path / CONFIG).is_file():
        return DistilledDataset.load(path), None
    if not (path / "distilled").is_dir():
        raise InputError(f"path: the run {path} has no distilled set yet; go on with: mct-fast distill --resume {path}")
    return DistilledDataset.load(path / "distilled"), path


def _dataset_of(distilled: Any, run_path: Path | None, name: str | None, data_path: str | None, device: str) -> Any:
    """The dataset that ``distilled`` came from, or the one called ``name`` in the same form."""
    from mct_fast.data import load_noted
    from mct_fast.run import Run
    from mct_fast.trajectory import TrajectoryStore

    kind = distilled.transform.state()[1].get("kind")
    noted: dict[str, Any] = {"name": distilled.provenance.get("dataset"), "zca": kind == "zca"}
    if kind not in ("table", "series"):
        noted["image_size"] = distilled.provenance.get("image_shape", distilled.images.shape)[-1]
    noted |= distilled.provenance.get("data", {})
    store = Run.open(run_path).config.get("trajectories") if run_path is not None else None
    if isinstance(store, str):
        with contextlib.suppress(InputError):  # moved since; what the set itself says must do
            noted |= TrajectoryStore.open(store).manifest["dataset"]
    noted["name"] = name or noted["name"]
    if noted["name"] is None:
        raise InputError("dataset: the distilled set does not say where it came from; give --dataset")
    return load_noted(noted, data_path=data_path, device=device)


def _models(names: str, own: dict[str, Any] | None) -> list[Any]:
    """Networks by name; the name of the distilled set's own network stands for exactly that one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError("model: names no network; give e.g. --model ConvNet,AlexNet")
    return [own if own is not None and own.get("name") == name else name for name in wanted]


# What the commands print


def _progress(communicator: Any = None) -> Any:
    """Shown by one process alone."""
    from mct_fast.progress import for_stream, quiet

    return quiet() if communicator is not None and communicator.rank else for_stream()


def _store_rows(store: Any) -> list[tuple[str, str]]:
    from mct_fast.inspect import inspect_store, rows

    return rows(inspect_store(store, accuracy=False))


def _written_rows(folder: Path, written: Any) -> list[tuple[str, str]]:
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


def _run_rows(path: Path) -> list[tuple[str, ...]]:
    from mct_fast.run import Run
    from mct_fast.tasks import format_metric, metric_label

    run = Run.open(path)
    records = run.metrics()
    done = max((r["iteration"] for r in records if r["kind"] == "iter"), default=0)
    rows = [
        ("run", str(path)),
        ("iterations", f"{done} of {run.config.get('iterations', '?')}"),
    ]
    for record in [r for r in records if r["kind"] == "eval"][-1:]:
        shown = format_metric(record.get("metric", "accuracy"), record["mean"], record["std"])
        rows.append((f"latest {record['split']}", f"{shown} at iteration {record['iteration']}"))
    for record in [r for r in records if r["kind"] == "final"][-1:]:
        networks = f"({record['num_eval']} networks, images of iteration {record['iteration']})"
        metric = record.get("metric", "accuracy")
        label = "" if metric == "accuracy" else f"{metric_label(metric)} "
        rows.append(("test", f"{label}{format_metric(metric, record['test_mean'], record['test_std'])} {networks}"))
        if record.get("random_real_mean") is not None:
            random = format_metric(metric, record["random_real_mean"], record["random_real_std"])
            rows.append(("random real", f"{label}{random}"))
        if record.get("nearest_real"):
            rows += [("rows", str(path / "distilled.csv")), *_privacy_rows(record["nearest_real"])]
    return rows


def _privacy_rows(nearest: Any) -> list[tuple[str, ...]]:
    from mct_fast.distilled_table import PRIVACY, nearest_text

    return [("nearest real row", nearest_text(nearest)), ("privacy", PRIVACY)]


def _distilled_rows(distilled: Any) -> list[tuple[str, ...]]:
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


def _percent(mean: float, std: float) -> str:
    return f"{100 * mean:.1f} ± {100 * std:.1f} %"


def _print_rows(rows: Iterable[tuple[str, ...]]) -> None:
    """Rows of cells in aligned columns."""
    rows = list(rows)
    columns = max(len(row) for row in rows)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]))


class _Interrupted(Exception):  # noqa: N818 (no error: the user pressed Ctrl-C)
    """Ctrl-C during work that can be gone on with; the text says how."""


@contextlib.contextmanager
def _resumable(how: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _Interrupted(how) from None


if __name__ == "__main__":
    sys.exit(main())
