"""Reading: little at a time, remembered within bounds, in any order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mct_fast.models.init import Uniform, draw
from mct_fast.run.errors import InputError
from mct_fast.run.files import RowSpool
from mct_fast.trajectory import ConvexTrajectory, PathRecorder, TrajectoryStore
from mct_fast.trajectory import shards as module

SHAPES = [torch.Size((40, 25)), torch.Size((24,))]
PLAN = (Uniform(25), Uniform(25))
POINTS = 2 * 1024 * 4  # bytes of one decoded path


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    about = {"name": "toy"}
    made = TrajectoryStore.create(
        tmp_path / "store",
        {
            "model": about,
            "shapes": [list(shape) for shape in SHAPES],
            "init": [fill.to_json() for fill in PLAN],
            "dataset": about,
            "recipe": about,
        },
    )
    for number in range(8):
        start = draw(PLAN, SHAPES, number)
        flats = [start + t / 10 * torch.sin(torch.arange(1024.0) * (number + 1)) for t in range(5)]
        path = ConvexTrajectory.fit([[f[:1000].view(40, 25), f[1000:]] for f in flats])
        made.add(number, path, {}, torch.stack(flats), encoding="int8", init_seed=number)
    return TrajectoryStore.open(made.path)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    calls: list[object] = []
    function = getattr(module, name)

    def counted(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_repeated_read_decodes_and_hashes_nothing(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, drawn = count_calls(monkeypatch, "sha256_file"), count_calls(monkeypatch, "draw")
    first = store[3]
    assert store[3] is first and store.trajectory(3) is first
    store.trajectory(3, "discrete").at(2)
    assert len(hashed) == len(drawn) == 1


def test_the_cache_is_bounded_and_forgets_the_oldest(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, hashed = count_calls(monkeypatch, "draw"), count_calls(monkeypatch, "sha256_file")
    bounded = TrajectoryStore.open(store.path, cache_bytes=3 * POINTS)
    for i in (0, 1, 2, 0, 3):  # 3 pushes 1 out, which was used longest ago
        bounded[i]
    assert len(drawn) == 4
    for i in (0, 2, 3):
        bounded[i]
    assert len(drawn) == 4
    bounded[1]
    assert len(drawn) == 5
    for i in range(8):
        bounded[i]
        assert bounded.shards.held_bytes <= 3 * POINTS
    assert len(hashed) == 8, "a file is hashed once, however often it is decoded"
    nothing = TrajectoryStore.open(store.path, cache_bytes=0)
    assert torch.equal(nothing[0].at(2.5), bounded[0].at(2.5)) and not nothing.shards.held_bytes


def test_a_discrete_path_reads_one_checkpoint_at_a_time(
    store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.trajectory(2, "discrete")
    read: list[int] = []

    class Watched:
        def __init__(self, *arguments: object, **named: object) -> None:
            self.inner = safe_open(*arguments, **named)

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def get_tensor(self, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} was read whole")

        def get_slice(self, name: str) -> Watched:
            self.slice = self.inner.get_slice(name)
            return self

        def __getitem__(self, row: int) -> torch.Tensor:
            read.append(row)
            return self.slice[row]

    monkeypatch.setattr("mct_fast.trajectory.discrete.safe_open", Watched)
    start, target = path.at(1), path.at(3)
    assert read == [1, 3] and start.shape == target.shape == (1024,)
    expected = draw(PLAN, SHAPES, 2) + 3 / 10 * torch.sin(torch.arange(1024.0) * 3)
    assert torch.equal(target, expected)
    assert path.epochs == 4 and path.shapes == tuple(SHAPES) and not path.continuous


def test_shuffled_reads_each_when_its_turn_comes(store: TrajectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count_calls(monkeypatch, "draw")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(4)).tolist()
    assert order != sorted(order)
    for turn, path in enumerate(store.shuffled(torch.Generator().manual_seed(4))):
        assert len(drawn) == turn + 1
        assert torch.equal(path.at(0), draw(PLAN, SHAPES, order[turn]))


@pytest.mark.parametrize("start_encoding", ["float32", "fp16", "int8"])
@pytest.mark.parametrize("waypoints", [2, 4])
@pytest.mark.parametrize("encoding", ["float32", "fp16", "int4"])
def test_entries_say_what_encoding_changed(encoding: str, waypoints: int, start_encoding: str, tmp_path: Path) -> None:
    about = {"name": "toy"}
    shapes = [list(shape) for shape in SHAPES]
    store = TrajectoryStore.create(tmp_path, {"model": about, "shapes": shapes, "dataset": about, "recipe": about})
    generator = torch.Generator().manual_seed(3)
    flats = [torch.randn(1024, generator=generator)]
    for t in range(13):
        flats.append(flats[-1] + torch.randn(1024, generator=generator) / (t + 2))
    path = ConvexTrajectory.fit([[f[:1000].view(40, 25), f[1000:]] for f in flats], waypoints)
    store.add(0, path, {}, encoding=encoding, start_encoding=start_encoding)
    error, read = store.entry(0)["error"], TrajectoryStore.open(tmp_path)[0]
    assert error["expert_epochs"] == [1, 2, 4] and error["start"] == [0, 2.25, 4.5, 6.75, 9]
    for m, point, segment in zip(error["expert_epochs"], error["point"], error["segment"], strict=True):
        for t, at_target, between in zip(error["start"], point, segment, strict=True):
            begin, end = path.at(t).double(), path.at(t + m).double()
            off_begin, off_end = read.at(t).double() - begin, read.at(t + m).double() - end
            size = (end - begin).norm()
            # Three digits are noted; the float32 of path.at adds its own rounding.
            assert at_target == pytest.approx(float(off_end.norm() / size), rel=6e-3, abs=2e-6)
            assert between == pytest.approx(float((off_end - off_begin).norm() / size), rel=6e-3, abs=2e-6)
    if encoding != "float32":
        assert min(min(row) for row in error["segment"]) > 1e-5
    elif start_encoding == "float32":
        assert not any(map(any, error["point"]))


def test_where_a_path_stands_still_the_error_is_absent(tmp_path: Path) -> None:
    about = {"name": "toy"}
    store = TrajectoryStore.create(tmp_path, {"model": about, "shapes": [[3]], "dataset": about, "recipe": about})
    store.add(0, ConvexTrajectory.fit([[torch.ones(3)]] * 3), {}, encoding="int8")
    assert store.entry(0)["error"]["point"] == [[None], [None]]
    assert torch.equal(store[0].at(1.5), torch.ones(3))


def test_later_waypoints_do_not_add_up_errors(tmp_path: Path) -> None:
    about = {"name": "toy"}
    shapes = [torch.Size((8, 64))]
    store = TrajectoryStore.create(tmp_path, {"model": about, "shapes": [[8, 64]], "dataset": about, "recipe": about})
    generator = torch.Generator().manual_seed(0)
    flats = [torch.randn(512, generator=generator)]
    for _ in range(24):
        flats.append(flats[-1] + 0.1 * torch.randn(512, generator=generator))
    path = ConvexTrajectory.fit([[f.view(8, 64)] for f in flats], waypoints=9)
    store.add(0, path, {}, encoding="int4")
    decoded = store[0]
    assert isinstance(decoded, ConvexTrajectory)
    errors = (decoded.waypoints - path.waypoints).norm(dim=1)
    steps = path.waypoints.diff(dim=0).norm(dim=1)
    assert errors[0] == 0 and bool((errors[1:] < 0.12 * steps).all())
    assert [shape.numel() for shape in shapes] == [512]


# Memory while experts train


def live_bytes(epochs: int, waypoints: int = 2, regenerate: bool = True) -> int:
    """The largest number of bytes that a recorder holds between epochs."""
    shapes = [torch.Size((100, 90)), torch.Size((1000,))]
    start = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    recorder = PathRecorder(shapes, epochs, waypoints=waypoints, start=start.clone if regenerate else None)
    params, most = start.clone(), 0
    for epoch in range(epochs + 1):
        params += 0.01 * (epoch > 0)
        recorder.observe(params)
        held = {t.data_ptr(): t.nbytes for t in [recorder._previous, *recorder._kept.values()] if t is not None}
        most = max(most, sum(held.values()))
    path = recorder.finish()
    assert torch.equal(path.at(0), start) and torch.equal(path.at(epochs), params)
    return most


def test_a_recorder_holds_one_copy_whatever_the_number_of_epochs() -> None:
    copy = 40_000
    assert [live_bytes(epochs) for epochs in (1, 2, 5, 60)] == [copy] * 4
    assert [live_bytes(epochs, regenerate=False) for epochs in (2, 60)] == [2 * copy] * 2
    assert live_bytes(60, waypoints=4) == 3 * copy


def test_a_spool_keeps_rows_on_disk(tmp_path: Path) -> None:
    rows = torch.randn(5, 7)
    with RowSpool(tmp_path / "rows") as spool:
        for row in rows[:3]:
            spool.append(row)
        noted = spool.noted()
        spool.append(rows[0])  # which the note does not know of
    with RowSpool(tmp_path / "rows", noted) as spool:
        for row in rows[3:]:
            spool.append(row)
        assert torch.equal(spool.rows(), rows)
        noted = spool.noted()
    (tmp_path / "rows").write_bytes(b"\0" + (tmp_path / "rows").read_bytes()[1:])
    for odd in (noted, {**noted, "bytes": noted["bytes"] + 28}):
        with pytest.raises(InputError, match="does not match its checksum"):
            RowSpool(tmp_path / "rows", odd)
    with RowSpool(tmp_path / "rows") as spool:
        spool.append(rows[1])
        assert torch.equal(spool.rows(), rows[1:2])
