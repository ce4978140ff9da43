"""The document's own reader, run as printed, against the package's: bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mct_fast.models.init import Constant, Uniform, draw
from mct_fast.trajectory import ENCODINGS, ConvexTrajectory, TrajectoryStore

DOCUMENT = (Path(__file__).parents[2] / "docs" / "trajectory-store.md").read_text(encoding="utf-8")
# Blocks that do not come out even, an odd number of codes, tensors too narrow to be coded, a scalar.
SHAPES = [torch.Size(s) for s in [(5, 3, 3, 3), (5,), (3, 7), (1, 129), (), (33, 11)]]
PLAN = (Uniform(27), Uniform(27), Uniform(7), Uniform(129), Constant(1.0), Uniform(11))


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    imports = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    assert imports == {"hashlib", "json", "math", "pathlib", "numpy"}
    space: dict[str, Any] = {"__name__": "reader"}
    exec(compile(code, "docs/trajectory-store.md", "exec"), space)  # its worked examples are asserted
    return space


def store_at(path: Path) -> TrajectoryStore:
    about = {"name": "toy"}
    return TrajectoryStore.create(
        path,
        {
            "model": about,
            "shapes": [list(shape) for shape in SHAPES],
            "init": [fill.to_json() for fill in PLAN],
            "dataset": about,
            "recipe": about,
        },
    )


def path_from(start: torch.Tensor, epochs: int, waypoints: int) -> ConvexTrajectory:
    generator = torch.Generator().manual_seed(epochs)
    sizes = [shape.numel() for shape in SHAPES]
    flat = [start]
    for _ in range(epochs):
        flat.append(flat[-1] + torch.randn(len(start), generator=generator) / 30)
    lists = [[p.reshape(s) for p, s in zip(f.split(sizes), SHAPES, strict=True)] for f in flat]
    return ConvexTrajectory.fit(lists, waypoints)


@pytest.mark.parametrize("waypoints", [2, 4])
@pytest.mark.parametrize("origin", ["seed", *ENCODINGS])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_documents_reader_gives_the_same_bits(
    encoding: str, origin: str, waypoints: int, reader: dict[str, Any], tmp_path: Path
) -> None:
    seed = 2**62 + 12345
    path = path_from(draw(PLAN, SHAPES, seed), 9, waypoints)
    kept = torch.zeros(10, path.waypoints.shape[1]) if encoding == "int4" else None
    store = store_at(tmp_path)
    how = {"init_seed": seed} if origin == "seed" else {"start_encoding": origin}
    store.add(3, path, {"name": "Größe"}, kept, encoding=encoding, **how)
    points, progress = reader["read_expert"](tmp_path, 3)
    ours = TrajectoryStore.open(tmp_path)[0]
    assert isinstance(ours, ConvexTrajectory)
    assert points.tobytes() == ours.waypoints.numpy().tobytes()
    assert progress.tobytes() == ours.progress.numpy().tobytes()
    for t in (0, 0.3, 2.75, 3.0, 5.5, 8.999, 9):
        assert reader["at"](points, progress, store.shapes, t).tobytes() == ours.at(t).numpy().tobytes()
    if encoding == "float32" and origin in ("seed", "float32"):
        assert np.array_equal(points, path.waypoints.numpy())


def test_every_key_that_is_written_is_documented(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    store.add(0, path_from(draw(PLAN, SHAPES, 1), 3, 2), {}, encoding="int8", init_seed=1)
    keys = {
        *TrajectoryStore.open(tmp_path).manifest,
        *store.entry(0),
        *store.entry(0)["origin"],
        *store.entry(0)["error"],
    }
    for key in keys - {"number"}:
        assert f"`{key}" in DOCUMENT or f'"{key}"' in DOCUMENT, key
