"""What an operator's annotated signature says, and the checks that follow from it.

A tensor is annotated by `activation` or `parameter`: its dimensions by name, its layout, its dtype. The schema, the fake
kernel and every check of a shape, a dtype, a device or a layout derive from that one line. The compiled kernels are
given the same line (`Signature.compiled`): they test in C++ whether arguments fit, and ask `Signature.check` for the
words when they do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mct_fast.run.errors import InputError

FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Spec:
    """One tensor of a signature.

    Attributes:
        dims: The dimensions by name. A number stands for itself; ``H/pool`` is half of H, rounded down, where the
            operator's argument ``pool`` is true, else H; ``L+1`` is one more than L. No named dimension is empty.
        whole: Contiguous as a whole, or only within each student.
        dtype: None for that of the leading tensor, which is float32 or float64.
        host: May lie on the CPU where the others are on a device.
    """

    dims: str
    whole: bool = True
    dtype: torch.dtype | None = None
    host: bool = False


def activation(dims: str, dtype: torch.dtype | None = None, host: bool = False) -> Spec:
    """A contiguous tensor."""
    return Spec(dims, dtype=dtype, host=host)


def parameter(dims: str) -> Spec:
    """A tensor that is contiguous within each student; the stride between students is free."""
    return Spec(dims, whole=False)


@dataclass(frozen=True)
class Argument:
    """A tensor argument: where it stands in the signature, and what it has to be."""

    name: str
    index: int
    spec: Spec


Sizes = dict[str, int]
Rule = Callable[..., None]
"""Looks at what no single tensor shows; is called with all arguments by keyword, and raises `InputError`."""


class Signature:
    """An annotated function, read.

    Args:
        function: Its parameters are Tensors annotated with a `Spec`, numbers and flags.
        lead: The argument that sets dtype and device; the first one where not given.
        together: Optional arguments of which all are given, or none.
        mutated: Arguments that the function changes.
        rule: A check that shapes do not express.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        lead: str | None = None,
        together: Sequence[str] = (),
        mutated: Sequence[str] = (),
        rule: Rule | None = None,
    ) -> None:
        self.name = function.__name__
        self._plain = inspect.signature(function)
        self._hints = get_type_hints(function, include_extras=True)
        self._function, self._together, self._rule = function, together, rule
        self.names = tuple(self._plain.parameters)
        self.mutated = tuple(self.names.index(name) for name in mutated)
        tensors = [
            Argument(name, i, spec)
            for i, name in enumerate(self.names)
            if (spec := _spec(self._hints[name])) is not None
        ]
        first = next((a for a in tensors if a.name == lead), tensors[0])
        self.lead = first
        self.tensors = [first, *(a for a in tensors if a is not first)]
        self.outputs = _outputs(self._hints["return"])

    @cached_property
    def schema(self) -> str:
        """The schema in the dispatcher's language, with the operator's name."""
        parameters = [
            p.replace(annotation=_without_spec(self._hints[name])) for name, p in self._plain.parameters.items()
        ]
        returned = self._hints["return"]
        result = tuple[tuple(Tensor for _ in self.outputs)] if len(self.outputs) > 1 else _without_spec(returned)

        def prototype() -> None: ...

        prototype.__signature__ = inspect.Signature(parameters, return_annotation=result)
        mutated = {self.names[i] for i in self.mutated}
        return self.name + torch.library.infer_schema(prototype, mutates_args=mutated)

    @cached_property
    def compiled(self) -> list[str]:
        """The tensors in the order of the arguments, as ``csrc/signature.h`` reads them."""
        return [
            " ".join(
                [
                    "lead" if a is self.lead else "-",
                    "together" if a.name in self._together else "-",
                    "whole" if a.spec.whole else "student",
                    "-" if a.spec.dtype is None else str(a.spec.dtype).removeprefix("torch."),
                    a.spec.dims,
                ]
            )
            for a in sorted(self.tensors, key=lambda a: a.index)
        ]

    def filled(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """``args`` with the defaults at the end, which the dispatcher leaves out."""
        missing = self.names[len(args) :]
        return (*args, *(self._plain.parameters[name].default for name in missing))

    def check(self, *args: Any) -> Sizes:
        """Refuse what the operator does not take: `InputError` names the argument. Returns the sizes by name."""
        given = dict(zip(self.names, self.filled(args), strict=True))
        missing = [name for name in self._together if given[name] is None]
        if missing and len(missing) != len(self._together):
            partners = ", ".join(name for name in self._together if name not in missing)
            raise InputError(f"{missing[0]}: must be given together with {partners}; give all of them or none")
        sizes: Sizes = {}
        pools = bool(given.get("pool"))
        for argument in self.tensors:
            t = given[argument.name]
            if t is not None:
                self._placed(argument, t, given[self.lead.name])
                _sized(argument, t, sizes, pools)
                _laid_out(argument, t)
        if pools and min(sizes["H"], sizes["W"]) < 2:
            raise InputError(
                f"{self.lead.name}: planes of {sizes['H']}x{sizes['W']} are too small for a 2x2 pool; "
                "use fewer blocks or larger images"
            )
        if self._rule is not None:
            self._rule(**given)
        return sizes

    def fake(self, *args: Any) -> Any:
        """Check, then outputs of the right shape and dtype with nothing in them: the kernel for tracing."""
        sizes = self.check(*args)
        lead, pools = args[self.lead.index], bool(dict(zip(self.names, args, strict=False)).get("pool"))
        made = tuple(
            lead.new_empty([_size(dim, sizes, pools) for dim in spec.dims.split()], dtype=spec.dtype or lead.dtype)
            for spec in self.outputs
        )
        return made if len(made) > 1 else made[0] if made else None

    def _placed(self, argument: Argument, t: Tensor, lead: Tensor) -> None:
        name, spec = argument.name, argument.spec
        if argument is self.lead and t.dtype not in FLOATS:
            raise InputError(f"{name}: dtype {t.dtype} is not supported; use float32 or float64")
        wanted = spec.dtype or lead.dtype
        if t.dtype != wanted:
            because = "" if spec.dtype else f", as {self.lead.name} is"
            raise InputError(f"{name}: dtype {t.dtype}, expected {wanted}{because}; call .to({wanted})")
        if t.layout != torch.strided:
            raise InputError(f"{name}: layout {t.layout}, expected a dense tensor; call .to_dense()")
        if t.device != lead.device and not (spec.host and t.device.type == "cpu"):
            raise InputError(f"{name}: on {t.device}, but {self.lead.name} is on {lead.device}; move it there")


def _sized(argument: Argument, t: Tensor, sizes: Sizes, pools: bool) -> None:
    dims, shape = argument.spec.dims.split(), tuple(t.shape)
    what, remedy = f"{argument.name}: shape {shape}", f"pass ({', '.join(dims)})"
    if len(dims) != len(shape):
        raise InputError(f"{what}, expected {len(dims)} dimensions; {remedy}")
    for dim, size in zip(dims, shape, strict=True):
        if size < (2 if dim.endswith("+1") else 1):
            raise InputError(f"{what} has too few in {dim}; {remedy} with none of them empty")
        if dim.isidentifier():
            sizes.setdefault(dim, size)
        elif dim.endswith("+1"):
            sizes.setdefault(dim[:-2], size - 1)
        expected = _size(dim, sizes, pools)
        if size != expected:
            raise InputError(f"{what} has {dim} = {size}, expected {expected}; {remedy}")


def _laid_out(argument: Argument, t: Tensor) -> None:
    if argument.spec.whole:
        if not t.is_contiguous():
            raise InputError(f"{argument.name}: not contiguous; call .contiguous()")
    elif not t[0].is_contiguous():
        raise InputError(f"{argument.name}: not contiguous within each student; call .contiguous()")


def _size(dim: str, sizes: Sizes, pools: bool) -> int:
    if dim.isdigit():
        return int(dim)
    if dim.endswith("+1"):
        return sizes[dim[:-2]] + 1
    if dim.endswith("/pool"):
        return sizes[dim.removesuffix("/pool")] // (2 if pools else 1)
    return sizes[dim]


def _spec(hint: Any) -> Spec | None:
    """The `Spec` of an annotation, also of an optional one."""
    for part in (hint, *get_args(hint)):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, Spec):
                return extra
    return None


def _without_spec(hint: Any) -> Any:
    """The annotation as the dispatcher knows it."""
    if _spec(hint) is None:
        return None if hint is type(None) else hint
    return Tensor | None if type(None) in get_args(hint) else Tensor


def _outputs(hint: Any) -> list[Spec]:
    """The results of a function; a function without one returns None."""
    parts = get_args(hint) if get_origin(hint) is tuple else (hint,)
    return [spec for part in parts if (spec := _spec(part)) is not None]


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the stretches of memory of two tensors overlap. Without data (tracing) they do not."""
    if not (has_data(a) and has_data(b)):
        return False
    (start, end), (other, last) = _stretch(a), _stretch(b)
    return start < last and other < end


def has_data(t: Tensor) -> bool:
    """Whether there are numbers to look at: not where an operator is traced."""
    return type(t) in (Tensor, torch.nn.Parameter) and t.device.type != "meta"


def _stretch(t: Tensor) -> tuple[int, int]:
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + span * t.element_size()
