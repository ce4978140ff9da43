"""Compressing checkpoints that exist: MTT's buffers come through, everything else is refused and never run."""

from __future__ import annotations

import io
import itertools
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mct_fast.cli import main
from mct_fast.compress import compress, recognise_convnet, to_mtt
from mct_fast.data import load_dataset, register_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.models import MLP, ConvNet, model_spec
from mct_fast.run.errors import InputError
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

Expert = list[list[Tensor]]


def network(depth: int = 1, channels: int = 1, size: int = 8, width: int = 4) -> ConvNet:
    return ConvNet(depth=depth, width=width, channels=channels, image_size=size, num_classes=10)


def expert(module: nn.Module, seed: int, epochs: int = 5) -> Expert:
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(p.shape, generator=g) for p in module.parameters()] for _ in range(epochs + 1)]


def exactly(source: Path, out: Path, **options: Any) -> TrajectoryStore:
    """Compressed without rounding."""
    return compress(source, out, dataset="digits", **{"encoding": "float32", **options})


def buffer(file: Path, experts: Any, **options: Any) -> Path:
    torch.save(experts, file, **options)
    return file


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("waypoints", "schedule", "smooth"), [(2, "arc_length", False), (4, "arc_length", True), (2, "projected", False)]
)
def test_a_buffer_round_trips(waypoints: int, schedule: str, smooth: bool, zipped: bool, tmp_path: Path) -> None:
    experts = [expert(network(), seed) for seed in (0, 1)]
    file = buffer(tmp_path / "replay_buffer_0.pt", experts, _use_new_zipfile_serialization=zipped)
    store = compress(
        file, tmp_path / "out", dataset="digits", waypoints=waypoints, schedule=schedule, smooth=smooth,
        keep_checkpoints=True, encoding="float32",
    )  # fmt: skip
    opened = TrajectoryStore.open(store.path)
    assert len(opened) == 2 and opened.manifest["model"] == model_spec(network())
    for i, checkpoints in enumerate(experts):
        path = ConvexTrajectory.fit(checkpoints, waypoints, schedule, smooth)
        for t in (0, 0.3, 2, 4.9, 5):
            assert torch.equal(opened[i].at(t), path.at(t))
        for epoch, tensors in enumerate(checkpoints):
            kept = opened.trajectory(i, "discrete").at(epoch)
            assert torch.equal(kept, torch.cat([tensor.reshape(-1) for tensor in tensors]))


def test_parameters_as_mtt_writes_them(tmp_path: Path) -> None:
    module = network()
    checkpoints = [[nn.Parameter(tensor) for tensor in tensors] for tensors in expert(module, 3)]
    store = compress(buffer(tmp_path / "b.pt", [checkpoints]), tmp_path / "out", dataset="digits")
    assert torch.equal(store[0].at(0), torch.cat([p.detach().reshape(-1) for p in checkpoints[0]]))


