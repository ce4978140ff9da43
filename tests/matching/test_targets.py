"""Matching towards points of paths equals matching towards the parameters that they stand for."""

from __future__ import annotations

import pytest
import torch

from mct_fast.matching import match
from mct_fast.models import MLP, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.tasks import Binary
from mct_fast.trajectory import BezierTrajectory, ConvexTrajectory, DiscreteTrajectory

MODEL = MLP(2, 7, channels=5, image_size=1, num_classes=1)
FUNCTIONAL = FunctionalModel(MODEL)
EPOCHS = 6


def checkpoints(seed: int, dtype: torch.dtype) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    theta, rows = FUNCTIONAL.init(seed).to(dtype), []
    for _ in range(EPOCHS + 1):
        rows.append([t.clone() for t in FUNCTIONAL.unflatten(theta)])
        theta = theta + 0.05 * torch.randn(theta.shape, generator=g, dtype=torch.float64).to(dtype)
    return rows


def path(kind: str, seed: int, dtype: torch.dtype) -> object:
    kept = checkpoints(seed, dtype)
    if kind == "discrete":
        return DiscreteTrajectory(kept)
    line = ConvexTrajectory.fit(kept, waypoints=3 if kind == "staged" else 2)
    if kind != "bezier":
        return line
    middle = (line.at(0) + line.at(EPOCHS)) / 2 + 0.1
    return BezierTrajectory(torch.stack([line.at(0), middle, line.at(EPOCHS)]), EPOCHS, line.shapes)


def run(kind: str, dtype: torch.dtype, students: int, *, points: bool, adjoint: str = "exact") -> object:
    g = torch.Generator().manual_seed(3)
    images = torch.randn(6, 5, generator=g, dtype=torch.float64).to(dtype)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    paths = [path(kind, seed, dtype) for seed in range(students)]
    times = [3 + (0 if kind == "discrete" else 0.7 * s) for s in range(students)]
    target = [p.point(t) for p, t in zip(paths, times, strict=True)]
    dense = torch.stack([p.at(t) for p, t in zip(paths, times, strict=True)])
    start = torch.stack([p.at(1) for p in paths])
    rows = torch.arange(6).view(3, 2)
    chosen = target if points else dense
    return match(MODEL, images, labels, 0.5, start, chosen, rows, task=Binary(), adjoint=adjoint)


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("kind", ["convex", "staged", "discrete", "bezier"])
def test_points_equal_parameters(kind: str, students: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        found, wanted = (run(kind, dtype, students, points=points) for points in (True, False))
        for name in ("loss", "grad_images", "grad_lr", "final_params"):
            a, b = getattr(found, name), getattr(wanted, name)
            assert a.dtype == dtype
            assert (a - b).norm() <= tolerance * b.norm(), name


@pytest.mark.parametrize("kind", ["discrete", "bezier"])
def test_points_that_are_made_give_the_same_bits(kind: str) -> None:
    found, wanted = (run(kind, torch.float32, 2, points=points) for points in (True, False))
    assert torch.equal(found.loss, wanted.loss)
    assert torch.equal(found.grad_images, wanted.grad_images)


def test_the_unrolled_gradient_agrees() -> None:
    exact, unrolled = (run("bezier", torch.float64, 2, points=True, adjoint=a) for a in ("exact", "unrolled"))
    assert (exact.grad_images - unrolled.grad_images).norm() < 1e-9 * unrolled.grad_images.norm()
    assert (exact.loss - unrolled.loss).norm() < 1e-12 * unrolled.loss.norm()


def test_one_point_serves_one_student() -> None:
    line = path("convex", 0, torch.float64)
    images, labels, rows = torch.zeros(2, 5, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([[0, 1]])
    alone = match(MODEL, images, labels, 0.1, line.at(0), line.point(2.5), rows, task=Binary())
    listed = match(MODEL, images, labels, 0.1, line.at(0), [line.point(2.5)], rows, task=Binary())
    assert torch.equal(alone.loss, listed.loss)
    with pytest.raises(InputError, match="^target: equals start"):
        match(MODEL, images, labels, 0.1, line.at(2.5), line.at(2.5), rows, task=Binary())
    with pytest.raises(InputError, match="^target: .*float32"):
        match(MODEL, images, labels, 0.1, line.at(0), line.point(2.5).to(dtype=torch.float32), rows, task=Binary())
    with pytest.raises(InputError, match="^target: holds 2 students"):
        match(MODEL, images, labels, 0.1, line.at(0), [line.point(2.0)] * 2, rows, task=Binary())
    with pytest.raises(InputError, match="^target: "):
        match(MODEL, images, labels, 0.1, line.at(0), [], rows, task=Binary())
