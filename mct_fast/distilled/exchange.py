"""Distilled sets in the files of other programs, out and in.

======== ======================================================================================================
mtt      ``images_best.pt``, ``labels_best.pt`` (MTT, FTD, TESLA) and ``lr_best.pt`` (DATM), in transform space
ddranking the same for DD-Ranking's ``image_tensor``, ``hard_labels`` or ``soft_labels``, ``syn_lr``, and its settings
npz      one file of NumPy: ``images`` (transform space), ``pixels`` in [0, 1], ``labels``, ``syn_lr``, ``class_names``
png      ``CLASS/NUMBER.png``, a picture an image, which any image loader reads
hf       a folder of Hugging Face ``datasets`` (``load_from_disk``)
======== ======================================================================================================
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mct_fast.data import Dataset
from mct_fast.distilled.dataset import DistilledDataset
from mct_fast.run.arrays import load_arrays
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write
from mct_fast.run.plain import read_plain
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.tasks import Classification

# ------------------------------------------------------------------------------------------------------------------ out


def export(distilled: DistilledDataset, to: str, folder: str | Path) -> list[Path]:
    """Writes ``distilled`` into ``folder`` in the files of ``to``, one of `FORMATS`; returns what was written.

    Raises:
        InputError: an unknown format, data that it has no place for, or a folder that cannot be written.
    """
    if to not in FORMATS:
        raise InputError(f"to: unknown format {to!r}; choose one of {', '.join(FORMATS)}")
    folder = Path(folder)
    before = set(folder.rglob("*"))
    FORMATS[to](distilled, folder)
    return sorted(file for file in set(folder.rglob("*")) - before if file.is_file()) or [folder]


def _write_tensor(file: Path, tensor: Tensor) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "wb") as opened:  # given a path, torch.save would write its random name into the file
            torch.save(tensor.detach().cpu().clone(), opened)

    atomic_write(file, write)


def _to_mtt(distilled: DistilledDataset, folder: Path) -> None:
    distilled.to_mtt(folder)
    _write_tensor(folder / "lr_best.pt", torch.tensor(distilled.lr_net))


_DDRANKING_NAMES = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "tiny-imagenet": "TinyImageNet",
    **{name: f"Image{name.removeprefix('image').capitalize()}" for name in IMAGENET_SUBSETS},
}


def _to_ddranking(distilled: DistilledDataset, folder: Path) -> None:
    """DD-Ranking takes tensors in the space of its own normalisation, which is the field's, as ours."""
    if not isinstance(distilled.task, Classification) or distilled.images.ndim != 4:
        raise InputError("to: DD-Ranking scores images with classes; choose npz for other data")
    _to_mtt(distilled, folder)
    soft, name = distilled.labels.is_floating_point(), distilled.provenance.get("dataset")
    settings = {
        "dataset": _DDRANKING_NAMES.get(str(name).rpartition(":")[2], name),
        "ipc": len(distilled) // distilled.num_classes,
        "im_size": list(distilled.images.shape[2:]),
        "use_zca": distilled.transform.state()[1].get("kind") == "zca",
        "syn_lr": distilled.lr_net,
        "image_tensor": "images_best.pt",
        "soft_labels" if soft else "hard_labels": "labels_best.pt",
    }
    text = json.dumps(settings, indent=1) + "\n"
    atomic_write(folder / "ddranking.json", lambda temporary: _write_text(temporary, text))


def _to_npz(distilled: DistilledDataset, folder: Path) -> None:
    arrays: dict[str, Any] = {
        "images": distilled.images.cpu().numpy(),
        "labels": distilled.labels.cpu().numpy(),
        "syn_lr": np.float64(distilled.lr_net),
        "class_names": np.array(distilled.class_names),
    }
    if distilled.images.ndim == 4:
        arrays["pixels"] = distilled.pixels().cpu().numpy()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as opened:
            np.savez(opened, **arrays)

    atomic_write(folder / "distilled.npz", write)


def _to_png(distilled: DistilledDataset, folder: Path) -> None:
    for number, (picture, label) in enumerate(_pictures(distilled, "png")):
        name = f"{number:05d}.png"
        atomic_write(folder / label / name, lambda temporary, picture=picture: picture.save(temporary, format="PNG"))


def _to_hf(distilled: DistilledDataset, folder: Path) -> None:
    try:
        datasets: Any = importlib.import_module("datasets")  # optional
    except ImportError as error:
        raise InputError("to: hf needs the package datasets; pip install datasets") from error
    pictures = _pictures(distilled, "hf")
    columns: dict[str, Any] = {"image": [picture for picture, _ in pictures]}
    kinds: dict[str, Any] = {"image": datasets.Image()}
    if distilled.labels.is_floating_point():
        columns["label"] = distilled.labels.cpu().tolist()
        kinds["label"] = datasets.Sequence(datasets.Value("float32"))
    else:
        columns["label"] = distilled.labels.cpu().tolist()
        kinds["label"] = datasets.ClassLabel(names=list(distilled.class_names))
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).save_to_disk(str(folder))


