"""Networks: ConvNet and MLP, the zoo for evaluation, any module as a function of flat parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from mct_fast.errors import InputError
from mct_fast.models.convnet import ConvNet
from mct_fast.models.functional import FunctionalModel
from mct_fast.models.mlp import MLP
from mct_fast.models.zoo import ZOO, ZooModel, build_zoo

__all__ = ["MLP", "ZOO", "ConvNet", "FunctionalModel", "ZooModel", "build_model", "build_zoo", "model_spec", "spec_for"]

_ANY_SHAPE = ("MLP",)
"""Networks that take tables and series; the others look for neighbouring pixels."""

_SHARED = ("channels", "image_size", "num_classes")
_OPTIONS = ("depth", "width", "norm", "activation", "pooling")
_SUFFIXES: dict[str, tuple[str, str]] = {
    "IN": ("norm", "instance"),
    "BN": ("norm", "batch"),
    "LN": ("norm", "layer"),
    "GN": ("norm", "group"),
    "NN": ("norm", "none"),
    "AS": ("activation", "sigmoid"),
    "AR": ("activation", "relu"),
    "AL": ("activation", "leakyrelu"),
    "NP": ("pooling", "none"),
    "MP": ("pooling", "max"),
    "AP": ("pooling", "avg"),
}


def build_model(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network from a mapping, such as :func:`model_spec` returns.

    ``spec["name"]`` is "ConvNet", "MLP" or a name of :data:`ZOO`. A ConvNet's name may carry the suffixes
    of the field, which win over the mapping's entries: D and a depth, W and a width, IN BN LN GN NN (norm),
    AS AR AL (activation), NP MP AP (pooling), as in ConvNetD4 or ConvNetW256BN. Further entries:
    ``channels``, ``image_size``, ``num_classes``, ``depth``, ``width``, ``norm``, ``activation``,
    ``pooling``; each network takes those it has (the zoo only the first three) and its defaults where one
    is absent or None.

    Raises:
        InputError: an unknown name, suffix, entry or value.
    """
    given = {key: value for key, value in spec.items() if value is not None}
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise InputError("model spec has no name: give one, such as {'name': 'ConvNet'}")
    for key in given:
        if key not in _SHARED + _OPTIONS:
            raise InputError(f"model spec entry {key!r} is unknown: use {', '.join(_SHARED + _OPTIONS)}")
    if name.startswith("ConvNet"):
        return ConvNet(**{**given, **_suffixes(name)})
    if name == "MLP":
        return MLP(**{key: value for key, value in given.items() if key != "pooling"})
    return build_zoo(name, **{key: value for key, value in given.items() if key in _SHARED})


def model_spec(module: nn.Module) -> dict[str, Any]:
    """The JSON form of a network of this package, which :func:`build_model` takes back."""
    if isinstance(module, ConvNet | MLP | ZooModel):
        return dict(module.spec)
    raise InputError(
        f"{type(module).__name__} is no model of mct_fast.models and has no spec: "
        "pass the module itself where a model is wanted"
    )


def spec_for(model: str | Mapping[str, Any], inputs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A full spec of ``model`` for data of ``kind`` (images, table, series) with ``inputs`` (`Dataset.model_inputs`).

    Raises:
        InputError: the network takes images only.
    """
    spec = {**inputs, "name": model} if isinstance(model, str) else {**inputs, **model}
    if kind != "images" and spec.get("name") not in _ANY_SHAPE:
        raise InputError(f"model: {spec.get('name')} takes images, the data are {kind}; use {', '.join(_ANY_SHAPE)}")
    return spec


def _suffixes(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    rest = name.removeprefix("ConvNet")
    while rest:
        match = re.match(r"([DW])(\d+)|" + "|".join(_SUFFIXES), rest)
        if match is None:
            raise InputError(
                f"model {name!r} is unknown: after ConvNet use D and a depth, W and a width, {', '.join(_SUFFIXES)}"
            )
        if match[1]:
            options["depth" if match[1] == "D" else "width"] = int(match[2])
        else:
            key, value = _SUFFIXES[match[0]]
            options[key] = value
        rest = rest[match.end() :]
    return options
