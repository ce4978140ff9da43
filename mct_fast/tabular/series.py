"""Time series: arrays (n, time, features), or a long table with an id and a time column, to raw values and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mct_fast.run.arrays import load_arrays
from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.tabular.columns import Column
from mct_fast.tabular.frames import read_frame, refuse_csv_options
from mct_fast.tabular.tables import (
    RawTable,
    as_numbers,
    assemble,
    choose_features,
    encode_features,
    encode_target,
    features_among,
)

if TYPE_CHECKING:
    import pandas as pd

EPS = 1e-6
"""What the MIMIC-III benchmark takes off a time, so that a value at the end of a step belongs to that step."""
_PAD = "pad the series to one length, or give a long table with an id and a time column"


def read_series(path: Path, spec: TableSpec, grid: TimeGrid) -> RawTable:
    """Series from arrays (.npz, .npy) or a long table (CSV, Parquet).

    Raises:
        InputError: what `read_arrays`, `resample` and `raw_table` refuse.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        refuse_csv_options(spec, f"and {path.name} holds arrays")
        return read_arrays(path, spec, grid)
    _check_grid(grid)
    frame = read_frame(path, "data_path", spec)
    labels = None if grid.labels_path is None else read_frame(Path(grid.labels_path).expanduser(), "labels_path", spec)
    return long_table(frame, labels, spec, grid)


# Arrays


def read_arrays(path: Path, spec: TableSpec, grid: TimeGrid) -> RawTable:
    """Regular series from arrays.

    An .npz file holds `x (n, time, features)`, NaN where missing, and `y (n,)` class numbers or `(n, k)` of 0 and 1;
    optional: `x_test`, `y_test`, `group (n,)`, and the names `feature_names (features,)`, `target_names (k,)`. An .npy
    file holds x alone; `grid.labels_path` names that of y.

    Raises:
        InputError: a part is missing, ragged, of a wrong shape, or its labels are no classes.
    """
    parts = load_arrays(path, "data_path", _PAD)
    if path.suffix.lower() == ".npy":
        if grid.labels_path is None:
            raise InputError("labels_path: missing; an .npy file holds no labels, so name the .npy file that does")
        labels_path = Path(grid.labels_path).expanduser()
        labels = load_arrays(labels_path, "labels_path", _PAD)
        parts = {"x": parts[path.stem], "y": labels[labels_path.stem]}
    for name in ("x", "y"):
        if name not in parts:
            raise InputError(f"data_path: {path.name} has no array {name!r}; save x (n, time, features) and y (n,)")
    x, y = _as_series(parts["x"], "x"), _as_rows(parts["y"], "y", len(parts["x"]))
    splits = torch.full((len(x),), -1)
    if "x_test" in parts:
        if "y_test" not in parts:
            raise InputError(f"data_path: {path.name} has x_test but no y_test; save both")
        held_out = _as_series(parts["x_test"], "x_test")
        if held_out.shape[1:] != x.shape[1:]:
            raise InputError(f"x_test: series are {held_out.shape[1:]}, those of x {x.shape[1:]}; make them agree")
        y = np.concatenate([y, _as_rows(parts["y_test"], "y_test", len(held_out))])
        x = np.concatenate([x, held_out])
        splits = torch.cat([splits, torch.full((len(held_out),), 2)])
    columns = _array_columns(x, parts.get("feature_names"))
    frame, spec = _label_frame(y, parts.get("target_names"), spec)
    labels, task, class_names = encode_target(frame, spec)
    groups, group_names = None, ()
    if "group" in parts:
        names, codes = np.unique(_as_rows(parts["group"], "group", len(x)), return_inverse=True)
        groups, group_names = torch.from_numpy(codes.astype(np.int64)), tuple(str(name) for name in names)
    x = np.where(np.isnan(x), np.nan, x) + 0.0
    return RawTable(torch.from_numpy(x), columns, labels, task, class_names, spec.target, splits, groups, group_names)


