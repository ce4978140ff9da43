"""``mct-fast sweep``: several distillations side by side."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyro.conf import OmitArgPrefixes

from mct_fast.cli.output import print_rows, run_rows
from mct_fast.cli.parsing import parse, preset_in
from mct_fast.cli.session import progress_bars, resumable, session
from mct_fast.cli.stored import check_preset
from mct_fast.run.errors import InputError


def sweep_command(words: list[str]) -> None:
    """Distil several times side by side: seeds, step sizes, methods."""
    from mct_fast.distill import DistillConfig, sweep

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        """Distil once for each combination of the values of --vary, all side by side, a run folder each in --out.

        --vary seed=0,1,2 lr_img=100,1000 makes six runs. Each ends in the bits that 'mct-fast distill' gives it alone. What
        the shapes of a match depend on, such as ipc and syn_steps, all have in common. The same command again goes on
        where the runs stopped.
        """

        trajectories: Path
        """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
        out: Path
        """Folder of the run folders."""
        vary: tuple[str, ...]
        """Options and their values: NAME=VALUE,VALUE,... each. NAME may be preset."""
        preset: str | None = None
        """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
        config: OmitArgPrefixes[DistillConfig] = DistillConfig()

    def parsed(words: list[str]) -> Any:
        chosen = preset_in(words)
        default = None if chosen is None else Arguments(Path(), Path(), (), chosen.name, chosen.distill)
        given = parse("sweep", Arguments, words, default)
        if chosen is not None:
            check_preset(chosen, given.trajectories)
        return given

    given = parse("sweep", Arguments, words)
    common, runs = _without_vary(words), {}
    for values in _combinations(given.vary, {field.name for field in _fields(given)}):
        name = ",".join(f"{option}={value}" for option, value in values)
        if "/" in name:
            raise InputError(f"vary: {name!r} names no folder; leave out the slash")
        runs[name] = parsed([*common, *(f"--{option}={value}" for option, value in values)]).config
    outs = [given.out / name for name in runs]
    with session() as communicator:
        with resumable("the same command again goes on with the runs"):
            sweep(
                list(runs.values()),
                given.trajectories,
                outs=outs,
                resume=True,
                progress=progress_bars(communicator),
                communicator=communicator,
            )
        communicator.lead(lambda: print_rows([_row(name, out) for name, out in zip(runs, outs, strict=True)]))


def _row(name: str, out: Path) -> tuple[str, ...]:
    return name, {row[0]: row[1] for row in run_rows(out)}["test"]


def _fields(settings: Any) -> Iterator[Any]:
    """The options of ``settings``: the fields of its groups too."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield field


def _combinations(vary: tuple[str, ...], options: set[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Every combination of the values of ``vary``, as pairs of option and value."""
    axes = []
    for axis in vary:
        option, _, listed = axis.partition("=")
        option, values = option.lstrip("-").replace("-", "_"), listed.split(",")
        if option not in options - {"vary", "out", "trajectories"}:
            raise InputError(f"vary: {option!r} is no option of a run; give NAME=VALUE,VALUE, such as seed=0,1,2")
        if "" in values or len(set(values)) < len(values):
            raise InputError(
                f"vary: {axis!r} has an empty value, or one twice; give NAME=VALUE,VALUE, such as seed=0,1,2"
            )
        axes.append([(option, value) for value in values])
    names = [axis[0][0] for axis in axes]
    if not axes or len(set(names)) < len(names):
        raise InputError("vary: names no option, or one twice; give NAME=VALUE,VALUE, such as seed=0,1,2")
    return itertools.product(*axes)


def _without_vary(words: list[str]) -> list[str]:
    """``words`` that all runs have in common; ``--vary`` keeps its place."""
    kept, within = [], False
    for word in words:
        within = word == "--vary" or (within and not word.startswith("--"))
        if not within and not word.startswith("--vary="):
            kept.append(word)
    return [*kept, "--vary", "-"]
