"""--plugin: datasets and networks of the user's own have names on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mct_fast.cli import main
from mct_fast.models import register_model
from mct_fast.run.errors import InputError

PLUGIN = """
import torch
from torch import nn
from mct_fast.data import register_dataset
from mct_fast.models import register_model

images, labels = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2
register_dataset("halves", (images, labels), (images, labels), class_names=("a", "b"))


def make(channels, image_size, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 8), nn.ReLU(), nn.Linear(8, num_classes))


register_model("two-layers", make)
"""


def test_the_stages_with_a_dataset_and_a_network_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    experts = "experts --plugin mine --dataset halves --model two-layers --out store --num_experts 1 --train_epochs 3"
    distill = "distill --plugin=mine --trajectories store --out run --syn_steps 2 --max_start_epoch 1 --iterations 2"
    quick = "--num_eval 1 --epoch_eval_train 2"
    code = (
        "import sys\nfrom mct_fast.cli import main\nfor line in sys.argv[1:]:\n    assert main(line.split()) == 0, line"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, experts, f"{distill} {quick}", f"evaluate run --plugin mine {quick}", "inspect run"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "two-layers" in done.stdout and "2 of 2" in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("no_such_module", None, "ModuleNotFoundError"),
        ("../mine", None, "is no module's name"),
        ("broken_plugin", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_is_none(
    name: str, content: str | None, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    assert main(["experts", "--out", "x", "--plugin", name]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mct-fast: error: plugin: ") and part in err and err.count("\n") == 1


def test_names_of_the_package_are_taken() -> None:
    for name in ("ConvNetX", "MLP", "ResNet18"):
        with pytest.raises(InputError, match="another"):
            register_model(name, lambda **_: None)  # pyright: ignore[reportArgumentType]
