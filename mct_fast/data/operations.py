"""The operations of differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) in PyTorch.

Every operation is affine in the pixels, ``A x + c``, and has three maps: ``A x + c``, ``A x`` and the transpose ``A^T g``.

Parameter table
---------------
A draw is a kind and a table ``(b, 4)`` of float32, one row an image. ``x[i, j]`` is the pixel in row ``i``
and column ``j`` of one channel of an ``(H, W)`` image; rows come before columns everywhere; unused entries
are 0. The operations compute with these float32 values (converted to the dtype of the images), whatever
that dtype is.

== ======== ============ ============ =========== ========== ================================================
id kind     p0           p1           p2          p3         output
== ======== ============ ============ =========== ========== ================================================
0  none                                                      ``x``
1  color    offset o     saturation s contrast c             ``c*s*x + c*(1-s)*mean_C + (1-c)*mean + o``
2  crop     row shift u  col shift v                         ``x[i+u, j+v]``, 0 outside the image
3  cutout   row start    row stop     col start   col stop   0 where start <= i < stop in rows and columns
4  flip     1 or 0                                           ``x[i, W-1-j]`` where p0 is 1
5  scale    row factor u col factor v                        ``bilinear(x, u*(i-h)+h, v*(j-w)+w)``
6  rotate   cos a        sin a                               ``bilinear(x, row, col)`` with
                                                             ``col = cos*(j-w) - sin*(i-h)*w/h + w``,
                                                             ``row = sin*(j-w)*h/w + cos*(i-h) + h``
== ======== ============ ============ =========== ========== ================================================

``h = (H-1)/2`` and ``w = (W-1)/2``: the centre of the image in pixel units (``align_corners=True``).
``mean_C`` is the mean of x over the channels at one pixel, ``mean`` the mean over all values of one image.
``bilinear(x, r, q) = sum_{i,j} hat(r-i) hat(q-j) x[i, j]`` with ``hat(d) = max(0, 1-|d|)``: pixels outside
the image count as 0. The colour line is brightness (add ``o``), then saturation
(``s*(x - mean_C) + mean_C``), then contrast (``c*(x - mean) + mean``), put together: the first two leave
the mean where it is, but for ``o``.

Transposes: ``none``, ``color`` (without ``o``), ``cutout`` and ``flip`` are symmetric; ``crop`` is ``crop``
with ``-u, -v``; ``scale`` is separable, so its transpose is that of two small matrices; for ``rotate`` see
:func:`rotate_transpose_gather`, which needs no atomics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Images x (b, C, H, W); their table p (b, 4) has the images' dtype and device.


def _column(p: Tensor, index: int) -> Tensor:
    return p[:, index].reshape(-1, 1, 1, 1)


def _color_linear(x: Tensor, p: Tensor) -> Tensor:
    return _color(x, p, _column(p, 0) * 0)


def _color_apply(x: Tensor, p: Tensor) -> Tensor:
    return _color(x, p, _column(p, 0))


def _color(x: Tensor, p: Tensor, offset: Tensor) -> Tensor:
    saturation, contrast = _column(p, 1), _column(p, 2)
    pixel = x.mean(1, keepdim=True)
    rest = pixel * (contrast * (1 - saturation)) + ((1 - contrast) * pixel.mean((2, 3), keepdim=True) + offset)
    return torch.addcmul(rest, x, contrast * saturation)


def _shift(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x[i + rows, j + columns]`` for each image, 0 outside; rows and columns are (b,) integers."""
    b, c, h, w = x.shape
    i = torch.arange(h, device=x.device) + rows[:, None]
    j = torch.arange(w, device=x.device) + columns[:, None]
    inside = ((i >= 0) & (i < h))[:, :, None] & ((j >= 0) & (j < w))[:, None, :]
    index = i.clamp(0, h - 1)[:, :, None] * w + j.clamp(0, w - 1)[:, None, :]
    taken = x.reshape(b, c, h * w).gather(2, index.reshape(b, 1, h * w).expand(b, c, h * w))
    return taken.reshape(b, c, h, w) * inside[:, None].to(x.dtype)


