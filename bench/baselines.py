"""What clinical tables are compared with: gradient boosting, and probabilities that fit the data's base rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mct_fast.data import Dataset, Split, TableTransform
from mct_fast.tasks import Binary, MultiLabel, Task, task_named

GRID = {"max_leaf_nodes": (7, 31), "max_iter": (50, 150), "learning_rate": (0.05,)}
"""Settings of gradient boosting, of which the best on validation is taken."""


@dataclass(frozen=True)
class Recalibrated:
    """A binary or multi-label ``task`` whose measured probabilities are moved to the base rate of the training split.

    A network that was trained on as many rows of each class, or with weights, believes in another base rate. With odds in its
    loss of o' and in the data of o, log o - log o' is added to its log odds (Elkan, IJCAI 2001). Areas under curves do not
    depend on it.
    """

    task: Any
    shift: tuple[float, ...]
    name: ClassVar[str] = "recalibrated"

    @classmethod
    def of(cls, task: Task, labels: Tensor, *, even: bool) -> Recalibrated:
        """For networks with ``task`` trained on rows drawn from training ``labels``; of two classes ``even`` in number, or as
        they are."""
        if isinstance(task, MultiLabel):
            return cls(task, tuple(-math.log(weight) for weight in task.pos_weight))
        assert isinstance(task, Binary)
        share = float(labels.double().mean())
        odds = share / (1 - share) if even else 1.0
        return cls(task, (math.log(odds / task.pos_weight),))

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        return self.task.metrics(logits + logits.new_tensor(self.shift), labels)

    def score(self, logits: Tensor, labels: Tensor) -> float:
        return self.task.score(logits, labels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


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
            best = (score, task.metrics(logits["test"], dataset.test.labels), settings)
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
