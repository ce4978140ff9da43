"""Which kernels a call launches, and what the compiler makes of them: without a GPU.

`starts` runs a launcher on ``meta`` tensors and records instead of starting.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

_OPTIONS = ("num_warps", "num_stages")
_POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One kernel with all that its compilation depends on, and the grid it was started with."""

    kernel: str
    grid: tuple[int, ...]
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, int], ...]

    @property
    def variant(self) -> tuple[Any, ...]:
        """Equal for launches that share a cubin."""
        return self.kernel, self.signature, self.constants, self.aligned, self.options

    def describe(self) -> str:
        """Its block sizes and switches, in one line."""
        blocks = [f"{k}={v}" for k, v in self.constants if k.isupper() and v is not None]
        return " ".join([*blocks, *(f"{k.removeprefix('num_')}={v}" for k, v in self.options)])


@dataclass(frozen=True)
class Use:
    """What the compiler reports of a cubin. `stack` is in bytes a thread: 0 where nothing is spilled."""

    registers: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Start:
    """``kernel[grid](*args, **options)`` as a launcher wrote it, and what its compilation depends on."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]
    launch: Launch


@contextmanager
def _recording(found: list[Start]) -> Iterator[None]:
    original = JITFunction.run

    def record(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        found.append(Start(self, grid, args, options, _launch(self, grid, args, options)))

    JITFunction.run = record
    try:
        yield
    finally:
        JITFunction.run = original


def starts(function: Callable[..., Any], *args: Any, **options: Any) -> list[Start]:
    """The kernels that ``function(*args)`` would start, with their arguments; its tensors lie on the meta device."""
    found: list[Start] = []
    with _recording(found):
        function(*args, **options)
    return found


def launches(function: Callable[..., Any], *args: Any, **options: Any) -> list[Launch]:
    """The kernels that ``function(*args)`` would start; its tensors lie on the meta device."""
    return [start.launch for start in starts(function, *args, **options)]


def name_of(kernel: Any) -> str:
    """A kernel's name with its file's: ``conv3x3.conv_kernel``."""
    return f"{kernel.fn.__module__.removeprefix('mct_fast.kernels.')}.{kernel.fn.__name__}"


def _launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    """Specialise as Triton does: 1 is a constant, multiples of 16 and aligned pointers are known to be such."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        name: keywords[name] for name in kernel.arg_names if name in keywords
    }
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            if value.storage_offset() * value.itemsize % 16 == 0:
                aligned.append(i)
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(i)
    chosen = tuple((name, keywords[name]) for name in _OPTIONS if name in keywords)
    return Launch(
        name_of(kernel), grid, tuple(signature.items()), tuple(constants.items()), tuple(aligned), chosen
    )  # fmt: skip


@functools.cache
def _disassembler() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def use_of(compiled: Any) -> Use:
    """The resources of a kernel that Triton has compiled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [_disassembler(), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", report)}
    return Use(found["REG"], found["STACK"], compiled.metadata.shared)
