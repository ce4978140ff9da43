"""`load_dataset`: from a name to train, validation and test splits on the device, in transform space."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mct_fast.data.arrays import raw_arrays
from mct_fast.data.checks import (
    check_every_class,
    check_image_size,
)
from mct_fast.data.dataset import Dataset, fit_zca, make_splits, of_images, of_table, square_images
from mct_fast.data.registry import FORMS, REGISTRY, canonical_name
from mct_fast.data.sources import ReadOptions
from mct_fast.data.transforms import ZCA, check_zca_size
from mct_fast.ops.device import usable_device
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.tabular.frames import refuse_csv_options
from mct_fast.tabular.options import TableOptions
from mct_fast.tabular.recipes import OF_ANY_FILE, TABLES
from mct_fast.tabular.tables import changed, from_json, raw_table
from mct_fast.tasks import task_named

if TYPE_CHECKING:
    import pandas as pd

_NO_TABLE, _NO_GRID = TableSpec(), TimeGrid()


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
    REGISTRY.add(name, raw_arrays(train, test, val, class_names))


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
            tree; NAME chooses the field's normalisation constants where it is one of the above), arrays or arrays:NAME
            (an .npz file or a folder of .npy files with x_train, y_train and maybe x_test, y_test), hf or hf:NAME
            (a folder that Hugging Face ``datasets`` saved), or a name
            given to `register_dataset`. The field's spellings (CIFAR10, FashionMNIST, Tiny, …) are
            understood. Tables and series: table (a CSV or Parquet file), series (arrays or a long table),
            breast_cancer, whas500, whas500-complications, diabetes, and the recipes curial, eicu-mortality,
            eicu-vitals, mimic3-phenotyping, mimic3-in-hospital-mortality, physionet2012, physionet2012-series, support2,
            myocardial-infarction, covid-testing (see docs/clinical.md).
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
        if canonical not in OF_ANY_FILE:
            refuse_csv_options(self.table, f"which {canonical} reads in the form they come in")
        raw, spec = TABLES[canonical](TableOptions(self.path, self.table, self.grid, self.progress))
        source = {
            "data_path": _absolute(self.data_path),
            "table": _noted(self.table, "test_path"),
            "grid": _noted(self.grid, "labels_path"),
        }
        return of_table(canonical, raw, spec, self.val_fraction, self.split_seed, usable_device(self.device), source)

    def images(self) -> Dataset:
        """The images."""
        if self.table != _NO_TABLE or self.grid != _NO_GRID:
            raise InputError(f"table: dataset={self.name!r} holds images; leave out the options of tables and series")
        canonical, reader = REGISTRY.find(self.name)
        size = 128 if self.image_size is None and canonical in IMAGENET_SUBSETS else self.image_size
        raw = reader(ReadOptions(self.path, self.download, size, self.cache, self.progress))
        raw = square_images(self.name, raw, size)
        if self.zca:
            channels, height, width = raw.train.images.shape[1:]
            check_zca_size((channels, height, width))
        train, val, test = make_splits(raw, self.val_fraction, self.split_seed)
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
            return fit_zca(train.images, digest, device, self.cache, self.progress)

        return of_images(canonical, raw, splits, whiten if self.zca else None, device, source)


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


def inputs_of(name: str, data_path: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """`channels`, `image_size` and outputs (`num_classes`) of a network for the dataset `name`, as `load_dataset` gives it.

    Known of the field's sets; another is loaded. None: it needs a data_path, and there is none.

    Raises:
        InputError: there is no such dataset, or it cannot be loaded from data_path.
    """
    canonical = canonical_name(name)
    if canonical in FORMS:
        return dict(zip(("channels", "image_size", "num_classes"), FORMS[canonical], strict=True))
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
    refuse_csv_options(table, "and a frame has been read")
    return of_table(name, raw_table(frame, table, test), table, val_fraction, split_seed, usable_device(device), {})


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
