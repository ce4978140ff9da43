"""The storage benchmark: bytes are those on disk, the error and the accuracy those of the stores it made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import storage
from bench.storage import Network
from mct_fast.data import load_dataset
from mct_fast.trajectory import ENCODINGS, TrajectoryStore

TINY = Network("tiny", 1, 8, 3, published=10**6)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "NETWORKS", (TINY,))
    experts = replace(storage.EXPERTS, num_experts=2, train_epochs=3, depth=1, width=4)
    monkeypatch.setattr(storage, "EXPERTS", experts)
    distill = replace(
        storage.DIGITS_DISTILL, syn_steps=2, iterations=2, epoch_eval_train=2, num_eval=2, max_start_epoch=1.0
    )
    monkeypatch.setattr(storage, "DIGITS_DISTILL", distill)


def test_all_parts(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, work = tmp_path / "new" / "storage.json", tmp_path / "work"
    words = ["--experts", "2", "--readings", "3", "--work", str(work), "--json", str(out)]
    assert storage.main(words) == 0
    document = json.loads(out.read_text())
    assert document["kind"] == "storage" and {"machine", "versions", "commit", "date"} <= document.keys()
    assert str(tmp_path) not in out.read_text()
    parts: dict[str, list[dict[str, Any]]] = {result["part"]: result["rows"] for result in document["results"]}
    assert list(parts) == ["sizes", "accuracy", "reading"]
    for rows in parts.values():
        assert [row["encoding"] for row in rows] == list(ENCODINGS)
    parameters = sum(p.numel() for p in storage.build_model(TINY.spec()).parameters())
    for row in parts["sizes"]:
        assert row["parameters"] == parameters
        assert row["bytes_a_parameter"] == pytest.approx(row["bytes"] / (2 * parameters))
        assert row["against_51_checkpoints"] == pytest.approx(51 * 4 / row["bytes_a_parameter"])
        assert row["against_published"] == pytest.approx(2 * 10**4 / row["bytes"])
    for row in parts["accuracy"]:
        folder = work / "digits" / row["encoding"]
        assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        assert 0 <= row["final"]["test_mean"] <= 1 and row["final"]["num_eval"] == 2
    for row in parts["reading"]:
        assert row["warm"]["median"] > 0 and row["first"]["count"] == row["cold"]["count"] == 3
    text = capsys.readouterr().out
    assert "Bytes on disk" in text and "Distilled accuracy" in text and "Reading a match" in text
    before = {file: file.stat().st_mtime_ns for file in (work / "digits").rglob("*.safetensors")}
    assert storage.main([*words, "--parts", "accuracy"]) == 0  # goes on: nothing is trained or written again
    assert {file: file.stat().st_mtime_ns for file in (work / "digits").rglob("*.safetensors")} == before


def test_sizes_are_those_of_the_folder(tmp_path: Path) -> None:
    model = TINY.model()
    sizes = {}
    for encoding in ENCODINGS:
        store = storage.made_up_store(tmp_path / encoding, TINY, model, encoding, 2)
        sizes[encoding] = store.nbytes
        assert store.nbytes == sum(file.stat().st_size for file in (tmp_path / encoding).iterdir() if file.is_file())
        reopened = TrajectoryStore.open(tmp_path / encoding)
        assert reopened[1].epochs == storage.EPOCHS
    assert sizes["float32"] > sizes["fp16"] > sizes["int8"] > sizes["int4"]


def test_fewer_images_are_whole_classes_of_the_same_test_set() -> None:
    whole = load_dataset("digits")
    few = storage.fewer_images(whole, 7)
    assert torch.bincount(few.train.labels).tolist() == [7] * 10
    assert few.fingerprint != whole.fingerprint and few.test is whole.test
    rows = {row.numpy().tobytes() for row in whole.train.images}
    assert all(row.numpy().tobytes() in rows for row in few.train.images)


def test_a_wrong_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny: None) -> None:
    words = ["--parts", "accuracy", "--cifar", str(tmp_path / "nowhere"), "--work", str(tmp_path / "work")]
    assert storage.main(words) == 2
    err = capsys.readouterr().err
    assert "bench.storage: error:" in err and "nowhere" in err
