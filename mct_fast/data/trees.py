"""Trees of image files: which folders are splits and classes, which files are read, and a report of what is not."""

from __future__ import annotations

import logging
import mimetypes
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mct_fast.data.images import IMAGE_SUFFIXES, picture_format
from mct_fast.run.errors import InputError, printable
from mct_fast.run.progress import Progress, note

log = logging.getLogger("mct_fast")

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of folders, in any case, that may be splits."""
_TOOLS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"})
_KEPT_NAMES = 100  # names a reason in the record; the counts are whole
_SHOWN_NAMES, _SHOWN_CLASSES = 3, 10

HIDDEN = "hidden, or made by a tool"
NO_PICTURE = "no picture"
OTHER_FORMAT = "a picture of a format that is not read; convert it"
NO_FILE = "neither a file nor a folder"
LOOP = "a link to a folder that it lies in"
STRAY = "a picture beside the class folders"


@dataclass(frozen=True)
class ReadReport:
    """What was read of an image tree.

    files: images a class, by split.
    left_out: names of files and folders that were not read, relative to the root, by reason.
    changed: names of images whose pixels are not those of the file, by what was changed.
    """

    files: dict[str, dict[str, int]]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """For a record: of each reason the count, and the first hundred names."""

        def short(found: dict[str, list[str]]) -> dict[str, Any]:
            return {why: {"count": len(names), "names": _shown(names, _KEPT_NAMES)} for why, names in found.items()}

        return {"files": self.files, "left_out": short(self.left_out), "changed": short(self.changed)}

    def summary(self) -> str:
        """Files a split and class, on one line."""
        return "; ".join(f"{part}: {_counts(counts)}" for part, counts in self.files.items())

    def say(self, name: str, progress: Progress) -> None:
        """Reports on dataset ``name``: to ``progress`` what was read, to the package's log what was not or was changed."""
        note(progress, f"{name}: {self.summary()}")
        for remark in self.remarks():
            log.warning("%s: %s", name, remark)

    def remarks(self) -> list[str]:
        """A line for each reason why files were left out or changed."""
        return [
            f"{len(names)} {what} ({why}): {_listed(names, _SHOWN_NAMES)}"
            for what, found in (("not read", self.left_out), ("changed", self.changed))
            for why, names in found.items()
        ]


def _counts(counts: dict[str, int]) -> str:
    total = f"{sum(counts.values())} files of {sum(count > 0 for count in counts.values())} classes"
    if len(counts) <= _SHOWN_CLASSES:
        return f"{total} ({', '.join(f'{name} {count}' for name, count in counts.items())})"
    return f"{total} ({min(counts.values())} to {max(counts.values())} a class)"


def _shown(names: Sequence[str], limit: int) -> list[str]:
    return [printable(name) for name in names[:limit]]


def _listed(names: Sequence[str], limit: int) -> str:
    return ", ".join(_shown(names, limit)) + (", …" if len(names) > limit else "")


@dataclass(frozen=True)
class _Folder:
    folders: list[str]
    pictures: list[str]


