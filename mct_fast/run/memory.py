"""What does not fit into memory is refused before it is allocated: a system that promises memory it lacks kills the process."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from mct_fast.run.errors import InputError

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_TOTAL = Path("/proc/meminfo")


def check_fits(option: str, wanted: float, what: str, device: torch.device | str = "cpu") -> None:
    """Raises :class:`InputError` naming ``option`` if ``wanted`` bytes, for ``what``, are more than ``device`` has in all."""
    total = _memory(str(device))
    if total is not None and wanted > total:
        size = f"{wanted:,.0f}" if wanted < 1e30 else "over 10^30"  # a number of any length may be asked for
        raise InputError(
            f"{option}: {what} would take {size} bytes, {device} has {total:,}; give less of it, or a smaller network"
        )


def peak_memory(device: str) -> int:
    """The most bytes that this process has had so far: of a GPU what its tensors took, else of the processor's memory."""
    if device != "cpu":
        import torch

        if torch.device(device).type == "cuda":
            return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def shortage(error: BaseException) -> InputError | None:
    """What PyTorch or Python said about memory that it did not get, in a line; None for an error of another kind."""
    import torch

    text = " ".join(str(error).split())
    bytes_ = re.search(r"allocate ([\d.]+ ?(?:bytes|[KMGT]iB))", text)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in text:
        return None
    device = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "memory"
    size = "" if bytes_ is None else f" for {bytes_[1]}"
    return InputError(
        f"memory: {device} has no room{size}; lower what stands for size: width, ipc, syn_steps, students, canvas, parallel, "
        "num_eval, image_size"
    )


def _memory(device: str) -> int | None:
    """Bytes that ``device`` has in all; None where nobody says."""
    if device != "cpu":
        import torch  # here: settings of a processor are checked without it

        if torch.device(device).type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
    try:
        lines = dict(line.split(":", 1) for line in _TOTAL.read_text(encoding="ascii").splitlines())
        found = [int(lines["MemTotal"].split()[0]) << 10]
        limit = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.exists() else "max"
    except (OSError, ValueError, KeyError):
        return None
    return min([*found, *([int(limit)] if limit.isdigit() else [])])