def _pictures(distilled: DistilledDataset, to: str) -> list[tuple[Any, str]]:
    """Each image as people see it, and a folder's name for its class; soft labels count as their largest."""
    if distilled.images.ndim != 4 or distilled.images.shape[1] not in (1, 3):
        raise InputError(f"to: {to} is for images of one or three channels; choose npz for other data")
    labels = distilled.labels.argmax(1) if distilled.labels.ndim == 2 else distilled.labels
    names = [f"{i:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}" for i, name in enumerate(distilled.class_names)]
    return [
        (to_pil_image(pixels.cpu()), names[int(label)])
        for pixels, label in zip(distilled.pixels(), labels, strict=True)
    ]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


FORMATS: dict[str, Callable[[DistilledDataset, Path], None]] = {
    "mtt": _to_mtt,
    "ddranking": _to_ddranking,
    "npz": _to_npz,
    "png": _to_png,
    "hf": _to_hf,
}
"""What `export` writes, by name."""

# ------------------------------------------------------------------------------------------------------------------- in


def take_over(
    path: str | Path, dataset: Dataset, *, pixels: bool = False, lr: float | None = None
) -> tuple[DistilledDataset, list[str]]:
    """Somebody's distilled set of ``dataset`` as a `DistilledDataset`, and what was found and assumed, a line each.

    Args:
        path: ``images*.pt`` of MTT, FTD, TESLA or DATM, with ``labels*.pt`` beside it and ``lr*.pt`` (or ``syn_lr.txt``)
            where there is one; the folder that holds them, of which ``images_best.pt`` is taken, else the last by its number;
            or an ``.npz`` with ``images`` (or ``pixels``) and ``labels``, and maybe ``syn_lr``.
        dataset: what the set was distilled from, loaded with ``zca=True`` where the set is whitened.
        pixels: The numbers are pixels in [0, 1], or 0 to 255 as bytes, not in the space of the dataset's transform.
        lr: The step size to train with; None takes the one beside the images, or else 0.01.

    Soft labels ``(n, classes)`` may be probabilities, or logits, as DATM keeps them: those are put through softmax, as its loss
    does.

    Raises:
        InputError: a file is missing, damaged or of another kind, or does not fit the dataset.
    """
    path = Path(path)
    found = _of_npz(path) if path.suffix == ".npz" else _of_tensors(path)
    said = [f"images: {found.images_from}, {tuple(found.images.shape)}"]
    images = found.images
    pixels = pixels or found.pixels or images.dtype == torch.uint8
    if tuple(images.shape[1:]) != dataset.image_shape:
        raise InputError(
            f"path: the images of {found.images_from} have shape {tuple(images.shape[1:])}, those of {dataset.name} "
            f"{dataset.image_shape}; name the dataset that they were distilled from"
        )
    images = images.float() / (255.0 if images.dtype == torch.uint8 else 1.0)
    if not bool(torch.isfinite(images).all()):
        raise InputError(
            f"path: the images of {found.images_from} hold NaN or infinity; that run diverged, so give another's"
        )
    if pixels:
        if float(images.min()) < 0 or float(images.max()) > 1:
            raise InputError("pixels: the numbers are not within [0, 1]; leave --pixels out")
        images = dataset.transform.forward(images)
        said.append("space: pixels in [0, 1], transformed as the dataset is")
    else:
        said.append(f"space: taken to be in the dataset's transform ({dataset.transform.state()[1].get('kind')})")
    labels, line = _labels(found.labels, len(images), dataset)
    said.append(line)
    step = lr if lr is not None else found.lr if found.lr is not None else 0.01
    given = "as given" if lr is not None else found.lr_from if found.lr is not None else "none beside the images: 0.01"
    said.append(f"step size: {step:g} ({given})")
    order = torch.argsort(labels if labels.ndim == 1 else labels.argmax(1), stable=True)
    provenance = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "data": dict(dataset.source),
        "image_shape": list(dataset.image_shape),
        "imported": found.images_from,
    }
    made = DistilledDataset(images[order], labels[order], step, dataset.transform, dataset.class_names, provenance)
    return made, said


