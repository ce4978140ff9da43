"""What the kernels must satisfy, on any device: used under the interpreter and on a GPU.

Truth is the operators' ``reference`` in float64 on the CPU, given the numbers that float32 holds.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.models import MLP, ConvNet, FunctionalModel
from mct_fast.students import FusedStudent, GenericStudent
from mct_fast.tasks import Classification
from tests.ops.conftest import CANCELS, OPS, Arguments, Dims

TOLERANCE = 3e-6
"""Relative error in the 2-norm."""

CONVOLUTIONS = ("conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad")

FINE, FAST = 1e-5, 5e-4
"""Of the convolutions with three bf16 products (factors of 16 bits), and with one fp16 product (11 bits); an H100 has 6e-6
and 3e-4."""

DIFFERENTIABLE = ("conv3x3", "conv3x3_input_grad", "conv3x3_weight_grad", "block_forward", "matching_loss", "dsa")

# S, B, H, W, Ci, Co, K, F
SHAPES = {
    "smallest": Dims(1, 1, 3, 3, 1, 1, 2, 1),
    "first-layer": Dims(2, 2, 8, 8, 3, 16, 10, 20),
    "odd-S2": Dims(2, 3, 5, 7, 3, 5, 4, 21),
    "no-pair-S3": Dims(3, 1, 7, 5, 5, 20, 3, 33, pair=False),
    "no-pool": Dims(1, 2, 8, 7, 16, 3, 7, 70, pool=False),
    "no-norm": Dims(1, 4, 7, 8, 16, 20, 5, 30, norm=False),
    "no-norm-no-pool": Dims(2, 2, 1, 3, 20, 16, 9, 65, norm=False, pool=False, pair=False),
    "several-splits": Dims(1, 2, 12, 12, 16, 5, 2, 3),
    "many-images": Dims(1, 34, 2, 2, 1, 5, 2, 3),
}
LARGE = {
    "large": Dims(1, 1, 66, 34, 1, 9),
    "large-no-norm": Dims(1, 1, 66, 35, 1, 3, norm=False),
    "large-no-pool": Dims(1, 1, 33, 70, 1, 3, pool=False),
}
"""Planes that no program holds whole."""

MANY_CLASSES = {"many-classes": Dims(2, 5, K=700, F=8)}
"""A cross-entropy that several programs share."""


_FEW = ("smallest", "odd-S2", "no-norm")
_PLANES = (*_FEW, "no-pair-S3", "no-pool", "no-norm-no-pool")
_CONVOLUTIONS = (*_FEW, "no-pair-S3", "first-layer", "no-norm-no-pool")
CONCERNED = {
    "conv3x3": (*_CONVOLUTIONS, "no-pool"),
    "conv3x3_input_grad": _CONVOLUTIONS,
    "conv3x3_weight_grad": (*_CONVOLUTIONS, "several-splits"),
    "block_forward": (*_PLANES, *LARGE),
    "block_backward": (*_PLANES, *LARGE, "many-images"),
    "block_tangent": (*_PLANES, *LARGE),
    "block_tangent_backward": (*_PLANES, *LARGE),
    "first_block": _PLANES,
    "first_block_backward": _PLANES,
    "first_block_tangent": _PLANES,
    "first_block_tangent_backward": _PLANES,
    "linear_ce": (*_FEW, "first-layer", *MANY_CLASSES),
    "linear_ce_tangent": (*_FEW, "first-layer", *MANY_CLASSES),
    "linear_bce": (*_FEW, "first-layer", *MANY_CLASSES),
    "linear_bce_tangent": (*_FEW, "first-layer", *MANY_CLASSES),
}
"""The shapes that differ to an operator; `_FEW` for the others."""


def cases() -> list[tuple[str, str]]:
    """Every operator with the shapes that concern it."""
    return [(op, shape) for op in OPS for shape in CONCERNED.get(op, _FEW)]


def fast_cases() -> list[tuple[str, str]]:
    """The convolutions on the shapes that are not left to the kernels of few channels."""
    return [
        (op, shape)
        for op in CONVOLUTIONS
        for shape in CONCERNED[op]
        if dims(shape).Ci >= (4 if op == "conv3x3_input_grad" else 16)
    ]


def dims(shape: str) -> Dims:
    return {**SHAPES, **LARGE, **MANY_CLASSES}[shape]


def arguments(op: str, shape: str, device: str) -> list[Any]:
    return place(Arguments(dims(shape), torch.float32).of(op), device)


def place(args: list[Any], device: str) -> list[Any]:
    """Copies on the device; views of a wider buffer stay such views."""
    return [_place(a, device) if isinstance(a, Tensor) else a for a in args]


def _place(t: Tensor, device: str) -> Tensor:
    base = t if t._base is None else t._base
    return base.to(device, copy=True).as_strided(t.shape, t.stride(), t.storage_offset())


SHARED = ("offsets", "pos", "neg")
"""Arguments that all students share."""


def alone(op: str, args: list[Any], student: int) -> list[Any]:
    """The arguments of one student."""
    names = [argument.name for argument in getattr(torch.ops.mct_fast, op).default._schema.arguments]
    return [
        a[student : student + 1] if isinstance(a, Tensor) and name not in SHARED else a
        for name, a in zip(names, args, strict=False)
    ]


def wide(op: str, args: list[Any]) -> list[Any]:
    """The same numbers in float64 on the CPU, but for the float32 table of an augmentation."""
    found = [a.cpu() if isinstance(a, Tensor) else a for a in args]
    return [
        a.double()
        if isinstance(a, Tensor) and a.dtype == torch.float32 and not (op.startswith("dsa") and i == 2)
        else a
        for i, a in enumerate(found)
    ]


def outputs(function: Any, args: list[Any]) -> list[Tensor]:
    """Results as a list; of an in-place operator, the arguments it changed."""
    found = function(*args)
    if found is None:
        return [a for a in (args[0], args[2]) if a is not None]
    return list(found) if isinstance(found, tuple) else [found]


def close(found: Tensor, truth: Tensor, what: str, tolerance: float = TOLERANCE, measure: Tensor | None = None) -> None:
    assert found.shape == truth.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    error = (found.detach().cpu().double() - truth.detach()).norm().item()
    scale = (truth if measure is None else measure).norm().item()
    # a NaN fails; 1e-7 is rounding where the truth is zero
    assert error <= tolerance * scale + 1e-7, f"{what}: relative error {error / (scale or 1):.2e}"


def agrees(op: str, shape: str, device: str, function: Any = None) -> None:
    """Outputs as the reference's; inputs are left alone. `function` stands in for the registered operator."""
    args = arguments(op, shape, device)
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    truth = outputs(ops.OPERATORS[op].reference, [a.clone() if isinstance(a, Tensor) else a for a in wide(op, args)])
    found = outputs(function or getattr(ops, op), args)
    for i, (value, wanted) in enumerate(zip(found, truth, strict=True)):
        assert value.dtype == (torch.float64 if op == "arc_length" else torch.float32)
        # z has FINE's error in a first block, and a norm over few pixels carries it further
        tolerance = FINE if op in CONVOLUTIONS else 5 * FINE if op.startswith("first_block") else TOLERANCE
        close(value, wanted, f"output {i}", tolerance, truth[CANCELS.get((op, i), i)])
    if op != "sgd_step_":
        for a, b in zip(args, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), "an input was changed"


