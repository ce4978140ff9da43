"""Differentiable siamese augmentation (DSA): every student's images through one operation, and the adjoint of its linear part.

The table of the operations and their parameters stands in `mct_fast.data.operations`.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor

from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, has_data
from mct_fast.run.errors import InputError

Images = Annotated[Tensor, activation("S B C H W")]
Kinds = Annotated[Tensor, activation("S", dtype=torch.int64, host=True)]
Parameters = Annotated[Tensor, activation("S B 4", dtype=torch.float32)]

KINDS = 7
"""Operations, numbered from 0: none, colour, crop, cutout, flip, scale, rotate."""


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


def _known_kinds(kinds: Tensor, **others: Any) -> None:
    """The numbers are looked at on the CPU alone: elsewhere that would wait for the device, and break a graph's capture."""
    name, images = next((name, t) for name, t in others.items() if name != "params")
    height, width = images.shape[3:]
    if height < 2 or width < 2:
        raise InputError(f"{name}: images of {height}x{width} are too small to augment; use 2x2 or larger")
    if kinds.device.type == "cpu" and has_data(kinds) and not 0 <= int(kinds.min()) <= int(kinds.max()) < KINDS:
        raise InputError(f"kinds: {kinds.tolist()} has a number that is no augmentation; use 0 to {KINDS - 1}")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _vjp(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    kinds, params = ctx.saved_tensors
    return dsa_transpose(gy.contiguous(), kinds, params), None, None


@operator(rule=_known_kinds, derivative=(_save, _vjp))
def dsa(x: Images, kinds: Kinds, params: Parameters) -> Images:
    """Augment the images of each student by one operation, its parameters drawn per image: y = A x + c.

    Args:
        x: Images, (S, B, C, H, W); H and W at least 2.
        kinds: The operation of each student, (S,) int64, 0 to 6; on the CPU, or with ``x`` on a device, where they are
            trusted (another number is taken for 0).
        params: (S, B, 4) float32, as `mct_fast.data.augment.AugmentPlan.table` gives them.

    Returns:
        y, as ``x``. First derivative only, by x.
    """
    return _augment(x, kinds, params, transpose=False)


@operator(rule=_known_kinds)
def dsa_transpose(g: Images, kinds: Kinds, params: Parameters) -> Images:
    """A^T g: the adjoint of the linear part of `dsa`.

    Args:
        g: Cotangent of y, (S, B, C, H, W).
        kinds: As in `dsa`.
        params: As in `dsa`.

    Returns:
        gx, as ``g``. No derivative.
    """
    return _augment(g, kinds, params, transpose=True)