def test_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 0):
        buffer(tmp_path / f"replay_buffer_{number}.pt", [expert(network(), 100 + number)])
    buffer(tmp_path / "other.pt", [expert(network(), 0)])
    store = compress(tmp_path, tmp_path / "out", dataset="digits")
    assert [store.info(i)["source"] for i in range(len(store))] == [f"replay_buffer_{n}.pt" for n in (0, 9, 10)]
    for i, number in enumerate((0, 9, 10)):
        assert torch.equal(store[i].at(0), ConvexTrajectory.fit(expert(network(), 100 + number)).at(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("depth", "size"), [(1, 8), (2, 32), (3, 32), (4, 64)])
def test_a_convnet_is_recognised(depth: int, size: int, channels: int) -> None:
    module = network(depth, channels, size, width=6)
    assert recognise_convnet([p.shape for p in module.parameters()]) == model_spec(module)


def test_a_padded_convnet_is_recognised_by_its_dataset() -> None:
    padded = network(3, 1, 28)
    shapes = [p.shape for p in padded.parameters()]
    assert recognise_convnet(shapes, "mnist") == model_spec(padded)
    assert recognise_convnet(shapes)["image_size"] == 32
    assert recognise_convnet([p.shape for p in network(3, 3, 32).parameters()], "mnist")["image_size"] == 32


def test_other_networks_need_a_name(tmp_path: Path) -> None:
    module = MLP(depth=2, width=5, channels=1, image_size=8, num_classes=10)
    file = buffer(tmp_path / "b.pt", [expert(module, 0)])
    with pytest.raises(InputError, match="--model"):
        compress(file, tmp_path / "out", dataset="digits")
    with pytest.raises(InputError, match="^model: its parameter tensor 0 "):
        compress(file, tmp_path / "out", dataset="digits", model={**model_spec(module), "width": 6})
    with pytest.raises(InputError, match=r"^model: its parameter tensor 4 has shape \(5, 5\)"):
        compress(file, tmp_path / "out", dataset="digits", model={**model_spec(module), "depth": 3})
    assert not (tmp_path / "out").exists()
    spec = {"name": "MLP", "depth": 2, "width": 5, "channels": 1, "image_size": 8, "num_classes": 10}
    store = compress(file, tmp_path / "out", dataset="digits", model=spec)
    assert store.manifest["model"] == model_spec(module)


def test_a_compressed_store_can_be_distilled(tmp_path: Path) -> None:
    checkpoints = [[0.1 * tensor for tensor in tensors] for tensors in expert(network(), 0)]
    store = compress(buffer(tmp_path / "b.pt", [checkpoints]), tmp_path / "out", dataset="digits")
    config = DistillConfig(syn_steps=2, max_start_epoch=2, iterations=2, eval_it=0, num_eval=1, epoch_eval_train=1)
    assert distill(config, store, load_dataset("digits")).images.shape == (10, 1, 8, 8)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "nested"])