def fast_agrees(op: str, shape: str, scale: str, device: str) -> None:
    """The convolutions where tf32 is allowed, at tensors of any magnitude; one student's zeros do not matter to the others.

    The sum over pixels that a weight gradient comes with is of the numbers themselves. An error of more than a rounding shows
    that one product was taken, where there are channels enough for that.
    """
    args = arguments(op, shape, device)
    for i, factor in ((0, float(scale)), (3 if op == "conv3x3" else 2, 1e-3)):
        if i < len(args):
            args[i] = args[i] * factor
    if args[0].shape[0] > 1:
        args[0][0] = 0
    truth = outputs(ops.OPERATORS[op].reference, wide(op, args))
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    try:
        found = outputs(getattr(ops, op), args)
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    for i, (value, wanted) in enumerate(zip(found, truth, strict=True)):
        for s in range(len(wanted)):
            close(value[s], wanted[s], f"output {i} of student {s}", TOLERANCE if i == 1 else FAST)
    if args[0].shape[4] >= 16 and args[1].shape[-3 if op == "conv3x3" else -1] >= 16 and scale == "1":
        assert (found[0][-1].cpu() - truth[0][-1]).norm() > 1e-5 * truth[0][-1].norm()


def gradients_agree(op: str, shape: str, device: str) -> None:
    """Every derivative through the operator, as automatic differentiation of the reference has it."""
    args = arguments(op, shape, device)
    alone = op in ("dsa", "matching_loss")  # differentiable by the leading argument only

    def derivatives(function: Any, args: list[Any]) -> tuple[list[Tensor], list[int]]:
        args = [a.detach() if isinstance(a, Tensor) else a for a in args]
        at = [
            i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point() and (not alone or i == 0)
        ]
        for i in at:
            args[i].requires_grad_()
        results = outputs(function, args)
        results = results if op == "conv3x3_weight_grad" else results[:1]
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
        total = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
        return list(torch.autograd.grad(total, [args[i] for i in at])), at

    found, at = derivatives(getattr(ops, op), args)
    truth, _ = derivatives(ops.OPERATORS[op].reference, wide(op, args))
    for i, value, wanted in zip(at, found, truth, strict=True):
        close(value, wanted, f"derivative by argument {i}", FINE if op in CONVOLUTIONS else TOLERANCE)


