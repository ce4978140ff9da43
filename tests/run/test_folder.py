from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write
from mct_fast.run.folder import CHECKPOINT, CONFIG, EVALUATIONS, METRICS, Run

CONFIGURATION = {"ipc": 1, "names": ("a", "b"), "lr": 0.1, "model": {"depth": 3}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIGURATION)


def test_config_is_what_was_given_and_is_found_again(run: Run) -> None:
    expected = {**CONFIGURATION, "names": ["a", "b"]}
    assert Run.open(run.path).config == expected
    written = json.loads((run.path / CONFIG).read_text())
    assert len(written.pop("checksum")) == 64
    assert written == expected


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
    written = json.loads(lines[0])
    assert len(written.pop("sum")) == 16
    assert written == {"kind": "iter", "loss": None, "many": [1.0, None], "nested": {"x": None}}
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

    monkeypatch.setattr("mct_fast.run.files.os.replace", full)
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


def test_processes_that_add_evaluations_lose_none(run: Run) -> None:
    children = []
    for process in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for number in range(20):
                    run.add_evaluation({"model": f"{process}-{number}", "split": "test", "mean": 0.5})
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(run.evaluations()) == 80
    assert sorted(file.name for file in run.path.iterdir()) == [CONFIG, "environment.json", EVALUATIONS]


@pytest.mark.parametrize("left", [0, 10, -1])
def test_metrics_that_the_checkpoint_knows_of_cannot_vanish(run: Run, left: int) -> None:
    run.log(kind="iter", iteration=1)
    run.save_checkpoint({"x": torch.zeros(2)}, {"iteration": 1})
    file = run.path / METRICS
    if left:
        file.write_bytes(file.read_bytes()[:left])
    else:
        file.unlink()
    for read in (run.load_checkpoint, run.metrics):
        with pytest.raises(InputError, match=rf"^run: .*{METRICS} has \d+ bytes, but \d+ when the checkpoint"):
            read()


def test_a_line_that_is_changed_taken_out_or_added_is_named(run: Run) -> None:
    for iteration in range(4):
        run.log(kind="iter", iteration=iteration, loss=0.25)
    file = run.path / METRICS
    lines = file.read_text().splitlines(keepends=True)
    for number, changed in (
        (1, [lines[0].replace("0.25", "0.26"), *lines[1:]]),
        (2, [lines[0], *lines[2:]]),
        (1, lines[1:]),
        (3, [*lines[:2], lines[3], lines[2]]),
        (3, [*lines[:2], lines[0], *lines[2:]]),
        (3, [*lines[:2], '{"kind": "iter", "iteration": 2}\n', *lines[2:]]),
    ):
        file.write_text("".join(changed))
        with pytest.raises(InputError, match=f"{METRICS} is damaged in line {number}"):
            run.metrics()


def test_a_byte_that_is_no_utf8_is_named(run: Run) -> None:
    run.log(kind="iter", iteration=1)
    run.add_evaluation({"model": "A", "split": "test", "mean": 0.1})
    for name, read in ((METRICS, run.metrics), (EVALUATIONS, run.evaluations), (CONFIG, lambda: Run.open(run.path))):
        file = run.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:10] + b"\xff" + whole[10:])
        with pytest.raises(InputError, match=name) as caught:
            read()
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)


def test_temporary_files_of_killed_processes_go_and_those_of_others_stay(run: Run) -> None:
    dead = run.path / f".checkpoint-{0:016x}.safetensors"
    dead.write_bytes(b"half")
    other = run.path / f".config-{0:016x}.json"
    other.write_bytes(b"half")

    def write(temporary: Path) -> None:
        run.save_checkpoint({"x": torch.zeros(2)}, {"iteration": 1})
        assert temporary.exists(), "its writer lives"
        temporary.write_bytes(b"whole")

    atomic_write(run.path / CHECKPOINT, write)
    assert not dead.exists() and other.exists()
    assert (run.path / CHECKPOINT).read_bytes() == b"whole"


# Runs of earlier releases


def as_before(run: Run) -> None:
    """Takes every checksum away, as if an earlier release had written the run."""
    for name in (CONFIG, "environment.json"):
        content = json.loads((run.path / name).read_text())
        del content["checksum"]
        (run.path / name).write_text(json.dumps(content, indent=2))
    (run.path / EVALUATIONS).write_text(json.dumps(json.loads((run.path / EVALUATIONS).read_text())["evaluations"]))
    lines = [json.loads(line) for line in (run.path / METRICS).read_text().splitlines()]
    text = "".join(json.dumps({name: value for name, value in line.items() if name != "sum"}) + "\n" for line in lines)
    (run.path / METRICS).write_text(text)
    metadata = {"format_version": "1", "state": '{"iteration": 2}', "metrics_bytes": str(len(text))}
    save_file({"x": torch.arange(3)}, run.path / CHECKPOINT, metadata)


def test_a_run_of_an_earlier_release_goes_on_and_that_is_said(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for iteration in (1, 2):
        run.log(kind="iter", iteration=iteration)
    run.add_evaluation({"model": "A", "split": "test", "mean": 0.1})
    as_before(run)
    old = Run.open(run.path)
    assert old.config["ipc"] == 1 and "torch" in old.environment()
    assert [record["iteration"] for record in old.metrics()] == [1, 2]
    loaded = old.load_checkpoint()
    assert loaded is not None and loaded[1] == {"iteration": 2} and torch.equal(loaded[0]["x"], torch.arange(3))
    assert caplog.text.count("begun by an earlier release") == 1
    old.log(kind="iter", iteration=3)
    old.add_evaluation({"model": "B", "split": "test", "mean": 0.2})
    again = Run.open(run.path)
    assert [record["iteration"] for record in again.metrics()] == [1, 2, 3]
    assert [record["model"] for record in again.evaluations()] == ["A", "B"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (METRICS, "[" * 100_000 + "\n"),
        (METRICS, "3\n"),
        (EVALUATIONS, '[{"model": "A"}]'),
        (EVALUATIONS, '{"A": 1}'),
        (EVALUATIONS, "[" * 100_000),
        (EVALUATIONS, '[{"model": "A", "split": "test", "mean": NaN}]'),
        (CONFIG, "[]"),
        (CONFIG, '{"a":' * 100_000),
    ],
)
def test_json_of_wrong_types_or_depth_is_one_line(run: Run, name: str, content: str) -> None:
    (run.path / name).write_text(content)

    def read() -> None:
        opened = Run.open(run.path)
        opened.metrics()
        opened.evaluations()

    with pytest.raises(InputError, match=name) as caught:
        read()
    assert "\n" not in str(caught.value)
