"""The commands: each a function that takes the words after its name.

What a command needs is imported once its words are understood, so that help and mistakes are answered at once. The first
line of each docstring stands in the overview.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro import MISSING

from mct_fast.cli import docs, exchange, ranking
from mct_fast.cli.arguments import (
    BezierArguments,
    CompressArguments,
    DemoArguments,
    DistillArguments,
    EvaluateArguments,
    ExpertsArguments,
    InspectArguments,
    PresetsArguments,
    ReportArguments,
)
from mct_fast.cli.output import distilled_rows, percent, preset_rows, print_rows, run_rows, store_rows, written_rows
from mct_fast.cli.parsing import json_object, parse, preset_in, use_plugin
from mct_fast.cli.session import progress_bars, resumable, session, watcher
from mct_fast.cli.stored import (
    Source,
    buildable,
    check_claims,
    check_dataset,
    dataset_of,
    distilled_at,
    models,
    resumed_in,
    stored_config,
    without_store,
)
from mct_fast.cli.sweep import sweep_command
from mct_fast.run.errors import InputError
from mct_fast.settings import DistillConfig


def _experts(words: list[str]) -> None:
    """Train experts on real data into a store of convexified trajectories."""
    use_plugin(words)
    chosen = preset_in(words)
    # What it is given in place of Path() must be given: --out has no default.
    default = None if chosen is None else ExpertsArguments(MISSING, chosen.name, config=chosen.experts)
    given = parse("experts", ExpertsArguments, words, default)
    if given.dry_run:
        from mct_fast.cli.plans import experts_plan

        print_rows(experts_plan(given.config, given.out, progress_bars()))
        return
    from mct_fast.experts import train_experts

    again = (
        "the same command again goes on with the experts that are missing, those under way from their last checkpoint"
    )
    with session() as communicator:
        with resumable(again), watcher(given.tensorboard, given.out, communicator) as watching:
            store = train_experts(
                given.config,
                given.out,
                progress=progress_bars(communicator),
                watcher=watching,
                communicator=communicator,
            )
        communicator.lead(lambda: print_rows(store_rows(store)))


def _compress(words: list[str]) -> None:
    """Make a store of experts that exist (MTT, MCT), or MTT's files of a store."""
    use_plugin(words)
    given = parse("compress", CompressArguments, words)
    from mct_fast.compress import compress, to_mtt

    if given.to_mtt is not None:
        if given != CompressArguments(given.source, to_mtt=given.to_mtt, per_file=given.per_file):
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
    use_plugin(words)
    given = parse("bezier", BezierArguments, words)
    from statistics import fmean

    from mct_fast.experts.bezier import fit_bezier

    with resumable("the same command again goes on with the experts that are missing"):
        store = fit_bezier(given.store, given.config, progress=progress_bars())
    infos = [store.entry(i)["control"]["info"] for i in range(len(store))]
    line, curve = (fmean(fmean(info[name]) for info in infos) for name in ("loss_line", "loss_curve"))
    rows = [("store", str(store.path)), ("control points", str(len(infos)))]
    print_rows([*rows, ("training loss between the ends", f"{line:.4g} on the line, {curve:.4g} on the curve")])


def _distill(words: list[str]) -> None:
    """Distil a dataset along the trajectories of a store."""
    use_plugin(words)
    chosen, begun = preset_in(words), resumed_in(words)
    default = None if chosen is None else DistillArguments(preset=chosen.name, config=chosen.distill)
    if begun is not None:  # what is not given is the run's own
        default = DistillArguments(preset=None if chosen is None else chosen.name, config=begun)
    given = parse("distill", DistillArguments, words, default)
    from mct_fast.distill import distill
    from mct_fast.view.report import write_report

    with session() as communicator:
        config, source, out = _asked(given, begun)
        if given.dry_run:
            from mct_fast.cli.plans import distill_plan

            communicator.lead(lambda: print_rows(distill_plan(config, source, out, progress_bars())))
            return
        how = f"go on with: mct-fast distill --resume {out}"
        with resumable(how), watcher(given.tensorboard, out, communicator) as watching:
            bars = progress_bars(communicator)
            made_of = communicator.lead_first(lambda: source.arguments(config, bars))
            distill(
                config,
                made_of.pop("trajectories"),
                **made_of,
                out=out,
                resume=given.resume is not None,
                progress=bars,
                watcher=watching,
                communicator=communicator,
            )
            page = communicator.lead(lambda: write_report(out))
        communicator.lead(lambda: print_rows([*run_rows(out), ("report", str(page))]))


def _asked(given: DistillArguments, begun: DistillConfig | None) -> tuple[DistillConfig, Source, Path]:
    """Configuration, what the run is made of, and run folder that are asked for; ``begun``: that of the run to go on with."""
    if given.resume is not None:
        may = {"data_path": given.config.engine.data_path, "iterations": given.config.optimizer.iterations}
        own = DistillArguments(
            given.trajectories,
            resume=given.resume,
            plugin=given.plugin,
            dry_run=given.dry_run,
            tensorboard=given.tensorboard,
            config=dataclasses.replace(begun or DistillConfig(), **may),
        )
        if given != own:
            raise InputError(
                "resume: a run goes on with its own settings; leave out every other option but --iterations, to go on "
                "for longer, and --trajectories and --data-path, for folders that have moved"
            )
        config, stored = stored_config(given.resume)
        config = dataclasses.replace(config, **may)
        return config, stored if given.trajectories is None else Source(given.trajectories), given.resume
    if given.trajectories is None and given.config.goal.objective == "matching":
        raise InputError("trajectories: missing; give --trajectories STORE and --out RUN, or --resume RUN")
    if given.out is None:
        raise InputError("out: missing; give --out RUN, the folder to write")
    chosen = None
    if given.preset is not None:
        from mct_fast.presets import preset

        chosen = preset(given.preset).experts
    if given.trajectories is None:
        return given.config, without_store(chosen, given.experts), given.out
    if given.experts.download:
        raise InputError("download: is for a run without a store, whose dataset is there; leave it out")
    if chosen is not None:
        check_dataset("preset", str(given.preset), chosen.data.dataset, given.trajectories)
    check_claims(given.experts, given.trajectories)
    return given.config, Source(given.trajectories), given.out


