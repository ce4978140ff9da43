from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mct_fast.run.errors import InputError
from mct_fast.run.folder import CHECKPOINT, CONFIG, METRICS, Run

CONFIGURATION = {"ipc": 1, "names": ("a", "b"), "lr": 0.1, "model": {"depth": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIGURATION)


def test_config_is_what_was_given_and_is_found_again(run: Run) -> None:
    expected = {**CONFIGURATION, "names": ["a", "b"]}
    assert Run.open(run.path).config == expected
    assert json.loads((run.path / CONFIG).read_text()) == expected


def test_environment_is_noted_at_the_beginning(run: Run) -> None:
    assert Run.open(run.path).environment()["torch"] == torch.__version__


def test_create_again_with_the_same_config_keeps_the_run(run: Run) -> None:
    run.log(kind="iter", iteration=1)
    assert Run.create(run.path, CONFIGURATION).metrics() == [{"kind": "iter", "iteration": 1}]


@pytest.mark.parametrize("change", [{"ipc": 2}, {"extra": 1}, {"model": {"depth": 4}}], ids=str)
def test_create_with_another_config_is_refused_and_names_the_field(run: Run, change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        Run.create(run.path, {**CONFIGURATION, **change})


def test_create_in_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="thesis.txt"):
        Run.create(tmp_path, CONFIGURATION)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize("left", ["environment.json", ".environment-0a1b.json", ".config-0a1b.json"])
def test_create_goes_on_where_it_was_killed(left: str, tmp_path: Path) -> None:
    (tmp_path / left).write_text("{")
    assert Run.create(tmp_path, CONFIGURATION).environment()["torch"] == torch.__version__


def test_create_where_a_file_stands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="choose a folder"):
        Run.create(tmp_path / "run", CONFIGURATION)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that even root cannot write: /proc")
def test_create_in_an_unwritable_folder_is_refused() -> None:
    with pytest.raises(InputError, match="choose a folder"):
        Run.create("/proc/run", CONFIGURATION)


def test_open_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        Run.open(tmp_path)


def test_log_writes_one_line_a_record_and_null_for_what_is_not_finite(run: Run) -> None:
    run.log(kind="iter", loss=float("nan"), many=[1.0, float("inf")], nested={"x": float("-inf")})
    run.log(kind="iter", loss=0.1 + 0.2)
    lines = (run.path / METRICS).read_text().splitlines()
    assert json.loads(lines[0]) == {"kind": "iter", "loss": None, "many": [1.0, None], "nested": {"x": None}}
    assert run.metrics()[1]["loss"] == 0.1 + 0.2


def test_a_torn_last_line_is_passed_over(run: Run) -> None:
    run.log(iteration=1)
    with open(run.path / METRICS, "a") as file:
        file.write('{"iteration": 2, "lo')
    assert run.metrics() == [{"iteration": 1}]


def test_a_damaged_line_before_the_last_is_named(run: Run) -> None:
    run.log(iteration=1)
    with open(run.path / METRICS, "a") as file:
        file.write("rubbish\n")
    run.log(iteration=3)
    with pytest.raises(InputError, match="line 2"):
        run.metrics()


def test_no_metrics_yet(run: Run) -> None:
    assert run.metrics() == []


def test_checkpoint_comes_back_bit_for_bit(run: Run) -> None:
    images = torch.randn(3, 5)
    tensors = {
        "images": images,
        "transposed": images.T,
        "same": images,
        "half": images.half(),
        "empty": torch.zeros(0, 3),
    }
    state = {"iteration": 7, "lr": 0.1 + 0.2, "best": {"score": float("inf")}, "none": None}
    run.save_checkpoint(tensors, state)
    loaded = Run.open(run.path).load_checkpoint()
    assert loaded is not None
    assert loaded[1] == state
    assert loaded[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[0][name], tensor), name
        assert loaded[0][name].dtype == tensor.dtype


def test_no_checkpoint_yet_begins_the_metrics_anew(run: Run) -> None:
    run.log(iteration=1)
    assert run.load_checkpoint() is None
    assert run.metrics() == []


def test_metrics_after_resuming_equal_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    def work(run: Run, first: int, last: int) -> None:
        for iteration in range(first, last + 1):
            run.log(kind="iter", iteration=iteration, loss=1 / iteration)
            if iteration == 2:
                run.save_checkpoint({"x": torch.full((2,), 2.0)}, {"iteration": 2})
                run.log(kind="eval", iteration=2)

    whole = Run.create(tmp_path / "whole", CONFIGURATION)
    work(whole, 1, 4)
    killed = Run.create(tmp_path / "killed", CONFIGURATION)
    work(killed, 1, 3)
    with open(killed.path / METRICS, "a") as file:
        file.write('{"kind": "it')
    again = Run.open(killed.path)
    loaded = again.load_checkpoint()
    assert loaded is not None
    assert loaded[1] == {"iteration": 2}
    again.log(kind="eval", iteration=2)
    work(again, 3, 4)
    assert (again.path / METRICS).read_bytes() == (whole.path / METRICS).read_bytes()


@pytest.mark.parametrize("length", [0, 10, 60])
def test_a_damaged_checkpoint_is_named_and_the_metrics_stay(run: Run, length: int) -> None:
    run.log(iteration=1)
    run.save_checkpoint({"x": torch.randn(100)}, {"iteration": 1})
    run.log(iteration=2)
    os.truncate(run.path / CHECKPOINT, length)
    with pytest.raises(InputError, match=CHECKPOINT):
        run.load_checkpoint()
    assert len(run.metrics()) == 2


def test_a_failed_checkpoint_leaves_the_last_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_checkpoint({"x": torch.zeros(2)}, {"iteration": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mct_fast.run.folder.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        run.save_checkpoint({"x": torch.ones(2)}, {"iteration": 2})
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded[1] == {"iteration": 1}
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")]


def test_evaluations_keep_one_record_a_network_and_split(run: Run) -> None:
    assert run.evaluations() == []
    run.add_evaluation({"model": "A", "split": "test", "mean": 0.1})
    run.add_evaluation({"model": "B", "split": "test", "mean": 0.2})
    run.add_evaluation({"model": "A", "split": "val", "mean": 0.3})
    run.add_evaluation({"model": "A", "split": "test", "mean": 0.4})
    found = {(r["model"], r["split"]): r["mean"] for r in Run.open(run.path).evaluations()}
    assert found == {("A", "test"): 0.4, ("B", "test"): 0.2, ("A", "val"): 0.3}
