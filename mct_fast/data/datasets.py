"""`load_dataset`: from a name to train, validation and test splits on the device, in transform space."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from mct_fast.data.cache import load_cached, store_cached
from mct_fast.data.checks import (
    as_images,
    as_labels,
    check_class_names,
    check_every_class,
    check_image_size,
    check_label_range,
)
from mct_fast.data.images import resize_and_crop
from mct_fast.data.sources import (
    TORCHVISION_SETS,
    RawDataset,
    RawSplit,
    ReadOptions,
    read_digits,
    read_folder,
    read_imagenet_subset,
    read_tiny_imagenet,
    read_torchvision,
)
from mct_fast.data.splits import Split, hash_split
from mct_fast.data.transforms import ZCA, Normalize, Transform, check_zca_size, rows_in, to_unit
from mct_fast.data.trees import ReadReport
from mct_fast.ops.device import usable_device
from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.tabular.columns import TableTransform
from mct_fast.tabular.recipes import TABLES, TableOptions
from mct_fast.tabular.tables import RawTable, changed, from_json, level_subset, raw_table, split_rows
from mct_fast.tasks import task_named
from mct_fast.tasks.layout import stratified_split

if TYPE_CHECKING:
    import pandas as pd

Reader: TypeAlias = Callable[[ReadOptions], RawDataset]

TEST_FRACTION = 0.2
"""Share of each class held out as the test split where a source has none of its own."""
_TEST_SEED = 0  # fixed, so that the test split stays the same whatever split_seed is

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "tiny-imagenet": _IMAGENET,
    "imagenet": _IMAGENET,
    **dict.fromkeys(IMAGENET_SUBSETS, _IMAGENET),
}
"""Mean and standard deviation of each channel as the field uses them, whatever the split."""

_NO_TABLE, _NO_GRID = TableSpec(), TimeGrid()
_ALIASES = {"fmnist": "fashion-mnist", "tiny": "tiny-imagenet", "tinyimagenet200": "tiny-imagenet"}


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


class Registry:
    """Names of datasets and how to read them: the built-in ones, and those that a user adds."""

    def __init__(self) -> None:
        self._builtin: dict[str, Reader] = {"digits": read_digits}
        self._builtin.update({name: partial(read_torchvision, name) for name in TORCHVISION_SETS})
        self._builtin["tiny-imagenet"] = partial(read_tiny_imagenet, "tiny-imagenet")
        self._builtin.update({name: partial(read_imagenet_subset, name) for name in IMAGENET_SUBSETS})
        self._user: dict[str, RawDataset] = {}

    def names(self) -> list[str]:
        """Every name that `find` knows, and the form of image trees."""
        return [*self._builtin, "folder:NAME", *TABLES, *sorted(self._user)]

    def add(self, name: str, raw: RawDataset) -> None:
        """Add a user's dataset; a second one of the same name takes its place.

        Raises:
            InputError: the name is empty or belongs to a built-in dataset.
        """
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name={name!r} is not a name; give a non-empty string")
        if canonical_name(name) in (*self._builtin, *TABLES) or name.partition(":")[0].lower() == "folder":
            raise InputError(f"name={name!r} belongs to a built-in dataset; choose another name")
        self._user[name] = raw

    def find(self, name: str) -> tuple[str, Reader]:
        """The canonical name and the reader.

        Raises:
            InputError: no such dataset.
        """
        if name in self._user:
            raw = self._user[name]
            return name, lambda options: raw
        if name.partition(":")[0].lower() == "folder":
            rest = name.partition(":")[2]
            canonical = f"folder:{canonical_name(rest)}" if rest else "folder"
            return canonical, partial(read_folder, canonical)
        canonical = canonical_name(name)
        if canonical in self._builtin:
            return canonical, self._builtin[canonical]
        hint = f"use one of {', '.join(IMAGENET_SUBSETS)}" if canonical == "imagenet" else (
            f"use one of {', '.join(self.names())}, or register_dataset"
        )  # fmt: skip
        raise InputError(f"dataset={name!r} is unknown; {hint}")


REGISTRY = Registry()
"""The registry that `load_dataset` and `register_dataset` use."""


def register_dataset(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    val: tuple[Any, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Make your own tensors or arrays loadable by name.

    Args:
        name: any name that no built-in dataset has. Registering it again replaces the data.
        train: (images, labels). Images uint8 in 0..255 or floats in [0, 1], shaped (n, C, H, W),
            (n, H, W, C) or (n, H, W) with 1 or 3 channels; labels (n,) integers from 0. The arrays may be
            kept, not copied: do not change them afterwards.
        test: likewise.
        val: likewise; None lets `load_dataset` hold out a share of train.
        class_names: one a class; None names them "0", "1", ….

    Raises:
        InputError: a wrong shape or dtype, NaN, values outside [0, 1], labels out of range, or a class
            without images.
    """
    train_split = _user_split(train, "train")
    names = tuple(str(label) for label in class_names) if class_names is not None else None
    check_class_names(names or ())
    if names is None:
        names = tuple(str(label) for label in range(int(train_split.labels.max()) + 1))
    parts = {"train": train_split, "test": _user_split(test, "test")}
    if val is not None:
        parts["val"] = _user_split(val, "val")
    shape = tuple(train_split.images.shape[1:])
    for part, split in parts.items():
        check_label_range(split.labels, len(names), part)
        if split.images.shape[1:] != shape:
            raise InputError(
                f"{part}: images are {tuple(split.images.shape[1:])} (C, H, W), those of train {shape}; make them agree"
            )
    check_every_class(train_split.labels, names, "train")
    REGISTRY.add(name, RawDataset(train_split, parts.get("val"), parts["test"], names))