def _crop_apply(x: Tensor, p: Tensor) -> Tensor:
    return _shift(x, p[:, 0].long(), p[:, 1].long())


def _crop_transpose(g: Tensor, p: Tensor) -> Tensor:
    return _shift(g, -p[:, 0].long(), -p[:, 1].long())


def _cutout(x: Tensor, p: Tensor) -> Tensor:
    i = torch.arange(x.shape[2], device=x.device)
    j = torch.arange(x.shape[3], device=x.device)
    rows = (i >= p[:, 0:1]) & (i < p[:, 1:2])
    columns = (j >= p[:, 2:3]) & (j < p[:, 3:4])
    keep = ~(rows[:, :, None] & columns[:, None, :])
    return x * keep[:, None].to(x.dtype)


def _flip(x: Tensor, p: Tensor) -> Tensor:
    return torch.where(_column(p, 0) > 0.5, x.flip(3), x)


def _hat(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp_(min=0)


def _scale_matrices(x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Interpolation matrices of the rows (b, H, H) and the columns (b, W, W), [output, input]."""

    def matrix(factor: Tensor, size: int) -> Tensor:
        index = torch.arange(size, device=x.device, dtype=x.dtype)
        centre = (size - 1) / 2
        return _hat((factor[:, None] * (index - centre) + centre)[:, :, None] - index)

    return matrix(p[:, 0], x.shape[2]), matrix(p[:, 1], x.shape[3])


def _two_sided(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """``left @ x @ right`` for each image and channel; left (b, H, H), x (b, C, H, W), right (b, W, W)."""
    b, c, h, w = x.shape
    y = torch.bmm(x.reshape(b, c * h, w), right).reshape(b, c, h, w)
    return torch.matmul(left[:, None], y)


def _scale_apply(x: Tensor, p: Tensor) -> Tensor:
    rows, columns = _scale_matrices(x, p)
    return _two_sided(rows, x, columns.mT)


def _scale_transpose(g: Tensor, p: Tensor) -> Tensor:
    rows, columns = _scale_matrices(g, p)
    return _two_sided(rows.mT, g, columns)


def _rotate_grid(x: Tensor, p: Tensor) -> Tensor:
    """Sampling points (b, H, W, 2) of the rotation, (column, row) in the units of grid_sample (-1 to 1)."""
    row = torch.linspace(-1, 1, x.shape[2], device=x.device, dtype=x.dtype)[None, :, None]
    column = torch.linspace(-1, 1, x.shape[3], device=x.device, dtype=x.dtype)[None, None, :]
    cos, sin = p[:, 0].reshape(-1, 1, 1), p[:, 1].reshape(-1, 1, 1)
    return torch.stack((cos * column - sin * row, sin * column + cos * row), -1)


def _rotate_apply(x: Tensor, p: Tensor) -> Tensor:
    return F.grid_sample(x, _rotate_grid(x, p), mode="bilinear", padding_mode="zeros", align_corners=True)


def _rotate_transpose(g: Tensor, p: Tensor) -> Tensor:
    if g.device.type != "cpu":  # PyTorch's CUDA kernel adds with atomics, in no fixed order
        return rotate_transpose_gather(g, p)
    backward = torch.ops.aten.grid_sampler_2d_backward.default
    # bilinear, zeros, align_corners; the images are asked for but do not enter the gradient of the images
    return backward(g, g, _rotate_grid(g, p), 0, 0, True, [True, False])[0]


def rotate_transpose_gather(g: Tensor, p: Tensor) -> Tensor:
    """The transpose of the rotation as a gather: each input pixel sums the few outputs that sampled it.

    Outputs q that touch input pixel k have ``|R q - k| < 1`` in rows and in columns, so they lie within
    ``sqrt(1 + (w/h)^2)`` columns (rows: ``h/w``) of ``R^-1 k``. A window around its rounded value holds
    them all (3 by 3 on square images); their weights are the hat functions of the forward pass.
    """
    b, c, h, w = g.shape
    centre_row, centre_column = (h - 1) / 2, (w - 1) / 2
    cos, sin = p[:, 0].reshape(-1, 1, 1), p[:, 1].reshape(-1, 1, 1)
    i = torch.arange(h, device=g.device, dtype=g.dtype).reshape(1, h, 1)
    j = torch.arange(w, device=g.device, dtype=g.dtype).reshape(1, 1, w)
    aspect = centre_column / centre_row
    first_row = (cos * (i - centre_row) - sin * (j - centre_column) / aspect + centre_row).round()
    first_column = (cos * (j - centre_column) + sin * (i - centre_row) * aspect + centre_column).round()
    reach_rows = math.ceil(math.hypot(1, 1 / aspect) + 0.5) - 1
    reach_columns = math.ceil(math.hypot(1, aspect) + 0.5) - 1
    grid = _rotate_grid(g, p)
    at_rows, at_columns = (grid[..., 1] + 1) * centre_row, (grid[..., 0] + 1) * centre_column
    sampled = torch.stack((at_rows, at_columns), 1).reshape(b, 2, h * w)
    flat = g.reshape(b, c, h * w)
    total = torch.zeros_like(flat)
    for down in range(-reach_rows, reach_rows + 1):
        for right in range(-reach_columns, reach_columns + 1):
            row, column = first_row + down, first_column + right
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().reshape(b, 1, h * w)
            at = sampled.gather(2, index.expand(b, 2, h * w)).reshape(b, 2, h, w)
            weight = _hat(at[:, 0] - i) * _hat(at[:, 1] - j) * inside.to(g.dtype)
            total += flat.gather(2, index.expand(b, c, h * w)) * weight.reshape(b, 1, h * w)
    return total.reshape(b, c, h, w)


def _same(x: Tensor, p: Tensor) -> Tensor:
    return x.clone()


Operation = Callable[[Tensor, Tensor], Tensor]

# kind -> (A x + c, A x, A^T g)
OPERATIONS: dict[str, tuple[Operation, Operation, Operation]] = {
    "none": (_same, _same, _same),
    "color": (_color_apply, _color_linear, _color_linear),
    "crop": (_crop_apply, _crop_apply, _crop_transpose),
    "cutout": (_cutout, _cutout, _cutout),
    "flip": (_flip, _flip, _flip),
    "scale": (_scale_apply, _scale_apply, _scale_transpose),
    "rotate": (_rotate_apply, _rotate_apply, _rotate_transpose),
}
AFFINE, LINEAR, TRANSPOSE = 0, 1, 2


class _Operate(torch.autograd.Function):
    """One of the three maps of an operation; the derivatives are the maps themselves, so any order works."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, params: Tensor, kind: str, which: int) -> Tensor:
        return OPERATIONS[kind][which](x, params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, int], output: Tensor) -> None:
        _, params, ctx.kind, ctx.which = inputs
        ctx.save_for_backward(params)
        ctx.save_for_forward(params)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (params,) = ctx.saved_tensors
        which = LINEAR if ctx.which == TRANSPOSE else TRANSPOSE
        return _Operate.apply(grad_outputs[0], params, ctx.kind, which), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (params,) = ctx.saved_tensors
        which = LINEAR if ctx.which == AFFINE else ctx.which
        return _Operate.apply(tangents[0], params, ctx.kind, which)


def operate(x: Tensor, params: Tensor, kind: str, which: int) -> Tensor:
    """One of the three maps of an operation, differentiable in ``x`` any number of times.

    Args:
        x: (b, C, H, W), any float dtype.
        params: (b, 4) of the same dtype and device, the parameter table.
        kind: a key of :data:`OPERATIONS`.
        which: ``AFFINE``, ``LINEAR`` or ``TRANSPOSE``.
    """
    return _Operate.apply(x, params, kind, which)