def _as_series(values: np.ndarray, name: str) -> np.ndarray:
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "fiub":
        raise InputError(
            f"{name}: got {values.dtype} of shape {values.shape}; give numbers (n, time, features), NaN where missing"
        )
    series = values.astype(np.float64)
    if np.isinf(series).any():
        raise InputError(f"{name}: holds infinite numbers; repair them, or put NaN for missing")
    return series


def _as_rows(values: np.ndarray, name: str, count: int) -> np.ndarray:
    if values.ndim not in (1, 2) or len(values) != count:
        raise InputError(f"{name}: shape is {values.shape} for {count} series; give (n,) or (n, k)")
    return values


def _array_columns(x: np.ndarray, names: np.ndarray | None) -> tuple[Column, ...]:
    count = x.shape[2]
    titles = [f"feature {i}" for i in range(count)] if names is None else [str(name) for name in names]
    if len(titles) != count or len(set(titles)) < count:
        raise InputError(f"feature_names: {len(set(titles))} different names for {count} features; give one each")
    whole = [bool((seen == np.round(seen)).all()) for seen in (x[..., i][~np.isnan(x[..., i])] for i in range(count))]
    return tuple(Column(title, None, is_whole) for title, is_whole in zip(titles, whole, strict=True))


def _label_frame(y: np.ndarray, names: np.ndarray | None, spec: TableSpec) -> tuple[pd.DataFrame, TableSpec]:
    import pandas as pd

    table = y[:, None] if y.ndim == 1 else y
    given = spec.target or (tuple(str(name) for name in names) if names is not None else ())
    titles = given or (("y",) if y.ndim == 1 else tuple(f"y {i}" for i in range(table.shape[1])))
    if len(titles) != table.shape[1]:
        raise InputError(f"target: {len(titles)} names for {table.shape[1]} label columns; give one each")
    return pd.DataFrame(table, columns=list(titles)), replace(spec, target=titles)


# Long tables


def _check_grid(grid: TimeGrid) -> None:
    for name in ("id", "time"):
        if getattr(grid, name) is None:
            raise InputError(f"{name}: missing; name the column of the long table, e.g. --id stay --time hours")


def long_table(frame: pd.DataFrame, labels: pd.DataFrame | None, spec: TableSpec, grid: TimeGrid) -> RawTable:
    """Series from a long table: the last value of a step stands for it, NaN where a step has none.

    `labels` has a row for each series (its id, targets, group, split); None: these columns stand in `frame`, with one
    value a series.

    Raises:
        InputError: a column is missing, a time is no number, an id comes twice in `labels` or has no row in the window.
    """
    _check_grid(grid)
    key, time = str(grid.id), str(grid.time)
    for name in (key, time):
        if name not in frame.columns:
            raise InputError(f"there is no column {name!r} in the long table; name the columns of the id and the time")
    parts = [*spec.target, *(name for name in (spec.group, spec.split_column) if name is not None)]
    if spec.test_where is not None:
        parts.append(spec.test_where.partition("=")[0].strip())
    if labels is None:
        lacking = [name for name in parts if name not in frame.columns]
        if not spec.target or lacking:
            what = f"there is no column {lacking[0]!r}" if lacking else "target: missing"
            raise InputError(f"{what}; name the columns to predict, and give labels_path if they stand in another file")
        labels = _one_row_each(frame, key, parts)
        features = choose_features(frame, spec, reserved=(key, time))
    else:
        if key not in labels.columns:
            raise InputError(f"labels_path: has no column {key!r}; it needs the id of each series")
        features = features_among(frame, spec, {key, time, *spec.drop})
    if labels[key].duplicated().any():
        twice = labels.loc[labels[key].duplicated(), key].tolist()[0]
        raise InputError(f"labels_path: {key!r} {twice!r} has two rows; keep one for each series")
    values, columns = encode_features(frame.loc[:, features], spec)
    series = resample(frame[key], frame[time], values, labels[key], grid)
    return assemble(labels, spec, series, columns)


