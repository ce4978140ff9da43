"""A run goes on to another number of iterations, and is then the run that was begun with it, file by file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mct_fast.distill.selection
from mct_fast import cli
from mct_fast.data import Dataset, load_dataset
from mct_fast.distill import DistillConfig, DistilledDataset, distill, sweep
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from tests.conftest import TINY_DISTILL
from tests.distill.runs import same_runs

LEVERS: dict[str, dict[str, Any]] = {
    "eval_it": {},
    "no evaluations between": {"eval_it": 0},
    "soft labels, average": {"ema": 0.5, "lr_label": 5.0, "img_optimizer": "adam", "lr_img": 0.05},
    "growing window, curves on test": {"growth_iterations": 6, "eval_test": True},
}
QUICK = replace(TINY_DISTILL, num_eval=1, epoch_eval_train=1, random_real=False)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize(
    ("lever", "ends"),
    [(lever, (3, 5)) for lever in LEVERS]
    + [("eval_it", (4, 5)), ("eval_it", (1, 2, 3)), ("no evaluations between", (1, 2))],
)
def test_a_longer_run_is_the_run_begun_so(
    lever: str, ends: tuple[int, ...], digits: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, **LEVERS[lever])
    whole = distill(replace(config, iterations=ends[-1]), tiny_store, digits, out=tmp_path / "whole")
    for end in ends[:-1]:
        distill(replace(config, iterations=end), tiny_store, digits, out=tmp_path / "run", resume=end != ends[0])
    made = distill(replace(config, iterations=ends[-1]), tiny_store, digits, out=tmp_path / "run", resume=True)
    assert torch.equal(made.images, whole.images)
    same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("wins", range(4))
def test_the_best_is_that_of_the_run_begun_so(
    wins: int, digits: Dataset, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever evaluation wins: that of the old end (3), which the longer run does not have, too."""
    real = mct_fast.distill.selection.evaluate_splits
    best = (0, 2, 3, 4)[wins]

    def scripted(candidate: DistilledDataset, *args: Any, **kw: Any) -> Any:
        iteration = candidate.provenance["iteration"]
        score = 0.9 if iteration == best else 0.1 + iteration / 100
        return {split: replace(r, scores=(score,)) for split, r in real(candidate, *args, **kw).items()}

    monkeypatch.setattr(mct_fast.distill.selection, "evaluate_splits", scripted)
    distill(replace(QUICK, iterations=5), tiny_store, digits, out=tmp_path / "whole")
    first = distill(replace(QUICK, iterations=3), tiny_store, digits, out=tmp_path / "run")
    assert first.provenance["iteration"] == (best if best < 4 else 3)
    made = distill(replace(QUICK, iterations=5), tiny_store, digits, out=tmp_path / "run", resume=True)
    assert made.provenance["iteration"] == (best if best != 3 else 5)
    same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize("iterations", [3, 4, 7])
def test_an_unfinished_run_takes_another_end(
    stop: int, iterations: int, digits: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, iterations=iterations)
    distill(config, tiny_store, digits, out=tmp_path / "whole")
    distill(replace(QUICK, iterations=6), tiny_store, digits, out=tmp_path / "run", until=stop)
    distill(config, tiny_store, digits, out=tmp_path / "run", resume=True)
    same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("place", ["go_back", "cut", "keep_first", "change", "after"])
