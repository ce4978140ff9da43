"""Networks: ConvNet and MLP, the zoo for evaluation, any module as a function of flat parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from mct_fast.models.convnet import ConvNet
from mct_fast.models.functional import FunctionalModel, has_dropout, without_dropout
from mct_fast.models.mlp import MLP
from mct_fast.models.series import GRU, TCN
from mct_fast.models.zoo import ZooModel, build_zoo
from mct_fast.run.errors import InputError
from mct_fast.settings.names import ZOO, add_name, check_name, convnet_suffixes

__all__ = [
    "GRU",
    "MLP",
    "TCN",
    "ZOO",
    "ConvNet",
    "FunctionalModel",
    "ZooModel",
    "build_model",
    "build_zoo",
    "check_name",
    "has_dropout",
    "model_spec",
    "register_model",
    "spec_for",
    "without_dropout",
]

_NETWORKS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "MLP": (MLP, ("depth", "width", "norm", "activation", "dropout")),
    "GRU": (GRU, ("depth", "width", "dropout")),
    "TCN": (TCN, ("depth", "width", "activation", "dropout")),
}
"""Networks that take rows and series, and the options that each has."""

_TAKES = {"table": ("MLP",), "series": tuple(_NETWORKS)}
"""Networks for data without neighbouring pixels; all but GRU and TCN take images."""

_SHARED = ("channels", "image_size", "num_classes")
_OPTIONS = ("depth", "width", "norm", "activation", "pooling", "dropout")


_OWN: dict[str, Callable[..., nn.Module]] = {}
_SPECS: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()  # of networks that they built


def register_model(name: str, make: Callable[..., nn.Module]) -> None:
    """Lets ``name`` stand for a network of your own, in settings, stores and on the command line (``--plugin``).

    ``make(channels=..., image_size=..., num_classes=...)`` builds it, initialised by PyTorch's random numbers. A store or
    run that names it can be read only where it is registered.

    Raises:
        InputError: a network of the package has the name.
    """
    add_name(name)
    _OWN[name] = make


def build_model(spec: Mapping[str, Any]) -> nn.Module:
    """Build a network from a mapping, such as :func:`model_spec` returns.

    ``spec["name"]`` is "ConvNet", "MLP", "GRU", "TCN" or a name of :data:`ZOO`. A ConvNet's name may carry the suffixes
    of the field, which win over the mapping's entries: D and a depth, W and a width, IN BN LN GN NN (norm),
    AS AR AL (activation), NP MP AP (pooling), as in ConvNetD4 or ConvNetW256BN. Further entries:
    ``channels``, ``image_size``, ``num_classes``, ``depth``, ``width``, ``norm``, ``activation``,
    ``pooling``, ``dropout``; each network takes those it has (the zoo only the first three) and its defaults
    where one is absent or None.

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
        return ConvNet(**{**{key: value for key, value in given.items() if key != "dropout"}, **convnet_suffixes(name)})
    if name in _NETWORKS:
        network, options = _NETWORKS[name]
        return network(**{key: value for key, value in given.items() if key in _SHARED + options})
    shared = {key: value for key, value in given.items() if key in _SHARED}
    if name in _OWN:
        module = _OWN[name](**shared)
        _SPECS[module] = {"name": name, **shared}
        return module
    return build_zoo(name, **shared)


def model_spec(module: nn.Module) -> dict[str, Any]:
    """The JSON form of a network of this package, which :func:`build_model` takes back."""
    if isinstance(module, ConvNet | MLP | GRU | TCN | ZooModel):
        return dict(module.spec)
    if module in _SPECS:
        return dict(_SPECS[module])
    raise InputError(
        f"{type(module).__name__} is no model of mct_fast.models and has no spec: "
        "pass the module itself where a model is wanted"
    )


def spec_for(model: str | Mapping[str, Any], inputs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A full spec of ``model`` for data of ``kind`` (images, table, series) with ``inputs`` (`Dataset.model_inputs`).

    Raises:
        InputError: the network takes other data, or contradicts these.
    """
    if not isinstance(model, str) and not (isinstance(model, Mapping) and isinstance(model.get("name"), str)):
        raise InputError(f"model: {model!r} names no network; give a name, or a spec such as {{'name': 'ConvNet'}}")
    given = {"name": model} if isinstance(model, str) else model
    for entry, value in inputs.items():
        if given.get(entry) is not None and _plain(given[entry]) != _plain(value):
            raise InputError(f"model: its {entry} is {given[entry]!r}, that of the data {value!r}; leave it out")
    spec = {**given, **inputs}
    name = spec["name"]
    if kind == "images" and name in ("GRU", "TCN"):
        raise InputError(f"model: {name} takes series, the data are images; use ConvNet or MLP")
    if kind != "images" and name not in (*_TAKES[kind], *_OWN):
        others = "series" if name in _NETWORKS else "images"
        raise InputError(f"model: {name} takes {others}, the data are {kind}; use {', '.join(_TAKES[kind])}")
    return spec


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
