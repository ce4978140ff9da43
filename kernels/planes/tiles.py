"""How a block's planes and channels are shared by programs, by shape: the one place that decides.

A choice looks at the images of a student, never at how many students share a launch: a student's bits are those it has alone.
"""

from __future__ import annotations

from dataclasses import dataclass


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _part_of(width: int, most: int) -> int:
    """The largest power of two up to `most` that divides the width."""
    return min(width & -width, most)


@dataclass(frozen=True)
class PlaneTiles:
    """Of a kernel that has whole planes on chip.

    Attributes:
        channels: BC, of a program.
        depth: BK, channels that a product sums at once.
        images: planes of a program.
        rows: pixels of a product, `images` planes of a power of two of pooled pixels.
        warps, stages: as Triton has them.
    """

    channels: int
    depth: int
    images: int
    rows: int
    warps: int
    stages: int


@dataclass(frozen=True)
class FirstTiles:
    """Of the first block's kernels."""

    channels: int
    warps: int


@dataclass(frozen=True)
class WeightTiles:
    """Of a weight gradient: BI x BO channels, BP pixels at once, `chunk` pixels a part."""

    inputs: int
    outputs: int
    pixels: int
    chunk: int
    warps: int
    stages: int


def plane(width: int, pooled: int, batch: int, halves: int, sums: int) -> PlaneTiles:
    """`sums` accumulators of rows x channels numbers are held at once."""
    each = max(16, _power_of_two(pooled))
    few = batch < 32
    images = 1 if few or each >= 64 else 64 // each
    rows = images * each
    most = 32 if few else 64
    while most > 16 and rows * most * sums > 64 * 64 * 4:
        most //= 2
    channels = _part_of(width, most)
    warps = 8 if rows * channels * sums >= 64 * 32 * 4 else 4
    depth = _part_of(width, 64 if halves == 1 else 32)
    return PlaneTiles(channels, depth, images, rows, warps, 3)


def first(width: int, batch: int) -> FirstTiles:
    """The first block's planes are walked in tiles of 64 pooled pixels."""
    return FirstTiles(_part_of(width, 16 if batch < 32 else 64), 4)


def rows(width: int, pixels: int, halves: int) -> PlaneTiles:
    """Of the input gradient in front of the first block: any rows of all images, `pixels` of a student."""
    few = pixels < 64 * 132
    channels = _part_of(width, 64 if few else 128)
    return PlaneTiles(channels, _part_of(width, 64 if halves == 1 else 32), 1, 64 if few else 128, 4 if few else 8, 3)


def weight(width: int, pixels: int, halves: int) -> WeightTiles:
    """`pixels` of a student, whose sum is split into parts so that the multiprocessors are busy."""
    inputs = _part_of(width, 64)
    outputs = _part_of(width, 64)
    tiles = 3 * (width // inputs) * (width // outputs)
    at_once = 64 if halves == 1 else 32
    parts = max(1, min(264 // tiles, pixels // (4 * at_once)))
    chunk = -(-pixels // (parts * at_once)) * at_once
    return WeightTiles(inputs, outputs, at_once, chunk, 4, 3)
