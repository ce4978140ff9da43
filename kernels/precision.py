"""How the convolutions multiply float32 numbers on tensor cores."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["tf32", "tf32x3", "ieee"]
"""tf32: 10 bits of mantissa, one product. tf32x3: each factor as a sum of two tf32 numbers, three products, nearly float32.
ieee: float32 multiply-adds, no tensor cores."""


def float32_precision() -> Precision:
    """tf32 where the user allows it to PyTorch's own matrix products, else tf32x3.

    ``torch.backends.cuda.matmul.fp32_precision = "tf32"`` and ``torch.set_float32_matmul_precision("high")`` allow it.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
