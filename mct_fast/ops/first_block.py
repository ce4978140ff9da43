"""The network's first convolution with its block: `conv3x3` and `block_forward` in one; their vjp, tangent, and its vjp.

The first block has the largest planes and an input of few channels. Where a device has a kernel for it, z = w * x + bias is
computed again from the images in every sweep, and neither z nor its cotangents are written to memory. Names and formulas
are those of `mct_fast.ops.block`.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from mct_fast.ops.block import (
    Channels,
    Pooled,
    Statistic,
    block_backward,
    block_forward,
    block_tangent,
    block_tangent_backward,
)
from mct_fast.ops.convolution import conv3x3, conv3x3_input_grad, conv3x3_weight_grad
from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, parameter

Images = Annotated[Tensor, activation("S B H W Ci")]
Weight = Annotated[Tensor, parameter("S C Ci 3 3")]


@operator(together=("gamma", "beta"))
def first_block(
    x: Images, w: Weight, bias: Channels, gamma: Channels | None, beta: Channels | None, eps: float, pool: bool
) -> tuple[Pooled, Statistic, Statistic]:
    """`block_forward` of `conv3x3`.

    Args:
        x: Images, (S, B, H, W, Ci).
        w: Weights, (S, C, Ci, 3, 3).
        bias: (S, C).
        gamma: As in `block_forward`, like the arguments below.
        beta: (S, C), or None.
        eps: Added to the variance.
        pool: Average 2x2.

    Returns:
        p, (S, B, H', W', C), the mean and rstd of z's planes, (S, B, C) each. No derivative.
    """
    return block_forward.reference(conv3x3.reference(x, w, bias), gamma, beta, eps, pool)


@operator(lead="x", together=("gamma", "beta"))
def first_block_backward(
    gp: Pooled,
    x: Images,
    mean: Statistic,
    rstd: Statistic,
    w: Weight,
    bias: Channels,
    gamma: Channels | None,
    beta: Channels | None,
    pool: bool,
) -> tuple[Weight, Channels, Channels, Channels]:
    """Cotangents of `first_block`'s parameters.

    Args:
        gp: Cotangent of p, (S, B, H', W', C).
        x: As in `first_block`, like the arguments below.
        mean: As it returned, like ``rstd``.
        rstd: (S, B, C).
        w: (S, C, Ci, 3, 3).
        bias: (S, C).
        gamma: (S, C), or None.
        beta: (S, C), or None.
        pool: As there.

    Returns:
        gw, (S, C, Ci, 3, 3), gb, ggamma and gbeta, (S, C) each, the last two 0 without a norm. No derivative.
    """
    z = conv3x3.reference(x, w, bias)
    gz, ggamma, gbeta = block_backward.reference(gp, z, mean, rstd, gamma, beta, pool)
    return *conv3x3_weight_grad.reference(gz, x), ggamma, gbeta


@operator(together=("gamma", "beta", "gammadot", "betadot"))
def first_block_tangent(
    x: Images,
    mean: Statistic,
    rstd: Statistic,
    w: Weight,
    wdot: Weight,
    bias: Channels,
    biasdot: Channels,
    gamma: Channels | None,
    beta: Channels | None,
    gammadot: Channels | None,
    betadot: Channels | None,
    pool: bool,
) -> tuple[Pooled, Statistic, Statistic]:
    """Tangent of `first_block` along its parameters.

    Args:
        x: As in `first_block`, like the arguments below.
        mean: As it returned, like ``rstd``.
        rstd: (S, B, C).
        w: (S, C, Ci, 3, 3).
        wdot: Tangent of ``w``.
        bias: (S, C).
        biasdot: Tangent of ``bias``.
        gamma: (S, C), or None together with the three below.
        beta: (S, C).
        gammadot: Tangent of ``gamma``.
        betadot: Tangent of ``beta``.
        pool: As there.

    Returns:
        As `block_tangent`: pdot, (S, B, H', W', C), mean zdot and mean(xhat zdot), (S, B, C) each. No derivative.
    """
    z, zdot = conv3x3.reference(x, w, bias), conv3x3.reference(x, wdot, biasdot)
    return block_tangent.reference(z, zdot, mean, rstd, gamma, beta, gammadot, betadot, pool)


@operator(lead="x", together=("gamma", "beta", "gammadot", "betadot"))
def first_block_tangent_backward(
    gp: Pooled,
    gpdot: Pooled,
    x: Images,
    mean: Statistic,
    rstd: Statistic,
    mean_zdot: Statistic,
    mean_xhat_zdot: Statistic,
    w: Weight,
    wdot: Weight,
    bias: Channels,
    biasdot: Channels,
    gamma: Channels | None,
    beta: Channels | None,
    gammadot: Channels | None,
    betadot: Channels | None,
    pool: bool,
) -> tuple[Images, Weight, Channels, Channels, Channels]:
    """Tangents of the cotangents of `first_block`'s arguments, along its parameters.

    gxdot = w^T * gzdot + wdot^T * gz, gwdot = gzdot (*) x, gbdot = sum gzdot; the rest as `block_tangent_backward`.

    Args:
        gp: Cotangent of p, (S, B, H', W', C).
        gpdot: Its tangent.
        x: As in `first_block_tangent`, like all that follow.
        mean: (S, B, C).
        rstd: (S, B, C).
        mean_zdot: As `first_block_tangent` returned, like ``mean_xhat_zdot``.
        mean_xhat_zdot: (S, B, C).
        w: (S, C, Ci, 3, 3).
        wdot: (S, C, Ci, 3, 3).
        bias: (S, C).
        biasdot: (S, C).
        gamma: (S, C), or None together with the three below.
        beta: (S, C).
        gammadot: (S, C).
        betadot: (S, C).
        pool: As there.

    Returns:
        gxdot, (S, B, H, W, Ci), gwdot, (S, C, Ci, 3, 3), gbdot, ggammadot and gbetadot, (S, C) each. No derivative.
    """
    z, zdot = conv3x3.reference(x, w, bias), conv3x3.reference(x, wdot, biasdot)
    means = (mean, rstd, mean_zdot, mean_xhat_zdot)
    gz, gzdot, ggammadot, gbetadot = block_tangent_backward.reference(
        gp, gpdot, z, zdot, *means, gamma, beta, gammadot, betadot, pool
    )
    gxdot = conv3x3_input_grad.reference(gzdot, w, gz, wdot)
    return gxdot, *conv3x3_weight_grad.reference(gzdot, x), ggammadot, gbetadot
