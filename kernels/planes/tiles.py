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
class Tiles:
    """How a kernel shares channels.

    Attributes:
        channels: BC, of a program.
        warps, stages: as Triton has them.
        depth: BK, channels that a product sums at once.
        rows: pixels of a product; for kernels with whole planes, a power of two that holds the pooled plane.
    """

    channels: int
    warps: int
    stages: int = 3
    depth: int = 0
    rows: int = 0


@dataclass(frozen=True)
class WeightTiles:
    """Of a weight gradient: BI x BO channels, BP pixels at once, `chunk` pixels a part."""

    inputs: int
    outputs: int
    pixels: int
    chunk: int
    warps: int
    stages: int


SHARED_BYTES = 160 << 10
"""Of a program's shared memory, of which an sm_80 has 163 KiB; what does not fit takes a smaller step."""

FEW = 32
"""Images of a student below which a plane is shared by as many programs as can be."""


def _rows(pooled: int) -> int:
    return max(16, _power_of_two(pooled))


def _depth(width: int, rows: int, channels: int, stages: int, most: int) -> int:
    """The longest step that fits: `rows` of pixels and `channels` of weights, for each stage."""
    depth = _part_of(width, most)
    while depth > 16 and stages * (rows + channels) * depth * 2 > SHARED_BYTES:
        depth //= 2
    return depth


def convolution(width: int, pooled: int, batch: int) -> Tiles:
    """Of a block and its tangent, which hold four accumulators of rows x channels: one a quad."""
    rows = _rows(pooled)
    if batch < FEW:
        channels, warps, most = (16, 4, 64) if rows >= 64 else (32, 4, 64)
    else:
        channels, warps, most = (64, 8, 64) if rows >= 64 else (128, 4, 128)
    while channels > 16 and rows * channels > 64 * 64:
        channels //= 2
    channels = _part_of(width, channels)
    if rows * channels >= 64 * 64:
        warps = 8
    stages = 3 if rows < 256 else 2
    return Tiles(channels, warps, stages, _depth(width, 4 * rows, channels, stages, most), rows)


def transposed(width: int, pooled: int, batch: int, halves: int, tangent: bool) -> Tiles:
    """Of the way back through a convolution and a block."""
    rows = _rows(pooled)
    channels = 16 if batch < FEW and rows >= 64 else 64 if halves == 1 else 32
    while channels > 16 and rows * channels > 64 * 64:
        channels //= 2
    channels = _part_of(width, channels)
    warps = 8 if tangent and rows * channels >= 64 * 64 else 4
    return Tiles(channels, warps, 3, _depth(width, rows, channels, 3, 64), rows)


def top(width: int, pooled: int, batch: int) -> Tiles:
    """Of the way back through the classifier and the last block's norm."""
    return Tiles(_part_of(width, 16 if batch < FEW else 32), 4, 3, 0, _rows(pooled))


def first(width: int, batch: int, halves: int, forward: bool = False) -> Tiles:
    """Of the first block, whose planes are walked in tiles of 64 pooled pixels; pairs take twice the registers."""
    return Tiles(_part_of(width, 16 if batch < FEW or halves == 2 else 64 if forward else 32), 4)


def input_grad(width: int, pixels: int) -> Tiles:
    """Of the input gradient in front of the first block: any rows of all images, `pixels` of a student."""
    rows, most, warps = (64, 64, 4) if pixels < 64 * 132 else (128, 128, 8)
    channels = _part_of(width, most)
    return Tiles(channels, warps, 3, _depth(width, rows, channels, 3, 64), rows)


def weight(width: int, pixels: int) -> WeightTiles:
    """`pixels` of a student, whose sum is split into parts so that the multiprocessors are busy."""
    channels = _part_of(width, 64)
    programs = 3 * (width // channels) ** 2
    at_once = 64
    parts = max(1, min(264 // programs, pixels // (2 * at_once)))
    chunk = -(-pixels // (parts * at_once)) * at_once
    return WeightTiles(channels, channels, at_once, chunk, 4, 3)