# each kind with ordinary tables and with extreme ones; p0..p3 of `mct_fast.data.operations`
TABLES = {
    0: [[0, 0, 0, 0], [9, 9, 9, 9]],
    1: [[0.3, 1.7, 0.6, 0], [-0.4, 0.2, 1.4, 0]],
    2: [[1, -1, 0, 0], [-2, 3, 0, 0], [30, -1, 0, 0], [0, -1e12, 0, 0]],
    3: [[1, 3, -1, 2], [2, 2, 0, 5], [-3, 99, 2, 3]],
    4: [[1, 0, 0, 0], [0, 0, 0, 0]],
    5: [[1.2, 0.85, 0, 0], [0.83, 1.0, 0, 0], [0.1, 3.0, 0, 0], [-1.1, 0.0, 0, 0]],
    6: [
        [math.cos(0.26), math.sin(0.26), 0, 0],
        [math.cos(2.0), -math.sin(2.0), 0, 0],
        [0.05, 0.02, 0, 0],
        [0, 0, 0, 0],
    ],
}
IMAGES = {"3x8x7": (3, 8, 7), "1x2x9": (1, 2, 9), "1x17x17": (1, 17, 17)}


def augmentation_agrees(kind: str, image: str, device: str) -> None:
    """One kind beside another in the same call: values, the transpose's, and that they are adjoint to each other."""
    table = torch.tensor([TABLES[int(kind)]], dtype=torch.float32)
    others = torch.tensor([TABLES[1]] * 9, dtype=torch.float32).flatten(0, 1)[: table.shape[1]][None]
    params = torch.cat([table, others])
    kinds = torch.tensor([int(kind), 1])
    x = Arguments(Dims(), torch.float32, seed=1).array(2, table.shape[1], *IMAGES[image])
    g = Arguments(Dims(), torch.float32, seed=2).array(*x.shape)
    for op, images in (("dsa", x), ("dsa_transpose", g)):
        args = place([images, kinds, params], device)
        args[1] = args[1].cpu()
        found = getattr(ops, op)(*args)
        truth = ops.OPERATORS[op].reference(images.double(), kinds, params)
        for i in range(table.shape[1]):
            close(found[0, i], truth[0, i], f"{op}, image {i}")
        close(found[1], truth[1], f"{op}, the other student")


def nan_is_not_hidden(norm: str, device: str) -> None:
    """A NaN in one plane comes out of the ReLU."""
    z = torch.ones(1, 1, 4, 4, 20, device=device)
    z[0, 0, 1, 2, 3] = torch.nan
    affine = torch.ones(1, 20, device=device) if norm == "norm" else None
    p = ops.block_forward(z, affine, affine, 1e-5, True)[0]
    assert p[..., 3].isnan().any()
    assert not p[..., 4].isnan().any()


