"""What JSON must look like: a form mirrors it, with types in place of values."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

Form: TypeAlias = Any
"""A type (``int``: no truth value; ``float``: a finite number; ``object``: anything), None for null, a tuple of forms of which
one must fit, a list of the one form of its members, or a mapping from names to forms: a name with ``?`` at its end may be
missing, and others may be anything."""

SOURCE: Form = {
    "name": str,
    "fingerprint?": (str, None),
    "data_path?": (str, None),
    "zca?": bool,
    "val_fraction?": float,
    "split_seed?": int,
    "image_size?": (int, None),
    "table?": (dict, None),
    "grid?": (dict, None),
}
"""How a dataset is noted: the arguments that load it again."""

_DISTANCES = {"rows": int, "min": float, "median": float}
NEAREST: Form = {**_DISTANCES, "copies": int, "held_out": _DISTANCES}
"""What :func:`mct_fast.distilled.table.nearest_real` found."""

_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object"}


def misfit(value: Any, form: Form, at: str) -> str | None:
    """The first place where ``value``, called ``at``, does not fit ``form``, in words; None where it fits."""
    if isinstance(form, tuple):
        found = [misfit(value, one, at) for one in form]
        return None if None in found else found[0]
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{at} is no list"
        return _first(misfit(member, form[0], f"{at}[{number}]") for number, member in enumerate(value))
    if isinstance(form, dict):
        return _object(value, form, at)
    if form is None:
        return None if value is None else f"{at} is not null"
    return None if _is(value, form) else f"{at} is not {_NAMES[form]}"


def _object(value: Any, form: dict[str, Form], at: str) -> str | None:
    if not isinstance(value, dict):
        return f"{at} is no object"
    lacking = [name for name in form if not name.endswith("?") and name not in value]
    if lacking:
        return f"{at} lacks {', '.join(lacking)}"
    known = {name.removesuffix("?"): inner for name, inner in form.items()}
    return _first(misfit(inner, known.get(name, object), f"{at} {name}") for name, inner in value.items())


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        numbers, bound = ((int, float), sys.float_info.max) if kind is float else (int, 2**63 - 1)
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= bound  # NaN is not
    return isinstance(value, kind)


def _first(found: Any) -> str | None:
    return next((one for one in found if one is not None), None)
