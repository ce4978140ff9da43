"""The list of packages in ``docs/architecture.md`` is whole, imports point down it, and no package goes round in circles."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mct_fast"
DOORSTEP = {"__init__", "__main__"}
"""Names to import the package by; they hold no code of their own."""


def listed() -> dict[str, int]:
    """The row of each package in the list, from the top."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| package | knows |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {
        name.removesuffix("/").removesuffix(".py"): n
        for n, row in enumerate(rows)
        for name in re.findall("`(.*?)`", row)
    }


def imports() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of modules ``(importer, imported)``, each as its parts below ``mct_fast``; wherever the import stands."""
    for file in PACKAGE.rglob("*.py"):
        importer = file.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "mct_fast":
                continue
            module = tuple((node.module or "").split(".")[1:])
            for alias in node.names:
                whole = (*module, alias.name)
                imported = whole if is_module(whole) else module
                if imported:
                    yield importer, imported


def is_module(parts: tuple[str, ...]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_every_package_is_listed() -> None:
    packages = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert packages - DOORSTEP == set(listed()) & packages
    assert set(listed()) - packages == {"csrc"}


FILE = r"`([\w/]+\.(?:py|cpp))`"


def test_the_walk_names_what_there_is() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = text.split("## The walk of one image")[1].split("\n## ")[0]
    steps = [step for step in re.split(r"^\d+\. ", walk, flags=re.MULTILINE) if step.strip()]
    assert len(steps) == 10
    sources = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    for step in steps:
        for file in re.findall(FILE, step):
            assert any((place / file).is_file() for place in (PACKAGE, ROOT, PACKAGE / "students")), file
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", re.sub(FILE, "", step)):
            assert re.search(rf"\b(def|class) {name}\b|\b{name} = ", sources), name


def test_the_glossary_says_each_term_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", text, flags=re.MULTILINE)
    terms = [term for names, _ in rows if names != "term" for term in names.split(", ")]
    assert len(terms) > 50 and len(terms) == len(set(terms))
    assert {"vjp", "jvp", "cotangent", "residuals", "broadcast", "gather", "checkpoint", "ipc", "syn_steps"} <= set(
        terms
    )


def test_the_root_has_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_imports_point_down() -> None:
    rows = listed()
    found = {(importer[0], imported[0]) for importer, imported in imports() if importer[0] not in DOORSTEP}
    pairs = {(importer, imported) for importer, imported in found if importer != imported}
    assert len(pairs) > 80
    # The kernels are named by the operators that they serve, and know nothing but files beside.
    same_room = {("ops", "kernels"), ("kernels", "ops")}
    up = [f"{a} imports {b}" for a, b in sorted(pairs - same_room) if rows[a] >= rows[b]]
    assert not up


def test_no_package_goes_round_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports():
        if importer[0] == imported[0] and len(importer) > 1:
            if len(imported) == 1:  # a name of the package itself
                imported = (*imported, "__init__")
            graph.setdefault(".".join(importer), set()).add(".".join(imported))
    assert len(graph) > 30
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError and names the modules


def test_settings_need_no_pytorch() -> None:
    code = (
        "import sys, mct_fast.settings, mct_fast.presets; mct_fast.presets.presets(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
