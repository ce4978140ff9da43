"""Results for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.timing import Spread

SCHEMA = "mct_fast.bench/1"
"""``kind`` names the benchmark; ``machine``, ``versions``, ``commit``, ``dirty``, ``date`` stand beside ``results``."""


def _without_folders(value: Any) -> Any:
    """Arguments that name places keep the last part: where a machine keeps things is nobody's business."""
    return Path(value).name if isinstance(value, (str, Path)) and "/" in str(value) else value


def document(
    kind: str, arguments: Mapping[str, Any], circumstances: Mapping[str, Any], results: Sequence[Any]
) -> dict[str, Any]:
    """A benchmark's JSON document; numbers that are not finite become null."""
    head = {
        "schema": SCHEMA,
        "kind": kind,
        **circumstances,
        "arguments": {k: _without_folders(v) for k, v in arguments.items()},
    }
    return _jsonable({**head, "results": list(results)})


def write(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a document, with the folder if it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def console() -> Console:
    """Standard output; wide where it is a file or a pipe, so that tables stay tables."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def note(text: str) -> None:
    """What a long benchmark is at, on stderr."""
    print(text, file=sys.stderr, flush=True)


def headline(console: Console, circumstances: Mapping[str, Any]) -> None:
    """Says where and when."""
    machine, commit = circumstances["machine"], circumstances["commit"] or "unknown commit"
    state = " + changes" if circumstances["dirty"] else ""
    kernels = "compiled kernels" if circumstances["compiled_kernels"] else "no compiled kernels"
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['instruction_set']}; "
        f"torch {circumstances['versions']['torch']}; {kernels}; {commit[:12]}{state}; {circumstances['date']}",
        highlight=False,
    )
    if machine["load_average"] > 1:
        console.print(
            f"[yellow]load average {machine['load_average']:.1f} at the start: other processes disturb these numbers[/yellow]"
        )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> Table:
    """A table whose first column is text and the others numbers."""
    shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def rows(title: str, results: Sequence[Mapping[str, Any]]) -> Table:
    """Results of any kind as they are: a line a result, its name first."""
    names = list(dict.fromkeys(key for result in results for key in result if key != "name"))
    lines = [[str(result["name"]), *(_short(result.get(name)) for name in names)] for result in results]
    return table(title, ("", *names), lines)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            f"{_short(value['median'])} ({_short(value['least'])} to {_short(value['greatest'])}, n = {value['count']})"
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def seconds(value: float) -> str:
    """``2.61 s``, ``45.1 ms``, ``12.0 us``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def size(value: float) -> str:
    """``2.61 GB``, ``45.1 MB``: decimal units."""
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def span(spread: Spread) -> str:
    """The least and the greatest, as times."""
    return f"{seconds(spread.least)} to {seconds(spread.greatest)}"


def number(value: float | None, digits: str = ".3g") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, digits)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
