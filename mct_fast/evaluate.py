"""Stage 4: train fresh networks on a distilled set and see what they are worth.

The field's protocol (MTT, ``evaluate_synset``): SGD with the learned step size, momentum 0.9, weight decay 5e-4, batch 256,
1000 epochs, step size times 0.1 at half, DSA; mean and standard deviation over ``num_eval`` networks.  What is measured
is the task's: accuracy of classes, AUROC of yes or no, macro AUROC of several labels, and more beside each.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mct_fast.data import Dataset, Split, augmentation_of, random_real
from mct_fast.data.splits import check_ipc
from mct_fast.distilled import DistilledDataset
from mct_fast.models import build_model
from mct_fast.ops.device import usable_device
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Bar, Progress, quiet
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.settings import EvalConfig as EvalConfig  # of this door too, for type checkers
from mct_fast.students.recording import recorder_for
from mct_fast.tasks import Classification, Task, confusion, format_metric, metric_label, task_named
from mct_fast.training import SGD, NetworkStack, Schedule, build_stack, largest_loss, named_spec, outputs, train_epochs

log = logging.getLogger("mct_fast")


@dataclass(frozen=True)
class EvalResult:
    """The ``metric`` (the task's headline) of each network on ``split``, after training with step size ``lr``.

    ``metrics`` holds every metric of the task, one value a network, the headline's among them.  ``diverged`` counts the
    networks whose training ended further from the labels than guessing is: their scores say nothing about the images.
    ``confusion``: of up to a hundred classes, how often all networks together took an image of a row's class for one of a
    column's.
    """

    scores: tuple[float, ...]
    model: str
    split: str
    lr: float
    metric: str = "accuracy"
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    diverged: int = 0
    confusion: list[list[int]] | None = None

    def warn(self, images: str) -> None:
        """Says on the package's log that networks diverged on ``images``, if some did."""
        if self.diverged:
            log.warning(
                "%d of %d networks (%s) diverged on %s, so their scores say nothing about these; lower lr_net=%g",
                self.diverged, len(self.scores), self.model, images, self.lr,
            )  # fmt: skip

    @property
    def mean(self) -> float:
        return fmean(self.scores)

    @property
    def std(self) -> float:
        """Population standard deviation, as the field reports it."""
        return pstdev(self.scores)

    def __str__(self) -> str:
        shown = format_metric(self.metric, self.mean, self.std)
        label = "" if self.metric == "accuracy" else f"{metric_label(self.metric)}, "
        return f"{shown} ({label}{self.split}, {self.model}, n={len(self.scores)})"

    def json(self) -> dict[str, Any]:
        """For a run's records; a metric without an answer is None."""
        return {
            "split": self.split,
            "metric": self.metric,
            "mean": self.mean,
            "std": self.std,
            "scores": list(self.scores),
            "lr": self.lr,
            "metrics": {name: [_known(value) for value in values] for name, values in self.metrics.items()},
            **({"diverged": self.diverged} if self.diverged else {}),
        }

    def record(self) -> dict[str, Any]:
        """What a run notes of it."""
        return {"model": self.model, **self.json(), **({} if self.confusion is None else {"confusion": self.confusion})}

    def baseline(self) -> dict[str, Any]:
        """What a run notes of it as the random-real baseline."""
        return {
            "random_real_mean": self.mean,
            "random_real_std": self.std,
            "random_real_lr": self.lr,
            "random_real_metrics": self.json()["metrics"],
        }


def baseline_lrs(distilled: DistilledDataset, lr: float | None = None) -> tuple[float, ...]:
    """The step sizes that the random-real baseline of ``distilled`` tries: ``lr`` (None: the set's own), and the one with
    which its run began."""
    began = float(distilled.provenance.get("config", {}).get("lr_teacher", 0.01))
    return tuple(dict.fromkeys((distilled.lr_net if lr is None else lr, began)))


def baseline_text(record: Mapping[str, Any]) -> str | None:
    """The random-real baseline (:meth:`EvalResult.baseline`) in a run's record, as people read it; None: it was left out."""
    if record.get("random_real_mean") is None:
        return None
    return format_metric(record.get("metric", "accuracy"), record["random_real_mean"], record["random_real_std"])


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


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


def check_scorable(split: Split, dataset: Dataset, task: Task, name: str) -> None:
    """Raises :class:`InputError` if the task's headline has no answer on ``split``, called ``name``."""
    outputs = torch.zeros((len(split.labels), task.num_outputs(dataset.num_classes)))
    if math.isnan(task.score(outputs, split.labels.cpu())):
        raise InputError(
            f"split: {metric_label(task.headline)} has no answer on the {name} split of {dataset.name}, whose rows are all of "
            "one kind; load it with another split_seed or a larger val_fraction, or choose another split"
        )


def evaluate(
    distilled: DistilledDataset,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module | None = None,
    task: Task | None = None,
    split: str = "test",
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> EvalResult:
    """Trains ``config.num_eval`` networks ``model`` on ``distilled`` and scores them on a split of ``dataset``.

    For ``model``, ``task`` and what is raised see :func:`evaluate_splits`.
    """
    found = evaluate_splits(
        distilled,
        dataset,
        config,
        model=model,
        task=task,
        splits=(split,),
        progress=progress,
        communicator=communicator,
    )
    return found[split]


def evaluate_splits(
    distilled: DistilledDataset,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module | None = None,
    task: Task | None = None,
    splits: tuple[str, ...] = ("val", "test"),
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> dict[str, EvalResult]:
    """Trains ``config.num_eval`` networks ``model`` on ``distilled`` once and scores them on each of ``splits``.

    ``model`` is a name (``"ConvNet"``, ``"AlexNet"``, ``"VGG11"``, ``"ResNet18"``, ...), a spec of
    :func:`mct_fast.models.build_model` or a module, which is copied and initialised anew; by default the network that the set
    was distilled with, and where it does not say, that of its kind of data (:func:`default_model`).  ``task`` is the one that
    the set was distilled for, by default.  The networks are split over the processes of ``communicator``, which all get the whole
    result.  Classes are matched by name: a dataset may have them in another order.  Raises :class:`InputError` if shapes,
    classes or transforms do not fit.
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
    task = task or distilled.task
    task.check(distilled.labels, task.num_outputs(distilled.num_classes))
    device = usable_device(config.protocol.device)
    images, labels = distilled.images.to(device), _labels_for(dataset, distilled, task).to(device)
    model = default_model(dataset, distilled.provenance) if model is None else model
    given = _Given(images, labels, dataset, task, model, progress, communicator, _named(distilled, dataset))
    found = given.train_and_score(distilled.lr_net, config, splits)
    found[splits[0]].warn("the distilled set")
    return found


_BY_KIND = {"images": "ConvNet", "table": "MLP", "series": "GRU"}


def default_model(dataset: Dataset, provenance: Mapping[str, Any] = MappingProxyType({})) -> str | dict[str, Any]:
    """The network that a set of ``provenance`` was distilled with; where it says none, the usual one for ``dataset``.

    Raises:
        InputError: it was a module of the user's own, which a set cannot hold.
    """
    noted = provenance.get("model")
    if noted is None:
        return _BY_KIND[dataset.kind]
    if set(noted) == {"name"}:
        raise InputError(
            f"model: the set was distilled with a module of your own ({noted['name']}); pass it, or a name"
        )
    return dict(noted)


def _labels_for(dataset: Dataset, distilled: DistilledDataset, task: Task) -> Tensor:
    """The labels of ``distilled`` as ``dataset`` numbers the classes, which both know by name.

    Names that only count, "0", "1", ..., say nothing and agree with any.
    """
    ours, theirs = distilled.class_names, dataset.class_names
    counted = tuple(str(number) for number in range(len(ours)))
    if ours == theirs or (counted in (ours, theirs) and set(ours) != set(theirs)):
        return distilled.labels
    strange = [name for name in ours if name not in theirs]
    if strange:
        raise InputError(
            f"dataset: {dataset.name} has no class {strange[0]!r}, which the distilled set has; "
            "evaluate on the dataset it came from"
        )
    if not isinstance(task, Classification):
        raise InputError(
            f"dataset: {dataset.name} has the labels in another order ({', '.join(theirs)}) than the distilled set "
            f"({', '.join(ours)}); load it in that order"
        )
    labels = distilled.labels
    if labels.is_floating_point():
        return labels[:, [ours.index(name) for name in theirs]]
    return torch.tensor([theirs.index(name) for name in ours], device=labels.device)[labels]


_NOUNS = {"images": "images", "table": "rows", "series": "series"}


def _named(distilled: DistilledDataset, dataset: Dataset) -> str:
    """The examples of ``distilled``, as people call them."""
    noun, iteration = _NOUNS[dataset.kind], distilled.provenance.get("iteration")
    if iteration is None:
        method = distilled.provenance.get("coreset")
        return f"{noun} given" if method is None else f"{noun} by {method}"
    return f"{noun} of iteration {iteration}" if iteration else f"first {noun}"


def _fits(images: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether ``images`` are examples of ``shape``, or canvases (:mod:`mct_fast.data.windows`) whole times as large."""
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
    model: str | dict | nn.Module | None = None,
    task: Task | None = None,
    split: str = "test",
    lrs: tuple[float, ...] = (0.01,),
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> EvalResult:
    """The baseline: as many random real images, a fresh draw for each network.

    Of the step sizes ``lrs`` the one that does best on ``config.select_on`` is used, so that the baseline is not
    handicapped by a step size learned for other images.  ``config.lr_net`` plays no part.
    """
    task = task or task_named(dataset.task)
    device = usable_device(config.protocol.device)
    check_ipc(ipc)
    if not lrs:
        raise InputError("lrs: is empty; give at least one step size")
    numbers = config.networks.num_eval * ipc * dataset.num_classes * math.prod(dataset.image_shape)
    check_fits("num_eval", 4.0 * numbers, "their images", device)
    streams = [generator(config.protocol.seed, "random-real", i) for i in range(config.networks.num_eval)]
    draws = [random_real(dataset.train, ipc, stream, task) for stream in streams]
    images = torch.stack([drawn[0] for drawn in draws]).to(device)
    labels = torch.stack([drawn[1] for drawn in draws]).to(device)
    model = default_model(dataset) if model is None else model
    given = _Given(images, labels, dataset, task, model, progress, communicator, f"random real {_NOUNS[dataset.kind]}")
    chosen = split if len(lrs) == 1 else config.protocol.select_on
    if chosen == "val" and not len(dataset.val):
        log.warning("%s has no validation split: the baseline's step size is selected on the test split", dataset.name)
        chosen = "test"
    tried = [
        replace(given, what=f"{given.what}, step size {lr:.3g}").train_and_score(
            lr, replace(config, lr_net=lr), tuple(dict.fromkeys((chosen, split)))
        )
        for lr in lrs
    ]
    best = max(tried, key=lambda found: found[chosen].mean)[split]
    best.warn("the random real images")
    return best


_Measured = tuple[dict[str, float], list[list[int]] | None]
"""Metrics of a network, and its confusion."""

_MOST_CONFUSED = 100  # classes: the record of a run is read whole


@dataclass(frozen=True)
class _Given:
    """What networks are trained on: examples ``(n, ...)`` for all of them, or ``(num_eval, n, ...)`` their own."""

    images: Tensor
    labels: Tensor
    dataset: Dataset
    task: Task
    model: str | dict | nn.Module
    progress: Progress
    communicator: Communicator
    what: str
    """The examples, as people call them."""

    def train_and_score(self, own_lr: float, config: EvalConfig, splits: tuple[str, ...]) -> dict[str, EvalResult]:
        """Trains ``config.num_eval`` networks, this process its share, and scores them on each of ``splits``."""
        task, dataset = self.task, self.dataset
        held_out = {name: split_of(dataset, name) for name in splits}
        for name, split in held_out.items():
            check_scorable(split, dataset, task, name)
        make, name = _network(self.model, dataset, task, config.networks.dropout)
        lr = own_lr if config.networks.lr_net is None else config.networks.lr_net
        mine = self.communicator.share(config.networks.num_eval)
        numbers = sum(parameter.numel() for parameter in make().parameters())
        check_fits("num_eval", 12.0 * len(mine) * numbers, "so many networks at once", self.images.device)
        with self.progress.task(f"evaluate {name}, {self.what}", config.networks.epoch_eval_train) as bar:
            trained = self._networks(mine, lr, held_out, config, make, bar) if mine else ({}, 0)
        every = self.communicator.gather_all(trained)
        parts, diverged = [measured for measured, _ in every], sum(count for _, count in every)
        results = {}
        for split in splits:
            rows = [row for part in parts for row in part.get(split, ())]
            metrics = {metric: tuple(row[metric] for row, _ in rows) for metric in rows[0][0]}
            counted = [counts for _, counts in rows if counts is not None]
            confused = torch.tensor(counted).sum(0).tolist() if counted else None
            results[split] = EvalResult(
                metrics[task.headline], name, split, lr, task.headline, metrics, diverged, confused
            )
        return results

    def _networks(
        self,
        numbers: range,
        lr: float,
        held_out: Mapping[str, Split],
        config: EvalConfig,
        make: Callable[[], nn.Module],
        bar: Bar,
    ) -> tuple[dict[str, list[_Measured]], int]:
        """Trains the networks with these numbers and measures them on each split; also counts those that diverged."""
        images, labels, shape = self.images, self.labels, self.dataset.image_shape
        shared = images.ndim == len(shape) + 1
        if not shared:
            images, labels = images[numbers.start : numbers.stop], labels[numbers.start : numbers.stop]
        how, device = config.networks, images.device
        seeds = [derive_seed(config.protocol.seed, "eval-init", i) for i in numbers]
        stack = build_stack(make, seeds, self.task, SGD(how.mom, how.l2), str(device))
        schedule = Schedule(how.epoch_eval_train, how.batch_train, lr, decay_after=how.epoch_eval_train // 2)
        loss = images.new_zeros(len(numbers))
        for _, loss in train_epochs(
            stack,
            images,
            labels,
            schedule,
            [generator(config.protocol.seed, "eval", i) for i in numbers],
            augment=augmentation_of(config.augmentation, self.dataset.kind),
            shared=shared,
            window=_window(images, shape),
            recorder=recorder_for(config.protocol.cuda_graphs),
        ):
            bar.advance(1, loss=loss.mean())
        each = [labels] * len(numbers) if shared else list(labels)
        most = [largest_loss(self.task, own, self.dataset.num_classes) for own in each]
        diverged = sum(not own <= bound for own, bound in zip(loss.tolist(), most, strict=True))
        return {split: self._scored(stack, split, data) for split, data in held_out.items()}, diverged

    def _scored(self, stack: NetworkStack, name: str, split: Split) -> list[_Measured]:
        images, labels = split.images.to(self.images.device), split.labels.to(self.images.device)
        with self.progress.task(f"score on {name}", len(images)) as bar:
            every = outputs(stack, images, tick=bar.advance)
        counts = isinstance(self.task, Classification) and every.shape[2] <= _MOST_CONFUSED
        hard = labels.argmax(-1) if labels.is_floating_point() else labels
        return [
            (self.task.metrics(logits, labels), confusion(logits, hard).tolist() if counts else None)
            for logits in every
        ]


def _network(
    model: str | dict | nn.Module, dataset: Dataset, task: Task, dropout: float
) -> tuple[Callable[[], nn.Module], str]:
    """What builds the network, and its name."""
    if isinstance(model, nn.Module):
        if dropout:
            raise InputError("dropout: a module of your own has what dropout it has; leave it out")
        return lambda: copy.deepcopy(model), type(model).__name__
    spec = named_spec(model, dataset, task)
    if dropout:
        spec = {**spec, "dropout": dropout}
    return lambda: build_model(spec), spec["name"]
