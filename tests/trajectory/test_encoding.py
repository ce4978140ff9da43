"""Encodings against NumPy: layouts, roundings, sizes, and the values that break careless ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mct_fast.models import ConvNet
from mct_fast.run.errors import InputError
from mct_fast.trajectory import ENCODINGS

# Odd shapes: rows of 1, 7 and 8 values, blocks of 64 that do not come out even, an odd number of nibbles, nothing at all.
SHAPES = [torch.Size(s) for s in [(5, 3, 3, 3), (5,), (3, 7), (4, 8), (1, 129), (), (2, 0), (33, 11), (64,)]]
COUNT = sum(shape.numel() for shape in SHAPES)
STARTS = np.cumsum([0, *[shape.numel() for shape in SHAPES]])


def normal(seed: int = 0, shapes: list[torch.Size] = SHAPES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randn(s.numel(), generator=generator) * 10 ** (i % 5 - 3) for i, s in enumerate(shapes)])


def plain_decode(name: str, parts: dict[str, torch.Tensor]) -> np.ndarray:
    """Decoding written from the document, value by value."""
    f32 = np.float32
    if name == "float32":
        return parts["values"].numpy()
    out: list[np.float32] = []
    if name == "fp16":
        for layer, scale in enumerate(parts["scales"].numpy()):
            out += [f32(value) * scale for value in parts["values"].numpy()[STARTS[layer] : STARTS[layer + 1]]]
        return np.array(out, f32)
    codes, scales, exact = parts["codes"].numpy(), parts["scales"].float().numpy(), parts["exact"].numpy()
    code = scale = kept = 0
    for shape in SHAPES:
        n = shape.numel()
        if not shape or shape[0] == 0 or n < 8 * shape[0]:
            out += list(exact[kept : kept + n])
            kept += n
            continue
        size = n // shape[0] if name == "int8" else 64
        for i in range(n):
            at = code + i
            value = codes[at] if name == "int8" else int(codes[at // 2] >> (4 * (at % 2)) & 15) - 8
            out.append(f32(value) * scales[scale + i // size])
        code, scale = code + n, scale + -(-n // size)
    return np.array(out, f32)


@pytest.mark.parametrize("name", ENCODINGS)
def test_decoding_is_the_documented_arithmetic(name: str) -> None:
    parts = ENCODINGS[name].encode(normal(), SHAPES)
    assert ENCODINGS[name].decode(parts, SHAPES).numpy().tobytes() == plain_decode(name, parts).tobytes()
    assert sum(part.nbytes for part in parts.values()) == ENCODINGS[name].nbytes(SHAPES)


@pytest.mark.parametrize("name", ENCODINGS)
def test_codes_are_the_nearest(name: str) -> None:
    values, encoding = normal(), ENCODINGS[name]
    parts = encoding.encode(values, SHAPES)
    decoded = encoding.decode(parts, SHAPES)
    if name == "float32":
        assert torch.equal(decoded, values)
        return
    if name == "fp16":
        for a, b in itertools.pairwise(STARTS):
            largest = values[a:b].abs().max() if b > a else 0
            # Half a unit in the last of 11 bits, or half the smallest subnormal of the tensor's range.
            limit = torch.maximum(values[a:b].abs() * 2.0**-11, torch.as_tensor(largest * 2.0**-38))
            assert bool(((decoded[a:b] - values[a:b]).abs() <= limit).all())
        return
    bits, size_of = (8, None) if name == "int8" else (4, 64)
    scale = 0
    scales = parts["scales"].double()
    for a, shape in zip(STARTS, SHAPES, strict=False):
        n = shape.numel()
        if not shape or n < 8 * shape[0] or n == 0:
            assert torch.equal(decoded[a : a + n], values[a : a + n])
            continue
        size = size_of or n // shape[0]
        for begin in range(a, a + n, size):
            x = values[begin : min(begin + size, a + n)].double()
            levels = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=torch.float64) * scales[scale]
            best = (x[:, None] - levels).abs().min(1).values
            found = (x - decoded[begin : begin + len(x)].double()).abs()
            assert bool((found <= best + 1e-6 * x.abs().max()).all())
            scale += 1


def least_error(x: torch.Tensor, bits: int) -> float:
    """The squared error of the best scale, by a search a hundred times finer than the encoder's."""
    best = math.inf
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for share in np.linspace(0.3, 1.3, 4001):
        for sign in (1, -1):
            scale = sign * share * float(x.abs().max()) / -low
            best = min(best, float(((x / scale).round().clamp(low, high) * scale - x).square().sum()))
    return best


