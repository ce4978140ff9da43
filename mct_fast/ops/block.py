"""What follows a convolution, in one pass: instance norm, ReLU, 2x2 average pool; its vjp, its tangent, and the vjp's tangent.

A trailing ``dot`` is a tangent, a leading ``g`` a cotangent. xhat = (z - mean) rstd over each plane, u = gamma xhat + beta,
p = pool(relu(u)); without a norm u = z. ``up`` spreads a quarter of each cotangent over the window of the pool.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, parameter

Planes = Annotated[Tensor, activation("S B H W C")]
Pooled = Annotated[Tensor, activation("S B H/pool W/pool C")]
Statistic = Annotated[Tensor, activation("S B C")]
Channels = Annotated[Tensor, parameter("S C")]


def _pool(a: Tensor) -> Tensor:
    """2x2 average pool of (S, B, H, W, C), an odd last row or column dropped, as nn.AvgPool2d(2)."""
    s, b, h, w, c = a.shape
    h, w = h // 2, w // 2
    return a[:, :, : 2 * h, : 2 * w].reshape(s, b, h, 2, w, 2, c).mean(dim=(3, 5))


def _unpool(g: Tensor, like: Tensor) -> Tensor:
    """Adjoint of `_pool`."""
    up = (g / 4).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.pad(up, (0, 0, 0, like.shape[3] - up.shape[3], 0, like.shape[2] - up.shape[2]))


def _channel(p: Tensor) -> Tensor:
    """(S, C) to broadcast against (S, B, H, W, C)."""
    return p[:, None, None, None, :]


def _plane(p: Tensor) -> Tensor:
    """(S, B, C) to broadcast against (S, B, H, W, C)."""
    return p[:, :, None, None, :]


def _mean(x: Tensor) -> Tensor:
    """Mean over the plane, kept broadcastable."""
    return x.mean(dim=(2, 3), keepdim=True)


def _masked(u: Tensor, v: Tensor) -> Tensor:
    """v where ReLU lets u through: 0 where u <= 0, so that a NaN is not hidden."""
    return torch.where(u <= 0, 0, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, gamma, beta, _, ctx.pool = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z, gamma, beta, *output[1:])


def _vjp(ctx: Any, gp: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    z, gamma, beta, mean, rstd = ctx.saved_tensors
    gz, ggamma, gbeta = block_backward(gp.contiguous(), z, mean, rstd, gamma, beta, ctx.pool)
    return gz, None if gamma is None else ggamma, None if beta is None else gbeta, None, None


@operator(together=("gamma", "beta"), derivative=(_save, _vjp))
def block_forward(
    z: Planes, gamma: Channels | None, beta: Channels | None, eps: float, pool: bool
) -> tuple[Pooled, Statistic, Statistic]:
    """p = pool(relu(gamma xhat + beta)), and the statistics of each plane.

    Args:
        z: Planes, (S, B, H, W, C).
        gamma: Scale, (S, C); None, with ``beta``, for a block without a norm.
        beta: Shift, (S, C).
        eps: Added to the variance.
        pool: Average 2x2, and drop an odd last row or column as `torch.nn.AvgPool2d`.

    Returns:
        p, (S, B, H', W', C), the mean and rstd = (variance + eps)^-1/2, (S, B, C) each; without a norm 0 and 1. First
        derivative only, of p by z, gamma and beta (through `block_backward`).
    """
    if gamma is None or beta is None:
        shape = (z.shape[0], z.shape[1], z.shape[4])
        u, mean, rstd = z, z.new_zeros(shape), z.new_ones(shape)
    else:
        centre = _mean(z)
        r = (_mean((z - centre).square()) + eps).rsqrt()
        u = _channel(gamma) * ((z - centre) * r) + _channel(beta)
        mean, rstd = centre[:, :, 0, 0], r[:, :, 0, 0]
    a = u.clamp_min(0)
    return (_pool(a) if pool else a), mean.contiguous(), rstd.contiguous()


@operator(lead="z", together=("gamma", "beta"))
def block_backward(
    gp: Pooled, z: Planes, mean: Statistic, rstd: Statistic, gamma: Channels | None, beta: Channels | None, pool: bool
) -> tuple[Planes, Channels, Channels]:
    """Cotangents of `block_forward`'s arguments, with gu = up(gp) [u > 0] and q = gamma gu.

    gz = rstd (q - mean q - xhat mean(q xhat)), ggamma = sum gu xhat, gbeta = sum gu.

    Args:
        gp: Cotangent of p, (S, B, H', W', C).
        z: As in `block_forward`, like the arguments below.
        mean: As it returned, like ``rstd``.
        rstd: (S, B, C).
        gamma: (S, C), or None.
        beta: (S, C), or None.
        pool: As there.

    Returns:
        gz, (S, B, H, W, C), ggamma and gbeta, (S, C) each, 0 without a norm. No derivative.
    """
    up = _unpool(gp, z) if pool else gp
    if gamma is None or beta is None:
        none = z.new_zeros(z.shape[0], z.shape[4])
        return _masked(z, up), none, none.clone()
    r = _plane(rstd)
    xhat = (z - _plane(mean)) * r
    gu = _masked(_channel(gamma) * xhat + _channel(beta), up)
    q = _channel(gamma) * gu
    gz = r * (q - _mean(q) - xhat * _mean(q * xhat))
    return gz, (gu * xhat).sum(dim=(1, 2, 3)), gu.sum(dim=(1, 2, 3))


@operator(together=("gamma", "beta", "gammadot", "betadot"))
def block_tangent(
    z: Planes,
    zdot: Planes,
    mean: Statistic,
    rstd: Statistic,
    gamma: Channels | None,
    beta: Channels | None,
    gammadot: Channels | None,
    betadot: Channels | None,
    pool: bool,
) -> tuple[Pooled, Statistic, Statistic]:
    """Tangent of `block_forward`.

    pdot = pool((gammadot xhat + gamma xhatdot + betadot) [u > 0]), where xhatdot = rstd (zdot - mean zdot -
    xhat mean(xhat zdot)).

    Args:
        z: As in `block_forward`.
        zdot: Tangent of ``z``.
        mean: As `block_forward` returned, like ``rstd``.
        rstd: (S, B, C).
        gamma: (S, C), or None together with the three below.
        beta: (S, C).
        gammadot: Tangent of ``gamma``.
        betadot: Tangent of ``beta``.
        pool: As there.

    Returns:
        pdot, (S, B, H', W', C), mean zdot and mean(xhat zdot), (S, B, C) each, 0 without a norm. No derivative.
    """
    if gamma is None or beta is None or gammadot is None or betadot is None:
        adot = _masked(z, zdot)
        mean_zdot = z.new_zeros(z.shape[0], z.shape[1], z.shape[4])
        mean_xhat_zdot = mean_zdot.clone()
    else:
        r = _plane(rstd)
        xhat = (z - _plane(mean)) * r
        m1, m2 = _mean(zdot), _mean(xhat * zdot)
        xhatdot = r * (zdot - m1 - xhat * m2)
        udot = _channel(gammadot) * xhat + _channel(gamma) * xhatdot + _channel(betadot)
        adot = _masked(_channel(gamma) * xhat + _channel(beta), udot)
        mean_zdot, mean_xhat_zdot = m1[:, :, 0, 0].contiguous(), m2[:, :, 0, 0].contiguous()
    return (_pool(adot) if pool else adot), mean_zdot, mean_xhat_zdot


@operator(lead="z", together=("gamma", "beta", "gammadot", "betadot"))
def block_tangent_backward(
    gp: Pooled,
    gpdot: Pooled,
    z: Planes,
    zdot: Planes,
    mean: Statistic,
    rstd: Statistic,
    mean_zdot: Statistic,
    mean_xhat_zdot: Statistic,
    gamma: Channels | None,
    beta: Channels | None,
    gammadot: Channels | None,
    betadot: Channels | None,
    pool: bool,
) -> tuple[Planes, Planes, Channels, Channels]:
    """Tangents of `block_backward`'s results.

    gzdot = rdot (q - mean q - xhat mean(q xhat))
    + rstd (qdot - mean qdot - xhatdot mean(q xhat) - xhat mean(qdot xhat + q xhatdot)),
    ggammadot = sum(gudot xhat + gu xhatdot), gbetadot = sum gudot, where gu and q are as there,
    rdot = -rstd^2 mean(xhat zdot) and qdot = gamma gudot + gammadot gu.

    Args:
        gp: Cotangent of p, (S, B, H', W', C).
        gpdot: Its tangent.
        z: As in `block_tangent`, like all that follow.
        zdot: (S, B, H, W, C).
        mean: (S, B, C).
        rstd: (S, B, C).
        mean_zdot: As `block_tangent` returned, like ``mean_xhat_zdot``.
        mean_xhat_zdot: (S, B, C).
        gamma: (S, C), or None together with the three below.
        beta: (S, C).
        gammadot: (S, C).
        betadot: (S, C).
        pool: As there.

    Returns:
        gz again and gzdot, (S, B, H, W, C) each, ggammadot and gbetadot, (S, C) each. No derivative.
    """
    up = _unpool(gp, z) if pool else gp
    updot = _unpool(gpdot, z) if pool else gpdot
    if gamma is None or beta is None or gammadot is None or betadot is None:
        none = z.new_zeros(z.shape[0], z.shape[4])
        return _masked(z, up), _masked(z, updot), none, none.clone()
    r, m1, m2 = _plane(rstd), _plane(mean_zdot), _plane(mean_xhat_zdot)
    xhat = (z - _plane(mean)) * r
    xhatdot = r * (zdot - m1 - xhat * m2)
    rdot = -r.square() * m2
    u = _channel(gamma) * xhat + _channel(beta)
    gu, gudot = _masked(u, up), _masked(u, updot)
    q = _channel(gamma) * gu
    qdot = _channel(gamma) * gudot + _channel(gammadot) * gu
    inner = q - _mean(q) - xhat * _mean(q * xhat)
    innerdot = qdot - _mean(qdot) - xhatdot * _mean(q * xhat) - xhat * _mean(qdot * xhat + q * xhatdot)
    ggammadot = (gudot * xhat + gu * xhatdot).sum(dim=(1, 2, 3))
    return r * inner, rdot * inner + r * innerdot, ggammadot, gudot.sum(dim=(1, 2, 3))
