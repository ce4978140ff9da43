"""Everything that a GPU has to settle: ``python -m bench.gpu --out FOLDER [--reference PATH] [--mct PATH] [--tesla PATH]``.

1. operators against PyTorch's, as shares of the copy rate and of the tensor cores' rate, measured in the same run;
2. one iteration at IPC 1 and 10 against plain PyTorch, torch.compile and the references whose clones are given;
3. memory and time of the settings that do not fit with MTT: CIFAR-100 at IPC 50, Tiny-ImageNet at IPC 10 and 50.

Each part writes its JSON when it is done, so an hour that ends early keeps what it has.  ``--dry-run`` runs the same code at toy
size, on a processor where there is no GPU: its numbers mean nothing.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench import machine, ops, tables, vs_mtt
from bench.problem import Problem, Setting, build
from bench.timing import Spread, clock
from mct_fast.distill import DistillConfig, adjoint_of
from mct_fast.matching import Matcher
from mct_fast.run.errors import InputError


@dataclass(frozen=True)
class Large:
    """A setting of the field that is said not to fit; seconds an iteration of TESLA on an A100, as NCFM's table 3 has them."""

    title: str
    setting: Setting
    tesla_seconds: float | None


LARGE = (
    Large("CIFAR-100, IPC 50", Setting(ipc=50, syn_steps=80, batch_syn=125, num_classes=100), 28.24),
    Large(
        "Tiny-ImageNet, IPC 10",
        Setting(ipc=10, syn_steps=20, batch_syn=200, depth=4, image_size=64, num_classes=200),
        42.01,
    ),
    Large(
        "Tiny-ImageNet, IPC 50",
        Setting(ipc=50, syn_steps=20, batch_syn=300, depth=4, image_size=64, num_classes=200),
        None,
    ),
)
"""Steps and batches of MTT's author (DC-BENCH)."""


@dataclass(frozen=True)
class Arguments:
    """What to run and where to leave it."""

    out: str = "bench/results/gpu"
    """Folder for the results as JSON."""
    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    mct: str | None = None
    """A clone of the official MCT code."""
    tesla: str | None = None
    """A clone of justincui03/tesla."""
    device: str = "cuda"
    """Where to compute."""
    rounds: int = 5
    """Rounds of the races, and iterations of the large settings that are timed."""
    dry_run: bool = False
    """Toy sizes, on the CPU if there is no GPU: to see that all of it runs."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs all parts; returns the first exit status that is not 0, 2 after wrong input."""
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench.gpu", description=__doc__)
    if arguments.dry_run and not torch.cuda.is_available():
        arguments = replace(arguments, device="cpu")
    try:
        machine.check_device(arguments.device)
    except InputError:
        print(
            f"bench.gpu: error: device: PyTorch sees no {arguments.device!r} here; run this on a machine that has one, "
            "or try the code with --dry-run",
            file=sys.stderr,
        )
        return 2
    parts: tuple[Callable[[Arguments], int], ...] = (_operators, _large, _races)
    statuses = [part(arguments) for part in parts]
    return next((status for status in statuses if status), 0)


def _json(arguments: Arguments, name: str) -> list[str]:
    return ["--json", str(Path(arguments.out) / f"{name}.json"), "--device", arguments.device]


def _operators(arguments: Arguments) -> int:
    toy = ["--shapes", "2", "2", "--width", "8", "--image-size", "8", "--seconds", "0"]
    full = ["--shapes", "1", "10", "1", "100", "8", "10", "8", "100"]
    return ops.main([*(toy if arguments.dry_run else full), *_json(arguments, "ops")])


