"""From the columns of a table, or the channels of a series, to the numbers that networks train on, and back.

A source's raw values are one float64 tensor, (n, C) for a table and (n, T, C) for series: a numeric column as it is, a
categorical one as the number of its level, NaN where nothing was observed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.run.errors import InputError

IMPUTE = ("median", "mean")
"""How a missing number is filled in."""
IMPUTE_CATEGORIES = ("level", "most_frequent")
"""How a missing category is: by a level of its own, or by the most frequent one."""


@dataclass(frozen=True)
class Column:
    """One feature as its source has it.

    levels: None for a number; else the categories, in the order of their codes 0, 1, ….
    whole: the numbers are whole ones, and come back as such.
    """

    name: str
    levels: tuple[str, ...] | None = None
    whole: bool = False


@dataclass(frozen=True, eq=False)
class TableTransform:
    """Missing values filled in, numbers standardised, categories one-hot; all by the training split, all undone by `inverse`.

    The features of a row (or of a step of a series) are, in this order: one for a numeric column, one a level for a
    categorical one, with one more for "missing or never seen" where `fill` is NaN; then one for each column of `masked`,
    1 where the value was observed and 0 where it was filled in. In a series the last value observed is carried forward
    before anything is filled in, as the MIMIC-III benchmark does.

    Args:
        columns: C of them.
        fill: (C,) float64, in raw units: what stands for a missing value; NaN: the column has a level for that.
        mean: (C,) float64; std: (C,) float64, positive. Those of categorical columns play no part.
        masked: columns, by number, that have a feature saying whether they were observed.
        gaps: whether the training split lacked values, for each column. Where it did not, `inverse` never answers
            "missing".
        series: whether rows are series (n, T, C).
    """

    columns: tuple[Column, ...]
    fill: Tensor
    mean: Tensor
    std: Tensor
    masked: tuple[int, ...]
    gaps: tuple[bool, ...]
    series: bool = False

    def __post_init__(self) -> None:
        count = len(self.columns)
        if any(part.shape != (count,) for part in (self.fill, self.mean, self.std)) or len(self.gaps) != count:
            raise InputError(f"the constants do not fit {count} columns; fit the transform anew")
        if not all(0 <= number < count for number in self.masked):
            raise InputError(f"masked={self.masked} names columns outside 0..{count - 1}; fit the transform anew")

    @classmethod
    def fit(
        cls,
        raw: Tensor,
        columns: Sequence[Column],
        *,
        impute: str = "median",
        impute_categories: str = "level",
        mask: bool = False,
        normal: Mapping[str, float] | None = None,
        allow_constant: bool = False,
    ) -> TableTransform:
        """Fit on the raw values of the training split, (n, C) or (n, T, C) float64.

        Args:
            impute: "median" or "mean" of the observed numbers stands for a missing one.
            impute_categories: "level" gives missing categories a level of their own, "most_frequent" that one.
            mask: also tell the network what was observed: for a table the columns that lack values (unless a level
                tells already), for series every column.
            normal: values by column name (a level's code for categories) that stand for missing ones whatever the data.
            allow_constant: standardise a column that never varies by 1 in place of refusing it.

        Raises:
            InputError: an unknown choice, or a column without any value, or one that never varies.
        """
        for name, value, known in (
            ("impute", impute, IMPUTE),
            ("impute_categories", impute_categories, IMPUTE_CATEGORIES),
        ):
            if value not in known:
                raise InputError(f"{name}: unknown {value!r}; choose {' or '.join(known)}")
        series = raw.ndim == 3
        fill, mean, std = (torch.zeros(len(columns), dtype=torch.float64) for _ in range(3))
        std += 1
        gaps: list[bool] = []
        for i, column in enumerate(columns):
            values = raw[..., i]
            seen = values[~values.isnan()]
            gaps.append(len(seen) < values.numel())
            given = (normal or {}).get(column.name)
            if not len(seen) and given is None:
                raise InputError(f"column {column.name!r} has no value in the training split; leave it out with drop")
            if column.levels is not None:
                counts = torch.bincount(seen.long(), minlength=len(column.levels))
                constant = int((counts > 0).sum()) + gaps[-1] < 2
                if given is not None:
                    fill[i] = given
                else:
                    fill[i] = torch.nan if impute_categories == "level" else float(counts.argmax())
            else:
                fill[i] = given if given is not None else _centre(seen, impute)
                complete = _filled(values, fill[i], series)
                std[i], mean[i] = torch.std_mean(complete, correction=0)
                constant = bool(complete.max() == complete.min())
                if constant:
                    std[i] = 1.0
            if constant and not allow_constant:
                raise InputError(f"column {column.name!r} is constant in the training split; leave it out with drop")
        told = [column.levels is not None and bool(fill[i].isnan()) for i, column in enumerate(columns)]
        wanted = [i for i in range(len(columns)) if series or (gaps[i] and not told[i])]
        return cls(tuple(columns), fill, mean, std, tuple(wanted) if mask else (), tuple(gaps), series)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One a feature: "age", "sex=F", "sex=(missing)", "age observed"."""
        names: list[str] = []
        for column, slots in zip(self.columns, self._slots(), strict=True):
            if column.levels is None:
                names.append(column.name)
            else:
                names += [f"{column.name}={level}" for level in (*column.levels, "(missing)")[:slots]]
        return (*names, *(f"{self.columns[i].name} observed" for i in self.masked))

    @property
    def num_features(self) -> int:
        return sum(self._slots()) + len(self.masked)

    def forward(self, raw: Tensor) -> Tensor:
        """Raw values (n, C) or (n, T, C), NaN where missing, to features (n, F) or (n, T, F); same dtype and device."""
        self._check(raw, len(self.columns), "raw values")
        parts: list[Tensor] = []
        for i, (column, slots) in enumerate(zip(self.columns, self._slots(), strict=True)):
            values = _filled(raw[..., i], self.fill[i].to(raw), self.series)
            if column.levels is None:
                parts.append(((values - self.mean[i].to(raw)) / self.std[i].to(raw)).unsqueeze(-1))
            else:
                codes = values.nan_to_num(len(column.levels)).long()
                parts.append(F.one_hot(codes, slots).to(raw.dtype))
        parts += [(~raw[..., i].isnan()).to(raw.dtype).unsqueeze(-1) for i in self.masked]
        return torch.cat(parts, dim=-1)

    def inverse(self, x: Tensor) -> Tensor:
        """Features (n, F) or (n, T, F) to raw values (n, C) or (n, T, C).

        Numbers come back in their units, neither rounded nor clipped; a category is the largest of its features. NaN
        where that is the level "missing", or where the feature that says what was observed lies below 0.5.
        """
        self._check(x, self.num_features, "features")
        raw = x.new_empty(*x.shape[:-1], len(self.columns))
        first = 0
        for i, (column, slots) in enumerate(zip(self.columns, self._slots(), strict=True)):
            block = x[..., first : first + slots]
            first += slots
            if column.levels is None:
                raw[..., i] = block[..., 0] * self.std[i].to(x) + self.mean[i].to(x)
                continue
            possible = slots if self.gaps[i] else len(column.levels)
            codes = block[..., :possible].argmax(-1)
            raw[..., i] = codes.to(x.dtype).masked_fill(codes == len(column.levels), torch.nan)
        for position, i in enumerate(self.masked):
            raw[..., i] = raw[..., i].masked_fill(x[..., first + position] < 0.5, torch.nan)
        return raw

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        columns = [
            {
                "name": column.name,
                "levels": None if column.levels is None else list(column.levels),
                "whole": column.whole,
            }
            for column in self.columns
        ]
        meta = {
            "kind": "series" if self.series else "table",
            "columns": columns,
            "masked": list(self.masked),
            "gaps": list(self.gaps),
        }
        return {"fill": self.fill, "mean": self.mean, "std": self.std}, meta

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> TableTransform:
        """Undo `state`; KeyError, TypeError or ValueError where a part is missing or malformed."""
        columns = tuple(
            Column(
                str(column["name"]),
                None if column["levels"] is None else tuple(column["levels"]),
                bool(column["whole"]),
            )
            for column in meta["columns"]
        )
        return cls(
            columns,
            *(tensors[name].to(torch.float64) for name in ("fill", "mean", "std")),
            masked=tuple(int(number) for number in meta["masked"]),
            gaps=tuple(bool(gap) for gap in meta["gaps"]),
            series=meta["kind"] == "series",
        )

    def to(self, device: torch.device | str) -> TableTransform:
        return replace(self, fill=self.fill.to(device), mean=self.mean.to(device), std=self.std.to(device))

    def _slots(self) -> list[int]:
        """Features of each column, masks apart."""
        own_level = self.fill.isnan().tolist()
        return [
            1 if column.levels is None else len(column.levels) + own
            for column, own in zip(self.columns, own_level, strict=True)
        ]

    def _check(self, values: Tensor, count: int, what: str) -> None:
        lead = "n, T" if self.series else "n"
        if values.ndim != (3 if self.series else 2) or values.shape[-1] != count:
            raise InputError(f"{what} have shape {tuple(values.shape)}; this transform was fitted on ({lead}, {count})")


def _centre(seen: Tensor, impute: str) -> Tensor:
    """Mean, or median (of an even number of values: the mean of the two in the middle)."""
    if impute == "mean":
        return seen.mean()
    ordered = seen.sort().values  # torch.quantile refuses more than 16 million values
    return (ordered[(len(seen) - 1) // 2] + ordered[len(seen) // 2]) / 2


def _filled(values: Tensor, fill: Tensor, series: bool) -> Tensor:
    """Values (n,) or (n, T) of one column: the last one carried forward along T, then `fill` where none was seen."""
    if series:
        steps = torch.arange(values.shape[1], device=values.device).expand_as(values)
        last = steps.masked_fill(values.isnan(), -1).cummax(dim=1).values
        # Where nothing was seen yet (-1) the first value is taken, which is NaN itself.
        values = values.gather(1, last.clamp_min(0))
    return torch.where(values.isnan(), fill, values)
