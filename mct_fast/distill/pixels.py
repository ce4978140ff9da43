"""How synthetic images lie in the pixels that are learned: each for itself, or as windows of canvases (textures)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.data import Dataset, Split, random_real
from mct_fast.data.windows import Windows, draw_windows
from mct_fast.matching.problem import MatchResult
from mct_fast.run.errors import InputError
from mct_fast.tasks import Task


@dataclass(frozen=True)
class Shown:
    """What students see of the pixels in one match, and the way ``back`` of the gradients to pixels and labels."""

    images: Tensor
    labels: Tensor
    batches: Tensor
    back: Callable[[MatchResult], MatchResult]


class Layout(Protocol):
    """How images lie in the learned pixels ``(n, C, H, W)``, or rows ``(n, ...)`` of a table."""

    @property
    def real_images(self) -> int:
        """How many real images one entry of the pixels begins from."""
        ...

    def check(self, dataset: Dataset, labels: str) -> None:
        """Raises :class:`InputError` if it does not suit ``dataset``, or labels that begin as ``labels``."""
        ...

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of an entry for images of ``image_shape``."""
        ...

    def real(self, train: Split, ipc: int, task: Task, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """First pixels from random real images, and their labels, by class."""
        ...

    def show(self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator) -> Shown:
        """The images that ``batches (S, syn_steps, b)`` of the pixels show."""
        ...


@dataclass(frozen=True)
class Plain:
    """Every entry is an image, or a row."""

    real_images: int = 1

    def check(self, dataset: Dataset, labels: str) -> None:
        pass

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(image_shape)

    def real(self, train: Split, ipc: int, task: Task, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        return random_real(train, ipc, stream, task)

    def show(self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator) -> Shown:
        return Shown(pixels, labels, batches, lambda found: found)


@dataclass(frozen=True)
class Canvases:
    """Every entry is a canvas ``times`` as wide and high as an image (:mod:`mct_fast.data.windows`)."""

    times: int

    @property
    def real_images(self) -> int:
        return self.times**2

    def check(self, dataset: Dataset, labels: str) -> None:
        if dataset.kind != "images":
            raise InputError(f"canvas: {dataset.name} holds no images; leave out canvas")
        if dataset.transform.state()[1].get("kind") == "zca":
            raise InputError(
                "canvas: textures cannot be whitened with ZCA, which knows every pixel's place; leave out zca"
            )
        if labels == "expert":
            raise InputError("labels: 'expert' labels whole images, not canvases; use labels='hard' with canvas")

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        return (image_shape[0], *(self.times * side for side in image_shape[1:]))

    def real(self, train: Split, ipc: int, task: Task, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = random_real(train, ipc * self.real_images, stream, task)
        return tiled(images, self.times), labels[:: self.real_images]

    def show(self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator) -> Shown:
        """Each image of each step is a window of its own: as many images are matched, and their gradients come back."""
        height, width = (side // self.times for side in pixels.shape[-2:])
        sheet = Sheet.draw(batches, pixels.shape, (height, width), stream)
        windows = sheet.windows

        def back(found: MatchResult) -> MatchResult:
            by_labels = found.grad_labels
            if by_labels is not None:
                by_labels = torch.zeros_like(labels).index_add_(0, windows.rows, by_labels)
            by_pixels = windows.transpose(found.grad_images, pixels.shape)
            return replace(found, grad_images=by_pixels, grad_labels=by_labels)

        return Shown(windows.cut(pixels), labels[windows.rows], sheet.batches, back)


@dataclass(frozen=True)
class Sheet:
    """The batches of one match, each image of each step a window of its own: what :mod:`mct_fast.matching` takes."""

    windows: Windows
    batches: Tensor
    """``(S, syn_steps, b)`` as given, but with rows of :attr:`windows`."""

    @classmethod
    def draw(cls, batches: Tensor, canvas: Sequence[int], size: tuple[int, int], generator: torch.Generator) -> Sheet:
        """A window for every row of ``batches (S, syn_steps, b)``; -1 pads and gets none."""
        used = batches >= 0
        numbers = torch.full_like(batches, -1)
        numbers[used] = torch.arange(int(used.sum()), device=batches.device)
        return cls(draw_windows(batches[used], canvas, size, generator), numbers)


def tiled(images: Tensor, times: int) -> Tensor:
    """Canvases ``(n, C, times H, times W)`` of ``images (n times^2, C, H, W)``, each of as many that follow each other."""
    _, channels, height, width = images.shape
    grid = images.reshape(-1, times, times, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(grid), channels, times * height, times * width)