def _races(arguments: Arguments) -> int:
    clones = {"--reference": arguments.reference, "--mct": arguments.mct, "--tesla": arguments.tesla}
    named = [word for option, path in clones.items() if path is not None for word in (option, path)]
    toy = ["--ipc", "1", "--depth", "2", "--width", "4", "--image-size", "8", "--num-classes", "3", "--syn-steps", "2"]
    toy += ["--only", "mct_fast", "unrolled", "--budget", "0.1", "--no-memory", "--rounds", "2"]
    full = ["--ipc", "1", "10", "--rounds", str(arguments.rounds)]
    return vs_mtt.main([*(toy if arguments.dry_run else full), *named, *_json(arguments, "vs_mtt")])


# Settings that do not fit elsewhere


@dataclass(frozen=True)
class Row:
    """One way to run a large setting."""

    setting: str
    how: str
    gradient: str
    seconds: Spread
    peak: int | None
    """Bytes; None on a processor."""
    tesla_seconds: float | None = None
    """Of TESLA, truncated gradient, on an A100: published (NCFM, table 3), not measured here."""


def _large(arguments: Arguments) -> int:
    circumstances = machine.circumstances()
    rows: list[Row] = []
    for large in LARGE:
        if arguments.dry_run:
            large = replace(large, setting=_toy(large.setting))
        rows += _rows(large, arguments)
    tables.console().print(_shown(rows))
    document = tables.document("large", asdict(arguments), circumstances, [asdict(row) for row in rows])
    tables.write(Path(arguments.out) / "large.json", document)
    return 0


def _toy(setting: Setting) -> Setting:
    return replace(setting, ipc=1, syn_steps=4, batch_syn=3, width=4, depth=2, image_size=8, num_classes=5)


def _rows(large: Large, arguments: Arguments) -> list[Row]:
    """Ours as the outer loop runs it, keeping nothing, and in pieces."""
    setting = replace(large.setting, device=arguments.device)
    pieces = max(1, setting.batch_syn // 4)
    problem = build(setting)
    ways = [
        ("mct_fast, 512 MiB of activations kept", DistillConfig(keep_mb=512), None),
        ("mct_fast, nothing kept", DistillConfig(keep_mb=0), None),
        (f"mct_fast, {pieces} images at once", DistillConfig(keep_mb=0), pieces),
    ]
    rows = []
    for how, config, micro_batch in ways:
        tables.note(f"{large.title}: {how}")
        matcher = Matcher(problem.model, adjoint=adjoint_of(config), micro_batch=micro_batch)
        seconds, peak = _timed(matcher, problem, arguments.rounds)
        rows.append(Row(large.title, how, "exact", seconds, peak, large.tesla_seconds))
        del matcher
    return rows


def _timed(matcher: Matcher, problem: Problem, rounds: int) -> tuple[Spread, int | None]:
    """Seconds of an iteration without its update, and on a GPU the most bytes that PyTorch had allocated."""
    batches = problem.batches()
    plan = problem.augmentation(batches)
    rows = batches.to(problem.images.device)

    def iterate() -> None:
        matcher(problem.images, problem.labels, problem.syn_lr, problem.start, problem.target, rows, augment=plan)

    gpu = problem.images.is_cuda
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock(iterate)
    seconds = Spread.of([clock(iterate) for _ in range(max(2, rounds))])
    return seconds, torch.cuda.max_memory_allocated() if gpu else None


def _shown(rows: Sequence[Row]) -> Any:
    lines = [
        [
            f"{row.setting}: {row.how}",
            row.gradient,
            "-" if row.peak is None else tables.size(row.peak),
            tables.seconds(row.seconds.median),
            tables.span(row.seconds),
            "-" if row.tesla_seconds is None else f"{row.tesla_seconds:.1f} s",
        ]
        for row in rows
    ]
    columns = ("one iteration", "gradient", "peak", "median", "least to greatest", "TESLA, A100")
    caption = "peak: PyTorch's allocator. TESLA: its truncated gradient on an A100 as NCFM's table 3 has it, not measured here"
    return tables.table("settings that do not fit with MTT", columns, lines, caption)


if __name__ == "__main__":
    sys.exit(main())
