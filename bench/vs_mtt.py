"""Races one iteration of trajectory matching: ours, plain PyTorch, torch.func, and the references themselves.

    python -m bench.vs_mtt --ipc 1 10 --reference PATH --mct PATH --json bench/results/cpu.json
    python -m bench.vs_mtt --accuracy

An iteration draws its batches and augmentation, walks ``syn_steps`` steps, carries the gradient back and updates pixels and
step size.  All contestants have the same weights, segment, batches and augmentation; losses and gradients are compared
first, and if one differs nothing is timed and the exit status is 1.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench import accuracy, tables
from bench.contestants import OURS, contestants
from bench.gate import FACTOR, FIRST_STEPS, Verdict
from bench.harness import Report, command
from bench.problem import FULL_DSA, RECIPES, Setting
from bench.race import GateError, Result, Terms, race
from bench.tables import number
from mct_fast.run.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """What to race."""

    ipc: tuple[int, ...] = (1, 10)
    """Images per class; one race each."""
    depth: int = 3
    """Blocks of the ConvNet."""
    width: int = 128
    """Channels of a block."""
    image_size: int = 32
    """Side of the images."""
    channels: int = 3
    """Channels of the images."""
    num_classes: int = 10
    """Classes."""
    syn_steps: int | None = None
    """Student steps; None takes MTT's recipe for CIFAR-10: 50, 30, 30 for IPC 1, 10, 50."""
    batch_syn: int | None = None
    """Images a step; None takes all, as MTT's recipe does."""
    dsa_strategy: str = FULL_DSA
    """Augmentations to draw from, or 'none'."""
    weights: str = "random"
    """Where the segment starts: random or trained."""
    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    mct: str | None = None
    """A clone of the official MCT code."""
    tesla: str | None = None
    """A clone of justincui03/tesla."""
    only: tuple[str, ...] = ()
    """Race these alone: mct_fast, mct_fast_lean, unrolled, torch_func, torch_compile, mtt, mct_fast_truncated, mct, tesla."""
    rounds: int = 7
    """Rounds; a contestant that is too slow for its budget runs in some of them, at least two."""
    budget: float = 90.0
    """Seconds of timing a contestant."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    device: str = "cpu"
    """Where to compute."""
    memory: bool = True
    """Measure peak memory, each contestant in a process of its own."""
    accuracy: bool = False
    """Instead of racing: errors of the image gradient against float64, ours and PyTorch's."""
    seeds: int = 5
    """Problems for each line of --accuracy."""
    steps: tuple[int, ...] = (1, 5, 20, 50)
    """Numbers of steps for --accuracy."""
    seed: int = 0
    """Seed of everything random."""
    json: str | None = None
    """Where to write the result."""

    def setting(self, ipc: int) -> Setting:
        steps, _ = RECIPES.get(ipc, (20, 0))
        count = ipc * self.num_classes
        return Setting(
            ipc=ipc,
            syn_steps=self.syn_steps or steps,
            batch_syn=min(count, self.batch_syn or count),
            depth=self.depth,
            width=self.width,
            channels=self.channels,
            image_size=self.image_size,
            num_classes=self.num_classes,
            strategy=self.dsa_strategy,
            weights=self.weights,
            device=self.device,
            seed=self.seed,
        )


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status; 1 also where --accuracy fails."""
    return command("vs_mtt", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    return _accuracy(arguments, report) if arguments.accuracy else _races(arguments, report)


def _accuracy(arguments: Arguments, report: Report) -> int:
    settings = [arguments.setting(ipc) for ipc in arguments.ipc]
    lines = [line for s in settings for line in accuracy.compare(s, arguments.steps, arguments.seeds)]
    report.show(accuracy.shown(lines))
    report.keep([asdict(line) for line in lines], "accuracy")
    return int(not all(line.passed for line in lines))


def _races(arguments: Arguments, report: Report) -> int:
    clones = {"mtt": arguments.reference, "mct": arguments.mct, "tesla": arguments.tesla}
    entrants = contestants(**clones)
    _check(arguments, list(entrants))
    only = arguments.only and tuple(dict.fromkeys((OURS, *arguments.only)))
    terms = Terms(arguments.rounds, arguments.budget, only, arguments.memory, threads=arguments.threads, **clones)
    results = []
    for ipc in arguments.ipc:
        try:
            result = race(arguments.setting(ipc), entrants, terms)
        except GateError as error:
            report.show(_shown(error.verdict))
            raise
        _show(report, result)
        results.append(result.json())
    report.keep(results)
    return 0


def _check(arguments: Arguments, names: list[str]) -> None:
    for name in arguments.only:
        if name not in names:
            raise InputError(
                f"only: no contestant {name!r}; there are {', '.join(names)} (mtt, mct and tesla need their paths)"
            )
    if arguments.rounds < 2:
        raise InputError(f"rounds: got {arguments.rounds}; give at least 2")


def _show(report: Report, result: Result) -> None:
    for verdict in result.gate:
        report.show(_shown(verdict))
    rows = []
    for row in result.rows:
        if row.seconds is None or row.paired is None:
            rows.append([row.title, row.absent or "", "", "", "", "", "", ""])
            continue
        rows.append(
            [
                row.title,
                tables.seconds(row.seconds.median),
                tables.span(row.seconds),
                str(row.seconds.count),
                f"{row.ratio:.2f}x",
                f"{row.paired.least:.2f} to {row.paired.greatest:.2f}",
                tables.size(row.peak.above) if row.peak else "-",
                f"{row.memory_ratio:.1f}x" if row.memory_ratio is not None else "-",
            ]
        )
    s = result.setting
    title = (
        f"IPC {s.ipc}: {s.syn_steps} steps of {s.batch_syn} images, ConvNet depth {s.depth} width {s.width}, "
        f"{s.image_size}x{s.image_size}x{s.channels}, {s.device}, {s.dtype}"
    )
    columns = ("one iteration", "median", "least to greatest", "n", "/ ours", "within rounds", "peak memory", "/ ours")
    report.show(tables.table(title, columns, rows, "peak memory: above what the process held after its setup"))
    best = result.speedup()
    if best is not None:
        report.show(f"{best[1]:.2f} times faster than {best[0]}, the faster of the eager exact rivals that ran")


def _shown(verdict: Verdict) -> Any:
    rows = [
        [
            a.name,
            a.gradient,
            f"{a.errors.loss:.1e}",
            f"{a.errors.images:.1e}",
            f"{a.errors.lr:.1e}",
            number(a.cosine, ".4f"),
            number(a.length, ".3f"),
            "yes" if a.passed else "[bold red]NO[/bold red]",
        ]
        for a in verdict.agreements
    ]
    columns = ("gate", "gradient", "loss", "pixels", "step size", "cosine to exact", "length", "agrees")
    bound = (
        f"{FACTOR:g} times PyTorch's own errors, within bounds"
        if verdict.steps <= FIRST_STEPS
        else "what ReLUs switched by rounding do over many steps"
    )
    caption = (
        f"relative errors against float64; here at most {verdict.limits.loss:.1e} for the loss, "
        f"{verdict.limits.gradients:.1e} for gradients ({bound}). The official MCT code loses a factor 2, which the errors "
        "allow for and the length shows"
    )
    return tables.table(f"the same result? {verdict.steps} steps", columns, rows, caption)


if __name__ == "__main__":
    sys.exit(main())
