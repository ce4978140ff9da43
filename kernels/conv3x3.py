"""3x3 convolution and its two adjoints as implicit GEMM on tensor cores, S students a launch, pairs in one launch.

Operands are 16-bit numbers (`halves`): activations are converted once a call, weights packed to (tap, output, input), and every
tap then reads them as they lie. Forward and input gradient: rows are pixels, columns output channels, and the sum runs over
taps and input channels. Weight gradient: rows and columns are channels, a program has the three taps of a row, which share the
cotangent; the sum runs over pixels, split over programs in fixed parts whose results are added in order, and the second
product of a pair has parts of its own. Few channels, as in the first layer, have kernels of their own (`conv3x3_few`).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import conv3x3_few, tuning
from mct_fast.kernels.halves import maxima, pack, padded, split
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.precision import Precision, conv_precision
from mct_fast.kernels.tuning import Config, Splits

# -------------------------------------------------------------------------------------------- forward, input gradient


@triton.jit
def _product(acc, a, a_low, b, b_low, FINE: tl.constexpr):
    """acc + a b: three products of pairs, the small ones first, or one."""
    if FINE:
        acc = tl.dot(a, b_low, acc)
        acc = tl.dot(a_low, b, acc)
    return tl.dot(a, b, acc)


@triton.jit
def _seen(first, pixels, H, W, BM: tl.constexpr):
    """Nine bits for each row: whether the tap's pixel exists."""
    p = first + tl.arange(0, BM)
    y, column = (p // W) % H, p % W
    bits = tl.zeros([BM], tl.int32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (p < pixels) & (y + down >= 0) & (y + down < H) & (column + right >= 0) & (column + right < W)
        bits |= inside.to(tl.int32) << tap
    return bits


@triton.jit
def _add_taps(
    acc, x, x_low, w, w_low, bits, n, W,
    SIGN: tl.constexpr, FINE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc (BM, BN) += the nine taps of one convolution; `x` is at the block's first pixel, w is packed (9, N, K)."""
    k = tl.arange(0, BK)
    rows = (tl.arange(0, BM) * K)[:, None] + k[None, :]
    columns = (n * K)[None, :] + k[:, None]
    for step in range(9 * (K // BK)):
        tap = step // (K // BK)
        start = step * BK - tap * K
        ok = ((bits >> (tap if SIGN > 0 else 8 - tap)) & 1) != 0
        at_x = rows + (SIGN * ((tap // 3 - 1) * W + tap % 3 - 1) * K + start)
        at_w = columns + (tap * N * K + start)
        a, b = tl.load(x + at_x, mask=ok[:, None], other=0), tl.load(w + at_w)
        a_low, b_low = a, b
        if FINE:
            a_low, b_low = tl.load(x_low + at_x, mask=ok[:, None], other=0), tl.load(w_low + at_w)
        acc = _product(acc, a, a_low, b, b_low, FINE)
    return acc


@triton.jit
def _unscaled(acc, x_inverse, w_inverse, student, FINE: tl.constexpr):
    return acc if FINE else acc * tl.load(x_inverse + student) * tl.load(w_inverse + student)


@triton.jit
def conv_kernel(
    x, x_low, x_inverse, w, w_low, w_inverse, x2, x2_low, x2_inverse, w2, w2_low, w2_inverse, bias, z,
    pixels, H, W, outputs, bias_stride,
    SIGN: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr, FINE: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z (pixels, outputs) of one student; SIGN 1 looks at x[p + tap], -1 at x[p - tap]."""
    student = tl.program_id(1).to(tl.int64)
    first = (tl.program_id(0) // (N // BN)) * BM
    n = (tl.program_id(0) % (N // BN)) * BN + tl.arange(0, BN)
    bits = _seen(first, pixels, H, W, BM)
    at, packed = (student * pixels + first) * K, student * 9 * N * K
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add_taps(acc, x + at, x_low + at, w + packed, w_low + packed, bits, n, W, SIGN, FINE, N, K, BM, BK)
    total = _unscaled(acc, x_inverse, w_inverse, student, FINE)
    if PAIR:
        acc = total if FINE else tl.zeros([BM, BN], tl.float32)
        acc = _add_taps(acc, x2 + at, x2_low + at, w2 + packed, w2_low + packed, bits, n, W, SIGN, FINE, N, K, BM, BK)
        total = acc if FINE else total + _unscaled(acc, x2_inverse, w2_inverse, student, FINE)
    ok = (n < outputs)[None, :]
    if BIAS:
        total += tl.load(bias + student * bias_stride + n[None, :], mask=ok, other=0)
    to = (tl.arange(0, BM) * outputs)[:, None] + n[None, :]
    inside = (first + tl.arange(0, BM) < pixels)[:, None] & ok
    tl.store(z + (student * pixels + first) * outputs + to, total, mask=inside)


# ------------------------------------------------------------------------------------------------------ weight grad


@triton.jit
def _tap(acc, g, g_low, x, x_low, local, n, y, column, ok, down, right, H, W, FINE: tl.constexpr, CI: tl.constexpr):
    """acc (BM, BN) += g^T x of some pixels, at one tap."""
    seen = ok & (y + down >= 0) & (y + down < H) & (column + right >= 0) & (column + right < W)
    at = ((local + down * W + right) * CI)[:, None] + n[None, :]
    b = tl.load(x + at, mask=seen[:, None], other=0)
    b_low = b
    if FINE:
        b_low = tl.load(x_low + at, mask=seen[:, None], other=0)
    return _product(acc, tl.trans(g), tl.trans(g_low), b, b_low, FINE)


@triton.jit
def weight_grad_kernel(
    g, g_low, g_inverse, x, x_low, x_inverse, g2, g2_low, g2_inverse, x2, x2_low, x2_inverse, parts,
    pixels, chunk, splits, H, W, outputs, inputs,
    FINE: tl.constexpr, CO: tl.constexpr, CI: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A split's share of three taps, parts (S, splits, 9, outputs, inputs); the second product has splits of its own."""
    split, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    part = student * tl.num_programs(1) + split
    if split >= splits:
        split -= splits
        g = g2
        g_low = g2_low
        g_inverse = g2_inverse
        x = x2
        x_low = x2_low
        x_inverse = x2_inverse
    down, tile = tl.program_id(0) % 3 - 1, tl.program_id(0) // 3
    co = (tile // (CI // BN)) * BM + tl.arange(0, BM)
    n = (tile % (CI // BN)) * BN + tl.arange(0, BN)
    begin = split * chunk
    stop = tl.minimum(begin + chunk, pixels)
    first = student * pixels + begin
    left = tl.zeros([BM, BN], tl.float32)
    middle = tl.zeros([BM, BN], tl.float32)
    right = tl.zeros([BM, BN], tl.float32)
    for start in range(0, stop - begin, BK):
        local = start + tl.arange(0, BK)
        p = begin + local
        ok = p < stop
        y, column = (p // W) % H, p % W
        at = first * CO + (local * CO)[:, None] + co[None, :]
        a = tl.load(g + at, mask=ok[:, None], other=0)
        a_low = a
        if FINE:
            a_low = tl.load(g_low + at, mask=ok[:, None], other=0)
        x_at, x_low_at = x + first * CI, x_low + first * CI
        left = _tap(left, a, a_low, x_at, x_low_at, local, n, y, column, ok, down, -1, H, W, FINE, CI)
        middle = _tap(middle, a, a_low, x_at, x_low_at, local, n, y, column, ok, down, 0, H, W, FINE, CI)
        right = _tap(right, a, a_low, x_at, x_low_at, local, n, y, column, ok, down, 1, H, W, FINE, CI)
    parts += (part * 9 + (down + 1) * 3) * outputs * inputs
    to = (co * inputs)[:, None] + n[None, :]
    inside = (co < outputs)[:, None] & (n < inputs)[None, :]
    tl.store(parts + to, _unscaled(left, g_inverse, x_inverse, student, FINE), mask=inside)
    tl.store(parts + outputs * inputs + to, _unscaled(middle, g_inverse, x_inverse, student, FINE), mask=inside)
    tl.store(parts + 2 * outputs * inputs + to, _unscaled(right, g_inverse, x_inverse, student, FINE), mask=inside)


@triton.jit
def _sum_parts(parts, group, count, stride, at, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of `count` rows at parts + group, added in order and in double."""
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & (at < size)[None, :]
        source = group + row.to(tl.int64)[:, None] * stride + at[None, :]
        total += tl.sum(tl.load(parts + source, mask=mask, other=0).to(tl.float64), axis=0)
    return total


@triton.jit
def sum_taps_kernel(
    gw_parts, gb_parts, gw, gb, splits, blocks, pairs, CO, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """gw[s, pair, tap] = sum over splits of gw_parts[s, split, tap, pair], pairs = CO x CI; and gb, as a tenth tap."""
    tap, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    if tap < 9:
        group = (student * splits * 9 + tap) * pairs
        total = _sum_parts(gw_parts, group, splits, 9 * pairs, at, pairs, ROWS, COLUMNS)
        tl.store(gw + (student * pairs + at) * 9 + tap, total, mask=at < pairs)
    else:
        total = _sum_parts(gb_parts, student * blocks * CO, blocks, CO, at, CO, ROWS, COLUMNS)
        tl.store(gb + student * CO + at, total, mask=at < CO)


# -------------------------------------------------------------------------------------------------------- launchers


def conv3x3(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    x2: Tensor | None = None,
    w2: Tensor | None = None,
    *,
    precision: Precision | None = None,
) -> Tensor:
    """As `mct_fast.ops.conv3x3`; `precision` as `mct_fast.kernels.precision` describes, None to follow PyTorch."""
    if x.shape[4] < conv3x3_few.FEW:
        return conv3x3_few.conv3x3(x, w, bias, x2, w2)
    z = x.new_empty(*x.shape[:4], w.shape[1])
    _implicit_gemm(x, w, x2, w2, bias, z, 1, precision or conv_precision())
    return z


def conv3x3_input_grad(
    g: Tensor, w: Tensor, g2: Tensor | None = None, w2: Tensor | None = None, *, precision: Precision | None = None
) -> Tensor:
    """As `mct_fast.ops.conv3x3_input_grad`; `precision` as in `conv3x3`."""
    if 9 * w.shape[2] <= conv3x3_few.COLUMNS:
        return conv3x3_few.conv3x3_input_grad(g, w, g2, w2)
    gx = g.new_empty(*g.shape[:4], w.shape[2])
    _implicit_gemm(g, w, g2, w2, None, gx, -1, precision or conv_precision())
    return gx


def _implicit_gemm(
    x: Tensor,
    w: Tensor,
    x2: Tensor | None,
    w2: Tensor | None,
    bias: Tensor | None,
    z: Tensor,
    sign: int,
    how: Precision,
) -> None:
    """Write the convolution of x by w (sign 1), or its adjoint (sign -1), into z."""
    students, batch, height, width, inputs = x.shape
    outputs, pixels = z.shape[4], batch * height * width
    found = maxima(how, x, w) if x2 is None or w2 is None else maxima(how, x, w, x2, w2)
    halves, halves2, _ = split(x, x2, how, found, 0)
    packed, packed2 = pack(w, w2, how, found, transpose=sign < 0)
    b, n, k = w if bias is None else bias, padded(outputs), padded(inputs)

    def run(config: Config) -> None:
        grid = (ceil_div(pixels, config.blocks["BM"]) * (n // config.blocks["BN"]), students)
        launch(
            conv_kernel, grid, config, *halves, *packed, *halves2, *packed2, b, z, pixels, height, width, outputs,
            b.stride(0), SIGN=sign, PAIR=x2 is not None, BIAS=bias is not None, FINE=how == "fine", N=n, K=k,
        )  # fmt: skip

    key = ("conv", sign, *x.shape[1:], outputs, x2 is not None, how)
    tuning.run_best(key, tuning.conv(pixels, n, k, how), run)


def conv3x3_weight_grad(
    g: Tensor, x: Tensor, g2: Tensor | None = None, x2: Tensor | None = None, *, precision: Precision | None = None
) -> tuple[Tensor, Tensor]:
    """As `mct_fast.ops.conv3x3_weight_grad`; `precision` as in `conv3x3`."""
    if x.shape[4] < conv3x3_few.FEW:
        return conv3x3_few.conv3x3_weight_grad(g, x, g2, x2)
    students, batch, height, width, outputs = g.shape
    inputs, pixels, how = x.shape[4], batch * height * width, precision or conv_precision()
    gw, gb = g.new_empty(students, outputs, inputs, 3, 3), g.new_empty(students, outputs)
    found = maxima(how, g, x) if g2 is None or x2 is None else maxima(how, g, x, g2, x2)
    halves_g, halves_g2, gb_parts = split(g, g2, how, found, 0, sums=True)
    halves_x, halves_x2, _ = split(x, x2, how, found, 1)
    co, ci, products = padded(outputs), padded(inputs), 1 if g2 is None else 2

    def run(part: Splits) -> None:
        blocks = part.config.blocks
        splits = ceil_div(pixels, part.chunk)
        gw_parts = g.new_empty(students, products * splits, 9 * outputs * inputs)
        tiles = 3 * (co // blocks["BM"]) * (ci // blocks["BN"])
        launch(
            weight_grad_kernel, (tiles, products * splits, students), part.config, *halves_g, *halves_x, *halves_g2,
            *halves_x2, gw_parts, pixels, part.chunk, splits, height, width, outputs, inputs,
            FINE=how == "fine", CO=co, CI=ci,
        )  # fmt: skip
        config = tuning.taps(products * splits)
        grid = (ceil_div(outputs * inputs, config.blocks["COLUMNS"]), 10, students)
        launch(
            sum_taps_kernel, grid, config, gw_parts, gb_parts, gw, gb, products * splits, gb_parts.shape[1],
            outputs * inputs, outputs,
        )  # fmt: skip

    key = ("weight_grad", *x.shape[1:], outputs, g2 is not None, how)
    tuning.run_best(key, tuning.weight_grad(pixels, co, ci, products, how), run)
    return gw, gb
