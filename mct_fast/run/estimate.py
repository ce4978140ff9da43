"""How long a stage will take, said once, when its first steps have been measured."""

from __future__ import annotations

import time
from statistics import median

from mct_fast.run.memory import peak_memory
from mct_fast.run.progress import Bar, Progress, Shown, duration, note

_MEASURED = 4.0  # seconds of steps before anything is said
_STEPS = 3
_LONG = 60.0  # seconds: a shorter stage is over before its estimate is read
_ASIDE = 5.0  # times the median step: something else was done between


class Estimated:
    """A bar that also notes how long its stage will take, if that is long, and what memory it took at most.

    The first step is not counted, nor what lies between steps, such as evaluations.

    Args:
        bar: what is told of every step.
        progress: where the line is written.
        name: the stage's.
        left: units to be done.
        unit: what they are, in the plural.
        device: where the stage computes.
    """

    def __init__(self, bar: Bar, progress: Progress, name: str, left: int, *, unit: str, device: str) -> None:
        self._bar, self._progress, self._name, self._left = bar, progress, name, left
        self._unit, self._device = unit, device
        self._said, self._last = False, 0.0
        self._steps: list[tuple[int, float]] = []

    def advance(self, n: int = 1, **shown: Shown) -> None:
        """See :class:`mct_fast.run.progress.Bar`."""
        self._bar.advance(n, **shown)
        if not self._said:
            self._measure(n, time.monotonic())

    def _measure(self, n: int, now: float) -> None:
        self._left -= n
        if self._last:
            self._steps.append((n, now - self._last))
        self._last = now
        if len(self._steps) < _STEPS or sum(seconds for _, seconds in self._steps) < _MEASURED:
            return
        usual = median(seconds for _, seconds in self._steps)
        steps = [(units, seconds) for units, seconds in self._steps if seconds <= _ASIDE * usual]
        spent = sum(seconds for _, seconds in steps)
        if spent < _MEASURED:
            return
        left = self._left * spent / sum(units for units, _ in steps)
        self._said = True
        if left >= _LONG:
            note(
                self._progress,
                f"{self._name}: about {duration(left)} for the {self._left:,} {self._unit} left, evaluations aside; "
                f"memory so far {peak_memory(self._device) / 2**20:,.0f} MiB at most",
            )
