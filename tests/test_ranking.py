"""DD-Ranking's scores: its formulas, its package where that is installed, and a set here."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from mct_fast.cli import main
from mct_fast.data import Dataset, load_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.ranking import augmentation_robust_score, label_robust_score, rank
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.settings import EvalConfig
from mct_fast.trajectory import TrajectoryStore


def test_the_ends_of_the_scores() -> None:
    assert label_robust_score(1, 1, 1, 0, weight=1) == augmentation_robust_score(1, 0, 1, 0) == 1
    assert label_robust_score(1, 0, 0, 1) == augmentation_robust_score(0, 1, 0, 1) == 0
    nothing_gained = (1 - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    assert label_robust_score(0.8, 0.8, 0.4, 0.4) == augmentation_robust_score(0.3, 0.3, 0.2, 0.2) == nothing_gained
    with pytest.raises(InputError, match="^real_hard: 85 is not within"):
        label_robust_score(85, 46, 46, 15)


def test_the_package_says_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its metric with accuracies given in place of its training."""
    hard_label: Any = pytest.importorskip("ddranking.metrics.hard_label")
    metric = object.__new__(hard_label.LabelRobustScoreHard)
    accuracies = iter([0.46, 0.86, 0.15])  # the set, all data, random images: in the order in which it asks

    def given(**_: Any) -> tuple[float, float]:
        return next(accuracies), 0.01

    for name, value in {
        "num_eval": 1, "eval_full_data": True, "use_dist": False, "rank": 0, "ipc": 1, "num_classes": 10,
        "save_path": str(tmp_path / "scores.csv"), "_compute_hard_label_metrics_helper": given,
        "_get_random_data_helper": lambda eval_iter: (None, None, None),
    }.items():  # fmt: skip
        setattr(metric, name, value)
    monkeypatch.setattr(hard_label, "save_results", lambda *_: None)  # its table has columns of two lengths, and fails
    found = metric.compute_metrics(image_tensor=torch.zeros(10, 3, 2, 2), syn_lr=0.01)
    assert found["label_robust_score_mean"] == pytest.approx(label_robust_score(0.86, 0.46, 0.46, 0.15), abs=1e-6)


def ten(digits: Dataset) -> DistilledDataset:
    images = torch.stack([digits.train.images[digits.train.labels == c][0] for c in range(10)])
    return DistilledDataset(images, torch.arange(10), 0.01, digits.transform, digits.class_names, {"dataset": "digits"})


def test_a_set_is_scored_here() -> None:
    digits = load_dataset("digits")
    made = ten(digits)
    how = EvalConfig(num_eval=1, epoch_eval_train=3)
    found = rank(made, digits, 0.97, how, model="MLP", random_lrs=(0.01,))
    got = found.accuracies
    assert set(got) == {"real_hard", "syn_aug", "random_aug", "syn_plain", "random_plain"}
    assert found.lrs == label_robust_score(0.97, got["syn_aug"], got["syn_aug"], got["random_aug"])
    assert found.ars == augmentation_robust_score(
        *(got[n] for n in ("syn_aug", "random_aug", "syn_plain", "random_plain"))
    )
    soft = replace(made, labels=torch.eye(10))
    with pytest.raises(InputError, match="^distilled: has soft labels"):
        rank(soft, digits, 0.97, how)


QUICK = ["--num_eval=1", "--epoch_eval_train=2", "--random_lrs", "0.01"]


def test_the_command_says_what_rank_finds(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The accuracy of training on all data is that of the run's experts, unless it is given."""
    made, digits = DistilledDataset.load(tiny_run / "distilled"), load_dataset("digits")
    how = EvalConfig(num_eval=1, epoch_eval_train=2)
    experts = TrajectoryStore.open(Run.open(tiny_run).config["trajectories"]).manifest["experts"].values()
    reached = fmean(expert["info"]["accuracy"] for expert in experts)
    for words, real_hard, source in ([], reached, "mean of 2 experts, val"), (["--real_hard=0.9"], 0.9, "as given"):
        found = rank(made, digits, real_hard, how, random_lrs=(0.01,))
        assert main(["ranking", str(tiny_run), *QUICK, *words]) == 0
        said = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
        rows = {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in said}
        assert rows["all real data"] == [f"{100 * real_hard:.1f} %", f"({source})"]
        assert rows["this set"] == [f"{100 * found.accuracies[f'syn_{way}']:.1f} %" for way in ("aug", "plain")]
        assert rows["label-robust score (LRS)"] == [f"{found.lrs:.4f}"]
        assert rows["augmentation-robust score (ARS)"] == [f"{found.ars:.4f}"]


def test_what_cannot_be_scored_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_dataset("digits")
    ten(digits).save(tmp_path / "set")
    soft = replace(ten(digits), labels=torch.full((10, 10), 0.1))
    soft.save(tmp_path / "soft")
    monkeypatch.setattr("mct_fast.ranking.evaluate", lambda *_, **__: pytest.fail("trained"))
    for words, said in (
        (["set"], "real_hard: no experts are noted"),
        (["set", "--real_hard=85"], "real_hard: 85.0 is not within"),
        (["set", "--real_hard=0.8", "--weight=2"], "weight: 2.0 is not within"),
        (["set", "--real_hard=0.8", "--random_lrs", "0"], "random_lrs: (0.0,) are no positive"),
        (["set", "--real_hard=0.8", "--model=MLP,ConvNet"], "model: MLP,ConvNet are several"),
        (["soft", "--real_hard=0.8"], "distilled: has soft labels"),
    ):
        assert main(["ranking", str(tmp_path / words[0]), *words[1:]]) == 2
        assert f"error: {said}" in capsys.readouterr().err
