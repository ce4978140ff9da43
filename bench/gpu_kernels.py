"""Registers, spills and shared memory of every Triton kernel, compiled for a card that need not be there.

``python -m bench.gpu_kernels`` prints the table; ``--doc docs/gpu.md`` writes it into that page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
import tyro

from bench.document import replace_section, table
from bench.gpu_calls import binary_calls, launches_of, reference_steps
from mct_fast.kernels.aot import Binary, Launch, compile_for

ARCHITECTURES = (80, 90)


@contextmanager
def _allowing(precision: str) -> Any:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def variants(precisions: Iterable[str] = ("ieee",)) -> list[Launch]:
    """One launch for each cubin that the reference ConvNet needs at IPC 1 and IPC 10, and a binary cross-entropy's.

    `precisions` are settings of ``torch.backends.cuda.matmul.fp32_precision``: "ieee" gives tf32x3, "tf32" tf32.
    """
    found: dict[Any, Launch] = {}
    for precision in precisions:
        with _allowing(precision):
            for calls in (*reference_steps(), binary_calls(1, 100)):
                for launch in launches_of(calls):
                    found.setdefault(launch.variant, launch)
    return list(found.values())


def _blocks(launch: Launch) -> int:
    product = 1
    for name, value in launch.constants:
        product *= value if name.isupper() and type(value) is int else 1
    return product


def heaviest(launches: Iterable[Launch]) -> list[Launch]:
    """Of each kernel with each of its switches, the launch with the most values a program."""
    found: dict[Any, Launch] = {}
    for launch in launches:
        switches = tuple((n, v) for n, v in launch.constants if isinstance(v, bool | str))
        key = launch.kernel, switches
        if key not in found or _blocks(launch) > _blocks(found[key]):
            found[key] = launch
    return list(found.values())


def rows(binaries: Sequence[Binary]) -> list[list[str]]:
    """One row a kernel and set of switches, the architectures side by side."""
    by_launch: dict[Any, dict[int, Binary]] = {}
    for binary in binaries:
        by_launch.setdefault(binary.launch.variant, {})[binary.arch] = binary
    found = []
    for each in by_launch.values():
        launch = next(iter(each.values())).launch
        cells = [
            text
            for arch in ARCHITECTURES
            for use in (each[arch].use,)
            for text in (str(use.registers), str(use.stack), f"{use.shared / 1024:.0f}")
        ]
        found.append([launch.kernel.removesuffix("_kernel"), launch.describe(), *cells])
    return sorted(found)


@dataclass(frozen=True)
class Arguments:
    """What to compile."""

    doc: str | None = None
    """The page whose section is to be rewritten; None prints."""
    all: bool = True
    """Every variant of IPC 1 and IPC 10 with tf32x3 and tf32; else the heaviest of each kernel with tf32x3."""


def main(words: Sequence[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench.gpu_kernels", description=__doc__)
    chosen = variants(("ieee", "tf32")) if arguments.all else heaviest(variants())
    binaries = []
    for i, launch in enumerate(chosen):
        print(f"\r{i + 1}/{len(chosen)}", end="", file=sys.stderr, flush=True)
        binaries += [compile_for(launch, arch) for arch in ARCHITECTURES]
    print(file=sys.stderr)
    heads = ["kernel", "blocks, switches, warps, stages"]
    heads += [f"sm_{arch} {what}" for arch in ARCHITECTURES for what in ("registers", "stack", "shared KiB")]
    spilled = sum(b.use.stack > 0 for b in binaries)
    text = (
        f"Triton {triton.__version__}; {len(chosen)} variants, {spilled} of {len(binaries)} binaries use a stack.\n\n"
    )
    text += table(heads, rows(binaries))
    if arguments.doc is None:
        print(text)
    else:
        replace_section(arguments.doc, "kernels", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
