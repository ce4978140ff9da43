"""The evaluation zoo and the mapping from names to networks."""

from __future__ import annotations

import json

import pytest
import torch

from mct_fast.models import MLP, ZOO, ConvNet, build_model, build_zoo, model_spec
from mct_fast.run.errors import InputError

# numbers of parameters of the reference networks: (32x32 colour, 28x28 grey), 10 classes
PARAMETERS = {
    "LeNet": (62_006, 61_706),
    "AlexNet": (1_872_202, 1_865_802),
    "VGG11": (9_231_114, 9_229_962),
    "VGG11BN": (9_231_114, 9_229_962),
    "ResNet18": (11_173_962, 11_172_810),
    "ResNet18BN": (11_173_962, 11_172_810),
    "ResNet18_AP": (11_250_762, 11_213_770),
    "ResNet18BN_AP": (11_250_762, 11_213_770),
}
SMALLEST = {"LeNet": 16, "AlexNet": 8}


@pytest.mark.parametrize("name", ZOO)
def test_parameter_counts(name: str) -> None:
    for (channels, size), parameters in zip(((3, 32), (1, 28)), PARAMETERS[name], strict=True):
        net = build_zoo(name, channels, size)
        assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize("size", [8, 13, 28, 32, 64])
@pytest.mark.parametrize("name", ZOO)
def test_outputs_depend_on_the_image_at_every_size(name: str, size: int) -> None:
    channels = 1 if size in (8, 28) else 3
    if size < SMALLEST.get(name, 4):
        with pytest.raises(InputError, match=rf"{name} needs image_size of at least \d+, not {size}"):
            build_zoo(name, channels, size)
        return
    torch.manual_seed(0)
    net = build_zoo(name, channels, size, num_classes=7)
    with torch.no_grad():
        logits = net(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert (logits[0] - logits[1]).abs().max() > 1e-4  # an instance norm of one pixel would make them equal


def test_first_and_last_shapes_of_resnet_and_vgg() -> None:
    resnet = [tuple(p.shape) for p in build_zoo("ResNet18").parameters()]
    assert resnet[:2] == [(64, 3, 3, 3), (64,)] and resnet[-2:] == [(10, 512), (10,)] and len(resnet) == 62
    vgg = [tuple(p.shape) for p in build_zoo("VGG11").parameters()]
    assert vgg[:5] == [(64, 3, 3, 3), (64,), (64,), (64,), (128, 64, 3, 3)] and len(vgg) == 34


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("ConvNetD1", "depth", 1),
        ("ConvNetD8", "depth", 8),
        ("ConvNetW32", "width", 32),
        ("ConvNetW1024", "width", 1024),
        ("ConvNetIN", "norm", "instance"),
        ("ConvNetBN", "norm", "batch"),
        ("ConvNetLN", "norm", "layer"),
        ("ConvNetGN", "norm", "group"),
        ("ConvNetNN", "norm", "none"),
        ("ConvNetAS", "activation", "sigmoid"),
        ("ConvNetAR", "activation", "relu"),
        ("ConvNetAL", "activation", "leakyrelu"),
        ("ConvNetNP", "pooling", "none"),
        ("ConvNetMP", "pooling", "max"),
        ("ConvNetAP", "pooling", "avg"),
    ],
)
def test_suffixes_of_the_field(name: str, attribute: str, value: object) -> None:
    size = 256 if name == "ConvNetD8" else 32
    net = build_model({"name": name, "channels": 1, "image_size": size, "num_classes": 3})
    assert isinstance(net, ConvNet) and getattr(net, attribute) == value
    default = ConvNet()
    others = {"depth", "width", "norm", "activation", "pooling"} - {attribute}
    assert all(getattr(net, other) == getattr(default, other) for other in others)


def test_suffixes_combine_and_win_over_entries() -> None:
    net = build_model({"name": "ConvNetD2W16BN", "depth": 3, "width": 128, "norm": None, "pooling": "max"})
    assert isinstance(net, ConvNet)
    assert (net.depth, net.width, net.norm, net.pooling) == (2, 16, "batch", "max")


def test_specs_round_trip_through_json() -> None:
    nets = [
        ConvNet(2, 12, 1, 28, 4, norm="group", activation="sigmoid", pooling="max"),
        ConvNet(2, 8, 3, (9, 14)),
        MLP(1, 9, 1, 8, 3, "leakyrelu", "layer"),
        build_zoo("ResNet18_AP", 1, 8, 3),
        build_zoo("LeNet"),
    ]
    for net in nets:
        again = build_model(json.loads(json.dumps(model_spec(net))))
        assert type(again) is type(net) and model_spec(again) == model_spec(net)
        assert [p.shape for p in again.parameters()] == [p.shape for p in net.parameters()]


def test_bad_specs_name_the_remedy() -> None:
    with pytest.raises(InputError, match="model 'ResNet50' is unknown: use ConvNet, MLP, GRU, TCN or one of LeNet"):
        build_model({"name": "ResNet50"})
    with pytest.raises(InputError, match="model 'ConvNetX' is unknown: after ConvNet use D"):
        build_model({"name": "ConvNetX"})
    with pytest.raises(InputError, match="entry 'wdth' is unknown: use channels"):
        build_model({"name": "ConvNet", "wdth": 3})
    with pytest.raises(InputError, match="no name"):
        build_model({"depth": 3})
    with pytest.raises(InputError, match="square"):
        build_model({"name": "VGG11", "image_size": [32, 16]})
    with pytest.raises(InputError, match="Linear is no model"):
        model_spec(torch.nn.Linear(2, 2))