def load_dataset(
    name: str,
    *,
    data_path: str | os.PathLike[str] | None = None,
    download: bool = False,
    zca: bool = False,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    cache: bool = True,
    table: TableSpec = _NO_TABLE,
    grid: TimeGrid = _NO_GRID,
    progress: Progress = quiet(),
) -> Dataset:
    """Load a dataset, split it, and bring it into transform space on one device.

    Args:
        name: digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenette, imagewoof,
            imagefruit, imageyellow, imagemeow, imagesquawk, folder or folder:NAME (a class-per-folder image
            tree; NAME chooses the field's normalisation constants where it is one of the above), or a name
            given to `register_dataset`. The field's spellings (CIFAR10, FashionMNIST, Tiny, …) are
            understood. Tables and series: table (a CSV or Parquet file), series (arrays or a long table),
            breast_cancer, whas500, whas500-complications, diabetes, and the recipes curial, eicu-mortality,
            eicu-vitals, mimic3-phenotyping, mimic3-in-hospital-mortality (see docs/clinical.md).
        data_path: local root of the data, or a table's file. Not needed for packaged and registered sets.
        download: let torchvision download MNIST, Fashion-MNIST or CIFAR into data_path (default: the cache
            folder).
        zca: whiten (kornia's ZCA, eps 0.1, fitted on the training split) in place of per-channel
            normalisation.
        val_fraction: share of every training class held out for validation, in [0, 1). 0: no validation
            split. Not used where the source has a validation split of its own.
        split_seed: seed of that choice. A test split is never affected by it.
        image_size: pixels a side after resizing the shorter side and cropping the centre. None: as stored,
            but 128 for the ImageNet subsets.
        device: where every tensor lives.
        cache: keep decoded image trees and ZCA matrices under $MCT_FAST_CACHE or ~/.cache/mct_fast.
        table: which columns of a table are what; what a recipe sets, its fields override.
        grid: how a long table becomes regular series.
        progress: shows decoding and the fit of ZCA; nothing by default.

    Raises:
        InputError: anything wrong with the arguments or the data, in one line with the remedy.
    """
    asked = _Asked(
        name, data_path, download, zca, val_fraction, split_seed, image_size, device, cache, table, grid, progress
    )
    return asked.tabular() if canonical_name(name) in TABLES else asked.images()


