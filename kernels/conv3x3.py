"""3x3 convolution and its two adjoints as implicit GEMM on tensor cores, S students a launch, pairs summed in one kernel.

Forward and input gradient: rows are pixels, columns output channels, and the sum runs over taps and input channels (two
such sums for a pair). Their weights are first packed to (tap, output, input), so that both factors of every product lie
along the sum. Weight gradient: rows and columns are channels, a program for each tap, the sum runs over pixels; the pixels
are split over programs in fixed parts, whose results are added in order.

Few channels (`FEW`), as in the first layer, would fill a sixteenth of a step: there window and channels are one
dimension of 9 Ci, in the weights' own order. The input gradient of up to three channels is one product to 9 Ci columns a
pixel, and each pixel then gathers its nine.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.precision import Precision, float32_precision
from mct_fast.kernels.reduce import sum_rows
from mct_fast.kernels.tuning import Config, Splits

FEW = 16
"""Below this many input channels, window and channels are one dimension."""

COLUMNS = 32
"""Up to this many columns (9 Ci), the input gradient is a product with a gather behind it."""

# -------------------------------------------------------------------------------------------- forward, input gradient


@triton.jit
def pack_kernel(
    w, w2, out, out2, rows, columns, w_stride, w2_stride, TRANSPOSE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out[s, tap] = w[s, :, :, tap] (rows, columns), or its transpose; in the second half of the grid, w2's."""
    student = tl.program_id(1).to(tl.int64)
    if tl.program_id(2) == 1:
        w = w2
        out = out2
        w_stride = w2_stride
    across = (columns + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // across) * BLOCK + tl.arange(0, BLOCK)
    column = (tl.program_id(0) % across) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = (row * columns)[:, None] + column[None, :]
    to = (column * rows)[None, :] + row[:, None] if TRANSPOSE else at
    for tap in tl.static_range(9):
        value = tl.load(w + student * w_stride + at * 9 + tap, mask=inside)
        tl.store(out + (student * 9 + tap) * rows * columns + to, value, mask=inside)


@triton.jit
def _add_taps(
    acc, x, w, first, y, column, ok, n, H, W, K, N,
    SIGN: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc (BM, BN) += the nine taps of one convolution; `x` is at the block's first pixel, w is packed (9, N, K)."""
    steps = (K + BK - 1) // BK
    local = tl.arange(0, BM)
    for step in range(9 * steps):
        tap = step // steps
        k = (step % steps) * BK + tl.arange(0, BK)
        down = SIGN * (tap // 3 - 1)
        right = SIGN * (tap % 3 - 1)
        inside = ok & (y + down >= 0) & (y + down < H) & (column + right >= 0) & (column + right < W)
        mask_x = inside[:, None]
        mask_w = (n < N)[None, :]
        if not EVEN:
            mask_x = mask_x & (k < K)[None, :]
            mask_w = mask_w & (k < K)[:, None]
        a = tl.load(x + ((local + down * W + right) * K)[:, None] + k[None, :], mask=mask_x, other=0)
        b = tl.load(w + ((tap * N + n) * K)[None, :] + k[:, None], mask=mask_w, other=0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def conv_kernel(
    x, w, x2, w2, bias, z, pixels, H, W, K, N, bias_stride,
    SIGN: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """z (pixels, N) of one student; SIGN 1 looks at x[p + tap], -1 at x[p - tap]."""
    student = tl.program_id(1).to(tl.int64)
    across = (N + BN - 1) // BN
    first = (tl.program_id(0) // across) * BM
    p = first + tl.arange(0, BM)
    n = (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    y, column = (p // W) % H, p % W
    start = student * pixels + first
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add_taps(
        acc, x + start * K, w + student * 9 * N * K, first, y, column, p < pixels, n, H, W, K, N,
        SIGN, EVEN, PRECISION, BM, BK,
    )  # fmt: skip
    if PAIR:
        acc = _add_taps(
            acc, x2 + start * K, w2 + student * 9 * N * K, first, y, column, p < pixels, n, H, W, K, N,
            SIGN, EVEN, PRECISION, BM, BK,
        )  # fmt: skip
    if BIAS:
        acc += tl.load(bias + student * bias_stride + n, mask=n < N, other=0)[None, :]
    at = (tl.arange(0, BM) * N)[:, None] + n[None, :]
    tl.store(z + start * N + at, acc, mask=(p < pixels)[:, None] & (n < N)[None, :])


@triton.jit
def _add_window(
    acc, x, w, y, column, ok, n, H, W, CI: tl.constexpr, N, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr
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
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def conv_few_kernel(
    x, w, x2, w2, bias, z, pixels, H, W, N, w_stride, w2_stride, bias_stride,
    CI: tl.constexpr, PAIR: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
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
    acc = _add_window(
        acc, x + start * CI, w + student * w_stride, y, column, p < pixels, n, H, W, CI, N, PRECISION, BM, BK
    )
    if PAIR:
        acc = _add_window(
            acc, x2 + start * CI, w2 + student * w2_stride, y, column, p < pixels, n, H, W, CI, N, PRECISION, BM, BK
        )
    if BIAS:
        acc += tl.load(bias + student * bias_stride + n, mask=n < N, other=0)[None, :]
    at = (tl.arange(0, BM) * N)[:, None] + n[None, :]
    tl.store(z + start * N + at, acc, mask=(p < pixels)[:, None] & (n < N)[None, :])


@triton.jit
def _add_columns(acc, g, w, ok, n, N, K, PRECISION: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """acc += g (BM, K) w (K, N)."""
    local = tl.arange(0, BM)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(g + (local * K)[:, None] + k[None, :], mask=ok[:, None] & (k < K)[None, :], other=0)
        b = tl.load(w + (k * N)[:, None] + n[None, :], mask=(k < K)[:, None] & (n < N)[None, :], other=0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def columns_kernel(
    g, w, g2, w2, out, pixels, K, N, w_stride, w2_stride,
    PAIR: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out (pixels, N = 9 Ci) = g w [+ g2 w2]: what each pixel of g gives to its nine neighbours."""
    student = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BM
    ok = first + tl.arange(0, BM) < pixels
    n = tl.arange(0, BN)
    start = student * pixels + first
    acc = tl.zeros([BM, BN], tl.float32)
    acc = _add_columns(acc, g + start * K, w + student * w_stride, ok, n, N, K, PRECISION, BM, BK)
    if PAIR:
        acc = _add_columns(acc, g2 + start * K, w2 + student * w2_stride, ok, n, N, K, PRECISION, BM, BK)
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


# ------------------------------------------------------------------------------------------------------ weight grad


@triton.jit
def _add_pixels(
    acc, bias, g, x, begin, stop, co, n, H, W, CO, CI, tap, flag,
    FEW_CHANNELS: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """acc (BM, BN) += the products of some pixels; bias (BK, BM) += flag g."""
    g += begin.to(tl.int64) * CO
    x += begin.to(tl.int64) * CI
    for start in range(0, stop - begin, BK):
        local = start + tl.arange(0, BK)
        p = begin + local
        y, column = (p // W) % H, p % W
        mask = (p < stop)[:, None] & (co < CO)[None, :]
        a = tl.load(g + (local * CO)[:, None] + co[None, :], mask=mask, other=0)
        if FEW_CHANNELS:
            window = n % 9
            down, right = window // 3 - 1, window % 3 - 1
            row, across = y[:, None] + down[None, :], column[:, None] + right[None, :]
            inside = (p < stop)[:, None] & (n < 9 * CI)[None, :] & (row >= 0) & (row < H) & (across >= 0) & (across < W)
            at = (local * CI)[:, None] + ((down * W + right) * CI + n // 9)[None, :]
        else:
            down, right = tap // 3 - 1, tap % 3 - 1
            seen = (p < stop) & (y + down >= 0) & (y + down < H) & (column + right >= 0) & (column + right < W)
            inside = seen[:, None] & (n < CI)[None, :]
            at = ((local + down * W + right) * CI)[:, None] + n[None, :]
        b = tl.load(x + at, mask=inside, other=0)
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        if BIAS:
            bias += flag * a
    return acc, bias


@triton.jit
def weight_grad_kernel(
    g, x, g2, x2, gw, gb, pixels, chunk, H, W, CO, CI,
    FEW_CHANNELS: tl.constexpr, PAIR: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """This split's share of gw, (S, splits, taps, CO, CI) or with few channels (S, splits, CO, 9 CI), and gb (S, splits, CO)."""
    split, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    taps = 1 if FEW_CHANNELS else 9
    columns = 9 * CI if FEW_CHANNELS else CI
    tap = tl.program_id(0) % taps
    across = (columns + BN - 1) // BN
    tile = tl.program_id(0) // taps
    co = (tile // across) * BM + tl.arange(0, BM)
    n = (tile % across) * BN + tl.arange(0, BN)
    begin = split * chunk
    stop = tl.minimum(begin + chunk, pixels)
    mine = (tap == 0) & (tile % across == 0)  # of the programs that see this part of g, the one that sums it
    acc = tl.zeros([BM, BN], tl.float32)
    bias = tl.zeros([BK, BM], tl.float32)
    acc, bias = _add_pixels(
        acc, bias, g + student * pixels * CO, x + student * pixels * CI, begin, stop, co, n, H, W, CO, CI, tap,
        mine.to(tl.float32), FEW_CHANNELS, True, PRECISION, BK,
    )  # fmt: skip
    if PAIR:
        acc, bias = _add_pixels(
            acc, bias, g2 + student * pixels * CO, x2 + student * pixels * CI, begin, stop, co, n, H, W, CO, CI, tap,
            0.0, FEW_CHANNELS, False, PRECISION, BK,
        )  # fmt: skip
    part = student * tl.num_programs(1) + split
    at = (co * columns)[:, None] + n[None, :]
    gw += (part * taps + tap) * CO * columns
    tl.store(gw + at, acc, mask=(co < CO)[:, None] & (n < columns)[None, :])
    if mine:
        tl.store(gb + part * CO + co, tl.sum(bias, axis=0), mask=co < CO)


@triton.jit
def sum_taps_kernel(
    gw_parts, gb_parts, gw, gb, splits, pairs, CO, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """gw[s, pair, tap] = sum over splits of gw_parts[s, split, tap, pair], pairs = CO x CI; and gb, as a tenth tap."""
    tap, student = tl.program_id(1), tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float64)
    if tap < 9:
        for start in range(0, splits, ROWS):
            split = start + tl.arange(0, ROWS)
            source = (((student * splits + split) * 9 + tap) * pairs)[:, None] + at[None, :]
            mask = (split < splits)[:, None] & (at < pairs)[None, :]
            total += tl.sum(tl.load(gw_parts + source, mask=mask, other=0).to(tl.float64), axis=0)
        tl.store(gw + (student * pairs + at) * 9 + tap, total, mask=at < pairs)
    else:
        for start in range(0, splits, ROWS):
            split = start + tl.arange(0, ROWS)
            source = ((student * splits + split) * CO)[:, None] + at[None, :]
            mask = (split < splits)[:, None] & (at < CO)[None, :]
            total += tl.sum(tl.load(gb_parts + source, mask=mask, other=0).to(tl.float64), axis=0)
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
    students, batch, height, width, inputs = x.shape
    outputs = w.shape[1]
    z = x.new_empty(students, batch, height, width, outputs)
    if inputs >= FEW:
        _implicit_gemm(x, w, x2, w2, bias, z, 1, precision)
        return z
    pixels = batch * height * width
    how = precision or float32_precision()
    config = tuning.conv_few(pixels, outputs, 9 * inputs, how)
    other_x, other_w, b = _or(x2, x), _or(w2, w), _or(bias, w)
    grid = (ceil_div(pixels, config.blocks["BM"]) * ceil_div(outputs, config.blocks["BN"]), students)
    launch(
        conv_few_kernel, grid, config, x, w, other_x, other_w, b, z, pixels, height, width, outputs,
        w.stride(0), other_w.stride(0), b.stride(0),
        CI=inputs, PAIR=x2 is not None, BIAS=bias is not None, PRECISION=how,
    )  # fmt: skip
    return z


def conv3x3_input_grad(
    g: Tensor, w: Tensor, g2: Tensor | None = None, w2: Tensor | None = None, *, precision: Precision | None = None
) -> Tensor:
    """As `mct_fast.ops.conv3x3_input_grad`; `precision` as in `conv3x3`."""
    students, batch, height, width, outputs = g.shape
    inputs = w.shape[2]
    gx = g.new_empty(students, batch, height, width, inputs)
    if 9 * inputs > COLUMNS:
        _implicit_gemm(g, w, g2, w2, None, gx, -1, precision)
        return gx
    pixels, columns = batch * height * width, 9 * inputs
    parts = g.new_empty(students, pixels, columns)
    other_g, other_w = _or(g2, g), _or(w2, w)
    how = precision or float32_precision()
    config = tuning.columns(pixels, outputs, columns, how)
    launch(
        columns_kernel, (ceil_div(pixels, config.blocks["BM"]), students), config, g, w, other_g, other_w, parts, pixels,
        outputs, columns, w.stride(0), other_w.stride(0),
        PAIR=g2 is not None, PRECISION=how,
    )  # fmt: skip
    config = tuning.flat(pixels * inputs)
    grid = (ceil_div(pixels * inputs, config.blocks["BLOCK"]), students)
    launch(gather_kernel, grid, config, parts, gx, pixels, height, width, CI=inputs)
    return gx


def _implicit_gemm(
    x: Tensor, w: Tensor, x2: Tensor | None, w2: Tensor | None, bias: Tensor | None, z: Tensor, sign: int,
    precision: Precision | None,
) -> None:  # fmt: skip
    """Write the convolution of x by w (sign 1), or its adjoint (sign -1), into z."""
    students, batch, height, width, k = x.shape
    n, pixels = z.shape[4], batch * height * width
    packed = [x.new_empty(students, 9, n, k) for _ in range(1 if w2 is None else 2)]
    other_w = _or(w2, w)
    config = tuning.pack()
    block = config.blocks["BLOCK"]
    rows, columns = w.shape[1:3]
    grid = (ceil_div(rows, block) * ceil_div(columns, block), students, len(packed))
    launch(
        pack_kernel, grid, config, w, other_w, packed[0], packed[-1], rows, columns, w.stride(0), other_w.stride(0),
        TRANSPOSE=sign < 0,
    )  # fmt: skip
    how, b, other_x = precision or float32_precision(), _or(bias, w), _or(x2, x)

    def run(config: Config) -> None:
        grid = (ceil_div(pixels, config.blocks["BM"]) * ceil_div(n, config.blocks["BN"]), students)
        launch(
            conv_kernel, grid, config, x, packed[0], other_x, packed[-1], b, z, pixels, height, width, k, n, b.stride(0),
            SIGN=sign, PAIR=x2 is not None, BIAS=bias is not None, EVEN=k % config.blocks["BK"] == 0, PRECISION=how,
        )  # fmt: skip

    key = ("conv", sign, *x.shape, n, x2 is not None, how)
    tuning.run_best(key, tuning.conv(pixels, n, k, how), run)


def conv3x3_weight_grad(
    g: Tensor, x: Tensor, g2: Tensor | None = None, x2: Tensor | None = None, *, precision: Precision | None = None
) -> tuple[Tensor, Tensor]:
    """As `mct_fast.ops.conv3x3_weight_grad`; `precision` as in `conv3x3`."""
    students, batch, height, width, outputs = g.shape
    inputs, pixels = x.shape[4], batch * height * width
    few, how = inputs < FEW, precision or float32_precision()
    columns, taps = (9 * inputs, 1) if few else (inputs, 9)
    gw, gb = g.new_empty(students, outputs, inputs, 3, 3), g.new_empty(students, outputs)

    def run(part: Splits) -> None:
        blocks = part.config.blocks
        splits = ceil_div(pixels, part.chunk)
        gw_parts = g.new_empty(students, splits, taps * outputs * columns)
        gb_parts = g.new_empty(students, splits, outputs)
        tiles = taps * ceil_div(outputs, blocks["BM"]) * ceil_div(columns, blocks["BN"])
        launch(
            weight_grad_kernel, (tiles, splits, students), part.config, g, x, _or(g2, g), _or(x2, x), gw_parts, gb_parts,
            pixels, part.chunk, height, width, outputs, inputs, FEW_CHANNELS=few, PAIR=g2 is not None, PRECISION=how,
        )  # fmt: skip
        if few:
            sum_rows(gw_parts, gw.view(students, outputs * columns), gb_parts, gb)
            return
        config = tuning.taps(splits)
        grid = (ceil_div(outputs * inputs, config.blocks["COLUMNS"]), 10, students)
        launch(sum_taps_kernel, grid, config, gw_parts, gb_parts, gw, gb, splits, outputs * inputs, outputs)

    key = ("weight_grad", *x.shape, outputs, g2 is not None, how)
    tuning.run_best(key, tuning.weight_grad(pixels, outputs, columns, taps, how), run)
    return gw, gb


def _or(t: Tensor | None, other: Tensor) -> Tensor:
    """`t`, or any tensor for a pointer that the kernel does not touch."""
    return other if t is None else t
