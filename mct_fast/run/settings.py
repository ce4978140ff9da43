"""Settings: frozen dataclasses that check themselves when they are made, and configurations that hold them in groups."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from mct_fast.run.errors import InputError

T = TypeVar("T", bound="Grouped")


def check_choices(settings: Any) -> None:
    """Raises :class:`InputError` where a field that is a ``Literal`` holds none of its choices."""
    for name in choices(type(settings)):
        check_choice(type(settings), name, getattr(settings, name))


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


def at_least_one(settings: Any, *names: str) -> None:
    """Raises :class:`InputError` where a count is below 1; None stands for no bound."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: got {value}; give at least 1")


def not_negative(settings: Any, *names: str) -> None:
    """Raises :class:`InputError` where a number is negative or not finite."""
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise InputError(f"{name}: got {getattr(settings, name)}; give a finite number of at least 0")


def positive(settings: Any, *names: str) -> None:
    """Raises :class:`InputError` where a number is not positive and finite; None stands for another's."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name}: got {value}; give a positive finite number")


def share(settings: Any, *names: str) -> None:
    """Raises :class:`InputError` where a momentum or a decay is outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise InputError(f"{name}: got {getattr(settings, name)}; give at least 0, below 1")


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
