"""DD-Ranking's scores (arXiv 2505.13300): how much of an accuracy is the images', and not the labels' or the augmentation's.

With accuracies as shares, alpha = w IOR - (1 - w) HLR, where IOR is what the set gains over as many random images trained in the
same way, and HLR what it lacks, with hard labels, to training on all data; LRS is alpha taken from [-1, 1] to [0, 1] by
the exponential. ARS is the same of the gains over random images with and without augmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from mct_fast.data import Dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import evaluate, evaluate_random_real
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import EvalConfig
from mct_fast.tasks import Classification

LRS = (0.001, 0.005, 0.01, 0.05, 0.1)
"""The step sizes that DD-Ranking tries for random images."""


def label_robust_score(
    real_hard: float, syn_hard: float, syn_any: float, random_any: float, weight: float = 0.5
) -> float:
    """LRS of accuracies in [0, 1]: all data, the set with hard labels, the set and random images in the set's own way."""
    _check_shares(real_hard=real_hard, syn_hard=syn_hard, syn_any=syn_any, random_any=random_any, weight=weight)
    return _from_0_to_1(weight * (syn_any - random_any) - (1 - weight) * (real_hard - syn_hard))


def augmentation_robust_score(
    syn_aug: float, random_aug: float, syn_plain: float, random_plain: float, weight: float = 0.5
) -> float:
    """ARS of accuracies in [0, 1]: the set and random images, with augmentation and without."""
    _check_shares(syn_aug=syn_aug, random_aug=random_aug, syn_plain=syn_plain, random_plain=random_plain, weight=weight)
    return _from_0_to_1(weight * (syn_aug - random_aug) + (1 - weight) * (syn_plain - random_plain))


@dataclass(frozen=True)
class Ranking:
    """The two scores in [0, 1] and the accuracies that they are made of."""

    lrs: float
    ars: float
    accuracies: dict[str, float]


def rank(
    distilled: DistilledDataset,
    dataset: Dataset,
    real_hard: float,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module | None = None,
    weight: float = 0.5,
    random_lrs: tuple[float, ...] = LRS,
    progress: Progress = quiet(),
) -> Ranking:
    """Both scores of ``distilled``, by networks trained and chosen as everywhere here.

    Args:
        real_hard: The accuracy in [0, 1] of the network trained on all data of ``dataset``; an expert's, or a published one.
        config: How networks are trained. DD-Ranking's numbers come from 300 epochs and the best test epoch; ours from
            the last epoch, so the two are alike, and not the same.
        random_lrs: Step sizes to try for the random images, of which that counts that does best on validation data.

    Raises:
        InputError: The set has soft labels, for which random images would need their teacher; it has no classes or no
            images; or a number is out of its range.
    """
    if not isinstance(distilled.task, Classification) or distilled.labels.is_floating_point():
        raise InputError(
            "distilled: has soft labels or no classes, and random images would need the same teacher; export it with "
            "'mct-fast export --to ddranking', and score it there"
        )
    if distilled.images.ndim != 4:
        raise InputError("distilled: holds no images, and there is no DSA of other data; DD-Ranking scores images")
    _check_shares(real_hard=real_hard, weight=weight)
    if not random_lrs or not all(0 < lr < math.inf for lr in random_lrs):
        raise InputError(f"random_lrs: {random_lrs} are no positive step sizes; give e.g. 0.01")
    ipc = len(distilled) // distilled.num_classes
    found: dict[str, float] = {"real_hard": real_hard}
    for name, dsa in (("aug", True), ("plain", False)):
        how = replace(config, dsa=dsa)
        found[f"syn_{name}"] = evaluate(distilled, dataset, how, model=model, progress=progress).mean
        control = evaluate_random_real(ipc, dataset, how, model=model, lrs=random_lrs, progress=progress)
        found[f"random_{name}"] = control.mean
    # With hard labels and the set's own augmentation both ways of LRS are one.
    own = "aug" if config.augmentation.dsa else "plain"
    lrs = label_robust_score(real_hard, found[f"syn_{own}"], found[f"syn_{own}"], found[f"random_{own}"], weight)
    ars = augmentation_robust_score(
        found["syn_aug"], found["random_aug"], found["syn_plain"], found["random_plain"], weight
    )
    return Ranking(lrs, ars, found)


def _from_0_to_1(value: float) -> float:
    return (math.exp(value) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name}: {share!r} is not within [0, 1]; give a share, not percent")
