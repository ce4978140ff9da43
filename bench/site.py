"""Hooks of the documentation's site (mkdocs.yml): pages that are made of the commands themselves, and of a notebook."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

COMMANDS = "<!-- commands -->"
NOTEBOOK = re.compile(r"<!-- notebook (\S+) -->")


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


def notebook(file: Path) -> str:
    """The cells of a notebook and what they printed and drew, as Markdown; its title is the page's."""
    parts = []
    for cell in json.loads(file.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\A# .*\n*", "", source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            drawn = output.get("data", {})
            if "image/png" in drawn:
                parts.append(f"![what the cell draws](data:image/png;base64,{''.join(drawn['image/png']).strip()})")
            else:
                text = "".join(output.get("text", drawn.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for every page."""
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    root = Path(__file__).parents[1]
    return NOTEBOOK.sub(lambda found: notebook(root / found[1]), markdown)
