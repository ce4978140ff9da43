"""A distilled set on disk: whole, self-contained, and readable by others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mct_fast.data import ZCA, Identity, Normalize
from mct_fast.distilled import DistilledDataset
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_file


def made(kind: str = "normalize", soft: bool = False) -> DistilledDataset:
    g = torch.Generator().manual_seed(1)
    channels = 1 if kind == "identity" else 3
    raw = torch.rand(40, channels, 6, 6, generator=g)
    transform = {
        "identity": Identity(),
        "normalize": Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.1)),
        "zca": ZCA.fit(torch.rand(200, 3, 6, 6, generator=g)),
    }[kind]
    labels = torch.rand(4, 2, generator=g).softmax(-1) if soft else torch.tensor([0, 0, 1, 1])
    return DistilledDataset(
        transform.forward(raw[:4]), labels, 0.1 + 1e-17, transform, ("cat", "döner"), {"dataset": "toy", "n": [1, 2.5]}
    )


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", ["identity", "normalize", "zca"])
def test_round_trip(kind: str, soft: bool, tmp_path: Path) -> None:
    before = made(kind, soft)
    after = DistilledDataset.load(before.save(tmp_path / "deep" / "folder"))
    assert torch.equal(after.images, before.images) and after.images.dtype == torch.float32
    assert torch.equal(after.labels, before.labels) and after.labels.dtype == before.labels.dtype
    assert after.syn_lr == before.syn_lr and after.class_names == before.class_names
    assert dict(after.provenance) == dict(before.provenance) and len(after) == 4 and after.num_classes == 2
    assert torch.equal(after.pixels(), before.pixels())
    g = torch.Generator().manual_seed(1)
    raw = torch.rand(40, before.images.shape[1], 6, 6, generator=g)[:4]
    assert torch.allclose(after.pixels(), raw, atol=1e-4), "the transform is undone"


def test_saving_again_replaces(tmp_path: Path) -> None:
    first = made()
    first.save(tmp_path)
    replace(first, images=first.images + 1, syn_lr=0.5).save(tmp_path)
    after = DistilledDataset.load(tmp_path)
    assert torch.equal(after.images, first.images + 1) and after.syn_lr == 0.5
    assert sorted(f.name for f in tmp_path.iterdir()) == ["distilled.json", "distilled.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "tensors-gone", "json-cut", "json-list", "json-key", "version"])
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    made("zca").save(tmp_path)
    tensors, meta = tmp_path / "distilled.safetensors", tmp_path / "distilled.json"
    content = json.loads(meta.read_text())
    if damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "tensors-gone":
        tensors.unlink()
    elif damage == "json-cut":
        meta.write_text(meta.read_text()[:-30])
    elif damage == "json-list":
        meta.write_text("[]")
    elif damage == "json-key":
        del content["syn_lr"]
        meta.write_text(json.dumps(content))
    else:
        meta.write_text(json.dumps({**content, "format_version": 3}))
    with pytest.raises(InputError, match=str(tmp_path)) as caught:
        DistilledDataset.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_changed_number_in_the_json_is_not_evaluated(tmp_path: Path) -> None:
    replace(made(), syn_lr=0.011).save(tmp_path)
    meta = tmp_path / "distilled.json"
    meta.write_text(meta.read_text().replace("0.011", "0.911"))
    with pytest.raises(InputError, match=r"distilled.json does not match its checksum.*; delete it"):
        DistilledDataset.load(tmp_path)
    content = json.loads(meta.read_text())
    meta.write_text(json.dumps({**content, "checksum": None}))  # as whoever edits a store's manifest says so
    with pytest.raises(InputError, match=r"distilled.json does not say what distilled.safetensors holds"):
        DistilledDataset.load(tmp_path)
    meta.unlink()
    assert DistilledDataset.load(tmp_path).syn_lr == 0.011


def test_a_kill_between_the_two_files_leaves_the_new_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for before in (False, True):
        folder = tmp_path / str(before)
        if before:
            replace(made(), syn_lr=0.3).save(folder)
        monkeypatch.setattr("mct_fast.distilled.dataset.write_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            replace(made(), syn_lr=0.4).save(folder)
        monkeypatch.undo()
        assert DistilledDataset.load(folder).syn_lr == 0.4


def as_before(folder: Path) -> dict[str, Any]:
    """The set in ``folder`` as an earlier release wrote it; returns its description."""
    content = json.loads((folder / "distilled.json").read_text())
    tensors = load_file(folder / "distilled.safetensors")
    save_file(tensors, folder / "distilled.safetensors")
    del content["checksum"], content["tensors"]
    content |= {"format_version": 1, "sha256": sha256_file(folder / "distilled.safetensors")}
    (folder / "distilled.json").write_text(json.dumps(content))
    return content


def test_a_set_of_an_earlier_release_is_read_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = made("zca")
    before.save(tmp_path)
    as_before(tmp_path)
    after = DistilledDataset.load(tmp_path)
    assert torch.equal(after.pixels(), before.pixels()) and after.syn_lr == before.syn_lr
    assert caplog.text.count("written by an earlier release") == 1
    replace(after, syn_lr=0.7).save(tmp_path)
    assert DistilledDataset.load(tmp_path).syn_lr == 0.7


@pytest.mark.parametrize(
    "wrong",
    [
        {"syn_lr": "0.1"},
        {"syn_lr": True},
        {"class_names": "ab"},
        {"class_names": [1, 2]},
        {"transform": []},
        {"transform": {"kind": ["zca"]}},
        {"transform": {"kind": "zca", "eps": 0.1, "image_shape": [1, 2]}},
        {"transform": {"kind": "table", "columns": 3}},
        {"provenance": []},
        {"provenance": {"config": []}},
        {"provenance": {"config": {"lr_net": "x"}}},
        {"provenance": {"task": {"name": 1}}},
        {"provenance": {"task": {"name": "binary", "pos_weight": "x"}}},
        {"provenance": {"task": {"name": "classification", "x": 1}}},
    ],
    ids=str,
)
def test_a_description_of_wrong_types_is_one_line(wrong: dict[str, Any], tmp_path: Path) -> None:
    made("zca").save(tmp_path)
    (tmp_path / "distilled.json").write_text(json.dumps({**as_before(tmp_path), **wrong}))
    with pytest.raises(InputError) as caught:
        DistilledDataset.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for write in (made().save, made().to_mtt, lambda folder: made().to_png(folder / "x.png")):
        with pytest.raises(InputError, match="file"):
            write(blocked)
        with pytest.raises(InputError, match="cannot write"):
            write(Path("/proc/nowhere"))


@pytest.mark.parametrize("kind", ["identity", "normalize"])
def test_png_shows_every_image(kind: str, tmp_path: Path) -> None:
    distilled = made(kind)
    file = distilled.to_png(tmp_path / "images.png")
    with Image.open(file) as picture:
        assert picture.mode == "RGB" and picture.size == (
            4 + 2 * 64,
            4 + 2 * (18 + 64),
        )  # 6 pixels, tenfold, below names
        pixels = torch.from_numpy(np.array(picture)).float()
    shown = distilled.pixels().expand(-1, 3, -1, -1)
    for n in range(4):  # a row a class
        corner = pixels[4 + 18 + n // 2 * (18 + 64) + 5, 4 + 64 * (n % 2) + 5] / 255
        assert torch.allclose(corner, shown[n, :, 0, 0], atol=1 / 255)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_mtt_files(soft: bool, tmp_path: Path) -> None:
    distilled = made("zca", soft)
    distilled.to_mtt(tmp_path / "new")
    images = torch.load(tmp_path / "new" / "images_best.pt", weights_only=True)
    labels = torch.load(tmp_path / "new" / "labels_best.pt", weights_only=True)
    assert torch.equal(images, distilled.images) and torch.equal(labels, distilled.labels)
    assert float((tmp_path / "new" / "syn_lr.txt").read_text()) == distilled.syn_lr
    assert float((tmp_path / "new" / "lr_net.txt").read_text()) == distilled.syn_lr
    replace(distilled, provenance={"config": {"lr_net": 0.003}}).to_mtt(tmp_path / "new")
    assert float((tmp_path / "new" / "syn_lr.txt").read_text()) == distilled.syn_lr
    assert float((tmp_path / "new" / "lr_net.txt").read_text()) == 0.003
