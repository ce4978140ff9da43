"""What this machine can do at most, measured now: bytes copied and float32 multiply-adds a second."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.timing import clock

_COPIED = 256 << 20
_COPIED_THERE = 2 << 30  # far more than a GPU's second cache
_ROUNDS = 1 << 21

# Independent multiply-adds that never leave the registers: as many as hide the latency of two units.
_SPIN = """
#if defined(__AVX512F__)
#define BYTES 64
#define CHAINS 24
#elif defined(__AVX2__)
#define BYTES 32
#define CHAINS 12
#else
#define BYTES 16
#define CHAINS 24
#endif
typedef float vec __attribute__((vector_size(BYTES)));
long flops_a_round(void) { return 2L * CHAINS * (BYTES / 4); }
float spin(long rounds, float start) {
  vec a[CHAINS], x, y, sum;
  for (int k = 0; k < BYTES / 4; ++k) { x[k] = 0.999f; y[k] = start; sum[k] = 0; }
  for (int i = 0; i < CHAINS; ++i) a[i] = y + (float)i;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; ++i) a[i] = a[i] * x + y;
  }
  for (int i = 0; i < CHAINS; ++i) sum += a[i];
  return sum[0];
}
"""


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
    """Measures both, on a processor with as many threads as PyTorch uses; takes about two seconds."""
    if device != "cpu":
        return Ceilings(_copy(device, _COPIED_THERE), _tensor_cores(device), "a matrix product in tf32, 8192 cubed")
    spun = _spin()
    if spun is not None:
        return Ceilings(_copy(), spun, "multiply-adds in registers, compiled for this machine")
    return Ceilings(_copy(), _convolution(), "PyTorch's convolution 128 to 128 channels (no C compiler found)")


def _best(run: Callable[[], object], times: int = 7) -> float:
    """The least time: a ceiling is what the machine can do when nothing disturbs it."""
    return min(clock(run) for _ in range(times))


def _copy(device: str = "cpu", nbytes: int = _COPIED) -> float:
    source = torch.ones(nbytes // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * nbytes / _best(lambda: target.copy_(source))


def _tensor_cores(device: str, size: int = 8192) -> float:
    """Operations a second of a large product with the precision that PyTorch's convolutions have there by default."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        torch.mm(a, b)
        return 2 * size**3 / _best(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _convolution() -> float:
    x = torch.randn(100, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return 2 * x.numel() * 128 * 9 / _best(lambda: F.conv2d(x, w, padding=1))


def _spin() -> float | None:
    """Operations a second of the loop above on all threads, or None without a working C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "spin.c"), Path(folder, "spin.so")
        source.write_text(_SPIN)
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            subprocess.run(
                [*compiler.split(), *flags, "-o", str(library), str(source)], check=True, capture_output=True
            )
            loaded = ctypes.CDLL(str(library))
        except (OSError, subprocess.CalledProcessError):
            return None
        spin, per_round = loaded.spin, loaded.flops_a_round
        spin.argtypes, spin.restype, per_round.restype = [ctypes.c_long, ctypes.c_float], ctypes.c_float, ctypes.c_long
        threads = torch.get_num_threads()

        def together() -> None:
            workers = [threading.Thread(target=spin, args=(_ROUNDS, 1e-3)) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        return threads * _ROUNDS * per_round() / _best(together)
