"""The product: a tiny synthetic dataset that carries all that is needed to train on it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mct_fast.data import Dataset, TableTransform
from mct_fast.data.checks import check_class_names
from mct_fast.data.transforms import Transform, transform_from_state
from mct_fast.distilled.picture import picture
from mct_fast.distilled.table import write_table
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, parse_json, reading, sha256_file
from mct_fast.run.form import NEAREST, SOURCE, misfit
from mct_fast.run.sealed import read_sealed, read_tensors, write_sealed, write_tensors
from mct_fast.run.tensors import check_dense
from mct_fast.tasks import Task, task_from_state

log = logging.getLogger("mct_fast")

_TENSORS, _META = "distilled.safetensors", "distilled.json"
_FORMAT_VERSION = 2
_REMEDY = "restore it, or distil again"
_FORM = {
    "syn_lr": float,
    "class_names": [str],
    "transform": {"kind": str},
    "provenance": {
        "dataset?": (str, None),
        "model?": ({"name?": str}, str, None),
        "config?": {"lr_net?": (float, None)},
        "task?": ({"name": str}, None),
        "target?": [str],
        "image_shape?": [int],
        "nearest_real?": (NEAREST, None),
        "data?": {name if name.endswith("?") else f"{name}?": form for name, form in SOURCE.items()},
    },
}


@dataclass(frozen=True)
class DistilledDataset:
    """Synthetic images, rows of a table or series, with what evaluating them takes.

    ``images (n, C, H, W)`` float32 in the space of ``transform`` (normalised or whitened), ordered by class; of a table
    ``(n, features)``, of series ``(n, time, features)``;
    ``labels`` as :attr:`task` has them: ``(n,)`` int64, or ``(n, classes)``, ``(n, labels)`` or ``(n,)`` float32;
    ``syn_lr`` the learned step size; ``provenance`` says how it was made.

    Raises :class:`InputError` if a tensor is of another kind, if ``syn_lr`` is no positive number, if soft labels are none of
    its task (those of classes must be distributions), if there is not one label an image, or if a class name stands twice.
    """

    images: Tensor
    labels: Tensor
    syn_lr: float
    transform: Transform
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        for name in ("images", "labels"):
            check_dense(name, getattr(self, name))
        if self.images.dtype != torch.float32 or self.images.ndim < 2:
            raise InputError(
                f"images: got {self.images.dtype} of shape {tuple(self.images.shape)} for a distilled set; give float32 "
                "(n, C, H, W), rows (n, features) or series (n, time, features)"
            )
        if not _is_step_size(self.syn_lr):
            raise InputError(
                f"syn_lr: {self.syn_lr!r} is not a positive finite number; give the step size to train with"
            )
        if self.labels.ndim == 0 or len(self.labels) != len(self.images):
            raise InputError(
                f"labels: have shape {tuple(self.labels.shape)} for {len(self.images)} images of a distilled set; "
                "give one label an image"
            )
        if self.labels.is_floating_point():
            self.task.check(self.labels, self.task.num_outputs(self.num_classes))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def lr_net(self) -> float:
        """The step size to train networks with: that of the run which made the set, or else the learned one."""
        given = self.provenance.get("config", {}).get("lr_net")
        return self.syn_lr if given is None else float(given)

    @property
    def task(self) -> Task:
        """What the labels say: classes, unless ``provenance`` says otherwise."""
        return task_from_state(self.provenance.get("task"))

    @property
    def classes(self) -> Tensor:
        """The class ``(n,)`` of each image; of soft labels, the likeliest."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def pixels(self) -> Tensor:
        """The images ``(n, C, H, W)`` as people see them: transform undone, clipped to [0, 1]."""
        if isinstance(self.transform, TableTransform):
            raise InputError("pixels: this distilled set holds rows of a table, not images; use to_csv")
        return self.transform.inverse(self.images).clamp(0, 1)

    def save(self, folder: str | Path) -> Path:
        """Writes ``distilled.safetensors``, which holds everything, and for people ``distilled.json``; returns the folder.

        The first is replaced at once, so a reader finds the old set or the new one. The second says the same but for the tensors.
        """
        folder = Path(folder)
        tensors, transform = self.transform.state()
        everything = {"images": self.images, "labels": self.labels}
        everything |= {f"transform.{name}": tensor for name, tensor in tensors.items()}
        meta = {
            "syn_lr": self.syn_lr,
            "class_names": list(self.class_names),
            "transform": transform,
            "provenance": dict(self.provenance),
        }
        version = str(_FORMAT_VERSION)
        text = json.dumps(meta, allow_nan=False)
        checksum = write_tensors(folder / _TENSORS, everything, {"format_version": version, "meta": text})
        write_sealed(folder / _META, {"format_version": _FORMAT_VERSION, "tensors": checksum, **meta})
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> DistilledDataset:
        """Reads what :meth:`save` wrote and checks it against its checksums.

        Raises:
            InputError: there is none, a file is damaged or was changed, or the two contradict each other.
        """
        folder = Path(folder)
        if not (folder / _TENSORS).is_file():
            raise InputError(f"folder: {folder} holds no distilled set; give the folder that 'mct-fast distill' wrote")
        tensors, metadata, checksum = read_tensors(folder / _TENSORS, "folder", _REMEDY)
        if checksum is not None:
            if metadata.get("format_version") != str(_FORMAT_VERSION):
                raise InputError(
                    f"folder: {folder / _TENSORS} has an unknown format; use a matching release of mct_fast"
                )
            meta = parse_json(folder / _TENSORS, metadata.get("meta", "").encode())
            _check_copy(folder, meta, checksum)
        else:
            meta = _meta_of_format_1(folder)
        wrong = misfit(meta, _FORM, f"{folder}: its description")
        if wrong is not None:
            raise InputError(f"folder: {wrong}; {_REMEDY}")
        prefix = "transform."
        state = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        with reading("folder", folder):
            transform = transform_from_state(state, meta["transform"])
            names, syn_lr = tuple(meta["class_names"]), float(meta["syn_lr"])
            made = cls(tensors["images"], tensors["labels"], syn_lr, transform, names, meta["provenance"])
            _ = made.task  # read later, so that it is known to be sound
        return made

    def picture(self) -> Image.Image:
        """All images in one picture, under the names of their classes, small ones enlarged."""
        return picture(self.pixels(), self.classes, self.class_names)

    def to_png(self, path: str | Path) -> Path:
        """Writes :meth:`picture` as a PNG."""
        path = Path(path)
        whole = self.picture()
        try:
            atomic_write(path, lambda temporary: whole.save(temporary, format="PNG"))
        except OSError as error:
            raise InputError(f"path: cannot write {path} ({error.strerror}); choose a writable folder") from error
        return path

    def to_csv(self, path: str | Path, dataset: Dataset | None = None) -> Path:
        """Writes a table's rows in original units and categories, and a JSON file beside them.

        See :func:`mct_fast.distilled.table.write_table`: what it says about privacy, and about the distance to real rows.
        """
        return write_table(self, path, dataset)

    def write_preview(self, folder: str | Path) -> Path:
        """Writes what people look at into ``folder``: ``images.png``, or ``distilled.csv`` of a table."""
        if isinstance(self.transform, TableTransform):
            return self.to_csv(Path(folder) / "distilled.csv")
        return self.to_png(Path(folder) / "images.png")

    def to_mtt(self, folder: str | Path) -> Path:
        """Writes ``images_best.pt`` and ``labels_best.pt``, which MTT's users and DD-Ranking read.

        MTT's files hold no step size and no transform.  Beside them stand the learned step size, in ``syn_lr.txt``, and the one
        to train networks with, in ``lr_net.txt``; the transform is in what :meth:`save` writes.
        """
        folder = Path(folder)
        # atomic_write makes the folder, and explains it if that is impossible.
        atomic_write(folder / "images_best.pt", lambda temporary: torch.save(self.images.cpu().clone(), temporary))
        atomic_write(folder / "labels_best.pt", lambda temporary: torch.save(self.labels.cpu().clone(), temporary))
        for name, number in (("syn_lr", self.syn_lr), ("lr_net", self.lr_net)):
            atomic_write(
                folder / f"{name}.txt", lambda temporary, number=number: _write_text(temporary, f"{number!r}\n")
            )
        return folder


