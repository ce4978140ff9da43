"""One line about a long stage, from its first steps."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest

from mct_fast.run import estimate
from mct_fast.run.estimate import Estimated
from mct_fast.run.memory import peak_memory
from mct_fast.run.progress import LineProgress


def _said(monkeypatch: pytest.MonkeyPatch, steps: Sequence[float], total: int, n: int = 1) -> list[str]:
    now = [50.0]
    monkeypatch.setattr(estimate.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = LineProgress(stream, every=1e9)
    with progress.task("distil", total) as shown:
        bar = Estimated(shown, progress, "distil", total, unit="iterations", device="cpu")
        for seconds in steps:
            now[0] += seconds
            bar.advance(n)
        return stream.getvalue().splitlines()


def test_the_first_step_and_what_lies_between_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = _said(monkeypatch, [30.0, 1.0, 1.0, 90.0, 1.0, *[1.0] * 20], 1006)
    assert line.startswith("distil: about 16 min 40 s for the 1,000 iterations left, evaluations aside; memory so far ")
    found = re.search(r"([\d,]+) MiB at most$", line)
    assert found is not None and 0 < int(found[1].replace(",", "")) <= peak_memory("cpu") / 2**20 + 1


@pytest.mark.parametrize("n", [1, 7])
def test_units_a_step(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = _said(monkeypatch, [2.0] * 9, 104 * n, n)
    assert f"about 3 min 20 s for the {100 * n:,} iterations" in line


def test_a_short_stage_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _said(monkeypatch, [1.0] * 30, 60) == []
    assert _said(monkeypatch, [1.0] * 3, 10**6) == [], "too few steps"
