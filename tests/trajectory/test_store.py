"""The store on disk: what was written comes back, what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mct_fast.run.errors import InputError
from mct_fast.trajectory import ConvexTrajectory, DiscreteTrajectory, TrajectoryStore

SHAPES = [(4, 3), (5,)]


def manifest() -> dict:
    return {
        "model": {"name": "MLP"},
        "shapes": [list(s) for s in SHAPES],
        "dataset": {"name": "toy"},
        "recipe": {"seed": 0},
    }


def checkpoints(seed: int) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=g) for s in SHAPES] for _ in range(6)]


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    made = TrajectoryStore.create(tmp_path / "store", manifest())
    for number in (0, 1):
        points = checkpoints(number)
        kept = DiscreteTrajectory(points).checkpoints if number == 1 else None
        made.add(number, ConvexTrajectory.fit(points), {"accuracy": 0.5}, kept)
    return made


def test_round_trip_is_bit_exact(store: TrajectoryStore) -> None:
    opened = TrajectoryStore.open(store.path)
    assert len(opened) == 2 and opened.info(0) == {"accuracy": 0.5}
    for number in (0, 1):
        path = ConvexTrajectory.fit(checkpoints(number))
        for t in (0, 1.7, 5):
            assert torch.equal(opened[number].at(t), path.at(t))
    assert torch.equal(opened.trajectory(1, "discrete").at(2), DiscreteTrajectory(checkpoints(1)).at(2))


def test_create_again_continues_and_refuses_other_content(store: TrajectoryStore) -> None:
    assert TrajectoryStore.create(store.path, manifest()).experts == [0, 1]
    other = {**manifest(), "recipe": {"seed": 1}}
    with pytest.raises(InputError, match="another recipe"):
        TrajectoryStore.create(store.path, other)


def test_discrete_without_checkpoints_names_the_remedy(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match="--keep-checkpoints"):
        store.trajectory(0, "discrete")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_the_rest_still_reads(store: TrajectoryStore, damage: str) -> None:
    file = store.path / "expert_00000.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:-10])
    else:
        file.unlink()
    opened = TrajectoryStore.open(store.path)
    with pytest.raises(InputError, match="expert_00000"):
        opened[0]
    assert opened[1].epochs == 5


def test_unknown_version_and_absent_store(store: TrajectoryStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="manifest.json"):
        TrajectoryStore.open(tmp_path / "nowhere")
    file = store.path / "manifest.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        TrajectoryStore.open(store.path)
    file.write_text(file.read_text()[:-20])
    with pytest.raises(InputError, match="manifest.json"):
        TrajectoryStore.open(store.path)


def test_a_shard_whose_entry_was_never_written_does_not_count(store: TrajectoryStore) -> None:
    (store.path / "expert_00007.safetensors").write_bytes(b"left by a killed process")
    assert TrajectoryStore.open(store.path).experts == [0, 1]


def test_other_shapes_are_refused(store: TrajectoryStore) -> None:
    points = [[torch.randn(2, 2)], [torch.randn(2, 2)]]
    with pytest.raises(InputError, match="^path: "):
        store.add(2, ConvexTrajectory.fit(points), {})
