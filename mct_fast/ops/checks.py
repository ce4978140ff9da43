"""Validation of operator arguments, and the shapes of their results (also the fake kernels).

The compiled kernels make the same checks in C++; these serve tracing and the pure-PyTorch implementation. Each function
raises `InputError` naming the argument, and returns outputs made by ``new_empty``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mct_fast.run.errors import InputError

FLOATS = (torch.float32, torch.float64)


class _Shapes:
    """Binds dimension names (S, B, ...) at first sight and holds later arguments to them."""

    def __init__(self, lead_name: str, lead: Tensor) -> None:
        if lead.dtype not in FLOATS:
            raise InputError(f"{lead_name}: dtype {lead.dtype} is not supported; use float32 or float64")
        self.lead_name, self.lead = lead_name, lead
        self.sizes: dict[str, int] = {}

    def __call__(self, name: str, t: Tensor | None, dims: str, dtype: torch.dtype | None = None) -> None:
        """Check `t` against the space-separated `dims`; a number stands for itself. None is let through."""
        if t is None:
            return
        names = dims.split()
        if t.dim() != len(names):
            raise InputError(f"{name}: expected {len(names)} dimensions ({dims}), got shape {tuple(t.shape)}")
        wanted = dtype or self.lead.dtype
        if t.dtype != wanted:
            raise InputError(f"{name}: dtype {t.dtype}, expected {wanted} as {self.lead_name} requires")
        if t.device != self.lead.device:
            raise InputError(f"{name}: on {t.device}, but {self.lead_name} is on {self.lead.device}")
        for dim, size in zip(names, t.shape, strict=True):
            expected = int(dim) if dim.isdigit() else self.sizes.setdefault(dim, size)
            if size != expected:
                raise InputError(f"{name}: shape {tuple(t.shape)} has {dim} = {size}, expected {expected} ({dims})")
            if size == 0 and not dim.isdigit():
                raise InputError(f"{name}: shape {tuple(t.shape)} is empty in {dim} ({dims})")

    def activation(self, name: str, t: Tensor | None, dims: str) -> None:
        self(name, t, dims)
        if t is not None and not t.is_contiguous():
            raise InputError(f"{name}: must be contiguous; call .contiguous()")

    def parameter(self, name: str, t: Tensor | None, dims: str) -> None:
        """Contiguous within each student; the student stride is free (a view of a flat (S, P) buffer)."""
        self(name, t, dims)
        if t is not None and not t[0].is_contiguous():
            raise InputError(f"{name}: must be contiguous within each student; call .contiguous()")


def _paired(**pair: Tensor | None) -> bool:
    """True when all are given, False when none is; anything between is an error."""
    missing = [name for name, t in pair.items() if t is None]
    if missing and len(missing) != len(pair):
        raise InputError(f"{missing[0]}: must be given together with {', '.join(n for n in pair if n not in missing)}")
    return not missing


def conv3x3(
    x: Tensor, w: Tensor, bias: Tensor | None = None, x2: Tensor | None = None, w2: Tensor | None = None
) -> Tensor:
    check = _Shapes("x", x)
    check.activation("x", x, "S B H W Ci")
    check.parameter("w", w, "S Co Ci 3 3")
    check.parameter("bias", bias, "S Co")
    _paired(x2=x2, w2=w2)
    check.activation("x2", x2, "S B H W Ci")
    check.parameter("w2", w2, "S Co Ci 3 3")
    return x.new_empty(*x.shape[:4], w.shape[1])


def conv3x3_input_grad(g: Tensor, w: Tensor, g2: Tensor | None = None, w2: Tensor | None = None) -> Tensor:
    check = _Shapes("g", g)
    check.activation("g", g, "S B H W Co")
    check.parameter("w", w, "S Co Ci 3 3")
    _paired(g2=g2, w2=w2)
    check.activation("g2", g2, "S B H W Co")
    check.parameter("w2", w2, "S Co Ci 3 3")
    return g.new_empty(*g.shape[:4], w.shape[2])


def conv3x3_weight_grad(
    g: Tensor, x: Tensor, g2: Tensor | None = None, x2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    check = _Shapes("g", g)
    check.activation("g", g, "S B H W Co")
    check.activation("x", x, "S B H W Ci")
    _paired(g2=g2, x2=x2)
    check.activation("g2", g2, "S B H W Co")
    check.activation("x2", x2, "S B H W Ci")
    return g.new_empty(g.shape[0], g.shape[4], x.shape[4], 3, 3), g.new_empty(g.shape[0], g.shape[4])


def _block(check: _Shapes, z: Tensor, pool: bool, gamma: Tensor | None, beta: Tensor | None) -> list[int]:
    """Checks what all block operators share; returns the shape of the block's output."""
    check.activation("z", z, "S B H W C")
    check.parameter("gamma", gamma, "S C")
    check.parameter("beta", beta, "S C")
    _paired(gamma=gamma, beta=beta)
    s, b, h, w, c = z.shape
    if pool and (h < 2 or w < 2):
        raise InputError(f"z: planes of {h}x{w} are too small for a 2x2 pool; use fewer blocks or larger images")
    return [s, b, h // 2, w // 2, c] if pool else [s, b, h, w, c]


def _output_like(name: str, t: Tensor, z: Tensor, shape: list[int]) -> None:
    if list(t.shape) != shape:
        raise InputError(f"{name}: shape {tuple(t.shape)}, expected {tuple(shape)}, the block's output")
    if t.dtype != z.dtype or t.device != z.device:
        raise InputError(f"{name}: {t.dtype} on {t.device}, but z is {z.dtype} on {z.device}")
    if not t.is_contiguous():
        raise InputError(f"{name}: must be contiguous; call .contiguous()")


def block_forward(
    z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _block(_Shapes("z", z), z, pool, gamma, beta)
    stats = (z.shape[0], z.shape[1], z.shape[4])
    return z.new_empty(shape), z.new_empty(stats), z.new_empty(stats)


def block_backward(
    gp: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check = _Shapes("z", z)
    _output_like("gp", gp, z, _block(check, z, pool, gamma, beta))
    check.activation("mean", mean, "S B C")
    check.activation("rstd", rstd, "S B C")
    channels = (z.shape[0], z.shape[4])
    return torch.empty_like(z), z.new_empty(channels), z.new_empty(channels)


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
    check = _Shapes("z", z)
    shape = _block(check, z, pool, gamma, beta)
    _paired(gamma=gamma, gammadot=gammadot, betadot=betadot)
    check.activation("zdot", zdot, "S B H W C")
    check.activation("mean", mean, "S B C")
    check.activation("rstd", rstd, "S B C")
    check.parameter("gammadot", gammadot, "S C")
    check.parameter("betadot", betadot, "S C")
    return z.new_empty(shape), torch.empty_like(mean), torch.empty_like(mean)


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
    check = _Shapes("z", z)
    shape = _block(check, z, pool, gamma, beta)
    _paired(gamma=gamma, gammadot=gammadot, betadot=betadot)
    _output_like("gp", gp, z, shape)
    _output_like("gpdot", gpdot, z, shape)
    check.activation("zdot", zdot, "S B H W C")
    for name, t in (("mean", mean), ("rstd", rstd), ("mean_zdot", mean_zdot), ("mean_xhat_zdot", mean_xhat_zdot)):
        check.activation(name, t, "S B C")
    check.parameter("gammadot", gammadot, "S C")
    check.parameter("betadot", betadot, "S C")
    channels = (z.shape[0], z.shape[4])
    return torch.empty_like(z), torch.empty_like(z), z.new_empty(channels), z.new_empty(channels)


def linear_ce(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check = _Shapes("h", h)
    check.activation("h", h, "S B F")
    check.parameter("w", w, "S K F")
    check.parameter("b", b, "S K")
    check.activation("y", y, "S B K")
    return h.new_empty(h.shape[0]), torch.empty_like(h), h.new_empty(w.shape), h.new_empty(b.shape)


def linear_ce_tangent(
    h: Tensor, hdot: Tensor, w: Tensor, wdot: Tensor, b: Tensor, bdot: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check = _Shapes("h", h)
    check.activation("h", h, "S B F")
    check.activation("hdot", hdot, "S B F")
    for name, t in (("w", w), ("wdot", wdot)):
        check.parameter(name, t, "S K F")
    for name, t in (("b", b), ("bdot", bdot)):
        check.parameter(name, t, "S K")
    check.activation("y", y, "S B K")
    return (
        h.new_empty(h.shape[0]),
        torch.empty_like(h),
        torch.empty_like(h),
        h.new_empty(w.shape),
        h.new_empty(b.shape),
        torch.empty_like(y),
    )


def linear_bce(
    h: Tensor, w: Tensor, b: Tensor, y: Tensor, pos: Tensor, neg: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = linear_ce(h, w, b, y)
    _weights(h, w, pos, neg)
    return outputs


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
    outputs = linear_ce_tangent(h, hdot, w, wdot, b, bdot, y)
    _weights(h, w, pos, neg)
    return outputs


def _weights(h: Tensor, w: Tensor, pos: Tensor, neg: Tensor) -> None:
    check = _Shapes("h", h)
    check.sizes["K"] = w.shape[1]
    check.activation("pos", pos, "K")
    check.activation("neg", neg, "K")


def _offsets(check: _Shapes, offsets: Tensor, total: int) -> None:
    """int64 (L+1), rising from 0 to the number of parameters. The values are read only where they are real."""
    check("offsets", offsets, "L1", dtype=torch.int64)
    if not offsets.is_contiguous():
        raise InputError("offsets: must be contiguous; call .contiguous()")
    if offsets.shape[0] < 2:
        raise InputError("offsets: needs at least two entries, 0 and the number of parameters")
    if offsets.device.type == "cpu" and type(offsets) is Tensor:
        values = offsets.tolist()
        if values[0] != 0 or values[-1] != total or any(a > b for a, b in pairwise(values)):
            raise InputError(f"offsets: must rise from 0 to {total}, the number of parameters")


def matching_loss(
    theta: Tensor, origin: Tensor, end: Tensor, frac: Tensor, offsets: Tensor, denom: Tensor
) -> tuple[Tensor, Tensor]:
    check = _Shapes("theta", theta)
    for name, t in (("theta", theta), ("origin", origin), ("end", end)):
        check.parameter(name, t, "S P")
    _offsets(check, offsets, theta.shape[1])
    check.sizes["L"] = offsets.shape[0] - 1
    check.parameter("frac", frac, "S L")
    check.activation("denom", denom, "S")
    return theta.new_empty(theta.shape[0]), theta.new_empty(theta.shape)


def sgd_step_(
    params: Tensor, grad: Tensor, momentum_buffer: Tensor | None, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    check = _Shapes("params", params)
    check.parameter("params", params, "S P")
    check.parameter("grad", grad, "S P")
    check.parameter("momentum_buffer", momentum_buffer, "S P")
    check.activation("lr", lr, "S")
    if momentum_buffer is None and momentum:
        raise InputError("momentum_buffer: needed where momentum is not 0")


def arc_length(previous: Tensor, current: Tensor, offsets: Tensor) -> Tensor:
    check = _Shapes("previous", previous)
    check.parameter("previous", previous, "S P")
    check.parameter("current", current, "S P")
    _offsets(check, offsets, previous.shape[1])
    return previous.new_empty(previous.shape[0], offsets.shape[0] - 1, dtype=torch.float64)


def _augment(name: str, x: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    check = _Shapes(name, x)
    check.activation(name, x, "S B C H W")
    if x.shape[3] < 2 or x.shape[4] < 2:
        raise InputError(f"{name}: images of {x.shape[3]}x{x.shape[4]} are too small to augment; use 2x2 or larger")
    placed = kinds.device.type in ("cpu", "meta") or kinds.device == x.device
    if kinds.dtype != torch.int64 or kinds.shape != x.shape[:1] or not placed:
        raise InputError(f"kinds: {kinds.dtype} {tuple(kinds.shape)} on {kinds.device}, expected int64 (S,) on the CPU")
    if not kinds.is_contiguous():
        raise InputError("kinds: must be contiguous; call .contiguous()")
    # on a device the numbers are not looked at: that would wait for it, and break the capture of a graph
    if kinds.device.type == "cpu" and type(kinds) is Tensor and not 0 <= int(kinds.min()) <= int(kinds.max()) <= 6:
        raise InputError(f"kinds: {kinds.tolist()} has a number that is no augmentation; use 0 to 6")
    check("params", params, "S B 4", dtype=torch.float32)
    if not params.is_contiguous():
        raise InputError("params: must be contiguous; call .contiguous()")
    return torch.empty_like(x)


def dsa(x: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    return _augment("x", x, kinds, params)


def dsa_transpose(g: Tensor, kinds: Tensor, params: Tensor) -> Tensor:
    return _augment("g", g, kinds, params)