@dataclass(frozen=True)
class _Asked:
    """The arguments of `load_dataset`, whose names these are."""

    name: str
    data_path: str | os.PathLike[str] | None
    download: bool
    zca: bool
    val_fraction: float
    split_seed: int
    image_size: int | None
    device: torch.device | str
    cache: bool
    table: TableSpec
    grid: TimeGrid
    progress: Progress

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        if not isinstance(self.name, str):
            raise InputError(f"dataset={self.name!r} is no name; give text, such as 'cifar10'")
        if not isinstance(self.data_path, (str, os.PathLike, type(None))):
            raise InputError(f"data_path={self.data_path!r} is no path; give the folder of the data")
        if not _is(numbers.Integral, self.split_seed) or not -(2**63) <= self.split_seed < 2**63:
            raise InputError(f"split_seed={self.split_seed!r} is no seed; give a whole number of at most 64 bits")
        if not _is(numbers.Real, self.val_fraction) or not 0 <= self.val_fraction < 1:
            raise InputError(
                f"val_fraction={self.val_fraction} is out of range; give a share of the training set in [0, 1), e.g. 0.1"
            )
        usable_device(self.device)
        _absolute(self.data_path)

    @property
    def path(self) -> Path | None:
        return None if self.data_path is None else Path(self.data_path).expanduser()

    def tabular(self) -> Dataset:
        """The table or the series."""
        for argument in ("download", "zca", "image_size"):
            if getattr(self, argument) not in (False, None):
                raise InputError(f"{argument}: is for images; leave it out with dataset={self.name!r}")
        canonical = canonical_name(self.name)
        raw, spec = TABLES[canonical](TableOptions(self.path, self.table, self.grid, self.progress))
        source = {
            "data_path": _absolute(self.data_path),
            "table": _noted(self.table, "test_path"),
            "grid": _noted(self.grid, "labels_path"),
        }
        return _tabular(canonical, raw, spec, self.val_fraction, self.split_seed, usable_device(self.device), source)

    def images(self) -> Dataset:
        """The images."""
        if self.table != _NO_TABLE or self.grid != _NO_GRID:
            raise InputError(f"table: dataset={self.name!r} holds images; leave out the options of tables and series")
        canonical, reader = REGISTRY.find(self.name)
        size = 128 if self.image_size is None and canonical in IMAGENET_SUBSETS else self.image_size
        raw = reader(ReadOptions(self.path, self.download, size, self.cache, self.progress))
        raw = _square_images(self.name, raw, size)
        if self.zca:
            channels, height, width = raw.train.images.shape[1:]
            check_zca_size((channels, height, width))
        train, val, test = _make_splits(raw, self.val_fraction, self.split_seed)
        check_every_class(train.labels, raw.class_names, f"dataset={self.name!r}")
        source = {
            "name": canonical,
            "data_path": _absolute(self.data_path),
            "zca": self.zca,
            "val_fraction": self.val_fraction,
            "split_seed": self.split_seed,
            "image_size": self.image_size,
        }
        splits, device = {"train": train, "val": val, "test": test}, usable_device(self.device)

        def whiten(digest: str) -> ZCA:
            return _fit_zca(train.images, digest, device, self.cache, self.progress)

        return _of_images(canonical, raw, splits, whiten if self.zca else None, device, source)


def _square_images(name: str, raw: RawDataset, size: int | None) -> RawDataset:
    """`raw` with images of `size` pixels a side; None: as they are, which must be square."""
    if size is not None:
        pixels = sum(len(part.labels) for part in (raw.train, raw.val, raw.test) if part is not None) * size**2
        check_fits("image_size", 4 * pixels * raw.train.images.shape[1], "the images")
        raw = _map_splits(raw, lambda split: replace(split, images=resize_and_crop(split.images, size)))
    height, width = raw.train.images.shape[2:]
    if height != width:
        raise InputError(f"dataset={name!r}: images are {width}x{height} pixels, not square; pass image_size")
    return raw


def _of_images(
    name: str,
    raw: RawDataset,
    splits: Mapping[str, RawSplit],
    whiten: Callable[[str], ZCA] | None,
    device: torch.device,
    source: Mapping[str, Any],
) -> Dataset:
    """`whiten` gives ZCA from the hash of the training split; None: per-channel normalisation."""
    hashes = {part: hash_split(split.images, split.labels) for part, split in splits.items()}
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

    def finish(part: str) -> Split:
        images = _into_space(splits[part].images, transform, device)
        return Split(images, splits[part].labels.to(device), hashes[part], len(raw.class_names))

    return Dataset(
        name=name,
        train=finish("train"),
        val=finish("val"),
        test=finish("test"),
        class_names=raw.class_names,
        transform=transform,
        fingerprint=_fingerprint(hashes, description),
        source=source,
        report=raw.report,
    )


def _fingerprint(hashes: Mapping[str, str], description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([hashes, description], sort_keys=True).encode()).hexdigest()


def _noted(options: TableSpec | TimeGrid, path: str) -> dict[str, Any]:
    """What differs from the defaults, the file named by the field `path` from the root."""
    given = changed(options)
    return {**given, path: _absolute(given[path])} if path in given else given


def load_noted(
    noted: Mapping[str, Any],
    *,
    data_path: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = quiet(),
) -> Dataset:
    """The dataset whose `source` was noted, e.g. in a store's manifest; `data_path`: where its files have moved to."""
    return load_dataset(
        noted["name"],
        data_path=data_path or noted.get("data_path"),
        zca=noted.get("zca", False),
        val_fraction=noted.get("val_fraction", 0.1),
        split_seed=noted.get("split_seed", 0),
        image_size=noted.get("image_size"),
        table=from_json(TableSpec, noted.get("table")),
        grid=from_json(TimeGrid, noted.get("grid")),
        device=device,
        progress=progress,
    )


_FORMS = {
    "mnist": (1, 28, 10),
    "fashion-mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tiny-imagenet": (3, 64, 200),
    **dict.fromkeys(IMAGENET_SUBSETS, (3, 128, 10)),
}


