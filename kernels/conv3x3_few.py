"""The 3x3 convolution of few channels, as in the first layer, and its adjoints: window and channels are one dimension.

Nine taps of three channels would fill a sixteenth of a step of `conv3x3`; here the sum of the forward, and the columns of the
weight gradient, run over 9 Ci = 27 of them in the weights' own order. The input gradient of up to three channels is one
product to 9 Ci columns a pixel, and each pixel then gathers its nine. Memory binds these kernels, so they always take three
products of bf16 pairs, made in registers: no scale is needed, and nothing is packed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.reduce import sum_rows

FEW = 16
"""Below this many input channels, window and channels are one dimension."""

COLUMNS = 32
"""Up to this many columns (9 Ci), the input gradient is a product with a gather behind it."""


@triton.jit
def _product(acc, a, b):
    """acc + a b, each as a sum of two bf16 numbers, the small products first."""
    a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
    a_low, b_low = (a - a_high.to(tl.float32)).to(tl.bfloat16), (b - b_high.to(tl.float32)).to(tl.bfloat16)
    acc = tl.dot(a_high, b_low, acc)
    acc = tl.dot(a_low, b_high, acc)
    return tl.dot(a_high, b_high, acc)


@triton.jit
def _add_window(
    acc, x, w, y, column, ok, n, H, W, CI: tl.constexpr, N, BM: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """acc += one convolution of few channels; the sum runs over k = 9 channel + tap, as w (N, 9 CI) lies."""
    local = tl.arange(0, BM)
    for start in tl.static_range(0, 9 * CI, BK):
        k = start + tl.arange(0, BK)
        tap = k % 9
        down, right = tap // 3 - 1, tap % 3 - 1
        row, across = y[:, None] + down[None, :], column[:, None] + right[None, :]
        inside = ok[:, None] & (k < 9 * CI)[None, :] & (row >= 0) & (row < H) & (across >= 0) & (across < W)
        at = (local * CI)[:, None] + ((down * W + right) * CI + k // 9)[None, :]
        a = tl.load(x + at, mask=inside, other=0)
        b = tl.load(w + (n * 9 * CI)[None, :] + k[:, None], mask=(n < N)[None, :] & (k < 9 * CI)[:, None], other=0)
        acc = _product(acc, a, b)
    return acc


@triton.jit
def conv_few_kernel(
    x, w, x2, w2, bias, z, pixels, H, W, N, w_stride, w2_stride, bias_stride,
    CI: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z (pixels, N) of one student from few channels; the weights are unpacked."""
    student = tl.program_id(1).to(tl.int64)
    across = (N + BN - 1) // BN
    first = (tl.program_id(0) // across) * BM
    p = first + tl.arange(0, BM)
    n = (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    y, column = (p // W) % H, p % W
    start = student * pixels + first
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add_window(acc, x + start * CI, w + student * w_stride, y, column, p < pixels, n, H, W, CI, N, BM, BK)
    if PAIR:
        acc = _add_window(acc, x2 + start * CI, w2 + student * w2_stride, y, column, p < pixels, n, H, W, CI, N, BM, BK)
    if BIAS:
        acc += tl.load(bias + student * bias_stride + n, mask=n < N, other=0)[None, :]
    at = (tl.arange(0, BM) * N)[:, None] + n[None, :]
    tl.store(z + start * N + at, acc, mask=(p < pixels)[:, None] & (n < N)[None, :])


@triton.jit
def _add_columns(acc, g, w, ok, n, N, K, BM: tl.constexpr, BK: tl.constexpr):
    """acc += g (BM, K) w (K, N)."""
    local = tl.arange(0, BM)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(g + (local * K)[:, None] + k[None, :], mask=ok[:, None] & (k < K)[None, :], other=0)
        b = tl.load(w + (k * N)[:, None] + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0)
        acc = _product(acc, a, b)
    return acc


@triton.jit
def columns_kernel(
    g, w, g2, w2, out, pixels, K, N, w_stride, w2_stride,
    PAIR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (pixels, N = 9 Ci) = g w [+ g2 w2]: what each pixel of g gives to its nine neighbours."""
    student = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BM
    ok = first + tl.arange(0, BM) < pixels
    n = tl.arange(0, BN)
    start = student * pixels + first
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add_columns(acc, g + start * K, w + student * w_stride, ok, n, N, K, BM, BK)
    if PAIR:
        acc = _add_columns(acc, g2 + start * K, w2 + student * w2_stride, ok, n, N, K, BM, BK)
    at = (tl.arange(0, BM) * N)[:, None] + n[None, :]
    tl.store(out + start * N + at, acc, mask=ok[:, None] & (n < N)[None, :])


@triton.jit
def gather_kernel(columns, gx, pixels, H, W, CI: tl.constexpr, BLOCK: tl.constexpr):
    """gx[p, ci] = sum over taps of columns[p - tap, 9 ci + tap]."""
    student = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    p, ci = at // CI, at % CI
    y, x = (p // W) % H, p % W
    total = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (p < pixels) & (y - down >= 0) & (y - down < H) & (x - right >= 0) & (x - right < W)
        source = (student * pixels + p - down * W - right) * (9 * CI) + ci * 9 + tap
        total += tl.load(columns + source, mask=inside, other=0)
    tl.store(gx + student * pixels * CI + at, total, mask=p < pixels)


@triton.jit
def _add_pixels(
    acc, bias, g, x, begin, stop, co, n, H, W, CO, CI, BIAS: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """acc (BM, BN) += the products of some pixels; bias (BK, BM) += g."""
    g += begin.to(tl.int64) * CO
    x += begin.to(tl.int64) * CI
    for start in range(0, stop - begin, BK):
        local = start + tl.arange(0, BK)
        p = begin + local
        y, column = (p // W) % H, p % W
        mask = (p < stop)[:, None] & (co < CO)[None, :]
        a = tl.load(g + (local * CO)[:, None] + co[None, :], mask=mask, other=0)
        down, right = n % 9 // 3 - 1, n % 3 - 1
        row, across = y[:, None] + down[None, :], column[:, None] + right[None, :]
        inside = (p < stop)[:, None] & (n < 9 * CI)[None, :] & (row >= 0) & (row < H) & (across >= 0) & (across < W)
        at = (local * CI)[:, None] + ((down * W + right) * CI + n // 9)[None, :]
        acc = _product(acc, tl.trans(a), tl.load(x + at, mask=inside, other=0))
        if BIAS:
            bias += a
    return acc, bias


@triton.jit
def weight_grad_few_kernel(
    g, x, g2, x2, gw, gb, pixels, chunk, H, W, CO, CI,
    PAIR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """This split's share of gw (S, splits, CO, 9 CI) and of gb (S, splits, CO)."""
    split, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    across = (9 * CI + BN - 1) // BN
    co = (tl.program_id(0) // across) * BM + tl.arange(0, BM)
    n = (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    begin = split * chunk
    stop = tl.minimum(begin + chunk, pixels)
    acc = tl.zeros([BM, BN], tl.float32)
    bias = tl.zeros([BK, BM], tl.float32)
    at_g, at_x = student * pixels * CO, student * pixels * CI
    acc, bias = _add_pixels(acc, bias, g + at_g, x + at_x, begin, stop, co, n, H, W, CO, CI, True, BK)
    if PAIR:
        acc, bias = _add_pixels(acc, bias, g2 + at_g, x2 + at_x, begin, stop, co, n, H, W, CO, CI, False, BK)
    part = student * tl.num_programs(1) + split
    to = (co * 9 * CI)[:, None] + n[None, :]
    tl.store(gw + part * CO * 9 * CI + to, acc, mask=(co < CO)[:, None] & (n < 9 * CI)[None, :])
    if tl.program_id(0) % across == 0:  # of the programs that see this part of g, the one that sums it
        tl.store(gb + part * CO + co, tl.sum(bias, axis=0), mask=co < CO)


def conv3x3(x: Tensor, w: Tensor, bias: Tensor | None, x2: Tensor | None, w2: Tensor | None) -> Tensor:
    """As `mct_fast.ops.conv3x3`, for less than `FEW` input channels."""
    students, batch, height, width, inputs = x.shape
    outputs, pixels = w.shape[1], batch * height * width
    z = x.new_empty(students, batch, height, width, outputs)
    config = tuning.conv_few(pixels, outputs)
    other_x, other_w, b = _or(x2, x), _or(w2, w), _or(bias, w)
    grid = (ceil_div(pixels, config.blocks["BM"]) * ceil_div(outputs, config.blocks["BN"]), students)
    launch(
        conv_few_kernel, grid, config, x, w, other_x, other_w, b, z, pixels, height, width, outputs,
        w.stride(0), other_w.stride(0), b.stride(0), CI=inputs, PAIR=x2 is not None, BIAS=bias is not None,
    )  # fmt: skip
    return z


def conv3x3_input_grad(g: Tensor, w: Tensor, g2: Tensor | None, w2: Tensor | None) -> Tensor:
    """As `mct_fast.ops.conv3x3_input_grad`, for at most `COLUMNS` of them."""
    students, batch, height, width, outputs = g.shape
    inputs, pixels = w.shape[2], batch * height * width
    gx = g.new_empty(students, batch, height, width, inputs)
    parts = g.new_empty(students, pixels, 9 * inputs)
    other_g, other_w = _or(g2, g), _or(w2, w)
    config = tuning.columns(pixels, outputs, 9 * inputs)
    launch(
        columns_kernel, (ceil_div(pixels, config.blocks["BM"]), students), config, g, w, other_g, other_w, parts, pixels,
        outputs, 9 * inputs, w.stride(0), other_w.stride(0), PAIR=g2 is not None,
    )  # fmt: skip
    config = tuning.flat(pixels * inputs)
    grid = (ceil_div(pixels * inputs, config.blocks["BLOCK"]), students)
    launch(gather_kernel, grid, config, parts, gx, pixels, height, width, CI=inputs)
    return gx


def conv3x3_weight_grad(g: Tensor, x: Tensor, g2: Tensor | None, x2: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `mct_fast.ops.conv3x3_weight_grad`, for less than `FEW` input channels."""
    students, batch, height, width, outputs = g.shape
    inputs, pixels = x.shape[4], batch * height * width
    part = tuning.weight_grad_few(pixels, outputs, 9 * inputs)
    blocks, splits = part.config.blocks, ceil_div(pixels, part.chunk)
    gw, gb = g.new_empty(students, outputs, inputs, 3, 3), g.new_empty(students, outputs)
    gw_parts, gb_parts = g.new_empty(students, splits, outputs * 9 * inputs), g.new_empty(students, splits, outputs)
    tiles = ceil_div(outputs, blocks["BM"]) * ceil_div(9 * inputs, blocks["BN"])
    launch(
        weight_grad_few_kernel, (tiles, splits, students), part.config, g, x, _or(g2, g), _or(x2, x), gw_parts, gb_parts,
        pixels, part.chunk, height, width, outputs, inputs, PAIR=g2 is not None,
    )  # fmt: skip
    sum_rows(gw_parts, gw.view(students, outputs * 9 * inputs), gb_parts, gb)
    return gw, gb


def _or(t: Tensor | None, other: Tensor) -> Tensor:
    """`t`, or any tensor for a pointer that the kernel does not touch."""
    return other if t is None else t
