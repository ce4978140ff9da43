"""Tables: a frame to raw values, labels, groups and the splits that it decides."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec
from mct_fast.tabular.columns import Column
from mct_fast.tabular.frames import check_names

if TYPE_CHECKING:
    import pandas as pd

MAX_LEVELS = 100
"""A column with more categories is taken for free text or an identifier, and refused."""
_ROWS_A_VALUE = 5
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class RawTable:
    """A source as read.

    values: (n, C) or (n, T, C) float64, see `mct_fast.tabular.columns`.
    columns: C of them; the levels are those of all rows.
    labels: (n,) int64, or (n, k) float32 of 0 and 1 for several targets.
    task: "binary", "classification" or "multilabel".
    class_names: one a class (binary: negative, positive), or one a target of a multi-label table.
    target: what the labels are called, for messages and files.
    splits: (n,) int64, 0 train, 1 val, 2 test, -1 undecided.
    groups: (n,) int64 or None; group_names: their names.
    normal: what stands for missing values in place of a statistic, by column name.
    fixed: the columns are a recipe's, so that one which never varies is kept.
    """

    values: Tensor
    columns: tuple[Column, ...]
    labels: Tensor
    task: str
    class_names: tuple[str, ...]
    target: tuple[str, ...]
    splits: Tensor
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    normal: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = False


def changed(given: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    return {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if getattr(given, f.name) != f.default}


def merged(base: S, given: S) -> S:
    """The dataclass `base`, with the values of `given` where those differ from the defaults."""
    return dataclasses.replace(base, **changed(given))  # pyright: ignore[reportArgumentType]


def from_json(kind: type[S], values: Mapping[str, Any] | None) -> S:
    """The dataclass `kind` from the JSON form of what `changed` gave."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in (values or {}).items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise InputError(f"{kind.__name__}: cannot be read ({error}); use a matching release of mct_fast") from error


# Frames to raw tables


def raw_table(
    frame: pd.DataFrame, spec: TableSpec, test: pd.DataFrame | None = None, *, fixed: bool = False
) -> RawTable:
    """The raw table of a frame, with the rows of `test` as its test split; `fixed`: see `RawTable`.

    Raises:
        InputError: a column is missing, has two parts to play or cannot be read, or a target is not usable; the message
            names the column and the remedy.
    """
    import pandas as pd

    check_names([str(name) for name in frame.columns], "the table", "table")
    if test is not None:
        _check_given(test, [*spec.target, *spec.features, *_others(spec)], "test_path")
        lacking = [name for name in frame.columns if name not in test.columns and name not in spec.drop]
        if lacking and not spec.features:
            raise InputError(f"test_path: has no column {lacking[0]!r}, which the table has; make both agree")
        whole = pd.concat([frame, test], ignore_index=True)
    else:
        whole = frame.reset_index(drop=True)
    values, columns = encode_features(whole.loc[:, choose_features(whole, spec)], spec)
    return assemble(whole, spec, values, columns, test_from=None if test is None else len(frame), fixed=fixed)


def assemble(
    frame: pd.DataFrame,
    spec: TableSpec,
    values: Tensor,
    columns: tuple[Column, ...],
    *,
    test_from: int | None = None,
    normal: Mapping[str, float] | None = None,
    fixed: bool = False,
) -> RawTable:
    """The raw table of `values`, whose rows have their targets, groups and splits in `frame`.

    test_from: the first of the rows that are the test split, where they come from a file of their own.
    """
    _check_target(spec)
    _check_given(frame, [*spec.target, *_others(spec)], "")
    labels, task, class_names = encode_target(frame, spec)
    splits = _given_splits(frame, spec, test_from)
    groups, names = _groups(frame, spec)
    return RawTable(
        values, columns, labels, task, class_names, spec.target, splits, groups, names, dict(normal or {}), fixed
    )


def _check_target(spec: TableSpec) -> None:
    if not spec.target:
        raise InputError("target: missing; name the column to predict, e.g. target=('died',) or --target died")


def choose_features(frame: pd.DataFrame, spec: TableSpec, reserved: Sequence[str] = ()) -> list[str]:
    """Names of the features, in the order of the table; `reserved` columns are none."""
    _check_target(spec)
    _check_given(
        frame, [*spec.target, *spec.features, *spec.drop, *spec.numeric, *spec.categorical, *_others(spec)], ""
    )
    both = sorted({*spec.numeric} & {*spec.categorical})
    if both:
        raise InputError(f"numeric: column {both[0]!r} is also in categorical; name it in one of them")
    return features_among(frame, spec, {*spec.target, *spec.drop, *_others(spec), *reserved})


