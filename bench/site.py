"""Hooks of the documentation's site (mkdocs.yml): the page of commands is made from the commands themselves."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

MARK = "<!-- commands -->"


def commands() -> str:
    """Every command's help as a section of Markdown."""
    os.environ["COLUMNS"] = "100"
    from mct_fast import cli
    from mct_fast.cli.commands import COMMANDS

    parts = []
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            status = cli.main([name, "--help"])
        if status != 0 or not said.getvalue().strip():
            raise RuntimeError(f"mct-fast {name} --help ended with {status}")
        parts.append(f"## {name}\n\n```text\n{said.getvalue().rstrip()}\n```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for every page."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown
