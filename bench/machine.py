"""What a measurement was made on: machine, versions, commit."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mct_fast.run.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
"""The repository, whose commit is reported."""

_NOTABLE_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")
_PACKAGES = ("torchvision", "numpy", "triton", "kornia")


@dataclass(frozen=True)
class Machine:
    """The machine a process runs on, and how much of it other processes were taking."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    threads: int
    """Threads that PyTorch uses."""
    instruction_set: str
    """The widest that PyTorch dispatches to."""
    cpu_flags: tuple[str, ...]
    memory_bytes: int
    load_average: float
    """Runnable processes over the last minute: above 1 before a run, the numbers are disturbed."""
    gpu: str | None
    system: str


_NO_CODE = (":!bench/results", ":!docs/results", ":!docs/results.md")
"""Results are written into the tree; they do not make the code that was measured another."""


def machine() -> Machine:
    """Describes this machine, now."""
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Machine(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        cpu_flags=tuple(flag for flag in _NOTABLE_FLAGS if flag in flags),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load_average=os.getloadavg()[0],
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
    )


def circumstances() -> dict[str, Any]:
    """All that a result has to carry: ``machine``, ``versions``, ``commit``, ``dirty``, ``date``, as JSON values."""
    from mct_fast import ops

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version(name) for name in _PACKAGES},
    }
    return {
        "machine": asdict(machine()),
        "versions": versions,
        "compiled_kernels": ops.extension_loaded(),
        **code(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def available_memory() -> int:
    """Bytes that may still be taken: the system's or the control group's, whichever is less."""
    free = _meminfo().get("MemAvailable", 1 << 62)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    return free


def set_threads(threads: int | None) -> None:
    """Makes PyTorch use ``threads`` threads; None leaves its choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_device(name: str) -> None:
    """Raises :class:`InputError` where PyTorch has no such device."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: PyTorch sees no {name!r} here; run this on a machine that has one") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code() -> dict[str, Any]:
    """What is checked out now: ``commit``, and whether files differ from it (``dirty``); None where that cannot be told."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", *_NO_CODE)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}
