"""The operators: one thin typed function each over `torch.ops.mct_fast`, where the dispatcher picks by device.

Activations are NHWC with a leading student dimension, ``(S, B, H, W, C)`` and contiguous. Parameters carry the student
dimension first and may be views of a flat ``(S, P)`` buffer: any stride between students, contiguous within one. Dtypes:
float32 or float64, the same for all arguments. Outputs are fresh; the same call returns the same bits, whatever the
number of threads. Bad arguments raise a ValueError that names the argument.

Importing this module registers the operators, once; `extension_loaded` says whether the compiled kernels serve the CPU.
Notation of the docstrings: a trailing ``dot`` is a tangent, a leading ``g`` a cotangent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mct_fast.ops import cuda as _cuda
from mct_fast.ops import registry as _registry

_LOADED = _registry.load_extension()
_LIBRARY = _registry.register(_LOADED)
_ops = torch.ops.mct_fast

__all__ = [
    "arc_length",
    "block_backward",
    "block_forward",
    "block_tangent",
    "block_tangent_backward",
    "conv3x3",
    "conv3x3_input_grad",
    "conv3x3_weight_grad",
    "dsa",
    "dsa_transpose",
    "extension_loaded",
    "kernels_available",
    "linear_bce",
    "linear_bce_tangent",
    "linear_ce",
    "linear_ce_tangent",
    "matching_loss",
    "sgd_step_",
]


def extension_loaded() -> bool:
    """Whether the compiled extension `mct_fast._C` was found; without it the operators run in plain PyTorch."""
    return _LOADED


def kernels_available(device: torch.device | str | None = None) -> bool:
    """Whether `device` has kernels for the operators: the compiled extension's on a CPU, Triton's on a CUDA GPU.

    None: whether some device of this machine has. A meta tensor stands for any of them.
    """
    kind = "meta" if device is None else torch.device(device).type
    cpu = _LOADED and kind in ("cpu", "meta")
    return cpu or ((kind == "cuda" or (kind == "meta" and torch.cuda.is_available())) and _cuda.has_triton())


def conv3x3(
    x: Tensor, w: Tensor, bias: Tensor | None = None, x2: Tensor | None = None, w2: Tensor | None = None
) -> Tensor:
    """z = w * x [+ w2 * x2] + bias: cross-correlation as `F.conv2d`, 3x3, padding 1, stride 1.

    x, x2 (S,B,H,W,Ci); w, w2 (S,Co,Ci,3,3); bias (S,Co). Returns (S,B,H,W,Co). x2 and w2 come together: the second
    product is the tangent's (product rule) and costs no second pass over the output. Differentiable, any order.
    """
    return _ops.conv3x3(x, w, bias, x2, w2)


def conv3x3_input_grad(g: Tensor, w: Tensor, g2: Tensor | None = None, w2: Tensor | None = None) -> Tensor:
    """gx = w^T * g [+ w2^T * g2], the adjoint of `conv3x3` by x.

    g, g2 (S,B,H,W,Co); w, w2 (S,Co,Ci,3,3). Returns (S,B,H,W,Ci). Differentiable, any order.
    """
    return _ops.conv3x3_input_grad(g, w, g2, w2)


def conv3x3_weight_grad(
    g: Tensor, x: Tensor, g2: Tensor | None = None, x2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """gw = g (*) x [+ g2 (*) x2], the adjoint of `conv3x3` by w; gb = sum of g alone over images and pixels.

    g, g2 (S,B,H,W,Co); x, x2 (S,B,H,W,Ci). Returns gw (S,Co,Ci,3,3) and gb (S,Co). Differentiable, any order.
    """
    return _ops.conv3x3_weight_grad(g, x, g2, x2)


def block_forward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """p = pool(relu(gamma xhat + beta)), xhat = (z - mean) rstd over each plane: instance norm, ReLU, average pool.

    z (S,B,H,W,C); gamma, beta (S,C), both None for a block without a norm; `pool` averages 2x2 and drops an odd last row
    or column as `nn.AvgPool2d(2)`. Returns p (S,B,H',W',C), mean (S,B,C), rstd = (variance + eps)^-1/2 (S,B,C); 0 and 1
    without a norm. First derivative only, by z, gamma and beta (through `block_backward`).
    """
    return _ops.block_forward(z, gamma, beta, eps, pool)


def block_backward(
    gp: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of `block_forward`: gu = up(gp) [u > 0] (up spreads gp/4 over the pool's window), q = gamma gu,

    gz = rstd (q - mean q - xhat mean(q xhat)),  ggamma = sum gu xhat,  gbeta = sum gu.

    gp as p; the rest as `block_forward` took and gave. Returns gz (S,B,H,W,C), ggamma, gbeta (S,C) (0 without a norm).
    No derivative: an input that requires grad raises.
    """
    return _ops.block_backward(gp, z, mean, rstd, gamma, beta, pool)


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
    """Tangent of `block_forward`: xhatdot = rstd (zdot - mean zdot - xhat mean(xhat zdot)),

    pdot = pool((gammadot xhat + gamma xhatdot + betadot) [u > 0]).

    zdot as z; gammadot, betadot (S,C) with gamma and beta. Returns pdot, mean zdot (S,B,C), mean(xhat zdot) (S,B,C).
    No derivative: an input that requires grad raises.
    """
    return _ops.block_tangent(z, zdot, mean, rstd, gamma, beta, gammadot, betadot, pool)


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
    """`block_backward`'s gz again, and the tangents of its outputs. With gu, q as there, rdot = -rstd^2 mean(xhat zdot)

    and qdot = gamma gudot + gammadot gu:

    gzdot = rdot (q - mean q - xhat mean(q xhat))
    + rstd (qdot - mean qdot - xhatdot mean(q xhat) - xhat mean(qdot xhat + q xhatdot)),
    ggammadot = sum(gudot xhat + gu xhatdot),  gbetadot = sum gudot.

    Returns gz, gzdot (S,B,H,W,C), ggammadot, gbetadot (S,C). No derivative: an input that requires grad raises.
    """
    return _ops.block_tangent_backward(
        gp, gpdot, z, zdot, mean, rstd, mean_zdot, mean_xhat_zdot, gamma, beta, gammadot, betadot, pool
    )