def test_a_hostile_file_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "replay_buffer_0.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Hostile(mark)))
    else:
        content = [[[Hostile(mark)]], expert(network(), 0)] if form == "nested" else Hostile(mark)
        buffer(file, content, _use_new_zipfile_serialization=form != "legacy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="^source: .*replay_buffer_0.pt") as caught:
            compress(tmp_path, tmp_path / "out", dataset="digits")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert not mark.exists() and not (tmp_path / "out").exists()


JUNK = {
    "empty": b"",
    "text": b"hello",
    "zip": b"PK\x03\x04",
    "pickled-list": pickle.dumps([1, 2]),
    "stack": b"\x80\x02.",
    "utf8": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "memo": b"\x80\x02h\x05.",
    "short": b"\x80\x02X\x02",
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_is_refused(junk: str, tmp_path: Path) -> None:
    file = tmp_path / "b.pt"
    file.write_bytes(JUNK[junk])
    with pytest.raises(InputError, match="^source: "):
        compress(file, tmp_path / "out", dataset="digits")


WRONG = {
    "tensor": torch.zeros(3),
    "dict": {"a": torch.zeros(3)},
    "one-expert-not-a-list": expert(network(), 0),
    "no-epochs": [[]],
    "no-tensors": [[[], []]],
    "integers": [[[torch.zeros(3, dtype=torch.int64)]] * 3],
    "numbers": [[[1.0, 2.0]] * 3],
    "no-experts": [],
    "one-epoch": [expert(network(), 0, epochs=0)],
    "changing-shapes": [[expert(network(), 0)[0], expert(network(width=5), 0)[0]]],
    "nan": [[[tensor * float("nan") for tensor in tensors] for tensors in expert(network(), 0)]],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_structure_is_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        compress(buffer(tmp_path / "b.pt", WRONG[wrong]), tmp_path / "out", dataset="digits")
    assert "\n" not in str(caught.value)


def test_absent_sources_and_unknown_datasets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^source: "):
        compress(tmp_path / "nowhere", tmp_path / "out", dataset="digits")
    with pytest.raises(InputError, match="^source: "):
        compress(tmp_path, tmp_path / "out", dataset="digits")
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    with pytest.raises(InputError, match="cifer10"):
        compress(file, tmp_path / "out", dataset="cifer10")
    with pytest.raises(InputError, match="^out: "):
        compress(file, file, dataset="digits")


# Resuming, and what a second call refuses


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}


def test_a_failed_call_keeps_what_came_before_and_goes_on(tmp_path: Path) -> None:
    experts = [expert(network(), seed) for seed in range(4)]
    source = tmp_path / "source"
    source.mkdir()
    buffer(source / "replay_buffer_0.pt", experts[:2])
    broken = [experts[2], [[t.clone() for t in tensors] for tensors in experts[3]]]
    broken[1][4][2][1] = float("inf")
    buffer(source / "replay_buffer_1.pt", broken)
    with pytest.raises(InputError, match=r"replay_buffer_1.pt expert 1 epoch 4 tensor 2 holds NaN or infinity"):
        compress(source, tmp_path / "out", dataset="digits")
    assert TrajectoryStore.open(tmp_path / "out").experts == [0, 1, 2]
    before = stamps(tmp_path / "out")
    buffer(source / "replay_buffer_1.pt", experts[2:])
    store = compress(source, tmp_path / "out", dataset="digits")
    assert store.experts == [0, 1, 2, 3] and before.items() <= stamps(tmp_path / "out").items()
    whole = compress(source, tmp_path / "whole", dataset="digits")
    for i in range(4):
        assert torch.equal(store[i].at(2.5), whole[i].at(2.5))


def test_a_source_that_grew_adds_to_the_store(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    buffer(source / "replay_buffer_0.pt", [expert(network(), 0)])
    compress(source, tmp_path / "out", dataset="digits")
    buffer(source / "replay_buffer_1.pt", [expert(network(), 1)])
    moved = source.rename(tmp_path / "moved")
    assert len(compress(moved, tmp_path / "out", dataset="digits")) == 2


OTHERS: dict[str, dict[str, Any]] = {
    "waypoints": {"waypoints": 3},
    "schedule": {"schedule": "uniform"},
    "smooth": {"smooth": True},
    "checkpoints": {"keep_checkpoints": True},
    "encoding": {"encoding": "int8"},
    "start": {"start_encoding": "fp16"},
    "dataset": {"dataset": "numerals"},
    "zca": {"zca": True},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_store_made_otherwise_is_refused(other: str, tmp_path: Path) -> None:
    alike = (torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    register_dataset("numerals", alike, alike)
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    compress(file, tmp_path / "out", dataset="digits")
    before = stamps(tmp_path / "out")
    with pytest.raises(InputError, match="^out: "):
        compress(file, tmp_path / "out", **{"dataset": "digits", **OTHERS[other]})
    assert stamps(tmp_path / "out") == before


def test_another_source_is_refused(tmp_path: Path) -> None:
    file = buffer(tmp_path / "replay_buffer_0.pt", [expert(network(), 0), expert(network(), 1)])
    compress(file, tmp_path / "out", dataset="digits")
    buffer(file, [expert(network(), 2)])
    with pytest.raises(InputError, match="^out: .* recipe"):
        compress(file, tmp_path / "out", dataset="digits")
    buffer(file, [expert(network(), 0), expert(network(), 2)])
    with pytest.raises(InputError, match=r"^out: expert 1 of .* came from replay_buffer_0.pt and differs"):
        compress(file, tmp_path / "out", dataset="digits")
    assert TrajectoryStore.open(tmp_path / "out").experts == [0, 1]


# Files that are damaged, or not what they should be


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(share: float, zipped: bool, tmp_path: Path) -> None:
    buffer(tmp_path / "replay_buffer_0.pt", [expert(network(), 0)])
    file = buffer(tmp_path / "replay_buffer_1.pt", [expert(network(), 1)], _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"^source: .*replay_buffer_1.pt ") as caught:
        compress(tmp_path, tmp_path / "out", dataset="digits")
    assert "\n" not in str(caught.value)
    assert TrajectoryStore.open(tmp_path / "out").experts == [0]


UNLIKE = {
    "shorter": (expert(network(), 1, epochs=4), "expert 1 has 4 epochs, the first expert 5"),
    "wider": (expert(network(width=5), 1), "expert 1 is another network"),
    "one-epoch": (expert(network(), 1, epochs=0), "expert 1 has 1 epoch"),
    "changes": (expert(network(), 1)[:3] + expert(network(width=5), 1)[:3], "expert 1 has other shapes at epoch 3"),
    "frozen": ([expert(network(), 1)[0]] * 6, "expert 1 ends where it began"),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_experts_that_do_not_go_together(unlike: str, tmp_path: Path) -> None:
    other, message = UNLIKE[unlike]
    file = buffer(tmp_path / "replay_buffer_0.pt", [expert(network(), 0), other])
    with pytest.raises(InputError, match=f"replay_buffer_0.pt {message}"):
        compress(file, tmp_path / "out", dataset="digits")


def test_a_tensor_larger_than_the_memory_behind_it(tmp_path: Path) -> None:
    forged = expert(network(), 0)
    forged[2][0] = torch.zeros(1, 1, 1, 1).expand(1 << 20, 1 << 20, 3, 3)
    file = buffer(tmp_path / "b.pt", [forged])
    assert file.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="^source: .* is not a list of epochs of tensors"):
        compress(file, tmp_path / "out", dataset="digits")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints = [[tensor.to(dtype) for tensor in tensors] for tensors in expert(network(), 0)]
    store = exactly(buffer(tmp_path / "b.pt", [checkpoints]), tmp_path / "out", keep_checkpoints=True)
    for t, kind in ((0, "convex"), (5, "convex"), (3, "discrete")):
        wanted = torch.cat([tensor.float().reshape(-1) for tensor in checkpoints[t]])
        assert torch.equal(store.trajectory(0, kind).at(t), wanted)


def resident() -> int:
    """Bytes of memory that belong to this process alone: pages of mapped files, which can be dropped, do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssAnon")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory through /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MLP(depth=1, width=800, channels=1, image_size=8, num_classes=10)  # 60,010 parameters
    file = buffer(tmp_path / "b.pt", [expert(module, seed, epochs=50) for seed in range(5)])
    size = file.stat().st_size
    assert size > 60e6
    seen = []
    add = TrajectoryStore.add

    def watched(store: TrajectoryStore, *args: Any, **options: Any) -> None:
        seen.append(resident())
        add(store, *args, **options)

    monkeypatch.setattr(TrajectoryStore, "add", watched)
    before = resident()
    compress(file, tmp_path / "out", dataset="digits", model=model_spec(module))
    assert len(seen) == 5 and max(seen) - before < size / 4


# The official MCT code's files


def mct_files(
    folder: Path, experts: list[Expert], pieces: int, name: str = "", spoil: Any = None
) -> tuple[Path, list[tuple[list[np.ndarray], np.ndarray, list[int]]]]:
    """Waypoint and step files in the layout of the MCT code, and of each expert (waypoints, beta (K + 1, L), knots)."""
    waypoint_lists, step_lists, truth = [], [], []
    for checkpoints in experts:
        values = [[tensor.double().numpy() for tensor in tensors] for tensors in checkpoints]
        last = len(values) - 1
        knots = [0, last] if pieces == 1 else [*list(range(0, last + 1, (last + 1) // pieces))[:pieces], last]
        step_list, table = [], []
        for a, b in itertools.pairwise(knots):
            norms = np.array(
                [[np.linalg.norm(v - u) for u, v in zip(values[t], values[t + 1], strict=True)] for t in range(a, b)]
            )
            total = norms.sum(0)
            beta = np.vstack([np.zeros(len(total)), norms.cumsum(0)]) / np.where(total == 0, 1, total)
            if spoil is not None:
                beta = spoil(beta)
            step_list.append([[torch.tensor(x, dtype=torch.float32) for x in row] for row in beta])
            table.append(beta)
        points = [values[0]]
        for knot in knots[1:]:
            near = (knot - 1, knot) if knot == last else (knot - 1, knot + 1)
            points.append(
                [(u + v) / 2 for u, v in zip(values[near[0]], values[near[1]], strict=True)]
                if pieces > 1
                else values[knot]
            )
        waypoint_lists.append([[torch.tensor(x, dtype=torch.float32) for x in point] for point in points])
        step_lists.append(step_list if pieces > 1 else step_list[0])
        truth.append(([np.concatenate([x.ravel() for x in point]) for point in points], table, knots))
    torch.save(step_lists, folder / f"step_buffer{name}_0.pt")
    torch.save(waypoint_lists, folder / f"waypoint_buffer{name}_0.pt")
    return folder / f"waypoint_buffer{name}_0.pt", truth


@pytest.mark.parametrize(("pieces", "epochs", "name"), [(1, 6, ""), (3, 50, "_ip4"), (2, 7, "_ip3")])
def test_files_of_the_mct_code(pieces: int, epochs: int, name: str, tmp_path: Path) -> None:
    experts = [expert(network(), seed, epochs) for seed in (0, 1)]
    for tensors in experts[0][1:]:
        tensors[1] = experts[0][0][1]  # a tensor that never moves
    file, truth = mct_files(tmp_path, experts, pieces, name)
    store = exactly(file, tmp_path / "out")
    assert len(store) == 2 and store[0].epochs == epochs and store.manifest["model"] == model_spec(network())
    sizes = [p.numel() for p in network().parameters()]
    for i, (points, tables, knots) in enumerate(truth):
        for t in (0, 0.25, 1, epochs / 2, epochs - 0.75, epochs):
            piece = min(sum(t >= knot for knot in knots[1:]), pieces - 1)
            at = t - knots[piece]
            low = min(int(at), len(tables[piece]) - 2)
            beta = tables[piece][low] + (at - low) * (tables[piece][low + 1] - tables[piece][low])
            share = np.repeat(beta, sizes)
            wanted = (1 - share) * points[piece] + share * points[piece + 1]
            np.testing.assert_allclose(store[i].at(t).numpy(), wanted, rtol=0, atol=2e-6)
    if pieces == 3:  # the same as our own path by the official recipe
        ours = ConvexTrajectory.fit(experts[1], waypoints=4, smooth=True)
        theirs = store[1]
        assert isinstance(theirs, ConvexTrajectory)
        assert torch.equal(theirs.waypoints, ours.waypoints)
        assert float((theirs.progress - ours.progress).abs().max()) < 1e-6


def test_a_folder_with_several_kinds_of_files(tmp_path: Path) -> None:
    experts = [expert(network(), seed, epochs=11) for seed in (0, 1)]
    mct_files(tmp_path, experts, 3, "_ip4")
    store = compress(tmp_path, tmp_path / "only", dataset="digits")
    assert store.manifest["recipe"]["source"]["files"] == "waypoint_buffer_ip4"
    mct_files(tmp_path, experts, 1)
    with pytest.raises(InputError, match=r"^files: .* waypoint_buffer, waypoint_buffer_ip4; choose one"):
        compress(tmp_path, tmp_path / "out", dataset="digits")
    store = exactly(tmp_path, tmp_path / "out", files="waypoint_buffer")
    assert torch.equal(store[0].at(11), torch.cat([tensor.reshape(-1) for tensor in experts[0][11]]))
    buffer(tmp_path / "replay_buffer_0.pt", experts[:1])
    buffer(tmp_path / "convexified_replay_buffer_0.pt", experts)
    assert len(compress(tmp_path, tmp_path / "mtt", dataset="digits")) == 1
    assert len(compress(tmp_path, tmp_path / "convex", dataset="digits", files="convexified_replay_buffer")) == 2
    with pytest.raises(InputError, match=r"^files: .* holds no waypoint_buffer_uni_"):
        compress(tmp_path, tmp_path / "none", dataset="digits", files="waypoint_buffer_uni")


def test_options_that_finished_paths_do_not_have(tmp_path: Path) -> None:
    file, _ = mct_files(tmp_path, [expert(network(), 0)], 1)
    for options in ({"waypoints": 3}, {"smooth": True}, {"keep_checkpoints": True}, {"schedule": "uniform"}):
        with pytest.raises(InputError, match="^waypoints: waypoint_buffer files hold finished paths"):
            compress(file, tmp_path / "out", dataset="digits", **options)
    assert not (tmp_path / "out").exists()


SPOILT = {
    "decreasing": lambda beta: beta + 0.1 * (1 - beta),
    "falls": lambda beta: np.where(np.arange(len(beta))[:, None] == 2, 0.0, beta),
    "past": lambda beta: 1.2 * beta,
    "nan": lambda beta: np.where(np.arange(len(beta))[:, None] == 2, np.nan, beta),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_beta_that_is_no_pace_is_refused(spoilt: str, tmp_path: Path) -> None:
    file, _ = mct_files(tmp_path, [expert(network(), 0)], 1, spoil=SPOILT[spoilt])
    with pytest.raises(InputError, match=r"^source: beta of .*waypoint_buffer_0.pt expert 0 does not rise from 0 to 1"):
        compress(file, tmp_path / "out", dataset="digits")


def test_mct_files_that_do_not_belong_together(tmp_path: Path) -> None:
    file, _ = mct_files(tmp_path, [expert(network(), 0), expert(network(), 1)], 1)
    steps = tmp_path / "step_buffer_0.pt"
    with pytest.raises(InputError, match=r"^source: .*step_buffer_0.pt holds only steps"):
        compress(steps, tmp_path / "out", dataset="digits")
    content = torch.load(steps)
    for wrong, message in (
        (content[:1], "has 2 experts, step_buffer_0.pt 1"),
        ([content[0], [row[:-1] for row in content[1]]], "has 6 tensors, its steps 5"),
        ([content[0], content[1][:1]], "is not a list of epochs of one number a tensor"),
        ([content[0], [content[1]]], "is not a list of epochs of one number a tensor"),
        ([content[0], torch.zeros(6, 6)], "is not a list of epochs of one number a tensor"),
    ):
        torch.save(wrong, steps)
        with pytest.raises(InputError, match=message):
            compress(file, tmp_path / "out", dataset="digits")
    torch.save(content, file)
    with pytest.raises(InputError, match="does not have the 5 pieces of 6 waypoints"):
        compress(file, tmp_path / "out", dataset="digits")
    mct_files(tmp_path, [expert(network(), 0)], 3, "_ip4")
    torch.save(torch.load(tmp_path / "step_buffer_ip4_0.pt")[0][:2], tmp_path / "step_buffer_ip4_0.pt")
    with pytest.raises(InputError, match="experts|pieces"):
        compress(tmp_path / "waypoint_buffer_ip4_0.pt", tmp_path / "out", dataset="digits")
    steps.unlink()
    with pytest.raises(InputError, match=r"has no step_buffer_0.pt beside it"):
        compress(file, tmp_path / "out", dataset="digits")


# Zips, and the dataset they are said to be of


def rezipped(source: Path, file: Path, **options: Any) -> Path:
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(file, "w", **options) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
    return file


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["compressed", "stored"])
def test_a_zip_packed_by_another_program_is_read_right(how: int, tmp_path: Path) -> None:
    file = buffer(tmp_path / "whole.pt", [expert(network(), 0)])
    packed = rezipped(file, tmp_path / "b.pt", compression=how)
    store, wanted = exactly(packed, tmp_path / "out"), exactly(file, tmp_path / "wanted")
    for t in (0, 2.5, 5):
        assert torch.equal(store[0].at(t), wanted[0].at(t))


@pytest.mark.parametrize("mct", [False, True], ids=["mtt", "mct"])
def test_a_changed_number_in_a_buffer_is_seen(mct: bool, tmp_path: Path) -> None:
    if mct:
        file, _ = mct_files(tmp_path, [expert(network(), 0)], 1)
    else:
        file = buffer(tmp_path / "replay_buffer_0.pt", [expert(network(), 0)])
    for changed in {file, tmp_path / "step_buffer_0.pt" if mct else file}:
        whole = changed.read_bytes()
        with zipfile.ZipFile(changed) as archive:
            record = next(r for r in archive.infolist() if r.filename.endswith("data/0"))
            name = len(record.filename.encode())
        extra = int.from_bytes(whole[record.header_offset + 28 : record.header_offset + 30], "little")
        at = record.header_offset + 30 + name + extra
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match=rf"^source: .*{changed.name} is damaged: .*data/0 .*CRC-32"):
            compress(file, tmp_path / "out", dataset="digits")
        changed.write_bytes(whole)
    compress(file, tmp_path / "out", dataset="digits")


def test_files_saved_without_crc_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    finally:
        torch.serialization.set_crc32_options(True)
    assert len(compress(file, tmp_path / "out", dataset="digits")) == 1


@pytest.mark.parametrize(
    ("dataset", "module", "message"),
    [
        ("cifar10", network(3, 1, 32), "cifar10 has 3 channels, the experts' network 1"),
        ("cifar100", network(3, 3, 32), "cifar100 has 100 outputs for its classes, the experts' network 10"),
        ("cifar10", network(4, 3, 64), "cifar10 has images of size 32, the experts' network is for 64"),
        ("digits", network(1, 1, 16), "digits has images of size 8, the experts' network is for 16"),
    ],
    ids=["channels", "classes", "size", "loaded"],
)
def test_experts_of_another_dataset_are_refused(dataset: str, module: ConvNet, message: str, tmp_path: Path) -> None:
    file = buffer(tmp_path / "b.pt", [expert(module, 0, 2)])
    with pytest.raises(InputError, match=f"^dataset: {message}"):
        compress(file, tmp_path / "out", dataset=dataset)
    with pytest.raises(InputError, match=f"^dataset: {message}"):
        compress(file, tmp_path / "out", dataset=dataset, model=model_spec(module))
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_here_is_not_compared_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    assert len(compress(file, tmp_path / "out", dataset="folder:birds")) == 1
    assert "folder:birds was not compared" in caplog.text
    with pytest.raises(InputError, match="^data_path: "):
        compress(file, tmp_path / "other", dataset="folder:birds", data_path=str(tmp_path / "nowhere"))


# Back to MTT


def mtt_reads(folder: Path) -> list[Any]:
    """Experts as the loop of MTT's distill.py finds them: files 0, 1, ... until one is missing, by plain torch.load."""
    experts, n = [], 0
    while (folder / f"replay_buffer_{n}.pt").exists():
        experts += torch.load(folder / f"replay_buffer_{n}.pt")
        n += 1
    return experts


@pytest.mark.parametrize("per_file", [1, 2, 10])
def test_kept_checkpoints_come_back_bit_for_bit(per_file: int, tmp_path: Path) -> None:
    experts = [expert(network(), seed) for seed in range(3)]
    experts[0][1][0][0] = -0.0
    file = buffer(tmp_path / "replay_buffer_0.pt", experts)
    store = compress(file, tmp_path / "out", dataset="digits", keep_checkpoints=True)
    written = to_mtt(store.path, tmp_path / "mtt", per_file=per_file)
    assert (written.checkpoints, written.convex, len(written.files)) == (3, 0, -(-3 // per_file))
    found = mtt_reads(tmp_path / "mtt")
    assert len(found) == 3
    for own, given in zip(found, experts, strict=True):
        assert isinstance(own, list) and all(isinstance(epoch, list) for epoch in own)
        for epoch, wanted in zip(own, given, strict=True):
            assert [t.shape for t in epoch] == [t.shape for t in wanted]
            assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(epoch, wanted, strict=True))
    if per_file == 10:  # no tensor drags the memory of another along
        plain = io.BytesIO()
        torch.save(experts, plain)
        assert written.files[0].stat().st_size == len(plain.getvalue())
        again = compress(tmp_path / "mtt", tmp_path / "again", dataset="digits", keep_checkpoints=True)
        assert again.manifest["recipe"] == store.manifest["recipe"]


def test_without_checkpoints_the_convex_path_is_written(tmp_path: Path) -> None:
    store = compress(buffer(tmp_path / "b.pt", [expert(network(), 0)]), tmp_path / "out", dataset="digits")
    written = to_mtt(store, tmp_path / "mtt")
    assert (written.checkpoints, written.convex) == (0, 1)
    (found,) = mtt_reads(tmp_path / "mtt")
    assert len(found) == 6
    for t, tensors in enumerate(found):
        assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in tensors]), store[0].at(t))


def test_files_for_mtt_are_whole_or_absent_and_the_first_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [expert(network(), seed) for seed in range(3)]
    store = compress(buffer(tmp_path / "b.pt", experts), tmp_path / "out", dataset="digits")
    save, calls = torch.save, []

    def full(content: Any, file: Any) -> None:
        calls.append(file)
        save(content, file)
        if len(calls) == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"^to_mtt: cannot write .*replay_buffer_1.pt"):
        to_mtt(store, tmp_path / "mtt", per_file=1)
    assert [file.name for file in (tmp_path / "mtt").glob("*.pt")] == ["replay_buffer_2.pt"]
    assert mtt_reads(tmp_path / "mtt") == [], "half of the experts would be taken for all of them"
    with pytest.raises(InputError, match=r"^source: .* lacks files: 'compress --to-mtt .*' was interrupted"):
        compress(tmp_path / "mtt", tmp_path / "again", dataset="digits")
    with pytest.raises(InputError, match=r"^to_mtt: .* already holds those of another store or --per-file"):
        to_mtt(store, tmp_path / "mtt", per_file=2)
    whole = (tmp_path / "mtt" / "replay_buffer_2.pt").stat().st_mtime_ns
    written = to_mtt(store, tmp_path / "mtt", per_file=1)
    assert (written.checkpoints, written.convex, len(written.files)) == (0, 3, 3)
    assert len(calls) == 4 and (tmp_path / "mtt" / "replay_buffer_2.pt").stat().st_mtime_ns == whole
    monkeypatch.undo()
    to_mtt(store, tmp_path / "fresh", per_file=1)
    for file in written.files:
        assert file.read_bytes() == (tmp_path / "fresh" / file.name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "mtt").iterdir()) == [f"replay_buffer_{n}.pt" for n in range(3)]
    with pytest.raises(InputError, match=r"^to_mtt: .* already holds replay_buffer files"):
        to_mtt(store, tmp_path / "mtt")
    with pytest.raises(InputError, match=r"^per_file: "):
        to_mtt(store, tmp_path / "new", per_file=0)


def test_a_damaged_expert_is_not_passed_off_as_one_without_checkpoints(tmp_path: Path) -> None:
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    store = compress(file, tmp_path / "out", dataset="digits", keep_checkpoints=True)
    (shard,) = store.path.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=shard.name):
        to_mtt(store.path, tmp_path / "mtt")
    assert not list((tmp_path / "mtt").glob("*"))


