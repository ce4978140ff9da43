"""The interpreter's process: reads a check a line, [law, *arguments] as JSON, and answers with what failed.

The operators run on the Triton kernels here: the compiled extension is hidden and they are registered for the CPU. Memory
that an operator allocates is filled with NaN and lies between guard bands of NaN.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.modules["mct_fast._cpu"] = None

import numpy as np
import torch
from torch import Tensor
from triton import language as tl
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from mct_fast import ops
from mct_fast.ops.dispatch import triton_kernel
from mct_fast.ops.operator import NAMESPACE, Operator
from tests.kernels import laws, plane_laws
from tests.kernels.recording import name_of

BAND = 4096


def mend_bfloat16() -> None:
    """The interpreter cuts bfloat16 off and multiplies its bits as integers; here it rounds to even and multiplies as a card."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def wide(t: TensorHandle) -> TensorHandle:
        bits = torch.from_numpy(np.ascontiguousarray(t.data).view(np.int16))
        return TensorHandle(bits.view(torch.bfloat16).float().numpy(), tl.float32)

    def cast_impl(self: Any, source: TensorHandle, kind: Any) -> TensorHandle:
        if source.dtype.scalar == tl.bfloat16 and kind.scalar == tl.float32:
            return wide(source)
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
            return TensorHandle(rounded.numpy().view(np.uint16), tl.bfloat16)
        return cast(self, source, kind)

    def create_dot(self: Any, a: TensorHandle, b: TensorHandle, *others: Any) -> TensorHandle:
        if a.dtype.scalar == tl.bfloat16:
            a, b = wide(a), wide(b)
        return dot(self, a, b, *others)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot


def _poison(dtype: torch.dtype) -> float | int:
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


@contextmanager
def guarded_memory() -> Iterator[None]:
    """Allocations of torch.empty, empty_like and new_empty: NaN within, and bands of NaN around that must stay so."""
    bands: list[Tensor] = []

    def allocate(shape: Any, dtype: torch.dtype) -> Tensor:
        shape = torch.Size(shape)
        flat = torch.full((shape.numel() + 2 * BAND,), _poison(dtype), dtype=dtype)
        bands.extend((flat[:BAND], flat[-BAND:]))
        return flat[BAND : BAND + shape.numel()].view(shape)

    def empty(*shape: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return allocate(shape if not shape or isinstance(shape[0], int) else shape[0], dtype or torch.float32)

    def empty_like(t: Tensor, **options: Any) -> Tensor:
        return allocate(t.shape, t.dtype)

    def new_empty(t: Tensor, *shape: Any, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        if others:  # the interpreter's own
            return before[1](t, *shape, dtype=dtype, **others)
        return allocate(shape[0] if not isinstance(shape[0], int) else shape, dtype or t.dtype)

    before = torch.empty_like, Tensor.new_empty, torch.empty
    torch.empty_like, Tensor.new_empty, torch.empty = empty_like, new_empty, empty
    try:
        yield
    finally:
        torch.empty_like, Tensor.new_empty, torch.empty = before
    whole = (b.isnan() if b.is_floating_point() else b == _poison(b.dtype) for b in bands)
    assert all(w.all() for w in whole), "written outside of an output"


def guarded(op: Operator[..., Any]) -> Any:
    kernel = triton_kernel(op)

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        with guarded_memory():
            return kernel(*args)

    return call


def main() -> None:
    mend_bfloat16()
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    launched: set[str] = set()
    run = InterpretedFunction.run

    def counting(self: Any, *args: Any, **options: Any) -> None:
        launched.add(name_of(self))
        run(self, *args, **options)

    InterpretedFunction.run = counting
    assert not ops.extension_loaded()
    library = torch.library.Library(NAMESPACE, "IMPL")
    for name, op in ops.OPERATORS.items():
        library.impl(name, guarded(op), "CPU")
    for line in sys.stdin:
        name, *args = json.loads(line)
        launched.clear()
        error = None
        try:
            if hasattr(laws, name):
                getattr(laws, name)(*args, device="cpu")
            else:
                with guarded_memory():
                    getattr(plane_laws, name)(*args, device="cpu")
        except Exception:  # whatever it was, it is the test's failure: reported to the process that asked
            error = traceback.format_exc()
        print(json.dumps({"error": error, "kernels": sorted(launched)}), flush=True)


if __name__ == "__main__":
    main()
