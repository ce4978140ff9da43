"""How the convolutions multiply float32 numbers on tensor cores: the one place that decides."""

from __future__ import annotations

from typing import Any, Literal

import torch

Precision = Literal["fast", "fine"]
"""fast: one product of fp16 numbers, each tensor of a student scaled by a power of two (relative error 3e-4; tf32 has 8e-4).
fine: each factor as a sum of two bf16 numbers, three products (6e-6). Sums are float32's in both."""


def conv_precision() -> Precision:
    """PyTorch's own switch for convolutions: ``torch.backends.cudnn.conv.fp32_precision``, "tf32" unless it is changed.

    "tf32" allows fast; "ieee" and all others ask for fine.
    """
    cudnn: Any = torch.backends.cudnn  # its stubs lack `conv`
    return "fast" if cudnn.conv.fp32_precision == "tf32" else "fine"
