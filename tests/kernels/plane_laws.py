"""What the plane kernels must satisfy, on any device: used under the interpreter and on a GPU.

Truth is `FusedStudent` or `Exact` on the operators' reference in float64, given the numbers that float32 holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels.planes import head
from mct_fast.matching import plane_sweep
from mct_fast.matching.adjoint import Exact, Truncated
from mct_fast.matching.points import Points
from mct_fast.students.planes import memory
from mct_fast.students.planes.engine import Engine
from mct_fast.students.planes.parameters import Weights
from tests.kernels.laws import close
from tests.kernels.plane_cases import Anywhere, Case

PRECISIONS = {how.name: how for how in (memory.FAST, memory.FINE)}
TOLERANCE = {"fast": 2e-3, "fine": 2e-5}
"""Relative error in the 2-norm of a step's results. A product of fp16 numbers has 3e-4, one of pairs 1e-6."""

PACKED = Case(2, 48, 1, (8, 8), 5, students=2)

STEPS = {
    "two-blocks": Case(2, 16, 3, (8, 8), 18, "soft", images=3, batch=3),
    "border": Case(2, 16, 1, (28, 28), 3, "hard", images=1, batch=1),
    "three-blocks-not-square": Case(3, 16, 2, (8, 16), 3, "multi-label", students=2, images=1, batch=1),
    "single-output": Case(2, 16, 1, (4, 8), 1, "binary", images=2, batch=2),
    # where a rounding cannot turn a ReLU on or off, which in so few pixels weighs more than the roundings themselves
    "decided": Case(2, 16, 3, (8, 8), 3, "soft", images=2, batch=2, decided=True),
}
"""A step: its network, labels and batch."""

MATCHES = {
    "soft-augmented": Case(2, 16, 3, (8, 4), 3, "soft", students=2, images=3, batch=2, steps=3, augmented=True),
    "hard": Case(2, 16, 1, (4, 8), 3, "hard", students=2, sets=2, images=3, batch=2, steps=2),
}
"""A match; of three images in batches of two, so that every other step has one."""


def packing(device: str) -> None:
    """Parameters come back from the kernels' order bit for bit; their halves stand for them; filling is zero."""
    case = PACKED
    for how in PRECISIONS.values():
        engine = Anywhere(case.fused, how).engine(torch.device(device))
        theta = case.problem(device=device).theta
        weights = engine.parameters.room(case.students)
        engine.parameters.pack(theta, weights)
        assert torch.equal(engine.parameters.unpack(weights.values), theta)
        filling_is_zero(engine, weights)
        halves = _halves(engine, weights).double().sum(1)
        close(halves, weights.values.double().cpu(), "halves", 3e-4 if how.halves == 1 else 1e-6)


def _halves(engine: Engine, weights: Weights) -> Tensor:
    """``(S, halves, size)``"""
    students = len(weights.half)
    rows = weights.half.view(students, -1, engine.how.halves, engine.geometry.width)
    return rows.transpose(1, 2).reshape(students, engine.how.halves, -1)


def filling_is_zero(engine: Engine, weights: Weights) -> None:
    """What lies between the parameters."""
    filling = engine.parameters.layout.index.to(weights.values.device) < 0
    assert filling.any()
    assert not weights.values[:, filling].any()
    assert not _halves(engine, weights)[:, :, filling].any()


def point_agrees(device: str) -> None:
    """A point between two models in the kernels' order, with a fraction a tensor or one for all."""
    case = PACKED
    engine = Anywhere(case.fused, memory.FINE).engine(torch.device(device))
    problem = case.problem(device=device)
    sizes = tuple(torch.Size(shape).numel() for shape in case.fused.plan.shapes)
    for tensors in (sizes, (sum(sizes),)):
        fractions = torch.rand(case.students, len(tensors), generator=torch.Generator().manual_seed(3)).to(device)
        weights = engine.parameters.room(case.students)
        parts = torch.stack([1 - fractions, fractions])
        engine.parameters.pack_point(problem.start.origin, problem.terminal.target.origin, parts, weights)
        point = Points(problem.start.origin, problem.terminal.target.origin, parts, tensors, torch.empty(0)).dense()
        close(engine.parameters.unpack(weights.values), point.cpu(), "point", 1e-7)
        filling_is_zero(engine, weights)


