"""Schemas, fake kernels, differentiation, argument checks, and life without the compiled extension."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mct_fast import ops
from mct_fast.run.errors import InputError

DIFFERENTIABLE = {"conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad", "block_forward", "matching_loss", "dsa"}


def overload(op: str) -> Any:
    return getattr(torch.ops.mct_fast, op).default


def argument_names(op: str) -> list[str]:
    return [a.name for a in overload(op)._schema.arguments]


def test_the_dispatcher_knows_the_operators_and_no_others() -> None:
    registered = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mct_fast::")
    }
    assert {name for name in registered if not name.startswith("_")} == set(ops.OPERATORS)


def test_the_schema_is_the_signature(op: str) -> None:
    plain = inspect.signature(ops.OPERATORS[op].reference).parameters
    found = {a.name: (str(a.type), a.is_write) for a in overload(op)._schema.arguments}
    assert list(found) == list(plain)
    for name, parameter in plain.items():
        kind, writes = found[name]
        optional, plain_type = parameter.annotation.endswith("| None"), parameter.annotation.removesuffix(" | None")
        wanted = plain_type if plain_type in ("float", "bool") else "Tensor"
        assert kind == (f"Optional[{wanted}]" if optional else wanted)
        assert writes == (op.endswith("_") and name in ("params", "momentum_buffer"))


def test_every_operator_is_public_and_documented(op: str) -> None:
    assert op in ops.__all__
    assert re.search(r"\n    Args:\n.*\n(    Returns:\n|    No derivative)", getattr(ops, op).__doc__, re.DOTALL)
    for name in argument_names(op):
        assert f"        {name}: " in getattr(ops, op).__doc__, name


def test_an_operator_is_pickled_and_copied_as_a_function_is(op: str) -> None:
    operator = getattr(ops, op)
    assert pickle.loads(pickle.dumps(operator)) is copy.deepcopy(operator) is operator  # noqa: S301 (our own bytes)


def test_a_compiled_function_holds_the_operator_whole(op: str, make: Any, odd: Any) -> None:
    torch.compiler.reset()  # one function for all operators: its variants are limited
    compiled = torch.compile(lambda *args: getattr(ops, op)(*args), fullgraph=True, backend="aot_eager")
    args, same = make(odd).of(op), make(odd).of(op)
    found, wanted = compiled(*args), getattr(ops, op)(*same)
    if wanted is None:
        found, wanted = args[0], same[0]
    for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, wanted)), strict=True):
        assert torch.equal(a, b)


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
    "sparse": lambda t: t.to_sparse(),
    "half": lambda t: t.half() if t.is_floating_point() else t.to(torch.int16),
    "brain-float": lambda t: t.bfloat16() if t.is_floating_point() else t.to(torch.int8),
    "device": lambda t: t.to("meta"),
}


def refusal(function: Callable[..., Any], args: list[Any]) -> str:
    """The one line with which arguments are refused."""
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        registered, checked = (refusal(f, args) for f in (getattr(ops, op), ops.OPERATORS[op].signature.check))
        assert re.match(rf"({'|'.join(names)}): .*; ", checked)
        assert registered == checked


def test_a_missing_partner_is_named(make: Any, odd: Any) -> None:
    x, w, bias, x2, w2 = make(odd).of("conv3x3")
    with pytest.raises(ValueError, match="^w2: must be given together with x2; "):
        ops.conv3x3(x, w, bias, x2, None)
    with pytest.raises(ValueError, match="^x2: must be given together with w2; "):
        ops.conv3x3(x, w, bias, None, w2)
    z, gamma, _, eps, pool = make(odd).of("block_forward")
    with pytest.raises(ValueError, match="^beta: "):
        ops.block_forward(z, gamma, None, eps, pool)


@pytest.mark.parametrize("offsets", [[0], [1, 5, 9009], [0, 9, 3, 27009], [0, 9, 4, 36016], [0, -5, 36016]], ids=str)
def test_bad_offsets_are_refused(offsets: list[int], make: Any, odd: Any) -> None:
    previous, current, _ = make(odd).of("arc_length")
    for function in (ops.arc_length, ops.arc_length.signature.check):
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64])
def test_only_two_dtypes_are_served(op: str, dtype: torch.dtype, make: Any, odd: Any) -> None:
    args = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in make(odd).of(op)]
    assert re.match(r"\w+: dtype .* is not supported; use float32 or float64", refusal(getattr(ops, op), args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_is_refused(op: str, dtype: torch.dtype, make: Any, odd: Any) -> None:
    args = make(odd, dtype).of(op)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert re.match(r"torch\.autocast: .*; call it outside", refusal(getattr(ops, op), args))
        with torch.autocast("cpu", enabled=False):
            getattr(ops, op)(*args)


# ------------------------------------------------------------------------------------------------------- meta tensors


def test_a_meta_tensor_among_others_is_refused(op: str, make: Any, odd: Any) -> None:
    """The dispatcher takes such a call for one to be traced: nothing would fill the result."""
    for i, argument in enumerate(make(odd).of(op)):
        if isinstance(argument, Tensor):
            args = make(odd).of(op)
            args[i] = argument.to("meta")
            assert re.match(r"\w+: on (meta|cpu), but \w+ is on (cpu|meta); ", refusal(getattr(ops, op), args))


def test_meta_tensors_have_shapes_alone(op: str, make: Any, odd: Any) -> None:
    args = [a.to("meta") if isinstance(a, Tensor) else a for a in make(odd).of(op)]
    found, truth = getattr(ops, op)(*args), getattr(ops, op)(*make(odd).of(op))
    if truth is None:
        assert found is None
        return
    for a, b in zip(*((t,) if isinstance(t, Tensor) else t for t in (found, truth)), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        assert a.device.type == "meta"


# --------------------------------------------------------------------------------------------------- the in-place step


def test_the_step_moves_the_version_counters(make: Any, odd: Any) -> None:
    params, grad, buffer, lr, momentum, weight_decay = make(odd).of("sgd_step_")
    kept = params.clone().requires_grad_()
    square = kept.square().sum()
    before = params._version, buffer._version, grad._version, lr._version
    with torch.no_grad():
        ops.sgd_step_(params, grad, buffer, lr, momentum, weight_decay)
        ops.sgd_step_(kept, grad, None, lr, 0.0, 0.0)
    after = params._version, buffer._version, grad._version, lr._version
    assert [b > a for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


def test_inference_tensors_have_no_counter_to_move(make: Any, odd: Any) -> None:
    with torch.inference_mode():
        args = make(odd).of("sgd_step_")
        before = args[0].clone()
        ops.sgd_step_(*args)
    assert not torch.equal(args[0], before)
    ops.sgd_step_(*args)


def _aliases(flat: Tensor) -> dict[str, tuple[dict[str, Tensor], str]]:
    """Arguments that share memory, and which of them is named."""
    whole, shifted, rows = flat[:, :9], flat[:, 4:13], flat[0, :36].view(2, 18)[:, :9]
    return {
        "grad": ({"params": whole, "grad": whole}, "params: shares memory with grad"),
        "grad-shifted": ({"params": whole, "grad": shifted}, "params: shares memory with grad"),
        "buffer": ({"params": whole, "momentum_buffer": whole}, "params: shares memory with momentum_buffer"),
        "buffer-grad": ({"momentum_buffer": whole, "grad": whole}, "momentum_buffer: shares memory with grad"),
        "lr": ({"params": whole, "lr": flat[0, 1:3]}, "params: shares memory with lr"),
        "students": ({"params": flat[:1, :9].expand(2, 9)}, "params: the students overlap"),
        "buffer-students": ({"momentum_buffer": flat[:1, :9].expand(2, 9)}, "momentum_buffer: the students overlap"),
        "one-flat": ({"params": rows, "grad": rows}, "params: shares memory with grad"),
    }


@pytest.mark.parametrize("which", _aliases(torch.zeros(2, 40)))
@pytest.mark.parametrize("registered", [True, False], ids=["registered", "checked-reference"])
def test_the_step_refuses_arguments_that_share_memory(which: str, registered: bool) -> None:
    flat = torch.rand(2, 40)
    given, wanted = _aliases(flat)[which]
    args = {
        "params": torch.rand(2, 9),
        "grad": torch.rand(2, 9),
        "momentum_buffer": torch.rand(2, 9),
        "lr": torch.rand(2),
    }
    args |= given
    before = flat.clone()
    function = ops.sgd_step_ if registered else ops.sgd_step_.checked
    assert refusal(function, [*args.values(), 0.9, 0.0]).startswith(wanted)
    assert torch.equal(flat, before)


# ---------------------------------------------------------------------------------------- forward-mode differentiation


def test_a_tangent_is_refused_not_dropped(op: str, make: Any, odd: Any) -> None:
    for i, argument in enumerate(make(odd).of(op)):
        if not (isinstance(argument, Tensor) and argument.is_floating_point()):
            continue
        args = make(odd).of(op)
        for requires_grad in (False, True):
            with forward_ad.dual_level():
                leaf = argument.clone().requires_grad_(requires_grad)
                args[i] = forward_ad.make_dual(leaf, torch.ones_like(argument))
                with pytest.raises(
                    RuntimeError, match=f"^{argument_names(op)[i]}: has a tangent, but {op} has no forward"
                ):
                    getattr(ops, op)(*args)


def test_torch_func_jvp_is_refused(make: Any, odd: Any) -> None:
    x, w, *_ = make(odd).of("conv3x3")
    with pytest.raises(RuntimeError, match="^x: has a tangent"):
        torch.func.jvp(lambda x: ops.conv3x3(x, w), (x,), (x,))


# ------------------------------------------------------------------------------------------- without the extension

WITHOUT = """
import sys
sys.modules["mct_fast._cpu"] = None
import torch
from mct_fast import ops
assert not ops.extension_loaded() and not ops.kernels_available("cpu")
x, w = torch.randn(2, 1, 5, 4, 3), torch.randn(2, 6, 3, 3, 3)
assert torch.equal(ops.conv3x3(x, w), ops.conv3x3.reference(x, w))
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