def _one_row_each(frame: pd.DataFrame, key: str, parts: Sequence[str]) -> pd.DataFrame:
    rows = frame.loc[:, [key, *dict.fromkeys(parts)]]
    varied = rows.groupby(key, sort=False).nunique(dropna=False) > 1
    for name in parts:
        if varied[name].any():
            which = varied.index[varied[name]][0]
            raise InputError(
                f"column {name!r} has two values within {key!r} {which!r}; a series needs one, so correct it"
            )
    return rows.loc[~rows[key].duplicated()].reset_index(drop=True)


class Resampler:
    """Rows of measurements, given in any order and in pieces, to regular series.

    As the MIMIC-III benchmark's discretiser: a row at time t > 0 belongs to the step that ends at or after t, one at 0
    to the first; of several values in a step the last one counts (at one time, the one given last).

    Args:
        wanted: ids of the series, in their order; rows of others play no part.
        channels: values in a row.
    """

    def __init__(self, wanted: Iterable[Any], channels: int, grid: TimeGrid) -> None:
        import pandas as pd

        self._names, self._grid = list(wanted), grid
        self._index = pd.Index(self._names)
        shape = (len(self._names) * grid.steps, channels)
        self._values, self._when = np.full(shape, np.nan), np.full(shape, -np.inf)
        self.found = np.zeros(len(self._names), dtype=bool)
        """Which series have had a row within the grid."""

    def add(self, ids: pd.Series, times: pd.Series, values: np.ndarray) -> None:
        """Take in rows `values (rows, channels)`, NaN where missing, at `times`.

        Raises:
            InputError: a time is no number.
        """
        import pandas as pd

        grid, numbers = self._grid, as_numbers(times)
        if np.isnan(numbers).any():
            bad = np.asarray(times, dtype=object)[np.isnan(numbers)][0]
            raise InputError(
                f"time: column {times.name!r} holds {bad!r}, which is no number; give the time since the start"
            )
        series = self._index.get_indexer(pd.Index(ids))
        order = np.argsort(numbers, kind="stable")
        inside = (series >= 0) & (numbers >= 0) & (numbers <= grid.steps * grid.step + EPS)
        order = order[inside[order]]
        series, numbers, values = series[order], numbers[order], values[order]
        self.found[series] = True
        steps = np.minimum((numbers / grid.step - EPS).astype(np.int64), grid.steps - 1).clip(min=0)
        places = series * grid.steps + steps
        for channel in range(values.shape[1]):
            newer = ~np.isnan(values[:, channel]) & (numbers >= self._when[places, channel])
            # With several values for one place NumPy keeps the last, which is the latest.
            self._values[places[newer], channel] = values[newer, channel]
            self._when[places[newer], channel] = numbers[newer]

    def finish(self) -> Tensor:
        """Raw values (series, steps, channels), NaN where nothing was measured.

        Raises:
            InputError: a series has had no row within the grid.
        """
        lacking = np.flatnonzero(~self.found)
        if len(lacking):
            raise InputError(
                f"id: {len(lacking):,} of {len(self._names):,} series, first {self._names[lacking[0]]!r}, have no row "
                f"within {self._grid.steps} steps of {self._grid.step:g}; remove them, or mend the times"
            )
        return self.partial()

    def partial(self) -> Tensor:
        """What `finish` gives, with series that have had no row (see `found`) all NaN."""
        return torch.from_numpy(self._values).view(len(self._names), self._grid.steps, -1)


def resample(ids: pd.Series, times: pd.Series, values: Tensor, wanted: Iterable[Any], grid: TimeGrid) -> Tensor:
    """Raw values (series, steps, C) of rows `values (rows, C)` at `times`, for the series `wanted`; see `Resampler`."""
    resampler = Resampler(wanted, values.shape[1], grid)
    resampler.add(ids, times, values.numpy())
    return resampler.finish()
