"""One race: gate, then memory, then time by turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench import gate, memory, tables
from bench.contestants import OURS, Contestant, Iterate, Outcome, judge
from bench.gate import FIRST_STEPS, Verdict
from bench.harness import UnequalError
from bench.machine import available_memory
from bench.memory import Peak
from bench.problem import Setting, build
from bench.timing import Samples, Spread, alternate, clock

_ROOM = 0.85
"""Share of the free memory that a contestant may be expected to take."""

_GROWTH = 26
"""Bytes that MTT's graph takes for each value of a first block's output, roughly: says when to look more closely."""


class GateError(UnequalError):
    """Somebody computes something else: nothing is timed."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{', '.join(verdict.failed)}: losses or gradients differ")
        self.verdict = verdict


@dataclass(frozen=True)
class Terms:
    """How to race: rounds, seconds a contestant, who races (empty: all), whether memory is measured."""

    rounds: int = 7
    budget: float = 90.0
    only: tuple[str, ...] = ()
    memory: bool = True
    mtt: str | None = None
    mct: str | None = None
    tesla: str | None = None
    threads: int | None = None

    def names(self, entrants: Mapping[str, Contestant]) -> list[str]:
        return [name for name in entrants if not self.only or name in self.only]

    def where(self) -> dict[str, Any]:
        return {"mtt": self.mtt, "mct": self.mct, "tesla": self.tesla, "threads": self.threads}


@dataclass(frozen=True)
class Row:
    """A contestant's result; ``absent`` says why one has no times.

    ``ratio`` is its median over ours, ``paired`` the same within rounds: how many times faster ours is.
    """

    name: str
    title: str
    absent: str | None = None
    seconds: Spread | None = None
    samples: Mapping[int, float] | None = None
    ratio: float | None = None
    paired: Spread | None = None
    peak: Peak | None = None
    memory_ratio: float | None = None


@dataclass(frozen=True)
class Result:
    """One race."""

    setting: Setting
    gate: tuple[Verdict, ...]
    """Over the first steps where there are many, and over all."""
    rows: tuple[Row, ...]

    def speedup(self) -> tuple[str, float] | None:
        """Ours against the faster of the eager double backward and MTT's own code: (its name, ratio of medians)."""
        rivals = {row.name: row.ratio for row in self.rows if row.name in ("unrolled", "mtt") and row.ratio is not None}
        name = min(rivals, key=lambda rival: rivals[rival], default=None)
        return None if name is None else (name, rivals[name])

    def json(self) -> dict[str, Any]:
        best = self.speedup()
        return {**asdict(self), "speedup": None if best is None else {"against": best[0], "ratio": best[1]}}


def race(setting: Setting, entrants: Mapping[str, Contestant], terms: Terms) -> Result:
    """Races ``entrants``; raises :class:`GateError` before any timing where results differ.

    A contestant that does not fit into memory, or does not start (torch.compile without a compiler), gets a row that says
    so; anything wrong with our own raises.
    """
    entrants = {name: entrants[name] for name in terms.names(entrants)}
    absent = {name: why for name, c in entrants.items() if (why := _does_not_fit(c, setting, terms)) is not None}
    present = {name: c for name, c in entrants.items() if name not in absent}
    verdicts, runs, expected = _gate(setting, present, absent)
    timed = [name for name in entrants if name in runs]
    tables.note(f"IPC {setting.ipc}: timing {', '.join(timed)}")
    samples = alternate({name: runs[name] for name in timed}, expected, terms.rounds, terms.budget)
    runs.clear()
    gc.collect()
    if terms.memory:
        tables.note(f"IPC {setting.ipc}: peak memory, one process each")
    peaks = {
        name: found
        for name in timed
        if terms.memory and isinstance(found := memory.peak(name, setting, **terms.where()), Peak)
    }
    rows = [_row(entrants[name], absent.get(name), samples, peaks) for name in entrants]
    return Result(setting, verdicts, tuple(rows))


