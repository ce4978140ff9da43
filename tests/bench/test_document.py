"""Tables in pages of the documentation."""

from __future__ import annotations

from pathlib import Path

from bench.document import replace_section, section


def test_a_section_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end a -->\nafter <!-- b --> <!-- end b -->\n")
    replace_section(str(page), "a", "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- end a -->\nafter <!-- b --> <!-- end b -->\n"
    assert section(page.read_text(), "a") == "new"
