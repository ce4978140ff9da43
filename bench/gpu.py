"""What a GPU says, in one command: ``python -m bench.gpu --minutes 10 --out FOLDER [--reference PATH]``.

Parts in order of worth, each a process of its own with a time limit: one that fails or runs out prints a line, and the next
begins. Results are written as they come, a JSON file a part. First all parts run once side by side with little to do, so
that the compiler works on all cores; what they measure then is thrown away.

``--dry-run`` runs the same code at toy size, on a processor where there is no GPU: its numbers mean nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from bench import machine, tables
from bench.gpu_parts import PARTS
from mct_fast.run.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """What to run and where to leave it."""

    out: str = "bench/results/gpu"
    """Folder for the results as JSON."""
    minutes: float = 10.0
    """Time for everything, compilation included."""
    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    device: str = "cuda"
    """Where to compute."""
    only: tuple[str, ...] = ()
    """These parts alone."""
    part: str | None = None
    """Run one part in this process: what the command itself starts."""
    warm: bool = False
    """Little of everything: to compile."""
    dry_run: bool = False
    """Toy sizes, on the CPU if there is no GPU: to see that all of it runs."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs the parts; returns 0 if all ended, 1 if one did not, 2 after wrong input."""
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench.gpu", description=__doc__)
    if arguments.dry_run and not torch.cuda.is_available():
        arguments = replace(arguments, device="cpu")
    unknown = [name for name in (*arguments.only, *filter(None, [arguments.part])) if name not in PARTS]
    try:
        if unknown:
            raise InputError(f"only: no part is called {unknown[0]!r}; choose from {', '.join(PARTS)}")
        machine.check_device(arguments.device)
    except InputError as error:
        print(f"bench.gpu: error: {error}, or try the code with --dry-run", file=sys.stderr)
        return 2
    return _run(arguments.part, arguments) if arguments.part is not None else _all(arguments)


def _run(name: str, arguments: Arguments) -> int:
    """One part, here."""
    circumstances = machine.circumstances()
    results = PARTS[name](arguments)
    tables.console().print(tables.rows(name, results))
    if not arguments.warm:
        tables.write(
            Path(arguments.out) / f"{name}.json", tables.document(name, asdict(arguments), circumstances, results)
        )
    return 0


def _all(arguments: Arguments) -> int:
    end = time.monotonic() + 60 * arguments.minutes
    names = arguments.only or tuple(PARTS)
    if torch.cuda.is_available():
        _compile(names, arguments, limit=0.3 * 60 * arguments.minutes)
    status = 0
    for name in names:
        left = end - time.monotonic()
        try:
            done = subprocess.run(_words(name, arguments), timeout=max(left, 0.1), check=False).returncode
        except subprocess.TimeoutExpired:
            done = None
        if done != 0:
            status = 1
            print(f"bench.gpu: {name}: {'out of time' if done is None else f'failed with status {done}'}", flush=True)
    return status


def _compile(names: Sequence[str], arguments: Arguments, limit: float) -> None:
    running = [
        subprocess.Popen(
            _words(name, replace(arguments, warm=True)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for name in names
    ]
    end = time.monotonic() + limit
    for process in running:
        try:
            process.wait(max(end - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()


def _words(name: str, arguments: Arguments) -> list[str]:
    words = [sys.executable, "-m", "bench.gpu", "--part", name, "--out", arguments.out, "--device", arguments.device]
    words += ["--reference", arguments.reference] if arguments.reference is not None else []
    words += ["--warm"] if arguments.warm else []
    return words + (["--dry-run"] if arguments.dry_run else [])


if __name__ == "__main__":
    sys.exit(main())
