"""The operators: what the engine computes with, each served by the fastest implementation that a device has.

Activations are NHWC with a leading student dimension, ``(S, B, H, W, C)``, and contiguous. Parameters carry the student
dimension first and may be views of a flat ``(S, P)`` buffer: any stride between students, contiguous within one. Dtypes
are float32 or float64, the same for all arguments. Outputs are fresh, and the same call returns the same bits, whatever
the number of threads.

Bad arguments raise an `InputError` that names the argument and the remedy. What an operator cannot differentiate, it
refuses: no gradient and no tangent is dropped. ``conv3x3.reference`` is `conv3x3` in plain PyTorch, and so for the others.

A family's file holds signatures, documentation, checks, references and derivatives; `signature` reads the first,
`operator` makes an operator of them, `dispatch` says which implementation serves which device. Importing this module
registers the operators, once a process.
"""

from __future__ import annotations

from typing import Any

from mct_fast.ops import dispatch as _dispatch
from mct_fast.ops.augmentation import dsa, dsa_transpose
from mct_fast.ops.block import block_backward, block_forward, block_tangent, block_tangent_backward
from mct_fast.ops.convolution import conv3x3, conv3x3_input_grad, conv3x3_weight_grad
from mct_fast.ops.dispatch import extension_loaded, kernels_available
from mct_fast.ops.first_block import (
    first_block,
    first_block_backward,
    first_block_tangent,
    first_block_tangent_backward,
)
from mct_fast.ops.linear import linear_bce, linear_bce_tangent, linear_ce, linear_ce_tangent
from mct_fast.ops.matching import arc_length, matching_loss
from mct_fast.ops.operator import Operator
from mct_fast.ops.sgd import sgd_step_

__all__ = [
    "OPERATORS",
    "arc_length",
    "block_backward",
    "block_forward",
    "block_tangent",
    "block_tangent_backward",
    "conv3x3",
    "conv3x3_input_grad",
    "conv3x3_weight_grad",
    "dsa",
    "dsa_transpose",
    "extension_loaded",
    "first_block",
    "first_block_backward",
    "first_block_tangent",
    "first_block_tangent_backward",
    "kernels_available",
    "linear_bce",
    "linear_bce_tangent",
    "linear_ce",
    "linear_ce_tangent",
    "matching_loss",
    "sgd_step_",
]

OPERATORS: dict[str, Operator[..., Any]] = {name: op for name, op in globals().items() if isinstance(op, Operator)}
"""Every operator by its name."""

_LIBRARY = _dispatch.register(OPERATORS.values())
