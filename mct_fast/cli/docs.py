"""``mct-fast docs``: the documentation's pages, which lie beside the package."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from tyro.conf import Positional

from mct_fast.cli.output import print_rows
from mct_fast.cli.parsing import nearest, parse
from mct_fast.run.errors import InputError

PAGES = Path(__file__).parent.parent / "pages"


def pages() -> dict[str, Path]:
    """The pages by name: the file's, without its folder, unless two share one."""
    files = sorted(PAGES.rglob("*.md"), key=lambda file: (len(file.parts), file))
    named: dict[str, Path] = {}
    for file in files:
        whole = file.relative_to(PAGES).with_suffix("").as_posix()
        named[whole if file.stem in named else file.stem] = file
    return named


def title(page: Path) -> str:
    """The first heading of ``page``."""
    found = re.search(r"^# (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return found[1] if found else page.stem


def readable(page: str) -> str:
    """``page`` without the places that only the site fills in; where it describes a name, Python's ``help`` does."""
    page = re.sub(r"\n*^<!-- (commands|notebook .*) -->$", "", page, flags=re.MULTILINE)
    return re.sub(r"^::: (\S+)$", r'    help("\1")', page, flags=re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Print a page of the documentation, or list the pages."""

    page: Positional[str | None] = None
    """Name of the page, e.g. glossary. Left out, the pages are listed."""


def run(words: list[str]) -> None:
    """Print a page of the documentation, or list the pages."""
    given = parse("docs", Arguments, words)
    known = pages()
    if given.page is None:
        print_rows([(name, title(file)) for name, file in known.items()])
        return
    name = given.page.removeprefix("docs/").removesuffix(".md")
    file = known.get(name) or known.get(name.rpartition("/")[2])
    if file is None:
        raise InputError(
            f"page: there is no page {given.page!r}{nearest(name, known)}; the pages are {', '.join(known)}"
        )
    print(readable(file.read_text(encoding="utf-8")), end="")
