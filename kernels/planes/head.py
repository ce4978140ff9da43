"""The classifier, the loss, and the last block's norm behind it.

Cotangents are scaled by tau, a power of two a student that brings the largest cotangent of an output to [1, 2): fp16
keeps its 11 bits for them then, and the update divides by tau again. The features (S B, pixels, HALVES * C) are halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mct_fast.kernels.linear import softplus
from mct_fast.kernels.planes.common import after_the_last, halved, load_halves, product
from mct_fast.kernels.planes.plane import norm_backward, norm_tangent_backward, plane_of


@triton.jit
def _add_outputs(h, w, k, total, F, K, C: tl.constexpr, BF: tl.constexpr, HALVES: tl.constexpr):
    """total[k, f] += h[f] w[k, f], over blocks of BF of the F = pixels * C features."""
    for start in range(0, F, BF):
        f = start + tl.arange(0, BF)
        inside = f < F
        at = h + (f // C) * (HALVES * C) + f % C
        v = tl.load(at, mask=inside, other=0).to(tl.float32)
        if HALVES == 2:
            v += tl.load(at + C, mask=inside, other=0).to(tl.float32)
        total += v[None, :] * tl.load(w + k[:, None] * F + f[None, :], mask=(k < K)[:, None] & inside[None, :], other=0)
    return total


@triton.jit
def outputs_kernel(
    h, hdot, theta, dot, out, B, F, K, theta_stride, w_at, b_at, PAIR: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out (S B, K) = w h + b; with PAIR its tangent, w hdot + wdot h + bdot."""
    after_the_last(PDL)
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    theta += (image // B) * theta_stride
    dot += (image // B) * theta_stride
    h += image * F * HALVES
    total = tl.zeros([BK, BF], tl.float32)
    if PAIR:
        total = _add_outputs(hdot + image * F * HALVES, theta + w_at, k, total, F, K, C, BF, HALVES)
        total = _add_outputs(h, dot + w_at, k, total, F, K, C, BF, HALVES)
        bias = tl.load(dot + b_at + k, mask=k < K, other=0)
    else:
        total = _add_outputs(h, theta + w_at, k, total, F, K, C, BF, HALVES)
        bias = tl.load(theta + b_at + k, mask=k < K, other=0)
    tl.store(out + image * K + k, tl.sum(total, axis=1) + bias, mask=k < K)


@triton.jit
def _loss(v, y, pos, neg, real, BINARY: tl.constexpr):
    """Of rows of outputs: the loss of each row, and its gradient by the outputs."""
    if BINARY:
        each = pos * y * softplus(-v) + neg * (1 - y) * softplus(v)
        g = neg * (1 - y) * tl.sigmoid(v) - pos * y * tl.sigmoid(-v)
    else:
        v = tl.where(real, v, float("-inf"))
        top = tl.max(v, axis=1)[:, None]
        e = tl.where(real, tl.exp(v - top), 0)
        total = tl.sum(e, axis=1)[:, None]
        each = y * (top + tl.log(total) - tl.where(real, v, 0))
        g = e / total * tl.sum(y, axis=1)[:, None] - y
    return tl.sum(tl.where(real, each, 0), axis=1), tl.where(real, g, 0)


@triton.jit
def _loss_tangent(v, vdot, y, pos, neg, real, BINARY: tl.constexpr):
    """The tangent of the gradient by the outputs, and that of the gradient by the targets."""
    if BINARY:
        on, off = tl.sigmoid(v), tl.sigmoid(-v)
        gdot = (pos * y + neg * (1 - y)) * on * off * vdot
        ydot = -(pos * off + neg * on) * vdot
    else:
        v = tl.where(real, v, float("-inf"))
        e = tl.where(real, tl.exp(v - tl.max(v, axis=1)[:, None]), 0)
        prob = e / tl.sum(e, axis=1)[:, None]
        ydot = tl.sum(prob * vdot, axis=1)[:, None] - vdot
        gdot = -prob * ydot * tl.sum(y, axis=1)[:, None]
    return tl.where(real, gdot, 0), ydot


@triton.jit
def loss_kernel(
    out, y, pos, neg, loss, gl, tau, gb, B, K, gb_stride,
    BINARY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A student's mean loss, its gradient gl (S B, K) by the outputs, times tau; gb (S, K) their sums: by the bias."""
    after_the_last(PDL)
    student = tl.program_id(0)
    k = tl.arange(0, COLS)[None, :]
    weight_pos, weight_neg = tl.load(pos + k, mask=k < K, other=0), tl.load(neg + k, mask=k < K, other=0)
    total = 0.0
    largest = 0.0
    for start in range(0, B, ROWS):
        b = start + tl.arange(0, ROWS)[:, None]
        real = (b < B) & (k < K)
        at = (student * B + b) * K + k
        v, t = tl.load(out + at, mask=real, other=0), tl.load(y + at, mask=real, other=0)
        each, g = _loss(v, t, weight_pos, weight_neg, real, BINARY)
        total += tl.sum(each, axis=0)
        largest = tl.maximum(largest, tl.max(tl.max(tl.abs(g), axis=1), axis=0))
    tl.store(loss + student, total / B)
    # a power of two; 1 where there is nothing to scale, or no number to scale it by
    usable = (largest > 1e-30) & (largest < 1e30)
    scale = tl.where(usable, tl.exp2(-tl.floor(tl.log2(tl.where(usable, largest, 1.0)))), 1.0)
    sums = tl.zeros([COLS], tl.float32)
    for start in range(0, B, ROWS):
        b = start + tl.arange(0, ROWS)[:, None]
        real = (b < B) & (k < K)
        at = (student * B + b) * K + k
        v, t = tl.load(out + at, mask=real, other=0), tl.load(y + at, mask=real, other=0)
        _, g = _loss(v, t, weight_pos, weight_neg, real, BINARY)
        tl.store(gl + at, scale * g, mask=real)
        sums += tl.sum(scale * g, axis=0)
    tl.store(tau + student, scale * B)
    tl.store(gb + student * gb_stride + tl.arange(0, COLS), sums, mask=tl.arange(0, COLS) < K)


@triton.jit
def loss_tangent_kernel(
    out, outdot, y, pos, neg, gl, tau, loss_dot, gldot, gydot, gb, B, K, gb_stride,
    BINARY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The tangents of the loss, of gl (times tau) and of the gradient by the targets, along outdot."""
    after_the_last(PDL)
    student = tl.program_id(0)
    k = tl.arange(0, COLS)[None, :]
    weight_pos, weight_neg = tl.load(pos + k, mask=k < K, other=0), tl.load(neg + k, mask=k < K, other=0)
    scale = tl.load(tau + student) / B
    total = tl.zeros([1], tl.float64)
    sums = tl.zeros([COLS], tl.float32)
    for start in range(0, B, ROWS):
        b = start + tl.arange(0, ROWS)[:, None]
        real = (b < B) & (k < K)
        at = (student * B + b) * K + k
        v, vdot = tl.load(out + at, mask=real, other=0), tl.load(outdot + at, mask=real, other=0)
        t = tl.load(y + at, mask=real, other=0)
        gdot, ydot = _loss_tangent(v, vdot, t, weight_pos, weight_neg, real, BINARY)
        g = tl.load(gl + at, mask=real, other=0)
        total += tl.sum(tl.sum((g * vdot).to(tl.float64), axis=1), axis=0)
        tl.store(gldot + at, scale * gdot, mask=real)
        tl.store(gydot + at, ydot / B, mask=real)
        sums += tl.sum(scale * gdot, axis=0)
    tl.store(loss_dot + student + tl.arange(0, 1), total / (scale * B).to(tl.float64))
    tl.store(gb + student * gb_stride + tl.arange(0, COLS), sums, mask=tl.arange(0, COLS) < K)


@triton.jit
def _add_weights(
    g, h, acc, k, f, B, F, K, C: tl.constexpr, BB: tl.constexpr, HALVES: tl.constexpr
):  # fmt: skip
    """acc[k, f] += sum over images of g[b, k] h[b, f]."""
    at_f = (f // C) * (HALVES * C) + f % C
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        v = tl.load(g + b[None, :] * K + k[:, None], mask=(b < B)[None, :] & (k < K)[:, None], other=0)
        high, low = halved(v, HALVES)
        at = h + tl.where(b < B, b, 0)[:, None] * (F * HALVES) + at_f[None, :]
        x, x_low = load_halves(at, C, HALVES)
        acc = product(high, low, x, x_low, acc, HALVES)
    return acc


@triton.jit
def head_weight_kernel(
    gl, h, gl2, h2, out, B, F, K, out_stride, PAIR: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BF: tl.constexpr, BB: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """out (S, K, F): the gradient gl^T h (+ gl2^T h2) by the classifier's weights."""
    student = tl.program_id(2).to(tl.int64)
    f = tl.program_id(0) * BF + tl.arange(0, BF)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    acc = tl.zeros([BK, BF], tl.float32)
    acc = _add_weights(gl + student * B * K, h + student * B * F * HALVES, acc, k, f, B, F, K, C, BB, HALVES)
    if PAIR:
        acc = _add_weights(gl2 + student * B * K, h2 + student * B * F * HALVES, acc, k, f, B, F, K, C, BB, HALVES)
    tl.store(out + student * out_stride + k[:, None] * F + f[None, :], acc, mask=(k < K)[:, None])


@triton.jit
def _add_features(g, w, acc, image, p, c, F, K, C: tl.constexpr):
    """acc[row, c] += sum over outputs of g[image, k] w[k, p, c]."""
    at = p[:, None] * C + c[None, :]
    for k in range(K):
        acc += tl.load(g + image * K + k)[:, None] * tl.load(w + k * F + at)
    return acc


@triton.jit
def top_backward_kernel(
    gl, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, B, F, K, PH, PW,
    theta_stride, w_at, gamma_at, beta_at,
    C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The outputs' cotangent through the classifier and the last block's norm."""
    after_the_last(PDL)
    student, image, p, real = plane_of(B, PH * PW, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    acc = tl.zeros([ROWS, BC], tl.float32)
    g = _add_features(gl, theta + student * theta_stride + w_at, acc, image, p, c, F, K, C)
    norm_backward(
        g, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, image, p, real, c, student,
        PH, PW, theta_stride, gamma_at, beta_at, C, HALVES,
    )  # fmt: skip


@triton.jit
def top_tangent_backward_kernel(
    gl, gldot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
    B, F, K, PH, PW, theta_stride, w_at, gamma_at, beta_at,
    C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The tangent of `top_backward`."""
    after_the_last(PDL)
    student, image, p, real = plane_of(B, PH * PW, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    acc = tl.zeros([ROWS, BC], tl.float32)
    acc = _add_features(gldot, theta + student * theta_stride + w_at, acc, image, p, c, F, K, C)
    gdot = _add_features(gl, dot + student * theta_stride + w_at, acc, image, p, c, F, K, C)
    norm_tangent_backward(
        gdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
        image, p, real, c, student, PH, PW, theta_stride, gamma_at, beta_at, C, HALVES,
    )  # fmt: skip
