"""Every Triton kernel under Triton's interpreter, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels import laws
from tests.ops.conftest import OPS


@pytest.mark.parametrize(("op", "shape"), laws.cases(), ids=map("-".join, laws.cases()))
def test_agrees_with_the_reference(op: str, shape: str, interpreter: Any) -> None:
    interpreter.run("agrees", op, shape)


@pytest.mark.parametrize(("op", "shape"), laws.fast_cases())
def test_one_product_where_tf32_is_allowed(op: str, shape: str, interpreter: Any) -> None:
    interpreter.run("fast_agrees", op, shape, "1")


@pytest.mark.parametrize("scale", ["1e-12", "1e12"])
@pytest.mark.parametrize("op", laws.CONVOLUTIONS)
def test_one_product_at_any_magnitude(op: str, scale: str, interpreter: Any) -> None:
    interpreter.run("fast_agrees", op, "no-norm-no-pool", scale)


@pytest.mark.parametrize("shape", ["odd-S2", "no-norm-no-pool"])
@pytest.mark.parametrize("op", laws.DIFFERENTIABLE)
def test_gradients_agree_with_the_reference(op: str, shape: str, interpreter: Any) -> None:
    interpreter.run("gradients_agree", op, shape)


@pytest.mark.parametrize("image", laws.IMAGES)
@pytest.mark.parametrize("kind", [str(kind) for kind in laws.TABLES])
def test_every_augmentation_agrees(kind: str, image: str, interpreter: Any) -> None:
    interpreter.run("augmentation_agrees", kind, image)


@pytest.mark.parametrize("name", ["convnet", "convnet-no-norm", "mlp"])
def test_student_agrees_with_double_backward(name: str, interpreter: Any) -> None:
    interpreter.run("student_agrees", name)


@pytest.mark.parametrize("norm", ["norm", "no-norm"])
def test_a_nan_is_not_hidden_by_relu(norm: str, interpreter: Any) -> None:
    interpreter.run("nan_is_not_hidden", norm)


@pytest.mark.parametrize("shape", ["odd-S2", "large"])
def test_accurate_where_the_mean_is_far_from_zero(shape: str, interpreter: Any) -> None:
    interpreter.run("accurate_far_from_zero", shape)


def test_matching_target_is_exact_at_both_ends(interpreter: Any) -> None:
    interpreter.run("target_is_exact_at_both_ends")


def test_cross_entropy_stays_finite_at_large_logits(interpreter: Any) -> None:
    interpreter.run("finite_at_large_logits")


@pytest.mark.parametrize("op", OPS)
def test_float64_is_served_too(op: str, interpreter: Any) -> None:
    interpreter.run("double_precision_is_the_references", op)
