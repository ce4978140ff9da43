"""The registered operators on the CPU against the reference, in float64 and float32, for every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mct_fast import ops
from tests.ops.conftest import CANCELS

# Relative errors in the 2-norm. float32: the Winograd convolutions have about 1e-6, the rest far less.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}
INSTRUCTION_SETS = {"portable": 0, "avx2": 1, "avx512": 2}
compiled = pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    if not ops.extension_loaded():
        pytest.skip("the compiled extension is not installed")
    from mct_fast import _cpu  # pyright: ignore[reportAttributeAccessIssue]

    before = _cpu.instruction_set(-1)
    try:
        _cpu.instruction_set(INSTRUCTION_SETS[request.param])
    except ValueError:
        pytest.skip(f"no {request.param} on this machine")
    yield request.param
    _cpu.instruction_set(before)


def outputs(function: Any, args: list[Any]) -> tuple[Tensor, ...]:
    """Results as a tuple; of an in-place operator, the arguments it changed."""
    found = function(*args)
    if found is None:
        return args[0], *([args[2]] if args[2] is not None else [])
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_agrees_with_the_reference(op: str, dims: Any, dtype: torch.dtype, make: Any, instruction_set: str) -> None:
    found = outputs(getattr(ops, op), make(dims, dtype).of(op))
    # the oracle sees the numbers that float32 holds, not those it was rounded from
    args = [a.double() if isinstance(a, Tensor) and a.dtype == dtype else a for a in make(dims, dtype).of(op)]
    if op.startswith("dsa"):
        args[2] = args[2].float()
    truths = outputs(ops.OPERATORS[op].reference, args)
    for i, (value, truth) in enumerate(zip(found, truths, strict=True)):
        assert value.shape == truth.shape and value.dtype in (dtype, torch.float64), f"output {i}"
        error, scale = (value.double() - truth).norm(), truths[CANCELS.get((op, i), i)].norm()
        assert error <= TOLERANCE[dtype] * scale + 1e-30, f"output {i}: {error / scale:.2e}"


def test_accurate_where_the_mean_is_far_from_zero(make: Any, odd: Any) -> None:
    z, gamma, beta, eps, pool = make(odd, torch.float32).of("block_forward")
    z = z + 1000  # whose float32 neighbours are 6e-5 apart: the mean is no better, a one-pass variance is nonsense
    truth = ops.block_forward.reference(z.double(), gamma.double(), beta.double(), eps, pool)
    for value, wanted in zip(ops.block_forward(z, gamma, beta, eps, pool), truth, strict=True):
        assert (value - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_same_bits_again_and_with_other_threads(op: str, dtype: torch.dtype, make: Any, dims_of: Any) -> None:
    dims = dims_of(2, 3, 12, 12, 32, 48, 10, 700)
    threads = torch.get_num_threads()
    first = outputs(getattr(ops, op), make(dims, dtype).of(op))
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            again = outputs(getattr(ops, op), make(dims, dtype).of(op))
            for i, (a, b) in enumerate(zip(first, again, strict=True)):
                assert torch.equal(a, b), f"output {i} with {count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no-norm"])
def test_a_nan_is_not_hidden_by_relu(norm: bool) -> None:
    z = torch.ones(1, 1, 4, 4, 20)
    z[0, 0, 1, 2, 3] = torch.nan
    affine = torch.ones(1, 20) if norm else None
    assert ops.block_forward(z, affine, affine, 1e-5, True)[0][..., 3].isnan().any()


def test_matching_target_is_exact_at_both_ends(make: Any, odd: Any) -> None:
    _, origin, end, frac, offsets, denom = make(odd, torch.float32).of("matching_loss")
    for value, point in ((0.0, origin), (1.0, end)):
        loss, grad = ops.matching_loss(point, origin, end, torch.full_like(frac, value), offsets, denom)
        assert not loss.any()
        assert not grad.any()


def test_linear_ce_stays_finite_at_large_logits() -> None:
    h = torch.full((1, 2, 8), 300.0)
    w = torch.stack([torch.ones(8), -torch.ones(8), torch.zeros(8)])[None]
    loss, *grads = ops.linear_ce(h, w, torch.zeros(1, 3), torch.eye(3)[None, :2])
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(loss, torch.tensor([2400.0]))


def test_linear_bce_stays_exact_at_large_logits() -> None:
    h, w = torch.full((1, 1, 1), 300.0), torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]]])
    y, one = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]]), torch.ones(4)
    loss, gh, gw, gb = ops.linear_bce(h, w, torch.zeros(1, 4), y, one, one)
    assert loss.item() == 600.0  # right answers cost nothing, each wrong one its logit
    assert gb.tolist() == [[0.0, 0.0, 1.0, -1.0]]
    assert torch.isfinite(gh).all()
    assert torch.isfinite(gw).all()


def test_outputs_are_fresh(op: str, make: Any, odd: Any) -> None:
    args = make(odd, torch.float32).of(op)
    if op == "sgd_step_":
        return
    first = [t.clone() for t in outputs(getattr(ops, op), args)]
    kept = outputs(getattr(ops, op), args)
    for t in outputs(getattr(ops, op), args):
        t.zero_()
    for a, b in zip(first, kept, strict=True):
        assert torch.equal(a, b)
