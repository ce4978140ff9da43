"""Interpolated matching loss with its gradient, and the arc length of a trajectory: reductions over flat parameters.

Counted bytes a parameter: matching loss 16 (three reads, one write), arc length 8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.reduce import sum_rows


@triton.jit
def matching_kernel(
    theta, origin, end, frac, offsets, denom, grad, partial, size, layers,
    theta_stride, origin_stride, end_stride, frac_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one student: the gradient, and the double sum of squares."""
    block, student = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = block * BLOCK
    at = start + tl.arange(0, BLOCK)
    inside = at < size
    f = tl.zeros([BLOCK], tl.float32)
    for layer in range(layers):
        low, high = tl.load(offsets + layer), tl.load(offsets + layer + 1)
        if (low < start + BLOCK) & (high > start):
            value = tl.load(frac + student * frac_stride + layer)
            f = tl.where((at >= low) & (at < high), value, f)
    t = tl.load(theta + student * theta_stride + at, mask=inside, other=0)
    o = tl.load(origin + student * origin_stride + at, mask=inside, other=0)
    e = tl.load(end + student * end_stride + at, mask=inside, other=0)
    difference = t - ((1 - f) * o + f * e)
    divisor = tl.load(denom + student)
    divisor = tl.where(tl.abs(divisor) < float("inf"), divisor, float("nan"))  # divided by infinity all would be 0
    tl.store(grad + student * size + at, 2 * difference / divisor, mask=inside)
    wide = difference.to(tl.float64)
    tl.store(partial + student * tl.num_programs(0) + block, tl.sum(wide * wide, axis=0))


def matching_loss(
    theta: Tensor, origin: Tensor, end: Tensor, frac: Tensor, offsets: Tensor, denom: Tensor
) -> tuple[Tensor, Tensor]:
    """As `mct_fast.ops.matching_loss`; the fraction of a parameter is looked up by `offsets` on the device."""
    students, size = theta.shape
    config = tuning.flat(size)
    blocks = ceil_div(size, config.blocks["BLOCK"])
    loss, grad = theta.new_empty(students), theta.new_empty(students, size)
    partial = theta.new_empty(students, blocks, dtype=torch.float64)
    launch(
        matching_kernel, (blocks, students), config, theta, origin, end, frac, offsets, denom, grad, partial, size,
        offsets.shape[0] - 1, theta.stride(0), origin.stride(0), end.stride(0), frac.stride(0),
    )  # fmt: skip
    sum_rows(partial[:, :, None], loss, divisor=denom, finish="divide")
    return loss, grad


@triton.jit
def arc_length_kernel(
    previous, current, offsets, partial, previous_stride, current_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """Sum of squared differences over every splits-th block of one layer of one student."""
    split, layer, student = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(0)
    low, high = tl.load(offsets + layer), tl.load(offsets + layer + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(low + split * BLOCK, high, splits * BLOCK):
        at = start + tl.arange(0, BLOCK)
        p = tl.load(previous + student * previous_stride + at, mask=at < high, other=0)
        c = tl.load(current + student * current_stride + at, mask=at < high, other=0)
        wide = (c - p).to(tl.float64)
        total += wide * wide
    tl.store(partial + (student * tl.num_programs(1) + layer) * splits + split, tl.sum(total, axis=0))


def arc_length(previous: Tensor, current: Tensor, offsets: Tensor) -> Tensor:
    """As `mct_fast.ops.arc_length`."""
    students, layers = previous.shape[0], offsets.shape[0] - 1
    config, splits = tuning.layers(previous.shape[1], layers)
    out = previous.new_empty(students, layers, dtype=torch.float64)
    partial = previous.new_empty(students * layers, splits, 1, dtype=torch.float64)
    grid = (splits, layers, students)
    launch(
        arc_length_kernel, grid, config, previous, current, offsets, partial, previous.stride(0), current.stride(0)
    )  # fmt: skip
    sum_rows(partial, out, finish="sqrt")
    return out
