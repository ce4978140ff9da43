"""``python -m bench`` says which benchmarks there are; ``python -m bench all`` runs them in their short forms.

The numbers of ``docs/performance.md`` come from the long forms: ``python -m bench.vs_mtt --help`` and so on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench import experts, ops, storage, vs_mtt

NAMES = ("vs_mtt", "experts", "ops", "storage", "clinical", "study", "gpu")


@dataclass(frozen=True)
class Arguments:
    """All benchmarks in their short forms."""

    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    mct: str | None = None
    """A clone of the official MCT code."""
    out: str | None = None
    """Folder for the results as JSON."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""


def main(words: Sequence[str] | None = None) -> int:
    """Lists, or runs all; returns the first exit status that is not 0."""
    words = list(sys.argv[1:] if words is None else words)
    if not words:
        for name in NAMES:
            print(f"python -m bench.{name:<10} {_says(name)}")
        return 0
    if words[0] == "all":
        return _all(tyro.cli(Arguments, args=words[1:], prog="python -m bench all"))
    print(f"bench: error: {words[0]}: no such command; use 'all', or one of: python -m bench.NAME", file=sys.stderr)
    return 2


def _says(name: str) -> str:
    """The first line of a benchmark's documentation."""
    module = importlib.import_module(f"bench.{name}.__main__" if name == "study" else f"bench.{name}")
    return (module.__doc__ or "").split("\n")[0]


def _all(arguments: Arguments) -> int:
    def common(name: str) -> list[str]:
        return [
            *(["--threads", str(arguments.threads)] if arguments.threads is not None else []),
            *(["--json", str(Path(arguments.out) / f"{name}.json")] if arguments.out is not None else []),
        ]

    clone = ["--reference", arguments.reference] if arguments.reference is not None else []
    mct = ["--mct", arguments.mct] if arguments.mct is not None else []
    short = ["--ipc", "1", "--rounds", "5", "--budget", "15"]
    statuses = (
        vs_mtt.main([*short, *clone, *mct, *common("vs_mtt")]),
        vs_mtt.main(["--accuracy", "--ipc", "1", "--steps", "1", "20", "--seeds", "2", *common("accuracy")]),
        experts.main(["--images", "1024", "--rounds", "3", "--budget", "10", *clone, *common("experts")]),
        ops.main(["--seconds", "0.05", "--shapes", "1", "10", *common("ops")]),
        storage.main(["--parts", "sizes", "reading", "--experts", "1", "--readings", "20", *common("storage")]),
    )
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main())
