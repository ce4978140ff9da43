"""Initial parameters from a seed, in arithmetic of our own: the same bits on every machine, in every release.

A trajectory store keeps an expert's first parameters as a seed.  That needs a stream which no library can change: the
words of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counted by parameter,
turned to floats by one exact step and one float32 product.  The distribution is that of PyTorch's constructors.

Layout of the stream, for seed s (64 bits), parameter tensor l (from 0, in flat order) and element e (row-major):
key = (s mod 2^32, s div 2^32); counter = (b mod 2^32, b div 2^32, l, 0) with b = e div 4; the element takes word e mod 4 of
that block.  From a word w: k = w div 2^8 (24 bits), v = 2k + 1 - 2^24 (odd, |v| < 2^24, exact in float32), and
theta_e = v * (float32(1 / sqrt(fan_in)) * 2^-24), rounded once, as float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from mct_fast.run.errors import InputError

GENERATOR = "philox4x32-10/uniform-1"
"""Name of the stream above, as a store notes it; another stream gets another name."""

Words = npt.NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_CHUNK = 8192  # blocks at a time: their words stay in the cache


@dataclass(frozen=True)
class Uniform:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for weights and biases of convolutions and linear layers."""

    fan_in: int

    def to_json(self) -> dict[str, Any]:
        return {"fan_in": self.fan_in}


@dataclass(frozen=True)
class Constant:
    """One value throughout, as the weights (1) and biases (0) of norms."""

    value: float

    def to_json(self) -> dict[str, Any]:
        return {"constant": self.value}


Fill = Uniform | Constant
Plan = tuple[Fill, ...]
"""How each parameter tensor begins, in flat order."""


def plan_from_json(entries: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan that :meth:`Uniform.to_json` and :meth:`Constant.to_json` wrote, one mapping a tensor."""
    try:
        return tuple(
            Uniform(int(entry["fan_in"])) if "fan_in" in entry else Constant(float(entry["constant"]))
            for entry in entries
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError("init: is no list of {'fan_in': n} and {'constant': x}; write it as Plan.to_json") from error


def init_plan(module: nn.Module) -> Plan | None:
    """How PyTorch's constructors fill the parameters of ``module``, or None if it has layers other than those known here.

    Known are convolutions, linear layers, recurrent layers without projection and norms, each of exactly PyTorch's class: a
    subclass, or a parent with a ``reset_parameters`` of its own, may begin otherwise.
    """
    fills: dict[int, Fill] = {}
    for submodule in module.modules():
        own = dict(submodule.named_parameters(recurse=False))
        if type(submodule) in _FAN_IN:
            fan_in = own["weight"][0].numel() if len(own["weight"]) else 1
            fills |= {id(parameter): Uniform(fan_in) for parameter in own.values()}
        elif type(submodule) in _RECURRENT and isinstance(submodule, nn.RNNBase) and submodule.proj_size == 0:
            fills |= {id(parameter): Uniform(submodule.hidden_size) for parameter in own.values()}
        elif type(submodule) in _NORMS:
            fills |= {id(parameter): Constant(float(name == "weight")) for name, parameter in own.items()}
        elif own or hasattr(submodule, "reset_parameters") or hasattr(submodule, "_reset_parameters"):
            return None
    return tuple(fills[id(parameter)] for parameter in module.parameters())


def draw(plan: Plan, shapes: Sequence[Sequence[int]], seed: int) -> Tensor:
    """Parameters (P,) float32 of the stream above; ``plan`` and ``shapes`` hold one entry a parameter tensor."""
    if len(plan) != len(shapes):
        raise InputError(f"init: the plan has {len(plan)} tensors, the model {len(shapes)}; use the model's own plan")
    sizes = [math.prod(shape) for shape in shapes]
    drawn = [layer for layer, fill in enumerate(plan) if isinstance(fill, Uniform)]
    blocks = [-(-sizes[layer] // 4) for layer in drawn]
    words = _words(drawn, blocks, seed)
    # (2k + 1 - 2^24) fits an int32 and is exact in float32.
    words >>= np.uint32(8)
    words <<= np.uint32(1)
    values = words.view(np.int32)
    values += np.int32(1 - (1 << 24))
    params = np.empty(sum(sizes), np.float32)
    starts = dict(zip(drawn, np.cumsum([0, *blocks]) * 4, strict=False))
    offset = 0
    for layer, (fill, size) in enumerate(zip(plan, sizes, strict=True)):
        span = params[offset : offset + size]
        if isinstance(fill, Uniform):
            step = np.float32(1 / math.sqrt(max(fill.fan_in, 1))) * np.float32(2.0**-24)
            np.multiply(values[starts[layer] : starts[layer] + size].astype(np.float32), step, out=span)
        else:
            span.fill(fill.value)
        offset += size
    return torch.from_numpy(params)


def philox4x32(counter: Sequence[Words], key: tuple[int, int], rounds: int = 10) -> tuple[Words, ...]:
    """The four words of each block, as uint64 below 2^32; ``counter`` holds four such arrays of one shape."""
    c0, c1, c2, c3 = counter
    for i in range(rounds):
        k0, k1 = (np.uint64((k + i * w) & 0xFFFFFFFF) for k, w in zip(key, _WEYL, strict=True))
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = p1 >> _HALF, p0 >> _HALF
        c0 ^= c1
        c0 ^= k0
        c2 ^= c3
        c2 ^= k1
        p1 &= _LOW
        p0 &= _LOW
        c1, c3 = p1, p0
    return c0, c1, c2, c3


def _words(layers: Sequence[int], blocks: Sequence[int], seed: int) -> npt.NDArray[np.uint32]:
    """The words of blocks 0, 1, ... of each of ``layers``, one after another: (4 * sum(blocks),)."""
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    words = np.empty((sum(blocks), 4), np.uint32)
    starts = np.cumsum([0, *blocks])[:-1]
    # The number of a block within its layer is its place in the whole less the layer's start.
    first = np.repeat(starts.astype(np.uint64), blocks)
    layer = np.repeat(np.asarray(layers, np.uint64), blocks)
    for begin in range(0, len(words), _CHUNK):
        span = slice(begin, min(begin + _CHUNK, len(words)))
        block = np.arange(span.start, span.stop, dtype=np.uint64) - first[span]
        zero = np.zeros_like(block)
        for column, word in enumerate(philox4x32((block & _LOW, block >> _HALF, layer[span], zero), key)):
            words[span, column] = word
    return words.reshape(-1)


_FAN_IN: frozenset[type[nn.Module]] = frozenset(
    {nn.Linear, *(kind for kind in vars(nn).values() if isinstance(kind, type) and kind.__base__ is _ConvNd)}
)
_RECURRENT: frozenset[type[nn.Module]] = frozenset({nn.RNN, nn.LSTM, nn.GRU})
_NORMS: frozenset[type[nn.Module]] = frozenset(
    {nn.GroupNorm, nn.LayerNorm, nn.RMSNorm}
    | {kind for kind in vars(nn).values() if isinstance(kind, type) and kind.__base__ in (_BatchNorm, _InstanceNorm)}
)
