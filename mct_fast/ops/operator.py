"""An operator: one annotated Python function is its signature, its documentation and its plain PyTorch form.

`operator` makes a function into an `Operator`. Calling it goes through PyTorch's dispatcher, which picks the kernel by
device (`mct_fast.ops.dispatch`); ``.reference`` is the function itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mct_fast.ops.signature import Rule, Signature
from mct_fast.run.errors import InputError

NAMESPACE = "mct_fast"
UNFIT = "the compiled kernel does not take these arguments"
"""How a compiled kernel refuses (``csrc/signature.h``): which argument is wrong, and how, is said here."""

P = ParamSpec("P")
R = TypeVar("R")
Setup = Callable[[Any, tuple[Any, ...], Any], None]
Backward = Callable[..., Any]


class Operator(Generic[P, R]):
    """A function that the dispatcher serves.

    Attributes:
        reference: The operator in plain PyTorch, for any floating dtype; checks nothing. The oracle of the tests, and what
            serves a device that has no kernel.
        signature: Its arguments, and their checks.
        name: Its name in the namespace ``torch.ops.mct_fast``.
        overload: What the dispatcher knows by that name, once it is defined there.
    """

    overload: Any

    def __init__(self, function: Callable[P, R], signature: Signature, derivative: Derivative | None) -> None:
        functools.update_wrapper(self, function)
        self.reference, self.signature, self._derivative = function, signature, derivative
        self.name = signature.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return self.overload(*args, **kwargs)
        try:
            return self.overload(*args, **kwargs)
        except RuntimeError as error:
            if UNFIT not in str(error):
                raise
            self.signature.check(*inspect.signature(self.reference).bind(*args, **kwargs).args)
            raise  # a compiled kernel asks for more than the signature does

    def __reduce__(self) -> str:
        return self.name  # as a function: by where it is found

    def __repr__(self) -> str:
        return f"<operator {NAMESPACE}::{self.name}>"

    def checked(self, *args: Any) -> Any:
        """`reference` with its arguments checked."""
        self.signature.check(*args)
        return self.reference(*args)  # pyright: ignore[reportCallIssue]

    def autograd(self) -> Callable[..., Any]:
        """The kernel of the dispatcher's key Autograd: differentiates, or says that it cannot."""
        differentiable = self._derivative and self._derivative.function(self)
        mutated = self.signature.mutated

        def kernel(keyset: Any, *args: Any) -> Any:
            # The level is -1 outside of forward-mode differentiation: one comparison for the calls that matter.
            if forward_ad._current_level >= 0 and any(_has_tangent(a) for a in args):
                self._refuse(args, _has_tangent, "has a tangent", "forward-mode derivative; use reverse mode")
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
                if differentiable is None:
                    self._refuse(args, _requires_grad, "requires grad", "derivative; detach it")
                return differentiable.apply(*self.signature.filled(args), keyset)
            for i in mutated:
                if args[i] is not None and not args[i].is_inference():
                    torch.autograd.graph.increment_version(args[i])
            return _below_autograd(self, keyset, args)

        return kernel

    def autocast(self, *_: Any) -> NoReturn:
        """The kernel of the dispatcher's keys Autocast: their casts would change what an operator is given."""
        raise InputError(
            f"torch.autocast: {NAMESPACE}::{self.name} computes in the dtype that it is given; "
            "call it outside, or within torch.autocast(..., enabled=False)"
        )

    def _refuse(self, args: Sequence[Any], which: Callable[[Any], bool], has: str, lacks: str) -> NoReturn:
        name = next(name for name, a in zip(self.signature.names, args, strict=False) if which(a))
        raise RuntimeError(f"{name}: {has}, but {self.name} has no {lacks}, or call mct_fast.ops.{self.name}.reference")


class Derivative:
    """The vector-Jacobian product of an operator.

    Args:
        setup: Called with the context, the arguments and the outputs; saves for `backward` what it needs.
        backward: Called with the context and the cotangents; returns one for each argument.
    """

    def __init__(self, setup: Setup, backward: Backward) -> None:
        self._setup, self._backward = setup, backward

    def function(self, op: Operator[..., Any]) -> type[torch.autograd.Function]:
        """The operator as a function of autograd; its last argument is the dispatcher's key set."""
        setup, formula = self._setup, self._backward

        def forward(ctx: Any, *args: Any) -> Any:
            output = _below_autograd(op, args[-1], args[:-1])
            setup(ctx, args[:-1], output)
            return output

        def backward(ctx: Any, *cotangents: Any) -> Any:
            return (*formula(ctx, *cotangents), None)

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(f"{op.name}_derivative", (torch.autograd.Function,), methods)


def operator(
    *,
    lead: str | None = None,
    together: Sequence[str] = (),
    mutated: Sequence[str] = (),
    rule: Rule | None = None,
    derivative: tuple[Setup, Backward] | None = None,
) -> Callable[[Callable[P, R]], Operator[P, R]]:
    """Make an annotated function into an operator; the arguments are those of `Signature` and `Derivative`."""

    def make(function: Callable[P, R]) -> Operator[P, R]:
        signature = Signature(function, lead, together, mutated, rule)
        return Operator(function, signature, None if derivative is None else Derivative(*derivative))

    return make


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A `Setup` that keeps the arguments, all of them tensors."""
    ctx.save_for_backward(*inputs)


def _below_autograd(op: Operator[..., Any], keyset: Any, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _has_tangent(a: Any) -> bool:
    return isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None


def _requires_grad(a: Any) -> bool:
    return isinstance(a, Tensor) and a.requires_grad