def features_among(frame: pd.DataFrame, spec: TableSpec, apart: Collection[str]) -> list[str]:
    """Names of the features among columns of which those `apart` have another part to play."""
    _check_given(frame, spec.features, "features")
    claimed = [name for name in spec.features if name in apart]
    if claimed:
        raise InputError(f"features: column {claimed[0]!r} has another part to play; remove it from features")
    chosen = [name for name in frame.columns if (name in spec.features if spec.features else name not in apart)]
    unnamed = [name for name in chosen if not name or name.startswith("Unnamed: ")]
    if unnamed:
        raise InputError(f"table: a column has no name ({unnamed[0]!r}); name it, or leave it out with drop")
    if not chosen:
        raise InputError("features: the table has no column left to predict from; name some")
    return chosen


def _others(spec: TableSpec) -> list[str]:
    """Columns that have a part but are neither feature nor target."""
    where = [] if spec.test_where is None else [spec.test_where.partition("=")[0].strip()]
    return [name for name in (spec.group, spec.split_column, *where) if name is not None]


def _check_given(frame: pd.DataFrame, names: Sequence[str], argument: str) -> None:
    for name in names:
        if name not in frame.columns:
            known = ", ".join(str(column) for column in list(frame.columns)[:12])
            more = ", …" if len(frame.columns) > 12 else ""
            where = f"{argument}: " if argument else ""
            raise InputError(f"{where}there is no column {name!r}; the table has {known}{more}")


def encode_features(frame: pd.DataFrame, spec: TableSpec) -> tuple[Tensor, tuple[Column, ...]]:
    """Columns of a frame as raw values (rows, C) float64 and what they are."""
    encoded = [encode_column(str(name), frame[name], spec) for name in frame.columns]
    return torch.stack([values for values, _ in encoded], dim=1), tuple(column for _, column in encoded)


def encode_column(name: str, values: pd.Series, spec: TableSpec) -> tuple[Tensor, Column]:
    """One column as float64 (rows,), NaN where missing, and what it is."""
    from pandas.api import types

    if name not in spec.numeric and name not in spec.categorical and types.is_datetime64_any_dtype(values.dtype):
        raise InputError(f"column {name!r} holds dates; turn it into a number (such as days) or leave it out with drop")
    is_number = types.is_numeric_dtype(values.dtype) and not types.is_bool_dtype(values.dtype)
    if name in spec.categorical or not (is_number or name in spec.numeric):
        return _categories(name, values)
    return _numbers(name, values)


def _numbers(name: str, values: pd.Series) -> tuple[Tensor, Column]:
    numbers = as_numbers(values)
    lost = np.isnan(numbers) & ~values.isna().to_numpy()
    if lost.any():
        first = np.asarray(values, dtype=object)[lost][0]
        raise InputError(f"column {name!r} holds {first!r}, which is no number; repair it or name it in categorical")
    if np.isinf(numbers).any():
        raise InputError(f"column {name!r} holds an infinite number; repair it, or leave the cell empty")
    seen = numbers[~np.isnan(numbers)]
    return _nan_alike(numbers), Column(name, None, bool(len(seen)) and bool((seen == np.round(seen)).all()))


def as_numbers(values: Any) -> np.ndarray:
    """A pandas column as float64, NaN where there is no number."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(values.dtype):
        values = pd.to_numeric(values.astype(object), errors="coerce")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _categories(name: str, values: pd.Series) -> tuple[Tensor, Column]:
    import pandas as pd

    texts = values.map(level_text, na_action="ignore").astype(object)
    levels = sorted(set(texts.dropna()), key=_natural)
    if len(levels) > MAX_LEVELS:
        raise InputError(
            f"column {name!r} has {len(levels):,} categories, more than {MAX_LEVELS}; "
            "name it in numeric, group its values, or leave it out with drop"
        )
    codes = pd.Categorical(texts, categories=levels).codes.astype(np.float64)
    codes[codes < 0] = np.nan
    return _nan_alike(codes), Column(name, tuple(levels))


def level_text(value: Any) -> str:
    """A category as text: 1.0 and 1 are both "1"."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _natural(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before words by letters."""
    try:
        number = float(text)
    except ValueError:
        return 1, 0.0, text
    return (0, number, text) if math.isfinite(number) else (1, 0.0, text)


def _nan_alike(values: np.ndarray) -> Tensor:
    """One bit pattern for every NaN: hashes compare bits."""
    copied = np.array(values, dtype=np.float64)
    copied[np.isnan(copied)] = np.nan
    return torch.from_numpy(copied + 0.0)  # -0.0 becomes 0.0


# Targets


