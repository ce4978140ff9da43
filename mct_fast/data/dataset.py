"""`Dataset`: splits in transform space on one device, and how raw images or a raw table become one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mct_fast.data.cache import load_cached, store_cached
from mct_fast.data.checks import check_class_names
from mct_fast.data.images import resize_and_crop
from mct_fast.data.registry import CONSTANTS
from mct_fast.data.sources import RawDataset, RawSplit
from mct_fast.data.splits import Split, hash_split
from mct_fast.data.transforms import ZCA, Normalize, Transform, rows_in, to_unit
from mct_fast.data.trees import ReadReport
from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Progress
from mct_fast.settings import TableSpec
from mct_fast.tabular.columns import TableTransform
from mct_fast.tabular.splits import level_subset, split_rows
from mct_fast.tabular.tables import RawTable
from mct_fast.tasks.layout import stratified_split

TEST_FRACTION = 0.2
"""Share of each class held out as the test split where a source has none of its own."""
_TEST_SEED = 0  # fixed, so that the test split stays the same whatever split_seed is


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset, whole, on one device.

    name: the canonical name.
    train, val, test: splits in transform space.
    class_names: one a class (of a binary task: negative, positive), or one a label of a multi-label task; all differ.
    transform: from raw pixels in [0, 1], or a table's raw values, to `images`, and back.
    fingerprint: SHA-256 over the hashes of all splits and the kind and constants of the transform; equal
        fingerprints mean equal data.
    task: "classification" (labels (n,) int64), "binary" (the same, 1 is positive) or "multilabel" (labels (n, k) float32
        of 0 and 1).
    kind: "images" (n, C, H, W), "table" (n, features) or "series" (n, time, features).
    target: the target columns of a table or of series; none for images.
    source: the arguments of `load_dataset` that give it again, as JSON; `load_noted` reads them.
    report: of an image tree, what was read, left out and changed.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    transform: Transform
    fingerprint: str
    task: str = "classification"
    kind: str = "images"
    target: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    report: ReadReport | None = None

    def __post_init__(self) -> None:
        check_class_names(self.class_names)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an example: (C, H, W), of a table's row (features,), of a series (time, features)."""
        return tuple(self.train.images.shape[1:])

    @property
    def model_inputs(self) -> dict[str, Any]:
        """What a network's spec has to know of the data: `channels`, `image_size`, `num_classes`.

        A table's features are channels of one pixel, those of a series channels of a column of pixels."""
        shape = self.image_shape
        if self.kind == "images":
            channels, size = shape[0], shape[1]
        else:
            channels, size = shape[-1], 1 if self.kind == "table" else [shape[0], 1]
        return {"channels": channels, "image_size": size, "num_classes": self.num_classes}

    def split(self, name: str) -> Split:
        """The split called "train", "val" or "test".

        Raises:
            InputError: another name, or the split is empty.
        """
        if name not in ("train", "val", "test"):
            raise InputError(f"split={name!r} is unknown; use train, val or test")
        split: Split = getattr(self, name)
        if not len(split):
            raise InputError(f"split={name!r} is empty; load the dataset with val_fraction above 0, e.g. 0.1")
        return split

    def to(self, device: torch.device | str) -> Dataset:
        """The same dataset with every tensor on `device`."""
        moved = {part: getattr(self, part).to(device) for part in ("train", "val", "test", "transform")}
        return replace(self, **moved)


def make_splits(raw: RawDataset, val_fraction: float, split_seed: int) -> tuple[RawSplit, RawSplit, RawSplit]:
    """Train, validation and test: what the source has of them, the others held out of its training split."""
    train, val, test = raw.train, raw.val, raw.test
    if test is None:
        rest, held_out = stratified_split(train.labels, TEST_FRACTION, torch.Generator().manual_seed(_TEST_SEED))
        train, test = _take(train, rest), _take(train, held_out)
    if val is None:
        rest, held_out = stratified_split(train.labels, val_fraction, torch.Generator().manual_seed(split_seed))
        train, val = (_take(train, rest) if len(held_out) else train), _take(train, held_out)
    return train, val, test


def square_images(name: str, raw: RawDataset, size: int | None) -> RawDataset:
    """`raw` with images of `size` pixels a side; None: as they are, which must be square."""
    if size is not None:
        pixels = sum(len(part.labels) for part in (raw.train, raw.val, raw.test) if part is not None) * size**2
        check_fits("image_size", 4 * pixels * raw.train.images.shape[1], "the images")
        raw = _map_splits(raw, lambda split: replace(split, images=resize_and_crop(split.images, size)))
    height, width = raw.train.images.shape[2:]
    if height != width:
        raise InputError(f"dataset={name!r}: images are {width}x{height} pixels, not square; pass image_size")
    return raw


