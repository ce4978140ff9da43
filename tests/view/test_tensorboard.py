"""Event files, written while a stage runs or afterwards, are read back as TensorBoard reads them."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mct_fast import cli
from mct_fast.distill import distill
from mct_fast.distilled import DistilledDataset
from mct_fast.experts import train_experts
from mct_fast.run.files import sha256_tensor
from mct_fast.run.folder import Run
from mct_fast.trajectory import TrajectoryStore
from mct_fast.view.tensorboard import LIVE, live_events, write_events
from tests.conftest import TINY_DISTILL, TINY_EXPERTS

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
)


def events(folder: Path) -> Any:
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def scalars(found: Any, name: str) -> dict[int, float]:
    return {event.step: event.value for event in found.Scalars(name)}


def images(found: Any) -> dict[int, Image.Image]:
    return {event.step: Image.open(io.BytesIO(event.encoded_image_string)) for event in found.Images("images")}


@pytest.fixture(scope="module")
def watched(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("watched") / "run"
    with live_events(path, 0) as watcher:
        distill(TINY_DISTILL, tiny_store, out=path, watcher=watcher)
    return path


def test_scalars_of_a_run(watched: Path) -> None:
    found, records = events(watched / LIVE), Run.open(watched).metrics()
    for kind, name in (("iter", "loss"), ("iter", "syn_lr"), ("eval", "mean"), ("final", "test_mean")):
        wanted = {r["iteration"]: r[name] for r in records if r["kind"] == kind}
        assert wanted
        assert scalars(found, f"{kind}/{name}") == pytest.approx(wanted, rel=1e-6)  # float32 in the file


def test_images_of_a_run(watched: Path) -> None:
    found = images(events(watched / LIVE))
    assert set(found) == {0, 2, 4, 5}, "at evaluations, and at the end"
    first = DistilledDataset.load(watched / "first").picture().convert("RGB")
    assert np.array_equal(np.asarray(found[0].convert("RGB")), np.asarray(first))
    assert not np.array_equal(np.asarray(found[0]), np.asarray(found[5]))


def test_who_watches_changes_no_bit(watched: Path, tiny_run: Path) -> None:
    ours, theirs = (DistilledDataset.load(path / "distilled").images for path in (watched, tiny_run))
    assert sha256_tensor(ours) == sha256_tensor(theirs)


def test_who_watches_is_told_while_it_runs(tiny_store: Path) -> None:
    seen: list[int] = []

    class Eyes:
        def record(self, record: Any) -> None:
            seen.append(record["iteration"])

        def images(self, iteration: int, picture: Any) -> None:
            assert picture().size[0] > 50

    distill(TINY_DISTILL, tiny_store, until=3, watcher=Eyes())  # without a folder too
    assert seen == [0, 1, 2, 2, 3]


def test_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live_events(tmp_path, 0) as watcher:
        store = train_experts(replace(TINY_EXPERTS, checkpoint_minutes=0), tmp_path, watcher=watcher)
    found = events(tmp_path / LIVE)
    for i, number in enumerate(store.experts):
        losses, info = scalars(found, f"expert_{number:05d}/train_loss"), store.info(i)
        assert list(losses.values()) == pytest.approx(info["train_loss"], rel=1e-5) and list(losses) == [1, 2, 3]
        assert scalars(found, f"expert_{number:05d}/accuracy") == pytest.approx({3: info["accuracy"]}, rel=1e-5)
    assert len(TrajectoryStore.open(tmp_path)) == 2, "what is beside the experts is none of theirs"


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    small = ["--num_experts", "1", "--train_epochs", "2", "--depth", "1", "--width", "4"]
    assert cli.main(["experts", "--out", store, *small, "--tensorboard"]) == 0
    assert math.isfinite(scalars(events(tmp_path / "store" / LIVE), "expert_00000/train_loss")[2])
    quick = ["--syn_steps", "1", "--expert_epochs", "1", "--max_start_epoch", "0", "--eval_it", "0", "--num_eval", "1"]
    quick += ["--epoch_eval_train", "1", "--no_random_real", "--tensorboard"]
    assert cli.main(["distill", "--trajectories", store, "--out", run, "--iterations", "2", *quick]) == 0
    assert cli.main(["distill", "--resume", run, "--iterations", "3", "--tensorboard"]) == 0
    assert sorted(scalars(events(tmp_path / "run" / LIVE), "iter/loss")) == [1, 2, 3]


def test_afterwards(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for _ in range(2):  # anew each time
        found = events(write_events(run))
        assert len(found.Scalars("iter/loss")) == TINY_DISTILL.optimizer.iterations


@pytest.mark.parametrize("command", ["distill", "experts", "report"])
def test_without_the_package(
    command: str, tiny_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in [*sys.modules]:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    out = tmp_path / "out"
    words = {
        "distill": ["--trajectories", str(tiny_store), "--out", str(out)],
        "experts": ["--out", str(out)],
        "report": [str(shutil.copytree(tiny_run, tmp_path / "run"))],
    }
    assert cli.main([command, *words[command], "--tensorboard"]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "mct-fast: error: tensorboard: is not installed; pip install 'mct-fast[tensorboard]'"
    assert not out.exists()


def test_it_is_not_imported_unasked(tiny_store: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mct_fast.cli import main\n"
        f"assert main(['distill', '--trajectories', {str(tiny_store)!r}, '--out', {str(tmp_path / 'run')!r}, '--syn_steps', '1', "
        "'--expert_epochs', '1', '--max_start_epoch', '0', '--iterations', '1', '--eval_it', '0', '--num_eval', '1', "
        "'--epoch_eval_train', '1', '--no_random_real']) == 0\n"
        "assert not [name for name in sys.modules if 'tensorboard' in name], sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
