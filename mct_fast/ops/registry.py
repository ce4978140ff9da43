"""Puts the operators into PyTorch's dispatcher, once a process: schemas, kernels, fake kernels, differentiation.

With the compiled extension the schemas and the CPU kernels come from `csrc/ops.cpp`. Without it the same schemas are
defined here and `reference` serves every device. Where a device has no kernel of its own, `reference` serves it too;
`cuda` says which kernel a CUDA device has.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mct_fast.ops import checks, cuda, reference
from mct_fast.ops.schema import NAMESPACE, SCHEMAS, op_name

log = logging.getLogger("mct_fast")


def load_extension() -> bool:
    """Load `mct_fast._C`; False, with one line in the log, where it is not installed."""
    try:
        importlib.import_module("mct_fast._C")
    except ImportError as error:
        log.warning("mct_fast: compiled kernels not available (%s); using the slower PyTorch operators", error)
        return False
    return True


def register(loaded: bool) -> torch.library.Library:
    """Register everything that is not compiled. The returned library must be kept alive."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT" if loaded else "DEF")
    for schema in SCHEMAS:
        name = op_name(schema)
        if not loaded:
            library.define(schema)
        library.impl(name, _checked(getattr(checks, name), getattr(reference, name)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", getattr(checks, name), lib=library)
        if name in _FORMULAS:
            setup, backward = _FORMULAS[name]
            torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=library)
        else:
            library.impl(name, _refuse_grad(name), "Autograd", with_keyset=True)
    cuda.register(library)
    return library


def _checked(check: Callable[..., Any], implementation: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        check(*args)
        return implementation(*args)

    return kernel


def _refuse_grad(name: str) -> Callable[..., Any]:
    """Autograd kernel of an operator without a derivative: an input that requires grad is an error, not a zero."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise RuntimeError(
                f"mct_fast::{name} has no derivative: detach its inputs, or use mct_fast.ops.reference.{name}"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.mct_fast, name).default(*args)

    return kernel


# ----------------------------------------------------------------------------------------------------- derivatives
# The three convolution passes are each other's derivatives (any order). block_forward, matching_loss and dsa have a first
# derivative; the operators that compute it have none, so a second differentiation raises.


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _needed(ctx: Any) -> tuple[bool, ...]:
    """needs_input_grad for all arguments: the dispatcher leaves trailing defaults out."""
    return (*ctx.needs_input_grad, *[False] * (5 - len(ctx.needs_input_grad)))


def _dense(g: Tensor | None, like: Callable[[], Tensor]) -> Tensor:
    return like() if g is None else g.contiguous()


def _conv_backward(ctx: Any, gz: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, x2, w2 = ctx.saved_tensors
    ops, need = torch.ops.mct_fast, _needed(ctx)
    gz = gz.contiguous()
    gx = ops.conv3x3_input_grad(gz, w) if need[0] else None
    gw, gb = ops.conv3x3_weight_grad(gz, x) if need[1] or need[2] else (None, None)
    gx2 = ops.conv3x3_input_grad(gz, w2) if need[3] else None
    gw2 = ops.conv3x3_weight_grad(gz, x2)[0] if need[4] else None
    return gx, gw, None if bias is None else gb, gx2, gw2


def _conv_input_grad_backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, ...]:
    g, w, g2, w2 = ctx.saved_tensors
    ops, need = torch.ops.mct_fast, _needed(ctx)
    gg = gg.contiguous()
    return (
        ops.conv3x3(gg, w) if need[0] else None,
        ops.conv3x3_weight_grad(g, gg)[0] if need[1] else None,
        ops.conv3x3(gg, w2) if need[2] else None,
        ops.conv3x3_weight_grad(g2, gg)[0] if need[3] else None,
    )


def _conv_weight_grad_backward(ctx: Any, ggw: Tensor | None, ggb: Tensor | None) -> tuple[Tensor | None, ...]:
    g, x, g2, x2 = ctx.saved_tensors
    ops, need = torch.ops.mct_fast, _needed(ctx)
    ggw = _dense(ggw, lambda: g.new_zeros(g.shape[0], g.shape[4], x.shape[4], 3, 3))
    return (
        ops.conv3x3(x, ggw, None if ggb is None else ggb.contiguous()) if need[0] else None,
        ops.conv3x3_input_grad(g, ggw) if need[1] else None,
        ops.conv3x3(x2, ggw) if need[2] else None,
        ops.conv3x3_input_grad(g2, ggw) if need[3] else None,
    )


def _block_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, gamma, beta, _, ctx.pool = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(z, gamma, beta, *output[1:])


def _block_backward(ctx: Any, gp: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    z, gamma, beta, mean, rstd = ctx.saved_tensors
    gz, ggamma, gbeta = torch.ops.mct_fast.block_backward(gp.contiguous(), z, mean, rstd, gamma, beta, ctx.pool)
    return gz, None if gamma is None else ggamma, None if beta is None else gbeta, None, None


def _matching_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    if any(t.requires_grad for t in inputs[1:]):
        raise RuntimeError("mct_fast::matching_loss is differentiable by theta alone: detach the other inputs")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _matching_backward(ctx: Any, gloss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError("mct_fast::matching_loss has a first derivative only: do not use create_graph with it")
    (grad,) = ctx.saved_tensors
    return gloss[:, None] * grad, None, None, None, None, None


def _dsa_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _dsa_backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    kinds, params = ctx.saved_tensors
    return torch.ops.mct_fast.dsa_transpose(gy.contiguous(), kinds, params), None, None


_FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "conv3x3": (_save, _conv_backward),
    "conv3x3_input_grad": (_save, _conv_input_grad_backward),
    "conv3x3_weight_grad": (_save, _conv_weight_grad_backward),
    "block_forward": (_block_setup, _block_backward),
    "matching_loss": (_matching_setup, _matching_backward),
    "dsa": (_dsa_setup, _dsa_backward),
}
