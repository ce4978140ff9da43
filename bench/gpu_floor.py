"""The least time that each operator can take on a GPU: counted bytes and operations, divided by the card's rates.

Nothing here is measured. ``python -m bench.gpu_floor`` prints the tables; ``--doc docs/gpu.md`` writes them into that page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import tyro
from torch import Tensor

from bench.document import replace_section, table
from bench.gpu_calls import IPC_BATCHES, IPC_STEPS, Call, launches_of, step_calls

BANDWIDTH = 3.0e12
"""Bytes a second: what an H100 SXM copies at, about 90 % of the 3.35 TB/s on its data sheet."""

TENSOR = {"tf32": 494e12, "tf32x3": 494e12 / 3}
"""Dense operations a second on the tensor cores of an H100 SXM, by its data sheet; three products take three times as long."""


@dataclass(frozen=True)
class Floor:
    """One operator on one shape, and how often a step calls it."""

    op: str
    shapes: str
    count: int
    moved: int
    flops: int
    launches: int

    def seconds(self, precision: str) -> float:
        """The longer of moving all arguments and results once, and the arithmetic."""
        return max(self.moved / BANDWIDTH, self.flops / TENSOR[precision])

    def bound(self, precision: str) -> str:
        return "memory" if self.moved / BANDWIDTH >= self.flops / TENSOR[precision] else "arithmetic"


def moved(call: Call) -> int:
    """Bytes of all arguments and results, once each; what is updated in place is read and written."""
    tensors = [t for t in (*call.args, *call.results) if isinstance(t, Tensor)]
    if call.op == "sgd_step_":
        tensors += [t for t in (call.args[0], call.args[2]) if t is not None]
    return sum(t.numel() * t.itemsize for t in tensors)


def flops(call: Call) -> int:
    """Operations of the products, each multiply-add counted as two; 0 where there are none."""
    args = [a for a in call.args if isinstance(a, Tensor)]
    if call.op.startswith("conv3x3"):
        s, b, h, w, first = args[0].shape
        last = call.results[0].shape[2] if call.op == "conv3x3_weight_grad" else call.results[0].shape[4]
        pairs = 2 if call.args[-1] is not None else 1
        return 2 * s * b * h * w * 9 * first * last * pairs
    if call.op.startswith("linear"):
        s, b, features = args[0].shape
        products = 3 if call.op == "linear_ce" else 8
        return 2 * s * b * features * args[-1].shape[2] * products
    return 0


def floors(calls: Iterable[Call]) -> list[Floor]:
    """Equal calls counted together, in the order of their first."""
    found: dict[tuple[str, str, int], list[Call]] = {}
    for call in calls:
        pair = call.op.startswith("conv") and call.args[-1] is not None
        shapes = call.shapes + (", pair" if pair else "")
        found.setdefault((call.op, shapes, moved(call)), []).append(call)
    return [
        Floor(op, shapes, len(same), size, flops(same[0]), len(launches_of(same[:1])))
        for (op, shapes, size), same in found.items()
    ]


ONCE = ("matching_loss", "arc_length")
"""Operators that an iteration calls once, not once a step (the arc length only while experts train)."""


def iteration(rows: Sequence[Floor], steps: int, precision: str) -> tuple[float, int]:
    """Seconds and kernels of a matching iteration of `steps` steps, on the operators alone."""
    seconds, kernels = 0.0, 0
    for row in rows:
        times = 0 if row.op == "arc_length" else 1 if row.op in ONCE else steps * row.count
        seconds += times * row.seconds(precision)
        kernels += times * row.launches
    return seconds, kernels


def report(students: int = 1) -> str:
    """All tables, as Markdown."""
    parts = []
    for ipc, batch in IPC_BATCHES.items():
        found = floors(step_calls(students, batch))
        body = [
            [
                f.op,
                f.shapes,
                str(f.count),
                f"{f.moved / 1e6:.3g}",
                f"{f.flops / 1e9:.3g}" if f.flops else "",
                f"{f.seconds('tf32x3') * 1e6:.2f}",
                f"{f.seconds('tf32') * 1e6:.2f}",
                f.bound("tf32x3"),
                str(f.launches),
            ]
            for f in found
        ]
        heads = ["operator", "shapes", "a step", "MB", "GFLOP", "µs tf32x3", "µs tf32", "bound by", "kernels"]
        exact, kernels = iteration(found, IPC_STEPS[ipc], "tf32x3")
        short, _ = iteration(found, IPC_STEPS[ipc], "tf32")
        parts.append(
            f"**IPC {ipc}**: {students} student, {batch} images a step, {IPC_STEPS[ipc]} steps an iteration. "
            f"Sum over an iteration: {exact * 1e3:.2f} ms with tf32x3, {short * 1e3:.2f} ms with tf32, "
            f"{kernels} kernels (not measured on a device).\n\n{table(heads, body)}"
        )
    return "\n\n".join(parts)


@dataclass(frozen=True)
class Arguments:
    """Where the tables go."""

    doc: str | None = None
    """The page whose section is to be rewritten; None prints."""


def main(words: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench.gpu_floor", description=__doc__)
    if arguments.doc is None:
        print(report())
    else:
        replace_section(arguments.doc, "floor", report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
