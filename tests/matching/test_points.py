"""Matching towards points of paths equals matching towards the parameters that they stand for."""

from __future__ import annotations

import pytest
import torch

from mct_fast.matching import match
from mct_fast.matching.points import Points
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
    begin = 1 if kind == "discrete" else 1.3
    start = torch.stack([p.at(begin) for p in paths])
    rows = torch.arange(6).view(3, 2)
    ends = ([p.point(begin) for p in paths], target) if points else (start, dense)
    return match(MODEL, images, labels, 0.5, *ends, rows, task=Binary(), adjoint=adjoint)


@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("kind", ["convex", "staged", "discrete", "bezier"])
def test_points_equal_parameters(kind: str, students: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        found, wanted = (run(kind, dtype, students, points=points) for points in (True, False))
        for name in ("loss", "grad_images", "grad_lr", "final_params"):
            a, b = getattr(found, name), getattr(wanted, name)
            assert a.dtype == dtype
            assert (a - b).norm() <= tolerance * b.norm(), name


@pytest.mark.parametrize("kind", ["convex", "staged", "discrete", "bezier"])
def test_on_a_processor_points_give_the_bits_of_the_parameters(kind: str) -> None:
    found, wanted = (run(kind, torch.float32, 2, points=points) for points in (True, False))
    for name in ("loss", "grad_images", "grad_lr", "final_params"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize("kind", ["convex", "staged", "discrete", "bezier"])
def test_a_point_is_that_of_its_path_bit_for_bit(kind: str) -> None:
    times = [0, 2, EPOCHS] if kind == "discrete" else [0, 0.37, 1.9999, 2, 3.0, 4.21, EPOCHS]
    paths = [path(kind, seed, torch.float32) for seed in range(2)]
    for t in times:
        (made,) = Points.of_paths([p.point(t) for p in paths])
        assert torch.equal(made.dense(), torch.stack([p.at(t) for p in paths]))


def test_ends_of_one_path_share_its_models() -> None:
    lines = [path("convex", seed, torch.float32) for seed in range(2)]
    start, target = Points.of_paths([p.point(1.5) for p in lines], [p.point(4.5) for p in lines])
    assert start.origin is target.origin and start.end is target.end and start.origin is not start.end
    alone, _ = Points.of_paths([lines[0].point(1.5)], [lines[0].point(3)])
    assert alone.origin.data_ptr() == lines[0].waypoints.data_ptr(), "of one student nothing is copied"
    some = start.of(slice(1, 2))
    assert torch.equal(some.dense()[0], lines[1].at(1.5))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["convex", "staged", "discrete", "bezier"])
def test_on_a_gpu_points_agree_with_parameters(kind: str) -> None:
    g = torch.Generator().manual_seed(5)
    paths = [path(kind, seed, torch.float32).to("cuda") for seed in range(2)]
    ends = [[p.point(t) for p in paths] for t in (1, 4)]
    start, target = Points.of_paths(*ends)
    theta = start.dense() + 0.01 * torch.randn(start.shape, generator=g).cuda()
    scale = torch.full((2,), 3.0, device="cuda")
    found, wanted = target.distance(theta, scale), Points.of_values(target.dense()).distance(theta, scale)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


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
