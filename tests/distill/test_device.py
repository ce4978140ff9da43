"""Where a run is computed: taken once, noted, and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mct_fast.data import load_dataset
from mct_fast.distill import DistilledDataset, distill
from mct_fast.evaluate import EvalConfig, evaluate
from mct_fast.experts import train_experts
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.ops import device as devices
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.trajectory import TrajectoryStore
from tests.conftest import TINY_DISTILL, TINY_EXPERTS


@pytest.fixture
def appeared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is said to be there, which PyTorch then does not find: who asks for it is refused."""
    monkeypatch.setattr(devices, "_served", lambda: True)


def test_the_record_of_a_run_names_the_device(tiny_run: Path, tiny_store: Path) -> None:
    assert TINY_DISTILL.engine.device == TINY_EXPERTS.engine.device == "auto"
    assert Run.open(tiny_run).config["device"] == "cpu"
    assert {TrajectoryStore.open(tiny_store).info(i)["device"] for i in range(2)} == {"cpu"}


@pytest.mark.usefixtures("appeared")
def test_a_run_keeps_its_device(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    for resume in (False, True):
        distill(TINY_DISTILL, tiny_store, out=tmp_path / "run", resume=resume)


@pytest.mark.usefixtures("appeared")
@pytest.mark.parametrize("stage", ["experts", "distill", "evaluate", "bezier"])
def test_every_stage_takes_the_gpu_by_itself(stage: str, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    stages: dict[str, Callable[[], object]] = {
        "experts": lambda: train_experts(TINY_EXPERTS, tmp_path / "store"),
        "distill": lambda: distill(TINY_DISTILL, tiny_store, out=tmp_path / "run"),
        "evaluate": lambda: evaluate(
            DistilledDataset.load(tiny_run / "distilled"), load_dataset("digits"), EvalConfig(num_eval=1)
        ),
        "bezier": lambda: fit_bezier(shutil.copytree(tiny_store, tmp_path / "copy"), BezierConfig(epochs=1)),
    }
    with pytest.raises((InputError, RuntimeError, AssertionError), match="CUDA|NVIDIA"):  # there is none
        stages[stage]()
