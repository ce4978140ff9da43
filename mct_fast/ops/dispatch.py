"""Puts the operators into PyTorch's dispatcher, once a process, and decides which implementation serves which device.

Schemas, fake kernels, checks and derivatives are the operators' own (`mct_fast.ops.operator`) and are registered here for
every device. ``csrc/ops.cpp`` registers kernels for the CPU and nothing else. Importing this module imports no Triton: a
kernel's first call does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mct_fast.kernels import MODULES, launcher
from mct_fast.ops.operator import NAMESPACE, Operator

log = logging.getLogger("mct_fast")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        device: The type of device that it serves; None for any.
        available: Whether this process has it for an operator of that name.
        reason: Why it stands where it stands in `PREFERENCE`.
    """

    name: str
    device: str | None
    available: Callable[[str], bool]
    reason: str


@functools.cache
def extension_loaded() -> bool:
    """Whether the compiled extension `mct_fast._cpu` was found; without it the CPU is served by plain PyTorch."""
    try:
        importlib.import_module("mct_fast._cpu")
    except ImportError as error:
        log.warning("mct_fast: compiled kernels not available (%s); using the slower PyTorch operators", error)
        return False
    return True


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


PREFERENCE = (
    Implementation(
        "compiled",
        "cpu",
        lambda _: extension_loaded(),
        "C++ with vector instructions: several times as fast as PyTorch",
    ),
    Implementation(
        "triton",
        "cuda",
        lambda op: op in MODULES and _has_triton(),
        "one launch where PyTorch makes many; float32 alone",
    ),
    Implementation(
        "reference", None, lambda _: True, "plain PyTorch: runs everywhere, and is what the others are held to"
    ),
)
"""What can serve an operator, the preferred one first."""


def choose(op: str, device: str) -> Implementation:
    """The preferred implementation of operator ``op`` on devices of the type ``device``."""
    return next(i for i in PREFERENCE if i.device in (device, None) and i.available(op))


def kernels_available(device: torch.device | str) -> bool:
    """Whether ``device`` has kernels for the operators: the compiled ones on a CPU, Triton's on a GPU.

    A meta tensor stands for one of any device of this machine.
    """
    kind = torch.device(device).type
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if kind == "meta" else [kind]
    return any(choose("conv3x3", each).name != "reference" for each in kinds)


def triton_kernel(op: Operator[..., Any]) -> Callable[..., Any]:
    """The operator on Triton: arguments checked, on the device of the first one.

    float64 runs on the reference: such a run is a check, and tensor cores and on-chip planes gain it little.
    """

    def kernel(*args: Any) -> Any:
        op.signature.check(*args)
        if args[0].dtype != torch.float32:
            return op.reference(*args)
        with torch.cuda.device_of(args[0]):
            return launcher(op.name)(*args)

    return kernel


def register(operators: Iterable[Operator[..., Any]]) -> torch.library.Library:
    """Define the operators and register what is not compiled. The returned library must be kept alive."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for op in operators:
        library.define(op.signature.schema)
        op.overload = getattr(torch.ops.mct_fast, op.name).default
        torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.signature.fake, lib=library)
        library.impl(op.name, op.autograd(), "Autograd", with_keyset=True)
        for key in ("AutocastCPU", "AutocastCUDA"):
            library.impl(op.name, op.autocast, key)
        library.impl(op.name, op.checked, "CompositeExplicitAutograd")
        if choose(op.name, "cuda").name == "triton":
            library.impl(op.name, triton_kernel(op), "CUDA")
        if choose(op.name, "cpu").name == "compiled":
            importlib.import_module("mct_fast._cpu").declare(op.name, op.signature.compiled)
    return library
