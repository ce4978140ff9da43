"""How a parameter vector lies in a file: whole, or as few bytes a value.

An encoding turns a vector (P,) float32 into a few tensors and back.  Decoding is two float32 roundings that every machine
does alike: a stored code times a stored scale, added by the store to the point before.  The layouts are written down in
``docs/trajectory-store.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.run.errors import InputError

MIN_ROW = 8
"""Tensors with fewer values a channel (biases, norms) are kept in float32: a scale each would take as much."""

# Smaller scales are taken for zero, so that no product of a scale and a code is subnormal: some programs flush those.
_SMALLEST = 2.0**-100
_CHUNK = 16384  # values


class Encoding(Protocol):
    """A way to keep a vector (P,) float32 whose parts have the shapes ``shapes``."""

    @property
    def name(self) -> str: ...

    @property
    def relative(self) -> bool:
        """Whether a later point of a path is kept as its difference to the (decoded) point before."""
        ...

    def encode(self, values: Tensor, shapes: Sequence[torch.Size]) -> dict[str, Tensor]:
        """The tensors to store, by name. InputError for values that are not finite."""
        ...

    def decode(self, parts: Mapping[str, Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        """The vector (P,) float32. InputError for tensors of other shapes or types than :meth:`encode` makes."""
        ...

    def nbytes(self, shapes: Sequence[torch.Size]) -> int:
        """Bytes of the stored tensors of one vector."""
        ...


@dataclass(frozen=True)
class Float32:
    """Bit for bit: ``values`` (P,) float32."""

    name: str = "float32"
    relative: bool = False

    def encode(self, values: Tensor, shapes: Sequence[torch.Size]) -> dict[str, Tensor]:
        return {"values": _checked(values, shapes)}

    def decode(self, parts: Mapping[str, Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        return _part(parts, "values", torch.float32, _count(shapes))

    def nbytes(self, shapes: Sequence[torch.Size]) -> int:
        return 4 * _count(shapes)


@dataclass(frozen=True)
class Half:
    """``values`` (P,) float16 times ``scales`` (L,) float32, a power of two a tensor, so that no range is lost."""

    name: str = "fp16"
    relative: bool = True

    def encode(self, values: Tensor, shapes: Sequence[torch.Size]) -> dict[str, Tensor]:
        pieces = _checked(values, shapes).split([shape.numel() for shape in shapes])
        # frexp: |x| < 2^exponent.  The largest value of a tensor comes to lie in [2^14, 2^15), float16 ends at 65504.
        largest = torch.stack([piece.abs().max() if piece.numel() else piece.new_zeros(()) for piece in pieces])
        exponents = torch.frexp(largest).exponent.double() - 15
        scales = torch.where(largest > 0, torch.exp2(exponents.clamp(min=math.log2(_SMALLEST))), 1.0).float()
        codes = [(piece / scale).half() for piece, scale in zip(pieces, scales, strict=True)]
        return {"values": torch.cat(codes), "scales": scales}

    def decode(self, parts: Mapping[str, Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        values = _part(parts, "values", torch.float16, _count(shapes)).float()
        scales = _part(parts, "scales", torch.float32, len(shapes))
        for piece, scale in zip(values.split([shape.numel() for shape in shapes]), scales, strict=True):
            piece.mul_(scale)
        return values

    def nbytes(self, shapes: Sequence[torch.Size]) -> int:
        return 2 * _count(shapes) + 4 * len(shapes)


@dataclass(frozen=True)
class Integers:
    """Codes of few bits, one scale a block.

    Tensors with at least :data:`MIN_ROW` values a channel (row of dimension 0) are cut into blocks: the channels if
    ``group`` is None, else ``group`` consecutive values, the last block of a tensor being what is left.  A value is
    code * scale; the scale may be negative, so that the largest value, of either sign, can take the code -2^(bits-1).
    Scales are chosen to minimise the squared error (candidates around the largest value, then least squares).
    ``codes``: bytes, two's complement at 8 bits; at 4 bits the code plus 8, two a byte, the earlier one low.
    ``scales``: one a block.  ``exact``: the values of all other tensors, float32.
    """

    name: str
    bits: int
    group: int | None
    scale_dtype: torch.dtype
    relative: bool = True

    def encode(self, values: Tensor, shapes: Sequence[torch.Size]) -> dict[str, Tensor]:
        values = _checked(values, shapes)
        codes, scales, exact = [], [], []
        for start, shape in _starts(shapes):
            piece = values[start : start + shape.numel()]
            if not _wide(shape):
                exact.append(piece)
                continue
            size = self._block(shape)
            # A last, shorter block is filled up with zeros: they add no error, and their codes are dropped.
            rows = torch.nn.functional.pad(piece, (0, -len(piece) % size)).view(-1, size)
            # Few rows at a time: what the search for scales makes on its way stays in the cache.
            fitted = [_fit(few, self.bits, self.scale_dtype) for few in rows.split(max(_CHUNK // size, 1))]
            codes.append(torch.cat([few.reshape(-1) for few, _ in fitted])[: len(piece)])
            scales += [few for _, few in fitted]
        none = values.new_zeros(0)
        flat = torch.cat(codes) if codes else none.to(torch.int8)
        return {
            "codes": flat if self.bits == 8 else _pack(flat),
            "scales": torch.cat(scales) if scales else none.to(self.scale_dtype),
            "exact": torch.cat(exact) if exact else none,
        }

    def decode(self, parts: Mapping[str, Tensor], shapes: Sequence[torch.Size]) -> Tensor:
        wide = [shape for shape in shapes if _wide(shape)]
        count = _count(wide)
        if self.bits == 8:
            codes = _part(parts, "codes", torch.int8, count).float()
        else:
            codes = _unpack(_part(parts, "codes", torch.uint8, -(-count // 2)))[:count].float()
        scales = _part(parts, "scales", self.scale_dtype, sum(self._blocks(shape) for shape in wide)).float()
        exact = _part(parts, "exact", torch.float32, _count(shapes) - count)
        values = torch.empty(_count(shapes))
        code = scale = kept = 0
        for start, shape in _starts(shapes):
            piece = values[start : start + shape.numel()]
            if not _wide(shape):
                piece.copy_(exact[kept : kept + len(piece)])
                kept += len(piece)
                continue
            size, whole = self._block(shape), len(piece) // self._block(shape)
            own = codes[code : code + len(piece)]
            body = slice(0, whole * size)
            torch.mul(
                own[body].view(whole, size), scales[scale : scale + whole, None], out=piece[body].view(whole, size)
            )
            if whole * size < len(piece):
                torch.mul(own[whole * size :], scales[scale + whole], out=piece[whole * size :])
            code += len(piece)
            scale += self._blocks(shape)
        return values

    def nbytes(self, shapes: Sequence[torch.Size]) -> int:
        wide = [shape for shape in shapes if _wide(shape)]
        scales = sum(self._blocks(shape) for shape in wide) * self.scale_dtype.itemsize
        return -(-_count(wide) * self.bits // 8) + scales + 4 * (_count(shapes) - _count(wide))

    def _block(self, shape: torch.Size) -> int:
        return shape.numel() // shape[0] if self.group is None else self.group

    def _blocks(self, shape: torch.Size) -> int:
        return -(-shape.numel() // self._block(shape))


ENCODINGS: Mapping[str, Encoding] = {
    encoding.name: encoding
    for encoding in (
        Float32(),
        Half(),
        Integers("int8", 8, None, torch.float32),
        Integers("int4", 4, 64, torch.bfloat16),
    )
}
"""The encodings by name."""


def find_encoding(name: str, argument: str = "encoding") -> Encoding:
    """The encoding called ``name``; InputError naming ``argument`` and the names otherwise."""
    if name not in ENCODINGS:
        raise InputError(f"{argument}: unknown {name!r}; choose one of {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


def _fit(rows: Tensor, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes ``(blocks, n)`` int8 and scales ``(blocks,)`` of least squared error, among those tried."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    x = rows.double()
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True)).squeeze(1)
    best = torch.full_like(extreme, torch.inf)
    codes, scales = torch.zeros_like(x), torch.zeros_like(extreme)

    def consider(candidate: Tensor) -> None:
        nonlocal best, codes, scales
        scale = candidate.to(dtype).double()
        scale = torch.where(scale.abs() < _SMALLEST, 0.0, scale)
        code = (x / torch.where(scale == 0, 1.0, scale)[:, None]).round_().clamp_(low, high)
        code[scale == 0] = 0
        error = (code * scale[:, None] - x).square_().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
        codes = torch.where(better[:, None], code, codes)

    # From clipping the largest value to leaving a code unused on its side.
    shares = torch.linspace(0.6, low / (low + 1), 24) if bits < 8 else torch.linspace(0.75, low / (low + 1), 8)
    for share in shares.tolist():
        consider(share * extreme / low)
    for _ in range(2):
        square = codes.square().sum(1)
        consider(torch.where(square > 0, (codes * x).sum(1) / square.clamp(min=1), scales))
    return codes.to(torch.int8), scales.to(dtype)


def _pack(codes: Tensor) -> Tensor:
    shifted = torch.nn.functional.pad(codes + 8, (0, len(codes) % 2)).to(torch.uint8)
    return shifted[0::2] | (shifted[1::2] << 4)


def _unpack(packed: Tensor) -> Tensor:
    return torch.stack([packed & 15, packed >> 4], dim=1).view(-1).to(torch.int8) - 8


def _wide(shape: torch.Size) -> bool:
    return len(shape) > 0 and shape.numel() >= MIN_ROW * shape[0] > 0


def _starts(shapes: Sequence[torch.Size]) -> Iterator[tuple[int, torch.Size]]:
    start = 0
    for shape in shapes:
        yield start, shape
        start += shape.numel()


def _count(shapes: Sequence[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)


def _checked(values: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
    if values.shape != (_count(shapes),) or not bool(torch.isfinite(values).all()):
        raise InputError(f"values: are not {_count(shapes)} finite numbers; encode one flat vector of the model")
    return values.detach().cpu().float().contiguous()


def _part(parts: Mapping[str, Tensor], name: str, dtype: torch.dtype, count: int) -> Tensor:
    part = parts.get(name)
    if part is None or part.dtype != dtype or part.shape != (count,):
        found = "nothing" if part is None else f"{part.dtype} {tuple(part.shape)}"
        raise InputError(f"{name}: must be {dtype} ({count},), not {found}; the shard belongs to another model")
    return part