def confident_gradient(device: str) -> None:
    """A label that is surely right costs exp(-logit), and its gradient is as small, not zero."""
    one, yes = torch.ones(1, device=device), torch.ones(1, 1, device=device)
    for logit in (-300.0, -20.0, 20.0, 40.0):
        out = torch.full((1, 1), logit, device=device)
        loss, gl, tau, sums = (torch.empty(1, 1, device=device) for _ in range(4))
        head.loss_kernel[(1,)](
            out, yes, one, one, loss, gl, tau, sums, 1, 1, 1, BINARY=True, ROWS=1, COLS=1, PDL=False
        )  # fmt: skip
        x = torch.tensor([[-logit]], dtype=torch.float64)
        close(loss * 1e20, torch.nn.functional.softplus(x) * 1e20, "loss", 1e-5)
        close(gl / tau * 1e20, -x.sigmoid() * 1e20, "gradient", 1e-5)


def step_agrees(name: str, precision: str, device: str) -> None:
    """A step's gradient and its tangent, of each student."""
    case, how = STEPS[name], PRECISIONS[precision]
    found, truth = _step(Anywhere(case.fused, how), case, torch.float32, device), _step(case.fused, case, torch.float64)
    for part, wanted in truth.items():
        for s in range(case.students):
            close(found[part][s], wanted[s], f"{part} of student {s}", TOLERANCE[precision])


def _step(student: Any, case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    problem = case.problem(dtype, device)
    x, y = problem.batch(0, problem.images, problem.labels)
    # rows of wider tensors, as they are in use
    rows, count = problem.theta.shape
    wide = torch.randn(2, rows, count + 11, generator=torch.Generator().manual_seed(2)).to(problem.theta)
    theta, along = wide[:, :, 4 : 4 + count]
    theta.copy_(problem.theta)
    loss, grad = student.gradient(theta, x, y)
    t = student.gradient_tangent(theta, along, x, y)
    # <gradient, along> may cancel to anything: its scale is that of its terms
    scale = grad.norm(dim=1) * along.norm(dim=1)
    parts = {"loss": loss, "grad": grad, "loss_dot": t.loss_dot / scale, "hvp": t.hvp, "by images": t.grad_x_dot}
    return parts if t.grad_y_dot is None else parts | {"by labels": t.grad_y_dot}


def match_agrees(name: str, kind: str, kept: str, device: str) -> None:
    """A whole match by ``exact`` or ``truncated`` adjoint, with ``all`` or ``none`` of its steps kept.

    Without, its images are handled a step at a time.
    """
    case, exact = MATCHES[name], kind == "exact"
    truth = (Exact() if exact else Truncated()).solve(case.problem(torch.float64))
    engine, before = Anywhere(case.fused, memory.FINE).engine(torch.device(device)), plane_sweep.PATCH_BYTES
    update = engine.parameters.update

    def checked(*args: Any) -> None:
        update(*args)
        filling_is_zero(engine, args[-1])

    engine.parameters.update, plane_sweep.PATCH_BYTES = checked, before if kept == "all" else 1
    try:
        keep_bytes = 1 << 40 if kept == "all" else 0
        match = plane_sweep.sweep(case.problem(device=device), engine, carry_curvature=exact, keep_bytes=keep_bytes)
    finally:
        plane_sweep.PATCH_BYTES = before
    start = case.problem(torch.float64).theta
    for part in ("loss", "grad_images", "grad_lr", "grad_labels", "final_params"):
        found, wanted = getattr(match, part), getattr(truth, part)
        if wanted is None:
            assert found is None
            continue
        if part == "final_params":  # how far the student came
            found, wanted = found.cpu().double() - start, wanted - start
        for s in range(case.students):
            close(found[s], wanted[s], f"{part} of student {s}", TOLERANCE["fine"])
