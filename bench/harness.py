"""What every benchmark does around its measurement: read the command line, say where and when, keep the result as JSON."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import tyro

from bench import machine, reference, tables
from mct_fast.run.errors import InputError
from mct_fast.run.files import read_json, write_json

A = TypeVar("A")


class UnequalError(Exception):
    """Somebody computes something else: nothing is timed."""


class Report:
    """Where a benchmark's result goes.

    Attributes:
        circumstances: Machine, versions, commit and date; what is added stands beside them in the JSON document.
    """

    def __init__(self, kind: str, arguments: Any) -> None:
        self._kind, self._arguments = kind, arguments
        self._console, self.circumstances = tables.console(), machine.circumstances()
        tables.headline(self._console, self.circumstances)

    def show(self, *things: Any) -> None:
        """Print tables and lines."""
        for thing in things:
            self._console.print(thing, highlight=False)

    def keep(self, results: Sequence[Any], kind: str | None = None) -> None:
        """Write the results so far to where ``--json`` says."""
        if self._arguments.json is not None:
            given = {name: value for name, value in asdict(self._arguments).items() if name not in ("work", "docs")}
            document = tables.document(kind or self._kind, given, self.circumstances, results)
            tables.write(self._arguments.json, document)


def command(
    name: str, kind: type[A], run: Callable[[A, Report], int], words: Sequence[str] | None, about: str | None
) -> int:
    """Run a benchmark from the command line.

    Args:
        name: The module's; ``python -m bench.NAME``.
        kind: The dataclass of its arguments; ``threads``, ``device`` and ``json`` are seen to here.
        run: Measures; returns the exit status.
        words: The command line; None takes the process's.
        about: What ``--help`` says.

    Returns:
        The exit status of ``run``; 1 where results differ, 2 after wrong input.
    """
    arguments = tyro.cli(kind, args=words, prog=f"python -m bench.{name}", description=about)
    reference.hush()
    try:
        machine.check_device(getattr(arguments, "device", "cpu"))
        machine.set_threads(getattr(arguments, "threads", None))
        return run(arguments, Report(name, arguments))
    except UnequalError as error:
        print(f"bench.{name}: {error}, so nothing is timed", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"bench.{name}: error: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def work_folder(folder: str | None) -> Iterator[Path]:
    """``folder``, or a temporary one that is deleted afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="mct_fast_bench_") as temporary:
        yield Path(temporary)


class Pieces:
    """A long piece of work in parts, each a file when it is done: killed anywhere, it goes on where it stopped."""

    def __init__(self, folder: Path, title: str, say: Callable[[str], None] = tables.note) -> None:
        self._folder, self._title, self._say = folder, title, say

    def file(self, name: str) -> Path:
        """Where the part ``name`` is kept."""
        return self._folder / f"{name}.json"

    def found(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` found, JSON-able: done now, or before."""
        if not self.file(name).exists():
            self._say(f"{self._title}: {name}")
            write_json(self.file(name), work())
        return read_json(self.file(name))

    def done(self) -> Mapping[str, Any]:
        """All finished parts by name; a hidden file is one that is being written."""
        files = sorted(file for file in self._folder.glob("*.json") if not file.name.startswith("."))
        return {file.stem: read_json(file) for file in files}
