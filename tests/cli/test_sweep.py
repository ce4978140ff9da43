"""``mct-fast sweep``: a folder a combination, each as ``distill`` alone leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mct_fast.cli import main
from mct_fast.run.folder import Run
from tests.distill.runs import same_runs

FEW = [
    "--iterations=2", "--syn_steps=2", "--expert_epochs=1", "--max_start_epoch=1", "--num_eval=1", "--epoch_eval_train=2",
    "--no-random_real",
]  # fmt: skip


def test_every_combination_is_a_run_of_its_own(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--trajectories={tiny_store}", *FEW]
    varied = ["--vary", "seed=0,1", "lr-img=10,1000"]
    assert main(["sweep", *words, f"--out={tmp_path / 'sweep'}", *varied]) == 0
    names = ["seed=0,lr_img=10", "seed=0,lr_img=1000", "seed=1,lr_img=10", "seed=1,lr_img=1000"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == names
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == names and all("%" in line for line in printed)
    assert main(["distill", *words, f"--out={tmp_path / 'alone'}", "--seed=1", "--lr_img=10"]) == 0
    same_runs(tmp_path / "sweep" / names[2], tmp_path / "alone")
    capsys.readouterr()
    assert main(["sweep", *words, f"--out={tmp_path / 'sweep'}", *varied]) == 0, "finished runs are left as they are"
    assert capsys.readouterr().out.splitlines() == printed


def test_presets_can_be_varied(tiny_store: Path, tmp_path: Path) -> None:
    words = ["sweep", f"--trajectories={tiny_store}", f"--out={tmp_path}", *FEW, "--vary=preset=digits"]
    assert main(words) == 0
    assert Run.open(tmp_path / "preset=digits").config["lr_img"] != 1000.0


@pytest.mark.parametrize(
    ("varied", "said"),
    [
        (["sed=1,2"], "vary: 'sed' is no option of a run; give NAME=VALUE,VALUE"),
        (["out=a,b"], "vary: 'out' is no option of a run"),
        (["seed=1,1"], "vary: 'seed=1,1' has an empty value, or one twice"),
        (["seed=1,"], "vary: 'seed=1,' has an empty value"),
        (["seed"], "vary: 'seed' has an empty value"),
        (["seed=1", "seed=2"], "vary: names no option, or one twice"),
        (["data_path=a/b,c"], "vary: 'data_path=a/b' names no folder"),
        (["ipc=1,2"], "ipc: differs (1, 2); runs side by side have it in common"),
        (["lr_img=1,x"], "--lr_img: could not convert"),
        (["lr_img=1,-1"], "lr_img: got -1.0"),
        (["preset=cifar10-ipc1"], "preset"),
    ],
)
def test_what_cannot_be_varied_is_one_line(
    varied: list[str], said: str, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", f"--trajectories={tiny_store}", f"--out={tmp_path / 'out'}", *FEW, "--vary", *varied]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
