"""How well a network does: accuracy, rankings (scikit-learn's), calibration.  A metric without an answer is NaN.

The area under a curve has no answer on a set with one class only, the balanced accuracy none for a class that is absent.
Logits that are not finite (a network that diverged) count as 0: they rank nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

CALIBRATION_BINS = 15
"""Bins of equal width of the calibration error (Guo et al., ICML 2017)."""

_LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "macro_auroc": "macro AUROC",
    "micro_auroc": "micro AUROC",
    "macro_auprc": "macro AUPRC",
    "ece": "calibration error",
    "brier": "Brier score",
}
_IN_PERCENT = ("accuracy", "balanced_accuracy")


def metric_label(name: str) -> str:
    """The metric's name as people write it."""
    return _LABELS.get(name, name)


def metric_scale(name: str) -> tuple[float, str]:
    """By what to multiply the metric to show it, and its unit: accuracies in %, all else as it is."""
    return (100.0, "%") if name in _IN_PERCENT else (1.0, "")


def metric_digits(name: str, value: float) -> str:
    """The number alone, scaled, with the metric's usual digits."""
    scale, unit = metric_scale(name)
    return f"{scale * value:.{1 if unit else 3}f}"


def metric_title(name: str) -> str:
    """The metric's name at the beginning of a line."""
    label = metric_label(name)
    return label[0].upper() + label[1:]


def format_metric(name: str, mean: float | None, std: float | None) -> str:
    """``mean ± std`` in the metric's usual form: accuracies in %, areas and errors with three digits; None is not defined."""
    if mean is None or std is None or math.isnan(mean):
        return "undefined (one class only)"
    unit = metric_scale(name)[1]
    return f"{metric_digits(name, mean)} ± {metric_digits(name, std)}{unit and f' {unit}'}"


def of_classes(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of class scores ``logits (n, k)`` against classes ``labels (n,)``."""
    predicted, hit = logits.argmax(1), logits.argmax(1) == labels
    confidence = _finite(logits).double().softmax(1).amax(1)
    recalls = [hit[labels == c].double().mean() for c in labels.unique()]
    return {
        "accuracy": (predicted == labels).double().mean().item(),
        "balanced_accuracy": torch.stack(recalls).mean().item() if recalls else math.nan,
        "ece": calibration_error(confidence, hit.double()),
    }


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How often a row of the class of a row is taken for that of a column: counts ``(k, k)`` int64 of ``logits (n, k)``."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).view(classes, classes)


def of_one(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of one score a row, ``logits (n,)``, against ``labels (n,)`` of 0 and 1."""
    positive, scores = labels > 0.5, _finite(logits).double()
    hit = (scores > 0) == positive
    return {
        "auroc": auroc(scores, positive),
        "auprc": auprc(scores, positive),
        "accuracy": hit.double().mean().item(),
        "balanced_accuracy": (hit[positive].double().mean() / 2 + hit[~positive].double().mean() / 2).item(),
        "ece": calibration_error(scores.sigmoid(), positive.double()),
        "brier": (scores.sigmoid() - positive.double()).square().mean().item(),
    }


def of_labels(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of a score for each label, ``logits (n, k)``, against ``labels (n, k)`` of 0 and 1.

    Macro: the mean over those labels for which the metric has an answer; micro: all pairs of row and label at once.
    """
    each = [of_one(logits[:, k], labels[:, k]) for k in range(labels.shape[1])]
    flat = of_one(logits.flatten(), labels.flatten())
    return {
        "macro_auroc": _mean_known(row["auroc"] for row in each),
        "micro_auroc": flat["auroc"],
        "macro_auprc": _mean_known(row["auprc"] for row in each),
        "accuracy": flat["accuracy"],
        "balanced_accuracy": _mean_known(row["balanced_accuracy"] for row in each),
        "ece": flat["ece"],
        "brier": flat["brier"],
    }


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the receiver operating characteristic; NaN where one class only is present."""
    from sklearn.metrics import roc_auc_score

    return _ranking(roc_auc_score, scores, positive)


def auprc(scores: Tensor, positive: Tensor) -> float:
    """Area under precision and recall (average precision); NaN where one class only is present."""
    from sklearn.metrics import average_precision_score

    return _ranking(average_precision_score, scores, positive)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: sum over bins of the share of rows times |mean confidence - mean of correct|."""
    place = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, place, (confidence - correct).double())
    return gap.abs().sum().item() / max(len(confidence), 1)


def _ranking(metric: Callable[..., float], scores: Tensor, positive: Tensor) -> float:
    if bool(positive.all()) or not bool(positive.any()):
        return math.nan
    return float(metric(positive.cpu().numpy(), scores.cpu().numpy()))


def _mean_known(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _finite(logits: Tensor) -> Tensor:
    return torch.nan_to_num(logits, nan=0.0, posinf=0.0, neginf=0.0)
