"""float32 tensors as 16-bit ones, which tensor cores read in either order and at twice the rate of tf32.

fine: a bf16 number and a second one for the rest, 16 bits of mantissa and float32's range. fast: one fp16 number, scaled
so that a student's largest is just below 2^15; its greatest magnitude takes a pass of its own, which is a maximum and so
does not depend on an order. Channels are padded with zeros to `padded`, so that the products need no masks along them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.precision import Precision


class Halves(NamedTuple):
    """A tensor in 16 bits. `low` is what `high` leaves (`high` itself where there is one product); the tensor is
    ``inverse[student]`` times as large (any tensor where nothing is scaled).
    """

    high: Tensor
    low: Tensor
    inverse: Tensor


def padded(channels: int) -> int:
    """Channels as they are stored: 16, 32, or a multiple of 64."""
    return 16 if channels <= 16 else 32 if channels <= 32 else 64 * ceil_div(channels, 64)


@triton.jit
def maximum_kernel(
    a, b, c, d, maxima, a_size, b_size, a_stride, b_stride, c_stride, d_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """maxima[tensor, s, part] = the bits of the greatest magnitude of every parts-th block; c is as a, d as b."""
    part, student, which = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    parts = tl.num_programs(0)
    size = a_size
    stride = a_stride
    if which % 2 == 1:
        a = b
        size = b_size
        stride = b_stride
    if which == 2:
        a = c
        stride = c_stride
    if which == 3:
        a = d
        stride = d_stride
    a += student.to(tl.int64) * stride
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(part * BLOCK, size, parts * BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(a + at, mask=at < size, other=0)
        found = tl.maximum(found, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(maxima + (which * tl.num_programs(1) + student) * parts + part, tl.max(found, axis=0))


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _shift(bits):
    """k with 2^14 <= 2^k x < 2^15 for a float32 x given by its bits; 0 where x is no number, and at most 126."""
    exponent = bits >> 23
    return tl.where(exponent == 255, 0, tl.minimum(141 - exponent, 126))


@triton.jit
def _scale(maxima, tensor, student, PARTS: tl.constexpr):
    """The power of two that the largest magnitude is scaled by, and its inverse."""
    part = tl.load(maxima + (tensor * tl.num_programs(1) + student) * PARTS + tl.arange(0, PARTS))
    k = _shift(tl.max(part, axis=0))
    return _power_of_two(k), _power_of_two(-k)


@triton.jit
def _store_halves(x, high, low, at, keep, scale, FINE: tl.constexpr):
    """Two bf16 numbers, or a scaled one of fp16."""
    if FINE:
        first = x.to(tl.bfloat16)
        tl.store(high + at, first, mask=keep)
        tl.store(low + at, (x - first.to(tl.float32)).to(tl.bfloat16), mask=keep)
    else:
        tl.store(high + at, (x * scale).to(tl.float16), mask=keep)


@triton.jit
def split_kernel(
    x, x2, high, low, inverse, high2, low2, inverse2, maxima, sums, tensor, pixels, C,
    WIDTH: tl.constexpr, SUMS: tl.constexpr, FINE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some pixels and channels of x, or in the second half of the grid of x2; and the sums of x over its pixels."""
    student, second = tl.program_id(1), tl.program_id(2)
    if second == 1:
        x = x2
        high = high2
        low = low2
        inverse = inverse2
    scale = 1.0
    if not FINE:
        scale, back = _scale(maxima, tensor + 2 * second, student, PARTS)
        if tl.program_id(0) == 0:
            tl.store(inverse + student, back)
    across = WIDTH // COLUMNS
    block = tl.program_id(0) // across
    row, c = tl.arange(0, ROWS), (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    first = student.to(tl.int64) * pixels + block * ROWS
    ok = block * ROWS + row < pixels
    value = tl.load(x + first * C + (row * C)[:, None] + c[None, :], mask=ok[:, None] & (c < C)[None, :], other=0)
    at = first * WIDTH + (row * WIDTH)[:, None] + c[None, :]
    _store_halves(value, high, low, at, ok[:, None] & (c < WIDTH)[None, :], scale, FINE)
    if SUMS and second == 0:
        part = student.to(tl.int64) * (tl.num_programs(0) // across) + block
        tl.store(sums + part * C + c, tl.sum(value, axis=0), mask=c < C)


@triton.jit
def pack_kernel(
    w, w2, high, low, inverse, high2, low2, inverse2, maxima, rows, columns, w_stride, w2_stride,
    N: tl.constexpr, K: tl.constexpr, TRANSPOSE: tl.constexpr, FINE: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[s, tap] (N, K) = w[s, :, :, tap] (rows, columns) or its transpose, with zeros around it; and of w2, likewise."""
    student, second = tl.program_id(1), tl.program_id(2)
    if second == 1:
        w = w2
        high = high2
        low = low2
        inverse = inverse2
        w_stride = w2_stride
    scale = 1.0
    if not FINE:
        scale, back = _scale(maxima, 1 + 2 * second, student, PARTS)
        if tl.program_id(0) == 0:
            tl.store(inverse + student, back)
    down = K if TRANSPOSE else N
    wide = N if TRANSPOSE else K
    across = (wide + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // across) * BLOCK + tl.arange(0, BLOCK)
    column = (tl.program_id(0) % across) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    keep = (row < down)[:, None] & (column < wide)[None, :]
    at = (row * columns)[:, None] + column[None, :]
    to = (column * K)[None, :] + row[:, None] if TRANSPOSE else (row * K)[:, None] + column[None, :]
    w += student.to(tl.int64) * w_stride
    for tap in tl.static_range(9):
        value = tl.load(w + at * 9 + tap, mask=inside, other=0)
        out = (student.to(tl.int64) * 9 + tap) * N * K + to
        _store_halves(value, high, low, out, keep, scale, FINE)


def maxima(how: Precision, *tensors: Tensor) -> Tensor | None:
    """The maxima of two or four tensors of each student, the third shaped as the first and the fourth as the second.

    None where the precision needs no scale.
    """
    if how == "fine":
        return None
    a, b, c, d = tensors if len(tensors) == 4 else (*tensors, *tensors)
    students, sizes = a.shape[0], (a[0].numel(), b[0].numel())
    config, parts = tuning.maximum(max(sizes))
    found = a.new_empty((len(tensors), students, parts), dtype=torch.int32)
    strides = (t.stride(0) for t in (a, b, c, d))
    launch(maximum_kernel, (parts, students, len(tensors)), config, a, b, c, d, found, *sizes, *strides)
    return found


def _empty(like: Tensor, shape: tuple[int, ...], how: Precision) -> Halves:
    if how == "fast":
        high = like.new_empty(shape, dtype=torch.float16)
        return Halves(high, high, like.new_empty(shape[0]))
    return Halves(like.new_empty(shape, dtype=torch.bfloat16), like.new_empty(shape, dtype=torch.bfloat16), like)


def split(
    x: Tensor, x2: Tensor | None, how: Precision, found: Tensor | None, tensor: int, *, sums: bool = False
) -> tuple[Halves, Halves, Tensor]:
    """Activations (S, B, H, W, C) as halves (S, pixels, padded C), of x and of x2 (of x again where there is none).

    `found` are the `maxima`, among which x is number `tensor`. With `sums`, x summed over blocks of pixels comes third:
    (S, blocks, C).
    """
    students, channels = x.shape[0], x.shape[4]
    pixels, width = x[0].numel() // channels, padded(channels)
    config = tuning.split(width)
    blocks = ceil_div(pixels, config.blocks["ROWS"])
    out = [_empty(x, (students, pixels, width), how) for _ in range(1 if x2 is None else 2)]
    totals = x.new_empty(students, blocks, channels) if sums else x
    grid = (blocks * (width // config.blocks["COLUMNS"]), students, len(out))
    launch(
        split_kernel, grid, config, x, x if x2 is None else x2, *out[0], *out[-1], x if found is None else found, totals,
        tensor, pixels, channels, WIDTH=width, SUMS=sums, FINE=found is None, PARTS=1 if found is None else found.shape[2],
    )  # fmt: skip
    return out[0], out[-1], totals


def pack(
    w: Tensor, w2: Tensor | None, how: Precision, found: Tensor | None, *, transpose: bool
) -> tuple[Halves, Halves]:
    """Weights (S, Co, Ci, 3, 3) as halves (S, 9, padded Co, padded Ci), or with Co and Ci exchanged."""
    students, rows, columns = w.shape[:3]
    n, k = (padded(columns), padded(rows)) if transpose else (padded(rows), padded(columns))
    out = [_empty(w, (students, 9, n, k), how) for _ in range(1 if w2 is None else 2)]
    other, config = w if w2 is None else w2, tuning.pack()
    block = config.blocks["BLOCK"]
    launch(
        pack_kernel, (ceil_div(n, block) * ceil_div(k, block), students, len(out)), config, w, other, *out[0], *out[-1],
        w if found is None else found, rows, columns, w.stride(0), other.stride(0),
        N=n, K=k, TRANSPOSE=transpose, FINE=found is None, PARTS=1 if found is None else found.shape[2],
    )  # fmt: skip
    return out[0], out[-1]
