"""What inspect says of a store is what is in it: bytes, pace, and the accuracy of every network on the path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mct_fast.cli import main
from mct_fast.data import load_dataset
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.models import build_model
from mct_fast.run.errors import InputError
from mct_fast.trajectory import TrajectoryStore
from mct_fast.view.inspect import draw, inspect_store, path_times

EPOCHS = 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    """Two experts whose checkpoints are kept. Read only."""
    config = ExpertConfig(
        num_experts=2, train_epochs=EPOCHS, depth=2, width=8, batch_train=64, lr_teacher=0.05, keep_checkpoints=True,
        encoding="float32",
    )  # fmt: skip
    return train_experts(config, tmp_path_factory.mktemp("inspect") / "experts")


def copy_of(store: TrajectoryStore, folder: Path, encoding: str = "float32") -> TrajectoryStore:
    given = {key: store.manifest[key] for key in ("model", "shapes", "dataset", "recipe")}
    copy = TrajectoryStore.create(folder, given)
    for i, number in enumerate(store.experts):
        copy.add(number, store.trajectory(i), store.info(i), encoding=encoding)  # pyright: ignore[reportArgumentType]
    return copy


@pytest.mark.parametrize("split", ["val", "test"])
def test_accuracy_along_the_path_is_that_of_the_plain_network(store: TrajectoryStore, split: str) -> None:
    report = inspect_store(store, split=split, samples=10**6, experts=2, points=3)
    assert report.along is not None
    held_out = getattr(load_dataset("digits"), split)
    assert (report.along.split, report.along.samples) == (split, len(held_out.labels))
    module = build_model(store.manifest["model"]).double().eval()

    def accuracy(params: torch.Tensor) -> float:
        nn.utils.vector_to_parameters(params.double(), module.parameters())
        with torch.no_grad():
            right = module(held_out.images.double()).argmax(1) == held_out.labels
        return float(right.double().mean())

    assert len(report.along.curves) == 2
    for i, curve in enumerate(report.along.curves):
        assert curve.expert == i and curve.times == (0.0, 0.5, 2.0, 2.5, 4.0)
        convex, sgd = store.trajectory(i), store.trajectory(i, "discrete")
        for t, found, kept in zip(curve.times, curve.convex, curve.checkpoints, strict=True):
            assert found == pytest.approx(accuracy(convex.at(t)), abs=1e-9)
            if t == int(t):
                assert kept == pytest.approx(accuracy(sgd.at(t)), abs=1e-9)
            else:
                assert kept is None
        assert curve.convex[0] == curve.checkpoints[0] and curve.convex[-1] == curve.checkpoints[-1]
        assert curve.convex[-1] > curve.convex[0] + 0.2  # it was trained


def test_times_run_over_whole_epochs_and_between() -> None:
    assert path_times(4, 3) == (0, 0.5, 2, 2.5, 4)
    assert path_times(3, 11) == (0, 0.5, 1, 1.5, 2, 2.5, 3)
    assert path_times(1, 2) == (0, 0.5, 1)
    assert path_times(3, 2**31 - 1) == path_times(3, 11)
    whole = [t for t in path_times(50, 11) if t == int(t)]
    assert whole == [5 * i for i in range(11)] and len(path_times(50, 11)) == 21


def test_sizes_count_the_whole_folder(store: TrajectoryStore, tmp_path: Path) -> None:
    small = copy_of(store, tmp_path / "small")
    report, full = inspect_store(small, accuracy=False), inspect_store(store, accuracy=False)
    size = sum(file.stat().st_size for file in small.path.iterdir())
    parameters = sum(p.numel() for p in build_model(store.manifest["model"]).parameters())
    assert (report.bytes, report.parameters, report.experts, report.epochs) == (size, parameters, 2, EPOCHS)
    assert report.bytes_a_parameter == size / (2 * parameters)
    assert report.mtt_ratio == 51 * 4 * parameters * 2 / size
    assert (report.keeps_checkpoints, full.keeps_checkpoints) == (False, True)
    assert full.bytes > report.bytes + EPOCHS * 4 * parameters * 2  # EPOCHS + 1 checkpoints, less theta_0 (a seed)
    assert report.score is not None
    accuracies = [store.info(i)["accuracy"] for i in range(2)]
    assert report.score == {"mean": np.mean(accuracies), "worst": min(accuracies), "best": max(accuracies)}


@pytest.mark.parametrize("encoding", ["float32", "fp16", "int8", "int4"])
def test_encoding_and_its_error(encoding: str, store: TrajectoryStore, tmp_path: Path) -> None:
    report = inspect_store(copy_of(store, tmp_path / "copy", encoding), accuracy=False)
    assert report.encodings == {encoding: 2} and report.origins == {"stored as float32": 2}
    original = inspect_store(store, accuracy=False)
    assert original.origins == {"seed": 2}
    assert report.error is not None
    if encoding == "float32":
        assert report.error == {"median": 0, "max": 0}
        return
    copy, values = TrajectoryStore.open(tmp_path / "copy"), []
    for i in range(2):
        noted = copy.entry(i)["error"]
        for m, row in zip(noted["expert_epochs"], noted["point"], strict=True):
            for t, value in zip(noted["start"], row, strict=True):
                if value is not None:
                    theta, decoded = store[i].at(t + m).double(), copy[i].at(t + m).double()
                    length = float((theta - store[i].at(t).double()).norm())
                    values.append(float((decoded - theta).norm()) / length)
    assert report.error["median"] == pytest.approx(np.median(values), rel=0.02)
    assert report.error["max"] == pytest.approx(max(values), rel=0.02)


def test_pace_is_the_mean_of_the_tables(store: TrajectoryStore) -> None:
    report = inspect_store(store, accuracy=False, experts=2)
    assert report.pace is not None and report.pace.experts == 2 and report.pace.waypoints == 2
    module = build_model(store.manifest["model"])
    assert report.pace.names == tuple(name for name, _ in module.named_parameters())
    for layer, row in enumerate(report.pace.progress):
        moves = []
        for i in range(2):
            points = store.trajectory(i, "discrete").checkpoints.double().numpy()  # pyright: ignore
            sizes = np.cumsum([0, *(p.numel() for p in module.parameters())])
            part = points[:, sizes[layer] : sizes[layer + 1]]
            steps = np.linalg.norm(np.diff(part, axis=0), axis=1)
            moves.append(np.concatenate([[0], steps.cumsum() / steps.sum()]) if steps.sum() else [*[0] * EPOCHS, 1])
        np.testing.assert_allclose(row, np.mean(moves, axis=0), atol=1e-12)


def test_verify_looks_at_control_points(store: TrajectoryStore, tmp_path: Path) -> None:
    copy = copy_of(store, tmp_path / "curves")
    for number in copy.experts:
        copy.add_control(number, copy.trajectory(copy.experts.index(number)).at(1), {})
    assert inspect_store(copy.path, accuracy=False, verify=True).broken == ()
    file = copy.path / str(copy.entry(1)["control"]["file"])
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    report = inspect_store(copy.path, accuracy=False, verify=True)
    assert report.broken == (file.name,) and report.pace is not None and report.pace.experts == 1
    file.unlink()
    assert inspect_store(copy.path, accuracy=False, verify=True).broken == (file.name,)


def test_verify_names_every_damaged_file(store: TrajectoryStore, tmp_path: Path) -> None:
    assert inspect_store(copy_of(store, tmp_path / "whole"), accuracy=False, verify=True).broken == ()
    copy = copy_of(store, tmp_path / "broken")
    first, second = (copy.path / str(copy.entry(i)["file"]) for i in range(2))
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 4
    first.write_bytes(content)
    report = inspect_store(copy.path, accuracy=False, verify=True)
    assert report.broken == (first.name,) and report.pace is not None
    with pytest.raises(InputError, match=first.name):
        inspect_store(copy.path, accuracy=False)
    second.unlink()
    report = inspect_store(copy.path, verify=True)
    assert report.broken == (first.name, second.name) and report.along is None and report.pace is None
    with pytest.raises(InputError, match="^out: "):
        draw(report, tmp_path / "p.png")


def test_a_dataset_that_is_gone_is_noted(store: TrajectoryStore, tmp_path: Path) -> None:
    copy = copy_of(store, tmp_path / "gone")
    manifest = json.loads((copy.path / "manifest.json").read_text())
    manifest["dataset"] |= {"name": "cifar10", "data_path": str(tmp_path / "nowhere")}
    manifest["checksum"] = None  # edited by hand
    (copy.path / "manifest.json").write_text(json.dumps(manifest))
    report = inspect_store(copy.path)
    assert report.along is None and report.not_evaluated is not None and "nowhere" in report.not_evaluated
    with pytest.raises(InputError):
        inspect_store(copy.path, data_path=str(tmp_path / "elsewhere"))
    manifest["dataset"] |= {"name": "digits", "data_path": None, "split_seed": 5}
    (copy.path / "manifest.json").write_text(json.dumps(manifest))
    report = inspect_store(copy.path)
    assert report.not_evaluated is not None and "fingerprints differ" in report.not_evaluated


@pytest.mark.parametrize("option", ["samples", "experts", "points"])
def test_counts_that_make_no_sense(store: TrajectoryStore, option: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: got 0"):
        inspect_store(store, **{option: 0})


def test_a_store_without_experts(store: TrajectoryStore, tmp_path: Path) -> None:
    given = {key: store.manifest[key] for key in ("model", "shapes", "dataset", "recipe")}
    report = inspect_store(TrajectoryStore.create(tmp_path / "empty", given), verify=True)
    assert (report.experts, report.bytes_a_parameter, report.broken) == (0, None, ())


def test_the_picture_shows_both_sides(store: TrajectoryStore, tmp_path: Path) -> None:
    with_accuracy = np.asarray(Image.open(draw(inspect_store(store, points=3), tmp_path / "a.png")).convert("RGB"))
    without = np.asarray(Image.open(draw(inspect_store(store, accuracy=False), tmp_path / "b.png")).convert("RGB"))
    for image, sides in ((with_accuracy, (True, True)), (without, (True, False))):
        half = image.shape[1] // 2
        drawn = [(part != 255).any(2).mean() for part in (image[:, :half], image[:, half:])]
        assert (drawn[0] > 0.02, drawn[1] > 0.02) == sides
    blue = (np.abs(with_accuracy.astype(int) - (0x2F, 0x7F, 0xD6)).sum(2) < 30).sum()
    assert blue > 100


def test_the_command_line(store: TrajectoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "new" / "p.png"
    words = ["inspect", str(store.path), "--samples", "100", "--experts", "2", "--points", "3", "--verify"]
    assert main([*words, "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "all 2 files match" in out and "SGD, expert 1" in out and "2.5" in out
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["broken"] == [] and len(found["along"]["curves"]) == 2 and found["parameters"] > 0
    assert main(["inspect", str(store.path), "--no-accuracy"]) == 0
    assert "SGD" not in capsys.readouterr().out
    copy = copy_of(store, tmp_path / "copy")
    file = copy.path / str(copy.entry(1)["file"])
    file.write_bytes(file.read_bytes()[:-1])
    assert main(["inspect", str(copy.path), "--verify"]) == 2
    captured = capsys.readouterr()
    *_, last = captured.err.splitlines()
    assert last.startswith("mct-fast: error: verify: 1 of 2 files") and file.name in last and file.name in captured.out
    assert main(["inspect", str(tmp_path), "--verify"]) == 2
    assert "no trajectory store" in capsys.readouterr().err