class ImageTree:
    """The tree of image files below ``root``. Names are relative to it, with slashes; links are followed.

    ``left_out`` gathers, by reason, what lies in the folders that were looked into and is not read.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.fspath(root)
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)
        self._looked_into: dict[str, _Folder] = {}

    def path(self, name: str) -> str:
        """``name`` with the root before it."""
        return os.path.join(self.root, name)

    def folders(self, name: str) -> list[str]:
        """The folders in folder ``name``, sorted."""
        return self._look_into(name).folders

    def pictures(self, name: str) -> list[str]:
        """The pictures that lie in folder ``name`` itself, sorted."""
        return self._look_into(name).pictures

    def pictures_below(self, name: str) -> list[str]:
        """The pictures in folder ``name`` at any depth, sorted by the names on their way."""
        found = [picture for folder in self.walk(name) for picture in self.pictures(folder)]
        return sorted(found, key=lambda picture: picture.split("/"))

    def holds_pictures(self, name: str) -> bool:
        """Whether there is a picture in folder ``name`` at any depth."""
        return any(self.pictures(folder) for folder in self.walk(name))

    def walk(self, name: str) -> Iterator[str]:
        """Folder ``name`` and all below it."""
        waiting = [name]
        while waiting:  # no recursion: a tree may be deeper than Python's stack
            folder = waiting.pop()
            yield folder
            waiting += reversed(self.folders(folder))

    def leave_out(self, names: Iterable[str], why: str) -> None:
        """Notes that ``names`` are not read."""
        found = list(names)
        if found:
            self.left_out[why] += found

    def _look_into(self, name: str) -> _Folder:
        found = self._looked_into.get(name)
        if found is None:
            try:
                found = self._scan(name)
            except OSError as error:
                raise InputError(
                    f"data_path: cannot read {self.path(name)}: {error.strerror or error}; repair or remove it"
                ) from error
            self._looked_into[name] = found
        return found

    def _scan(self, name: str) -> _Folder:
        folders, pictures = [], []
        with os.scandir(self.path(name)) as entries:
            for entry in entries:
                own = f"{name}/{entry.name}" if name else entry.name
                if entry.name.startswith(".") or entry.name.lower() in _TOOLS:
                    self.left_out[HIDDEN].append(own)
                elif entry.is_dir():
                    if entry.is_symlink() and self._loops(name, entry.path):
                        self.left_out[LOOP].append(own)
                    else:
                        folders.append(own)
                elif not entry.is_file():
                    if entry.is_symlink() and not os.path.exists(entry.path):
                        raise InputError(f"data_path: {entry.path} is a link to nothing; restore or remove it")
                    self.left_out[NO_FILE].append(own)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                    pictures.append(own)
                else:
                    self.left_out[_why_no_picture(entry.path)].append(own)
        return _Folder(sorted(folders), sorted(pictures))

    def _loops(self, name: str, link: str) -> bool:
        """Whether ``link``, in folder ``name``, leads to a folder on the way to it."""
        target = os.path.realpath(link)
        steps = name.split("/") if name else []
        way = [self.path("/".join(steps[:depth])) for depth in range(len(steps) + 1)]
        here = os.path.realpath(way[-1])
        return f"{here}/".startswith(f"{target.rstrip('/')}/") or any(os.path.realpath(step) == target for step in way)


def _why_no_picture(path: str) -> str:
    kind = picture_format(path)
    if kind is None:
        meant, _ = mimetypes.guess_type(path)
        return OTHER_FORMAT if (meant or "").startswith("image/") else NO_PICTURE
    remedy = "convert it" if kind == "HEIC" else "rename it"
    return f"a {kind} picture whose name does not end as one that is read; {remedy}"


def find_splits(tree: ImageTree) -> dict[str, str]:
    """Which folder of ``tree`` is which split: {"train": folder, …}, or {"train": ""} where the root holds the classes.

    A folder named like a split is one if its pictures lie in class folders below it, and a class if they lie in it.

    Raises:
        InputError: it may be read in two ways, or neither.
    """
    named = {folder: SPLIT_NAMES[folder.lower()] for folder in tree.folders("") if folder.lower() in SPLIT_NAMES}
    others = [folder for folder in tree.folders("") if folder not in named and tree.holds_pictures(folder)]
    splits = [folder for folder in named if not tree.pictures(folder)]
    train = [folder for folder in splits if named[folder] == "train" and tree.holds_pictures(folder)]
    if not train:
        _check_single(tree, named, splits, others)
        return {"train": ""}
    if others:
        raise InputError(
            f"data_path: {tree.path(others[0])} lies beside {train[0]}/, which has class folders; "
            f"move it away, or put the pictures of a class {train[0]} into that folder itself"
        )
    found: dict[str, str] = {}
    for folder, part in named.items():
        if part in found:
            raise InputError(f"data_path: {tree.root} holds both {found[part]}/ and {folder}/; remove one")
        if folder not in splits:
            raise InputError(
                f"data_path: {tree.path(folder)} has pictures but is no class; sort them into {folder}/<class>/ folders"
            )
        found[part] = folder
    for folder in found.values():
        if not tree.holds_pictures(folder):
            raise InputError(
                f"data_path: {tree.path(folder)} has no class folders with images; fill or remove it, "
                f"expected {tree.path(folder)}/<class>/…"
            )
    tree.leave_out(tree.pictures(""), STRAY)
    return found


def _check_single(tree: ImageTree, named: dict[str, str], splits: list[str], others: list[str]) -> None:
    for folder in splits:
        if tree.holds_pictures(folder):
            raise InputError(
                f"data_path: {tree.path(folder)} has class folders, but no train/ with class folders lies beside it; "
                f"name that folder train, or put the pictures of a class {folder} into its folder itself"
            )
    if not named and not tree.folders(""):
        raise InputError(
            f"data_path: {tree.root} has no class folders with images; expected {tree.path('<class>')}/… "
            f"or {tree.path('train')}/<class>/…"
        )
    if named and not others and not splits:
        raise InputError(
            f"data_path: {tree.root} holds {' and '.join(f'{folder}/' for folder in named)} but no class folders in them; "
            f"expected {tree.path('train')}/<class>/…"
        )


def list_classes(
    tree: ImageTree, root: str, classes: Sequence[str], *, may_lack: bool = False
) -> list[tuple[str, int]]:
    """(picture, label) of every picture below root/<class>, ordered by class and name.

    Args:
        tree: where the folders lie.
        root: the folder of the classes in it, "" for its root.
        classes: names of their folders.
        may_lack: whether classes may have no folder there.

    Raises:
        InputError: a class without pictures, or one that holds whole splits.
    """
    listed: list[tuple[str, int]] = []
    present = set(tree.folders(root))
    for label, class_name in enumerate(classes):
        folder = f"{root}/{class_name}" if root else class_name
        if may_lack and folder not in present:
            continue
        pictures = tree.pictures_below(folder)
        if not pictures:
            raise InputError(f"data_path: {tree.path(folder)} has no images{_passed_over(tree, folder)}")
        for inner in tree.walk(folder):
            _refuse_splits_within(tree, inner)
        listed.extend((picture, label) for picture in pictures)
    tree.leave_out(tree.pictures(root), STRAY)
    return listed


def _passed_over(tree: ImageTree, folder: str) -> str:
    for why, names in tree.left_out.items():
        inside = [name for name in names if name.startswith(f"{folder}/")]
        if inside:
            return f" but {_listed(inside, 1)} ({why}); add some or remove the class"
    return "; add some or remove the class"


def _refuse_splits_within(tree: ImageTree, folder: str) -> None:
    parts = {SPLIT_NAMES.get(inner.rpartition("/")[2].lower()) for inner in tree.folders(folder)} - {None}
    if "train" in parts and len(parts) > 1:
        raise InputError(
            f"data_path: the splits were looked for in {tree.root}, but {tree.path(folder)} holds train/ and others; "
            f"pass data_path={tree.path(folder)} if the classes lie in them, or sort as train/<class>/…"
        )


def class_names(tree: ImageTree, root: str, least: int = 2) -> list[str]:
    """Names of the class folders in folder ``root``, sorted.

    Raises:
        InputError: fewer than ``least``, or a name that is not text.
    """
    names = [folder.rpartition("/")[2] for folder in tree.folders(root)]
    if len(names) < least:
        for folder in tree.folders(root):
            _refuse_splits_within(tree, folder)
        raise InputError(
            f"data_path: {tree.path(root).rstrip('/')} has {len(names)} class folders, and two are the least; the splits were "
            f"looked for in {tree.root}: pass the folder that holds train/<class>/… or <class>/…"
        )
    for name in names:
        if printable(name) != name:
            raise InputError(
                f"data_path: the name of the class folder {tree.path(root).rstrip('/')}/{name} is no printable UTF-8; rename it"
            )
    return names
