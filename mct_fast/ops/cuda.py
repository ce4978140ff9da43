"""Which implementation serves an operator on a CUDA device: Triton's where Triton is installed, else plain PyTorch.

Importing this module imports no Triton: a kernel's first call does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mct_fast.kernels import MODULES, launcher
from mct_fast.ops import checks, reference


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def triton_kernel(op: str) -> Callable[..., Any]:
    """The operator on Triton: arguments checked, on the device of the first one.

    float64 runs on `reference`: such a run is a check, and tensor cores and on-chip planes gain it little.
    """
    check, plain = getattr(checks, op), getattr(reference, op)

    def kernel(*args: Any) -> Any:
        check(*args)
        if args[0].dtype != torch.float32:
            return plain(*args)
        with torch.cuda.device_of(args[0]):
            return launcher(op)(*args)

    return kernel


def register(library: torch.library.Library) -> None:
    """Register Triton's kernels; without Triton nothing, since `reference` serves every device already."""
    if has_triton():
        for op in MODULES:
            library.impl(op, triton_kernel(op), "CUDA")
