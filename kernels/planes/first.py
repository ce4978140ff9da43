"""The first block: its planes are the largest, its sums have few terms, so that it is computed again instead of stored.

z = P W with P the 3x3 windows of an image (`patches`), whose sums over the plane are kept: a plane's mean of z is
(sum P) W / n, that of zdot (sum P) Wdot / n, and mean(xhat zdot) = sum_k Wdot[k] (P^T xhat)[k] / n.  So the tangent needs one
pass over the pixels, and the others two.  A convolution's bias leaves an instance norm's output as it is and is not read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mct_fast.kernels.planes.common import after_the_last, halved, load_halves, product, store_halves

TILE = tl.constexpr(64)
"""Pooled pixels of a tile of patches."""


@triton.jit
def patches_kernel(
    x, patches, sums, tiles, PH, PW, H, W, BORDER: tl.constexpr,
    CHANNELS: tl.constexpr, KP: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """One image (CHANNELS, H, W): its windows as halves, and their sums over the plane (KP,).

    Column k of a window is channel k // 9, tap k % 9.
    """
    image = tl.program_id(0).to(tl.int64)
    x += image * CHANNELS * H * W
    patches += image * tiles * 4 * TILE * HALVES * KP
    k = tl.arange(0, KP)
    channel, tap = k // 9, k % 9
    real = k < CHANNELS * 9
    total = tl.zeros([KP], tl.float32)
    for tile in range(tiles * 4):
        p = tl.arange(0, TILE) + (tile // 4) * TILE
        quad = tile % 4
        row = 2 * (p // PW) + quad // 2 - BORDER
        column = 2 * (p % PW) + quad % 2 - BORDER
        r = row[:, None] + (tap // 3 - 1)[None, :]
        c = column[:, None] + (tap % 3 - 1)[None, :]
        inside = (r >= 0) & (r < H) & (c >= 0) & (c < W) & (p < PH * PW)[:, None] & real[None, :]
        v = tl.load(x + (channel * H * W)[None, :] + r * W + c, mask=inside, other=0)
        high, low = halved(v, HALVES)
        at = patches + (tl.arange(0, TILE) + tile * TILE)[:, None] * (HALVES * KP) + k[None, :]
        tl.store(at, high)
        rounded = high.to(tl.float32)
        if HALVES == 2:
            tl.store(at + KP, low)
            rounded += low.to(tl.float32)
        total += tl.sum(rounded, axis=0)
    tl.store(sums + image * KP + k, total)


@triton.jit
def _windows(patches, image, tiles, tile, quad, KP: tl.constexpr, HALVES: tl.constexpr):
    rows = ((image * tiles + tile) * 4 + quad) * TILE + tl.arange(0, TILE)
    return load_halves(patches + rows[:, None] * (HALVES * KP) + tl.arange(0, KP)[None, :], KP, HALVES)


@triton.jit
def _weights(w, c, C: tl.constexpr, KP: tl.constexpr, HALVES: tl.constexpr):
    return load_halves(w + tl.arange(0, KP)[:, None] * (HALVES * C) + c[None, :], C, HALVES)


@triton.jit
def _weights_turned(w, c, C: tl.constexpr, KP: tl.constexpr, HALVES: tl.constexpr):
    return load_halves(w + tl.arange(0, KP)[None, :] * (HALVES * C) + c[:, None], C, HALVES)


@triton.jit
def _mean(sums, image, w, w_low, n, KP: tl.constexpr, HALVES: tl.constexpr):
    """The mean over the plane of P W."""
    s = tl.load(sums + image * KP + tl.arange(0, KP))
    wide = w.to(tl.float32)
    if HALVES == 2:
        wide += w_low.to(tl.float32)
    return tl.sum(s[:, None] * wide, axis=0) / n


@triton.jit
def first_forward_kernel(
    patches, sums, w, theta, h, mean, rstd, px, B, tiles, PH, PW, w_stride, theta_stride, gamma_at, beta_at, eps,
    C: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h = pool(relu(gamma xhat + beta)) as an image; mean, rstd (sums); px (S B, KP, C) = P^T xhat."""
    after_the_last(PDL)
    image = tl.program_id(0).to(tl.int64)
    student = image // B
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w, w_low = _weights(w + student * w_stride, c, C, KP, HALVES)
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    n = PH * PW * 4.0
    m = _mean(sums, image, w, w_low, n, KP, HALVES)
    squares = tl.zeros([TILE, BC], tl.float32)
    for tile in range(tiles):
        real = (tl.arange(0, TILE) + tile * TILE < PH * PW)[:, None]
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            z = product(a, a_low, w, w_low, tl.zeros([TILE, BC], tl.float32), HALVES) - m[None, :]
            squares += tl.where(real, z * z, 0)
    r = tl.math.rsqrt(tl.sum(squares, axis=0) / n + eps)
    tl.store(mean + image * C + c, m)
    tl.store(rstd + image * C + c, r)
    correlation = tl.zeros([KP, BC], tl.float32)
    h += image * (PH + 2) * (PW + 2) * HALVES * C
    for tile in range(tiles):
        p = tl.arange(0, TILE) + tile * TILE
        pooled = tl.zeros([TILE, BC], tl.float32)
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            z = product(a, a_low, w, w_low, tl.zeros([TILE, BC], tl.float32), HALVES)
            xhat = (z - m[None, :]) * r[None, :]
            pooled += tl.maximum(gamma * xhat + beta, 0)
            # rows behind the plane's end have windows of zeros: they add nothing
            high, low = halved(xhat, HALVES)
            correlation = product(tl.trans(a), tl.trans(a_low), high, low, correlation, HALVES)
        at = ((p // PW + 1) * (PW + 2) + p % PW + 1) * (HALVES * C)
        store_halves(h + at[:, None] + c[None, :], 0.25 * pooled, (p < PH * PW)[:, None], C, HALVES)
    tl.store(px + image * KP * C + tl.arange(0, KP)[:, None] * C + c[None, :], correlation)


@triton.jit
def first_backward_kernel(
    patches, sums, w, theta, mean, rstd, px, gp, w_parts, gamma_parts, beta_parts, gamma_sums, beta_sums,
    B, tiles, PH, PW, w_stride, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Gradients by W (KP, C), gamma and beta of each image, from the cotangent gp (pooled) of its pooled plane.

    gz = r gamma (gu - mean gu - xhat mean(gu xhat)), so P^T gz needs P^T gu, and the sums that are there already.
    """
    after_the_last(PDL)
    image = tl.program_id(0).to(tl.int64)
    student = image // B
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w, w_low = _weights(w + student * w_stride, c, C, KP, HALVES)
    theta += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    m, r = tl.load(mean + image * C + c)[None, :], tl.load(rstd + image * C + c)[None, :]
    n = PH * PW * 4.0
    by_beta = tl.zeros([TILE, BC], tl.float32)
    by_gamma = tl.zeros([TILE, BC], tl.float32)
    total = tl.zeros([KP, BC], tl.float32)
    for tile in range(tiles):
        p = tl.arange(0, TILE) + tile * TILE
        at = gp + (image * PH * PW + p)[:, None] * C + c[None, :]
        g = 0.25 * tl.load(at, mask=(p < PH * PW)[:, None], other=0).to(tl.float32)
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            xhat = (product(a, a_low, w, w_low, tl.zeros([TILE, BC], tl.float32), HALVES) - m) * r
            gu = tl.where(gamma * xhat + beta > 0, g, 0)
            by_beta += gu
            by_gamma += gu * xhat
            high, low = halved(gu, HALVES)
            total = product(tl.trans(a), tl.trans(a_low), high, low, total, HALVES)
    gb, gg = tl.sum(by_beta, axis=0)[None, :], tl.sum(by_gamma, axis=0)[None, :]
    k = tl.arange(0, KP)[:, None]
    at = image * KP * C + k * C + c[None, :]
    s = tl.load(sums + image * KP + k)
    gw = r * gamma * (total - s * (gb / n) - tl.load(px + at) * (gg / n))
    tl.store(w_parts + at, gw)
    line = image * C + c[None, :]
    tl.store(gamma_parts + line, gg)
    tl.store(beta_parts + line, gb)
    tl.store(gamma_sums + line, gg)
    tl.store(beta_sums + line, gb)


@triton.jit
def first_tangent_kernel(
    patches, sums, w, wdot, theta, dot, mean, rstd, px, hdot, zdot_mean, zdot_slope, B, tiles, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at,
    C: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """hdot, the tangent of h (image), and of each plane mean(zdot) and mean(xhat zdot)."""
    after_the_last(PDL)
    image = tl.program_id(0).to(tl.int64)
    student = image // B
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    w, w_low = _weights(w + student * w_stride, c, C, KP, HALVES)
    wdot, wdot_low = _weights(wdot + student * w_stride, c, C, KP, HALVES)
    theta += student * theta_stride
    dot += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot, betadot = tl.load(dot + gamma_at + c)[None, :], tl.load(dot + beta_at + c)[None, :]
    m, r = tl.load(mean + image * C + c)[None, :], tl.load(rstd + image * C + c)[None, :]
    n = PH * PW * 4.0
    m1 = _mean(sums, image, wdot, wdot_low, n, KP, HALVES)
    wide = wdot.to(tl.float32)
    if HALVES == 2:
        wide += wdot_low.to(tl.float32)
    m2 = tl.sum(wide * tl.load(px + image * KP * C + tl.arange(0, KP)[:, None] * C + c[None, :]), axis=0) / n
    tl.store(zdot_mean + image * C + c, m1)
    tl.store(zdot_slope + image * C + c, m2)
    hdot += image * (PH + 2) * (PW + 2) * HALVES * C
    for tile in range(tiles):
        p = tl.arange(0, TILE) + tile * TILE
        pooled = tl.zeros([TILE, BC], tl.float32)
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            xhat = (product(a, a_low, w, w_low, tl.zeros([TILE, BC], tl.float32), HALVES) - m) * r
            zdot = product(a, a_low, wdot, wdot_low, tl.zeros([TILE, BC], tl.float32), HALVES)
            xhatdot = r * (zdot - m1[None, :] - xhat * m2[None, :])
            pooled += tl.where(gamma * xhat + beta > 0, gammadot * xhat + gamma * xhatdot + betadot, 0)
        at = ((p // PW + 1) * (PW + 2) + p % PW + 1) * (HALVES * C)
        store_halves(hdot + at[:, None] + c[None, :], 0.25 * pooled, (p < PH * PW)[:, None], C, HALVES)


@triton.jit
def first_tangent_backward_kernel(
    patches, w, wdot, theta, dot, mean, rstd, zdot_mean, zdot_slope, gamma_sums, beta_sums, gp, gpdot,
    w_parts, gamma_parts, beta_parts, columns, B, tiles, PH, PW,
    w_stride, theta_stride, gamma_at, beta_at, columns_stride,
    C: tl.constexpr, KP: tl.constexpr, BC: tl.constexpr, HALVES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Tangents of the gradients by W, gamma, beta of each image, and of that by its windows.

    columns[program_id(1)] (S B, KP, tiles * 256) holds these channels' part of the last: gzdot W^T + gz Wdot^T.
    """
    after_the_last(PDL)
    image = tl.program_id(0).to(tl.int64)
    student = image // B
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ws, wdots = w + student * w_stride, wdot + student * w_stride
    wn, wn_low = _weights(ws, c, C, KP, HALVES)
    wd, wd_low = _weights(wdots, c, C, KP, HALVES)
    wt, wt_low = _weights_turned(ws, c, C, KP, HALVES)
    wdt, wdt_low = _weights_turned(wdots, c, C, KP, HALVES)
    theta += student * theta_stride
    dot += student * theta_stride
    gamma, beta = tl.load(theta + gamma_at + c)[None, :], tl.load(theta + beta_at + c)[None, :]
    gammadot = tl.load(dot + gamma_at + c)[None, :]
    line = image * C + c[None, :]
    m, r = tl.load(mean + line), tl.load(rstd + line)
    m1, m2 = tl.load(zdot_mean + line), tl.load(zdot_slope + line)
    n = PH * PW * 4.0
    by_beta = tl.zeros([TILE, BC], tl.float32)
    by_gamma = tl.zeros([TILE, BC], tl.float32)
    for tile in range(tiles):
        p = tl.arange(0, TILE) + tile * TILE
        at = (image * PH * PW + p)[:, None] * C + c[None, :]
        real = (p < PH * PW)[:, None]
        g = 0.25 * tl.load(gp + at, mask=real, other=0).to(tl.float32)
        gdot = 0.25 * tl.load(gpdot + at, mask=real, other=0).to(tl.float32)
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            xhat = (product(a, a_low, wn, wn_low, tl.zeros([TILE, BC], tl.float32), HALVES) - m) * r
            zdot = product(a, a_low, wd, wd_low, tl.zeros([TILE, BC], tl.float32), HALVES)
            xhatdot = r * (zdot - m1 - xhat * m2)
            on = gamma * xhat + beta > 0
            by_beta += tl.where(on, gdot, 0)
            by_gamma += tl.where(on, gdot * xhat + g * xhatdot, 0)
    gbdot, ggdot = tl.sum(by_beta, axis=0)[None, :], tl.sum(by_gamma, axis=0)[None, :]
    tl.store(gamma_parts + line, ggdot)
    tl.store(beta_parts + line, gbdot)
    gg, gb = tl.load(gamma_sums + line), tl.load(beta_sums + line)
    mean_q, mean_qx = gamma * gb / n, gamma * gg / n
    mean_qdot = (gamma * gbdot + gammadot * gb) / n
    mean_qxdot = (gamma * ggdot + gammadot * gg) / n
    rdot = -r * r * m2
    total = tl.zeros([KP, BC], tl.float32)
    columns += tl.program_id(1).to(tl.int64) * columns_stride + image * tiles * 4 * TILE * KP
    for tile in range(tiles):
        p = tl.arange(0, TILE) + tile * TILE
        at = (image * PH * PW + p)[:, None] * C + c[None, :]
        real = (p < PH * PW)[:, None]
        g = 0.25 * tl.load(gp + at, mask=real, other=0).to(tl.float32)
        gdot = 0.25 * tl.load(gpdot + at, mask=real, other=0).to(tl.float32)
        for quad in tl.static_range(4):
            a, a_low = _windows(patches, image, tiles, tile, quad, KP, HALVES)
            xhat = (product(a, a_low, wn, wn_low, tl.zeros([TILE, BC], tl.float32), HALVES) - m) * r
            zdot = product(a, a_low, wd, wd_low, tl.zeros([TILE, BC], tl.float32), HALVES)
            xhatdot = r * (zdot - m1 - xhat * m2)
            on = gamma * xhat + beta > 0
            gu, gudot = tl.where(on, g, 0), tl.where(on, gdot, 0)
            centred = gamma * gu - mean_q - xhat * mean_qx
            gz = r * centred
            gzdot = rdot * centred + r * (
                gamma * gudot + gammadot * gu - mean_qdot - xhatdot * mean_qx - xhat * mean_qxdot
            )
            high, low = halved(gz, HALVES)
            high_dot, low_dot = halved(gzdot, HALVES)
            total = product(tl.trans(a), tl.trans(a_low), high_dot, low_dot, total, HALVES)
            back = product(high_dot, low_dot, wt, wt_low, tl.zeros([TILE, KP], tl.float32), HALVES)
            back = product(high, low, wdt, wdt_low, back, HALVES)
            rows = tl.arange(0, TILE) + (tile * 4 + quad) * TILE
            k = tl.arange(0, KP)[None, :]
            tl.store(columns + k * (tiles * 4 * TILE) + rows[:, None], back.to(columns.dtype.element_ty))
    tl.store(w_parts + image * KP * C + tl.arange(0, KP)[:, None] * C + c[None, :], total)


@triton.jit
def columns_kernel(
    columns, tau, gx, B, tiles, PH, PW, H, W, columns_stride, BORDER: tl.constexpr,
    CHANNELS: tl.constexpr, KP: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The transpose of `patches`: gx (S B, CHANNELS, H, W), each pixel the sum of the windows that hold it, over tau."""
    after_the_last(PDL)
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // W + BORDER, at % W + BORDER
    columns += (image * KP + channel * 9) * tiles * 4 * TILE
    total = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(9):
        r, c = row - (tap // 3 - 1), column - (tap % 3 - 1)
        inside = (at < H * W) & (r >= 0) & (r < 2 * PH) & (c >= 0) & (c < 2 * PW)
        p = (r // 2) * PW + c // 2
        window = ((p // TILE) * 4 + (r % 2) * 2 + c % 2) * TILE + p % TILE
        for part in tl.static_range(PARTS):
            here = columns + tl.cast(columns_stride, tl.int64) * part + tap * tiles * 4 * TILE + window
            total += tl.load(here, mask=inside, other=0).to(tl.float32)
    total = total / tl.load(tau + image // B)
    tl.store(gx + (image * CHANNELS + channel) * H * W + at, total, mask=at < H * W)
