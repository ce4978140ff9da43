"""MTT and MCT on the same experts, distilled and evaluated: ``python -m bench.study NAME --out DIR [--data-path PATH]``.

A study that was killed goes on where it stopped when the same command is given again; a finished one is left as it is.

``python -m bench.study report [DIR …]`` takes over what the studies in these folders have found, finished or not, into
``docs/results`` and writes ``docs/results.md`` from all that is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from bench.machine import ROOT, check_device, set_threads
from bench.study.plans import study_named
from bench.study.report import adopt, write
from bench.study.runner import Runner
from bench.tables import console, note, table
from mct_fast.run.errors import InputError
from mct_fast.run.progress import for_stream


@dataclass(frozen=True)
class Arguments:
    """Run a study, or go on with it."""

    name: Positional[str]
    """cifar10-ipc1, fashion-ipc1, fashion-ipc10, fashion-ablations, fashion-levers, fashion-search, fashion-ipc10-search,
    digits, digits-levers or digits-search."""
    out: Path
    """Folder for experts, runs and results."""
    data_path: str | None = None
    """Folder of the dataset: for cifar10-ipc1 one that holds train/<class>/… and test/<class>/…."""
    seeds: tuple[int, ...] | None = None
    """Only these seeds' runs, so that several processes can do a study together once its experts are there; None: all."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    device: str = "cpu"
    """Device to compute on; a study is done on one from beginning to end."""


@dataclass(frozen=True)
class ReportArguments:
    """Write docs/results.md from the studies' JSON."""

    studies: Positional[tuple[Path, ...]] = ()
    """Folders of studies whose results are to be taken over first."""
    docs: Path = ROOT / "docs"
    """Folder of results.md."""


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    return _report(words[1:]) if words[:1] == ["report"] else _run(words)


def _report(words: Sequence[str]) -> int:
    arguments = tyro.cli(ReportArguments, args=words, prog="python -m bench.study report")
    try:
        for folder in arguments.studies:
            adopt(folder, arguments.docs)
        note(f"wrote {write(arguments.docs)}")
    except InputError as error:
        note(f"bench.study: error: {error}")
        return 2
    return 0


def _run(words: Sequence[str]) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench.study", description=__doc__)
    set_threads(arguments.threads)
    try:
        check_device(arguments.device)
        study = study_named(arguments.name).on(arguments.device)
        results = Runner(study, arguments.out, arguments.data_path, for_stream(), note, arguments.seeds).run()
    except InputError as error:
        note(f"bench.study: error: {error}")
        return 2
    rows = []
    for run in results["runs"]:
        last = run["curve"][-1]["test"] if run["curve"] else []
        shown = f"{100 * sum(last) / len(last):.1f} %" if last else "-"
        rows.append((f"{run['arm']}, seed {run['seed']}", str(run["iterations"]), shown))
    console().print(table(study.name, ("run", "iterations", "last test accuracy"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
