"""Bézier curves and points of paths: against the formula, at the ends, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mct_fast.run.errors import InputError
from mct_fast.trajectory import BezierTrajectory, ConvexTrajectory, DiscreteTrajectory, PathPoint, TrajectoryStore

SHAPES = [torch.Size((4, 3)), torch.Size((5,)), torch.Size((2,))]
COUNT = 19


def points(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def checkpoints(seed: int = 0, epochs: int = 6) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=g) for s in SHAPES] for _ in range(epochs + 1)]


def test_the_curve_is_bernsteins() -> None:
    start, control, end = points()
    path = BezierTrajectory(points(), 8, SHAPES)
    for t in (0.0, 1.3, 4.0, 7.75, 8.0):
        s = t / 8
        inner, outer = torch.lerp(start, control, s), torch.lerp(control, end, s)
        torch.testing.assert_close(path.at(t), torch.lerp(inner, outer, s), rtol=1e-12, atol=1e-14)  # de Casteljau
    assert path.epochs == 8
    assert path.continuous


def test_ends_come_back_bit_for_bit() -> None:
    given = points(torch.float32)
    given[0, 3] = -0.0
    path = BezierTrajectory(given, 5, SHAPES)
    assert torch.equal(path.at(0).view(torch.int32), given[0].view(torch.int32))
    assert torch.equal(path.at(5).view(torch.int32), given[2].view(torch.int32))


def test_a_control_point_in_the_middle_gives_the_line() -> None:
    start, _, end = points()
    path = BezierTrajectory(torch.stack([start, (start + end) / 2, end]), 4, SHAPES)
    torch.testing.assert_close(path.at(1), start + (end - start) / 4, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("waypoints", [2, 3, 4])
@pytest.mark.parametrize("schedule", ["arc_length", "uniform"])
def test_points_of_a_convex_path_are_its_points(waypoints: int, schedule: str) -> None:
    path = ConvexTrajectory.fit(checkpoints(), waypoints=waypoints, schedule=schedule)
    for t in (0.0, 0.4, 1.0, 2.0, 2.5, 3.0, 4.999, 5.0, 6.0):
        point = path.point(t)
        assert len(point.models) == 2
        assert bool(((point.weights >= 0) & (point.weights <= 1)).all())
        torch.testing.assert_close(point.dense(), path.at(t), rtol=1e-6, atol=1e-7)
    assert torch.equal(path.point(0).dense(), path.at(0))
    assert torch.equal(path.point(6).dense(), path.at(6))


def test_points_of_a_path_with_a_tensor_that_never_moves() -> None:
    still = [[row[0], row[1], torch.ones(2)] for row in checkpoints()]
    path = ConvexTrajectory.fit(still, waypoints=3)
    for t in (0.0, 1.5, 3.0, 4.5, 6.0):
        torch.testing.assert_close(path.point(t).dense(), path.at(t), rtol=1e-6, atol=1e-7)


def test_points_of_checkpoints() -> None:
    path = DiscreteTrajectory(checkpoints())
    assert torch.equal(path.point(2).dense(), path.at(2))
    with pytest.raises(InputError, match="between checkpoints"):
        path.point(2.5)


@pytest.mark.parametrize("make", [lambda: ConvexTrajectory.fit(checkpoints()).point(2.5), lambda: DiscreteTrajectory(
    checkpoints()).point(3), lambda: BezierTrajectory(points(torch.float32), 6, SHAPES).point(2.5)],
    ids=["convex", "discrete", "bezier"])  # fmt: skip
def test_every_point_has_a_form_between_two_models(make: object) -> None:
    point = make()
    line = point.line()
    assert len(line.models) == 2
    torch.testing.assert_close(line.dense(), point.dense(), rtol=1e-6, atol=1e-7)


def test_bad_curves_and_points_are_refused() -> None:
    for bad, epochs in ((points()[:2], 5), (points()[:, :7], 5), (points() * torch.nan, 5)):
        with pytest.raises(InputError, match="^points: "):
            BezierTrajectory(bad, epochs, SHAPES)
    with pytest.raises(InputError, match="^epochs: "):
        BezierTrajectory(points(), 0, SHAPES)
    with pytest.raises(InputError, match="^t: "):
        BezierTrajectory(points(), 5, SHAPES).at(5.1)
    with pytest.raises(InputError, match="^weights: "):
        PathPoint((points()[0],), torch.ones(2, 3), tuple(SHAPES))
    with pytest.raises(InputError, match="^models: "):
        PathPoint((points()[0, :4],), torch.ones(1, 3), tuple(SHAPES))


# In the store


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    made = TrajectoryStore.create(
        tmp_path / "store",
        {"model": {}, "shapes": [list(s) for s in SHAPES], "dataset": {"name": "toy"}, "recipe": {}},
    )
    for number in (0, 1):
        made.add(number, ConvexTrajectory.fit(checkpoints(number), waypoints=3), {})
    made.add_control(1, points(torch.float32)[1], {"epochs": 3})
    return made


def test_a_curve_comes_back_from_the_store(store: TrajectoryStore) -> None:
    opened = TrajectoryStore.open(store.path)
    assert [opened.has_control(i) for i in (0, 1)] == [False, True]
    curve, line = opened.trajectory(1, "bezier"), opened[1]
    assert torch.equal(curve.at(0), line.at(0))
    assert torch.equal(curve.at(6), line.at(6))
    assert torch.equal(curve.points[1], points(torch.float32)[1])
    assert curve.epochs == 6
    with pytest.raises(InputError, match="mct-fast bezier"):
        opened.trajectory(0, "bezier")
    opened.verify()


def test_a_damaged_control_point_is_named(store: TrajectoryStore) -> None:
    file = store.path / "expert_00001_control.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened = TrajectoryStore.open(store.path)
    with pytest.raises(InputError, match="expert_00001_control"):
        opened.trajectory(1, "bezier")
    with pytest.raises(InputError, match="1 of 2 experts"):
        opened.verify()
    assert torch.equal(opened[1].at(0), store[1].at(0))  # the line does not need it


def test_control_points_that_do_not_fit_are_refused(store: TrajectoryStore) -> None:
    good = points(torch.float32)[1]
    with pytest.raises(InputError, match="already"):
        store.add_control(1, good, {})
    with pytest.raises(InputError, match="not in the store"):
        store.add_control(7, good, {})
    with pytest.raises(InputError, match="^control: "):
        store.add_control(0, good[:5], {})
    with pytest.raises(InputError, match="^control: "):
        store.add_control(0, good * torch.inf, {})
