"""What networks that were trained on the set make of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mct_fast.view.facts import Facts

_MOST_SQUARES = 20  # classes whose confusion is drawn: more do not fit beside each other
_MOST_TAKEN = 0.01  # of a class, for which another is not worth a word


@dataclass(frozen=True)
class Classes:
    """``rows``: a class, its accuracy, and for what it is taken most; ``squares``: in percent, by true and given class."""

    rows: list[tuple[str, str, str]]
    names: list[str]
    squares: list[list[int]]


def classes_of(facts: Facts) -> Classes | None:
    """How often images of each class of the test split are taken for those of any; None: that was not counted."""
    counted = None if facts.final is None else facts.final.get("test_confusion")
    if counted is None:
        return None
    counts = torch.tensor(counted, dtype=torch.float64)
    names = _names(facts, len(counts))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    rows = []
    for i, name in enumerate(names):
        seen = bool(counts[i].sum())
        others = shares[i].clone()
        others[i] = -1
        most = int(others.argmax())
        taken = f"{names[most]}, {100 * float(others[most]):.1f} %" if others[most] >= _MOST_TAKEN else ""
        rows.append((name, f"{100 * float(shares[i, i]):.1f} %" if seen else "none in the split", taken))
    drawn = len(names) <= _MOST_SQUARES
    return Classes(rows, names, (100 * shares).round().int().tolist() if drawn else [])


def _names(facts: Facts, count: int) -> list[str]:
    known = () if facts.distilled is None else facts.distilled.class_names
    return [*known] if len(known) == count else [str(number) for number in range(count)]
