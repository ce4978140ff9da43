"""What this machine can do at most, measured now: bytes copied and float32 operations a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.timing import clock

_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Copied: far more than the caches hold."""

_SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the matrices."""


@dataclass(frozen=True)
class Ceilings:
    """``copy``: bytes a second, read plus written, of a large copy.  ``flops``: float32 operations a second, by ``how``."""

    copy: float
    flops: float
    how: str

    def least_seconds(self, nbytes: float, flops: float) -> float:
        """The time that a call must take at these rates: whichever of the two binds."""
        return max(nbytes / self.copy, flops / self.flops)


def measure(device: str = "cpu") -> Ceilings:
    """Measure both on ``device``, with as many threads as PyTorch uses; takes about two seconds."""
    kind = torch.device(device).type
    side, source = _SIDE[kind], torch.ones(_BYTES[kind] // 4, device=device)
    target = torch.zeros_like(source)
    copied = 2 * source.nbytes / _best(lambda: target.copy_(source))
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # as PyTorch's convolutions are by default
    try:
        flops = 2 * side**3 / _best(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    precision = "float32" if kind == "cpu" else "tf32"
    return Ceilings(copied, flops, f"a matrix product in {precision}, {side} cubed")


def _best(run: Callable[[], object], times: int = 7) -> float:
    """The least time, after a warm-up: a ceiling is what the machine can do when nothing disturbs it."""
    run()
    return min(clock(run) for _ in range(times))
