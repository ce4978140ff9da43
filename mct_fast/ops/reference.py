"""The operators in plain PyTorch: the oracle of the tests and the implementation where no kernel exists.

Importable alone: needs neither the compiled extension nor anything else of this package. Every function takes any
floating dtype, allocates its outputs and leaves its inputs alone (`sgd_step_` excepted). Activations are NHWC with a
leading student dimension, ``(S, B, H, W, C)``; parameters carry the student dimension first. The formulas are those of
the docstrings in `mct_fast.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------------------------------------------- convolution


def _nchw(x: Tensor) -> Tensor:
    """One student's (B, H, W, C) as a (B, C, H, W) view."""
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def conv3x3(
    x: Tensor, w: Tensor, bias: Tensor | None = None, x2: Tensor | None = None, w2: Tensor | None = None
) -> Tensor:
    """z = w * x [+ w2 * x2] + bias."""
    out = []
    for s in range(x.shape[0]):
        z = F.conv2d(_nchw(x[s]), w[s], None if bias is None else bias[s], padding=1)
        if x2 is not None and w2 is not None:
            z = z + F.conv2d(_nchw(x2[s]), w2[s], padding=1)
        out.append(_nhwc(z))
    return torch.stack(out)


def conv3x3_input_grad(g: Tensor, w: Tensor, g2: Tensor | None = None, w2: Tensor | None = None) -> Tensor:
    """gx = wT * g [+ w2T * g2]."""
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


