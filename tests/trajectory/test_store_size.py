"""What an expert of the reference network takes on disk, everything included, against MTT's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mct_fast.data import load_dataset
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.models import ConvNet, FunctionalModel, model_spec
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

MTT = 51 * 4 * 320_010
DOCUMENT = (Path(__file__).parents[2] / "docs" / "trajectory-store.md").read_text(encoding="utf-8")
# Times smaller than MTT, at least.
NEEDED = {
    ("float32", "seed"): 50,
    ("float32", "float32"): 25,
    ("fp16", "seed"): 100,
    ("int8", "seed"): 190,
    ("int4", "seed"): 350,
    ("fp16", "float32"): 33.5,
    ("fp16", "fp16"): 50,
    ("int8", "fp16"): 66,
    ("int4", "fp16"): 78,
}
ROW = {"seed": "seed", "float32": "stored, float32", "fp16": "stored, fp16"}


@pytest.mark.parametrize(("encoding", "start"), NEEDED, ids=lambda value: str(value))
def test_size_on_disk(encoding: str, start: str, tmp_path: Path) -> None:
    model = FunctionalModel(ConvNet())
    assert model.init_plan is not None
    first = model.init(11)
    generator = torch.Generator().manual_seed(0)
    pace = torch.rand(len(model.shapes), 51, generator=generator, dtype=torch.float64).cumsum(1)
    pace = (pace - pace[:, :1]) / (pace[:, -1:] - pace[:, :1])
    last = first + 0.02 * torch.randn(len(first), generator=generator)
    path = ConvexTrajectory(torch.stack([first, last]), pace, model.shapes)
    store = TrajectoryStore.create(
        tmp_path,
        {
            "model": model_spec(ConvNet()),
            "shapes": [list(shape) for shape in model.shapes],
            "init": [fill.to_json() for fill in model.init_plan],
            "dataset": {"name": "cifar10", "fingerprint": "0" * 64},
            "recipe": {"kind": "sgd"},
        },
    )
    empty = store.nbytes
    losses = [float(f"{2.3 / (t + 1) + 1e-6 * t:.6g}") for t in range(50)]
    info = {"accuracy": 0.543211, "split": "val", "train_loss": losses, "seconds": 1234.56}
    seed = 2**63 - 11 if start == "seed" else None
    if seed is not None:
        first.copy_(model.init(seed))
        path.waypoints[0] = first
    store.add(0, path, info, encoding=encoding, init_seed=seed, start_encoding="float32" if seed else start)
    size = store.nbytes - empty
    assert MTT / size >= NEEDED[encoding, start]
    assert MTT / store.nbytes >= NEEDED[encoding, start], "the head of the manifest is too large"
    assert not any(file.name.startswith(".") for file in tmp_path.iterdir())
    # The document's table says the same, to half a percent (the digits of an expert's numbers vary).
    row = re.search(rf"^\| `{encoding}`[^|]*\| {ROW[start]} \|[^|]*\| ([\d,]+) \| ([\d.]+) \|$", DOCUMENT, re.MULTILINE)
    assert row is not None
    assert abs(int(row[1].replace(",", "")) / size - 1) < 5e-3 and abs(float(row[2]) * size / MTT - 1) < 5e-3


def test_experts_are_small_by_default(tmp_path: Path) -> None:
    config = ExpertConfig(num_experts=1, train_epochs=2, batch_train=1300, width=64, depth=2)
    store = train_experts(config, tmp_path, load_dataset("digits"))
    count = sum(shape.numel() for shape in store.shapes)
    assert store.entry(0)["encoding"] == "fp16" and store.entry(0)["origin"]["kind"] == "seed"
    assert store.entry(0)["bytes"] < 2.1 * count
