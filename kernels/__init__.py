"""Triton kernels of the operators for NVIDIA GPUs, one file a family; installed as ``mct_fast.kernels``.

`launcher` finds the launcher of an operator: a Python function of the operator's signature (`mct_fast.ops`), float32 only,
that trusts its arguments (`mct_fast.ops.dispatch` has them checked). Importing this module does not import Triton.

Sums over images, pixels and parameters take two stages: partial sums of a program, then their sum in a fixed order and in
double (`reduce`). No kernel uses atomics, and no block size depends on what else runs: the same call returns the same bits.
No launcher reads device memory or waits for the device, so all of them can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

MODULES: dict[str, str] = {
    "conv3x3": "conv3x3",
    "conv3x3_input_grad": "conv3x3",
    "conv3x3_weight_grad": "conv3x3",
    "block_forward": "blocks",
    "block_backward": "blocks",
    "block_tangent": "blocks",
    "block_tangent_backward": "blocks",
    "first_block": "first_block",
    "first_block_backward": "first_block",
    "first_block_tangent": "first_block",
    "first_block_tangent_backward": "first_block",
    "linear_ce": "linear",
    "linear_ce_tangent": "linear",
    "linear_bce": "linear",
    "linear_bce_tangent": "linear",
    "matching_loss": "matching",
    "arc_length": "matching",
    "sgd_step_": "sgd",
    "dsa": "dsa",
    "dsa_transpose": "dsa",
}
"""The file that holds each operator's launcher."""


@functools.cache
def launcher(op: str) -> Callable[..., Any]:
    """The launcher of operator `op`; imports Triton. ImportError where it is not installed."""
    return getattr(importlib.import_module(f"{__name__}.{MODULES[op]}"), op)
