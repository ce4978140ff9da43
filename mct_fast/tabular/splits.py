"""Which rows of a raw table train, validate and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec
from mct_fast.tabular.tables import RawTable
from mct_fast.tasks.layout import stratified_split

_TEST_SEED = 0  # fixed, so that the test split stays the same whatever split_seed is


def split_rows(raw: RawTable, spec: TableSpec, val_fraction: float, split_seed: int) -> dict[str, Tensor]:
    """Rows, ascending, of "train", "val" and "test".

    What the source decides stays; of the rest, `test_fraction` make the test split (always the same one) if there is
    none, and `val_fraction` of what remains the validation split (drawn by `split_seed`) if there is none. Both are
    stratified by class; rows of several labels by the rarest one they have. Groups stay together, and are drawn by the
    rarest class in them.

    Raises:
        InputError: a split is empty or has no row of a class or label, or a group lies in two splits.
    """
    splits = raw.splits.clone()
    strata = _strata(raw.labels)
    for number, fraction, seed in ((2, spec.test_fraction, _TEST_SEED), (1, val_fraction, split_seed)):
        if fraction and not bool((splits == number).any()):
            _hold_out(splits, number, fraction, seed, strata, raw.groups)
    splits[splits < 0] = 0
    rows = {name: (splits == number).nonzero().flatten() for number, name in enumerate(("train", "val", "test"))}
    _check_splits(raw, spec, rows, val_fraction)
    if spec.subsample_positive is not None:
        rows["train"] = _subsampled(raw, rows["train"], spec.subsample_positive, split_seed)
    return rows


def _strata(labels: Tensor) -> Tensor:
    """(n,) int64: the class; of a row of several labels the rarest one it has, or one more for none."""
    if labels.ndim == 1:
        return labels
    counts = labels.sum(0)
    rank = counts.argsort(stable=True)  # rarest first
    present = labels[:, rank] > 0
    first = present.to(torch.int64).argmax(1)
    return torch.where(present.any(1), rank[first], labels.shape[1])


def _hold_out(splits: Tensor, number: int, fraction: float, seed: int, strata: Tensor, groups: Tensor | None) -> None:
    """Give `number` to a share of the rows that are undecided or called train."""
    rows = (splits <= 0).nonzero().flatten()
    stream = torch.Generator().manual_seed(seed)
    if groups is None:
        splits[rows[stratified_split(strata[rows], fraction, stream)[1]]] = number
        return
    present, own = groups[rows].unique(return_inverse=True)
    rarity = torch.bincount(strata[rows]).argsort(descending=True, stable=True).argsort(stable=True)
    # A group counts as its rarest class: the one of the highest rank.
    rank = torch.zeros(len(present), dtype=torch.int64).scatter_reduce_(
        0, own, rarity[strata[rows]], "amax", include_self=False
    )
    held_out = torch.zeros(len(present), dtype=torch.bool)
    held_out[stratified_split(rank, fraction, stream)[1]] = True
    splits[rows[held_out[own]]] = number


def _check_splits(raw: RawTable, spec: TableSpec, rows: Mapping[str, Tensor], val_fraction: float) -> None:
    for name, own in rows.items():
        if not len(own) and (name != "val" or val_fraction):
            cause = "" if raw.groups is None else f" with {len(raw.group_names)} groups in column {spec.group!r}"
            remedy = "raise val_fraction or pass 0" if name == "val" else "raise test_fraction or give more rows"
            raise InputError(
                f"the {name} split is empty{cause}; {remedy if not cause else 'give more groups or no group'}"
            )
    if raw.groups is not None:
        seen = torch.full((len(raw.group_names),), -1)
        for number, own in enumerate(rows.values()):
            shared = (seen[raw.groups[own]] >= 0).nonzero().flatten()
            if len(shared):
                name = raw.group_names[int(raw.groups[own][shared[0]])]
                raise InputError(
                    f"group: {spec.group!r} {name!r} lies in two splits; keep its rows in one, or leave the group out"
                )
            seen[raw.groups[own]] = number
    for name, own in rows.items():
        if len(own):
            _check_labels(raw, raw.labels[own], name)


def _check_labels(raw: RawTable, labels: Tensor, split: str) -> None:
    remedy = "raise its share, or give more such rows"
    if labels.ndim == 2:
        positives = labels.sum(0)
        for wanted, counts in (("positive", positives), ("negative", len(labels) - positives)):
            if bool((counts == 0).any()):
                name = raw.target[int(counts.argmin())]
                raise InputError(
                    f"target {name!r} has no {wanted} row in the {split} split; {remedy}, or drop that target"
                )
        return
    counts = torch.bincount(labels, minlength=len(raw.class_names))
    if bool((counts == 0).any()):
        value = raw.class_names[int(counts.argmin())]
        kind = f"positive ({value!r})" if raw.task == "binary" and int(counts.argmin()) == 1 else f"{value!r}"
        raise InputError(f"target {raw.target[0]!r} has no {kind} row in the {split} split; {remedy}")


def _subsampled(raw: RawTable, rows: Tensor, share: float, split_seed: int) -> Tensor:
    if raw.task != "binary":
        raise InputError(f"subsample_positive: is for a binary target, this one is {raw.task}; leave it out")
    positive = rows[raw.labels[rows] == 1]
    negatives = len(rows) - len(positive)
    wanted = max(1, round(share / (1 - share) * negatives))
    if wanted > len(positive):
        raise InputError(
            f"subsample_positive={share}: only {len(positive) / len(rows):.4g} of the training rows are positive; "
            "give a smaller share"
        )
    stream = torch.Generator().manual_seed(split_seed)
    kept = positive[torch.randperm(len(positive), generator=stream)[:wanted]]
    return torch.cat([rows[raw.labels[rows] == 0], kept]).sort().values


def level_subset(raw: RawTable, train: Tensor) -> RawTable:
    """The same table with the levels that the training rows have; a value never seen there is missing."""
    if raw.fixed:
        return raw
    values, columns = raw.values.clone(), list(raw.columns)
    for i, column in enumerate(columns):
        if column.levels is None:
            continue
        own = values[..., i]
        seen = own[train]
        present = torch.bincount(seen[~seen.isnan()].long(), minlength=len(column.levels)) > 0
        if bool(present.all()):
            continue
        renumbered = torch.where(present, present.long().cumsum(0) - 1, -1).double()
        renumbered[~present] = torch.nan
        values[..., i] = torch.where(own.isnan(), own, renumbered[own.nan_to_num(0).long()])
        columns[i] = dataclasses.replace(column, levels=tuple(_kept(column.levels, present)))
    return dataclasses.replace(raw, values=values, columns=tuple(columns))


def _kept(levels: Sequence[str], present: Tensor) -> Iterator[str]:
    return (level for level, kept in zip(levels, present.tolist(), strict=True) if kept)
