"""Tables that a script writes into a page of the documentation, between two comments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mct_fast.run.files import atomic_write


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def section(text: str, name: str) -> str:
    """What stands between ``<!-- name -->`` and ``<!-- end name -->``."""
    return text.split(_begin(name), 1)[1].split(_end(name), 1)[0].strip("\n")


def replace_section(path: str, name: str, body: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end name -->``."""
    text = Path(path).read_text(encoding="utf-8")
    before, rest = text.split(_begin(name), 1)
    after = rest.split(_end(name), 1)[1]
    whole = f"{before}{_begin(name)}\n{body}\n{_end(name)}{after}"

    def write(temporary: Path) -> None:
        temporary.write_text(whole, encoding="utf-8")

    atomic_write(path, write)


def _begin(name: str) -> str:
    return f"<!-- {name} -->"


def _end(name: str) -> str:
    return f"<!-- end {name} -->"
