"""The blocks behind the first: a program has the planes of IMAGES images and BC channels on chip.

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

from mct_fast.kernels.planes.common import load_halves, plane_sums, product, spread, store_halves


@triton.jit
def planes_of(B, PP, IMAGES: tl.constexpr, ROWS: tl.constexpr):
    """What this program works on: student; of each row its image and pooled pixel, and whether there is one.

    Rows without one repeat the student's first image or pixel, so that what they read exists.
    """
    groups = tl.cdiv(B, IMAGES)
    student = tl.program_id(0) // groups
    each: tl.constexpr = ROWS // IMAGES
    row = tl.arange(0, ROWS)
    b = (tl.program_id(0) % groups) * IMAGES + row // each
    p = row % each
    real = (b < B) & (p < PP)
    image = (student * B + tl.where(b < B, b, 0)).to(tl.int64)
    return student.to(tl.int64), image, tl.where(p < PP, p, 0), real


@triton.jit
def lines_of(B, c, C: tl.constexpr, IMAGES: tl.constexpr):
    """Where this program's numbers a plane (IMAGES, channels) lie in `sums`, and which of them exist."""
    groups = tl.cdiv(B, IMAGES)
    b = (tl.program_id(0) % groups) * IMAGES + tl.arange(0, IMAGES)
    image = (tl.program_id(0) // groups) * B + tl.where(b < B, b, 0)
    return image[:, None] * C + c[None, :], (b < B)[:, None] & (c < C)[None, :]


@triton.jit
def _taps_of_quads(
    x, rows, w, c, wide, a0, a1, a2, a3, C: tl.constexpr, BK: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """a_q[p, co] += sum over taps and ci of x[2 p + q + tap, ci] w[tap, ci, co]; `wide` pixels a row of the image."""
    ROW: tl.constexpr = HALVES * C
    STEPS: tl.constexpr = C // BK
    k = tl.arange(0, BK)
    at_x = x + rows[:, None] + k[None, :]
    at_w = w + k[:, None] * ROW + c[None, :]
    for i in range(9 * STEPS):
        tap, first = i // STEPS, (i % STEPS) * BK
        b, b_low = load_halves(at_w + (tap * C + first) * ROW, C, HALVES)
        at = at_x + (((tap // 3) * wide + tap % 3) * ROW + first)
        v, v_low = load_halves(at, C, HALVES)
        a0 = product(v, v_low, b, b_low, a0, HALVES)
        v, v_low = load_halves(at + ROW, C, HALVES)
        a1 = product(v, v_low, b, b_low, a1, HALVES)
        v, v_low = load_halves(at + wide * ROW, C, HALVES)
        a2 = product(v, v_low, b, b_low, a2, HALVES)
        v, v_low = load_halves(at + (wide + 1) * ROW, C, HALVES)
        a3 = product(v, v_low, b, b_low, a3, HALVES)
    return a0, a1, a2, a3


@triton.jit
def taps_back(
    g, rows, w, c, wide, acc, C: tl.constexpr, BK: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """acc[p, ci] += sum over taps and co of g[p - tap, co] w[tap, ci, co]: the transpose of a convolution."""
    ROW: tl.constexpr = HALVES * C
    STEPS: tl.constexpr = C // BK
    k = tl.arange(0, BK)
    at_g = g + rows[:, None] + k[None, :]
    at_w = w + c[None, :] * ROW + k[:, None]
    for i in range(9 * STEPS):
        tap, first = i // STEPS, (i % STEPS) * BK
        b, b_low = load_halves(at_w + (tap * C * ROW + first), C, HALVES)
        v, v_low = load_halves(at_g + (((2 - tap // 3) * wide + 2 - tap % 3) * ROW + first), C, HALVES)
        acc = product(v, v_low, b, b_low, acc, HALVES)
    return acc


@triton.jit
def plane_forward_kernel(
    x, w, theta, xhat, rstd, h, B, PH, PW, w_stride, theta_stride, gamma_at, beta_at, eps, BORDER: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """One block: xhat, rstd (sums), and h, an image with a border of BORDER (0 where the classifier follows)."""
    PP = PH * PW
    student, image, p, real = planes_of(B, PP, IMAGES, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = 2 * PW + 2
    rows = (image * (2 * PH + 2) * wide + 2 * (p // PW) * wide + 2 * (p % PW)) * (HALVES * C)
    zero = tl.zeros([ROWS, BC], tl.float32)
    z0, z1, z2, z3 = _taps_of_quads(
        x, rows, w + student * w_stride, c, wide, zero, zero, zero, zero, C, BK, HALVES
    )  # fmt: skip
    n = PP * 4.0
    there = real[:, None]
    mean = spread(plane_sums(tl.where(there, z0 + z1 + z2 + z3, 0), IMAGES) / n, z0, IMAGES)
    z0, z1, z2, z3 = z0 - mean, z1 - mean, z2 - mean, z3 - mean
    squares = plane_sums(tl.where(there, z0 * z0 + z1 * z1 + z2 * z2 + z3 * z3, 0), IMAGES)
    r = tl.math.rsqrt(squares / n + eps)
    at, exists = lines_of(B, c, C, IMAGES)
    tl.store(rstd + at, r, mask=exists)
    r = spread(r, z0, IMAGES)
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    at = xhat + (image * 4 * PP + p)[:, None] * C + c[None, :]
    z0, z1, z2, z3 = z0 * r, z1 * r, z2 * r, z3 * r
    tl.store(at, z0.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + PP * C, z1.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + 2 * PP * C, z2.to(xhat.dtype.element_ty), mask=there)
    tl.store(at + 3 * PP * C, z3.to(xhat.dtype.element_ty), mask=there)
    pooled = tl.maximum(gamma * z0 + beta, 0) + tl.maximum(gamma * z1 + beta, 0)
    pooled += tl.maximum(gamma * z2 + beta, 0) + tl.maximum(gamma * z3 + beta, 0)
    at = image * (PH + 2 * BORDER) * (PW + 2 * BORDER) + (p // PW + BORDER) * (PW + 2 * BORDER) + p % PW + BORDER
    store_halves(h + (at * (HALVES * C))[:, None] + c[None, :], 0.25 * pooled, there, C, HALVES)


@triton.jit
def _tangent_of_quad(zdot, xhat, mean, slope, r, gamma, beta, gammadot, betadot):
    xhatdot = r * (zdot - mean - xhat * slope)
    return xhatdot, tl.where(gamma * xhat + beta > 0, gammadot * xhat + gamma * xhatdot + betadot, 0)


@triton.jit
def plane_tangent_kernel(
    x, xdot, w, wdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, hdot, B, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at, BORDER: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """The block's tangent: zdot = w * xdot + wdot * x; xhatdot as xhat, rstd_dot as rstd, hdot as h."""
    PP = PH * PW
    student, image, p, real = planes_of(B, PP, IMAGES, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = 2 * PW + 2
    rows = (image * (2 * PH + 2) * wide + 2 * (p // PW) * wide + 2 * (p % PW)) * (HALVES * C)
    zero = tl.zeros([ROWS, BC], tl.float32)
    z0, z1, z2, z3 = _taps_of_quads(
        xdot, rows, w + student * w_stride, c, wide, zero, zero, zero, zero, C, BK, HALVES
    )  # fmt: skip
    z0, z1, z2, z3 = _taps_of_quads(
        x, rows, wdot + student * w_stride, c, wide, z0, z1, z2, z3, C, BK, HALVES
    )  # fmt: skip
    n = PP * 4.0
    there = real[:, None]
    at_hat = (image * 4 * PP + p)[:, None] * C + c[None, :]
    x0 = tl.load(xhat + at_hat).to(tl.float32)
    x1 = tl.load(xhat + at_hat + PP * C).to(tl.float32)
    x2 = tl.load(xhat + at_hat + 2 * PP * C).to(tl.float32)
    x3 = tl.load(xhat + at_hat + 3 * PP * C).to(tl.float32)
    mean = spread(plane_sums(tl.where(there, z0 + z1 + z2 + z3, 0), IMAGES) / n, z0, IMAGES)
    slope = plane_sums(tl.where(there, z0 * x0 + z1 * x1 + z2 * x2 + z3 * x3, 0), IMAGES) / n
    at, exists = lines_of(B, c, C, IMAGES)
    r = tl.load(rstd + at)
    tl.store(rstd_dot + at, -r * r * slope, mask=exists)
    slope, r = spread(slope, z0, IMAGES), spread(r, z0, IMAGES)
    theta += student * theta_stride
    dot += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot, betadot = tl.load(dot + gamma_at + c)[None, :], tl.load(dot + beta_at + c)[None, :]
    z0, pooled = _tangent_of_quad(z0, x0, mean, slope, r, gamma, beta, gammadot, betadot)
    z1, more = _tangent_of_quad(z1, x1, mean, slope, r, gamma, beta, gammadot, betadot)
    pooled += more
    z2, more = _tangent_of_quad(z2, x2, mean, slope, r, gamma, beta, gammadot, betadot)
    pooled += more
    z3, more = _tangent_of_quad(z3, x3, mean, slope, r, gamma, beta, gammadot, betadot)
    pooled += more
    at_hat = xhatdot + at_hat
    tl.store(at_hat, z0.to(xhatdot.dtype.element_ty), mask=there)
    tl.store(at_hat + PP * C, z1.to(xhatdot.dtype.element_ty), mask=there)
    tl.store(at_hat + 2 * PP * C, z2.to(xhatdot.dtype.element_ty), mask=there)
    tl.store(at_hat + 3 * PP * C, z3.to(xhatdot.dtype.element_ty), mask=there)
    at = image * (PH + 2 * BORDER) * (PW + 2 * BORDER) + (p // PW + BORDER) * (PW + 2 * BORDER) + p % PW + BORDER
    store_halves(hdot + (at * (HALVES * C))[:, None] + c[None, :], 0.25 * pooled, there, C, HALVES)


@triton.jit
def norm_backward(
    g, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, image, p, real, c, student,
    B, PH, PW, theta_stride, gamma_at, beta_at, C: tl.constexpr, IMAGES: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """From the cotangent g (rows, channels) of the pooled planes: gz, an image; gp = g (pooled); sums for gamma and beta."""
    PP = PH * PW
    there = real[:, None]
    tl.store(gp + (image * PP + p)[:, None] * C + c[None, :], g.to(gp.dtype.element_ty), mask=there)
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    at_hat = xhat + (image * 4 * PP + p)[:, None] * C + c[None, :]
    g = tl.where(there, 0.25 * g, 0)
    by_beta = tl.zeros_like(g)
    by_gamma = tl.zeros_like(g)
    for quad in tl.static_range(4):
        v = tl.load(at_hat + quad * PP * C).to(tl.float32)
        gu = tl.where(gamma * v + beta > 0, g, 0)
        by_beta += gu
        by_gamma += gu * v
    gb, gg = plane_sums(by_beta, IMAGES), plane_sums(by_gamma, IMAGES)
    at, exists = lines_of(B, c, C, IMAGES)
    tl.store(gamma_parts + at, gg, mask=exists)
    tl.store(beta_parts + at, gb, mask=exists)
    tl.store(gamma_sums + at, gg, mask=exists)
    tl.store(beta_sums + at, gb, mask=exists)
    n = PP * 4.0
    r = spread(tl.load(rstd + at), g, IMAGES) * gamma
    gb, gg = spread(gb / n, g, IMAGES), spread(gg / n, g, IMAGES)
    wide = 2 * PW + 2
    gz += ((image * (2 * PH + 2) * wide + (2 * (p // PW) + 1) * wide + 2 * (p % PW) + 1) * (HALVES * C))[:, None] + c[
        None, :
    ]
    for quad in tl.static_range(4):
        v = tl.load(at_hat + quad * PP * C).to(tl.float32)
        gu = tl.where(gamma * v + beta > 0, g, 0)
        at_gz = gz + ((quad // 2) * wide + quad % 2) * (HALVES * C)
        store_halves(at_gz, r * (gu - gb - v * gg), there, C, HALVES)


@triton.jit
def plane_backward_kernel(
    g_above, w, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, B, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """The cotangent g_above of the next convolution's output (an image), through that convolution and this block."""
    student, image, p, real = planes_of(B, PH * PW, IMAGES, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = PW + 2
    rows = (image * (PH + 2) * wide + (p // PW) * wide + p % PW) * (HALVES * C)
    g = taps_back(
        g_above, rows, w + student * w_stride, c, wide, tl.zeros([ROWS, BC], tl.float32), C, BK, HALVES
    )  # fmt: skip
    norm_backward(
        g, theta, xhat, rstd, gz, gp, gamma_parts, beta_parts, gamma_sums, beta_sums, image, p, real, c, student,
        B, PH, PW, theta_stride, gamma_at, beta_at, C, IMAGES, HALVES,
    )  # fmt: skip


@triton.jit
def norm_tangent_backward(
    gdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
    image, p, real, c, student, B, PH, PW, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, IMAGES: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The tangent of `norm_backward`: gzdot (image) and sums for gamma and beta, from the tangent gdot of its g."""
    PP = PH * PW
    there = real[:, None]
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot = tl.load(dot + student * theta_stride + gamma_at + c)[None, :]
    g = 0.25 * tl.load(gp + (image * PP + p)[:, None] * C + c[None, :]).to(tl.float32)
    g, gdot = tl.where(there, g, 0), tl.where(there, 0.25 * gdot, 0)
    at_hat = (image * 4 * PP + p)[:, None] * C + c[None, :]
    by_beta = tl.zeros_like(g)
    by_gamma = tl.zeros_like(g)
    for quad in tl.static_range(4):
        v = tl.load(xhat + at_hat + quad * PP * C).to(tl.float32)
        vdot = tl.load(xhatdot + at_hat + quad * PP * C).to(tl.float32)
        on = gamma * v + beta > 0
        by_beta += tl.where(on, gdot, 0)
        by_gamma += tl.where(on, gdot * v + g * vdot, 0)
    gbdot, ggdot = plane_sums(by_beta, IMAGES), plane_sums(by_gamma, IMAGES)
    at, exists = lines_of(B, c, C, IMAGES)
    tl.store(gamma_parts + at, ggdot, mask=exists)
    tl.store(beta_parts + at, gbdot, mask=exists)
    n = PP * 4.0
    gg, gb = tl.load(gamma_sums + at), tl.load(beta_sums + at)
    mean_q, mean_qx = spread(gamma * gb / n, g, IMAGES), spread(gamma * gg / n, g, IMAGES)
    mean_qdot = spread((gamma * gbdot + gammadot * gb) / n, g, IMAGES)
    mean_qxdot = spread((gamma * ggdot + gammadot * gg) / n, g, IMAGES)
    r, rdot = spread(tl.load(rstd + at), g, IMAGES), spread(tl.load(rstd_dot + at), g, IMAGES)
    wide = 2 * PW + 2
    gzdot += ((image * (2 * PH + 2) * wide + (2 * (p // PW) + 1) * wide + 2 * (p % PW) + 1) * (HALVES * C))[:, None]
    gzdot += c[None, :]
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
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """The tangent of `plane_backward`: gdot = w^T gdot_above + wdot^T g_above, then this block."""
    student, image, p, real = planes_of(B, PH * PW, IMAGES, ROWS)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    wide = PW + 2
    rows = (image * (PH + 2) * wide + (p // PW) * wide + p % PW) * (HALVES * C)
    w += student * w_stride
    wdot += student * w_stride
    gdot = taps_back(gdot_above, rows, w, c, wide, tl.zeros([ROWS, BC], tl.float32), C, BK, HALVES)
    gdot = taps_back(g_above, rows, wdot, c, wide, gdot, C, BK, HALVES)
    norm_tangent_backward(
        gdot, theta, dot, xhat, rstd, xhatdot, rstd_dot, gp, gamma_sums, beta_sums, gzdot, gamma_parts, beta_parts,
        image, p, real, c, student, B, PH, PW, theta_stride, gamma_at, beta_at, C, IMAGES, HALVES,
    )  # fmt: skip


@triton.jit
def input_grad_kernel(
    g, w, g2, w2, gp, B, H, W, w_stride, PAIR: tl.constexpr,
    C: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """gp (S B, H W, C) = w^T g (+ w2^T g2) for images g of H x W pixels: the cotangent that the first block takes."""
    student = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < B * H * W
    row = tl.where(real, row, 0)
    image = student * B + row // (H * W)
    p = row % (H * W)
    wide = W + 2
    rows = (image * (H + 2) * wide + (p // W) * wide + p % W) * (HALVES * C)
    acc = tl.zeros([ROWS, BC], tl.float32)
    acc = taps_back(g, rows, w + student * w_stride, c, wide, acc, C, BK, HALVES)
    if PAIR:
        acc = taps_back(g2, rows, w2 + student * w_stride, c, wide, acc, C, BK, HALVES)
    at = (image * (H * W) + p)[:, None] * C + c[None, :]
    tl.store(gp + at, acc.to(gp.dtype.element_ty), mask=real[:, None])