def linear_ce(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear layer and cross-entropy: loss = mean over B of -sum_k y_k log softmax(h w^T + b)_k, with its gradient.

    h (S,B,F); w (S,K,F); b (S,K); y (S,B,K), any non-negative targets (one-hot for hard labels). Returns loss (S,),
    gh (S,B,F), gw (S,K,F), gb (S,K). No derivative: an input that requires grad raises.
    """
    return _ops.linear_ce(h, w, b, y)


def linear_ce_tangent(
    h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tangents of `linear_ce` along (hdot, wdot, bdot), y fixed.

    Returns loss_dot (S,), gh (S,B,F) (not a tangent: `linear_ce`'s again), ghdot (S,B,F), gwdot (S,K,F), gbdot (S,K)
    and gydot (S,B,K) = -(log softmax)dot / B, the tangent of the derivative of the loss by y. No derivative: an input
    that requires grad raises.
    """
    return _ops.linear_ce_tangent(h, hdot, w, wdot, b, bdot, y)


def linear_bce(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear layer and binary cross-entropy of each output, with its gradient: with l = h w^T + b,

    loss = mean over B of sum_k pos_k y_k softplus(-l_k) + neg_k (1 - y_k) softplus(l_k).

    h (S,B,F); w (S,K,F); b (S,K); y (S,B,K), targets from 0 to 1; pos, neg (K,), non-negative weights (both 1/K: the mean
    over the outputs). Returns loss (S,), gh (S,B,F), gw (S,K,F), gb (S,K). No derivative: an input that requires grad
    raises.
    """
    return _ops.linear_bce(h, w, b, y, pos, neg)


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
    """Tangents of `linear_bce` along (hdot, wdot, bdot), y fixed.

    Returns loss_dot (S,), gh (S,B,F) (not a tangent: `linear_bce`'s again), ghdot (S,B,F), gwdot (S,K,F), gbdot (S,K)
    and gydot (S,B,K) = -(pos sigma(-l) + neg sigma(l)) ldot / B, the tangent of the derivative of the loss by y. No
    derivative: an input that requires grad raises.
    """
    return _ops.linear_bce_tangent(h, hdot, w, wdot, b, bdot, y, pos, neg)


def matching_loss(
    theta: Tensor, origin: Tensor, end: Tensor, frac: Tensor, offsets: Tensor, denom: Tensor
) -> tuple[Tensor, Tensor]:
    """loss = |theta - target|^2 / denom and its gradient 2 (theta - target) / denom; target = (1-f) origin + f end.

    theta, origin, end (S,P); frac (S,L), one fraction f a layer; offsets (L+1,) int64 from 0 to P; denom (S,). The target
    is never stored; squares are summed in double. Returns loss (S,), grad (S,P). First derivative only, of the loss by
    theta.
    """
    return _ops.matching_loss(theta, origin, end, frac, offsets, denom)


def sgd_step_(
    params: Tensor, grad: Tensor, momentum_buffer: Tensor | None, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """One step of `torch.optim.SGD` in place: d = grad + weight_decay params; buf = momentum buf + d; params -= lr buf.

    params, grad, momentum_buffer (S,P); lr (S,). Without a buffer (momentum 0): params -= lr d. A fresh buffer is zeros.
    No derivative: an input that requires grad raises.
    """
    _ops.sgd_step_(params, grad, momentum_buffer, lr, momentum, weight_decay)


def arc_length(previous: Tensor, current: Tensor, offsets: Tensor) -> Tensor:
    """2-norm of current - previous on each layer: (S,P), (S,P), offsets (L+1,) int64 -> (S,L) float64.

    Squares are summed in double. No derivative: an input that requires grad raises.
    """
    return _ops.arc_length(previous, current, offsets)


def dsa(x: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """Augment the images of each student by one operation, its parameters drawn per image: y = A x + c.

    x (S,B,C,H,W) contiguous, H and W at least 2; kinds (S,) int64 on the CPU, or with x on a GPU, where they are trusted to
    be 0 to 6 (another number is taken for 0); params (S,B,4) float32: the parameter table of `mct_fast.data.augment`
    (`AugmentPlan.table`), which has the formulas. First derivative only, by x.
    """
    return _ops.dsa(x, kinds, params)


def dsa_transpose(g: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """A^T g, the adjoint of the linear part of `dsa`. Arguments as there; no derivative: requiring grad raises."""
    return _ops.dsa_transpose(g, kinds, params)
