"""The documentation: its code runs, its commands are understood, its site is built without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from mct_fast import cli
from mct_fast.cli import commands, docs, exchange, ranking, sweep

ROOT = Path(__file__).parents[1]
PAGES = {file.relative_to(ROOT / "docs").as_posix(): file.read_text("utf-8") for file in (ROOT / "docs").rglob("*.md")}
RUN = ("first-hour.md", "index.md", "randomness.md", "compare.md", "reference/files.md")
OURS = {page: text for page, text in PAGES.items() if page.startswith("how-to/") or page in RUN}
EXAMPLES = [page for page, text in OURS.items() if "```python" in text]
COMMANDS = [
    (page, line)
    for page, text in PAGES.items()
    for line in re.findall(
        r"^(?:    |CUDA_\S+ )?(?:torchrun .* -m mct_fast|mct-fast) +([a-z].*?)(?: &)?$", text, re.MULTILINE
    )
    if page not in ("clinical.md", "reference/commands.md")  # of its own test, and made from the commands
]

INLINE = [("compare.md", line) for line in re.findall(r"`mct-fast (\w+ [^`]*)`", PAGES["compare.md"])]


DDRANKING = """
    dataset real_data_path ipc model_name data_aug_func aug_params optimizer lr_scheduler step_size weight_decay momentum use_zca
    num_eval im_size num_epochs real_batch_size syn_batch_size use_torchvision num_workers save_path custom_train_trans
    custom_val_trans device dist random_data_format random_data_path eval_full_data
"""


def ddranking() -> dict[str, ModuleType]:
    """In place of DD-Ranking, which would download CIFAR-10: an evaluator with the arguments of its release 0.2.0."""
    known = DDRANKING.split()

    class LabelRobustScoreHard:
        def __init__(self, **given: Any) -> None:
            assert set(given) <= set(known)

        def compute_metrics(self, image_tensor: Any, hard_labels: Any, syn_lr: float) -> float:
            assert len(image_tensor) == len(hard_labels) and syn_lr > 0
            return 0.5

    metrics = ModuleType("ddranking.metrics")
    vars(metrics)["LabelRobustScoreHard"] = LabelRobustScoreHard
    return {"ddranking": ModuleType("ddranking"), metrics.__name__: metrics}


@pytest.mark.parametrize("page", EXAMPLES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, module in ddranking().items():
        monkeypatch.setitem(sys.modules, name, module)
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", OURS[page], flags=re.DOTALL)):
        exec(compile(block, f"{page} block {number}", "exec"), {"__name__": "page"})


class Parsed(Exception):  # noqa: N818 (no error: it ends a command once it is parsed)
    pass


@pytest.mark.parametrize(("page", "line"), COMMANDS + INLINE)
def test_the_commands_of_a_page_are_understood(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    if words in (["docs"], ["--version"], ["demo"]) or "..." in words:
        return
    for module in (commands, exchange, docs, ranking, sweep):
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
    assert len(EXAMPLES) >= 9 and len(COMMANDS) >= 35 and len(INLINE) >= 7


def test_the_notebook_runs_and_shows_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "examples" / "first_hour.ipynb"
    shown, book = (nbformat.read(file, as_version=4) for _ in range(2))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = [
        [[output.output_type for output in cell.get("outputs", [])] for cell in each.cells] for each in (shown, book)
    ]
    assert kinds[0] == kinds[1], "run it again and save it"
    said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    ours, random = (
        float(re.findall(rf"10 {kind} images: +([\d.]+)", said)[0]) for kind in ("distilled", "random real")
    )
    assert ours > random + 5


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
    page = (tmp_path / "notebook.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2 and "10 distilled images" in page
    page = (tmp_path / "reference" / "commands.html").read_text("utf-8")
    assert "--num_experts" in page
    # Nothing is fetched by who reads it.
    home = (tmp_path / "index.html").read_text("utf-8")
    assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://', home)
