"""``mct-fast docs``: every page can be printed where the package is installed, and what points at a page points at one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mct_fast import cli
from mct_fast.cli import docs

ROOT = Path(__file__).parents[2]
KNOWN = docs.pages()


def test_the_pages_are_listed_with_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed["glossary"] == "Glossary"
    assert set(listed) == set(KNOWN)
    assert len(KNOWN) == len(list((ROOT / "docs").rglob("*.md"))) >= 10


@pytest.mark.parametrize("name", KNOWN)
def test_a_page_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (name, f"docs/{name}.md"):
        assert cli.main(["docs", asked]) == 0
        page = KNOWN[name].read_text(encoding="utf-8")
        if name in ("commands", "notebook", "python"):  # of which the site fills in a part
            continue
        assert capsys.readouterr().out == page


def test_a_page_that_the_site_fills_in_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (
        ("commands", "mct-fast COMMAND --help"),
        ("notebook", "examples/first_hour.ipynb"),
        ("python", '\n    help("mct_fast.data.load_dataset")\n'),
    ):
        assert cli.main(["docs", name]) == 0
        printed, page = capsys.readouterr().out, KNOWN[name].read_text(encoding="utf-8")
        assert said in printed and "<!--" not in printed and ":::" not in printed
        assert [line for line in printed.splitlines() if line.strip() and not line.startswith("    help(")] == [
            line for line in page.splitlines() if line.strip() and not line.startswith(("<!--", ":::"))
        ]


def test_an_unknown_page_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["docs", "glosary"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mct-fast: error: page: there is no page 'glosary', did you mean glossary?; ")
    assert error.count("\n") == 1


def test_what_the_package_says_of_a_page_leads_to_one() -> None:
    """Help texts and errors name pages as ``docs/clinical.md`` or ``mct-fast docs clinical``."""
    named = set()
    for file in (ROOT / "mct_fast").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        named |= {(file.name, page) for page in re.findall(r"docs/([\w/-]+)\.md", text)}
        if file.parent.name != "cli" or file.name != "docs.py":
            named |= {(file.name, page) for page in re.findall(r"mct-fast docs ([a-z][\w-]+)", text)}
    assert len(named) >= 4
    assert [(file, page) for file, page in named if page.rpartition("/")[2] not in KNOWN and page not in KNOWN] == []