def of_images(
    name: str,
    raw: RawDataset,
    splits: Mapping[str, RawSplit],
    whiten: Callable[[str], ZCA] | None,
    device: torch.device,
    source: Mapping[str, Any],
) -> Dataset:
    """A set of images; `whiten` gives ZCA from the hash of the training split; None: per-channel normalisation."""
    hashes = _hashes(splits.__getitem__)
    transform: Transform
    if whiten is not None:
        transform = whiten(hashes["train"])
        # The last bits of the matrix depend on the machine, so it is named by what it was fitted on.
        description: dict[str, Any] = {"kind": "zca", "eps": transform.eps, "fitted_on": hashes["train"]}
    else:
        transform = _normalisation(raw, splits["train"].images)
        constants = {"mean": transform.mean, "std": transform.std}
        description = {"kind": "normalize"}
        description |= {key: [round(value, 6) for value in values] for key, values in constants.items()}

    train, val, test = _finished(splits.__getitem__, hashes, transform, len(raw.class_names), device)
    return Dataset(
        name=name,
        train=train,
        val=val,
        test=test,
        class_names=raw.class_names,
        transform=transform,
        fingerprint=_fingerprint(hashes, description),
        source=source,
        report=raw.report,
    )


def of_table(
    name: str,
    raw: RawTable,
    spec: TableSpec,
    val_fraction: float,
    split_seed: int,
    device: torch.device,
    source: Mapping[str, Any],
) -> Dataset:
    """A table or series, its rows split as `spec` says; `source`: arguments of `load_dataset` beside name and split."""
    rows = split_rows(raw, spec, val_fraction, split_seed)
    raw = level_subset(raw, rows["train"])
    transform = TableTransform.fit(
        raw.values[rows["train"]],
        raw.columns,
        impute=spec.impute or "median",
        impute_categories=spec.impute_categories or "level",
        mask=bool(spec.missing_mask),
        normal=raw.normal,
        allow_constant=raw.fixed,
    )

    def part_of(part: str) -> RawSplit:  # one at a time: rows are copied
        return RawSplit(raw.values[rows[part]], raw.labels[rows[part]])

    hashes = _hashes(part_of)
    tensors, meta = transform.state()
    # Rounded: the last bits of a mean depend on the machine.
    constants = {key: [f"{value:.6g}" for value in tensor.tolist()] for key, tensor in tensors.items()}
    description = {**meta, **constants, "task": raw.task, "class_names": raw.class_names}

    train, val, test = _finished(part_of, hashes, transform, len(raw.class_names), device)
    return Dataset(
        name=name,
        train=train,
        val=val,
        test=test,
        class_names=raw.class_names,
        transform=transform,
        fingerprint=_fingerprint(hashes, description),
        task=raw.task,
        kind="series" if transform.series else "table",
        target=raw.target,
        source={"name": name, "val_fraction": val_fraction, "split_seed": split_seed, **source},
    )


_PARTS = ("train", "val", "test")


def _hashes(part_of: Callable[[str], RawSplit]) -> dict[str, str]:
    return {part: hash_split(split.images, split.labels) for part, split in ((p, part_of(p)) for p in _PARTS)}


def _finished(
    part_of: Callable[[str], RawSplit],
    hashes: Mapping[str, str],
    transform: Transform,
    num_classes: int,
    device: torch.device,
) -> tuple[Split, Split, Split]:
    """Train, validation and test in the space of ``transform`` on ``device``."""

    def finish(part: str) -> Split:
        raw = part_of(part)
        return Split(_into_space(raw.images, transform, device), raw.labels.to(device), hashes[part], num_classes)

    return finish("train"), finish("val"), finish("test")


def _fingerprint(hashes: Mapping[str, str], description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([hashes, description], sort_keys=True).encode()).hexdigest()


def _normalisation(raw: RawDataset, train_images: Tensor) -> Normalize:
    constants = CONSTANTS.get(raw.constants or "")
    if constants is not None and len(constants[0]) == train_images.shape[1]:
        return Normalize(*constants)
    return Normalize.fit(train_images)


def fit_zca(images: Tensor, digest: str, device: torch.device, cache: bool, progress: Progress) -> ZCA:
    """Fit, or read the fit that an earlier call kept for these very images."""
    key = f"zca-{digest[:32]}"
    names = ("mean", "matrix", "inverse_matrix")
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    if cache and (stored := load_cached(key)) is not None and all(part in stored for part in names):
        return ZCA(*(stored[part].to(device) for part in names), image_shape=shape)
    with progress.task("fitting ZCA", 1) as bar:
        transform = ZCA.fit(images.to(device))
        bar.advance()
    if cache:
        store_cached(key, {part: getattr(transform, part) for part in names})
    return transform


def _into_space(raw: Tensor, transform: Transform, device: torch.device) -> Tensor:
    """Transform in pieces, so that no second float copy of the whole set ever exists."""
    # What one row becomes: features of a table are not as many as its columns. Zeros stand for it in an empty split.
    like = transform.forward(
        to_unit(raw[:1].to(device) if len(raw) else raw.new_zeros(1, *raw.shape[1:], device=device))
    )
    images = torch.empty((len(raw), *like.shape[1:]), dtype=torch.float32, device=device)
    rows = rows_in(1 << 26, raw) if len(raw) else 1
    for source, target in zip(raw.split(rows), images.split(rows), strict=True):
        target.copy_(transform.forward(to_unit(source.to(device))))
    return images


def _take(split: RawSplit, indices: Tensor) -> RawSplit:
    return RawSplit(split.images[indices], split.labels[indices])


def _map_splits(raw: RawDataset, change: Callable[[RawSplit], RawSplit]) -> RawDataset:
    return replace(
        raw,
        train=change(raw.train),
        val=None if raw.val is None else change(raw.val),
        test=None if raw.test is None else change(raw.test),
    )
