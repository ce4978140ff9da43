"""Named, seeded and hashed splits, and the random-real baseline drawn from one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mct_fast.errors import InputError
from mct_fast.files import sha256_tensor
from mct_fast.tasks import Classification, Task, shuffled_by_class

_BY_CLASS = Classification()


@dataclass(frozen=True, eq=False)
class Split:
    """One split, whole, on one device.

    images: (n, C, H, W) float32 in transform space; of a table (n, features), of series (n, time, features).
    labels: (n,) int64, or (n, k) float32 of 0 and 1 for a multi-label task.
    sha256: hash of the raw pixels (or values) and the labels (see `hash_split`); it does not depend on the transform.
    num_classes: None means labels.max() + 1.
    """

    images: Tensor
    labels: Tensor
    sha256: str
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def hash_split(raw: Tensor, labels: Tensor) -> str:
    """SHA-256, in hexadecimal, over raw pixels (n, C, H, W), uint8 or float32, or raw values, and labels."""
    return hashlib.sha256(f"{sha256_tensor(raw)} {sha256_tensor(labels)}".encode()).hexdigest()


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices 0..n-1 at random into a rest and a held-out part with the same share of every class.

    Args:
        labels: (n,) int64 on the CPU.
        fraction: held-out share of each class, in [0, 1), rounded to whole images; at least one image of a
            class is held out (unless fraction is 0) and at least one kept. A class with a single image keeps
            it.
        generator: CPU generator that the choice is drawn from.

    Returns:
        (rest, held_out): ascending int64 indices, disjoint, together all of them.

    Raises:
        InputError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"val_fraction={fraction} is out of range; give a share of the training set in [0, 1)")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    if fraction > 0 and len(labels):
        order, counts = shuffled_by_class(labels, int(labels.max()) + 1, generator)
        take = torch.minimum((counts * fraction + 0.5).floor().long().clamp_min(1), (counts - 1).clamp_min(0))
        rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        held_out[order[rank < take.repeat_interleave(counts)]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def random_real(split: Split, ipc: int, generator: torch.Generator, task: Task = _BY_CLASS) -> tuple[Tensor, Tensor]:
    """The random-real baseline: `ipc` different real images of each class, or what else `task` begins a set with.

    Args:
        split: where to draw from.
        ipc: images per class, at least 1.
        generator: CPU generator; the same state gives the same images whatever the device.
        task: what the labels say; classes by default.

    Returns:
        images (classes * ipc, C, H, W) and labels (classes * ipc,), ordered by class, on the split's device; of a
        multi-label task (labels * ipc) rows and labels (labels * ipc, labels).

    Raises:
        InputError: ipc is not a positive whole number, or a class has fewer images.
    """
    if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
        raise InputError(f"ipc={ipc!r} is not a number of images per class; give a whole number of at least 1")
    labels = split.labels.cpu()
    if not len(labels):
        raise InputError(f"ipc={ipc}: the split is empty; choose a split that has images")
    num_classes = split.num_classes or int(labels.max()) + 1
    chosen = task.draw_rows(labels, num_classes, ipc, generator).to(split.images.device)
    return split.images[chosen], split.labels[chosen]
