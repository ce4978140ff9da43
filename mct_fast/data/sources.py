"""Where raw data comes from: scikit-learn's digits, torchvision's sets, and image trees on disk.

Every reader returns a `RawDataset`; nothing here knows about transforms or validation splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.data.cache import cache_folder
from mct_fast.data.checks import as_images, as_labels, check_label_range
from mct_fast.data.idx import find_idx, read_idx
from mct_fast.data.images import CHANGES, decode_images
from mct_fast.data.trees import ImageTree, ReadReport, class_names, find_splits, list_classes
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Raw pixels (n, C, H, W), uint8 or float32 in [0, 1], and labels (n,) int64, on the CPU."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class RawDataset:
    """A source as read. `test` is None where it has no test split of its own, `val` where it has no
    validation split. `constants` names the field's normalisation constants (see registry.py), or is None for
    the set's own statistics. `report` says what was read of an image tree."""

    train: RawSplit
    val: RawSplit | None
    test: RawSplit | None
    class_names: tuple[str, ...]
    constants: str | None = None
    report: ReadReport | None = None


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

    The idx files of the first two may as well lie in data_path itself, packed with gzip or not.

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
        if "MNIST" in class_name and (files := find_idx(root, root / folder)) is not None:
            return _read_mnist(name, files, getattr(datasets, class_name).classes)
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
                f"download of {name} into {root} failed ({_first_line(error)}); check the network, or pass as data_path "
                "a folder that holds it"
            ) from error
        raise InputError(
            f"data_path: {name} in {root} is incomplete or damaged ({_first_line(error)}); pass download=True "
            "(--download), or another data_path"
        ) from error
    train, test = (
        RawSplit(images := as_images(part.data, name), as_labels(part.targets, len(images), name)) for part in parts
    )
    return RawDataset(train, None, test, _class_titles(parts[0].classes), constants=name)


def _read_mnist(name: str, files: dict[str, tuple[Path, Path]], classes: Sequence[str]) -> RawDataset:
    def split(part: str) -> RawSplit:
        images, labels = map(read_idx, files[part])
        argument = f"data_path: {files[part][0].name}"
        raw = RawSplit(as_images(images, argument), as_labels(labels, len(images), argument))
        check_label_range(raw.labels, len(classes), argument)
        return raw

    return RawDataset(split("train"), None, split("test"), _class_titles(classes), constants=name)


def _class_titles(classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(title).split(" - ")[0] for title in classes)  # MNIST's names read "0 - zero"


def read_folder(name: str, options: ReadOptions) -> RawDataset:
    """A class-per-folder image tree: data_path/train/<class>/… with test/ or val/ beside it, or
    data_path/<class>/….

    With both test/ and val/, val/ is the validation split. With val/ alone it is the test split. Classes are
    the folders below train/, sorted by name; images may lie deeper, and behind links. What is not read is reported.

    Raises:
        InputError: no data_path, no such folder, a tree that may be read in two ways, fewer than two classes, a class
        without images, or a test class unknown to train.
    """
    root = _need_data_path(name, options, "the folder that holds train/<class>/…, or <class>/…")
    tree = ImageTree(root)
    splits = find_splits(tree)
    classes = class_names(tree, splits["train"])
    groups = {"train": list_classes(tree, splits["train"], classes)}
    for part, folder in splits.items():
        if part == "train":
            continue
        unknown = [known for known in class_names(tree, folder, least=1) if known not in classes]
        if unknown:
            raise InputError(
                f"data_path: {root / folder} has class {unknown[0]}, which {splits['train']}/ lacks; make both agree"
            )
        groups[part] = list_classes(tree, folder, classes, may_lack=True)
    if "test" not in groups and "val" in groups:
        groups["test"] = groups.pop("val")
    constants = name.partition(":")[2] or None
    return _decode_groups(name, tree, groups, classes, options, constants)


def read_tiny_imagenet(name: str, options: ReadOptions) -> RawDataset:
    """Tiny-ImageNet: train/<wnid>/images/*, and val/ as the test split (its own test/ carries no labels).

    val/ may be as distributed (images/ and val_annotations.txt), val/<wnid>/… or val/images/<wnid>/…. Class
    names come from words.txt where it is present.
    """
    root = _need_data_path(name, options, "the folder tiny-imagenet-200, which holds train/ and val/")
    if not (root / "train").is_dir() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    for part in ("train", "val"):
        _need_folder(root / part, "pass the folder tiny-imagenet-200, which holds train/ and val/")
    tree = ImageTree(root)
    classes = class_names(tree, "train", least=1)
    groups = {"train": list_classes(tree, "train", classes)}
    annotations = root / "val" / "val_annotations.txt"
    nested = "val/images" if (root / "val" / "images").is_dir() else "val"
    if annotations.is_file() and nested == "val/images" and tree.pictures(nested):
        groups["test"] = _list_annotated(tree, nested, annotations, classes)
    else:
        groups["test"] = list_classes(tree, nested, classes)
    names = _read_words(root / "words.txt")
    titles = [names.get(wnid, wnid) for wnid in classes]
    # A word may have two meanings, as crane (a machine, and a bird) has: then the ids tell them apart.
    titles = [
        f"{title} ({wnid})" if titles.count(title) > 1 else title for title, wnid in zip(titles, classes, strict=True)
    ]
    return _decode_groups(name, tree, groups, titles, options, constants=name)


