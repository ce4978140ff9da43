"""Names of datasets: how the project spells them, what the field knows by them, and which reader serves each."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from mct_fast.data.arrays import read_arrays
from mct_fast.data.saved import read_saved
from mct_fast.data.sources import (
    TORCHVISION_SETS,
    RawDataset,
    ReadOptions,
    read_digits,
    read_folder,
    read_imagenet_subset,
    read_tiny_imagenet,
    read_torchvision,
)
from mct_fast.run.errors import InputError
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.tabular.recipes import TABLES

Reader: TypeAlias = Callable[[ReadOptions], RawDataset]

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2861,), (0.3530,)),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "tiny-imagenet": _IMAGENET,
    "imagenet": _IMAGENET,
    **dict.fromkeys(IMAGENET_SUBSETS, _IMAGENET),
}
"""Mean and standard deviation of each channel as the field uses them, whatever the split."""

FORMS = {
    "mnist": (1, 28, 10),
    "fashion-mnist": (1, 28, 10),
    "cifar10": (3, 32, 10),
    "cifar100": (3, 32, 100),
    "tiny-imagenet": (3, 64, 200),
    **dict.fromkeys(IMAGENET_SUBSETS, (3, 128, 10)),
}
"""Channels, pixels a side and classes of the field's sets."""

FORMATS: dict[str, Callable[[str, ReadOptions], RawDataset]] = {
    "folder": read_folder,
    "arrays": read_arrays,
    "hf": read_saved,
}
"""Readers of a user's own images; FORMAT:NAME takes the constants of the set NAME."""

_ALIASES = {
    "fmnist": "fashion-mnist",
    "tiny": "tiny-imagenet",
    "tinyimagenet200": "tiny-imagenet",
    "npz": "arrays",
    "npy": "arrays",
}


def canonical_name(name: str) -> str:
    """The project's spelling of a dataset's name: CIFAR10, cifar-10 and Cifar_10 are all cifar10. A name that
    is not known comes back unchanged."""
    squeezed = re.sub(r"[-_ ]", "", name.strip().lower())
    known = {re.sub(r"[-_ ]", "", key): key for key in ("digits", *CONSTANTS, *TABLES)}
    return known.get(squeezed) or _ALIASES.get(squeezed) or name.strip()


def _format(name: str) -> str:
    return canonical_name(name.partition(":")[0]).lower()


class Registry:
    """Names of datasets and how to read them: the built-in ones, and those that a user adds."""

    def __init__(self) -> None:
        self._builtin: dict[str, Reader] = {"digits": read_digits}
        self._builtin.update({name: partial(read_torchvision, name) for name in TORCHVISION_SETS})
        self._builtin["tiny-imagenet"] = partial(read_tiny_imagenet, "tiny-imagenet")
        self._builtin.update({name: partial(read_imagenet_subset, name) for name in IMAGENET_SUBSETS})
        self._user: dict[str, RawDataset] = {}

    def names(self) -> list[str]:
        """Every name that `find` knows, and the forms of a user's own images."""
        return [*self._builtin, *(f"{form}:NAME" for form in FORMATS), *TABLES, *sorted(self._user)]

    def add(self, name: str, raw: RawDataset) -> None:
        """Add a user's dataset; a second one of the same name takes its place.

        Raises:
            InputError: the name is empty or belongs to a built-in dataset.
        """
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"name={name!r} is not a name; give a non-empty string")
        if canonical_name(name) in (*self._builtin, *TABLES) or _format(name) in FORMATS:
            raise InputError(f"name={name!r} belongs to a built-in dataset; choose another name")
        self._user[name] = raw

    def find(self, name: str) -> tuple[str, Reader]:
        """The canonical name and the reader.

        Raises:
            InputError: no such dataset.
        """
        if name in self._user:
            raw = self._user[name]
            return name, lambda options: raw
        if (form := _format(name)) in FORMATS:
            rest = name.partition(":")[2]
            canonical = f"{form}:{canonical_name(rest)}" if rest else form
            return canonical, partial(FORMATS[form], canonical)
        canonical = canonical_name(name)
        if canonical in self._builtin:
            return canonical, self._builtin[canonical]
        hint = f"use one of {', '.join(IMAGENET_SUBSETS)}" if canonical == "imagenet" else (
            f"use one of {', '.join(self.names())}, or register_dataset"
        )  # fmt: skip
        raise InputError(f"dataset={name!r} is unknown; {hint}")


REGISTRY = Registry()
"""The registry that `load_dataset` and `register_dataset` use."""
