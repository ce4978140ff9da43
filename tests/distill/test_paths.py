"""Experts on another device: copied once, kept within bounds, the same numbers.  The meta device stands in for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mct_fast.distill.paths import ExpertPaths
from mct_fast.run.errors import InputError
from mct_fast.trajectory import BezierTrajectory, ConvexTrajectory, DiscreteTrajectory, Trajectory, TrajectoryStore

SHAPES = (torch.Size((3, 2)), torch.Size((4,)))


def checkpoints(seed: int) -> torch.Tensor:
    return torch.randn(4, 10, generator=torch.Generator().manual_seed(seed))


def convex(seed: int) -> ConvexTrajectory:
    points = [[row[:6].view(3, 2), row[6:]] for row in checkpoints(seed)]
    return ConvexTrajectory.fit(points, waypoints=3)


@pytest.mark.parametrize(
    "path",
    [convex(1), DiscreteTrajectory(checkpoints(2), SHAPES), BezierTrajectory(checkpoints(3)[:3], 5, SHAPES)],
    ids=["convex", "discrete", "bezier"],
)
def test_paths_move_whole(path: Trajectory) -> None:
    moved = path.to("meta")
    assert moved.nbytes == path.nbytes > 0 and moved.at(1.0).device.type == "meta"
    assert (moved.epochs, moved.shapes, moved.continuous) == (path.epochs, path.shapes, path.continuous)
    same = path.to("cpu")
    assert all(torch.equal(same.at(float(t)), path.at(float(t))) for t in range(path.epochs + 1))


def test_on_the_processor_paths_are_the_sources_own() -> None:
    source = [convex(seed) for seed in range(3)]
    paths = ExpertPaths(source, "convex")
    assert len(paths) == 3 and all(paths[i] is source[i] for i in range(3))


def test_elsewhere_a_path_is_copied_once_within_bounds() -> None:
    source = [convex(seed) for seed in range(3)]
    each = source[0].nbytes
    paths = ExpertPaths(source, "convex", "meta", kept_bytes=2 * each)
    first, second = paths[0], paths[1]
    assert first.at(0.5).device.type == "meta" and paths[0] is first and paths[1] is second
    third = paths[2]  # the first was used before the second
    assert paths[1] is second and paths[2] is third and paths[0] is not first
    small = ExpertPaths(source, "convex", "meta", kept_bytes=1)
    assert small[0].nbytes == each and small[1].nbytes == each  # one at least


def test_checkpoints_of_a_store_are_brought_along(tmp_path: Path) -> None:
    manifest = {
        "model": {"name": "x"},
        "shapes": [list(s) for s in SHAPES],
        "init": None,
        "dataset": {"name": "x"},
        "recipe": {},
    }
    store = TrajectoryStore.create(tmp_path / "store", manifest)
    with store.writing():
        store.add(0, convex(0), {}, checkpoints(0), encoding="float32")
    moved = ExpertPaths(store, "discrete", "meta")[0]
    assert moved.nbytes == store.trajectory(0, "discrete").nbytes and moved.at(3.0).device.type == "meta"
    with pytest.raises(InputError, match="hold no expert"):
        ExpertPaths([], "convex")
