"""The list of modules in ``docs/architecture.md`` is whole, and imports point down it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mct_fast"
DOORSTEP = {"__init__", "__main__"}
"""Names to import the package by; they hold no code of their own."""


def listed() -> dict[str, int]:
    """The row of each module in the list, from the top."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| module | knows |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {
        name.removesuffix("/").removesuffix(".py"): n
        for n, row in enumerate(rows)
        for name in re.findall("`(.*?)`", row)
    }


def imports() -> set[tuple[str, str]]:
    """``(module, module that it imports)``, of the package's top level."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        importer = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mct_fast":
                parts = (node.module or "").split(".")
                found |= {(importer, name) for name in (parts[1:2] or [alias.name for alias in node.names])}
    return {(importer, name) for importer, name in found if importer != name and name != "__version__"}


def test_every_module_is_listed() -> None:
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules - DOORSTEP == set(listed()) & modules
    assert set(listed()) - modules == {"csrc"}


def test_imports_point_down() -> None:
    rows = listed()
    pairs = {pair for pair in imports() if pair[0] not in DOORSTEP}
    assert len(pairs) > 100
    assert not [f"{importer} imports {name}" for importer, name in sorted(pairs) if rows[importer] > rows[name]]
