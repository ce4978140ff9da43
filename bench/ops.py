"""Each operator against PyTorch's own and against what the machine can do at most, on the shapes of the reference ConvNet.

    python -m bench.ops --json bench/results/ops.json

Every result is compared with the pure-PyTorch reference in float64 first; if one differs nothing is timed (exit status 1).
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import ceilings, tables
from bench.ceilings import Ceilings
from bench.harness import Report, UnequalError, command
from bench.op_cases import Case, cases
from bench.timing import Spread, interleave

TOLERANCE = {"cpu": 1e-4, "cuda": 2e-3}
"""Relative, for float32; on a processor Winograd's convolutions are at 1e-6, on a GPU tf32 keeps ten bits of the factors."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    shapes: tuple[tuple[int, int], ...] = ((1, 10), (1, 100), (5, 10))
    """Pairs: students, images a student."""
    width: int = 128
    """Channels of a block."""
    image_size: int = 32
    """Side of the images."""
    only: tuple[str, ...] = ()
    """These operators alone."""
    seconds: float = 0.2
    """Seconds of timing a case and contestant."""
    device: str = "cpu"
    """Where to compute."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    json: str | None = None
    """Where to write the result."""


@dataclass(frozen=True)
class Row:
    """One case: rates of ours in bytes and operations a second, the share of the binding ceiling, PyTorch's time over ours."""

    op: str
    shape: str
    error: float
    ours: Spread
    pytorch: Spread
    bytes_a_second: float
    flops_a_second: float
    share: float
    ratio: float
    note: str


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command("ops", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    tolerance = TOLERANCE[torch.device(arguments.device).type]
    with torch.no_grad():
        wrong = [f"{c.op} {c.shape}: error {e:.1e}" for c in _cases(arguments) if not (e := c.error()) <= tolerance]
    if wrong:
        raise UnequalError("results differ from the reference (" + "; ".join(wrong) + ")")
    limits = ceilings.measure(arguments.device)
    report.show(
        f"ceilings: copy {limits.copy / 1e9:.1f} GB/s (read and written), "
        f"{limits.flops / 1e9:.0f} GFLOP/s ({limits.how})"
    )
    rows = [measured(case, limits, arguments.seconds) for case in _cases(arguments)]
    report.show(_shown(rows))
    report.circumstances["ceilings"] = asdict(limits)
    report.keep([asdict(row) for row in rows])
    return 0


def _cases(arguments: Arguments) -> Any:
    for students, batch in arguments.shapes:
        for case in cases(students, batch, arguments.width, arguments.image_size, arguments.device):
            if not arguments.only or case.op in arguments.only:
                yield case


def measured(case: Case, limits: Ceilings, seconds: float) -> Row:
    """Times a case that has passed its check."""
    with torch.no_grad():
        error, moved = case.error(), case.moved

    def ours() -> None:
        with torch.no_grad():
            case.run()

    found = interleave({"ours": ours, "pytorch": _pytorch(case)}, seconds=seconds)
    median = found["ours"].median
    return Row(
        case.op,
        case.shape,
        error,
        found["ours"],
        found["pytorch"],
        moved / median,
        case.flops / median,
        limits.least_seconds(moved, case.flops) / median,
        found["pytorch"].median / median,
        case.note,
    )


def _pytorch(case: Case) -> Any:
    # jvp over a backward pass needs the graph as well: without it PyTorch takes kernels that have no forward mode.
    classifier = ("linear_ce", "linear_ce_tangent", "linear_bce", "linear_bce_tangent")
    blocks = ("block_backward", "block_tangent_backward", "first_block_backward", "first_block_tangent_backward")
    graph = (*blocks, *classifier, "matching_loss")

    def run() -> None:
        with torch.set_grad_enabled(case.op in graph):
            case.pytorch()

    return run


def _shown(rows: Sequence[Row]) -> Any:
    lines = [
        [
            r.op,
            r.shape,
            f"{r.error:.0e}",
            f"{r.ours.median * 1e3:.3f}",
            f"{r.bytes_a_second / 1e9:.1f}",
            f"{r.flops_a_second / 1e9:.0f}" if r.flops_a_second else "-",
            f"{100 * r.share:.0f}%",
            f"{r.pytorch.median * 1e3:.3f}",
            f"{r.ratio:.2f}x",
            r.note,
        ]
        for r in rows
    ]
    columns = ("op", "shape", "error", "ms", "GB/s", "GFLOP/s", "of ceiling", "PyTorch ms", "/ ours", "note")
    caption = (
        "of ceiling: the least time that the copy rate and the multiply-adds allow, over the time taken. Operations are a direct "
        "convolution's: above 100% Winograd does fewer, or the data lie in cache, where a copy is faster too"
    )
    return tables.table("operators", columns, lines, caption)


if __name__ == "__main__":
    sys.exit(main())