def _does_not_fit(contestant: Contestant, setting: Setting, terms: Terms) -> str | None:
    free = available_memory() if setting.device == "cpu" else torch.cuda.mem_get_info()[0]
    rough = _GROWTH * setting.batch_syn * setting.image_size**2 * setting.width * setting.syn_steps
    if not contestant.grows or setting.syn_steps <= 4 or rough < free / 2:
        return None
    tables.note(f"IPC {setting.ipc}: will {contestant.name} fit into memory?")
    needed = memory.predicted(contestant.name, setting, **terms.where())
    if isinstance(needed, str):
        return needed
    return f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free" if needed > _ROOM * free else None


def _gate(
    setting: Setting, present: Mapping[str, Contestant], absent: dict[str, str]
) -> tuple[tuple[Verdict, ...], dict[str, Iterate], dict[str, float]]:
    """First iterations, compared.  They also warm up: ``expected`` holds the seconds of each one's last iteration.

    Who does not start is moved to ``absent``.
    """
    # On a GPU the references draw most augmentations from the GPU's generator; these two come from the CPU's everywhere.
    judged = setting if setting.device == "cpu" else replace(setting, strategy="scale_rotate")
    verdicts: list[Verdict] = []
    if setting.syn_steps > FIRST_STEPS:
        verdicts.append(_judge(replace(judged, syn_steps=FIRST_STEPS), present, absent)[0])
        gc.collect()
    verdict, runs, expected = _judge(judged, {n: c for n, c in present.items() if n not in absent}, absent)
    for name in runs:
        if judged is not setting:
            runs[name] = present[name].build(build(setting))
        if judged is not setting or expected[name] < 5:
            expected[name] = clock(runs[name])
    return (*verdicts, verdict), runs, expected


def _judge(
    setting: Setting, present: Mapping[str, Contestant], absent: dict[str, str]
) -> tuple[Verdict, dict[str, Iterate], dict[str, float]]:
    """One iteration of everybody against float64; what was run, and how many seconds it took."""
    problem, steps = build(setting), setting.syn_steps
    outcomes: dict[str, Outcome] = {}
    runs: dict[str, Iterate] = {}
    spent: dict[str, float] = {}
    for name, contestant in present.items():
        tables.note(f"IPC {setting.ipc}, {steps} steps: first iteration of {name}")
        try:
            runs[name] = contestant.build(problem)
        except Exception as error:
            if name == OURS:
                raise
            absent[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            continue
        began = time.perf_counter()
        outcomes[name] = _copy(runs[name]())
        spent[name] = time.perf_counter() - began
    tables.note(f"IPC {setting.ipc}, {steps} steps: the judge, in float64")
    wide = problem.to("float64")
    needs_truncated = any(present[name].gradient == "truncated" for name in outcomes)
    truncated = judge(wide, truncated=True) if needs_truncated else None
    verdict = gate.verdict(steps, present, outcomes, judge(wide), truncated)
    if verdict.failed:
        raise GateError(verdict)
    return verdict, runs, spent


def _copy(outcome: Outcome) -> Outcome:
    return Outcome(*(t.detach().cpu().clone() for t in (outcome.loss, outcome.grad_images, outcome.grad_lr)))


def _row(contestant: Contestant, absent: str | None, samples: Mapping[str, Samples], peaks: Mapping[str, Peak]) -> Row:
    name, title = contestant.name, contestant.title
    if name not in samples:
        return Row(name, title, absent or "not run")
    own, ours, peak = samples[name], samples.get(OURS), peaks.get(name)
    return Row(
        name,
        title,
        seconds=own.spread,
        samples=dict(own.seconds),
        ratio=own.spread.median / ours.spread.median if ours else None,
        paired=own.ratio_to(ours) if ours else None,
        peak=peak,
        memory_ratio=peak.above / peaks[OURS].above if peak and OURS in peaks and peaks[OURS].above else None,
    )
