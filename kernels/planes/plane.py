"""The blocks behind the first: a program has one image's planes of BC channels on chip.

Formulas (`docs/architecture.md`, "Block"): xhat = (z - mean z) r; u = gamma xhat + beta; p = mean of the four relu(u).

    tangent     xhat' = r (z' - mean z' - xhat mean(xhat z')),  p' = mean of the four on (gamma' xhat + gamma xhat' + beta')
    cotangent   gu = on gp / 4;  gz = r (gamma gu - mean q - xhat mean(q xhat)),  q = gamma gu
    its tangent gz' = r' (q - mean q - xhat mean(q xhat)) + r (q' - mean q' - xhat' mean(q xhat) - xhat mean(q' xhat + q xhat'))
                with q' = gamma gu' + gamma' gu and r' = -r^2 mean(xhat z')

A convolution's bias leaves the norm's output as it is: it is not read, and its gradient is zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mct_fast.kernels.planes.common import add_product, after_the_last, low_parts, store_halves


@triton.jit
def plane_of(B, PP, ROWS: tl.constexpr):
    """What this program works on: student, image; the pooled pixel of each row, and whether there is one.

    Rows without one repeat the first pixel, so that what they read exists.
    """
    image = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, ROWS)
    return image // B, image, tl.where(p < PP, p, 0), p < PP


@triton.jit
def _taps_of_quads(
    x, rows, w, c, wide, a0, a1, a2, a3, C: tl.constexpr, BK: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """a_q[p, co] += sum over taps and ci of x[2 p + q + tap, ci] w[tap, ci, co]; `wide` pixels a row of the image."""
    ROW: tl.constexpr = HALVES * C
    STEPS: tl.constexpr = C // BK
    PRODUCTS: tl.constexpr = 2 * HALVES - 1
    k = tl.arange(0, BK)
    at_x = x + rows[:, None] + k[None, :]
    at_w = w + k[:, None] * ROW + c[None, :]
    for i in range(PRODUCTS * 9 * STEPS):
        at_low, at_low_w = low_parts(i // (9 * STEPS), C, HALVES)
        tap, first = i % 9, ((i // 9) % STEPS) * BK
        b = tl.load(at_w + ((tap * C + first) * ROW + at_low_w))
        at = at_x + (((tap // 3) * wide + tap % 3) * ROW + first + at_low)
        v0 = tl.load(at)
        v1 = tl.load(at + ROW)
        v2 = tl.load(at + wide * ROW)
        v3 = tl.load(at + (wide + 1) * ROW)
        a0 = add_product(v0, b, a0, HALVES)
        a1 = add_product(v1, b, a1, HALVES)
        a2 = add_product(v2, b, a2, HALVES)
        a3 = add_product(v3, b, a3, HALVES)
    return a0, a1, a2, a3


@triton.jit
def taps_back(
    g, rows, w, c, wide, acc, C: tl.constexpr, BK: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """acc[p, ci] += sum over taps and co of g[p - tap, co] w[tap, ci, co]: the transpose of a convolution."""
    ROW: tl.constexpr = HALVES * C
    STEPS: tl.constexpr = C // BK
    PRODUCTS: tl.constexpr = 2 * HALVES - 1
    k = tl.arange(0, BK)
    at_g = g + rows[:, None] + k[None, :]
    at_w = w + c[None, :] * ROW + k[:, None]
    for i in range(PRODUCTS * 9 * STEPS):
        at_low, at_low_w = low_parts(i // (9 * STEPS), C, HALVES)
        tap, first = i % 9, ((i // 9) % STEPS) * BK
        b = tl.load(at_w + (tap * C * ROW + first + at_low_w))
        v = tl.load(at_g + (((2 - tap // 3) * wide + 2 - tap % 3) * ROW + first + at_low))
        acc = tl.dot(v, b, acc)
    return acc


@triton.jit
def plane_forward_kernel(
    x, w, theta, xhat, rstd, h, B, PH, PW, w_stride, theta_stride, gamma_at, beta_at, eps, BORDER: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One block: xhat, rstd (sums), and h, an image with a border of BORDER (0 where the classifier follows)."""
    after_the_last(PDL)
    PP = PH * PW
    student, image, p, real = plane_of(B, PP, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = 2 * PW + 2
    rows = (2 * (p // PW) * wide + 2 * (p % PW)) * (HALVES * C)
    x += image * (2 * PH + 2) * wide * (HALVES * C)
    zero = tl.zeros([ROWS, BC], tl.float32)
    z0, z1, z2, z3 = _taps_of_quads(
        x, rows, w + student * w_stride, c, wide, zero, zero, zero, zero, C, BK, HALVES
    )  # fmt: skip
    n = PP * 4.0
    there = real[:, None]
    mean = (tl.sum(tl.where(there, z0 + z1 + z2 + z3, 0), axis=0) / n)[None, :]
    z0, z1, z2, z3 = z0 - mean, z1 - mean, z2 - mean, z3 - mean
    squares = tl.sum(tl.where(there, z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3, 0), axis=0)
    r = tl.math.rsqrt(squares / n + eps)
    tl.store(rstd + image * C + c, r)
    r = r[None, :]
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    at = xhat + image * 4 * PP * C + p[:, None] * C + c[None, :]
    z0, z1, z2, z3 = z0 * r, z1 * r, z2 * r, z3 * r
    tl.store(at, z0.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + PP * C, z1.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + 2 * PP * C, z2.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + 3 * PP * C, z3.to(xhat.dtype.element_ty), mask=there)
    pooled = tl.maximum(gamma * z0 + beta, 0) + tl.maximum(gamma * z1 + beta, 0)
    pooled += tl.maximum(gamma * z2 + beta, 0) + tl.maximum(gamma * z3 + beta, 0)
    h += image * (PH + 2 * BORDER) * (PW + 2 * BORDER) * (HALVES * C)
    at = ((p // PW + BORDER) * (PW + 2 * BORDER) + p % PW + BORDER) * (HALVES * C)
    store_halves(h + at[:, None] + c[None, :], 0.25 * pooled, there, C, HALVES)


@triton.jit
def _tangent_of_quad(zdot, mean, slope, r, gamma, beta, gammadot, betadot, xhat, xhatdot, at, there):
    """Of one quad: xhatdot, which is stored, and the tangent of its ReLU, which is returned."""
    v = tl.load(xhat + at).to(tl.float32)
    vdot = r * (zdot - mean - v * slope)
    tl.store(xhatdot + at, vdot.to(xhatdot.dtype.element_ty), mask=there)
    return tl.where(gamma * v + beta > 0, gammadot * v + gamma * vdot + betadot, 0)


@triton.jit
def plane_tangent_kernel(
    x, xdot, w, wdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, hdot, B, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at, BORDER: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The block's tangent: zdot = w * xdot + wdot * x; xhatdot as xhat, rstd_dot as rstd, hdot as h."""
    after_the_last(PDL)
    PP = PH * PW
    student, image, p, real = plane_of(B, PP, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = 2 * PW + 2
    rows = (2 * (p // PW) * wide + 2 * (p % PW)) * (HALVES * C)
    before = image * (2 * PH + 2) * wide * (HALVES * C)
    x += before
    xdot += before
    zero = tl.zeros([ROWS, BC], tl.float32)
    z0, z1, z2, z3 = _taps_of_quads(
        xdot, rows, w + student * w_stride, c, wide, zero, zero, zero, zero, C, BK, HALVES
    )  # fmt: skip
    z0, z1, z2, z3 = _taps_of_quads(
        x, rows, wdot + student * w_stride, c, wide, z0, z1, z2, z3, C, BK, HALVES
    )  # fmt: skip
    n = PP * 4.0
    there = real[:, None]
    xhat += image * 4 * PP * C
    xhatdot += image * 4 * PP * C
    at_hat = p[:, None] * C + c[None, :]
    mean = tl.sum(tl.where(there, z0 + z1 + z2 + z3, 0), axis=0) / n
    products = z0 * tl.load(xhat + at_hat).to(tl.float32)
    products += z1 * tl.load(xhat + at_hat + PP * C).to(tl.float32)
    products += z2 * tl.load(xhat + at_hat + 2 * PP * C).to(tl.float32)
    products += z3 * tl.load(xhat + at_hat + 3 * PP * C).to(tl.float32)
    slope = tl.sum(tl.where(there, products, 0), axis=0) / n
    r = tl.load(rstd + image * C + c)
    tl.store(rstd_dot + image * C + c, -r * r * slope)
    mean, slope, r = mean[None, :], slope[None, :], r[None, :]
    theta += student * theta_stride
    dot += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot, betadot = tl.load(dot + gamma_at + c)[None, :], tl.load(dot + beta_at + c)[None, :]
    pooled = _tangent_of_quad(
        z0, mean, slope, r, gamma, beta, gammadot, betadot, xhat, xhatdot, at_hat, there
    )  # fmt: skip
    at_hat += PP * C
    pooled += _tangent_of_quad(
        z1, mean, slope, r, gamma, beta, gammadot, betadot, xhat, xhatdot, at_hat, there
    )  # fmt: skip
    at_hat += PP * C
    pooled += _tangent_of_quad(
        z2, mean, slope, r, gamma, beta, gammadot, betadot, xhat, xhatdot, at_hat, there
    )  # fmt: skip
    at_hat += PP * C
    pooled += _tangent_of_quad(
        z3, mean, slope, r, gamma, beta, gammadot, betadot, xhat, xhatdot, at_hat, there
    )  # fmt: skip
    hdot += image * (PH + 2 * BORDER) * (PW + 2 * BORDER) * (HALVES * C)
    at = ((p // PW + BORDER) * (PW + 2 * BORDER) + p % PW + BORDER) * (HALVES * C)
    store_halves(hdot + at[:, None] + c[None, :], 0.25 * pooled, there, C, HALVES)


@triton.jit
def norm_backward(
    g, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, image, p, real, c, student,
    PH, PW, theta_stride, gamma_at, beta_at, C: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """From the cotangent g (rows, channels) of the pooled planes: gz, an image; gp = g (pooled); sums for gamma and beta."""
    PP = PH * PW
    there = real[:, None]
    at = p[:, None] * C + c[None, :]
    tl.store(gp + image * PP * C + at, g.to(gp.dtype.element_ty), mask=there)
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    at_hat = xhat + image * 4 * PP * C + at
    g = tl.where(there, 0.25 * g, 0)
    by_beta = tl.zeros_like(g)
    by_gamma = tl.zeros_like(g)
    for quad in tl.static_range(4):
        v = tl.load(at_hat + quad * PP * C).to(tl.float32)
        gu = tl.where(gamma * v + beta > 0, g, 0)
        by_beta += gu
        by_gamma += gu * v
    gb, gg = tl.sum(by_beta, axis=0)[None, :], tl.sum(by_gamma, axis=0)[None, :]
    line = image * C + c[None, :]
    tl.store(gamma_parts + line, gg)
    tl.store(beta_parts + line, gb)
    tl.store(gamma_sums + line, gg)
    tl.store(beta_sums + line, gb)
    n = PP * 4.0
    r, gb, gg = tl.load(rstd + line) * gamma, gb / n, gg / n
    wide = 2 * PW + 2
    gz += image * (2 * PH + 2) * wide * (HALVES * C)
    gz += (((2 * (p // PW) + 1) * wide + 2 * (p % PW) + 1) * (HALVES * C))[:, None] + c[None, :]
    for quad in tl.static_range(4):
        v = tl.load(at_hat + quad * PP * C).to(tl.float32)
        gu = tl.where(gamma * v + beta > 0, g, 0)
        at_gz = gz + ((quad // 2) * wide + quad % 2) * (HALVES * C)
        store_halves(at_gz, r * (gu - gb - v * gg), there, C, HALVES)


@triton.jit
def plane_backward_kernel(
    g_above, w, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, B, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The cotangent g_above of the next convolution's output (an image), through that convolution and this block."""
    after_the_last(PDL)
    student, image, p, real = plane_of(B, PH * PW, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = PW + 2
    rows = ((p // PW) * wide + p % PW) * (HALVES * C)
    g_above += image * (PH + 2) * wide * (HALVES * C)
    g = taps_back(
        g_above, rows, w + student * w_stride, c, wide, tl.zeros([ROWS, BC], tl.float32), C, BK, HALVES
    )  # fmt: skip
    norm_backward(
        g, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, image, p, real, c, student,
        PH, PW, theta_stride, gamma_at, beta_at, C, HALVES,
    )  # fmt: skip


@triton.jit
def norm_tangent_backward(
    gdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
    image, p, real, c, student, PH, PW, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The tangent of `norm_backward`: gzdot (image) and sums for gamma and beta, from the tangent gdot of its g."""
    PP = PH * PW
    there = real[:, None]
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot = tl.load(dot + student * theta_stride + gamma_at + c)[None, :]
    at_hat = p[:, None] * C + c[None, :]
    g = 0.25 * tl.load(gp + image * PP * C + at_hat).to(tl.float32)
    g, gdot = tl.where(there, g, 0), tl.where(there, 0.25 * gdot, 0)
    xhat += image * 4 * PP * C
    xhatdot += image * 4 * PP * C
    by_beta = tl.zeros_like(g)
    by_gamma = tl.zeros_like(g)
    for quad in tl.static_range(4):
        v = tl.load(xhat + at_hat + quad * PP * C).to(tl.float32)
        vdot = tl.load(xhatdot + at_hat + quad * PP * C).to(tl.float32)
        on = gamma * v + beta > 0
        by_beta += tl.where(on, gdot, 0)
        by_gamma += tl.where(on, gdot * v + g * vdot, 0)
    gbdot, ggdot = tl.sum(by_beta, axis=0)[None, :], tl.sum(by_gamma, axis=0)[None, :]
    line = image * C + c[None, :]
    tl.store(gamma_parts + line, ggdot)
    tl.store(beta_parts + line, gbdot)
    n = PP * 4.0
    gg, gb = tl.load(gamma_sums + line), tl.load(beta_sums + line)
    mean_q, mean_qx = gamma * gb / n, gamma * gg / n
    mean_qdot = (gamma * gbdot + gammadot * gb) / n
    mean_qxdot = (gamma * ggdot + gammadot * gg) / n
    r, rdot = tl.load(rstd + line), tl.load(rstd_dot + line)
    wide = 2 * PW + 2
    gzdot += image * (2 * PH + 2) * wide * (HALVES * C)
    gzdot += (((2 * (p // PW) + 1) * wide + 2 * (p % PW) + 1) * (HALVES * C))[:, None] + c[None, :]
    for quad in tl.static_range(4):
        v = tl.load(xhat + at_hat + quad * PP * C).to(tl.float32)
        vdot = tl.load(xhatdot + at_hat + quad * PP * C).to(tl.float32)
        on = gamma * v + beta > 0
        gu, gudot = tl.where(on, g, 0), tl.where(on, gdot, 0)
        out = rdot * (gamma * gu - mean_q - v * mean_qx)
        out += r * (gamma * gudot + gammadot * gu - mean_qdot - vdot * mean_qx - v * mean_qxdot)
        store_halves(gzdot + ((quad // 2) * wide + quad % 2) * (HALVES * C), out, there, C, HALVES)


@triton.jit
def plane_tangent_backward_kernel(
    g_above, gdot_above, w, wdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums,
    gzdot, gamma_parts, beta_parts, B, PH, PW, w_stride, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
    HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The tangent of `plane_backward`: gdot = w^T gdot_above + wdot^T g_above, then this block."""
    after_the_last(PDL)
    student, image, p, real = plane_of(B, PH * PW, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = PW + 2
    rows = ((p // PW) * wide + p % PW) * (HALVES * C)
    before = image * (PH + 2) * wide * (HALVES * C)
    g_above += before
    gdot_above += before
    w += student * w_stride
    wdot += student * w_stride
    gdot = taps_back(gdot_above, rows, w, c, wide, tl.zeros([ROWS, BC], tl.float32), C, BK, HALVES)
    gdot = taps_back(g_above, rows, wdot, c, wide, gdot, C, BK, HALVES)
    norm_tangent_backward(
        gdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
        image, p, real, c, student, PH, PW, theta_stride, gamma_at, beta_at, C, HALVES,
    )  # fmt: skip


@triton.jit
def input_grad_kernel(
    g, w, g2, w2, gp, B, H, W, w_stride, PAIR: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """gp (S B, H W, C) = w^T g (+ w2^T g2) for images g of H x W pixels: the cotangent that the first block takes."""
    after_the_last(PDL)
    student = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B * H * W
    row = tl.where(real, row, 0)
    wide = W + 2
    rows = ((row // (H * W)) * ((H + 2) * wide) + (row % (H * W)) // W * wide + row % W) * (HALVES * C)
    before = student * B * (H + 2) * wide * (HALVES * C)
    acc = tl.zeros([ROWS, BC], tl.float32)
    acc = taps_back(g + before, rows, w + student * w_stride, c, wide, acc, C, BK, HALVES)
    if PAIR:
        acc = taps_back(g2 + before, rows, w2 + student * w_stride, c, wide, acc, C, BK, HALVES)
    at = gp + student * B * H * W * C + row[:, None] * C + c[None, :]
    tl.store(at, acc.to(gp.dtype.element_ty), mask=real[:, None])