def inputs_of(name: str, data_path: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """`channels`, `image_size` and outputs (`num_classes`) of a network for the dataset `name`, as `load_dataset` gives it.

    Known of the field's sets; another is loaded. None: it needs a data_path, and there is none.

    Raises:
        InputError: there is no such dataset, or it cannot be loaded from data_path.
    """
    canonical = canonical_name(name)
    if canonical in _FORMS:
        return dict(zip(("channels", "image_size", "num_classes"), _FORMS[canonical], strict=True))
    try:
        dataset = load_dataset(name, data_path=data_path)
    except InputError:
        if data_path is not None:
            raise
        return None
    return {**dataset.model_inputs, "num_classes": task_named(dataset.task).num_outputs(dataset.num_classes)}


def table_dataset(
    frame: pd.DataFrame,
    table: TableSpec,
    *,
    name: str = "frame",
    test: pd.DataFrame | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    device: torch.device | str = "cpu",
) -> Dataset:
    """A pandas frame as a dataset, as `load_dataset("table", ...)` makes one of a file; `test`: its test split's rows.

    Raises:
        InputError: anything wrong with the arguments or the data, in one line with the remedy.
    """
    return _tabular(name, raw_table(frame, table, test), table, val_fraction, split_seed, usable_device(device), {})


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _absolute(path: str | os.PathLike[str] | None) -> str | None:
    """Runs are resumed from other working directories, which are noted as UTF-8."""
    absolute = None if path is None else str(Path(path).expanduser().absolute())
    if absolute is not None and "\0" in absolute:
        raise InputError("data_path: holds a null character, which no path does; give another")
    if absolute is not None and absolute.encode("utf-8", "replace").decode("utf-8") != absolute:
        raise InputError(f"data_path: {absolute} is no UTF-8, which records of a run are; rename the folder")
    return absolute


def _tabular(
    name: str,
    raw: RawTable,
    spec: TableSpec,
    val_fraction: float,
    split_seed: int,
    device: torch.device,
    source: Mapping[str, Any],
) -> Dataset:
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
    hashes = {part: hash_split(raw.values[own], raw.labels[own]) for part, own in rows.items()}
    tensors, meta = transform.state()
    # Rounded: the last bits of a mean depend on the machine.
    constants = {key: [f"{value:.6g}" for value in tensor.tolist()] for key, tensor in tensors.items()}
    description = {**meta, **constants, "task": raw.task, "class_names": raw.class_names}

    def finish(part: str) -> Split:
        own = rows[part]
        images = _into_space(raw.values[own], transform, device)
        return Split(images, raw.labels[own].to(device), hashes[part], len(raw.class_names))

    return Dataset(
        name=name,
        train=finish("train"),
        val=finish("val"),
        test=finish("test"),
        class_names=raw.class_names,
        transform=transform,
        fingerprint=_fingerprint(hashes, description),
        task=raw.task,
        kind="series" if transform.series else "table",
        target=raw.target,
        source={"name": name, "val_fraction": val_fraction, "split_seed": split_seed, **source},
    )


def canonical_name(name: str) -> str:
    """The project's spelling of a dataset's name: CIFAR10, cifar-10 and Cifar_10 are all cifar10. A name that
    is not known comes back unchanged."""
    squeezed = re.sub(r"[-_ ]", "", name.strip().lower())
    known = {re.sub(r"[-_ ]", "", key): key for key in ("digits", *CONSTANTS, *TABLES)}
    return known.get(squeezed) or _ALIASES.get(squeezed) or name.strip()


def _make_splits(raw: RawDataset, val_fraction: float, split_seed: int) -> tuple[RawSplit, RawSplit, RawSplit]:
    train, val, test = raw.train, raw.val, raw.test
    if test is None:
        rest, held_out = stratified_split(train.labels, TEST_FRACTION, torch.Generator().manual_seed(_TEST_SEED))
        train, test = _take(train, rest), _take(train, held_out)
    if val is None:
        rest, held_out = stratified_split(train.labels, val_fraction, torch.Generator().manual_seed(split_seed))
        train, val = (_take(train, rest) if len(held_out) else train), _take(train, held_out)
    return train, val, test


def _normalisation(raw: RawDataset, train_images: Tensor) -> Normalize:
    constants = CONSTANTS.get(raw.constants or "")
    if constants is not None and len(constants[0]) == train_images.shape[1]:
        return Normalize(*constants)
    return Normalize.fit(train_images)


def _fit_zca(images: Tensor, digest: str, device: torch.device, cache: bool, progress: Progress) -> ZCA:
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


def _user_split(pair: tuple[Any, Any], argument: str) -> RawSplit:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"{argument} is not a pair; give (images, labels)")
    images = as_images(pair[0], argument)
    return RawSplit(images, as_labels(pair[1], len(images), argument))


def _take(split: RawSplit, indices: Tensor) -> RawSplit:
    return RawSplit(split.images[indices], split.labels[indices])


def _map_splits(raw: RawDataset, change: Callable[[RawSplit], RawSplit]) -> RawDataset:
    return replace(
        raw,
        train=change(raw.train),
        val=None if raw.val is None else change(raw.val),
        test=None if raw.test is None else change(raw.test),
    )
