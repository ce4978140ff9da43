"""ConvNet and MLP: parameter order and shapes, sizes, spellings, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mct_fast.models import MLP, ConvNet
from mct_fast.run.errors import InputError


def shapes(module: torch.nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_default_has_the_parameters_of_the_field() -> None:
    net = ConvNet()
    block = [(128,), (128,), (128,)]
    assert shapes(net) == [
        (128, 3, 3, 3),
        *block,
        (128, 128, 3, 3),
        *block,
        (128, 128, 3, 3),
        *block,
        (10, 2048),
        (10,),
    ]
    assert count(net) == 320_010
    assert [name for name, _ in net.named_parameters()][:4] == [
        "features.0.weight",
        "features.0.bias",
        "features.1.weight",
        "features.1.bias",
    ]


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"channels": 1, "image_size": 28}, 317_706),  # padded to 32: 2048 features as in colour
        ({"channels": 1, "image_size": 8, "width": 32}, 19_338),
        ({"norm": "none"}, 319_242),
        ({"norm": "layer"}, 663_306),
        ({"depth": 4, "image_size": 64, "num_classes": 200}, 857_160),
    ],
    ids=str,
)
def test_parameter_counts(options: dict[str, Any], parameters: int) -> None:
    assert count(ConvNet(**options)) == parameters


@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
@pytest.mark.parametrize("norm", ["instance", "none", "batch", "layer", "group"])
@pytest.mark.parametrize("size", [28, 13, (9, 14)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_shape(channels: int, size: int | tuple[int, int], norm: str, pooling: str) -> None:
    net = ConvNet(2, 8, channels, size, 5, norm=norm, pooling=pooling, activation="leakyrelu")
    rows, columns = (size, size) if isinstance(size, int) else size
    x = torch.randn(2, channels, rows, columns)
    assert net(x).shape == (2, 5)
    assert net.features(x).shape[2:] == net.feature_size


def test_block_by_block() -> None:
    net = ConvNet(2, 6, 3, 9, 4).double()
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    h, parameters = x, list(net.parameters())
    for weight, bias, gamma, beta in (parameters[:4], parameters[4:8]):
        z = torch.nn.functional.conv2d(h, weight, bias, padding=1)
        centred = z - z.mean((2, 3), keepdim=True)
        normed = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        a = (normed * gamma[:, None, None] + beta[:, None, None]).clamp(min=0)
        rows, columns = a.shape[2] // 2, a.shape[3] // 2
        a = a[:, :, : 2 * rows, : 2 * columns]
        h = (a[:, :, ::2, ::2] + a[:, :, 1::2, ::2] + a[:, :, ::2, 1::2] + a[:, :, 1::2, 1::2]) / 4
    expected = h.reshape(3, -1) @ parameters[8].T + parameters[9]
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


def test_spellings_of_the_reference() -> None:
    net = ConvNet(norm="instancenorm", pooling="avgpooling", activation="ReLU")
    assert (net.norm, net.pooling, net.activation) == ("instance", "avg", "relu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4, "image_size": 8}, "depth=4 halves image_size=8 .* use depth=3 or less"),
        ({"depth": 6, "image_size": 28, "channels": 1}, "depth=6 halves image_size=28"),
        ({"norm": "weight"}, "norm='weight' is unknown: use one of instance"),
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"pooling": "sum"}, "pooling='sum'"),
        ({"norm": "group", "width": 6}, "width=6 must be a multiple of 4"),
        ({"width": 0}, "width must be a positive whole number"),
        ({"image_size": (8, 8, 8)}, "image_size must be one number"),
    ],
    ids=str,
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ConvNet(**options)


def test_depth_is_unlimited_without_pooling() -> None:
    assert ConvNet(5, 4, 1, 8, 3, pooling="none")(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_mlp() -> None:
    assert count(MLP()) == 411_146 and count(MLP(channels=1, image_size=28)) == 118_282
    assert shapes(MLP(1, 5, 1, 4, 3)) == [(5, 16), (5,), (3, 5), (3,)]
    x = torch.randn(2, 1, 4, 6)
    for norm in ("none", "layer", "batch"):
        assert MLP(3, 7, 1, (4, 6), 3, "sigmoid", norm)(x).shape == (2, 3)
    with pytest.raises(InputError, match="norm='instance' is unknown: use one of none, layer, batch"):
        MLP(norm="instance")
