"""Where raw data comes from: scikit-learn's digits, torchvision's sets, and image trees on disk.

Every reader returns a `RawDataset`; nothing here knows about transforms or validation splits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.data.cache import cache_folder
from mct_fast.data.checks import as_images, as_labels
from mct_fast.data.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.data.images import IMAGE_SUFFIXES, decode_images
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Raw pixels (n, C, H, W), uint8 or float32 in [0, 1], and labels (n,) int64, on the CPU."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class RawDataset:
    """A source as read. `test` is None where it has no test split of its own, `val` where it has no
    validation split. `constants` names the field's normalisation constants (see datasets.py), or is None for
    the set's own statistics."""

    train: RawSplit
    val: RawSplit | None
    test: RawSplit | None
    class_names: tuple[str, ...]
    constants: str | None = None


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need; the fields mean what the arguments of `load_dataset` mean."""

    data_path: Path | None = None
    download: bool = False
    image_size: int | None = None
    cache: bool = True
    progress: Progress = field(default_factory=quiet)


def read_digits(options: ReadOptions) -> RawDataset:
    """scikit-learn's 1,797 real handwritten digits, 8x8, 0..16 divided by 16; no test split."""
    from sklearn.datasets import load_digits  # imported here: slow to load, and only this set needs it

    bunch: Any = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).div_(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    return RawDataset(RawSplit(images, labels), None, None, tuple(str(digit) for digit in range(10)))


TORCHVISION_SETS: dict[str, tuple[str, str]] = {
    # name: (class in torchvision.datasets, the folder it keeps below its root)
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}


def read_torchvision(name: str, options: ReadOptions) -> RawDataset:
    """MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 from a torchvision root, downloaded there if asked.

    Without a data_path the root is the cache folder's `torchvision`, so that one download serves every later
    call.

    Raises:
        InputError: the files are missing or damaged and download is False, or the download fails.
    """
    from torchvision import datasets

    class_name, folder = TORCHVISION_SETS[name]
    root = options.data_path or cache_folder() / "torchvision"
    if options.data_path is not None and not options.download:
        _need_folder(root, f"pass the folder that holds {folder}, or download=True")
    if not options.download and not (root / folder).is_dir():
        hint = f"pass data_path=FOLDER that holds {folder}, or download=True"
        if (root / "train").is_dir():
            hint = f"for a class-per-folder tree use the name folder:{name}; else {hint}"
        raise InputError(f"data_path: {name} is not in {root}; {hint}")
    make: Callable[..., Any] = getattr(datasets, class_name)
    try:
        parts = [make(str(root), train=train, download=options.download) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # torchvision: RuntimeError; sockets and disks: OSError
        if options.download:
            raise InputError(
                f"download of {name} into {root} failed ({_first_line(error)}); check the network or pass data_path"
            ) from error
        raise InputError(
            f"data_path: {name} in {root} is incomplete or damaged ({_first_line(error)}); pass download=True"
        ) from error
    train, test = (
        RawSplit(images := as_images(part.data, name), as_labels(part.targets, len(images), name)) for part in parts
    )
    # MNIST's names read "0 - zero"
    class_names = tuple(str(label).split(" - ")[0] for label in parts[0].classes)
    return RawDataset(train, None, test, class_names, constants=name)


def read_folder(name: str, options: ReadOptions) -> RawDataset:
    """A class-per-folder image tree: data_path/train/<class>/… with test/ or val/ beside it, or
    data_path/<class>/….

    With both test/ and val/, val/ is the validation split. With val/ alone it is the test split. Classes are
    the folders below train/, sorted by name; images may lie deeper.

    Raises:
        InputError: no data_path, no such folder, no class folders, an empty class, or a test class unknown to
        train.
    """
    root = _need_data_path(name, options, "the folder that holds train/<class>/…, or <class>/…")
    train_root = root / "train" if (root / "train").is_dir() else root
    held_out = [part for part in ("test", "val") if train_root != root and (root / part).is_dir()]
    classes = _class_folders(train_root)
    if not classes:
        raise InputError(f"data_path: {train_root} has no class folders with images; expected {train_root}/<class>/…")
    groups = {"train": _list_classes(train_root, classes)}
    for part in held_out:
        unknown = sorted(set(_class_folders(root / part)) - set(classes))
        if unknown:
            raise InputError(f"data_path: {root / part} has class {unknown[0]}, which train/ lacks; make both agree")
        groups[part] = _list_classes(root / part, classes, allow_missing=True)
    if "test" not in groups and "val" in groups:
        groups["test"] = groups.pop("val")
    constants = name.partition(":")[2] or None
    return _decode_groups(name, root, groups, classes, options, constants)


def read_tiny_imagenet(name: str, options: ReadOptions) -> RawDataset:
    """Tiny-ImageNet: train/<wnid>/images/*, and val/ as the test split (its own test/ carries no labels).

    val/ may be as distributed (images/ and val_annotations.txt), val/<wnid>/… or val/images/<wnid>/…. Class
    names come from words.txt where it is present.
    """
    root = _need_data_path(name, options, "the folder tiny-imagenet-200, which holds train/ and val/")
    if not (root / "train").is_dir() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    train_root, val_root = root / "train", root / "val"
    for part in (train_root, val_root):
        _need_folder(part, "pass the folder tiny-imagenet-200, which holds train/ and val/")
    classes = _class_folders(train_root)
    if not classes:
        raise InputError(f"data_path: {train_root} has no class folders with images; expected train/<wnid>/images/…")
    groups = {"train": _list_classes(train_root, classes)}
    annotations = val_root / "val_annotations.txt"
    if annotations.is_file() and any(_is_image(file) for file in _children(val_root / "images")):
        groups["test"] = _list_annotated(val_root / "images", annotations, classes)
    else:
        nested = val_root / "images"
        groups["test"] = _list_classes(nested if nested.is_dir() else val_root, classes)
    names = _read_words(root / "words.txt")
    titles = [names.get(wnid, wnid) for wnid in classes]
    return _decode_groups(name, root, groups, titles, options, constants=name)


def read_imagenet_subset(name: str, options: ReadOptions) -> RawDataset:
    """Ten classes of a local ImageNet tree (train/<wnid>/…, val/<wnid>/…); val/ is the test split.

    A tree that holds only the ten classes serves as well as the whole of ImageNet-1k.
    """
    root = _need_data_path(name, options, "an ImageNet tree, which holds train/<wnid>/ and val/<wnid>/")
    subset = IMAGENET_SUBSETS[name]
    wnids = [member.wnid for member in subset]
    groups: dict[str, list[tuple[Path, int]]] = {}
    for part, split in (("train", "train"), ("val", "test")):
        _need_folder(root / part, "pass an ImageNet tree, which holds train/<wnid>/ and val/<wnid>/")
        missing = [wnid for wnid in wnids if not (root / part / wnid).is_dir()]
        if missing:
            raise InputError(
                f"data_path: {root / part} lacks {len(missing)} of the 10 classes of {name}, "
                f"first {missing[0]}; "
                f"sort the images into {part}/<wnid>/ folders"
            )
        groups[split] = _list_classes(root / part, wnids)
    return _decode_groups(name, root, groups, [member.name for member in subset], options, constants="imagenet")


def _decode_groups(
    name: str,
    root: Path,
    groups: dict[str, list[tuple[Path, int]]],
    class_names: Sequence[str],
    options: ReadOptions,
    constants: str | None,
) -> RawDataset:
    """Decode all splits in one go: they share one size, one number of channels, one cache entry."""
    files = [file for group in groups.values() for file, _ in group]
    images = decode_images(
        files,
        root,
        image_size=options.image_size,
        cache=options.cache,
        progress=options.progress,
        title=f"decoding {name}",
    )
    pieces = images.split([len(group) for group in groups.values()])
    splits = {
        part: RawSplit(piece, torch.tensor([label for _, label in group], dtype=torch.int64))
        for (part, group), piece in zip(groups.items(), pieces, strict=True)
    }
    return RawDataset(splits["train"], splits.get("val"), splits.get("test"), tuple(class_names), constants)


def _list_classes(root: Path, classes: Sequence[str], allow_missing: bool = False) -> list[tuple[Path, int]]:
    """(file, label) of every image below root/<class>, ordered by class and path."""
    listed: list[tuple[Path, int]] = []
    for label, class_name in enumerate(classes):
        files = _images_below(root / class_name)
        if not files and not allow_missing:
            raise InputError(f"data_path: {root / class_name} has no images; add some or remove the class")
        listed.extend((file, label) for file in files)
    if not listed:
        raise InputError(f"data_path: {root} has no images in its class folders; expected {root}/<class>/…")
    return listed


def _list_annotated(folder: Path, annotations: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """(file, label) from val_annotations.txt: file name, tab, wnid, tab, a box that is not used."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    listed: list[tuple[Path, int]] = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels:
            raise InputError(f"{annotations} line {number} names no class of train/; restore the file")
        listed.append((folder / fields[0], labels[fields[1]]))
    if not listed:
        raise InputError(f"{annotations} is empty; restore the file")
    return sorted(listed, key=lambda item: (item[1], item[0].name))


def _read_words(path: Path) -> dict[str, str]:
    """wnid -> its first readable name, from Tiny-ImageNet's words.txt; empty where there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {wnid: names.split(",")[0].strip() for wnid, _, names in pairs if names.strip()}


def _class_folders(root: Path) -> list[str]:
    """Names of the folders in `root` that hold an image somewhere below, sorted; hidden ones are skipped."""
    return sorted(
        folder.name
        for folder in _children(root)
        if folder.is_dir() and not folder.name.startswith(".") and _images_below(folder)
    )


def _images_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, _, names in os.walk(folder):
        found.extend(Path(parent, name) for name in names if _is_image(Path(name)))
    return sorted(found)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _need_data_path(name: str, options: ReadOptions, what: str) -> Path:
    if options.download:
        raise InputError(f"download=True: {name} cannot be downloaded by mct_fast; pass data_path={what}")
    if options.data_path is None:
        raise InputError(f"data_path is missing: {name} needs data_path={what}")
    _need_folder(options.data_path, f"pass {what}")
    return options.data_path


def _need_folder(folder: Path, remedy: str) -> None:
    if not folder.is_dir():
        raise InputError(f"data_path: {folder} is not a folder; {remedy}")


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