def _is_step_size(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= sys.float_info.max


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _check_copy(folder: Path, meta: Mapping[str, Any], checksum: str) -> None:
    """Raises :class:`InputError` if ``distilled.json`` is damaged, or says of these tensors what they do not say."""
    file = folder / _META
    if not file.exists():
        return  # the process was killed before it wrote it the first time
    copy, _ = read_sealed(file, "folder", f"delete it, {_TENSORS} holds the same", (1, _FORMAT_VERSION))
    # Killed between the two files, a process leaves the copy of the set before.
    if copy.get("tensors") == checksum and copy != {**meta, "format_version": _FORMAT_VERSION, "tensors": checksum}:
        raise InputError(
            f"folder: {file} does not say what {_TENSORS} holds; delete it, and make a changed set in Python"
        )


def _meta_of_format_1(folder: Path) -> dict[str, Any]:
    """What an earlier release said in ``distilled.json`` alone."""
    file = folder / _META
    if not file.is_file():
        raise InputError(f"folder: {folder} holds no {_META}; {_REMEDY}")
    meta, sealed = read_sealed(file, "folder", _REMEDY, (1,))
    if sealed is not None or sha256_file(folder / _TENSORS) != meta.get("sha256"):
        raise InputError(f"folder: {folder / _TENSORS} does not match its SHA-256 in {_META}; {_REMEDY}")
    log.warning("%s was written by an earlier release and has no checksum: what it says is taken as it is", file)
    return meta
