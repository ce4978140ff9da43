"""The one way a kernel is started."""

from __future__ import annotations

from typing import Any

from mct_fast.kernels.tuning import Config


def launch(kernel: Any, grid: tuple[int, ...], config: Config, *args: Any, **constants: Any) -> None:
    """Start a Triton kernel on the current device and stream: `args` in order, then its compile-time constants.

    `constants` and the block sizes of `config` are the kernel's ``tl.constexpr`` parameters by name.
    """
    kernel[grid](*args, **constants, **config.blocks, num_warps=config.warps, num_stages=config.stages)


def ceil_div(a: int, b: int) -> int:
    """The number of blocks of size b that cover a."""
    return -(-a // b)
