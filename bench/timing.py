"""Timing by turns, so that a disturbance of the machine meets all contestants alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median with the least and greatest of ``count`` values."""

    median: float
    least: float
    greatest: float
    count: int

    @staticmethod
    def of(values: list[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Samples:
    """Seconds of one contestant, by round."""

    seconds: Mapping[int, float]

    @property
    def spread(self) -> Spread:
        return Spread.of(list(self.seconds.values()))

    def ratio_to(self, other: Samples) -> Spread:
        """This one's seconds over the other's, within each round that both ran."""
        shared = self.seconds.keys() & other.seconds.keys()
        return Spread.of([self.seconds[i] / other.seconds[i] for i in sorted(shared)])


def clock(run: Run) -> float:
    """Seconds of one call, waiting for the device."""
    _wait()
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def turns(rounds: int, expected_seconds: float, budget: float) -> frozenset[int]:
    """In which of ``rounds`` rounds a contestant runs, so that it takes about ``budget`` seconds: at least two, evenly."""
    wanted = rounds if expected_seconds <= 0 else int(budget / expected_seconds)
    quota = min(rounds, max(2, wanted))
    return frozenset(i for i in range(rounds) if (i + 1) * quota // rounds > i * quota // rounds)


def alternate(
    runs: Mapping[str, Run], expected_seconds: Mapping[str, float], rounds: int, budget: float
) -> dict[str, Samples]:
    """Runs all contestants round by round, A B C A B C, and returns the seconds of each.

    The caller has warmed them up.  A slow contestant sits out some rounds (:func:`turns`).
    """
    plan = {name: turns(rounds, expected_seconds[name], budget) for name in runs}
    seconds: dict[str, dict[int, float]] = {name: {} for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            if i in plan[name]:
                gc.collect()
                seconds[name][i] = clock(run)
    return {name: Samples(found) for name, found in seconds.items()}


def interleave(runs: Mapping[str, Run], *, seconds: float = 0.2, least: int = 5) -> dict[str, Spread]:
    """Seconds a call of short things, each for about ``seconds`` and at least ``least`` readings, by turns after warm-up.

    A reading is the mean of as many calls as take 2 ms or so: the clock and its synchronisation are not free.
    """
    inner, count = {}, {}
    for name, run in runs.items():
        clock(run)
        once = max(clock(run), 1e-7)
        inner[name] = max(1, int(2e-3 / once))
        count[name] = min(200, max(least, int(seconds / (once * inner[name]))))
    readings: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(max(count.values())):
        for name, run in runs.items():
            if i < count[name]:
                readings[name].append(clock(_burst(run, inner[name])) / inner[name])
    return {name: Spread.of(values) for name, values in readings.items()}


def _burst(run: Run, times: int) -> Run:
    def burst() -> None:
        for _ in range(times):
            run()

    return burst


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
