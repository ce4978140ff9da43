"""The Triton kernels on a GPU: what the interpreter shows, and what only a device can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mct_fast import ops
from tests.kernels import laws
from tests.ops.conftest import OPS, Arguments, Dims

pytestmark = pytest.mark.gpu

MIDDLE = Dims(3, 4, 16, 16, 32, 128, 10, 700)
"""Blocks of the size that the reference ConvNet uses."""

FEW_LABELS = Dims(2, 4, 16, 16, 3, 32, 1, 70)
"""A first layer, and a single output."""


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """float32 products of PyTorch itself, and three of bf16 in the convolutions, whatever the session's setting."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    yield
    for setting, value in zip(settings, before, strict=True):
        setting.fp32_precision = value


@pytest.mark.parametrize(("op", "shape"), laws.cases(), ids=map("-".join, laws.cases()))
@pytest.mark.usefixtures("poisoned_memory")
def test_device_agrees_with_the_reference(op: str, shape: str) -> None:
    laws.agrees(op, shape, "cuda")


@pytest.mark.parametrize("shape", ["odd-S2", "no-norm-no-pool"])
@pytest.mark.parametrize("op", laws.DIFFERENTIABLE)
def test_gradients_agree_on_the_device(op: str, shape: str) -> None:
    laws.gradients_agree(op, shape, "cuda")


@pytest.mark.parametrize("image", laws.IMAGES)
@pytest.mark.parametrize("kind", [str(kind) for kind in laws.TABLES])
def test_every_augmentation_agrees_on_the_device(kind: str, image: str) -> None:
    laws.augmentation_agrees(kind, image, "cuda")


@pytest.mark.parametrize("name", ["convnet", "convnet-no-norm", "mlp"])
def test_student_on_the_device(name: str) -> None:
    laws.student_agrees(name, "cuda")


@pytest.mark.parametrize("norm", ["norm", "no-norm"])
def test_nan_passes_relu_on_the_device(norm: str) -> None:
    laws.nan_is_not_hidden(norm, "cuda")


def test_laws_of_single_operators_on_the_device() -> None:
    laws.accurate_far_from_zero("odd-S2", "cuda")
    laws.accurate_far_from_zero("large", "cuda")
    laws.target_is_exact_at_both_ends("cuda")
    laws.finite_at_large_logits("cuda")


@pytest.mark.parametrize("op", OPS)
def test_float64_on_the_device(op: str) -> None:
    laws.double_precision_is_the_references(op, "cuda")


def _arguments(op: str, dims: Dims) -> list[Any]:
    args = laws.place(Arguments(dims, torch.float32).of(op), "cuda")
    if op.startswith("dsa"):
        args[1] = args[1].cpu()
    return args


@pytest.mark.parametrize("op", OPS)
def test_same_bits_again(op: str) -> None:
    first = laws.outputs(getattr(ops, op), _arguments(op, MIDDLE))
    for _ in range(3):
        again = laws.outputs(getattr(ops, op), _arguments(op, MIDDLE))
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [MIDDLE, FEW_LABELS], ids=["middle", "few-labels"])
@pytest.mark.parametrize("op", OPS)
def test_students_have_the_bits_that_they_have_alone(op: str, dims: Dims) -> None:
    """But for the products around a last layer, which are cuBLAS's: it chooses by the number of students too."""
    together = laws.outputs(getattr(ops, op), _arguments(op, dims))
    for s in range(dims.S):
        alone = laws.outputs(getattr(ops, op), laws.alone(op, _arguments(op, dims), s))
        for a, b in zip(alone, together, strict=True):
            if op.startswith("linear"):  # sums of 700 float32 products, in another order
                torch.testing.assert_close(a[0], b[s], rtol=2e-5, atol=2e-5 * b[s].abs().max().item())
            else:
                assert torch.equal(a[0], b[s])


@pytest.mark.parametrize("scale", ["1", "1e-12", "1e12"])
@pytest.mark.parametrize(("op", "shape"), laws.fast_cases())
def test_one_product_where_tf32_is_allowed(op: str, shape: str, scale: str) -> None:
    laws.fast_agrees(op, shape, scale, "cuda")


def test_a_captured_graph_replays() -> None:
    """Every launcher can be captured: no synchronisation, no allocation outside the pool."""
    for op in OPS:
        args = _arguments(op, MIDDLE)
        if op.startswith("dsa"):
            args[1] = args[1].cuda()  # read by the kernel, not by the host
        if op == "sgd_step_":
            continue  # in place: a replay is another step
        wanted = laws.outputs(getattr(ops, op), args)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = laws.outputs(getattr(ops, op), args)
        graph.replay()
        torch.cuda.synchronize()
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a, b), op