def encode_target(frame: pd.DataFrame, spec: TableSpec) -> tuple[Tensor, str, tuple[str, ...]]:
    """(labels, task, class names) of the target columns; see `RawTable`."""
    for name in spec.target:
        missing = int(frame[name].isna().sum())
        if missing:
            raise InputError(
                f"target {name!r} has no value in {missing:,} of {len(frame):,} rows; fill it in or remove these rows"
            )
    if len(set(spec.target)) < len(spec.target):
        raise InputError("target: names one column twice; name each once")
    names = list(spec.target)
    if len(names) > 1:
        labels = [_binary(name, _texts(frame[name]), spec.positive)[0] for name in spec.target]
        return torch.stack(labels, dim=1).to(torch.float32), "multilabel", spec.target
    name = names[0]
    texts = _texts(frame[name])
    values = sorted(set(texts), key=_natural)
    if len(values) <= 2:
        labels, class_names = _binary(name, texts, spec.positive)
        return labels, "binary", class_names
    if spec.positive is not None:
        raise InputError(
            f"positive: target {name!r} has {len(values)} classes; leave positive out, or merge them to two"
        )
    if len(values) > MAX_LEVELS:
        raise InputError(
            f"target {name!r} has {len(values):,} different values; it must be two or a few classes, so cut it into some"
        )
    _refuse_continuous(name, values, len(texts))
    numbers = {value: number for number, value in enumerate(values)}
    return torch.tensor([numbers[text] for text in texts]), "classification", tuple(values)


def _refuse_continuous(name: str, values: Sequence[str], rows: int) -> None:
    """Refuses numbers of which hardly two are alike: with fewer than five rows a value no split could hold them all."""
    kinds = [_natural(value) for value in values]
    if rows >= _ROWS_A_VALUE * len(values) or any(word for word, _, _ in kinds):
        return
    broken = next((text for _, number, text in kinds if not number.is_integer()), None)
    if broken is not None or rows < 2 * len(values):
        raise InputError(
            f"target {name!r} looks continuous: {len(values):,} different numbers in {rows:,} rows, such as "
            f"{broken or values[0]}; cut it into two or a few classes"
        )


def _texts(values: pd.Series) -> list[str]:
    return [level_text(value) for value in values]


def _binary(name: str, texts: list[str], positive: str | None) -> tuple[Tensor, tuple[str, str]]:
    values = sorted(set(texts), key=_natural)
    if len(values) > 2:
        raise InputError(f"target {name!r} has {len(values)} different values; of several targets each must have two")
    if positive is None:
        usual = {"0": "1", "False": "True", "false": "true"}
        known = [one for zero, one in usual.items() if set(values) <= {zero, one}]
        if not known:
            raise InputError(
                f"target {name!r} has the values {' and '.join(map(repr, values))}; "
                f"say which is positive, e.g. positive={values[-1]!r}"
            )
        positive = known[0]
    if positive not in values or len(values) < 2:
        seen = " and ".join(map(repr, values))
        raise InputError(
            f"target {name!r} has only the value {seen}; it needs rows of both kinds"
            if len(values) < 2
            else f"positive: target {name!r} has the values {seen}, not {positive!r}; name one of them"
        )
    (negative,) = (value for value in values if value != positive)
    return torch.tensor([int(text == positive) for text in texts]), (negative, positive)


# Groups and splits


def _groups(frame: pd.DataFrame, spec: TableSpec) -> tuple[Tensor | None, tuple[str, ...]]:
    import pandas as pd

    if spec.group is None:
        return None, ()
    missing = int(frame[spec.group].isna().sum())
    if missing:
        raise InputError(
            f"group: column {spec.group!r} has no value in {missing:,} rows; fill it in or remove these rows"
        )
    codes, names = pd.factorize(frame[spec.group].map(level_text), sort=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(str(name) for name in names)


def _given_splits(frame: pd.DataFrame, spec: TableSpec, test_from: int | None) -> Tensor:
    given = [
        name
        for name, is_given in (
            ("test_path", test_from is not None),
            ("test_where", spec.test_where is not None),
            ("split_column", spec.split_column is not None),
        )
        if is_given
    ]
    if len(given) > 1:
        raise InputError(f"{given[1]}: {given[0]} says already which rows are the test split; give one of them")
    splits = torch.full((len(frame),), -1)
    if test_from is not None:
        splits[test_from:] = 2
    elif spec.test_where is not None:
        column, equals, value = (part.strip() for part in spec.test_where.partition("="))
        if not equals:
            raise InputError(f"test_where: {spec.test_where!r} is not COLUMN=VALUE; give e.g. site=north")
        found = torch.tensor([text == value for text in _texts(frame[column])])
        if not bool(found.any()):
            raise InputError(f"test_where: no row has {column!r} {value!r}; name a value of that column")
        splits[found] = 2
    elif spec.split_column is not None:
        names = [_SPLIT_NAMES.get(text.strip().lower()) for text in _texts(frame[spec.split_column])]
        if None in names:
            text = _texts(frame[spec.split_column])[names.index(None)]
            raise InputError(f"split_column: {spec.split_column!r} holds {text!r}; use train, val and test only")
        splits = torch.tensor([("train", "val", "test").index(str(name)) for name in names])
    return splits
