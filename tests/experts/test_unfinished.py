"""Experts that are killed while they train go on from their last checkpoint, to the bits of a training that was let be."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

from mct_fast.cli import main
from mct_fast.data import Dataset, TableSpec, load_dataset, table_dataset
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.run.errors import InputError
from mct_fast.run.progress import quiet
from mct_fast.trajectory import UNFINISHED, TrajectoryStore

KILLS = 4 if settings.default.derandomize else 40  # pyright: ignore[reportOptionalMemberAccess]
SPLITS = ("train", "val", "test")
TINY = ExpertConfig(
    num_experts=3, train_epochs=5, depth=1, width=4, batch_train=40, lr_teacher=0.05, mom=0.9, parallel=2,
    checkpoint_minutes=0,
)  # fmt: skip


@cache
def digits() -> Dataset:
    """Few of them: an epoch is three small steps."""
    whole = load_dataset("digits")
    few = {n: replace(s, images=s.images[:100], labels=s.labels[:100]) for n in SPLITS if (s := whole.split(n))}
    return replace(whole, **few)


@cache
def table() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 4))
    made = pd.DataFrame(x, columns=list("abcd")).assign(died=(x[:, 0] > 0.8) * 1)
    return table_dataset(made, TableSpec(target=("died",)))


@cache
def series() -> Dataset:
    x = np.random.default_rng(1).normal(size=(120, 5, 3))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "series.npz", x=x, y=(x[:, :, 0].mean(1) > 0).astype(np.int64))
        return load_dataset("series", data_path=Path(folder) / "series.npz")


RECIPES: dict[str, tuple[Any, ExpertConfig]] = {
    "alone": (digits, replace(TINY, num_experts=1, parallel=1)),
    "in-turn": (digits, replace(TINY, parallel=1)),
    "grouped": (digits, TINY),
    "no-momentum": (digits, replace(TINY, mom=0.0, dsa=False)),
    "decay-kept": (digits, replace(TINY, decay=True, l2=5e-3, keep_checkpoints=True)),
    "waypoints": (digits, replace(TINY, waypoints=3, smooth=True, encoding="float32")),
    "gsam": (digits, replace(TINY, rho=0.1, num_experts=2)),
    "table": (table, replace(TINY, model="MLP", batch_train=32, stratify=True, jitter=0.3)),
    "series": (series, replace(TINY, model="GRU", width=3, batch_train=64, num_experts=2)),
}


class Killed(BaseException):
    pass


class Killer:
    """A progress that ends its process, as it were, when ``after`` of the images have been trained on."""

    def __init__(self, after: float = 2.0) -> None:
        self.after, self.total, self.seen = after, 0, 0

    def task(self, name: str, total: int, *, done: int = 0) -> Any:
        if name != "experts, images":  # scoring
            return quiet().task(name, total)
        self.total = total
        return self

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, n: int = 1, **shown: object) -> None:
        self.seen += n
        if self.seen >= self.after * self.total:
            raise Killed


def kill(config: ExpertConfig, out: Path, dataset: Dataset, after: float) -> None:
    with pytest.raises(Killed):
        train_experts(config, out, dataset, progress=Killer(after))


def ended(store: TrajectoryStore) -> dict[str, Any]:
    """Everything that an uninterrupted training has in common with one that was gone on with."""
    infos = {n: {k: v for k, v in store.info(i).items() if k != "seconds"} for i, n in enumerate(store.experts)}
    files = {file.name: file.read_bytes() for file in store.path.glob("*.safetensors")}
    assert not (store.path / UNFINISHED).exists(), "what was kept of finished experts is still there"
    return {"infos": infos, "files": files}


@pytest.fixture(scope="module", params=list(RECIPES))
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    load, config = RECIPES[request.param]
    whole = train_experts(config, tmp_path_factory.mktemp("whole"), load())
    return load(), config, ended(whole)


@pytest.mark.parametrize("after", [0.25, 0.55, 0.9])
def test_killed_once(recipe: Any, after: float, tmp_path: Path) -> None:
    dataset, config, whole = recipe
    kill(config, tmp_path, dataset, after)
    assert any((tmp_path / UNFINISHED).iterdir())
    progress = Killer()
    assert ended(train_experts(config, tmp_path, dataset, progress=progress)) == whole
    everything = config.num_experts * config.train_epochs * len(dataset.train)
    epoch = config.parallel * len(dataset.train)
    assert progress.seen == progress.total <= (1 - after) * everything + epoch, "epochs were trained again"


def test_killed_at_every_epoch(recipe: Any, tmp_path: Path) -> None:
    dataset, config, whole = recipe
    for _ in range(20):
        progress = Killer()
        epoch = config.parallel * len(dataset.train)
        progress.advance = lambda n=1, progress=progress, epoch=epoch, **_: stop_after(progress, n, 1.5 * epoch)
        try:
            store = train_experts(config, tmp_path, dataset, progress=progress)
        except Killed:
            continue
        assert ended(store) == whole
        return
    pytest.fail("it does not come to its end")


def stop_after(progress: Killer, n: int, images: float) -> None:
    progress.seen += n
    if progress.seen >= images:
        raise Killed


def test_in_other_company(tmp_path: Path) -> None:
    """Three that train at once and stop; one of them has lost its checkpoint, and they go on two at a time."""
    whole = ended(train_experts(TINY, tmp_path / "whole", digits()))
    kill(replace(TINY, parallel=3), tmp_path / "killed", digits(), 0.7)
    (tmp_path / "killed" / UNFINISHED / "expert_00001.safetensors").unlink()
    assert ended(train_experts(TINY, tmp_path / "killed", digits())) == whole


def test_checkpoints_are_kept_now_and_then(tmp_path: Path) -> None:
    kill(replace(TINY, checkpoint_minutes=60), tmp_path, digits(), 0.5)
    assert not (tmp_path / UNFINISHED).exists()


def test_a_setting_that_changes_experts_is_refused(tmp_path: Path) -> None:
    kill(TINY, tmp_path, digits(), 0.5)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=r"^out: .*lr_teacher: 0.05 there, 0.06 here"):
        train_experts(replace(TINY, lr_teacher=0.06), tmp_path, digits())
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == kept


def test_what_diverged_does_not_stand_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="diverged"):
        train_experts(replace(TINY, lr_teacher=1e30), tmp_path, digits())
    assert len(train_experts(replace(TINY, num_experts=1), tmp_path, digits())) == 1


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stopped")
    kill(replace(TINY, keep_checkpoints=True), path, digits(), 0.55)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "rows"])
def test_damage_is_refused_in_a_line(suffix: str, stopped: Path) -> None:
    file = stopped / UNFINISHED / f"expert_00000.{suffix}"
    config, whole = replace(TINY, keep_checkpoints=True), file.read_bytes()
    at = {0, 9, 40, len(whole) // 3, len(whole) // 2, len(whole) - 1}
    damaged = [whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :] for i in at]
    for odd in [*damaged, whole[: len(whole) // 2], b""]:
        file.write_bytes(odd)
        with pytest.raises(InputError, match=r"^out: .*delete it") as refused:
            train_experts(config, stopped, digits())
        assert "\n" not in str(refused.value)
        assert file.read_bytes() == odd, "what is refused is left as it is"
    file.write_bytes(whole)


def test_an_expert_without_its_rows_is_refused(stopped: Path) -> None:
    file = stopped / UNFINISHED / "expert_00000.rows"
    whole = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match="cannot keep checkpoints in .*No such file"):
        train_experts(replace(TINY, keep_checkpoints=True), stopped, digits())
    file.write_bytes(whole)


def test_the_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "experts",
        "--out",
        str(tmp_path),
        "--num_experts",
        "2",
        "--train_epochs",
        "4",
        "--depth",
        "1",
        "--width",
        "4",
    ]
    words += ["--checkpoint_minutes", "0", "--device", "cpu"]
    config = ExpertConfig(num_experts=2, train_epochs=4, depth=1, width=4, checkpoint_minutes=0, device="cpu")
    kill(config, tmp_path, load_dataset("digits"), 0.6)
    assert main([*words, "--dry_run"]) == 0
    assert "2 experts under way, from epoch 2" in capsys.readouterr().out
    assert main(words) == 0
    assert ended(TrajectoryStore.open(tmp_path)) == ended(train_experts(config, tmp_path / "whole"))


# One process imports PyTorch once and forks the trainings; it runs nothing in parallel, so that forking is safe.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from tests.experts.test_unfinished import TINY, digits, ended
from mct_fast.experts import train_experts
from mct_fast.trajectory import TrajectoryStore
from dataclasses import replace

torch.set_num_threads(1)
root, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
config = replace(TINY, keep_checkpoints=True, train_epochs=8)
digits()


def begin(out):
    child = os.fork()
    if child == 0:
        try:
            train_experts(config, out, digits())
            os._exit(0)
        finally:
            os._exit(1)
    return child


def whole(out):
    assert os.waitpid(begin(out), 0)[1] == 0, "a training that was let be has failed"
    return ended(TrajectoryStore.open(out))


began = time.perf_counter()
reference = whole(root / "reference")
pace = time.perf_counter() - began
killed = number = 0
while killed < kills:
    number += 1
    out = root / f"store{number}"
    for _ in range(chance.randrange(1, 6)):
        child = begin(out)
        time.sleep(chance.uniform(0, pace))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, "a training has failed"
            break
        killed += 1
    assert whole(out) == reference, f"store {number} ended otherwise"
    left = [file.name for file in out.rglob(".*-*") if file.is_file()]
    assert not left, f"temporary files stay: {left}"
print(killed)
"""


def test_kill_9_at_random_moments(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(KILLS), "1"],
        capture_output=True,
        text=True,
        timeout=1200,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= KILLS