def test_a_kill_on_the_way_loses_nothing(
    place: str, digits: Dataset, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(QUICK, iterations=5)
    distill(replace(QUICK, iterations=3), tiny_store, digits, out=tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "short")
    distill(longer, tiny_store, digits, out=tmp_path / "whole")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        where = {
            "cut": "mct_fast.run.journal.Journal.cut",
            "after": "mct_fast.distill.state.State.load_state_dict",
        }.get(place, f"mct_fast.run.folder.Run.{place}")
        patch.setattr(where, killed)
        with pytest.raises(KeyboardInterrupt):
            distill(longer, tiny_store, digits, out=tmp_path / "run", resume=True)
    if place in ("go_back", "cut"):  # it is still finished, and what it was
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        made = distill(replace(QUICK, iterations=3), tiny_store, digits, out=tmp_path / "copy", resume=True)
        assert torch.equal(made.images, DistilledDataset.load(tmp_path / "short" / "distilled").images)
    distill(longer, tiny_store, digits, out=tmp_path / "run", resume=True)
    same_runs(tmp_path / "run", tmp_path / "whole")


def test_fewer_iterations_than_done_are_refused(digits: Dataset, tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    distill(replace(QUICK, iterations=3), tiny_store, digits, out=run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=f"^iterations: 2 are fewer than the 3 that {run} has done; give") as caught:
        distill(replace(QUICK, iterations=2), tiny_store, digits, out=run, resume=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"another iterations \(3, not 7\)"):  # only who resumes means this run
        distill(replace(QUICK, iterations=7), tiny_store, digits, out=run)
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_cosine_ends_where_it_was_said_to(digits: Dataset, tiny_store: Path, tmp_path: Path) -> None:
    config = replace(QUICK, cosine=True)
    distill(replace(config, iterations=3), tiny_store, digits, out=tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(
        InputError, match=r"^iterations: the step sizes of .* fall along a cosine over its 3 iterations"
    ):
        distill(replace(config, iterations=5), tiny_store, digits, out=tmp_path / "run", resume=True)
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def test_what_earlier_releases_ended_is_refused_where_their_best_is_lost(
    digits: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    config = replace(QUICK, eval_it=0)
    distill(replace(config, iterations=3), tiny_store, digits, out=tmp_path / "run")
    run = Run.open(tmp_path / "run")
    saved = run.load_checkpoint()
    assert saved is not None and "earlier" in saved[1]
    del saved[1]["earlier"]
    run.save_checkpoint(*saved)
    with pytest.raises(InputError, match="^iterations: .*earlier release"):
        distill(replace(config, iterations=5), tiny_store, digits, out=tmp_path / "run", resume=True)


def test_later_evaluations_stay_with_the_images_that_they_are_of(
    digits: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    distill(replace(QUICK, iterations=3), tiny_store, digits, out=tmp_path / "run")
    Run.open(tmp_path / "run").add_evaluation({"model": "A", "split": "test", "mean": 0.5})
    distill(replace(QUICK, iterations=4), tiny_store, digits, out=tmp_path / "run", resume=True)
    assert Run.open(tmp_path / "run").evaluations() == []
    assert json.loads((tmp_path / "run" / "evaluations-3.json").read_text())["evaluations"][0]["model"] == "A"


def test_runs_side_by_side_go_on(digits: Dataset, tiny_store: Path, tmp_path: Path) -> None:
    def configs(iterations: int) -> list[DistillConfig]:
        return [replace(QUICK, iterations=iterations, seed=seed) for seed in range(2)]

    outs, wholes = ([tmp_path / f"{name}{seed}" for seed in range(2)] for name in ("run", "whole"))
    sweep(configs(3), tiny_store, digits, outs=outs)
    sweep(configs(5), tiny_store, digits, outs=outs, resume=True)
    sweep(configs(5), tiny_store, digits, outs=wholes)
    for out, whole in zip(outs, wholes, strict=True):
        same_runs(out, whole)


def test_on_the_command_line(
    digits: Dataset, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    distill(replace(QUICK, iterations=3), tiny_store, digits, out=run)
    assert cli.main(["distill", "--resume", str(run), "--iterations", "5"]) == 0
    assert "5 of 5" in capsys.readouterr().out
    distill(replace(QUICK, iterations=5), tiny_store, digits, out=tmp_path / "whole")
    same_runs(run, tmp_path / "whole")
    # The default is a number like any other, and the run's own settings may be repeated.
    words = ["distill", "--resume", str(run), "--lr_img", "10", "--dry_run"]
    assert cli.main([*words, "--iterations", "5000"]) == 0
    assert "5,000" in capsys.readouterr().out
    assert cli.main([*words[:-1], "--iterations", "2"]) == 2
    assert "iterations: 2 are fewer than the 5" in capsys.readouterr().err
    assert cli.main([*words, "--syn_steps", "9"]) == 2
    assert "own settings" in capsys.readouterr().err
