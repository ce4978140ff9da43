"""Stage 4: train fresh networks on a distilled set and see what they are worth.

The field's protocol (MTT, ``evaluate_synset``): SGD with the learned step size, momentum 0.9, weight decay 5e-4, batch 256,
1000 epochs, step size times 0.1 at half, DSA; mean and standard deviation over ``num_eval`` networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from mct_fast.data import DSA, Dataset, Split, random_real
from mct_fast.distilled import DistilledDataset
from mct_fast.distributed import Communicator, Single
from mct_fast.errors import InputError
from mct_fast.models import build_model, spec_for
from mct_fast.progress import Bar, Progress, quiet
from mct_fast.seeds import derive_seed, generator
from mct_fast.tasks import Classification
from mct_fast.training import SGD, Schedule, build_stack, scores, train_epochs


@dataclass(frozen=True)
class EvalConfig:
    """How a distilled set is evaluated."""

    num_eval: int = 5
    """Fresh networks to train; the result is their mean and standard deviation."""
    epoch_eval_train: int = 1000
    """Epochs of training on the distilled set."""
    batch_train: int = 256
    """Images a step."""
    lr_net: float | None = None
    """Step size; None takes the one learned with the set."""
    mom: float = 0.9
    """Momentum of SGD."""
    l2: float = 5e-4
    """Weight decay of SGD."""
    dsa: bool = True
    """Whether to augment with DSA; tables and series are not augmented."""
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    """The augmentations to draw from, joined by underscores."""
    select_on: str = "val"
    """The split that picks the step size of the random-real baseline: 'val', or 'test' where that picked the images too."""
    seed: int = 0
    """Seed of initialisations, order and augmentation."""
    device: str = "cpu"
    """Where to compute, e.g. 'cpu' or 'cuda'."""


@dataclass(frozen=True)
class EvalResult:
    """Accuracies in [0, 1] of the networks, on ``split``, after training with step size ``lr``."""

    accuracies: tuple[float, ...]
    model: str
    split: str
    lr: float

    @property
    def mean(self) -> float:
        return fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Population standard deviation, as the field reports it."""
        return pstdev(self.accuracies)

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} ± {100 * self.std:.2f} % ({self.split}, {self.model}, n={len(self.accuracies)})"


def split_of(dataset: Dataset, name: str) -> Split:
    """The split called ``name``; an empty validation split is refused."""
    if name not in ("train", "val", "test"):
        raise InputError(f"split: unknown {name!r}; choose 'train', 'val' or 'test'")
    split: Split = getattr(dataset, name)
    if len(split.labels) == 0:
        raise InputError(
            f"split: {dataset.name} has an empty {name} split; load it with val_fraction above 0 or choose 'test'"
        )
    return split


