"""The documentation: its code runs, its commands are understood, its site is built without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mct_fast import cli
from mct_fast.cli import commands, docs, exchange

ROOT = Path(__file__).parents[1]
PAGES = {file.relative_to(ROOT / "docs").as_posix(): file.read_text("utf-8") for file in (ROOT / "docs").rglob("*.md")}
OURS = {
    page: text for page, text in PAGES.items() if page.startswith("how-to/") or page in ("first-hour.md", "index.md")
}
EXAMPLES = [page for page, text in OURS.items() if "```python" in text]
COMMANDS = [
    (page, line)
    for page, text in PAGES.items()
    for line in re.findall(r"^(?:    )?(mct-fast [a-z].*)$", text, flags=re.MULTILINE)
    if page not in ("clinical.md", "reference/commands.md")  # of its own test, and made from the commands
]


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", OURS[page], flags=re.DOTALL)):
        exec(compile(block, f"{page} block {number}", "exec"), {"__name__": "page"})


class Parsed(Exception):  # noqa: N818 (no error: it ends a command once it is parsed)
    pass


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_the_commands_of_a_page_are_understood(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)[1:]
    if words in (["docs"], ["--version"], ["demo"]) or "..." in words:
        return
    for module in (commands, exchange, docs):
        parse = module.parse

        def stop(*arguments: object, parse: object = parse, **named: object) -> None:
            parse(*arguments, **named)
            raise Parsed

        monkeypatch.setattr(module, "parse", stop)
        if hasattr(module, "use_plugin"):
            monkeypatch.setattr(module, "use_plugin", lambda _: None)
    with pytest.raises(Parsed):
        cli.main(words)


def test_there_are_examples_and_commands() -> None:
    assert len(EXAMPLES) >= 4 and len(COMMANDS) >= 12


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {page.removesuffix(".md") + ".html" for page in PAGES} <= {
        file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.html")
    }
    page = (tmp_path / "reference" / "commands.html").read_text("utf-8")
    assert all(f'<h2 id="{name}">' in page for name in commands.COMMANDS)
    assert "--num_experts" in page
    # Nothing is fetched by who reads it.
    home = (tmp_path / "index.html").read_text("utf-8")
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', home)
