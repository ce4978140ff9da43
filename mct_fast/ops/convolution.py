"""The convolution 3x3 with padding 1 and stride 1, and its two adjoints: they are each other's derivatives, of any order.

Each takes a second pair of factors, whose product is added: a tangent (the product rule) costs no second pass over the
output.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.ops.operator import operator, save_inputs
from mct_fast.ops.signature import activation, parameter

Input = Annotated[Tensor, activation("S B H W Ci")]
Output = Annotated[Tensor, activation("S B H W Co")]
Weight = Annotated[Tensor, parameter("S Co Ci 3 3")]
Bias = Annotated[Tensor, parameter("S Co")]


def _nchw(x: Tensor) -> Tensor:
    """One student's (B, H, W, C) as a (B, C, H, W) view."""
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _conv3x3_vjp(ctx: Any, gz: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, x2, w2 = ctx.saved_tensors
    need, gz = ctx.needs_input_grad, gz.contiguous()
    gx = conv3x3_input_grad(gz, w) if need[0] else None
    gw, gb = conv3x3_weight_grad(gz, x) if need[1] or need[2] else (None, None)
    gx2 = conv3x3_input_grad(gz, w2) if need[3] else None
    gw2 = conv3x3_weight_grad(gz, x2)[0] if need[4] else None
    return gx, gw, None if bias is None else gb, gx2, gw2


@operator(together=("x2", "w2"), derivative=(save_inputs, _conv3x3_vjp))
def conv3x3(x: Input, w: Weight, bias: Bias | None = None, x2: Input | None = None, w2: Weight | None = None) -> Output:
    """z = w * x [+ w2 * x2] + bias: cross-correlation as `torch.nn.functional.conv2d`, 3x3, padding 1, stride 1.

    Args:
        x: Images, (S, B, H, W, Ci).
        w: Weights, (S, Co, Ci, 3, 3).
        bias: (S, Co), or None.
        x2: As ``x``; given together with ``w2``.
        w2: As ``w``.

    Returns:
        z, (S, B, H, W, Co). Differentiable, any order.
    """
    out = []
    for s in range(x.shape[0]):
        z = F.conv2d(_nchw(x[s]), w[s], None if bias is None else bias[s], padding=1)
        if x2 is not None and w2 is not None:
            z = z + F.conv2d(_nchw(x2[s]), w2[s], padding=1)
        out.append(_nhwc(z))
    return torch.stack(out)


def _input_grad_vjp(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
    g, w, g2, w2 = ctx.saved_tensors
    need, gg = ctx.needs_input_grad, gg.contiguous()
    return (
        conv3x3(gg, w) if need[0] else None,
        conv3x3_weight_grad(g, gg)[0] if need[1] else None,
        conv3x3(gg, w2) if need[2] else None,
        conv3x3_weight_grad(g2, gg)[0] if need[3] else None,
    )


@operator(together=("g2", "w2"), derivative=(save_inputs, _input_grad_vjp))
def conv3x3_input_grad(g: Output, w: Weight, g2: Output | None = None, w2: Weight | None = None) -> Input:
    """gx = w^T * g [+ w2^T * g2]: the adjoint of `conv3x3` by its input.

    Args:
        g: Cotangent of the output, (S, B, H, W, Co).
        w: Weights, (S, Co, Ci, 3, 3).
        g2: As ``g``; given together with ``w2``.
        w2: As ``w``.

    Returns:
        gx, (S, B, H, W, Ci). Differentiable, any order.
    """
    out = []
    for s in range(g.shape[0]):
        gx = F.conv_transpose2d(_nchw(g[s]), w[s], padding=1)
        if g2 is not None and w2 is not None:
            gx = gx + F.conv_transpose2d(_nchw(g2[s]), w2[s], padding=1)
        out.append(_nhwc(gx))
    return torch.stack(out)


def _weight_grad(g: Tensor, x: Tensor) -> Tensor:
    """(B, H, W, Co) and (B, H, W, Ci) to (Co, Ci, 3, 3): nine products of shifted planes."""
    height, width = x.shape[1:3]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    flat = g.reshape(-1, g.shape[-1]).t()
    taps = [
        flat @ padded[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]) for i in range(3) for j in range(3)
    ]
    return torch.stack(taps, dim=-1).reshape(g.shape[-1], x.shape[-1], 3, 3)


def _weight_grad_vjp(ctx: Any, cotangent: Tensor | None, ggb: Tensor | None) -> tuple[Tensor | None, ...]:
    g, x, g2, x2 = ctx.saved_tensors
    need = ctx.needs_input_grad
    ggw = g.new_zeros(g.shape[0], g.shape[4], x.shape[4], 3, 3) if cotangent is None else cotangent.contiguous()
    return (
        conv3x3(x, ggw, None if ggb is None else ggb.contiguous()) if need[0] else None,
        conv3x3_input_grad(g, ggw) if need[1] else None,
        conv3x3(x2, ggw) if need[2] else None,
        conv3x3_input_grad(g2, ggw) if need[3] else None,
    )


@operator(together=("g2", "x2"), derivative=(save_inputs, _weight_grad_vjp))
def conv3x3_weight_grad(g: Output, x: Input, g2: Output | None = None, x2: Input | None = None) -> tuple[Weight, Bias]:
    """gw = g (*) x [+ g2 (*) x2]: the adjoint of `conv3x3` by its weights, and that by its bias.

    Args:
        g: Cotangent of the output, (S, B, H, W, Co).
        x: Images, (S, B, H, W, Ci).
        g2: As ``g``; given together with ``x2``.
        x2: As ``x``.

    Returns:
        gw, (S, Co, Ci, 3, 3), and gb, (S, Co), the sum of ``g`` alone over images and pixels. Differentiable, any order.
    """
    grads = []
    for s in range(g.shape[0]):
        gw = _weight_grad(g[s], x[s])
        if g2 is not None and x2 is not None:
            gw = gw + _weight_grad(g2[s], x2[s])
        grads.append(gw)
    return torch.stack(grads), g.sum(dim=(1, 2, 3))
