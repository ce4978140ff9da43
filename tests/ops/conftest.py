"""Arguments of every operator at odd shapes, shared by the tests of the operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mct_fast import ops


@dataclass(frozen=True)
class Dims:
    """S students, B images of H x W, Ci and Co channels (a block's C is Co), K classes, F features."""

    S: int = 2
    B: int = 3
    H: int = 5
    W: int = 7
    Ci: int = 3
    Co: int = 5
    K: int = 4
    F: int = 21
    norm: bool = True
    pool: bool = True
    pair: bool = True


SHAPES = {
    "smallest": Dims(1, 1, 3, 3, 1, 1, 2, 1),
    "odd": Dims(2, 3, 5, 7, 3, 5, 4, 21),
    "no-pair-no-pool": Dims(3, 2, 3, 4, 17, 33, 7, 70, pool=False, pair=False),
    "no-norm": Dims(2, 2, 6, 5, 16, 20, 3, 64, norm=False),
    "no-norm-no-pool": Dims(1, 2, 1, 3, 2, 16, 9, 65, norm=False, pool=False),
    "wide": Dims(1, 2, 8, 8, 64, 90, 10, 130),
}


class Arguments:
    """Random arguments; parameters are views of a wider flat buffer, as they are in use."""

    def __init__(self, dims: Dims, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.dims, self.dtype = dims, dtype
        self._generator = torch.Generator().manual_seed(seed)

    def array(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self.dtype)

    def parameter(self, *shape: int) -> Tensor:
        count = torch.Size(shape[1:]).numel()
        flat = self.array(shape[0], count + 11)
        return flat[:, 4 : 4 + count].unflatten(1, shape[1:])

    def image(self, channels: int) -> Tensor:
        d = self.dims
        return self.array(d.S, d.B, d.H, d.W, channels)

    def pooled(self) -> Tensor:
        d, by = self.dims, 2 if self.dims.pool else 1
        return self.array(d.S, d.B, d.H // by, d.W // by, d.Co)

    def affine(self, count: int) -> list[Tensor | None]:
        d = self.dims
        return [self.parameter(d.S, d.Co) if d.norm else None for _ in range(count)]

    def statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and reciprocal deviation of the planes of z."""
        if not self.dims.norm:
            return z.new_zeros(z[:, :, 0, 0].shape), z.new_ones(z[:, :, 0, 0].shape)
        d = z.double()
        rstd = (d.var((2, 3), unbiased=False) + 1e-5).rsqrt()
        return d.mean((2, 3)).to(self.dtype), rstd.to(self.dtype)

    def of(self, op: str) -> list[Any]:
        """The arguments of operator `op`."""
        return list(_MAKERS[op](self))


def _block_backward(a: Arguments) -> list[Any]:
    z = a.image(a.dims.Co)
    return [a.pooled(), z, *a.statistics(z), *a.affine(2), a.dims.pool]


def _block_tangent(a: Arguments) -> list[Any]:
    z = a.image(a.dims.Co)
    return [z, a.image(a.dims.Co), *a.statistics(z), *a.affine(4), a.dims.pool]


def _block_tangent_backward(a: Arguments) -> list[Any]:
    z, zdot = a.image(a.dims.Co), a.image(a.dims.Co)
    mean, rstd = a.statistics(z)
    xhat = (z - mean[:, :, None, None]) * rstd[:, :, None, None]
    means = (zdot.mean((2, 3)), (xhat * zdot).mean((2, 3))) if a.dims.norm else (mean.clone(), mean.clone())
    return [a.pooled(), a.pooled(), z, zdot, mean, rstd, *means, *a.affine(4), a.dims.pool]


def _first_block(a: Arguments) -> list[Any]:
    d = a.dims
    return [a.image(d.Ci), a.parameter(d.S, d.Co, d.Ci, 3, 3), a.parameter(d.S, d.Co), *a.affine(2), 1e-5, d.pool]


def _first_block_backward(a: Arguments) -> list[Any]:
    x, w, bias, gamma, beta, _, pool = _first_block(a)
    return [a.pooled(), x, *a.statistics(_first_planes(x, w, bias)), w, bias, gamma, beta, pool]


def _first_block_tangent(a: Arguments) -> list[Any]:
    d = a.dims
    x, w, bias, *_ = _first_block(a)
    wdot, biasdot = a.parameter(d.S, d.Co, d.Ci, 3, 3), a.parameter(d.S, d.Co)
    return [x, *a.statistics(_first_planes(x, w, bias)), w, wdot, bias, biasdot, *a.affine(4), d.pool]


def _first_block_tangent_backward(a: Arguments) -> list[Any]:
    x, mean, rstd, w, wdot, bias, biasdot, *rest = _first_block_tangent(a)
    z, zdot = _first_planes(x, w, bias), _first_planes(x, wdot, biasdot)
    xhat = (z - mean[:, :, None, None]) * rstd[:, :, None, None]
    means = (zdot.mean((2, 3)), (xhat * zdot).mean((2, 3))) if a.dims.norm else (mean.clone(), mean.clone())
    return [a.pooled(), a.pooled(), x, mean, rstd, *means, w, wdot, bias, biasdot, *rest]


def _first_planes(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    return ops.conv3x3.reference(x.double(), w.double(), bias.double()).to(x.dtype)


def _linear(a: Arguments) -> tuple[int, int, int, int]:
    return a.dims.S, a.dims.B, a.dims.F, a.dims.K


def _linear_ce(a: Arguments) -> list[Any]:
    s, b, f, k = _linear(a)
    return [a.array(s, b, f), a.parameter(s, k, f) / f**0.5, a.parameter(s, k), a.array(s, b, k).abs()]


def _linear_ce_tangent(a: Arguments) -> list[Any]:
    s, b, f, k = _linear(a)
    h, weights, biases = (
        [a.array(s, b, f) for _ in "12"],
        [a.parameter(s, k, f) / f**0.5 for _ in "12"],
        [a.parameter(s, k) for _ in "12"],
    )
    return [*h, *weights, *biases, a.array(s, b, k).abs()]


def _bce(arguments: list[Any], a: Arguments) -> list[Any]:
    """Targets from 0 to 1, a few of them hard, and the weights of both terms."""
    y = arguments[-1].clamp(max=1)
    weights = [a.array(a.dims.K).abs() + 0.1 for _ in "12"]
    return [*arguments[:-1], y, *weights]


def _offsets(a: Arguments) -> Tensor:
    return torch.tensor([0, 1, 1, 9, 9 + 9000 * a.dims.B, 9007 + 9000 * a.dims.B])


def _matching_loss(a: Arguments) -> list[Any]:
    s, offsets = a.dims.S, _offsets(a)
    size = int(offsets[-1])
    flat = [a.parameter(s, size) for _ in "123"]
    return [*flat, a.parameter(s, len(offsets) - 1), offsets, a.array(s).abs() + 0.5]


def _sgd_step(a: Arguments) -> list[Any]:
    s, size = a.dims.S, 9 + 9000 * a.dims.B
    buffer = a.parameter(s, size) if a.dims.norm else None
    return [a.parameter(s, size), a.parameter(s, size), buffer, a.array(s).abs(), 0.9 if a.dims.norm else 0.0, 5e-4]


def _augment(a: Arguments) -> list[Any]:
    d = a.dims
    kinds = torch.arange(d.S) % 2 + 5
    params = 1 + 0.2 * a.array(d.S, d.B, 4).float()
    return [a.array(d.S, d.B, 3, max(d.H, 2), d.W), kinds, params]


_MAKERS: dict[str, Callable[[Arguments], list[Any]]] = {
    "conv3x3": lambda a: [
        a.image(a.dims.Ci),
        a.parameter(a.dims.S, a.dims.Co, a.dims.Ci, 3, 3),
        a.parameter(a.dims.S, a.dims.Co) if a.dims.norm else None,
        *([a.image(a.dims.Ci), a.parameter(a.dims.S, a.dims.Co, a.dims.Ci, 3, 3)] if a.dims.pair else []),
    ],
    "conv3x3_input_grad": lambda a: [
        x
        for _ in range(1 + a.dims.pair)
        for x in (a.image(a.dims.Co), a.parameter(a.dims.S, a.dims.Co, a.dims.Ci, 3, 3))
    ],
    "conv3x3_weight_grad": lambda a: [
        x for _ in range(1 + a.dims.pair) for x in (a.image(a.dims.Co), a.image(a.dims.Ci))
    ],
    "block_forward": lambda a: [a.image(a.dims.Co), *a.affine(2), 1e-5, a.dims.pool],
    "block_backward": _block_backward,
    "block_tangent": _block_tangent,
    "block_tangent_backward": _block_tangent_backward,
    "first_block": _first_block,
    "first_block_backward": _first_block_backward,
    "first_block_tangent": _first_block_tangent,
    "first_block_tangent_backward": _first_block_tangent_backward,
    "linear_ce": _linear_ce,
    "linear_ce_tangent": _linear_ce_tangent,
    "linear_bce": lambda a: _bce(_linear_ce(a), a),
    "linear_bce_tangent": lambda a: _bce(_linear_ce_tangent(a), a),
    "matching_loss": _matching_loss,
    "sgd_step_": _sgd_step,
    "arc_length": lambda a: [
        *(a.parameter(a.dims.S, int(_offsets(a)[-1])) for _ in "12"),
        _offsets(a),
    ],
    "dsa": _augment,
    "dsa_transpose": _augment,
}
OPS = list(ops.OPERATORS)

CANCELS = {("first_block_backward", 1): 0, ("first_block_tangent_backward", 2): 1}
"""Outputs that a norm makes sums to zero, as a bias before it changes nothing: errors are measured by the output named."""


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def dims(request: pytest.FixtureRequest) -> Dims:
    return request.param


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make() -> Callable[..., Arguments]:
    return Arguments


@pytest.fixture
def odd() -> Dims:
    return SHAPES["odd"]


@pytest.fixture
def dims_of() -> type[Dims]:
    return Dims
