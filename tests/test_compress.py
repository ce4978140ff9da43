"""Compressing checkpoints that exist: MTT's buffers come through, everything else is refused and never run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mct_fast.compress import compress, recognise_convnet
from mct_fast.data import load_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.errors import InputError
from mct_fast.models import MLP, ConvNet, model_spec
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

Expert = list[list[Tensor]]


def network(depth: int = 1, channels: int = 1, size: int = 8, width: int = 4) -> ConvNet:
    return ConvNet(depth=depth, width=width, channels=channels, image_size=size, num_classes=10)


def expert(module: nn.Module, seed: int, epochs: int = 5) -> Expert:
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(p.shape, generator=g) for p in module.parameters()] for _ in range(epochs + 1)]


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
        keep_checkpoints=True,
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
