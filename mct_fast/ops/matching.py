"""Distances between flat parameters: the matching loss against a point between two checkpoints, and arc lengths by layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from mct_fast.ops.operator import operator
from mct_fast.ops.signature import activation, has_data, parameter
from mct_fast.run.errors import InputError

Flat = Annotated[Tensor, parameter("S P")]
Fractions = Annotated[Tensor, parameter("S L")]
Offsets = Annotated[Tensor, activation("L+1", dtype=torch.int64)]
PerStudent = Annotated[Tensor, activation("S")]
Lengths = Annotated[Tensor, activation("S L", dtype=torch.float64)]


def _offsets_rise(offsets: Tensor, **others: Any) -> None:
    """The numbers are looked at on the CPU alone: elsewhere that would wait for the device."""
    if offsets.device.type != "cpu" or not has_data(offsets):
        return
    flat = next(iter(others.values()))  # the first argument of either operator
    values, total = offsets.tolist(), flat.shape[1]
    if values[0] != 0 or values[-1] != total or any(a > b for a, b in pairwise(values)):
        raise InputError(f"offsets: {values} do not rise from 0 to the number of parameters; let them end in {total}")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    names = matching_loss.signature.names
    for name in (name for name, t in zip(names[1:], inputs[1:], strict=True) if t.requires_grad):
        raise RuntimeError(f"{name}: requires grad, but matching_loss is differentiable by theta alone; detach it")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _vjp(ctx: Any, gloss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("theta: matching_loss has a first derivative only; do not use create_graph with it")
    (grad,) = ctx.saved_tensors
    return gloss[:, None] * grad, None, None, None, None, None


@operator(rule=_offsets_rise, derivative=(_save, _vjp))
def matching_loss(
    theta: Flat, origin: Flat, end: Flat, frac: Fractions, offsets: Offsets, denom: PerStudent
) -> tuple[PerStudent, Flat]:
    """loss = |theta - target|^2 / denom and its gradient 2 (theta - target) / denom; target = (1 - f) origin + f end.

    The target is never stored; squares are summed in double. By a denominator that is not finite nothing can be divided: loss
    and gradient are NaN then, never 0.

    Args:
        theta: Parameters, (S, P).
        origin: Where the target's segment starts, (S, P).
        end: Where it ends, (S, P).
        frac: The fraction f of each layer, (S, L).
        offsets: Where the layers begin, (L + 1,) int64, from 0 to P. On a device the numbers are trusted.
        denom: What the squared distance is divided by, (S,).

    Returns:
        loss, (S,), and its gradient, (S, P). First derivative only, of the loss by theta.
    """
    denom = torch.where(denom.isfinite(), denom, torch.nan)
    f = frac.repeat_interleave(offsets.diff(), dim=1, output_size=theta.shape[1])
    difference = theta - ((1 - f) * origin + f * end)
    loss = difference.double().square().sum(dim=1) / denom
    return loss.to(theta.dtype), 2 * difference / denom[:, None]


@operator(rule=_offsets_rise)
def arc_length(previous: Flat, current: Flat, offsets: Offsets) -> Lengths:
    """2-norm of current - previous on each layer; squares are summed in double.

    Args:
        previous: Parameters, (S, P).
        current: Parameters, (S, P).
        offsets: Where the layers begin, (L + 1,) int64, from 0 to P. On a device the numbers are trusted.

    Returns:
        (S, L) float64. No derivative.
    """
    squares = (current - previous).double().square()
    sums = [part.sum(dim=1) for part in squares.split(offsets.diff().tolist(), dim=1)]
    return torch.stack(sums, dim=1).sqrt()
