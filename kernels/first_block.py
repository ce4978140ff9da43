"""The first block where the plane engine does not take the network: its convolution and its block, one after the other.

z is written and read here; `mct_fast.kernels.planes` has the kernels that compute it again instead. The tails ``affine``
are the arguments that follow the biases in `mct_fast.ops.first_block`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mct_fast.kernels.blocks import block_backward, block_forward, block_tangent, block_tangent_backward
from mct_fast.kernels.conv3x3 import conv3x3, conv3x3_input_grad, conv3x3_weight_grad


def first_block(x: Tensor, w: Tensor, bias: Tensor, *affine: Any) -> tuple[Tensor, ...]:
    """As `mct_fast.ops.first_block`."""
    return block_forward(conv3x3(x, w, bias), *affine)


def first_block_backward(
    gp: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor, bias: Tensor, *affine: Any
) -> tuple[Tensor, ...]:
    """As `mct_fast.ops.first_block_backward`."""
    gz, ggamma, gbeta = block_backward(gp, conv3x3(x, w, bias), mean, rstd, *affine)
    return *conv3x3_weight_grad(gz, x), ggamma, gbeta


def first_block_tangent(
    x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor, wdot: Tensor, bias: Tensor, biasdot: Tensor, *affine: Any
) -> tuple[Tensor, ...]:
    """As `mct_fast.ops.first_block_tangent`."""
    return block_tangent(conv3x3(x, w, bias), conv3x3(x, wdot, biasdot), mean, rstd, *affine)


def first_block_tangent_backward(
    gp: Tensor,
    gpdot: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    mean_zdot: Tensor,
    mean_xhat_zdot: Tensor,
    w: Tensor,
    wdot: Tensor,
    bias: Tensor,
    biasdot: Tensor,
    *affine: Any,
) -> tuple[Tensor, ...]:
    """As `mct_fast.ops.first_block_tangent_backward`."""
    z, zdot = conv3x3(x, w, bias), conv3x3(x, wdot, biasdot)
    gz, gzdot, *sums = block_tangent_backward(gp, gpdot, z, zdot, mean, rstd, mean_zdot, mean_xhat_zdot, *affine)
    return conv3x3_input_grad(gzdot, w, gz, wdot), *conv3x3_weight_grad(gzdot, x), *sums
