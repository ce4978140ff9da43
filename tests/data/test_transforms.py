"""Pixel transforms against independent float64 computations and against kornia."""

import json
from typing import Any

import pytest
import torch

from mct_fast.data.transforms import (
    ZCA,
    Identity,
    Normalize,
    Transform,
    check_zca_size,
    to_unit,
    transform_from_state,
)
from mct_fast.run.errors import InputError


def correlated_images(count: int, shape: tuple[int, ...], seed: Any = 0):
    """uint8 images whose neighbouring pixels go together, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, shape[0], 2, 2, generator=generator)
    images = torch.nn.functional.interpolate(smooth, size=shape[1:], mode="bilinear")
    images = images + 0.05 * torch.randn(count, *shape, generator=generator)
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)


def test_normalize_is_the_formula_per_channel():
    raw = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    transform = Normalize((0.1, 0.2, 0.3), torch.tensor([0.5, 1.0, 2.0]))
    got = transform.forward(raw)
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1.0), (0.3, 2.0))):
        torch.testing.assert_close(got[:, channel], (raw[:, channel] - mean) / std)
    torch.testing.assert_close(transform.inverse(got), raw)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_normalize_fit_equals_float64_statistics(kind: str):
    raw = correlated_images(37, (3, 7, 7))
    raw = raw if kind == "uint8" else to_unit(raw)
    unit = raw.double() / (255 if kind == "uint8" else 1)
    transform = Normalize.fit(raw)
    torch.testing.assert_close(torch.tensor(transform.mean), unit.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(transform.std), unit.std((0, 2, 3), correction=0).float())


def test_normalize_fit_leaves_a_constant_channel_finite():
    raw = torch.full((5, 1, 3, 3), 0.3)
    transform = Normalize.fit(raw)
    assert transform.std == (1.0,)
    assert transform.forward(raw).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.0,), "std"),
        ((0.5,), (float("nan"),), "std"),
        ((float("inf"),), (1.0,), "mean"),
        ((0.5, 0.5), (1.0,), "mean has 2"),
        ((), (), "mean has 0"),
    ],
)
def test_normalize_refuses_bad_constants(mean: tuple[float, ...], std: tuple[float, ...], message: str):
    with pytest.raises(InputError, match=message):
        Normalize(mean, std)


@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 6, 6)], ids=["3x5x5", "1x6x6"])
def test_zca_equals_kornia(shape: tuple[int, ...]):
    from kornia.enhance import ZCAWhitening

    raw = correlated_images(200, shape)
    reference = ZCAWhitening(eps=0.1, compute_inv=True).fit(raw.float() / 255)
    transform = ZCA.fit(raw)
    unseen = to_unit(correlated_images(20, shape, seed=1))
    torch.testing.assert_close(transform.forward(unseen), reference(unseen), rtol=0, atol=2e-6)
    whitened = reference(unseen)
    torch.testing.assert_close(transform.inverse(whitened), reference.inverse_transform(whitened), rtol=0, atol=2e-6)


def test_zca_equals_an_independent_float64_computation():
    raw = correlated_images(300, (3, 4, 4))
    transform = ZCA.fit(raw)
    flat = raw.double().div(255).flatten(1)
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.t() @ centred / (len(flat) - 1))
    expected = centred @ (vectors * (values + 0.1).rsqrt()) @ vectors.t()
    got = transform.forward(to_unit(raw)).flatten(1).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-6)


def test_zca_round_trip_returns_the_grey_levels():
    raw = correlated_images(100, (3, 6, 6))
    transform = ZCA.fit(raw)
    back = transform.inverse(transform.forward(to_unit(raw)))
    assert torch.equal(back.mul(255).round().to(torch.uint8), raw)
    torch.testing.assert_close(back, to_unit(raw), rtol=0, atol=1e-5)


def test_zca_follows_the_dtype_of_its_input():
    transform = ZCA.fit(correlated_images(50, (1, 4, 4)))
    raw = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    assert transform.forward(raw).dtype == torch.float64
    assert transform.inverse(transform.forward(raw)).dtype == torch.float64


def test_zca_applies_without_kornia(monkeypatch: pytest.MonkeyPatch):
    raw = correlated_images(50, (1, 4, 4))
    tensors, meta = ZCA.fit(raw).state()
    monkeypatch.setitem(__import__("sys").modules, "kornia.enhance", None)
    transform = transform_from_state(tensors, meta)
    assert torch.isfinite(transform.forward(to_unit(raw))).all()
    with pytest.raises(InputError, match="pip install kornia"):
        ZCA.fit(raw)


def test_zca_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="at least 2"):
        ZCA.fit(correlated_images(1, (1, 4, 4)))
    with pytest.raises(InputError, match="smaller image_size"):
        check_zca_size((3, 128, 128))
    transform = ZCA.fit(correlated_images(9, (1, 4, 4)))
    with pytest.raises(InputError, match="fitted on"):
        transform.forward(torch.rand(2, 1, 2, 8))


def fitted(kind: str):
    raw = correlated_images(60, (3, 4, 4))
    return {"identity": Identity(), "normalize": Normalize.fit(raw), "zca": ZCA.fit(raw)}[kind]


@pytest.mark.parametrize("kind", ["identity", "normalize", "zca"])
def test_state_round_trip_is_bit_exact(kind: str):
    transform = fitted(kind)
    assert isinstance(transform, Transform)
    tensors, meta = transform.state()
    again = transform_from_state({key: tensor.clone() for key, tensor in tensors.items()}, json.loads(json.dumps(meta)))
    raw = torch.rand(5, 3, 4, 4)
    assert torch.equal(again.forward(raw), transform.forward(raw))
    assert torch.equal(again.inverse(raw), transform.inverse(raw))
    assert again.state()[1] == meta


@pytest.mark.parametrize("kind", ["identity", "normalize", "zca"])
def test_forward_is_differentiable(kind: str):
    transform = fitted(kind)
    raw = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.inverse, (raw,))


@pytest.mark.parametrize(
    "meta",
    [
        {"kind": "whiten"},
        {},
        {"kind": "normalize", "mean": [0.5]},
        {"kind": "normalize", "mean": [0.5], "std": ["wide"]},
        {"kind": "zca", "eps": 0.1, "image_shape": [1, 2, 2]},
        {"kind": "zca", "eps": 0.1, "image_shape": [1, 2]},
    ],
    ids=["unknown", "empty", "no-std", "std-text", "no-tensors", "bad-shape"],
)
def test_malformed_state_is_an_input_error(meta: dict[str, Any]):
    with pytest.raises(InputError) as caught:
        transform_from_state({}, meta)
    assert "\n" not in str(caught.value)
