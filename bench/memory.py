"""Peak memory of one iteration, in a process of its own: ``python -m bench.memory`` serves :func:`peak`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.contestants import contestants
from bench.problem import Setting, build


@dataclass(frozen=True)
class Peak:
    """Bytes: ``above`` what the process held after import and setup, and ``total`` (on a GPU: allocated there)."""

    above: int
    total: int


def peak(
    name: str,
    setting: Setting,
    *,
    mtt: str | None,
    mct: str | None,
    threads: int | None,
    tesla: str | None = None,
) -> Peak | str:
    """The peak of one iteration of contestant ``name``, or why there is none."""
    clones = {"mtt": mtt, "mct": mct, "tesla": tesla}
    request = {"name": name, "setting": asdict(setting), "clones": clones, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", json.dumps(request)], capture_output=True, text=True, cwd=machine.ROOT
    )
    if done.returncode < 0:
        return f"killed by signal {-done.returncode} (out of memory?)"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def predicted(name: str, setting: Setting, **where: Any) -> int | str:
    """The total of a contestant whose memory grows linearly in ``syn_steps``, from runs of 2 and 4 steps."""
    few, more = (peak(name, replace(setting, syn_steps=steps), **where) for steps in (2, 4))
    if isinstance(few, str):
        return few
    if isinstance(more, str):
        return more
    return more.total + max(0, more.total - few.total) * (setting.syn_steps - 4) // 2


def _measure(request: dict[str, Any]) -> Peak:
    machine.set_threads(request["threads"])
    problem = build(Setting(**request["setting"]))
    iterate = contestants(**request["clones"])[request["name"]].build(problem)
    gc.collect()
    if problem.images.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        iterate()
        torch.cuda.synchronize()
        total = torch.cuda.max_memory_allocated()
        return Peak(total - before, total)
    _trim()
    before = _reset_peak()
    iterate()
    total = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Peak(max(0, total - before), total)


def _trim() -> None:
    """Hands back what the allocator kept from setup, or an iteration could live on it unseen."""
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> int:
    """Forgets the peak of import and setup where the system can, and returns what the process holds now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(json.loads(sys.argv[1])))))