def accurate_far_from_zero(shape: str, device: str) -> None:
    """Statistics where the mean is 1000 times the deviation, whose float32 neighbours are 6e-5 apart."""
    z, gamma, beta, eps, pool = arguments("block_forward", shape, device)
    z = z + 1000
    truth = ops.block_forward.reference(*wide("", [z, gamma, beta]), eps, pool)
    for i, (value, wanted) in enumerate(zip(ops.block_forward(z, gamma, beta, eps, pool), truth, strict=True)):
        close(value, wanted, f"output {i}", tolerance=1e-4)


def target_is_exact_at_both_ends(device: str) -> None:
    """Fractions 0 and 1 give the endpoints bit for bit: the loss there is zero."""
    _, origin, end, frac, offsets, denom = arguments("matching_loss", "odd-S2", device)
    for value, point in ((0.0, origin), (1.0, end)):
        loss, grad = ops.matching_loss(point, origin, end, torch.full_like(frac, value), offsets, denom)
        assert not loss.any()
        assert not grad.any()


def finite_at_large_logits(device: str) -> None:
    """No overflow, and no loss lost: a label that is surely right costs exp(-logit)."""
    for logit, wanted in ((-300.0, 0.0), (-20.0, math.exp(-20.0)), (20.0, 20.0), (300.0, 300.0)):
        h, w, b = (torch.full(shape, 1.0, device=device) for shape in ((1, 1, 1), (1, 1, 1), (1, 1)))
        y, pos, neg = (torch.full(shape, 1.0, device=device) for shape in ((1, 1, 1), (1,), (1,)))
        loss, *grads = ops.linear_bce(h * logit, w, b * 0, y * 0, pos, neg)
        assert all(torch.isfinite(g).all() for g in grads)
        assert abs(loss.item() - wanted) <= 1e-6 * wanted
    h = torch.full((1, 2, 8), 300.0, device=device)
    w = torch.stack([torch.ones(8), -torch.ones(8), torch.zeros(8)])[None].to(device)
    loss, *grads = ops.linear_ce(h, w, torch.zeros(1, 3, device=device), torch.eye(3, device=device)[None, :2])
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(loss.cpu(), torch.tensor([2400.0]))


def double_precision_is_the_references(op: str, device: str) -> None:
    """float64 arguments are served too, by the reference."""
    args = place(Arguments(dims("odd-S2"), torch.float64).of(op), device)
    found = outputs(getattr(ops, op), args)
    truth = outputs(ops.OPERATORS[op].reference, Arguments(dims("odd-S2"), torch.float64).of(op))
    for i, (value, wanted) in enumerate(zip(found, truth, strict=True)):
        assert value.dtype == torch.float64
        close(value, wanted, f"output {i}", tolerance=1e-12)


@functools.cache
def _model(name: str) -> Any:
    return {
        "convnet": ConvNet(depth=2, width=5, channels=3, image_size=9, num_classes=4),
        "convnet-no-norm": ConvNet(depth=1, width=16, channels=1, image_size=6, num_classes=3, norm="none"),
        "mlp": MLP(depth=2, width=7, channels=1, image_size=4, num_classes=3),
    }[name]


def student_agrees(name: str, device: str) -> None:
    """A whole step and its tangent on the kernels, against automatic differentiation of the plain network in float64."""
    model = _model(name)
    functional = FunctionalModel(model)
    generator = torch.Generator().manual_seed(7)
    params = torch.stack([functional.init(s) for s in range(2)])
    params += 0.05 * torch.randn(params.shape, generator=generator)
    tangent = torch.randn(params.shape, generator=generator)
    x = torch.randn(2, 2, model.channels, model.image_size, model.image_size, generator=generator)
    y = torch.randn(2, 2, model.num_classes, generator=generator).softmax(2)
    problem = (params, tangent, x, y)
    generic, fused = GenericStudent(functional, Classification()), FusedStudent(model)
    truth = _step(generic, tuple(t.double() for t in problem))
    for part, value in _step(fused, tuple(t.to(device) for t in problem)).items():
        close(value, truth[part], part, tolerance=2e-5)


def _step(student: Any, problem: tuple[Tensor, ...]) -> dict[str, Tensor]:
    params, tangent, x, y = problem
    loss, grad = student.gradient(params, x, y)
    t = student.gradient_tangent(params, tangent, x, y)
    return {"loss": loss, "grad": grad, "hvp": t.hvp, "grad_x_dot": t.grad_x_dot, "grad_y_dot": t.grad_y_dot}
