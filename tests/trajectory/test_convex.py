"""The convex path against a plain float64 computation of the paper's formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mct_fast.run.errors import InputError
from mct_fast.trajectory import SCHEDULES, ConvexTrajectory, DiscreteTrajectory, PathRecorder
from mct_fast.trajectory.convex import waypoint_epochs

SHAPES = [(5, 3), (7,), (2, 2, 3, 3), (1,)]


def walk(epochs: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    points = [[torch.randn(s, generator=g, dtype=dtype) for s in SHAPES]]
    for t in range(epochs):
        points.append([p + torch.randn(p.shape, generator=g, dtype=dtype) / (t + 2) for p in points[-1]])
    return points


def oracle_progress(checkpoints, knots, schedule):
    """progress (L, K + 1), written from the definitions with NumPy and loops."""
    table = np.zeros((len(checkpoints[0]), len(checkpoints)))
    for layer in range(len(table)):
        theta = [c[layer].double().numpy().ravel() for c in checkpoints]
        for piece, (a, b) in enumerate(itertools.pairwise(knots)):
            steps = [np.sqrt(((theta[t + 1] - theta[t]) ** 2).sum()) for t in range(a, b)]
            highest = 0.0
            for t in range(a, b + 1):
                if schedule == "arc_length":
                    beta = sum(steps[: t - a]) / sum(steps) if sum(steps) > 0 else float(t == b)
                elif schedule == "uniform":
                    beta = (t - a) / (b - a)
                elif schedule == "decreasing":
                    k = b - a
                    beta = sum(k - i for i in range(t - a)) / (k * (k + 1) / 2)
                else:
                    line = theta[b] - theta[a]
                    beta = float((theta[t] - theta[a]) @ line / (line @ line)) if line @ line > 0 else float(t == b)
                    highest = beta = max(highest, min(max(beta, 0.0), 1.0))
                table[layer, t] = piece + beta
    return table


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize(("epochs", "waypoints"), [(1, 2), (7, 2), (7, 4), (50, 4), (12, 3), (9, (0, 1, 5, 9))])
def test_progress_and_points_match_the_definitions(
    schedule: str, epochs: int, waypoints: int | tuple[int, ...]
) -> None:
    checkpoints = walk(epochs)
    path = ConvexTrajectory.fit(checkpoints, waypoints, schedule)
    knots = waypoint_epochs(epochs, waypoints)
    expected = oracle_progress(checkpoints, knots, schedule)
    np.testing.assert_allclose(path.progress.numpy(), expected, rtol=0, atol=1e-12)
    for t in np.linspace(0, epochs, 23):
        low = min(int(t), epochs - 1)
        pace = expected[:, low] + (t - low) * (expected[:, low + 1] - expected[:, low])
        parts = []
        for layer, p in enumerate(pace):
            piece = min(int(p), len(knots) - 2)
            a, b = (checkpoints[knots[piece + i]][layer].double().flatten() for i in (0, 1))
            parts.append((1 - (p - piece)) * a + (p - piece) * b)
        torch.testing.assert_close(path.at(float(t)).double(), torch.cat(parts), rtol=0, atol=2e-6)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("waypoints", [2, 4])
def test_monotone_and_endpoints_bit_exact(schedule: str, waypoints: int) -> None:
    checkpoints = walk(13, seed=3)
    checkpoints[0][1][0] = -0.0
    path = ConvexTrajectory.fit(checkpoints, waypoints, schedule)
    assert bool((path.progress.diff(dim=1) >= 0).all())
    assert path.progress[:, 0].eq(0).all() and path.progress[:, -1].eq(waypoints - 1).all()
    for knot in waypoint_epochs(13, waypoints):
        expected = torch.cat([p.flatten() for p in checkpoints[knot]])
        assert torch.equal(path.at(knot).view(torch.int32), expected.view(torch.int32))


def test_a_layer_that_never_moves_stays_and_nothing_turns_nan() -> None:
    checkpoints = walk(6)
    for checkpoint in checkpoints:
        checkpoint[1] = checkpoints[0][1].clone()
    for schedule in SCHEDULES:
        path = ConvexTrajectory.fit(checkpoints, 2, schedule)
        assert bool(torch.isfinite(path.progress).all())
        torch.testing.assert_close(path.at(3.3)[15:22], checkpoints[0][1])
    assert ConvexTrajectory.fit(checkpoints).progress[1, :-1].eq(0).all()


def test_smoothing_is_the_official_one() -> None:
    checkpoints = walk(50, seed=5)
    path = ConvexTrajectory.fit(checkpoints, 4, smooth=True)
    assert waypoint_epochs(50, 4) == (0, 17, 34, 50)

    def flat(t: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in checkpoints[t]])

    torch.testing.assert_close(path.at(17), (flat(16) + flat(18)) / 2)
    torch.testing.assert_close(path.at(34), (flat(33) + flat(35)) / 2)
    torch.testing.assert_close(path.at(50), (flat(49) + flat(50)) / 2)
    torch.testing.assert_close(path.progress, ConvexTrajectory.fit(checkpoints, 4).progress)


@pytest.mark.parametrize("epochs", [3, 7, 10, 50])
@pytest.mark.parametrize("waypoints", [2, 3, 4])
def test_waypoint_epochs_rise_from_first_to_last(epochs: int, waypoints: int) -> None:
    knots = waypoint_epochs(epochs, waypoints)
    assert len(knots) == waypoints and knots[0] == 0 and knots[-1] == epochs
    assert all(a < b for a, b in itertools.pairwise(knots))


def test_waypoints_may_be_given_as_epochs() -> None:
    checkpoints = walk(50, seed=6)
    assert waypoint_epochs(50, (0, 6, 25, 50)) == (0, 6, 25, 50)
    path = ConvexTrajectory.fit(checkpoints, [0, 6, 25, 50], smooth=True)
    neighbours = [(torch.cat([p.flatten() for p in checkpoints[a]]), torch.cat([p.flatten() for p in checkpoints[b]]))
                  for a, b in ((5, 7), (24, 26), (49, 50))]  # fmt: skip
    for t, (before, after) in zip((6, 25, 50), neighbours, strict=True):
        torch.testing.assert_close(path.at(t), (before + after) / 2)


@pytest.mark.parametrize("wrong", [(), (0,), (0, 3), (1, 9), (0, 5, 5, 9), (0, 7, 2, 9)])
def test_epochs_that_are_no_waypoints_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^waypoints: .* rise from 0 to 9$"):
        ConvexTrajectory.fit(walk(9), wrong)


def test_recording_while_training_equals_fitting_afterwards() -> None:
    checkpoints = walk(9)
    shapes = [p.shape for p in checkpoints[0]]
    recorder = PathRecorder(shapes, 9, waypoints=3, smooth=True)
    buffer = torch.empty(sum(s.numel() for s in shapes))
    for checkpoint in checkpoints:
        buffer.copy_(torch.cat([p.flatten() for p in checkpoint]))  # the trainer reuses its memory
        recorder.observe(buffer)
    path, fitted = recorder.finish(), ConvexTrajectory.fit(checkpoints, 3, smooth=True)
    assert torch.equal(path.waypoints, fitted.waypoints) and torch.equal(path.progress, fitted.progress)


def test_float64_and_continuity() -> None:
    path = ConvexTrajectory.fit(walk(5, dtype=torch.float64), 3)
    assert path.at(2.2).dtype == torch.float64
    for t in (1.0, 2.0, 3.0):
        torch.testing.assert_close(path.at(t - 1e-9), path.at(t), atol=1e-7, rtol=0)


@pytest.mark.parametrize("t", [-0.1, 5.1, math.nan, math.inf])
def test_times_off_the_path_are_refused(t: float) -> None:
    path = ConvexTrajectory.fit(walk(5))
    with pytest.raises(InputError, match="^t: "):
        path.at(t)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"waypoints": 1}, "waypoints"), ({"waypoints": 9}, "waypoints"), ({"schedule": "linear"}, "schedule")],
    ids=["one-waypoint", "too-many", "unknown-schedule"],
)
def test_bad_arguments_name_themselves(arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        ConvexTrajectory.fit(walk(5), **arguments)


def test_bad_checkpoints_are_refused() -> None:
    points = walk(3)
    with pytest.raises(InputError, match="^checkpoints: "):
        ConvexTrajectory.fit(points[:1])
    with pytest.raises(InputError, match="^checkpoints: number 2"):
        ConvexTrajectory.fit([*points[:2], points[2][:-1]])
    points[1][0][0, 0] = math.nan
    with pytest.raises(InputError, match="finite"):
        ConvexTrajectory.fit(points)
    with pytest.raises(InputError, match="keep_checkpoints"):
        PathRecorder([torch.Size((3,))], 4, schedule="projected")


def test_discrete_path() -> None:
    checkpoints = walk(4)
    path = DiscreteTrajectory(checkpoints)
    assert path.epochs == 4 and path.shapes == tuple(torch.Size(s) for s in SHAPES)
    assert torch.equal(path.at(3), torch.cat([p.flatten() for p in checkpoints[3]]))
    with pytest.raises(InputError, match="integer"):
        path.at(1.5)
    with pytest.raises(InputError, match="^t: "):
        path.at(5)
