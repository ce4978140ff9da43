"""Coresets: real images that are chosen, not made. The field's controls beside random real images.

A network's features, what its last linear layer is given, say what is near to what. ``herding`` (Welling, ICML 2009) picks the
images of a class whose running mean stays nearest to the mean of the class; ``kcenter`` (Sener and Savarese, ICLR 2018) begins
nearest to the mean and picks the image that is furthest from all that were picked; ``kmeans`` picks the images nearest to the
centres of k-means, as DC-BENCH does (Cui et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mct_fast.data import Dataset, augmentation_of
from mct_fast.data.splits import check_ipc
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalResult, default_model, evaluate_splits
from mct_fast.models import build_model
from mct_fast.ops.device import usable_device
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.settings import EvalConfig
from mct_fast.tasks import format_metric, task_named
from mct_fast.training import SGD, ModuleStack, Schedule, named_spec, train_epochs


def herding(features: Tensor, count: int) -> list[int]:
    """``count`` rows of ``features (n, F)``, in order: each brings the mean of those picked as near to the mean as it can be."""
    features = features.double()
    wanted, picked, total = features.mean(0), [], torch.zeros_like(features[0])
    for number in range(1, count + 1):
        distance = ((total + features) / number - wanted).square().sum(1)
        distance[picked] = math.inf
        picked.append(int(distance.argmin()))
        total += features[picked[-1]]
    return picked


def kcenter(features: Tensor, count: int) -> list[int]:
    """``count`` rows of ``features (n, F)``: that nearest to the mean, then again and again that furthest from those picked."""
    features = features.double()
    picked = [int((features - features.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(features),), math.inf, dtype=torch.float64, device=features.device)
    while len(picked) < count:
        nearest = torch.minimum(nearest, (features - features[picked[-1]]).square().sum(1))
        nearest[picked] = -1  # of equal rows, none is picked twice
        picked.append(int(nearest.argmax()))
    return picked


def kmeans(features: Tensor, count: int) -> list[int]:
    """``count`` rows of ``features (n, F)``: to each centre of ``count`` clusters the nearest row that is not picked yet."""
    from sklearn.cluster import KMeans

    features = features.double().cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows that are equal: fewer clusters than asked, which does no harm
        how: dict[str, Any] = {"n_init": 1, "random_state": 0}
        found = KMeans(count, **how).fit(features.numpy())
    picked: list[int] = []
    for distance in torch.cdist(torch.from_numpy(found.cluster_centers_), features):
        distance[picked] = math.inf
        picked.append(int(distance.argmin()))
    return picked


METHODS: dict[str, Callable[[Tensor, int], list[int]]] = {"herding": herding, "kcenter": kcenter, "kmeans": kmeans}
"""How images are chosen from the features of their class, by name."""


def features_of(network: nn.Module, images: Tensor, chunk: int = 512) -> Tensor:
    """What the last linear layer of ``network`` is given for ``images (n, ...)``: ``(n, F)``; without one, its outputs."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0])) if layers else None
    try:
        with torch.no_grad():
            outputs = [network(part) for part in images.split(chunk)]
    finally:
        if handle is not None:
            handle.remove()
    return torch.cat(seen or outputs).flatten(1)


def _pools(dataset: Dataset, ipc: int) -> tuple[list[Tensor], int]:
    """The rows to choose from, of each class or of all, and how many to choose of each."""
    labels = dataset.train.labels
    if labels.is_floating_point():
        pools, wanted = [torch.arange(len(labels))], ipc * dataset.num_classes
    else:
        pools, wanted = [torch.nonzero(labels.cpu() == c).flatten() for c in range(dataset.num_classes)], ipc
    least = min(map(len, pools))
    if least < wanted:
        held = f"the {least} training images of the smallest class" if len(pools) > 1 else f"there are, {least}"
        raise InputError(f"ipc: {wanted} is more than {held}; lower it")
    return pools, wanted


def coreset(
    dataset: Dataset,
    ipc: int,
    method: str,
    *,
    model: str | dict | None = None,
    epochs: int = 5,
    lr: float = 0.01,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = quiet(),
) -> DistilledDataset:
    """The ``ipc`` real training images of each class that ``method``, one of `METHODS`, chooses.

    Of k labels, which a row may have several of, k times ``ipc`` rows are chosen of all.

    The features are those of a network ``model`` (by default the usual one for the data), trained on all training data for
    ``epochs`` with step size ``lr`` and DSA; with 0 epochs those of a random network.  The same call gives the same images.

    Raises:
        InputError: an unknown method, or fewer images, of a class or in all.
    """
    if method not in METHODS:
        raise InputError(f"coreset: unknown method {method!r}; choose {' or '.join(METHODS)}")
    check_ipc(ipc)
    labels = dataset.train.labels
    pools, wanted = _pools(dataset, ipc)
    task = task_named(dataset.task)
    spec = named_spec(default_model(dataset) if model is None else model, dataset, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "coreset-init"))
        network = build_model(spec).to(usable_device(device))
    stack = ModuleStack([network], task, SGD(0.9, 5e-4), [derive_seed(seed, "coreset")])
    images = dataset.train.images.to(next(network.parameters()).device)
    augment = augmentation_of(EvalConfig().augmentation, dataset.kind)
    schedule = Schedule(epochs, 256, lr)
    with progress.task(f"features for {method}", max(epochs, 1)) as bar:
        own = labels.to(images.device)
        streams = [generator(seed, "coreset")]
        for _, loss in train_epochs(stack, images, own, schedule, streams, augment=augment):
            bar.advance(1, loss=float(loss.mean()))
        network.eval()
        features = features_of(network, images).cpu()
    chosen = []
    for rows in pools:
        chosen += rows[METHODS[method](features[rows], wanted)].tolist()
    provenance: dict[str, Any] = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "data": dict(dataset.source),
        "coreset": method,
        "task": dict(task.state()),
    }
    images, labels = dataset.train.images[chosen].cpu(), labels[chosen].cpu()
    return DistilledDataset(images, labels, lr, dataset.transform, dataset.class_names, provenance)


def coreset_record(found: EvalResult) -> dict[str, Any]:
    """What a run notes of networks that were trained on a coreset, under its method in ``coresets`` of their record."""
    return {"mean": found.mean, "std": found.std, "lr": found.lr, "scores": list(found.scores)}


def coreset_text(record: Mapping[str, Any], method: str) -> str | None:
    """What a record says of the coreset that ``method`` chose, as people read it; None: it was left out."""
    found = (record.get("coresets") or {}).get(method)
    return None if found is None else format_metric(record.get("metric", "accuracy"), found["mean"], found["std"])


def evaluate_coreset(
    chosen: DistilledDataset,
    dataset: Dataset,
    config: EvalConfig = EvalConfig(),
    *,
    model: str | dict | nn.Module | None = None,
    split: str = "test",
    lrs: tuple[float, ...] = (0.01,),
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> EvalResult:
    """Networks trained on ``chosen``, with that of the step sizes ``lrs`` that does best on ``config.select_on``.

    As for random real images (:func:`mct_fast.evaluate.evaluate_random_real`), so that no control has a step size of others.
    """
    by = split if len(lrs) == 1 else config.protocol.select_on if len(dataset.val) else "test"
    tried = [
        evaluate_splits(
            chosen,
            dataset,
            replace(config, lr_net=lr),
            model=model,
            splits=tuple(dict.fromkeys((by, split))),
            progress=progress,
            communicator=communicator,
        )
        for lr in lrs
    ]
    return max(tried, key=lambda found: found[by].mean)[split]
