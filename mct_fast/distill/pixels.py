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

Match = Callable[[Tensor, Tensor, Tensor], MatchResult]
"""A match of ``(images, labels, batches)``."""


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

    def match(
        self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator, match: Match
    ) -> MatchResult:
        """``match`` on the images that ``batches (S, syn_steps, b)`` of the pixels show; gradients by pixels and labels."""
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

    def match(
        self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator, match: Match
    ) -> MatchResult:
        return match(pixels, labels, batches)


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

    def match(
        self, pixels: Tensor, labels: Tensor, batches: Tensor, stream: torch.Generator, match: Match
    ) -> MatchResult:
        """Each image of each step is a window of its own: as many images are matched, and their gradients come back."""
        height, width = (side // self.times for side in pixels.shape[-2:])
        sheet = Sheet.draw(batches, pixels.shape, (height, width), stream)
        windows = sheet.windows
        found = match(windows.cut(pixels), labels[windows.rows], sheet.batches)
        by_labels = found.grad_labels
        return replace(
            found,
            grad_images=windows.transpose(found.grad_images, pixels.shape),
            grad_labels=None if by_labels is None else torch.zeros_like(labels).index_add_(0, windows.rows, by_labels),
        )


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