def evaluate(
    distilled: DistilledDataset,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module = "ConvNet",
    split: str = "test",
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> EvalResult:
    """Trains ``config.num_eval`` networks ``model`` on ``distilled`` and scores them on a split of ``dataset``.

    For ``model`` and what is raised see :func:`evaluate_splits`.
    """
    found = evaluate_splits(
        distilled, dataset, config, model=model, splits=(split,), progress=progress, communicator=communicator
    )
    return found[split]


def evaluate_splits(
    distilled: DistilledDataset,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module = "ConvNet",
    splits: tuple[str, ...] = ("val", "test"),
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> dict[str, EvalResult]:
    """Trains ``config.num_eval`` networks ``model`` on ``distilled`` once and scores them on each of ``splits``.

    ``model`` is a name (``"ConvNet"``, ``"AlexNet"``, ``"VGG11"``, ``"ResNet18"``, ...), a spec of
    :func:`mct_fast.models.build_model` or a module, which is copied and initialised anew.  The networks are split over the
    processes of ``communicator``, which all get the whole result.  Raises :class:`InputError` if shapes, classes or
    transforms do not fit.
    """
    if not _fits(distilled.images, dataset.image_shape) or distilled.num_classes != dataset.num_classes:
        raise InputError(
            f"dataset: {dataset.name} has {dataset.num_classes} classes of shape {dataset.image_shape}, the distilled set "
            f"{distilled.num_classes} of {tuple(distilled.images.shape[1:])}; evaluate on the dataset it came from"
        )
    ours, theirs = (holder.transform.state()[1].get("kind") for holder in (distilled, dataset))
    if ours != theirs:
        raise InputError(
            f"dataset: {dataset.name} is in the space of {theirs!r}, the distilled set in that of {ours!r}; "
            + (f"load it with zca={ours == 'zca'}" if dataset.kind == "images" else "evaluate on the data it came from")
        )
    if not bool(torch.isfinite(distilled.images).all()):
        raise InputError("distilled: its images hold NaN or infinity; distil them again")
    if len(distilled.labels) != len(distilled.images):
        raise InputError(
            f"distilled: {len(distilled.labels)} labels for {len(distilled.images)} images; give one label an image"
        )
    Classification().check(distilled.labels, distilled.num_classes)
    images, labels = distilled.images.to(config.device), distilled.labels.to(config.device)
    return _train_and_score(images, labels, distilled.syn_lr, dataset, config, model, splits, progress, communicator)


def _fits(images: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether ``images`` are examples of ``shape``, or canvases (:mod:`mct_fast.textures`) a whole number of times as large."""
    found = tuple(images.shape[1:])
    if found == shape or len(shape) != 3 or len(found) != 3:
        return found == shape
    factors = {found[1] / shape[1], found[2] / shape[2]}
    return found[0] == shape[0] and len(factors) == 1 and factors.pop().is_integer()


def _window(images: Tensor, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The size of the windows to train on where ``images`` are canvases."""
    return None if tuple(images.shape[-len(shape) :]) == shape else (shape[1], shape[2])


def evaluate_random_real(
    ipc: int,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module = "ConvNet",
    split: str = "test",
    lrs: tuple[float, ...] = (0.01,),
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> EvalResult:
    """The baseline: as many random real images, a fresh draw for each network.

    Of the step sizes ``lrs`` the one that does best on ``config.select_on`` is used, so that the baseline is not
    handicapped by a step size learned for other images.  ``config.lr_net`` plays no part.
    """
    _check(config)
    draws = [random_real(dataset.train, ipc, generator(config.seed, "random-real", i)) for i in range(config.num_eval)]
    images = torch.stack([drawn[0] for drawn in draws]).to(config.device)
    labels = torch.stack([drawn[1] for drawn in draws]).to(config.device)
    best = lrs[0]
    if len(lrs) > 1:
        tried = {
            lr: _train_and_score(
                images,
                labels,
                lr,
                dataset,
                replace(config, lr_net=lr),
                model,
                (config.select_on,),
                progress,
                communicator,
            )[config.select_on].mean
            for lr in lrs
        }
        best = max(tried, key=lambda lr: tried[lr])
    fixed = replace(config, lr_net=best)
    return _train_and_score(images, labels, best, dataset, fixed, model, (split,), progress, communicator)[split]


def _train_and_score(
    images: Tensor,
    labels: Tensor,
    learned_lr: float,
    dataset: Dataset,
    config: EvalConfig,
    model: str | dict | nn.Module,
    splits: tuple[str, ...],
    progress: Progress,
    communicator: Communicator,
) -> dict[str, EvalResult]:
    _check(config)
    held_out = {split: split_of(dataset, split) for split in splits}
    make, name = _network(model, dataset)
    lr = learned_lr if config.lr_net is None else config.lr_net
    mine = communicator.share(config.num_eval)
    shared = images.ndim == len(dataset.image_shape) + 1
    if not shared:
        images, labels = images[mine.start : mine.stop], labels[mine.start : mine.stop]
    augment = DSA(config.dsa_strategy) if config.dsa and dataset.kind == "images" else None
    with progress.task(f"evaluate {name}", config.epoch_eval_train) as bar:
        scored = _networks(mine, images, labels, shared, lr, held_out, config, make, augment, bar) if mine else {}
    parts = communicator.gather_all(scored)
    return {
        split: EvalResult(tuple(score for part in parts for score in part.get(split, ())), name, split, lr)
        for split in splits
    }


def _networks(
    numbers: range,
    images: Tensor,
    labels: Tensor,
    shared: bool,
    lr: float,
    held_out: dict[str, Split],
    config: EvalConfig,
    make: Callable[[], nn.Module],
    augment: DSA | None,
    bar: Bar,
) -> dict[str, list[float]]:
    """Trains the networks with these numbers and scores them on each split."""
    task = Classification()
    seeds = [derive_seed(config.seed, "eval-init", i) for i in numbers]
    stack = build_stack(make, seeds, task, SGD(config.mom, config.l2), config.device)
    schedule = Schedule(config.epoch_eval_train, config.batch_train, lr, decay_after=config.epoch_eval_train // 2)
    streams = [("eval", i) for i in numbers]
    window = _window(images, tuple(next(iter(held_out.values())).images.shape[1:]))
    for _, loss in train_epochs(
        stack, images, labels, schedule, streams, seed=config.seed, augment=augment, shared=shared, window=window
    ):
        bar.advance(1, loss=float(loss.mean()))
    return {
        split: scores(stack, data.images.to(config.device), data.labels.to(config.device), task)
        for split, data in held_out.items()
    }


def _check(config: EvalConfig) -> None:
    for name in ("num_eval", "epoch_eval_train", "batch_train"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}; give at least 1")
    if config.lr_net is not None and not 0 < config.lr_net < math.inf:
        raise InputError(f"lr_net: got {config.lr_net}; give a positive step size, or leave it out for the learned one")


def _network(model: str | dict | nn.Module, dataset: Dataset) -> tuple[Callable[[], nn.Module], str]:
    """What builds the network, and its name."""
    if isinstance(model, nn.Module):
        return lambda: copy.deepcopy(model), type(model).__name__
    spec = named_spec(model, dataset)
    return lambda: build_model(spec), spec["name"]


def named_spec(model: str | dict, dataset: Dataset) -> dict:
    """A full model spec for the data of ``dataset``."""
    return spec_for(model, dataset.model_inputs, dataset.kind)
