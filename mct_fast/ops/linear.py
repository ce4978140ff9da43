"""The last linear layer together with its loss: cross-entropy, or binary cross-entropy of each output; and their tangents.

l = h w^T + b. A trailing ``dot`` is a tangent, a leading ``g`` a cotangent; y has no tangent.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, parameter

Features = Annotated[Tensor, activation("S B F")]
Weight = Annotated[Tensor, parameter("S K F")]
Bias = Annotated[Tensor, parameter("S K")]
Labels = Annotated[Tensor, activation("S B K")]
PerOutput = Annotated[Tensor, activation("K")]
Loss = Annotated[Tensor, activation("S")]


def _logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(h, w.transpose(1, 2)) + b[:, None, :]


def _logits_dot(h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, bdot: Tensor) -> Tensor:
    return torch.bmm(hdot, w.transpose(1, 2)) + torch.bmm(h, wdot.transpose(1, 2)) + bdot[:, None, :]


@operator()
def linear_ce(h: Features, w: Weight, b: Bias, y: Labels) -> tuple[Loss, Features, Weight, Bias]:
    """loss = mean over B of -sum_k y_k log softmax(l)_k, and its gradient.

    Args:
        h: Features, (S, B, F).
        w: Weights, (S, K, F).
        b: (S, K).
        y: Non-negative targets, (S, B, K); one-hot for hard labels.

    Returns:
        loss, (S,), gh, (S, B, F), gw, (S, K, F), and gb, (S, K). No derivative.
    """
    logp = torch.log_softmax(_logits(h, w, b), dim=2)
    loss = -(y * logp).sum(dim=2).mean(dim=1)
    g = (logp.exp() * y.sum(dim=2, keepdim=True) - y) / h.shape[1]
    return loss, torch.bmm(g, w), torch.bmm(g.transpose(1, 2), h), g.sum(dim=1)


@operator()
def linear_ce_tangent(
    h: Features, hdot: Features, w: Weight, wdot: Weight, b: Bias, bdot: Bias, y: Labels
) -> tuple[Loss, Features, Features, Weight, Bias, Labels]:
    """Tangents of `linear_ce`'s results.

    Args:
        h: As in `linear_ce`, like ``w``, ``b`` and ``y``.
        hdot: Tangent of ``h``.
        w: (S, K, F).
        wdot: Tangent of ``w``.
        b: (S, K).
        bdot: Tangent of ``b``.
        y: (S, B, K).

    Returns:
        loss_dot, (S,), gh again, ghdot, (S, B, F), gwdot, (S, K, F), gbdot, (S, K), and gydot = -(log softmax(l))dot / B,
        (S, B, K), the tangent of the loss's derivative by y. No derivative.
    """
    n = h.shape[1]
    logp, ldot = torch.log_softmax(_logits(h, w, b), dim=2), _logits_dot(h, hdot, w, wdot, bdot)
    p, total = logp.exp(), y.sum(dim=2, keepdim=True)
    logpdot = ldot - (p * ldot).sum(dim=2, keepdim=True)
    g, gdot = (p * total - y) / n, p * logpdot * total / n
    return (
        -(y * logpdot).sum(dim=2).mean(dim=1),
        torch.bmm(g, w),
        torch.bmm(gdot, w) + torch.bmm(g, wdot),
        torch.bmm(gdot.transpose(1, 2), h) + torch.bmm(g.transpose(1, 2), hdot),
        gdot.sum(dim=1),
        -logpdot / n,
    )


@operator()
def linear_bce(
    h: Features, w: Weight, b: Bias, y: Labels, pos: PerOutput, neg: PerOutput
) -> tuple[Loss, Features, Weight, Bias]:
    """loss = mean over B of sum_k pos_k y_k softplus(-l_k) + neg_k (1 - y_k) softplus(l_k), and its gradient.

    Args:
        h: Features, (S, B, F).
        w: Weights, (S, K, F).
        b: (S, K).
        y: Targets from 0 to 1, (S, B, K).
        pos: Non-negative weights of the positive terms, (K,); 1/K, with ``neg``, for the mean over the outputs.
        neg: Those of the negative terms.

    Returns:
        loss, (S,), gh, (S, B, F), gw, (S, K, F), and gb, (S, K). No derivative.
    """
    logits = _logits(h, w, b)
    a, c = pos * y, neg * (1 - y)
    loss = -(a * F.logsigmoid(logits) + c * F.logsigmoid(-logits)).sum(dim=2).mean(dim=1)
    g = (c * logits.sigmoid() - a * (-logits).sigmoid()) / h.shape[1]
    return loss, torch.bmm(g, w), torch.bmm(g.transpose(1, 2), h), g.sum(dim=1)


@operator()
def linear_bce_tangent(
    h: Features,
    hdot: Features,
    w: Weight,
    wdot: Weight,
    b: Bias,
    bdot: Bias,
    y: Labels,
    pos: PerOutput,
    neg: PerOutput,
) -> tuple[Loss, Features, Features, Weight, Bias, Labels]:
    """Tangents of `linear_bce`'s results.

    Args:
        h: As in `linear_bce`, like ``w``, ``b``, ``y``, ``pos`` and ``neg``.
        hdot: Tangent of ``h``.
        w: (S, K, F).
        wdot: Tangent of ``w``.
        b: (S, K).
        bdot: Tangent of ``b``.
        y: (S, B, K).
        pos: (K,).
        neg: (K,).

    Returns:
        loss_dot, (S,), gh again, ghdot, (S, B, F), gwdot, (S, K, F), gbdot, (S, K), and
        gydot = -(pos sigmoid(-l) + neg sigmoid(l)) ldot / B, (S, B, K), the tangent of the loss's derivative by y. No
        derivative.
    """
    n = h.shape[1]
    logits, ldot = _logits(h, w, b), _logits_dot(h, hdot, w, wdot, bdot)
    on, off = logits.sigmoid(), (-logits).sigmoid()
    a, c = pos * y, neg * (1 - y)
    g, gdot = (c * on - a * off) / n, (a + c) * on * off * ldot / n
    return (
        (g * ldot).sum(dim=(1, 2)),
        torch.bmm(g, w),
        torch.bmm(gdot, w) + torch.bmm(g, wdot),
        torch.bmm(gdot.transpose(1, 2), h) + torch.bmm(g.transpose(1, 2), hdot),
        gdot.sum(dim=1),
        -(pos * off + neg * on) * ldot / n,
    )
