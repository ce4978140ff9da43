"""The optimiser's step on flat parameters."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, parameter, shares_memory
from mct_fast.run.errors import InputError

Flat = Annotated[Tensor, parameter("S P")]
PerStudent = Annotated[Tensor, activation("S")]


def _apart(params: Tensor, grad: Tensor, momentum_buffer: Tensor | None, lr: Tensor, momentum: float, **_: Any) -> None:
    """What is written lies apart from what is read, and from itself."""
    if momentum_buffer is None and momentum:
        raise InputError("momentum_buffer: is None, but momentum is not 0; pass zeros like params")
    written = {"params": params, "momentum_buffer": momentum_buffer}
    every = {**written, "grad": grad, "lr": lr}
    for name, t in written.items():
        if t is None:
            continue
        if t.shape[0] > 1 and t.stride(0) < t.shape[1]:
            raise InputError(f"{name}: the students overlap in memory; call .clone()")
        for other, u in every.items():
            if u is not None and other != name and shares_memory(t, u):
                raise InputError(f"{name}: shares memory with {other}; call .clone() on one of them")


@operator(mutated=("params", "momentum_buffer"), rule=_apart)
def sgd_step_(
    params: Flat, grad: Flat, momentum_buffer: Flat | None, lr: PerStudent, momentum: float, weight_decay: float
) -> None:
    """One step of `torch.optim.SGD` in place: d = grad + weight_decay params; buf = momentum buf + d; params -= lr buf.

    No two arguments may share memory.

    Args:
        params: Parameters, (S, P); changed.
        grad: Their gradient, (S, P).
        momentum_buffer: (S, P), zeros at first; changed. None where ``momentum`` is 0: params -= lr d.
        lr: Learning rate of each student, (S,).
        momentum: From 0 to 1.
        weight_decay: Non-negative.

    No derivative.
    """
    step = grad + weight_decay * params if weight_decay else grad
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).add_(step)
        step = momentum_buffer
    params.sub_(lr[:, None] * step)
