"""The optimiser's step in one pass. Counted bytes a parameter: 12, or 20 with a momentum buffer."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch


@triton.jit
def sgd_kernel(
    theta, grad, buffer, lr, size, theta_stride, grad_stride, buffer_stride, momentum, weight_decay,
    MOMENTUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one student."""
    student = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    p = tl.load(theta + student * theta_stride + at, mask=inside)
    step = tl.load(grad + student * grad_stride + at, mask=inside) + weight_decay * p
    if MOMENTUM:
        step += momentum * tl.load(buffer + student * buffer_stride + at, mask=inside)
        tl.store(buffer + student * buffer_stride + at, step, mask=inside)
    tl.store(theta + student * theta_stride + at, p - tl.load(lr + student) * step, mask=inside)


def sgd_step_(
    params: Tensor, grad: Tensor, momentum_buffer: Tensor | None, lr: Tensor, momentum: float, weight_decay: float
) -> None:
    """As `mct_fast.ops.sgd_step_`."""
    students, size = params.shape
    config = tuning.flat(size)
    buffer = params if momentum_buffer is None else momentum_buffer
    launch(
        sgd_kernel, (ceil_div(size, config.blocks["BLOCK"]), students), config, params, grad, buffer, lr, size,
        params.stride(0), grad.stride(0), buffer.stride(0), float(momentum), float(weight_decay),
        MOMENTUM=momentum_buffer is not None,
    )  # fmt: skip
