"""Named, seeded and hashed splits, and the random-real baseline drawn from one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_tensor
from mct_fast.tasks import Classification, Task

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


def check_ipc(ipc: int) -> None:
    """Refuse an `ipc` that is not a positive whole number."""
    if isinstance(ipc, bool) or not isinstance(ipc, int) or ipc < 1:
        raise InputError(f"ipc={ipc!r} is not a number of images per class; give a whole number of at least 1")


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
    check_ipc(ipc)
    labels = split.labels.cpu()
    if not len(labels):
        raise InputError(f"ipc={ipc}: the split is empty; choose a split that has images")
    num_classes = split.num_classes or int(labels.max()) + 1
    chosen = task.draw_rows(labels, num_classes, ipc, generator).to(split.images.device)
    return split.images[chosen], split.labels[chosen]