@pytest.mark.parametrize(("name", "bits", "near"), [("int8", 8, 1.3), ("int4", 4, 1.12)])
def test_scales_are_near_the_best(name: str, bits: int, near: float) -> None:
    # At 8 bits the error hardly depends on the scale; what eight thousand tries gain over few is luck.
    generator = torch.Generator().manual_seed(1)
    shape = [torch.Size((6, 64))]
    x = torch.randn(6, 64, generator=generator) ** 3  # heavy tails, where clipping pays
    x[0] = torch.randn(64, generator=generator)
    x[1] = torch.rand(64, generator=generator)
    decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(x.flatten(), shape), shape).view(6, 64)
    for row, found in zip(x.double(), decoded.double(), strict=True):
        assert float((found - row).square().sum()) <= near * least_error(row, bits)


@pytest.mark.parametrize("name", ENCODINGS)
def test_zeros_outliers_and_extremes(name: str) -> None:
    encoding, values = ENCODINGS[name], normal()
    values[: STARTS[1]].view(5, 27)[2] = 0  # an all-zero channel
    values[STARTS[4] : STARTS[5]] = 0  # an all-zero tensor
    values[STARTS[7] + 5] = 3e38  # a huge outlier
    values[0] = -3e38
    values[STARTS[3] : STARTS[4]] = 1e-44  # subnormal
    decoded = encoding.decode(encoding.encode(values, SHAPES), SHAPES)
    assert bool(torch.isfinite(decoded).all())
    assert not decoded[: STARTS[1]].view(5, 27)[2].any() and not decoded[STARTS[4] : STARTS[5]].any()
    torch.testing.assert_close(decoded[STARTS[7] + 5], torch.tensor(3e38), rtol=1e-2, atol=0)
    assert bool((decoded[STARTS[3] : STARTS[4]].abs() <= 2e-44).all())
    # The outlier costs its own block or tensor and no other.
    clean = encoding.decode(encoding.encode(normal(), SHAPES), SHAPES)
    assert torch.equal(decoded[STARTS[8] :], clean[STARTS[8] :]) and torch.equal(
        decoded[STARTS[1] : STARTS[2]], clean[STARTS[1] : STARTS[2]]
    )


@pytest.mark.parametrize("magnitude", [1e-12, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("name", ENCODINGS)
def test_relative_error_does_not_depend_on_the_magnitude(name: str, magnitude: float) -> None:
    values = normal() * magnitude
    decoded = ENCODINGS[name].decode(ENCODINGS[name].encode(values, SHAPES), SHAPES).double()
    error = (decoded - values.double()).norm() / values.double().norm()
    assert error <= {"float32": 0, "fp16": 3e-4, "int8": 8e-3, "int4": 0.12}[name]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ENCODINGS)
def test_values_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = normal()
    values[3] = bad
    with pytest.raises(InputError, match="^values: .*finite"):
        ENCODINGS[name].encode(values, SHAPES)


@pytest.mark.parametrize("name", ENCODINGS)
def test_parts_of_another_model_are_refused(name: str) -> None:
    parts = ENCODINGS[name].encode(normal(), SHAPES)
    for shapes in (SHAPES[:-1], [torch.Size((COUNT, 1))]):
        if name == "float32" and len(shapes) == 1:
            continue  # as many numbers: only the manifest knows
        with pytest.raises(InputError, match="another model"):
            ENCODINGS[name].decode(parts, shapes)
    with pytest.raises(InputError, match="nothing"):
        ENCODINGS[name].decode({}, SHAPES)


def test_models_of_vectors_alone() -> None:
    shapes = [torch.Size((3,)), torch.Size((2, 2))]
    for encoding in ENCODINGS.values():
        values = torch.tensor([1.0, -2, 3, 0, 5, 6, 7])
        torch.testing.assert_close(encoding.decode(encoding.encode(values, shapes), shapes), values)


def test_bytes_a_parameter_of_the_reference_network() -> None:
    shapes = [parameter.shape for parameter in ConvNet().parameters()]
    sizes = {name: encoding.nbytes(shapes) for name, encoding in ENCODINGS.items()}
    assert sizes == {"float32": 1_280_040, "fp16": 640_076, "int8": 325_072, "int4": 174_036}