class _Found:
    """What lies in the files."""

    def __init__(
        self, images: Any, images_from: str, labels: Any, lr: Any, lr_from: str = "", pixels: bool = False
    ) -> None:
        if (
            not isinstance(images, Tensor)
            or images.ndim < 2
            or not (images.is_floating_point() or images.dtype == torch.uint8)
        ):
            raise InputError(f"path: {images_from} holds no tensor of images (n, C, H, W); give images_best.pt")
        if labels is not None and not isinstance(labels, Tensor):
            raise InputError(f"path: the labels beside {images_from} are no tensor; give the files of one run")
        self.images, self.images_from, self.labels, self.pixels = images.detach(), images_from, labels, pixels
        self.lr, self.lr_from = None if lr is None else _step_size(lr, lr_from), lr_from


def _step_size(value: Any, where: str) -> float:
    numbers = torch.as_tensor(value, dtype=torch.float64).flatten()
    # FTD and others keep one step size a student step; networks are trained with their mean.
    if not len(numbers) or not bool((torch.isfinite(numbers) & (numbers > 0)).all()):
        raise InputError(f"path: the step size in {where} is not positive; give another by --lr")
    return float(numbers.mean())


_REMEDY = "give tensors that torch.save wrote"


def _of_tensors(path: Path) -> _Found:
    file = _images_file(path) if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"path: {file} does not exist; give images_best.pt, its folder, or an .npz")
    images = read_plain("path", file, _REMEDY)

    def beside(word: str) -> Path | None:
        names = [file.name.replace("images", word, 1), file.name.replace("images", word, 1).replace("_ema", "")]
        return next((file.with_name(n) for n in names if n != file.name and file.with_name(n).is_file()), None)

    labels_file, lr_file = beside("labels"), beside("lr")
    labels = None if labels_file is None else read_plain("path", labels_file, _REMEDY)
    if lr_file is not None:
        return _Found(images, str(file), labels, read_plain("path", lr_file, _REMEDY), lr_file.name)
    for name in ("lr_net.txt", "syn_lr.txt"):
        if file.with_name(name).is_file():
            try:
                number = float(file.with_name(name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"path: {file.with_name(name)} is no number; give another by --lr") from error
            return _Found(images, str(file), labels, number, name)
    return _Found(images, str(file), labels, None)


def _images_file(folder: Path) -> Path:
    """``images_best.pt``, else the one with the largest number."""
    files = {file.name: file for file in folder.glob("images_*.pt")}
    best = files.get("images_best.pt") or files.get("images_best_ema.pt")
    numbered = sorted((int(n[1]), f) for name, f in files.items() if (n := re.fullmatch(r"images_(\d+)\.pt", name)))
    if best is None and not numbered:
        raise InputError(f"path: {folder} holds no images_best.pt and no images_N.pt; give the file of the images")
    return best or numbered[-1][1]


def _of_npz(file: Path) -> _Found:
    arrays = load_arrays(file, "path", "write it with np.savez(file, images=..., labels=...)")
    name = next((name for name in ("images", "x", "pixels") if name in arrays), None)
    if name is None:
        raise InputError(f"path: {file} holds {', '.join(arrays) or 'nothing'}, but no images; name an array so")
    labels = arrays.get("labels", arrays.get("y"))
    images = torch.from_numpy(np.ascontiguousarray(arrays[name]))
    lr = arrays.get("syn_lr", arrays.get("lr"))
    as_tensor = None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))
    return _Found(images, f"{name} of {file}", as_tensor, lr, "syn_lr", pixels=name == "pixels")


def _labels(labels: Tensor | None, count: int, dataset: Dataset) -> tuple[Tensor, str]:
    """Labels as a set has them, and what they were taken for."""
    classes = dataset.num_classes
    if labels is None:
        if count % classes:
            raise InputError(
                f"path: there are no labels, and {count} images are no multiple of {classes} classes; give their labels"
            )
        return torch.arange(classes).repeat_interleave(
            count // classes
        ), "labels: none; taken to be in the order of classes"
    labels = labels.detach().squeeze(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels.detach()
    if len(labels) != count or labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != classes):
        raise InputError(
            f"path: the labels have shape {tuple(labels.shape)}, for {count} images and {classes} classes; give those of one run"
        )
    if labels.ndim == 1:
        whole = labels.long()
        if not bool((whole == labels).all()) or not 0 <= int(whole.min()) <= int(whole.max()) < classes:
            raise InputError(f"path: the labels are no numbers from 0 to {classes - 1}; name the right dataset")
        return whole, "labels: classes"
    soft = labels.double()
    if not bool(torch.isfinite(soft).all()):
        raise InputError("path: the labels hold NaN or infinity; that run diverged, so give another's")
    likely = bool((soft >= 0).all()) and bool(((soft.sum(1) - 1).abs() < 1e-4).all())
    if likely:
        return (soft / soft.sum(1, keepdim=True)).float(), "labels: soft, probabilities"
    return soft.softmax(1).float(), "labels: soft, logits, put through softmax as DATM's loss does"
