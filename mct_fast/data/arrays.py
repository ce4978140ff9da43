"""Images and labels that a user hands in as arrays, or keeps in files of NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mct_fast.data.checks import as_images, as_labels, check_class_names, check_every_class, check_label_range
from mct_fast.data.sources import RawDataset, RawSplit, ReadOptions
from mct_fast.run.arrays import load_arrays
from mct_fast.run.errors import InputError

SPELLINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("x", "y"), ("images", "labels")),
    "val": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""What files call the images and the labels of a split."""
_WHAT = "an .npz file, or a folder of .npy files, with x_train and y_train"


def raw_arrays(
    train: tuple[Any, Any],
    test: tuple[Any, Any] | None,
    val: tuple[Any, Any] | None,
    class_names: Sequence[str] | None,
    constants: str | None = None,
) -> RawDataset:
    """A source of pairs (images, labels); for the arguments see `mct_fast.data.register_dataset`.

    Raises:
        InputError: a wrong shape or dtype, NaN, values outside [0, 1], labels out of range, or a class without images.
    """
    parts = {"train": _split(train, "train")}
    names = tuple(str(label) for label in class_names) if class_names is not None else None
    check_class_names(names or ())
    if names is None:
        names = tuple(str(label) for label in range(int(parts["train"].labels.max()) + 1))
    parts |= {part: _split(pair, part) for part, pair in (("test", test), ("val", val)) if pair is not None}
    shape = tuple(parts["train"].images.shape[1:])
    for part, split in parts.items():
        check_label_range(split.labels, len(names), part)
        if split.images.shape[1:] != shape:
            raise InputError(
                f"{part}: images are {tuple(split.images.shape[1:])} (C, H, W), those of train {shape}; make them agree"
            )
    check_every_class(parts["train"].labels, names, "train")
    return RawDataset(parts["train"], parts.get("val"), parts.get("test"), names, constants)


def _split(pair: tuple[Any, Any], argument: str) -> RawSplit:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"{argument} is not a pair; give (images, labels)")
    images = as_images(pair[0], argument)
    return RawSplit(images, as_labels(pair[1], len(images), argument))


def read_arrays(name: str, options: ReadOptions) -> RawDataset:
    """Arrays of an .npz file, or of a folder of .npy files, by their names.

    Images `x_train` (n, C, H, W), (n, H, W, C) or (n, H, W), bytes or floats in [0, 1]; labels `y_train` (n,) or (n, 1), class
    numbers or texts. Optional: `x_val`, `y_val`, `x_test`, `y_test`, and the texts `class_names`. For other spellings see
    `SPELLINGS`. A test split that is not there is held out of the training split.

    Raises:
        InputError: no such file, an array is missing, or what `raw_arrays` refuses.
    """
    if options.download:
        raise InputError(f"download=True: {name} cannot be downloaded by mct_fast; pass data_path={_WHAT}")
    if options.data_path is None:
        raise InputError(f"data_path is missing: {name} needs {_WHAT}")
    arrays = _load(options.data_path)
    pairs = {part: pair for part in SPELLINGS if (pair := _pair(arrays, part, options.data_path)) is not None}
    if "train" not in pairs:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise InputError(f"data_path: {options.data_path} holds {found}; name images and labels x_train and y_train")
    given = arrays.get("class_names")
    names = None if given is None else [_text(value) for value in given.ravel().tolist()]
    pairs, names = _numbered(pairs, names)
    return raw_arrays(pairs["train"], pairs.get("test"), pairs.get("val"), names, name.partition(":")[2] or None)


def _load(path: Path) -> dict[str, np.ndarray]:
    """Every array by its name in small letters."""
    remedy = "save images of one size, and labels as numbers or texts"
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not path.is_dir() and path.suffix.lower() == ".npy":
        raise InputError(f"data_path: {path} holds one array; give its folder, with x_train.npy and y_train.npy")
    return {key.lower(): array for file in files for key, array in load_arrays(file, "data_path", remedy).items()}


def _pair(arrays: Mapping[str, np.ndarray], part: str, path: Path) -> tuple[Any, Any] | None:
    present = [pair for pair in SPELLINGS[part] if any(key in arrays for key in pair)]
    if not present:
        return None
    keys = present[0]
    if len(present) > 1:
        raise InputError(f"data_path: {path} holds both {keys[0]} and {present[1][0]}; keep one of them")
    for key, other in (keys, keys[::-1]):
        if key not in arrays:
            raise InputError(f"data_path: {path} has {other} but no {key}; save both")
    images, labels = (arrays[key] for key in keys)
    return images, labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _numbered(
    pairs: dict[str, tuple[Any, Any]], names: list[str] | None
) -> tuple[dict[str, tuple[Any, Any]], list[str] | None]:
    """Labels that are texts as numbers, in the order of `names`, or of the alphabet."""
    texts = {
        part: [_text(value) for value in labels.ravel().tolist()]
        for part, (_, labels) in pairs.items()
        if labels.dtype.kind in "US"
    }
    if not texts:
        return pairs, names
    names = names if names is not None else sorted({text for own in texts.values() for text in own})
    numbers = {text: number for number, text in enumerate(names)}
    for part, own in texts.items():
        unknown = [text for text in own if text not in numbers]
        if unknown:
            raise InputError(f"{part}: label {unknown[0]!r} is not among class_names; add it there")
        pairs = {**pairs, part: (pairs[part][0], np.array([numbers[text] for text in own]))}
    return pairs, names


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
