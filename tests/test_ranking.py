"""DD-Ranking's scores: its formulas, its package where that is installed, and a set here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mct_fast.data import load_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.ranking import augmentation_robust_score, label_robust_score, rank
from mct_fast.run.errors import InputError
from mct_fast.settings import EvalConfig


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


def test_a_set_is_scored_here() -> None:
    digits = load_dataset("digits")
    labels = torch.arange(10)
    images = torch.stack([digits.train.images[digits.train.labels == c][0] for c in range(10)])
    made = DistilledDataset(images, labels, 0.01, digits.transform, digits.class_names, {"dataset": "digits"})
    how = EvalConfig(num_eval=1, epoch_eval_train=3)
    found = rank(made, digits, 0.97, how, model="MLP", random_lrs=(0.01,))
    got = found.accuracies
    assert set(got) == {"real_hard", "syn_aug", "random_aug", "syn_plain", "random_plain"}
    assert found.lrs == label_robust_score(0.97, got["syn_aug"], got["syn_aug"], got["random_aug"])
    assert found.ars == augmentation_robust_score(
        *(got[n] for n in ("syn_aug", "random_aug", "syn_plain", "random_plain"))
    )
    soft = DistilledDataset(images, torch.eye(10), 0.01, digits.transform, digits.class_names)
    with pytest.raises(InputError, match="^distilled: has soft labels"):
        rank(soft, digits, 0.97, how)
