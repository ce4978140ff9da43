"""Parameters in the kernels' order, their halves, and the updates that second stages end with."""

from __future__ import annotations

import triton
import triton.language as tl

from mct_fast.kernels.planes.common import store_halves

BLOCK = tl.constexpr(256)
"""Numbers of a block of parameters; every tensor begins at a multiple of it."""


@triton.jit
def permute_kernel(
    source, index, out, half, source_size, size, scale, C: tl.constexpr, HALVES: tl.constexpr, HALF: tl.constexpr,
    SCALE: tl.constexpr,
):  # fmt: skip
    """out[s, i] = source[s, index[i]] (times scale[s]), 0 where index is -1; with HALF its halves too."""
    student = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    at = tl.load(index + i, mask=inside, other=-1)
    v = tl.load(source + student * source_size + at, mask=at >= 0, other=0)
    if SCALE:
        v *= tl.load(scale + student)
    tl.store(out + student * size + i, v, mask=inside)
    if HALF:
        store_halves(half + student * size * HALVES + (i // C) * (HALVES * C) + i % C, v, inside, C, HALVES)


@triton.jit
def point_kernel(
    origin, end, weights, index, layers, out, half, source_size, size, students, count,
    C: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """out[s, i] = weights[0, s, l] origin[s, j] + weights[1, s, l] end[s, j], and its halves; 0 where j = index[i] is -1.

    layers[i] is the tensor l of the `count` tensors that number i belongs to.
    """
    student = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    at = tl.load(index + i, mask=inside, other=-1)
    layer = student * count + tl.load(layers + i, mask=inside, other=0)
    some = at >= 0
    first = tl.load(weights + layer, mask=some, other=0)
    second = tl.load(weights + students * count + layer, mask=some, other=0)
    v = first * tl.load(origin + student * source_size + at, mask=some, other=0)
    v += second * tl.load(end + student * source_size + at, mask=some, other=0)
    tl.store(out + student * size + i, v, mask=inside)
    store_halves(half + student * size * HALVES + (i // C) * (HALVES * C) + i % C, v, inside, C, HALVES)


@triton.jit
def update_kernel(
    before, arena, table, alpha, tau, after, half, size, C: tl.constexpr, HALVES: tl.constexpr, PARTS: tl.constexpr,
    GRADIENT: tl.constexpr,
):  # fmt: skip
    """after = before - alpha[student] g and its halves, where g = sum of the parts / tau; with GRADIENT after = g.

    table (blocks, 5) int64 says of each block where its first part lies in `arena`, how far the next part and the next
    student lie, how many parts there are, and how many numbers of the block are some. PARTS parts are read at once.
    """
    block, student = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = tl.arange(0, BLOCK)
    first = tl.load(table + block * 5) + student * tl.load(table + block * 5 + 2)
    stride, count = tl.load(table + block * 5 + 1), tl.load(table + block * 5 + 3)
    real = j < tl.load(table + block * 5 + 4)
    total = tl.zeros([BLOCK], tl.float32)
    part = tl.arange(0, PARTS)
    for start in range(0, count, PARTS):
        at = arena + first + (start + part)[:, None] * stride + j[None, :]
        total += tl.sum(tl.load(at, mask=(start + part < count)[:, None] & real[None, :], other=0), axis=0)
    g = total / tl.load(tau + student)
    i = block * BLOCK + j
    if GRADIENT:
        tl.store(after + student * size + i, g)
    else:
        v = tl.load(before + student * size + i) - tl.load(alpha + student) * g
        tl.store(after + student * size + i, v)
        at = half + student * size * HALVES + (i // C) * (HALVES * C) + i % C
        store_halves(at, v, i >= 0, C, HALVES)


@triton.jit
def pixels_kernel(
    gx, position, alpha, sigma, out, steps, n, rows, plane, SIZE: tl.constexpr
):  # fmt: skip
    """out (S, n, values) += -alpha / sigma sum over steps of gx (steps, rows, values)[step, position].

    position (S, steps, n) is the row of an image of the set among the step's images, -1 where it is none of them.
    """
    at = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    image, student = tl.program_id(0), tl.program_id(2)
    inside = at < plane
    total = tl.zeros([SIZE], tl.float32)
    for step in range(steps):
        row = tl.load(position + (student * steps + step) * n + image)
        from_step = (step * rows + tl.maximum(row, 0)).to(tl.int64) * plane
        total += tl.load(gx + from_step + at, mask=inside & (row >= 0), other=0)
    scale = -tl.load(alpha + student) / tl.load(sigma + student)
    here = out + (student * n + image).to(tl.int64) * plane + at
    tl.store(here, tl.load(here, mask=inside, other=0) + scale * total, mask=inside)