def conv3x3_weight_grad(
    g: Tensor, x: Tensor, g2: Tensor | None = None, x2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """gw = g (*) x [+ g2 (*) x2]; gb = sum of g."""
    grads = []
    for s in range(g.shape[0]):
        gw = _weight_grad(g[s], x[s])
        if g2 is not None and x2 is not None:
            gw = gw + _weight_grad(g2[s], x2[s])
        grads.append(gw)
    return torch.stack(grads), g.sum(dim=(1, 2, 3))


# ---------------------------------------------------------------------------------- norm -> ReLU -> average pool


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


def block_forward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """p = pool(relu(norm(z))), with the mean and reciprocal deviation of each plane (0 and 1 without a norm)."""
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


def block_backward(
    gp: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(gz, ggamma, gbeta); the last two are zero without a norm."""
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
    """(pdot, mean of zdot, mean of xhat * zdot); the last two are zero without a norm."""
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
    """(gz, gzdot, ggammadot, gbetadot): `block_backward`'s gz again, and the tangents of its three outputs."""
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


# ------------------------------------------------------------------- linear layer and (binary) cross-entropy


def _matmul_nt(h: Tensor, w: Tensor) -> Tensor:
    return torch.bmm(h, w.transpose(1, 2))


def linear_ce(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gh, gw, gb) of the mean over B of -sum_k y_k log softmax(h wT + b)_k."""
    logp = torch.log_softmax(_matmul_nt(h, w) + b[:, None, :], dim=2)
    loss = -(y * logp).sum(dim=2).mean(dim=1)
    g = (logp.exp() * y.sum(dim=2, keepdim=True) - y) / h.shape[1]
    return loss, torch.bmm(g, w), torch.bmm(g.transpose(1, 2), h), g.sum(dim=1)


def linear_ce_tangent(
    h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss_dot, gh, ghdot, gwdot, gbdot, gydot): gydot is the tangent of the derivative of the loss by y."""
    n = h.shape[1]
    logp = torch.log_softmax(_matmul_nt(h, w) + b[:, None, :], dim=2)
    ldot = _matmul_nt(hdot, w) + _matmul_nt(h, wdot) + bdot[:, None, :]
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


def linear_bce(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gh, gw, gb) of the mean over B of sum_k pos_k y_k softplus(-l_k) + neg_k (1 - y_k) softplus(l_k)."""
    logits = _matmul_nt(h, w) + b[:, None, :]
    a, c = pos * y, neg * (1 - y)
    loss = -(a * F.logsigmoid(logits) + c * F.logsigmoid(-logits)).sum(dim=2).mean(dim=1)
    g = (c * logits.sigmoid() - a * (-logits).sigmoid()) / h.shape[1]
    return loss, torch.bmm(g, w), torch.bmm(g.transpose(1, 2), h), g.sum(dim=1)


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
    """(loss_dot, gh, ghdot, gwdot, gbdot, gydot): gydot is the tangent of the derivative of the loss by y."""
    n = h.shape[1]
    logits = _matmul_nt(h, w) + b[:, None, :]
    ldot = _matmul_nt(hdot, w) + _matmul_nt(h, wdot) + bdot[:, None, :]
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


# ------------------------------------------------------------------------------------------------- flat parameters


def _layer_sizes(offsets: Tensor) -> Sequence[int]:
    return offsets.diff().tolist()


def matching_loss(
    theta: Tensor, origin: Tensor, end: Tensor, frac: Tensor, offsets: Tensor, denom: Tensor
) -> tuple[Tensor, Tensor]:
    """(|theta - ((1 - f) origin + f end)|^2 / denom, its gradient by theta); f is constant on each layer."""
    repeats = offsets.diff()
    f = frac.repeat_interleave(repeats, dim=1, output_size=theta.shape[1])
    difference = theta - ((1 - f) * origin + f * end)
    loss = difference.double().square().sum(dim=1) / denom
    return loss.to(theta.dtype), 2 * difference / denom[:, None]


def sgd_step_(
    params: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """PyTorch's SGD rule in place: d = grad + wd p; buf = momentum buf + d; p -= lr (buf, or d without a buffer)."""
    step = grad + weight_decay * params if weight_decay else grad
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).add_(step)
        step = momentum_buffer
    params.sub_(lr[:, None] * step)


def arc_length(previous: Tensor, current: Tensor, offsets: Tensor) -> Tensor:
    """2-norm of current - previous on each layer, squares summed in double: (S, L) float64."""
    squares = (current - previous).double().square()
    sums = [part.sum(dim=1) for part in squares.split(list(_layer_sizes(offsets)), dim=1)]
    return torch.stack(sums, dim=1).sqrt()


# --------------------------------------------------------------------------------------------------- augmentation
# Kinds 2 to 6 (crop, cutout, flip, scale, rotate) sample the image: output q of an image is sum_k weight[k, q] x[at[k, q]].


def _axis_taps(at: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Two neighbours of real positions along one axis and their weights, 0 outside [0, size)."""
    near = (at > -1) & (at < size)
    first = torch.where(near, at, 0).floor()
    taps = []
    for index, weight in ((first, 1 - (at - first)), (first + 1, at - first)):
        inside = near & (index >= 0) & (index < size)
        taps.append((torch.where(inside, index, 0).long(), torch.where(inside, weight, 0)))
    return taps


def _taps(x: Tensor, kind: int, p: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and weights (b, taps, H * W) of one student's images x (b, C, H, W), table p (b, 4) of x's dtype."""
    b, _, height, width = x.shape
    i = torch.arange(height, device=x.device, dtype=x.dtype)[None, :, None].expand(b, height, width)
    j = torch.arange(width, device=x.device, dtype=x.dtype)[None, None, :].expand(b, height, width)
    h, w = (height - 1) / 2, (width - 1) / 2
    p0, p1, p2, p3 = (p[:, k, None, None] for k in range(4))
    keep = torch.ones_like(i)
    if kind == 2:
        i, j = i + p0.trunc(), j + p1.trunc()
    elif kind == 3:
        keep = 1 - ((i >= p0) & (i < p1) & (j >= p2) & (j < p3)).to(x.dtype)
    elif kind == 4:
        j = torch.where(p0 > 0.5, width - 1 - j, j)
    elif kind == 5:
        i, j = p0 * (i - h) + h, p1 * (j - w) + w
    else:
        i, j = p1 * (j - w) * h / w + p0 * (i - h) + h, p0 * (j - w) - p1 * (i - h) * w / h + w
    rows, columns = _axis_taps(i, height), _axis_taps(j, width)
    at = [(r * width + c).flatten(1) for r, _ in rows for c, _ in columns]
    weight = [(u * v * keep).flatten(1) for _, u in rows for _, v in columns]
    return torch.stack(at, 1), torch.stack(weight, 1)


def _augment(x: Tensor, kinds: Tensor, params: Tensor, transpose: bool) -> Tensor:
    out = []
    for s, kind in enumerate(kinds.tolist()):
        one, p = x[s], params[s].to(device=x.device, dtype=x.dtype)
        b, c, height, width = one.shape
        if kind == 0:
            out.append(one.clone())
        elif kind == 1:
            offset, saturation, contrast = (p[:, k, None, None, None] for k in range(3))
            pixel, whole = one.mean(1, keepdim=True), one.mean((1, 2, 3), keepdim=True)
            linear = contrast * (saturation * one + (1 - saturation) * pixel) + (1 - contrast) * whole
            out.append(linear if transpose else linear + offset)  # the linear part is symmetric
        else:
            at, weight = _taps(one, kind, p)
            flat, total = one.flatten(2), torch.zeros_like(one).flatten(2)
            for k in range(at.shape[1]):
                index = at[:, k, None].expand(b, c, height * width)
                if transpose:
                    total.scatter_add_(2, index, flat * weight[:, k, None])
                else:
                    total += flat.gather(2, index) * weight[:, k, None]
            out.append(total.view(b, c, height, width))
    return torch.stack(out)


def dsa(x: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """Augment x (S, B, C, H, W) by the tables of `mct_fast.data.augment`: kinds (S,), params (S, B, 4)."""
    return _augment(x, kinds, params, transpose=False)


def dsa_transpose(g: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    """Adjoint of `dsa`'s linear part."""
    return _augment(g, kinds, params, transpose=True)
