"""Settings: frozen dataclasses that check themselves when they are made, and configurations that hold them in groups.

What a field may hold stands beside its type.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mct_fast.run.errors import InputError

T = TypeVar("T", bound="Grouped")


def check_choice(kind: type, name: str, given: Any) -> None:
    """Raises :class:`InputError` if ``given`` is none of the choices of the field ``name``."""
    allowed = choices(kind)[name]
    if given not in allowed:
        raise InputError(f"{name}: unknown {given!r}; choose one of {', '.join(map(str, allowed))}")


@functools.cache
def choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The choices of each field of the dataclass ``kind`` that is a ``Literal``."""
    hints = typing.get_type_hints(kind)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}


AUTO = "auto"
"""The device: the GPU where PyTorch sees one that the kernels serve, else the processor (`mct_fast.ops.device`)."""

LARGEST = 1e30
"""The largest number that arithmetic in float32 is given: its square overflows, the number does not."""


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; ``above`` and ``below`` exclude its ends."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Whether ``value`` lies in it."""
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def wanted(self, value: Any) -> str:
        """The range in words; an end that only arithmetic sets is named to whoever passed it, as ``value`` did."""
        low = f"{'above' if self.above else 'of at least'} {self.low:.15g}"
        high = f"{'below' if self.below else 'at most'} {self.high:.15g}"
        far = isinstance(value, (int, float)) and abs(value) > _FAR
        named = [
            text
            for text, end in ((low, self.low), (high, self.high))
            if abs(end) <= _FAR or (far and math.isfinite(end))
        ]
        return ", ".join(named)


_FAR = 1e6
_MOST = 2**31 - 1
Count = Annotated[int, Bounds(1, _MOST)]
Natural = Annotated[int, Bounds(0, _MOST)]
Seed = Annotated[int, Bounds(-(2**63), 2**63 - 1)]
Positive = Annotated[float, Bounds(0, LARGEST, above=True)]
Epochs = Annotated[float, Bounds(-LARGEST, LARGEST)]
NonNegative = Annotated[float, Bounds(0, LARGEST)]
Share = Annotated[float, Bounds(0, 1)]
Fraction = Annotated[float, Bounds(0, 1, below=True)]


class Checked:
    """Base of a dataclass whose fields are held to their types, choices, finite numbers, and the :class:`Bounds` beside them.

    Numbers of NumPy become Python's, lists become tuples.  Raises :class:`InputError` that names the field and what to give.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType] (a subclass is one)
            value = getattr(self, field.name)
            plain = _plain(value)
            if plain is not value:
                object.__setattr__(self, field.name, plain)
            if get_origin(hints[field.name]) is Literal:
                check_choice(type(self), field.name, plain)
            elif not _fits(hints[field.name], plain):
                raise InputError(f"{field.name}: got {value!r}; give {_wanted(hints[field.name], plain)}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _fits(hint: Any, value: Any) -> bool:
    origin, arms = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [extra for extra in arms[1:] if isinstance(extra, Bounds)]
        return _fits(arms[0], value) and all(bound.hold(value) for bound in bounds)
    if origin in (Union, types.UnionType):
        return any(_fits(arm, value) for arm in arms)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arms[0], item) for item in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _wanted(hint: Any, value: Any) -> str:
    origin, arms = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [extra.wanted(value) for extra in arms[1:] if isinstance(extra, Bounds)]
        return " ".join(filter(None, (_wanted(arms[0], value), *bounds)))
    if origin in (Union, types.UnionType):
        return ", or ".join(_wanted(arm, value) for arm in arms)
    if origin is tuple:
        return f"some of: {_wanted(arms[0], None)}"
    names = {float: "a finite number", int: "a whole number", str: "text", bool: "True or False", type(None): "None"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


class Grouped:
    """Base of a frozen dataclass whose fields are groups of settings: dataclasses of their own, with defaults.

    The names of the groups' settings are the field's and all different, so they do without the group's where a configuration
    is made, changed or read: ``DistillConfig(ipc=10)``, ``dataclasses.replace(config, ipc=10)``, ``config.ipc``.  Decorate
    with ``@dataclass(frozen=True, init=False)``.
    """

    def __init__(self, **given: Any) -> None:
        homes = _homes(type(self))
        groups = {field.name: given.pop(field.name, field.default) for field in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        changes: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            if name not in homes:
                raise TypeError(f"{type(self).__name__} has no setting {name!r}")
            changes.setdefault(homes[name], {})[name] = value
        for name, group in groups.items():
            changed = dataclasses.replace(group, **changes[name]) if name in changes else group
            object.__setattr__(self, name, changed)

    @classmethod
    def of(cls: type[T], stored: Mapping[str, Any]) -> T:
        """The configuration that :meth:`flat` wrote; what it does not know is passed over, what is missing is the default."""
        return cls(**{name: value for name, value in stored.items() if name in _homes(cls)})

    def flat(self) -> dict[str, Any]:
        """Every setting by its own name, without groups."""
        return {name: getattr(getattr(self, group), name) for name, group in _homes(type(self)).items()}

    if not TYPE_CHECKING:  # the package itself names the groups, so that its types are checked

        def __getattr__(self, name: str) -> Any:
            group = _homes(type(self)).get(name)
            if group is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self.__dict__[group], name)


@functools.cache
def _homes(kind: type) -> dict[str, str]:
    """The group of each setting."""
    return {
        inner.name: group.name
        for group in dataclasses.fields(kind)
        for inner in dataclasses.fields(group.default)  # pyright: ignore[reportArgumentType]
    }
