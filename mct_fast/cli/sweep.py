"""``mct-fast sweep``: several distillations side by side."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tyro import MISSING

from mct_fast.cli.arguments import SweepArguments
from mct_fast.cli.output import print_rows, run_rows
from mct_fast.cli.parsing import parse, preset_in, use_plugin
from mct_fast.cli.session import progress_bars, resumable, session
from mct_fast.cli.stored import check_dataset
from mct_fast.run.errors import InputError


def sweep_command(words: list[str]) -> None:
    """Distil several times side by side: seeds, step sizes, methods."""

    def parsed(words: list[str]) -> Any:
        chosen = preset_in(words)
        default = (
            None if chosen is None else SweepArguments(MISSING, MISSING, MISSING, chosen.name, config=chosen.distill)
        )
        given = parse("sweep", SweepArguments, words, default)
        if chosen is not None:
            check_dataset("preset", chosen.name, chosen.experts.data.dataset, given.trajectories)
        return given

    use_plugin(words)
    given = parse("sweep", SweepArguments, words)
    from mct_fast.distill import sweep

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
