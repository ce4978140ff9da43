"""Last layer and loss (cross-entropy, binary cross-entropy) with their tangents: cuBLAS products around one fused kernel.

The products follow PyTorch's own setting (``torch.backends.cuda.matmul.fp32_precision``).
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
def _tile(B, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets and mask of this program's rows of (S, B, K)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, COLUMNS)
    at = (tl.program_id(1).to(tl.int64) * B + row)[:, None] * K + k[None, :]
    return at, (row < B)[:, None] & (k < K)[None, :], k


@triton.jit
def _log_softmax(logits, at, inside, k, K):
    x = tl.load(logits + at, mask=inside, other=0)
    x = tl.where((k < K)[None, :], x, float("-inf"))
    x = x - tl.max(x, axis=1)[:, None]
    return x - tl.log(tl.sum(tl.exp(x), axis=1))[:, None]


@triton.jit
def _store_sums(loss, gb, loss_terms, g, k, K):
    """This program's share of the loss and of the bias gradient."""
    part = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    tl.store(loss + part, tl.sum(tl.sum(loss_terms, axis=1), axis=0))
    tl.store(gb + part * K + k, tl.sum(g, axis=0), mask=k < K)


@triton.jit
def cross_entropy_kernel(logits, y, g, loss, gb, B, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """g = (p sum y - y) / B of some rows of one student, their loss, and the sum of g."""
    at, inside, k = _tile(B, K, ROWS, COLUMNS)
    logp = _log_softmax(logits, at, inside, k, K)
    target = tl.load(y + at, mask=inside, other=0)
    cotangent = (tl.exp(logp) * tl.sum(target, axis=1)[:, None] - target) / B
    tl.store(g + at, cotangent, mask=inside)
    _store_sums(loss, gb, -target * tl.where(inside, logp, 0) / B, cotangent, k, K)


@triton.jit
def cross_entropy_tangent_kernel(
    logits, logits_dot, y, g, gdot, gydot, loss_dot, gbdot, B, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """g as `cross_entropy_kernel`'s, its tangent, that of the derivative by y, and the sums of the tangents."""
    at, inside, k = _tile(B, K, ROWS, COLUMNS)
    p = tl.exp(_log_softmax(logits, at, inside, k, K))
    target = tl.load(y + at, mask=inside, other=0)
    dot = tl.load(logits_dot + at, mask=inside, other=0)
    total = tl.sum(target, axis=1)[:, None]
    logp_dot = tl.where(inside, dot - tl.sum(p * dot, axis=1)[:, None], 0)
    cotangent_dot = p * logp_dot * total / B
    tl.store(g + at, (p * total - target) / B, mask=inside)
    tl.store(gdot + at, cotangent_dot, mask=inside)
    tl.store(gydot + at, -logp_dot / B, mask=inside)
    _store_sums(loss_dot, gbdot, -target * logp_dot / B, cotangent_dot, k, K)


@triton.jit
def _binary(logits, y, pos, neg, at, inside, k, K):
    """Logit, sigmoid of it and of its negative, weights of both terms, and the tangent's weight by y, of each label."""
    x = tl.load(logits + at, mask=inside, other=0)
    target = tl.load(y + at, mask=inside, other=0)
    on = 1 / (1 + tl.exp(-x))
    off = 1 / (1 + tl.exp(x))
    p = tl.load(pos + k, mask=k < K, other=0)[None, :]
    n = tl.load(neg + k, mask=k < K, other=0)[None, :]
    # rows that do not exist weigh nothing
    return x, on, off, tl.where(inside, p * target, 0), tl.where(inside, n * (1 - target), 0), p * off + n * on


@triton.jit
def softplus(x):
    """log(1 + exp x), for large x too; log1p by Kahan's correction of log (HP-15C Advanced Functions Handbook, 1982)."""
    e = tl.exp(-tl.abs(x))
    u = 1 + e
    d = u - 1
    return tl.maximum(x, 0) + tl.where(d == 0, e, tl.log(u) * (e / tl.where(d == 0, 1, d)))


@triton.jit
def binary_kernel(logits, y, pos, neg, g, loss, gb, B, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """g = (neg (1 - y) sigmoid l - pos y sigmoid -l) / B of some rows of one student, their loss, and the sum of g."""
    at, inside, k = _tile(B, K, ROWS, COLUMNS)
    x, on, off, a, c, _ = _binary(logits, y, pos, neg, at, inside, k, K)
    cotangent = (c * on - a * off) / B
    tl.store(g + at, cotangent, mask=inside)
    _store_sums(loss, gb, (a * softplus(-x) + c * softplus(x)) / B, cotangent, k, K)


@triton.jit
def binary_tangent_kernel(
    logits, logits_dot, y, pos, neg, g, gdot, gydot, loss_dot, gbdot, B, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """g as `binary_kernel`'s, its tangent, that of the derivative by y, and the sums of the tangents."""
    at, inside, k = _tile(B, K, ROWS, COLUMNS)
    _, on, off, a, c, by_target = _binary(logits, y, pos, neg, at, inside, k, K)
    dot = tl.load(logits_dot + at, mask=inside, other=0)
    cotangent = (c * on - a * off) / B
    cotangent_dot = (a + c) * on * off * dot / B
    tl.store(g + at, cotangent, mask=inside)
    tl.store(gdot + at, cotangent_dot, mask=inside)
    tl.store(gydot + at, -by_target * dot / B, mask=inside)
    _store_sums(loss_dot, gbdot, cotangent * dot, cotangent_dot, k, K)


def linear_ce(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.linear_ce`."""
    return _gradient(cross_entropy_kernel, h, w, b, y)


def linear_bce(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.linear_bce`."""
    return _gradient(binary_kernel, h, w, b, y, pos, neg)


def linear_ce_tangent(
    h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.linear_ce_tangent`."""
    return _tangent(cross_entropy_tangent_kernel, h, hdot, w, wdot, b, bdot, y)


def linear_bce_tangent(
    h: Tensor,
    hdot: Tensor,
    w: Tensor,
    wdot: Tensor,
    b: Tensor,
    bdot: Tensor,
    y: Tensor,
    pos: Tensor,
    neg: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.linear_bce_tangent`."""
    return _tangent(binary_tangent_kernel, h, hdot, w, wdot, b, bdot, y, pos, neg)


def _gradient(
    kernel: object, h: Tensor, w: Tensor, b: Tensor, y: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gh, gw, gb) of a loss of the logits; `kernel` takes y and the weights of its terms."""
    students, batch, classes = y.shape
    logits = torch.baddbmm(b.unsqueeze(1), h, w.transpose(1, 2))
    config = tuning.softmax(batch, classes)
    parts = ceil_div(batch, config.blocks["ROWS"])
    g = torch.empty_like(y)
    loss, gb = y.new_empty(students, parts), y.new_empty(students, parts, classes)
    launch(kernel, (parts, students), config, logits, y, *weights, g, loss, gb, batch, classes)
    loss, gb = _sums(loss, gb)
    return loss, torch.bmm(g, w), torch.bmm(g.transpose(1, 2), h), gb


def _tangent(
    kernel: object,
    h: Tensor,
    hdot: Tensor,
    w: Tensor,
    wdot: Tensor,
    b: Tensor,
    bdot: Tensor,
    y: Tensor,
    *weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss_dot, gh, ghdot, gwdot, gbdot, gydot), likewise."""
    students, batch, classes = y.shape
    logits = torch.baddbmm(b.unsqueeze(1), h, w.transpose(1, 2))
    logits_dot = torch.baddbmm(bdot.unsqueeze(1), hdot, w.transpose(1, 2)).baddbmm_(h, wdot.transpose(1, 2))
    config = tuning.softmax(batch, classes)
    parts = ceil_div(batch, config.blocks["ROWS"])
    g, gdot, gydot = torch.empty_like(y), torch.empty_like(y), torch.empty_like(y)
    loss, gb = y.new_empty(students, parts), y.new_empty(students, parts, classes)
    launch(
        kernel, (parts, students), config, logits, logits_dot, y, *weights, g, gdot, gydot, loss, gb, batch, classes
    )  # fmt: skip
    loss, gb = _sums(loss, gb)
    ghdot = torch.bmm(gdot, w).baddbmm_(g, wdot)
    gwdot = torch.bmm(gdot.transpose(1, 2), h).baddbmm_(g.transpose(1, 2), hdot)
    return loss, torch.bmm(g, w), ghdot, gwdot, gb, gydot


def _sums(loss: Tensor, gb: Tensor) -> tuple[Tensor, Tensor]:
    """Add the shares of the programs: (S, parts) to (S,), (S, parts, K) to (S, K)."""
    students, parts, classes = gb.shape
    if parts == 1:
        return loss.view(students), gb.view(students, classes)
    total, bias = loss.new_empty(students), gb.new_empty(students, classes)
    sum_rows(loss[:, :, None], total, gb, bias)
    return total, bias
