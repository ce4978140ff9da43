"""What clinical tables stand beside: gradient boosting, and probabilities that were calibrated on validation data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mct_fast.data import Dataset, Split, TableTransform
from mct_fast.tasks import Task, task_named

GRID = {"max_leaf_nodes": (7, 31), "max_iter": (50, 150), "learning_rate": (0.05,)}
"""Settings of gradient boosting, of which the best on validation is taken."""


class Measured:
    """A binary or multi-label task that also keeps what it measures, so that probabilities can be calibrated afterwards."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __getattr__(self, name: str) -> Any:
        if name == "task":  # of a copy that is not made yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        self._seen.append((logits.cpu().double(), labels.cpu()))
        return self.task.metrics(logits, labels)

    def calibrated(self, networks: int, turn: int = 0) -> dict[str, float]:
        """Of the networks of an evaluation, the turn-th, on validation and then on test: `calibrated`'s means on test."""
        seen = self._seen[2 * networks * turn :][: 2 * networks]
        pairs = zip(seen[:networks], seen[networks:], strict=True)
        found = [calibrated(self.task, *val, *test) for val, test in pairs]
        return {name: fmean(each[name] for each in found) for name in found[0]}


def calibrated(task: Task, val: Tensor, val_labels: Tensor, test: Tensor, test_labels: Tensor) -> dict[str, float]:
    """Brier score and calibration error on test of log odds ``(n, k)`` that validation data scale and move (Platt, 1999)."""
    from sklearn.linear_model import LogisticRegression

    truth, moved = val_labels.reshape(len(val_labels), -1) > 0.5, test.clone()
    for k in range(val.shape[1]):
        given, wanted = (torch.nan_to_num(part[:, k : k + 1], 0.0, 0.0, 0.0).numpy() for part in (val, test))
        fitted = LogisticRegression(C=1e6).fit(given, truth[:, k].numpy())
        moved[:, k] = torch.from_numpy(fitted.decision_function(wanted))
    found = task.metrics(moved, test_labels)
    return {f"{name}_calibrated": found[name] for name in ("brier", "ece")}


def gradient_boosting(dataset: Dataset, seed: int) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Test metrics of scikit-learn's HistGradientBoosting on all training rows, a model a label, and its settings.

    Its features are the table's columns in their own units, with missing values left missing.
    """
    rows = {name: _columns(dataset, dataset.split(name)) for name in ("train", "val", "test")}
    task, best = task_named(dataset.task), (-math.inf, {}, {})
    for values in itertools.product(*GRID.values()):
        settings = dict(zip(GRID, values, strict=True))
        logits = _boosted(rows, dataset.train.labels, settings, seed)
        score = task.score(logits["val"], dataset.val.labels)
        if score > best[0]:
            found = task.metrics(logits["test"], dataset.test.labels)
            given = (logits["val"], dataset.val.labels, logits["test"], dataset.test.labels)
            best = (score, found | calibrated(task, *given), settings)
    return best[1], best[2]


def _columns(dataset: Dataset, split: Split) -> np.ndarray:
    transform = dataset.transform
    assert isinstance(transform, TableTransform)
    return transform.inverse(split.images.double()).cpu().numpy()


def _boosted(
    rows: Mapping[str, np.ndarray], labels: Tensor, settings: Mapping[str, Any], seed: int
) -> dict[str, Tensor]:
    """Log odds ``(n, k)`` of the validation and the test split."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    y = labels.reshape(len(labels), -1).cpu().numpy()
    found: dict[str, list[np.ndarray]] = {"val": [], "test": []}
    for label in range(y.shape[1]):
        how: dict[str, Any] = {"random_state": seed, "early_stopping": False, **settings}
        model = HistGradientBoostingClassifier(**how)
        model.fit(rows["train"], y[:, label])
        for name, columns in found.items():
            columns.append(model.decision_function(rows[name]))
    return {name: torch.from_numpy(np.stack(columns, axis=1)) for name, columns in found.items()}
