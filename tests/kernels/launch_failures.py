"""Launches that must fail before they reach a card, in the form of `tests.kernels.launch_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def taken_name_kernel(params, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(params + at, 0.0, mask=at < size)


@triton.jit
def fill_kernel(out, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, 0.0, mask=at < size)


@triton.jit
def untyped_kernel(out, size, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.dot(size, size))


def _start(kernel: Any, *grid: int) -> Callable[[], object]:
    return lambda: kernel[grid](torch.empty(64, device="meta"), 50, BLOCK=64, num_warps=4)


CASES = {
    "an argument named as a local of the binder": _start(taken_name_kernel, 1),
    "a grid that no card takes": _start(fill_kernel, 1, 70000),
    "a kernel that does not compile": _start(untyped_kernel, 1),
}
