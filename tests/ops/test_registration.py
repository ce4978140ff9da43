"""Schemas, fake kernels, differentiation, argument checks, and life without the compiled extension."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.ops import checks, schema

DIFFERENTIABLE = {"conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad", "block_forward", "matching_loss", "dsa"}


def overload(op: str) -> Any:
    return getattr(torch.ops.mct_fast, op).default


def argument_names(op: str) -> list[str]:
    return [a.name for a in overload(op)._schema.arguments]


def test_python_and_compiled_schemas_agree() -> None:
    for text in schema.SCHEMAS:
        declared = torch._C.parse_schema(f"{schema.NAMESPACE}::{text}")
        assert overload(schema.op_name(text))._schema == declared
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mct_fast::")
    }
    public = {name for name in registered if not name.startswith("_")}
    assert public == {schema.op_name(text) for text in schema.SCHEMAS}


def test_every_operator_has_a_documented_wrapper(op: str) -> None:
    assert op in ops.__all__
    assert getattr(ops, op).__doc__


def test_opcheck(op: str, dims: Any, make: Any) -> None:
    torch.library.opcheck(overload(op), tuple(make(dims).of(op)))


def test_opcheck_with_gradients(make: Any, odd: Any) -> None:
    for op in sorted(DIFFERENTIABLE - {"matching_loss", "dsa"}):
        args = [
            a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in make(odd).of(op)
        ]
        torch.library.opcheck(overload(op), tuple(args))
    for op in ("matching_loss", "dsa"):
        lead, *rest = make(odd).of(op)
        torch.library.opcheck(overload(op), (lead.clone().requires_grad_(), *rest))


@pytest.mark.parametrize("name", ["conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad"])
def test_convolutions_differentiate_twice(name: str, make: Any, dims_of: Any) -> None:
    args = [a.clone().requires_grad_() for a in make(dims_of(1, 1, 3, 2, 2, 2)).of(name)]
    assert torch.autograd.gradcheck(overload(name), args)
    assert torch.autograd.gradgradcheck(overload(name), args)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_block_forward_differentiates_once(norm: bool, make: Any, dims_of: Any) -> None:
    z, gamma, beta, eps, pool = make(dims_of(1, 2, 3, 4, 2, 3, norm=norm)).of("block_forward")
    leaves = [t.clone().requires_grad_() for t in (z, gamma, beta) if t is not None]
    rest = (eps, pool) if norm else (None, None, eps, pool)
    assert torch.autograd.gradcheck(lambda *a: ops.block_forward(*a, *rest)[0], leaves)
    with pytest.raises(RuntimeError, match="block_backward has no derivative"):
        torch.autograd.grad(ops.block_forward(*leaves, *rest)[0].sum(), leaves[0], create_graph=True)


def test_matching_loss_differentiates_once(make: Any, odd: Any) -> None:
    theta, *rest = make(odd).of("matching_loss")
    theta = theta.clone().requires_grad_()
    loss, grad = ops.matching_loss(theta, *rest)
    (found,) = torch.autograd.grad(loss.sum(), theta)
    assert torch.equal(found, grad)
    assert not grad.requires_grad
    with pytest.raises(RuntimeError, match="first derivative only"):
        torch.autograd.grad(ops.matching_loss(theta, *rest)[0].sum(), theta, create_graph=True)
    with pytest.raises(RuntimeError, match="by theta alone"):
        ops.matching_loss(theta, rest[0].clone().requires_grad_(), *rest[1:])


def test_dsa_differentiates_once(make: Any, odd: Any) -> None:
    x, kinds, params = make(odd).of("dsa")
    x = x.clone().requires_grad_()
    g = make(odd, seed=5).of("dsa")[0]
    (found,) = torch.autograd.grad(ops.dsa(x, kinds, params), x, g)
    assert torch.equal(found, ops.dsa_transpose(g, kinds, params))
    with pytest.raises(RuntimeError, match="dsa_transpose has no derivative"):
        torch.autograd.grad(ops.dsa(x, kinds, params), x, g.clone().requires_grad_(), create_graph=True)


def test_an_operator_without_derivative_refuses_gradients(op: str, make: Any, odd: Any) -> None:
    if op in DIFFERENTIABLE:
        pytest.skip("has a derivative")
    args = make(odd).of(op)
    args[1] = args[1].clone().requires_grad_() if args[1].is_floating_point() else args[1]
    if not args[1].requires_grad:
        args[0] = args[0].clone().requires_grad_()
    with pytest.raises(RuntimeError, match=f"{op} has no derivative"):
        getattr(ops, op)(*args)
    with torch.no_grad():
        getattr(ops, op)(*args)


# ------------------------------------------------------------------------------------------------------ bad arguments


def _strided(t: Tensor) -> Tensor:
    """The same numbers with gaps between the elements."""
    return torch.stack([t, t], dim=-1)[..., 0]


DAMAGE = {
    "dtype": lambda t: t.to(torch.float16 if t.is_floating_point() else torch.int32),
    "other-float": lambda t: t.to(torch.float32) if t.dtype == torch.float64 else t.to(torch.float64),
    "dimension-more": lambda t: t[None],
    "dimension-less": lambda t: t[0],
    "students": lambda t: torch.cat([t, t]),
    "empty": lambda t: t[:0],
    "last-size": lambda t: torch.cat([t, t], dim=-1).contiguous(),
    "stride": _strided,
    "device": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_argument_is_named(op: str, damage: str, make: Any, odd: Any) -> None:
    names = argument_names(op)
    good = make(odd).of(op)
    for i, argument in enumerate(good):
        if not isinstance(argument, Tensor):
            continue
        if i == 0 and op.startswith("dsa") and damage in ("other-float", "last-size"):
            continue  # nothing else depends on the dtype and the width of the images
        args = make(odd).of(op)
        args[i] = DAMAGE[damage](args[i])
        for function in (getattr(ops, op), getattr(checks, op)):
            if damage == "device" and (function is getattr(ops, op) or names[i] == "kinds"):
                continue  # the dispatcher answers before the operator does
            with pytest.raises(ValueError, match=rf"^({'|'.join(names)}): "):
                function(*args)


def test_a_missing_partner_is_named(make: Any, odd: Any) -> None:
    x, w, bias, x2, w2 = make(odd).of("conv3x3")
    with pytest.raises(ValueError, match="^w2: must be given together with x2"):
        ops.conv3x3(x, w, bias, x2, None)
    with pytest.raises(ValueError, match="^x2: must be given together with w2"):
        ops.conv3x3(x, w, bias, None, w2)
    z, gamma, _, eps, pool = make(odd).of("block_forward")
    with pytest.raises(ValueError, match="^beta: "):
        ops.block_forward(z, gamma, None, eps, pool)


@pytest.mark.parametrize("offsets", [[0], [1, 5, 9009], [0, 9, 3, 27009], [0, 9, 4, 36016], [0, -5, 36016]], ids=str)
def test_bad_offsets_are_refused(offsets: list[int], make: Any, odd: Any) -> None:
    previous, current, _ = make(odd).of("arc_length")
    for function in (ops.arc_length, checks.arc_length):
        with pytest.raises(ValueError, match="^offsets: "):
            function(previous, current, torch.tensor(offsets))


def test_too_small_planes_and_unknown_kinds_are_refused(make: Any, odd: Any) -> None:
    with pytest.raises(ValueError, match="^z: planes of 1x3 are too small"):
        ops.block_forward(torch.zeros(1, 1, 1, 3, 2), None, None, 1e-5, True)
    x, kinds, params = make(odd).of("dsa")
    with pytest.raises(ValueError, match="^kinds: "):
        ops.dsa(x, kinds + 5, params)
    params, grad, _, lr, _, _ = make(odd).of("sgd_step_")
    with pytest.raises(ValueError, match="^momentum_buffer: "):
        ops.sgd_step_(params, grad, None, lr, 0.9, 0.0)


# ------------------------------------------------------------------------------------------- without the extension

WITHOUT = """
import sys
sys.modules["mct_fast._C"] = None
import torch
from mct_fast import ops
from mct_fast.ops import reference
assert not ops.extension_loaded()
x, w = torch.randn(2, 1, 5, 4, 3), torch.randn(2, 6, 3, 3, 3)
assert torch.equal(ops.conv3x3(x, w), reference.conv3x3(x, w))
x.requires_grad_()
ops.conv3x3(x, w).sum().backward()
p, mean, rstd = ops.block_forward(x, None, None, 1e-5, True)
p.sum().backward()
for bad in (lambda: ops.conv3x3(x, w[:1]), lambda: ops.conv3x3(x.double(), w)):
    try:
        bad()
    except ValueError as error:
        assert str(error).startswith("w: "), error
    else:
        raise AssertionError("not refused")
try:
    ops.linear_ce_tangent(*[x] * 7)
except RuntimeError as error:
    assert "no derivative" in str(error)
"""


def test_without_the_extension_the_operators_still_work() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled kernels not available") == 1, done.stderr
