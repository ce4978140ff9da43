"""Which device is meant: a name checked, and ``auto`` decided."""

from __future__ import annotations

import torch

from mct_fast.ops.dispatch import choose
from mct_fast.run.errors import InputError
from mct_fast.run.settings import AUTO

_LEAST = (8, 0)
"""The compute capability from which on the kernels serve a GPU: their products are those of Ampere's tensor cores."""


def taken(device: torch.device | str) -> str:
    """The name of the device that ``device`` stands for: ``cpu``, ``cuda`` or ``cuda:N``, and never :data:`AUTO`.

    Raises:
        InputError: there is no such device here.
    """
    return str(usable_device(device))


def usable_device(device: torch.device | str) -> torch.device:
    """``device`` as PyTorch has it.

    Raises:
        InputError: it is none, or not of this machine.
    """
    if device == AUTO:
        return torch.device("cuda" if _served() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"device={device!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if target.type not in ("cpu", "cuda"):
        raise InputError(f"device={str(device)!r} is not supported; use auto, cpu, cuda or cuda:N")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={str(device)!r} is not available: no CUDA device was found; use device='cpu'")
    count = torch.cuda.device_count() if target.type == "cuda" else 1
    if target.index is not None and target.index >= count:
        raise InputError(
            f"device={str(device)!r} does not exist: there are {target.type}:0 to {target.type}:{count - 1}; use one of them"
        )
    return target


def _served() -> bool:
    """Whether the GPU that ``cuda`` names is one that the kernels serve."""
    if not torch.cuda.is_available() or choose("conv3x3", "cuda").name == "reference":
        return False
    return torch.cuda.get_device_capability() >= _LEAST
