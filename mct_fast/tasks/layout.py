"""Which rows stand for a class, and how rare cases are spread over the batches of an epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from mct_fast.run.errors import InputError


def shuffled_by_class(labels: Tensor, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices ordered by class and shuffled within each, and the number of rows of each class."""
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[torch.argsort(labels[shuffled], stable=True)]
    return order, torch.bincount(labels, minlength=num_classes)


def rows_per_class(labels: Tensor, num_classes: int, ipc: int, generator: torch.Generator) -> Tensor:
    """``ipc`` different rows of each class at random, ordered by class: indices ``(num_classes * ipc,)``.

    Args:
        labels: (n,) int64 on the CPU.
        num_classes: classes 0 ... num_classes - 1.
        ipc: rows a class, at least 1.
        generator: CPU generator that the choice is drawn from.

    Raises:
        InputError: a class has fewer rows.
    """
    order, counts = shuffled_by_class(labels, num_classes, generator)
    fewest = int(counts.min())
    if fewest < ipc:
        raise InputError(f"ipc: {ipc} is larger than class {int(counts.argmin())}, which has {fewest} rows; lower it")
    first = counts.cumsum(0) - counts
    return order[(first[:, None] + torch.arange(ipc)).flatten()]


def rows_of_labels(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` different rows of a multi-label set at random, so that label vectors keep their joint distribution.

    A label that some row has, but none of those drawn, takes the place of the last rows drawn: each label that exists
    is seen.  ``labels (n, k)`` on the CPU, above 0.5 where a label applies.

    Raises:
        InputError: there are fewer rows than ``count``.
    """
    if count > len(labels):
        raise InputError(f"ipc: {count} rows are wanted of {len(labels)}; lower it")
    order = torch.randperm(len(labels), generator=generator)
    positive = labels > 0.5
    chosen, rest = order[:count], order[count:]
    missing = positive.any(0) & ~positive[chosen].any(0)
    if not bool(missing.any()):
        return chosen
    needed: list[int] = []
    for label in missing.nonzero().flatten().tolist():
        if not bool(positive[needed, label].any()):
            needed.append(int(rest[positive[rest, label]][0]))
    needed = needed[:count]
    return torch.cat([chosen[: count - len(needed)], torch.tensor(needed, dtype=torch.int64)])


def rarest_label(labels: Tensor) -> Tensor:
    """Of each row ``(n, k)`` the label that applies to it and to fewest rows; k where none applies."""
    positive = labels > 0.5
    counts = positive.sum(0).double()
    ranked = torch.where(positive, counts, float("inf"))
    return torch.where(positive.any(1), ranked.argmin(1), labels.shape[1])


def spread_order(strata: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of all rows in which each stratum is spread evenly, so that every batch has its share of it.

    ``strata (n,)`` int64 on the CPU.  Each row comes once; the rows of a stratum are shuffled and lie at equal
    distances from a random beginning.
    """
    order, counts = shuffled_by_class(strata, int(strata.max()) + 1, generator)
    rank = torch.arange(len(strata)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    begin = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    place = (rank + begin.repeat_interleave(counts)) / counts.repeat_interleave(counts)
    return order[torch.argsort(place, stable=True)]


def balanced_rows(strata: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows, as many of each stratum that has some, to one: different ones, until a small stratum has no more.

    ``strata (n,)`` int64 on the CPU.
    """
    order, counts = shuffled_by_class(strata, int(strata.max()) + 1, generator)
    first = counts.cumsum(0) - counts
    present = counts.nonzero().flatten()
    turn = torch.arange(count)
    own, which = present[turn % len(present)], turn // len(present)
    return order[first[own] + which % counts[own]]


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split indices 0..n-1 at random into a rest and a held-out part with the same share of every class.

    Args:
        labels: (n,) int64 on the CPU.
        fraction: held-out share of each class, in [0, 1), rounded to whole images; at least one image of a
            class is held out (unless fraction is 0) and at least one kept. A class with a single image keeps
            it.
        generator: CPU generator that the choice is drawn from.

    Returns:
        (rest, held_out): ascending int64 indices, disjoint, together all of them.

    Raises:
        InputError: fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"val_fraction={fraction} is out of range; give a share of the training set in [0, 1)")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    if fraction > 0 and len(labels):
        order, counts = shuffled_by_class(labels, int(labels.max()) + 1, generator)
        take = torch.minimum((counts * fraction + 0.5).floor().long().clamp_min(1), (counts - 1).clamp_min(0))
        rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        held_out[order[rank < take.repeat_interleave(counts)]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
