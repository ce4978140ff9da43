"""All benchmarks in their short forms: ``python -m bench [--reference PATH] [--mct PATH] [--out FOLDER]``.

The numbers of ``docs/performance.md`` come from the long forms: ``python -m bench.vs_mtt --help`` and so on.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from bench import experts, ops, storage, vs_mtt


@dataclass(frozen=True)
class Arguments:
    """What to compare with, and where to leave the results."""

    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    mct: str | None = None
    """A clone of the official MCT code."""
    out: str | None = None
    """Folder for the results as JSON."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs all; returns the first exit status that is not 0."""
    arguments = tyro.cli(Arguments, args=words, prog="python -m bench", description=__doc__)

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
