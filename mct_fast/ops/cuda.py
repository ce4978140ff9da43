"""Which implementation serves an operator on a CUDA device: the one place that decides.

Importing this module imports no Triton: a kernel's first call does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mct_fast.kernels import MODULES, launcher
from mct_fast.ops import checks, reference
from mct_fast.ops.schema import NAMESPACE, SCHEMAS, op_name

PREFERENCE: dict[str, tuple[str, ...]] = {op_name(schema): ("compiled", "triton", "reference") for schema in SCHEMAS}
"""For each operator the implementations by name (`AVAILABLE`), the preferred one first."""


def _has_compiled(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", "CUDA")


def _has_triton(op: str) -> bool:
    return op in MODULES and importlib.util.find_spec("triton") is not None


def _has_reference(op: str) -> bool:
    return True


AVAILABLE: dict[str, Callable[[str], bool]] = {
    "compiled": _has_compiled,
    "triton": _has_triton,
    "reference": _has_reference,
}
"""Whether an implementation of the operator can be had: registered by the compiled extension (which has checks and guards
of its own, and is left as it is), Triton's, or plain PyTorch, which serves every device already."""


def choose(op: str) -> str:
    """The name of the preferred implementation that is available."""
    return next(name for name in PREFERENCE[op] if AVAILABLE[name](op))


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
    """Register the kernels that are chosen and not registered yet."""
    for op in PREFERENCE:
        if choose(op) == "triton":
            library.impl(op, triton_kernel(op), "CUDA")
