"""Gradients by weights: sums over all pixels of a student, in parts, which `params.update_kernel` adds up."""

from __future__ import annotations

import triton
import triton.language as tl

from mct_fast.kernels.planes.common import low_parts


@triton.jit
def _three_taps(
    x, g, pixels, first, last, at_tap, ci, co, H, W, a0, a1, a2,
    C: tl.constexpr, BP: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """a_t[ci, co] += sum over pixels of x[pixel + tap, ci] g[pixel, co], for three taps of a row that share g."""
    ROW: tl.constexpr = HALVES * C
    PRODUCTS: tl.constexpr = 2 * HALVES - 1
    wide = W + 2
    steps = tl.cdiv(last - first, BP)
    for i in range(PRODUCTS * steps):
        at_low, at_low_g = low_parts(i // steps, C, HALVES)
        row = first + (i % steps) * BP + tl.arange(0, BP)
        real = row < pixels
        row = tl.where(real, row, 0)
        corner = ((row // (H * W)) * ((H + 2) * wide) + (row % (H * W)) // W * wide + row % W) * ROW
        b = tl.load(g + (corner + (wide + 1) * ROW + at_low_g)[:, None] + co[None, :], mask=real[:, None], other=0)
        at = x + (corner + at_tap + at_low)[:, None] + ci[None, :]
        a0 = tl.dot(tl.trans(tl.load(at)), b, a0)
        a1 = tl.dot(tl.trans(tl.load(at + ROW)), b, a1)
        a2 = tl.dot(tl.trans(tl.load(at + 2 * ROW)), b, a2)
    return a0, a1, a2


@triton.jit
def weight_grad_kernel(
    x, g, x2, g2, parts, B, H, W, chunk, PAIR: tl.constexpr,
    C: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, BP: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """parts (S, splits, 9, C, C) [tap][ci][co] of x * g (+ x2 * g2): images of H x W pixels; `chunk` pixels a part."""
    split, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    down = tl.program_id(0) % 3
    tile = tl.program_id(0) // 3
    ci = (tile // (C // BO)) * BI + tl.arange(0, BI)
    co = (tile % (C // BO)) * BO + tl.arange(0, BO)
    pixels = B * H * W
    first = split * chunk
    last = tl.minimum(first + chunk, pixels)
    at_tap = down * (W + 2) * HALVES * C
    start = student * B * (H + 2) * (W + 2) * HALVES * C
    a0 = tl.zeros([BI, BO], tl.float32)
    a1 = tl.zeros([BI, BO], tl.float32)
    a2 = tl.zeros([BI, BO], tl.float32)
    a0, a1, a2 = _three_taps(
        x + start, g + start, pixels, first, last, at_tap, ci, co, H, W, a0, a1, a2, C, BP, HALVES
    )  # fmt: skip
    if PAIR:
        a0, a1, a2 = _three_taps(
            x2 + start, g2 + start, pixels, first, last, at_tap, ci, co, H, W, a0, a1, a2, C, BP, HALVES
        )  # fmt: skip
    parts += ((student * tl.num_programs(1) + split) * 9 + down * 3) * C * C
    at = parts + ci[:, None] * C + co[None, :]
    tl.store(at, a0)
    tl.store(at + C * C, a1)
    tl.store(at + 2 * C * C, a2)