def _evaluate(words: list[str]) -> None:
    """Train fresh networks on a distilled set and score them."""
    use_plugin(words)
    given = parse("evaluate", EvaluateArguments, words)
    from mct_fast.coreset import coreset_text
    from mct_fast.evaluate import baseline_text, default_model
    from mct_fast.run.folder import Run
    from mct_fast.tasks import format_metric

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
        methods = [*dict.fromkeys(name.strip() for name in (given.coreset or "").split(",") if name.strip())]
        coresets = _coresets(methods, distilled, dataset, given, progress_bars(communicator))
        head = ("network", given.split, *(["random real"] if given.random_real else []), *methods)
        rows: list[tuple[str, ...]] = [head]
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
                controls = _controls(
                    dict(zip(methods, coresets, strict=True)), distilled, dataset, given, network, communicator
                )
                record |= {"coresets": controls} if controls else {}
                said = [baseline_text(record) or ""] if given.random_real else []
                said += [coreset_text(record, method) or "" for method in methods]
                rows.append((record["model"], result, *said))
                if kept_in is not None:
                    communicator.lead(lambda record=record: Run.open(kept_in).add_evaluation(record))
        communicator.lead(lambda: print_rows(rows))


def _coresets(methods: list[str], distilled: Any, dataset: Any, given: Any, progress: Any) -> list[Any]:
    """The real images that each of ``methods`` chooses, as many as ``distilled`` has."""
    if not methods:
        return []
    from mct_fast.coreset import coreset

    ipc, protocol = len(distilled) // distilled.num_classes, given.config.protocol
    return [
        coreset(
            dataset, ipc, method, epochs=given.coreset_epochs, seed=protocol.seed, device=protocol.device,
            progress=progress,
        )
        for method in methods
    ]  # fmt: skip


def _controls(
    coresets: dict[str, Any], distilled: Any, dataset: Any, given: Any, network: Any, communicator: Any
) -> dict[str, Any]:
    """What a run notes of networks that are trained on each of ``coresets``."""
    if not coresets:
        return {}
    from mct_fast.coreset import coreset_record, evaluate_coreset
    from mct_fast.evaluate import baseline_lrs

    lrs = baseline_lrs(distilled, given.config.networks.lr_net)
    found = {
        method: evaluate_coreset(
            chosen, dataset, given.config, model=network, split=given.split, lrs=lrs,
            progress=progress_bars(communicator), communicator=communicator,
        )
        for method, chosen in coresets.items()
    }  # fmt: skip
    return {method: {**coreset_record(one), "epochs": given.coreset_epochs} for method, one in found.items()}


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
    """Write a run's page: images, curves, settings, storage, times; of several runs, one that compares them."""
    given = parse("report", ReportArguments, words)
    from mct_fast.view.report import remarks, write_comparison, write_report
    from mct_fast.view.tensorboard import write_events

    if not given.runs:
        raise InputError("runs: missing; give the folder of a run, or of several")
    single = len(given.runs) == 1
    rows = [("report", str(write_report(given.runs[0]) if single else write_comparison(given.runs, given.out)))]
    rows += remarks(given.runs[0]) if single else []
    rows += [("tensorboard", str(write_events(run))) for run in given.runs if given.tensorboard]
    print_rows(rows)


def _inspect(words: list[str]) -> None:
    """Say what a trajectory store, a run or a distilled set holds."""
    use_plugin(words)
    given = parse("inspect", InspectArguments, words)
    from mct_fast.run.folder import CONFIG

    path = given.path
    if not path.is_dir():
        raise InputError(f"path: {path} is no folder; give a trajectory store, a run or a distilled set")
    if (path / "manifest.json").is_file():
        _inspect_store(given)
        return
    if given != InspectArguments(path, plugin=given.plugin):
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
    """List the settings that --preset takes, or the commands of one."""
    given = parse("presets", PresetsArguments, words)
    from mct_fast.presets import commands_of, preset, presets_for

    if given.name:
        chosen = preset(given.name)
        print(f"{chosen.name}: {chosen.source}\n")
        print("\n".join(commands_of(chosen)))
        return
    print_rows(preset_rows(presets_for(given.dataset)))
    print(
        "\nN: syn_steps, M: expert_epochs, starts: min_start_epoch-max_start_epoch, waypoints: of the convex\n"
        "path, how many or at which epochs (-: every epoch's checkpoint).\n"
        "'mct-fast presets NAME' says where a preset comes from, and prints its commands."
    )


def _demo(words: list[str]) -> None:
    """Distil real handwritten digits in a few minutes, no download needed."""
    given = parse("demo", DemoArguments, words)
    from mct_fast.demo import run_demo
    from mct_fast.run.progress import duration

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
    "ranking": ranking.run,
    "export": exchange.export,
    "import": exchange.import_,
    "report": _report,
    "inspect": _inspect,
    "presets": _presets,
    "demo": _demo,
    "docs": docs.run,
}

SPLIT = (_experts, _distill, sweep_command, _evaluate)
"""Commands whose work is split where torchrun starts several processes."""
