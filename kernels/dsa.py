"""Differentiable siamese augmentation and its transpose. Formulas: `mct_fast.data.operations`.

The transpose gathers: a pixel sums the few outputs that sampled it, in a fixed order, without atomics. Counted bytes a
value: 8 (one read, one write; the neighbours come from cache).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch


@triton.jit
def _point(kind, i, j, p0, p1, h, w):
    """Where output (i, j) of a scale (5) or rotation (6) samples the image: row and column, in pixels."""
    y, x = i - h, j - w
    row = tl.where(kind == 5, p0 * y + h, p1 * x * h / w + p0 * y + h)
    column = tl.where(kind == 5, p1 * x + w, p0 * x - p1 * y * w / h + w)
    return row, column


@triton.jit
def _color(x, out, at, inside, p0, p1, p2, size, plane, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out = c s x + c (1 - s) mean_C + (1 - c) mean + o."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        all_at = start + tl.arange(0, BLOCK)
        total += tl.load(x + all_at, mask=all_at < size, other=0)
    rest = (1 - p2) * (tl.sum(total, axis=0) / size) + p0
    pixel = tl.zeros([BLOCK], tl.float32)
    for c in tl.static_range(CHANNELS):
        pixel += tl.load(x + c * plane + at, mask=inside, other=0)
    for c in tl.static_range(CHANNELS):
        value = tl.load(x + c * plane + at, mask=inside, other=0)
        value = p2 * p1 * value + p2 * (1 - p1) / CHANNELS * pixel + rest
        tl.store(out + c * plane + at, value, mask=inside)


@triton.jit
def _sample(
    x, out, at, i, j, inside, kind, p0, p1, p2, p3, H, W,
    TRANSPOSE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bilinear samples at a point given by the kind. The transposes of kinds 0 to 4 are of the same form."""
    h, w = (H - 1) / 2.0, (W - 1) / 2.0
    fi, fj = i.to(tl.float32), j.to(tl.float32)
    row, column = fi, fj
    keep = inside
    if kind == 2:
        # shifts beyond the image leave nothing; clamped, so that no conversion overflows
        sign = -1 if TRANSPOSE else 1
        row = (i + sign * tl.minimum(tl.maximum(p0, -H), H).to(tl.int32)).to(tl.float32)
        column = (j + sign * tl.minimum(tl.maximum(p1, -W), W).to(tl.int32)).to(tl.float32)
    if kind == 3:
        keep = keep & ((fi < p0) | (fi >= p1) | (fj < p2) | (fj >= p3))
    if kind == 4:
        column = tl.where(p0 > 0.5, W - 1 - fj, fj)
    if (kind == 5) | (kind == 6):
        row, column = _point(kind, fi, fj, p0, p1, h, w)
    keep = keep & (row > -1) & (row < H) & (column > -1) & (column < W)
    row, column = tl.where(keep, row, 0), tl.where(keep, column, 0)
    first_row, first_column = tl.floor(row), tl.floor(column)
    down, right = row - first_row, column - first_column
    r, c = first_row.to(tl.int32), first_column.to(tl.int32)
    plane = H * W
    for channel in tl.static_range(CHANNELS):
        image = x + channel * plane
        total = tl.zeros([BLOCK], tl.float32)
        for tap in tl.static_range(4):
            rr, cc = r + tap // 2, c + tap % 2
            weight = (down if tap // 2 else 1 - down) * (right if tap % 2 else 1 - right)
            here = keep & (rr >= 0) & (rr < H) & (cc >= 0) & (cc < W) & (weight > 0)
            total += weight * tl.load(image + rr * W + cc, mask=here, other=0)
        tl.store(out + channel * plane + at, total, mask=inside)


@triton.jit
def _first(centre, reach, size):
    """The first pixel within `reach` of `centre`, or 0 where the reach covers everything."""
    first = tl.ceil(tl.where(reach < size, centre - reach, 0))
    return tl.minimum(tl.maximum(first, 0), size).to(tl.int32)


@triton.jit
def _gather(
    g, out, at, i, j, inside, kind, p0, p1, H, W, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Transpose of a scale or rotation: outputs q with |point(q) - (i, j)| < 1 in both axes, with their hat weights.

    They lie in a parallelogram around the inverse of (i, j); its bounding box is walked row by row.
    """
    h, w = (H - 1) / 2.0, (W - 1) / 2.0
    fi, fj = i.to(tl.float32), j.to(tl.float32)
    y, x = fi - h, fj - w
    square = p0 * p0 + p1 * p1
    scale = kind == 5
    centre_row = tl.where(scale, y / p0, (p0 * y - p1 * x * h / w) / square) + h
    centre_column = tl.where(scale, x / p1, (p0 * x + p1 * y * w / h) / square) + w
    slack = 1.001  # rounding of the points
    a0, a1 = tl.abs(p0), tl.abs(p1)
    reach_rows = slack * tl.where(scale, 1 / a0, (a0 + a1 * h / w) / square)
    reach_columns = slack * tl.where(scale, 1 / a1, (a0 + a1 * w / h) / square)
    rows = tl.where(reach_rows < H, tl.minimum(2 * tl.ceil(reach_rows) + 1, H), H).to(tl.int32)
    columns = tl.where(reach_columns < W, tl.minimum(2 * tl.ceil(reach_columns) + 1, W), W).to(tl.int32)
    first_row, first_column = _first(centre_row, reach_rows, H), _first(centre_column, reach_columns, W)
    plane = H * W
    for channel in range(CHANNELS):
        total = tl.zeros([BLOCK], tl.float32)
        for a in range(rows):
            for b in range(columns):
                r, c = first_row + a, first_column + b
                row, column = _point(kind, r.to(tl.float32), c.to(tl.float32), p0, p1, h, w)
                weight = tl.maximum(1 - tl.abs(row - fi), 0) * tl.maximum(1 - tl.abs(column - fj), 0)
                here = inside & (r < H) & (c < W) & (weight > 0)
                value = tl.load(g + channel * plane + r * W + c, mask=here, other=0)
                total += tl.where(here, weight * value, 0)
        tl.store(out + channel * plane + at, total, mask=inside)


@triton.jit
def dsa_kernel(
    x, kinds, table, out, B, H, W, TRANSPOSE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Some pixels of one image, all channels."""
    image = tl.program_id(0)
    plane = H * W
    size = CHANNELS * plane
    kind = tl.load(kinds + image // B).to(tl.int32)
    p0, p1 = tl.load(table + 4 * image), tl.load(table + 4 * image + 1)
    p2, p3 = tl.load(table + 4 * image + 2), tl.load(table + 4 * image + 3)
    x += image.to(tl.int64) * size
    out += image.to(tl.int64) * size
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < plane
    i, j = at // W, at % W
    if kind == 1:
        if TRANSPOSE:
            p0 = 0.0
        _color(x, out, at, inside, p0, p1, p2, size, plane, CHANNELS, BLOCK)
    elif TRANSPOSE and ((kind == 5) | (kind == 6)):
        _gather(x, out, at, i, j, inside, kind, p0, p1, H, W, CHANNELS, BLOCK)
    else:
        _sample(x, out, at, i, j, inside, kind, p0, p1, p2, p3, H, W, TRANSPOSE, CHANNELS, BLOCK)


def _augment(x: Tensor, kinds: Tensor, params: Tensor, transpose: bool) -> Tensor:
    students, batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    config = tuning.pixels(height * width)
    grid = (students * batch, ceil_div(height * width, config.blocks["BLOCK"]))
    kinds = kinds.to(x.device, non_blocking=True)
    launch(
        dsa_kernel, grid, config, x, kinds, params, out, batch, height, width, TRANSPOSE=transpose, CHANNELS=channels
    )
    return out


def dsa(x: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """As `mct_fast.ops.dsa`; students of different kinds share the launch. `kinds` may lie on the device already."""
    return _augment(x, kinds, params, transpose=False)


def dsa_transpose(g: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """As `mct_fast.ops.dsa_transpose`."""
    return _augment(g, kinds, params, transpose=True)
