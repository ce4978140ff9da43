"""The examples run, at a size that takes seconds (``clinical.py``: tests/distilled/test_table.py, the notebook: test_site.py)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mct_fast import cli
from mct_fast.data import load_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.interchange.buffers import write_experts
from mct_fast.models import build_model

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    named = {"batch_norm.py", "own_loop.py", "clinical.py", "from_mtt.sh", "processes.sh", "first_hour.ipynb"}
    assert {file.name for file in EXAMPLES.iterdir() if file.is_file()} == named


def test_a_network_with_batch_norm(tmp_path: Path) -> None:
    assert 0 < example("batch_norm").main(tmp_path, epochs=2, iterations=1, eval_epochs=2) <= 1
    assert len(DistilledDataset.load(tmp_path / "run" / "distilled")) == 10


def test_a_loop_of_ones_own() -> None:
    losses = example("own_loop").main(iterations=12, epochs=2)
    assert losses[-1] < losses[0]


@pytest.fixture
def commands(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Runs a script with tools that only note what they are given; returns the words of each call."""
    tools, noted = tmp_path / "bin", tmp_path / "noted"
    tools.mkdir()
    for name in ("mct-fast", "torchrun"):
        (tools / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" END >> "{noted}"\n')
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def run(script: str, *words: str) -> list[list[str]]:
        subprocess.run(["bash", str(EXAMPLES / script), *words], env=environment, check=True, timeout=60)
        return [call.split("\n") for call in noted.read_text().removesuffix("\nEND\n").split("\nEND\n")]

    return run


def test_from_mtts_buffers(tmp_path: Path, commands: Callable[..., list[list[str]]]) -> None:
    digits = load_dataset("digits")
    torch.manual_seed(0)
    network = build_model({"name": "ConvNet", "width": 4, "depth": 2, **digits.model_inputs})
    first = [p.detach() for p in network.parameters()]
    (tmp_path / "buffers").mkdir()
    expert = [[p + 0.02 * epoch * torch.randn_like(p) for p in first] for epoch in range(4)]
    write_experts(tmp_path / "buffers" / "replay_buffer_0.pt", [expert, [*expert[:3], expert[1]]])
    quick = "--syn_steps 2 --max_start_epoch 1 --expert_epochs 1 --iterations 2 --eval_it 0 --num_eval 1 --epoch_eval_train 2"
    out = tmp_path / "out"
    calls = commands("from_mtt.sh", str(tmp_path / "buffers"), "digits", str(tmp_path), str(out), *quick.split())
    assert [words[:2] for words in calls] == [["mct-fast", c] for c in ("compress", "inspect", "distill", "export")]
    assert [cli.main(words[1:]) for words in calls] == [0, 0, 0, 0]
    assert torch.load(out / "mtt" / "images_best.pt", weights_only=True).shape == (10, 1, 8, 8)


def test_on_two_processes(tmp_path: Path, commands: Callable[..., list[list[str]]]) -> None:
    """That processes share their work is tested in tests/run/test_distributed.py; here one does it all."""
    calls = commands("processes.sh", "2", str(tmp_path / "out"))
    start = ["torchrun", "--nproc-per-node", "2", "-m", "mct_fast"]
    assert [words[:6] for words in calls] == [[*start, c] for c in ("experts", "distill", "evaluate")]
    assert [cli.main(words[5:]) for words in calls] == [0, 0, 0]
