"""Instance norm -> ReLU -> 2x2 average pool: forward, backward, tangent, and tangent of the backward.

A program holds some channels of one image's plane, as a tile (4, cells, channels): a cell is a 2x2 window, its four pixels
the first axis, so that pooling adds registers of one thread. Planes that fit (`tuning.plane`) are read once and kept on
chip; larger ones are read again for each sum that needs the one before. The variance is that of the centred values. Odd
sizes leave cells of fewer pixels: masked. Formulas: the docstrings of `mct_fast.ops`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch
from mct_fast.kernels.reduce import sum_rows

# ------------------------------------------------------------------------------------------------------------- tiles


@triton.jit
def _here(B, C, CHANNELS: tl.constexpr):
    """This program's image, student and channels."""
    blocks = (C + CHANNELS - 1) // CHANNELS
    image = tl.program_id(0) // blocks
    c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    return image.to(tl.int64), (image // B).to(tl.int64), c, c < C


@triton.jit
def _pixels(start, H, W, C, c, ok, CELLS: tl.constexpr):
    """Offsets of a tile (4, CELLS, channels) within one image, and which of them exist."""
    cell = start + tl.arange(0, CELLS)
    corner = tl.arange(0, 4)
    across = (W + 1) // 2
    row = 2 * (cell // across)[None, :] + (corner // 2)[:, None]
    column = 2 * (cell % across)[None, :] + (corner % 2)[:, None]
    inside = (row < H) & (column < W)
    return ((row * W + column) * C)[:, :, None] + c[None, None, :], inside[:, :, None] & ok[None, None, :]


@triton.jit
def _pooled(start, H, W, C, c, ok, CELLS: tl.constexpr):
    """Offsets of the cells (CELLS, channels) within one pooled image, and which of them exist."""
    cell = start + tl.arange(0, CELLS)
    across = (W + 1) // 2
    row, column = cell // across, cell % across
    inside = (row < H // 2) & (column < W // 2)
    return ((row * (W // 2) + column) * C)[:, None] + c[None, :], inside[:, None] & ok[None, :]


@triton.jit
def _load_up(g, start, H, W, C, c, ok, POOL: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """The block's cotangent at each pixel: a pooled one is spread over its window; 0 where no output looks."""
    if POOL:
        at, inside = _pooled(start, H, W, C, c, ok, CELLS)
        up = tl.broadcast_to((tl.load(g + at, mask=inside, other=0) * 0.25)[None, :, :], [4, CELLS, CHANNELS])
    else:
        at, inside = _pixels(start, H, W, C, c, ok, CELLS)
        up = tl.load(g + at, mask=inside, other=0)
    return up


@triton.jit
def _store_down(p, a, start, H, W, C, c, ok, POOL: tl.constexpr, CELLS: tl.constexpr):
    """Store a tile of the block's output, pooled where it is to be."""
    if POOL:
        at, inside = _pooled(start, H, W, C, c, ok, CELLS)
        tl.store(p + at, tl.sum(a, axis=0) * 0.25, mask=inside)
    else:
        at, inside = _pixels(start, H, W, C, c, ok, CELLS)
        tl.store(p + at, a, mask=inside)


@triton.jit
def _sum(x):
    """Sum over the plane: (4, cells, channels) to (channels)."""
    return tl.sum(tl.sum(x, axis=0), axis=0)


@triton.jit
def _channel(values, student, stride, c, ok):
    """A parameter of each channel, or a statistic of each plane."""
    return tl.load(values + student * stride + c, mask=ok, other=0)


@triton.jit
def _masked(u, v):
    """v where ReLU lets u through: 0 where u <= 0, so that a NaN is not hidden."""
    return tl.where(u <= 0, 0.0, v)


@triton.jit
def _wide(v):
    """(channels) against (4, cells, channels)."""
    return v[None, None, :]


# ----------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def block_forward_kernel(
    z, gamma, beta, p, mean, rstd, B, H, W, C, out_plane, gamma_stride, beta_stride, eps,
    NORM: tl.constexpr, POOL: tl.constexpr, ONE: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """p, mean and rstd of some channels of one image."""
    image, student, c, ok = _here(B, C, CHANNELS)
    cells = ((H + 1) // 2) * ((W + 1) // 2)
    z += image * H * W * C
    p += image * out_plane
    if NORM:
        g, b = _channel(gamma, student, gamma_stride, c, ok), _channel(beta, student, beta_stride, c, ok)
        n = (H * W).to(tl.float32)
        if ONE:
            at, inside = _pixels(0, H, W, C, c, ok, CELLS)
            x = tl.load(z + at, mask=inside, other=0)
            m = _sum(x) / n
            x -= _wide(m)
            x = tl.where(inside, x, 0)
            r = tl.div_rn(1.0, tl.sqrt_rn(_sum(x * x) / n + eps))
            u = _wide(g) * (x * _wide(r)) + _wide(b)
            _store_down(p, _masked(u, u), 0, H, W, C, c, ok, POOL, CELLS)
        else:
            total = tl.zeros([CHANNELS], tl.float32)
            for start in range(0, cells, CELLS):
                at, inside = _pixels(start, H, W, C, c, ok, CELLS)
                total += _sum(tl.load(z + at, mask=inside, other=0))
            m = total / n
            total = tl.zeros([CHANNELS], tl.float32)
            for start in range(0, cells, CELLS):
                at, inside = _pixels(start, H, W, C, c, ok, CELLS)
                x = tl.where(inside, tl.load(z + at, mask=inside, other=0) - _wide(m), 0)
                total += _sum(x * x)
            r = tl.div_rn(1.0, tl.sqrt_rn(total / n + eps))
            for start in range(0, cells, CELLS):
                at, inside = _pixels(start, H, W, C, c, ok, CELLS)
                x = tl.load(z + at, mask=inside, other=0)
                u = _wide(g) * ((x - _wide(m)) * _wide(r)) + _wide(b)
                _store_down(p, _masked(u, u), start, H, W, C, c, ok, POOL, CELLS)
        tl.store(mean + image * C + c, m, mask=ok)
        tl.store(rstd + image * C + c, r, mask=ok)
    else:
        for start in range(0, cells, CELLS):
            at, inside = _pixels(start, H, W, C, c, ok, CELLS)
            x = tl.load(z + at, mask=inside, other=0)
            _store_down(p, _masked(x, x), start, H, W, C, c, ok, POOL, CELLS)
        tl.store(mean + image * C + c, tl.zeros([CHANNELS], tl.float32), mask=ok)
        tl.store(rstd + image * C + c, tl.full([CHANNELS], 1.0, tl.float32), mask=ok)


@triton.jit
def _cotangent(
    z, gp, start, m, r, g, b, H, W, C, c, ok, POOL: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr
):
    """xhat and gu of one tile."""
    at, inside = _pixels(start, H, W, C, c, ok, CELLS)
    xhat = (tl.load(z + at, mask=inside, other=0) - _wide(m)) * _wide(r)
    up = _load_up(gp, start, H, W, C, c, ok, POOL, CELLS, CHANNELS)
    return xhat, _masked(_wide(g) * xhat + _wide(b), up), at, inside


@triton.jit
def block_backward_kernel(
    gp, z, mean, rstd, gamma, beta, gz, ggamma, gbeta, B, H, W, C, out_plane, gamma_stride, beta_stride,
    NORM: tl.constexpr, POOL: tl.constexpr, ONE: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """gz of some channels of one image, and its share (S, B, C) of ggamma and gbeta."""
    image, student, c, ok = _here(B, C, CHANNELS)
    cells = ((H + 1) // 2) * ((W + 1) // 2)
    z += image * H * W * C
    gz += image * H * W * C
    gp += image * out_plane
    if NORM:
        m, r = _channel(mean, image, C, c, ok), _channel(rstd, image, C, c, ok)
        g, b = _channel(gamma, student, gamma_stride, c, ok), _channel(beta, student, beta_stride, c, ok)
        n = (H * W).to(tl.float32)
        if ONE:
            xhat, gu, at, inside = _cotangent(z, gp, 0, m, r, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS)
            sum_gu, sum_gu_xhat = _sum(gu), _sum(gu * xhat)
            scale = g / n
            out = _wide(r) * (_wide(g) * gu - _wide(scale * sum_gu) - xhat * _wide(scale * sum_gu_xhat))
            tl.store(gz + at, out, mask=inside)
        else:
            sum_gu = tl.zeros([CHANNELS], tl.float32)
            sum_gu_xhat = tl.zeros([CHANNELS], tl.float32)
            for start in range(0, cells, CELLS):
                xhat, gu, at, inside = _cotangent(z, gp, start, m, r, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS)
                sum_gu += _sum(gu)
                sum_gu_xhat += _sum(gu * xhat)
            scale = g / n
            for start in range(0, cells, CELLS):
                xhat, gu, at, inside = _cotangent(z, gp, start, m, r, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS)
                out = _wide(r) * (_wide(g) * gu - _wide(scale * sum_gu) - xhat * _wide(scale * sum_gu_xhat))
                tl.store(gz + at, out, mask=inside)
        tl.store(ggamma + image * C + c, sum_gu_xhat, mask=ok)
        tl.store(gbeta + image * C + c, sum_gu, mask=ok)
    else:
        for start in range(0, cells, CELLS):
            at, inside = _pixels(start, H, W, C, c, ok, CELLS)
            up = _load_up(gp, start, H, W, C, c, ok, POOL, CELLS, CHANNELS)
            tl.store(gz + at, _masked(tl.load(z + at, mask=inside, other=0), up), mask=inside)


@triton.jit
def _store_tangent(
    x, xd, p, start, m, r, m1, m2, g, b, gd, bd, H, W, C, c, ok, POOL: tl.constexpr, CELLS: tl.constexpr
):  # fmt: skip
    """One tile of pdot; x and xd are z and zdot."""
    xhat = (x - _wide(m)) * _wide(r)
    xhat_dot = _wide(r) * (xd - _wide(m1) - xhat * _wide(m2))
    udot = _wide(gd) * xhat + _wide(g) * xhat_dot + _wide(bd)
    _store_down(p, _masked(_wide(g) * xhat + _wide(b), udot), start, H, W, C, c, ok, POOL, CELLS)


@triton.jit
def block_tangent_kernel(
    z, zdot, mean, rstd, gamma, beta, gamma_dot, beta_dot, p, mean_zdot, mean_xhat_zdot, B, H, W, C, out_plane,
    gamma_stride, beta_stride, gamma_dot_stride, beta_dot_stride,
    NORM: tl.constexpr, POOL: tl.constexpr, ONE: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """pdot and the two means of some channels of one image."""
    image, student, c, ok = _here(B, C, CHANNELS)
    cells = ((H + 1) // 2) * ((W + 1) // 2)
    z += image * H * W * C
    zdot += image * H * W * C
    p += image * out_plane
    if NORM:
        m, r = _channel(mean, image, C, c, ok), _channel(rstd, image, C, c, ok)
        g, b = _channel(gamma, student, gamma_stride, c, ok), _channel(beta, student, beta_stride, c, ok)
        gd = _channel(gamma_dot, student, gamma_dot_stride, c, ok)
        bd = _channel(beta_dot, student, beta_dot_stride, c, ok)
        n = (H * W).to(tl.float32)
        if ONE:
            at, inside = _pixels(0, H, W, C, c, ok, CELLS)
            x, xd = tl.load(z + at, mask=inside, other=0), tl.load(zdot + at, mask=inside, other=0)
            m1 = _sum(xd) / n
            m2 = _sum((x - _wide(m)) * _wide(r) * xd) / n
            _store_tangent(x, xd, p, 0, m, r, m1, m2, g, b, gd, bd, H, W, C, c, ok, POOL, CELLS)
        else:
            m1 = tl.zeros([CHANNELS], tl.float32)
            m2 = tl.zeros([CHANNELS], tl.float32)
            for start in range(0, cells, CELLS):
                at, inside = _pixels(start, H, W, C, c, ok, CELLS)
                x, xd = tl.load(z + at, mask=inside, other=0), tl.load(zdot + at, mask=inside, other=0)
                m1 += _sum(xd)
                m2 += _sum((x - _wide(m)) * _wide(r) * xd)
            m1 = m1 / n
            m2 = m2 / n
            for start in range(0, cells, CELLS):
                at, inside = _pixels(start, H, W, C, c, ok, CELLS)
                x, xd = tl.load(z + at, mask=inside, other=0), tl.load(zdot + at, mask=inside, other=0)
                _store_tangent(x, xd, p, start, m, r, m1, m2, g, b, gd, bd, H, W, C, c, ok, POOL, CELLS)
        tl.store(mean_zdot + image * C + c, m1, mask=ok)
        tl.store(mean_xhat_zdot + image * C + c, m2, mask=ok)
    else:
        for start in range(0, cells, CELLS):
            at, inside = _pixels(start, H, W, C, c, ok, CELLS)
            x, xd = tl.load(z + at, mask=inside, other=0), tl.load(zdot + at, mask=inside, other=0)
            _store_down(p, _masked(x, xd), start, H, W, C, c, ok, POOL, CELLS)
        tl.store(mean_zdot + image * C + c, tl.zeros([CHANNELS], tl.float32), mask=ok)
        tl.store(mean_xhat_zdot + image * C + c, tl.zeros([CHANNELS], tl.float32), mask=ok)


@triton.jit
def _dual_cotangent(
    z, zdot, gp, gp_dot, start, m, r, m1, m2, g, b, H, W, C, c, ok,
    POOL: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """xhat and gu of one tile with their tangents."""
    at, inside = _pixels(start, H, W, C, c, ok, CELLS)
    xhat = (tl.load(z + at, mask=inside, other=0) - _wide(m)) * _wide(r)
    xhat_dot = _wide(r) * (tl.load(zdot + at, mask=inside, other=0) - _wide(m1) - xhat * _wide(m2))
    u = _wide(g) * xhat + _wide(b)
    gu = _masked(u, _load_up(gp, start, H, W, C, c, ok, POOL, CELLS, CHANNELS))
    gu_dot = _masked(u, _load_up(gp_dot, start, H, W, C, c, ok, POOL, CELLS, CHANNELS))
    return xhat, xhat_dot, gu, gu_dot, at, inside


@triton.jit
def _store_tangent_backward(
    gz, gz_dot, xhat, xhat_dot, gu, gu_dot, at, inside, r, rdot, g, gd, mean_q, mean_qx, mean_qd, mean_qxd
):  # fmt: skip
    """One tile of gz and gzdot."""
    inner = _wide(g) * gu - _wide(mean_q) - xhat * _wide(mean_qx)
    tl.store(gz + at, _wide(r) * inner, mask=inside)
    qdot = _wide(g) * gu_dot + _wide(gd) * gu
    inner_dot = qdot - _wide(mean_qd) - xhat_dot * _wide(mean_qx) - xhat * _wide(mean_qxd)
    tl.store(gz_dot + at, _wide(rdot) * inner + _wide(r) * inner_dot, mask=inside)


@triton.jit
def block_tangent_backward_kernel(
    gp, gp_dot, z, zdot, mean, rstd, mean_zdot, mean_xhat_zdot, gamma, beta, gamma_dot, gz, gz_dot, ggamma, gbeta,
    B, H, W, C, out_plane, gamma_stride, beta_stride, gamma_dot_stride,
    NORM: tl.constexpr, POOL: tl.constexpr, ONE: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """gz and gzdot of some channels of one image, and its share (S, B, C) of ggammadot and gbetadot."""
    image, student, c, ok = _here(B, C, CHANNELS)
    cells = ((H + 1) // 2) * ((W + 1) // 2)
    z += image * H * W * C
    zdot += image * H * W * C
    gz += image * H * W * C
    gz_dot += image * H * W * C
    gp += image * out_plane
    gp_dot += image * out_plane
    if NORM:
        m, r = _channel(mean, image, C, c, ok), _channel(rstd, image, C, c, ok)
        m1, m2 = _channel(mean_zdot, image, C, c, ok), _channel(mean_xhat_zdot, image, C, c, ok)
        g, b = _channel(gamma, student, gamma_stride, c, ok), _channel(beta, student, beta_stride, c, ok)
        gd = _channel(gamma_dot, student, gamma_dot_stride, c, ok)
        n = (H * W).to(tl.float32)
        rdot = -r * r * m2
        if ONE:
            xhat, xhat_dot, gu, gu_dot, at, inside = _dual_cotangent(
                z, zdot, gp, gp_dot, 0, m, r, m1, m2, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS
            )
            sum_gu, sum_gux = _sum(gu), _sum(gu * xhat)
            sum_gud, sum_guxd = _sum(gu_dot), _sum(gu_dot * xhat + gu * xhat_dot)
            _store_tangent_backward(
                gz, gz_dot, xhat, xhat_dot, gu, gu_dot, at, inside, r, rdot, g, gd, g * sum_gu / n, g * sum_gux / n,
                (g * sum_gud + gd * sum_gu) / n, (g * sum_guxd + gd * sum_gux) / n,
            )  # fmt: skip
        else:
            sum_gu = tl.zeros([CHANNELS], tl.float32)
            sum_gux = tl.zeros([CHANNELS], tl.float32)
            sum_gud = tl.zeros([CHANNELS], tl.float32)
            sum_guxd = tl.zeros([CHANNELS], tl.float32)
            for start in range(0, cells, CELLS):
                xhat, xhat_dot, gu, gu_dot, at, inside = _dual_cotangent(
                    z, zdot, gp, gp_dot, start, m, r, m1, m2, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS
                )
                sum_gu += _sum(gu)
                sum_gux += _sum(gu * xhat)
                sum_gud += _sum(gu_dot)
                sum_guxd += _sum(gu_dot * xhat + gu * xhat_dot)
            for start in range(0, cells, CELLS):
                xhat, xhat_dot, gu, gu_dot, at, inside = _dual_cotangent(
                    z, zdot, gp, gp_dot, start, m, r, m1, m2, g, b, H, W, C, c, ok, POOL, CELLS, CHANNELS
                )
                _store_tangent_backward(
                    gz, gz_dot, xhat, xhat_dot, gu, gu_dot, at, inside, r, rdot, g, gd, g * sum_gu / n, g * sum_gux / n,
                    (g * sum_gud + gd * sum_gu) / n, (g * sum_guxd + gd * sum_gux) / n,
                )  # fmt: skip
        tl.store(ggamma + image * C + c, sum_guxd, mask=ok)
        tl.store(gbeta + image * C + c, sum_gud, mask=ok)
    else:
        for start in range(0, cells, CELLS):
            at, inside = _pixels(start, H, W, C, c, ok, CELLS)
            x = tl.load(z + at, mask=inside, other=0)
            up = _load_up(gp, start, H, W, C, c, ok, POOL, CELLS, CHANNELS)
            tl.store(gz + at, _masked(x, up), mask=inside)
            up = _load_up(gp_dot, start, H, W, C, c, ok, POOL, CELLS, CHANNELS)
            tl.store(gz_dot + at, _masked(x, up), mask=inside)


# --------------------------------------------------------------------------------------------------------- launchers


def _start(kernel: object, z: Tensor, norm: bool, pool: bool, arrays: int, *args: object) -> None:
    """Launch a block kernel whose programs hold `arrays` values a pixel; `args` are what follows B, H, W, C in order.

    The first argument of `args` is the tuple of tensors, the rest are strides and numbers.
    """
    students, batch, height, width, channels = z.shape
    tile = tuning.plane(height, width, channels, batch, arrays)
    grid = (students * batch * ceil_div(channels, tile.config.blocks["CHANNELS"]),)
    out_plane = channels * (height // 2 * (width // 2) if pool else height * width)
    tensors, *rest = args
    assert isinstance(tensors, tuple)
    launch(
        kernel, grid, tile.config, *tensors, batch, height, width, channels, out_plane, *rest,
        NORM=norm, POOL=pool, ONE=tile.whole,
    )  # fmt: skip


def _or(t: Tensor | None, other: Tensor) -> Tensor:
    """`t`, or any tensor for a pointer that the kernel does not touch."""
    return other if t is None else t


def _output(z: Tensor, pool: bool) -> Tensor:
    s, b, h, w, c = z.shape
    return z.new_empty(s, b, h // 2, w // 2, c) if pool else torch.empty_like(z)


def block_forward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.block_forward`."""
    p, stats = _output(z, pool), (z.shape[0], z.shape[1], z.shape[4])
    mean, rstd = z.new_empty(stats), z.new_empty(stats)
    g, b = _or(gamma, z), _or(beta, z)
    tensors = (z, g, b, p, mean, rstd)
    _start(block_forward_kernel, z, gamma is not None, pool, 1, tensors, g.stride(0), b.stride(0), float(eps))
    return p, mean, rstd


def block_backward(
    gp: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.block_backward`."""
    gz, norm = torch.empty_like(z), gamma is not None
    g, b = _or(gamma, z), _or(beta, z)
    shares = (z.new_empty(mean.shape), z.new_empty(mean.shape)) if norm else (z, z)
    tensors = (gp, z, mean, rstd, g, b, gz, *shares)
    _start(block_backward_kernel, z, norm, pool, 2, tensors, g.stride(0), b.stride(0))
    return gz, *_sums(z, shares, norm)


def block_tangent(
    z: Tensor,
    zdot: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.block_tangent`."""
    p, mean_zdot, mean_xhat_zdot = _output(z, pool), torch.empty_like(mean), torch.empty_like(mean)
    affine = [_or(t, z) for t in (gamma, beta, gammadot, betadot)]
    tensors = (z, zdot, mean, rstd, *affine, p, mean_zdot, mean_xhat_zdot)
    _start(block_tangent_kernel, z, gamma is not None, pool, 2, tensors, *(t.stride(0) for t in affine))
    return p, mean_zdot, mean_xhat_zdot


def block_tangent_backward(
    gp: Tensor,
    gpdot: Tensor,
    z: Tensor,
    zdot: Tensor,
    mean: Tensor,
    rstd: Tensor,
    mean_zdot: Tensor,
    mean_xhat_zdot: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    gammadot: Tensor | None,
    betadot: Tensor | None,
    pool: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mct_fast.ops.block_tangent_backward`."""
    del betadot  # the derivative does not depend on it
    gz, gzdot, norm = torch.empty_like(z), torch.empty_like(z), gamma is not None
    affine = [_or(t, z) for t in (gamma, beta, gammadot)]
    shares = (z.new_empty(mean.shape), z.new_empty(mean.shape)) if norm else (z, z)
    tensors = (gp, gpdot, z, zdot, mean, rstd, mean_zdot, mean_xhat_zdot, *affine, gz, gzdot, *shares)
    _start(block_tangent_backward_kernel, z, norm, pool, 4, tensors, *(t.stride(0) for t in affine))
    return gz, gzdot, *_sums(z, shares, norm)


def _sums(z: Tensor, shares: tuple[Tensor, Tensor], norm: bool) -> tuple[Tensor, Tensor]:
    """Shares (S, B, C) of the images added to (S, C); zeros without a norm."""
    size = (z.shape[0], z.shape[4])
    if not norm:
        return z.new_zeros(size), z.new_zeros(size)
    first, second = z.new_empty(size), z.new_empty(size)
    sum_rows(shares[0], first, shares[1], second)
    return first, second