def test_the_command_line_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    store, back = str(tmp_path / "out"), str(tmp_path / "mtt")
    assert main(["compress", str(file), "--out", store, "--dataset", "digits", "--keep-checkpoints"]) == 0
    assert main(["compress", store, "--to-mtt", back]) == 0
    assert "every checkpoint of SGD, bit for bit" in capsys.readouterr().out
    assert torch.equal(mtt_reads(Path(back))[0][3][0], expert(network(), 0)[3][0])
    assert main(["compress", store, "--to-mtt", back, "--zca"]) == 2
    assert main(["compress", str(file), "--out", store]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2].strip() for line in errors if "error" in line] == ["to_mtt", "dataset"]


@pytest.mark.parametrize(("encoding", "start"), [("float32", "float32"), ("int8", "float32"), ("fp16", "fp16")])
def test_encodings_of_a_compressed_store(encoding: str, start: str, tmp_path: Path) -> None:
    file = buffer(tmp_path / "b.pt", [expert(network(), 0)])
    store = compress(file, tmp_path / "out", dataset="digits", encoding=encoding, start_encoding=start)
    assert store.entry(0)["encoding"] == encoding
    assert store.entry(0)["origin"] == {"kind": "stored", "encoding": start}
    exact = ConvexTrajectory.fit(expert(network(), 0))
    for t in (0, 2.5, 5):
        error = float((store[0].at(t) - exact.at(t)).norm() / (exact.at(5) - exact.at(0)).norm())
        assert error == 0 if encoding == "float32" or (t == 0 and start == "float32") else 0 < error < 0.01


def test_unknown_encodings_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("encoding", "start_encoding"):
        with pytest.raises(InputError, match=f"^{name}: unknown 'int7'"):
            compress(tmp_path / "nowhere", tmp_path / "out", dataset="digits", **{name: "int7"})
