"""Checks on what a user hands in; each refuses with one line that names the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.tensors import check_dense

_CHANNELS = (1, 3)
_ROWS = 4096  # images looked at in one piece, so that checking a large set needs no second copy of it


def as_images(images: Any, argument: str) -> Tensor:
    """Bring images into the layout that the package works on.

    Args:
        images: tensor or array, uint8 in 0..255 or floating point in [0, 1], shaped (n, C, H, W),
            (n, H, W, C) with C 1 or 3, or (n, H, W). Where both readings of a shape are possible,
            (n, C, H, W) is meant.
        argument: how the message of an error calls it.

    Returns:
        (n, C, H, W) uint8 or float32, contiguous, on the CPU.

    Raises:
        InputError: not an array, wrong shape or dtype, empty, not square, NaN or outside [0, 1].
    """
    tensor = _as_tensor(images, argument)
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise InputError(f"{argument}: images have dtype {_dtype(tensor)}; give uint8 in 0..255 or floats in [0, 1]")
    shape = tuple(tensor.shape)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.ndim == 4 and shape[1] in _CHANNELS:
        pass
    elif tensor.ndim == 4 and shape[3] in _CHANNELS:
        tensor = tensor.permute(0, 3, 1, 2)
    else:
        raise InputError(
            f"{argument}: images have shape {shape}; give (n, C, H, W), (n, H, W, C) with 1 or 3 channels, or (n, H, W)"
        )
    if tensor.numel() == 0:
        raise InputError(f"{argument}: images are empty, shape {shape}; give at least one image of at least one pixel")
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
        _check_range(tensor, argument)
    return tensor.contiguous()


def as_labels(labels: Any, count: int, argument: str) -> Tensor:
    """Bring class labels into a (count,) int64 tensor on the CPU.

    Raises:
        InputError: not one-dimensional, not integers, not `count` of them, or negative.
    """
    tensor = _as_tensor(labels, argument)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"{argument}: labels have dtype {_dtype(tensor)}; give integer class numbers from 0")
    if tensor.ndim != 1 or len(tensor) != count:
        raise InputError(
            f"{argument}: labels have shape {tuple(tensor.shape)} for {count} images; give one class number an image"
        )
    tensor = tensor.to(torch.int64).contiguous()
    if count and int(tensor.min()) < 0:
        raise InputError(f"{argument}: label {int(tensor.min())} is negative; number the classes from 0")
    return tensor


def check_label_range(labels: Tensor, num_classes: int, argument: str) -> None:
    """Refuse labels (n,) that reach `num_classes` or beyond."""
    if labels.numel() and int(labels.max()) >= num_classes:
        raise InputError(
            f"{argument}: label {int(labels.max())} is out of range for {num_classes} classes; "
            f"use 0..{num_classes - 1} or give more class_names"
        )


def check_every_class(labels: Tensor, class_names: Sequence[str], argument: str) -> None:
    """Refuse training labels (n,) in which a class has no image at all."""
    counts = torch.bincount(labels, minlength=len(class_names))
    if int(counts.min()) == 0:
        missing = int(counts.argmin())
        raise InputError(
            f"{argument}: class {missing} ({class_names[missing]}) has no image; add some or renumber the classes"
        )


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse names that are no text, and one that stands for two classes."""
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise InputError(f"class_names: {class_names!r} are no names; give a text for each class")
    twice = [name for number, name in enumerate(class_names) if name in class_names[:number]]
    if twice:
        raise InputError(f"class_names: {twice[0]!r} names two classes; give each a name of its own")


def check_image_size(image_size: int | None) -> None:
    """Refuse an image_size (pixels a side) that is not a positive whole number."""
    if image_size is not None and (isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1):
        raise InputError(f"image_size={image_size!r} is not a size; give a whole number of pixels, or None")


def _as_tensor(values: Any, argument: str) -> Tensor:
    if isinstance(values, Tensor):
        check_dense(argument, values)
        return values.detach().cpu()
    try:
        array = np.ascontiguousarray(values)
        if not array.flags.writeable:  # torch warns about tensors over read-only memory
            array = array.copy()
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise InputError(f"{argument}: cannot be read as one array of numbers; give a tensor or an array") from error


def _check_range(images: Tensor, argument: str) -> None:
    for piece in images.split(_ROWS):
        if not bool(torch.isfinite(piece).all()):
            raise InputError(f"{argument}: images hold NaN or infinite pixels; remove or repair them")
        low, high = (float(bound) for bound in torch.aminmax(piece))
        if low < 0 or high > 1:
            raise InputError(
                f"{argument}: pixels reach from {low:g} to {high:g}; scale floats to [0, 1] or give uint8 in 0..255"
            )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
