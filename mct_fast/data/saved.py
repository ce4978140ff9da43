"""Images in a folder that Hugging Face ``datasets`` wrote (``save_to_disk``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mct_fast.data.arrays import raw_arrays
from mct_fast.data.images import decode_pictures
from mct_fast.data.sources import RawDataset, ReadOptions
from mct_fast.run.errors import InputError

_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_WHAT = "a folder that save_to_disk of Hugging Face datasets wrote"


def read_saved(name: str, options: ReadOptions) -> RawDataset:
    """A folder of Hugging Face ``datasets``: a data set, or a dictionary of splits train, validation and test.

    Images are the column of pictures, labels the column of classes, or one called label that holds numbers. Of several
    columns those called image or img, and label, labels or fine_label are taken. A test split that is not there is held out
    of the training split; validation alone is the test split, as of image trees.

    Raises:
        InputError: ``datasets`` is missing, no such folder, no such column, or pictures that cannot be decoded.
    """
    if options.download:
        raise InputError(f"download=True: {name} cannot be downloaded by mct_fast; pass data_path={_WHAT}")
    if options.data_path is None:
        raise InputError(f"data_path is missing: {name} needs {_WHAT}")
    splits = _load(options.data_path)
    images, labels = _columns(splits["train"].features)
    for part, rows in splits.items():
        for column in (images, labels):
            if column not in rows.features:
                raise InputError(f"data_path: split {part} has no column {column!r}, which train has; make both agree")
    pixels = _decode(name, splits, images, options)
    pairs = {part: (pixels[part], np.asarray(rows[labels][:])) for part, rows in splits.items()}
    if "test" not in pairs and "val" in pairs:
        pairs["test"] = pairs.pop("val")
    names = getattr(splits["train"].features[labels], "names", None)
    return raw_arrays(pairs["train"], pairs.get("test"), pairs.get("val"), names, name.partition(":")[2] or None)


def _load(folder: Path) -> dict[str, Any]:
    """Its splits by our names."""
    try:
        datasets: Any = importlib.import_module("datasets")  # optional, and a name that our own modules have
    except ImportError as error:
        raise InputError("dataset: hf needs the package datasets; run: pip install datasets") from error
    if not folder.is_dir():
        raise InputError(f"data_path: {folder} is not a folder; pass {_WHAT}")
    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder can fail in every layer of the reader
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"data_path: {folder} cannot be read ({detail}); pass {_WHAT}") from error
    if not isinstance(loaded, dict):
        return {"train": loaded}
    splits: dict[str, Any] = {}
    for given, rows in loaded.items():
        part = _SPLITS.get(str(given).lower())
        if part is None or part in splits:
            raise InputError(f"data_path: {folder} has a split {given!r}; keep one each of train, validation and test")
        splits[part] = rows
    if "train" not in splits:
        raise InputError(f"data_path: {folder} has the splits {', '.join(splits)}; it needs one called train")
    return splits


def _columns(features: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    numbered = [
        column
        for column in _LABELS
        if kinds.get(column) == "Value" and str(getattr(features[column], "dtype", "")).startswith(("int", "uint"))
    ]
    classes = [column for column, kind in kinds.items() if kind == "ClassLabel"] or numbered
    return (
        _one("of pictures", [column for column, kind in kinds.items() if kind == "Image"], _IMAGES, kinds),
        _one("of classes", classes, _LABELS, kinds),
    )


def _one(what: str, found: Sequence[str], preferred: Sequence[str], kinds: Mapping[str, str]) -> str:
    usual = [column for column in preferred if column in found]
    if len(found) == 1 or usual:
        return usual[0] if usual else found[0]
    listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    raise InputError(f"data_path: columns {listed}: {len(found)} {what}; keep one, called {preferred[0]}")


def _decode(name: str, splits: Mapping[str, Any], column: str, options: ReadOptions) -> dict[str, torch.Tensor]:
    """The pixels of every split; all have one size and one number of channels."""
    undecoded = type(splits["train"].features[column])(decode=False)
    pictures: dict[str, bytes | str] = {}
    for part, rows in splits.items():
        for number, cell in enumerate(rows.cast_column(column, undecoded)[column]):
            if cell is None:
                raise InputError(f"data_path: {part} row {number} has no picture; remove the row")
            pictures[f"{part} row {number}"] = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    decoded = decode_pictures(pictures, options.image_size, options.progress, f"decoding {name}")
    return dict(zip(splits, decoded.split([len(rows) for rows in splits.values()]), strict=True))
