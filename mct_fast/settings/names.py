"""What settings are named by: networks and their options, tasks, schedules, augmentations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mct_fast.run.errors import InputError

NORMS = {
    "instance": "instance",
    "instancenorm": "instance",
    "batch": "batch",
    "batchnorm": "batch",
    "layer": "layer",
    "layernorm": "layer",
    "group": "group",
    "groupnorm": "group",
    "none": "none",
}
ACTIVATIONS = {"relu": "relu", "sigmoid": "sigmoid", "leakyrelu": "leakyrelu"}
POOLINGS = {"avg": "avg", "avgpooling": "avg", "max": "max", "maxpooling": "max", "none": "none"}


def one_of(argument: str, value: str, choices: Mapping[str, str]) -> str:
    """The canonical spelling of ``value``; InputError naming ``argument`` and the spellings otherwise."""
    if str(value).lower() not in choices:
        known = ", ".join(dict.fromkeys(choices.values()))
        raise InputError(f"{argument}={value!r} is unknown: use one of {known}")
    return choices[str(value).lower()]


ZOO: tuple[str, ...] = (
    "LeNet",
    "AlexNet",
    "VGG11",
    "VGG11BN",
    "ResNet18",
    "ResNet18BN",
    "ResNet18_AP",
    "ResNet18BN_AP",
)
"""Names that :func:`mct_fast.models.build_zoo` takes."""

VECTOR_NETWORKS = ("MLP", "GRU", "TCN")
"""Networks that take rows and series."""

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


_OWN: set[str] = set()


def add_name(name: str) -> None:
    """Lets ``name``, that of a network of the user's own, be given wherever a network is named.

    Raises:
        InputError: a network of the package has it.
    """
    if name.startswith("ConvNet") or name in (*VECTOR_NETWORKS, *ZOO):
        raise InputError(f"name: {name!r} is a network of the package; give yours another")
    _OWN.add(name)


def check_name(name: str) -> None:
    """Raises :class:`InputError` for a name of a network that :func:`mct_fast.models.build_model` does not know."""
    if name.startswith("ConvNet"):
        convnet_suffixes(name)
    elif name not in VECTOR_NETWORKS and name not in _OWN:
        check_zoo_name(name)


def check_zoo_name(name: str) -> None:
    """Raises :class:`InputError` for a name that is none of :data:`ZOO`."""
    if name not in ZOO:
        raise InputError(
            f"model {name!r} is unknown: use ConvNet, MLP, GRU, TCN or one of {', '.join(ZOO)}, or register_model"
        )


def convnet_suffixes(name: str) -> dict[str, Any]:
    """What the suffixes of a ConvNet's name say; :class:`InputError` for one that says nothing."""
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


TASKS = ("classification", "binary", "multilabel")
"""What labels can say."""


def check_task(name: str) -> None:
    """Raises :class:`InputError` for a name that is none of :data:`TASKS`."""
    if name not in TASKS:
        raise InputError(f"task: unknown {name!r}; choose one of {', '.join(TASKS)}")


SCHEDULES = ("arc_length", "uniform", "decreasing", "projected")
"""How the pace grows along a path."""

AUGMENTATIONS = ("none", "color", "crop", "cutout", "flip", "scale", "rotate")
"""Names of DSA's operations; the index in this tuple is the kind id of the parameter table."""

_IDENTITY = ("", "none")


def dsa_kinds(strategy: str) -> tuple[str, ...]:
    """The operations that ``strategy``, names joined by ``_``, lets a batch get; empty for the identity.

    Raises:
        InputError: it names another.
    """
    kinds = () if strategy.lower() in _IDENTITY else tuple(strategy.lower().split("_"))
    for kind in kinds:
        if kind not in AUGMENTATIONS[1:]:
            raise InputError(
                f"dsa_strategy names {kind!r}: use {', '.join(AUGMENTATIONS[1:])} joined by '_', "
                "or 'none' to switch DSA off"
            )
    return kinds