def read_imagenet_subset(name: str, options: ReadOptions) -> RawDataset:
    """Ten classes of a local ImageNet tree (train/<wnid>/…, val/<wnid>/…); val/ is the test split.

    A tree that holds only the ten classes serves as well as the whole of ImageNet-1k.
    """
    root = _need_data_path(name, options, "an ImageNet tree, which holds train/<wnid>/ and val/<wnid>/")
    subset = IMAGENET_SUBSETS[name]
    wnids = [member.wnid for member in subset]
    tree = ImageTree(root)
    groups: dict[str, list[tuple[str, int]]] = {}
    for part, split in (("train", "train"), ("val", "test")):
        _need_folder(root / part, "pass an ImageNet tree, which holds train/<wnid>/ and val/<wnid>/")
        missing = [wnid for wnid in wnids if not (root / part / wnid).is_dir()]
        if missing:
            raise InputError(
                f"data_path: {root / part} lacks {len(missing)} of the 10 classes of {name}, "
                f"first {missing[0]}; "
                f"sort the images into {part}/<wnid>/ folders"
            )
        groups[split] = list_classes(tree, part, wnids)
    return _decode_groups(name, tree, groups, [member.name for member in subset], options, constants="imagenet")


def _decode_groups(
    name: str,
    tree: ImageTree,
    groups: dict[str, list[tuple[str, int]]],
    class_names: Sequence[str],
    options: ReadOptions,
    constants: str | None,
) -> RawDataset:
    """Decode all splits in one go: they share one size, one number of channels, one cache entry."""
    files = [file for group in groups.values() for file, _ in group]
    changed: dict[str, list[str]] = {}

    def note(codes: Tensor) -> None:
        for bit, change in enumerate(CHANGES):
            names = [files[i] for i in (codes & (1 << bit)).nonzero().flatten().tolist()]
            if names:
                changed[change] = names

    images = decode_images(
        [tree.path(file) for file in files],
        Path(tree.root),
        image_size=options.image_size,
        cache=options.cache,
        progress=options.progress,
        title=f"decoding {name}",
        changed=note,
    )
    pieces = images.split([len(group) for group in groups.values()])
    splits = {
        part: RawSplit(piece, torch.tensor([label for _, label in group], dtype=torch.int64))
        for (part, group), piece in zip(groups.items(), pieces, strict=True)
    }
    counts = {
        part: dict(zip(class_names, split.labels.bincount(minlength=len(class_names)).tolist(), strict=True))
        for part, split in splits.items()
    }
    report = ReadReport(counts, dict(tree.left_out), changed)
    report.say(name, options.progress)
    return RawDataset(splits["train"], splits.get("val"), splits.get("test"), tuple(class_names), constants, report)


def _list_annotated(tree: ImageTree, folder: str, annotations: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(picture, label) from val_annotations.txt: file name, tab, wnid, tab, a box that is not used."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    listed: dict[str, int] = {}
    for number, line in enumerate(_lines(annotations), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in labels:
            raise InputError(f"{annotations} line {number} names no class of train/; restore the file")
        picture = f"{folder}/{fields[0]}"
        if picture in listed:
            raise InputError(f"{annotations} line {number} names {fields[0]} a second time; restore the file")
        listed[picture] = labels[fields[1]]
    if not listed:
        raise InputError(f"{annotations} is empty; restore the file")
    present = set(tree.pictures(folder))
    missing = sorted(listed.keys() - present)
    if missing:
        raise InputError(f"{annotations} names {missing[0]}, which is no picture there; restore both")
    tree.leave_out(sorted(present - listed.keys()), f"not in {annotations.name}")
    return sorted(listed.items(), key=lambda item: (item[1], item[0]))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); restore the file") from error


def _read_words(path: Path) -> dict[str, str]:
    """wnid -> its first readable name, from Tiny-ImageNet's words.txt; empty where there is no such file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("\t") for line in _lines(path))
    return {wnid: names.split(",")[0].strip() for wnid, _, names in pairs if names.strip()}


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
    return str(error).splitlines()[0].rstrip(" :") if str(error) else type(error).__name__
