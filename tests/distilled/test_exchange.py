"""A distilled set that leaves in any format comes back the same; files of MTT, DATM and FTD are taken as they mean it."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mct_fast import cli
from mct_fast.data import Dataset, load_dataset
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.exchange import FORMATS, export, take_over
from mct_fast.run.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module", params=["hard", "soft"])
def distilled(digits: Dataset, request: pytest.FixtureRequest) -> DistilledDataset:
    images = digits.train.images[:20].clone()
    labels = torch.arange(10).repeat_interleave(2)
    if request.param == "soft":
        scores = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
        scores[range(20), labels] += 9
        labels = scores.softmax(1)
    return DistilledDataset(images, labels, 0.03, digits.transform, digits.class_names, {"dataset": "digits"})


def same(a: DistilledDataset, b: DistilledDataset) -> bool:
    return (
        torch.equal(a.images, b.images) and torch.allclose(a.labels.float(), b.labels.float()) and a.syn_lr == b.syn_lr
    )


@pytest.mark.parametrize("to", ["mtt", "ddranking", "npz"])
def test_what_leaves_comes_back(to: str, distilled: DistilledDataset, digits: Dataset, tmp_path: Path) -> None:
    files = export(distilled, to, tmp_path)
    assert all(file.is_file() for file in files)
    back, said = take_over(files[0] if to == "npz" else tmp_path, digits)
    assert torch.equal(back.images, distilled.images)
    assert torch.allclose(back.labels.float(), distilled.labels.float(), atol=1e-7)
    assert back.syn_lr == pytest.approx(0.03, rel=1e-6)
    assert back.labels.dtype == distilled.labels.dtype
    assert [line.partition(":")[0] for line in said] == ["images", "space", "labels", "step size"]


def test_ddranking_gets_its_settings(distilled: DistilledDataset, tmp_path: Path) -> None:
    export(distilled, "ddranking", tmp_path)
    settings = json.loads((tmp_path / "ddranking.json").read_text())
    assert settings["ipc"] == 2 and settings["im_size"] == [8, 8] and settings["use_zca"] is False
    assert torch.load(tmp_path / settings["image_tensor"], weights_only=True).shape == (20, 1, 8, 8)
    assert ("soft_labels" in settings) == distilled.labels.is_floating_point()


def test_pictures_are_what_people_see(distilled: DistilledDataset, tmp_path: Path) -> None:
    files = export(distilled, "png", tmp_path)
    assert len(files) == 20 and len({file.parent.name for file in files}) == 10
    for file, pixels in zip(files, distilled.pixels(), strict=True):
        with Image.open(file) as picture:
            assert np.abs(np.asarray(picture) / 255 - pixels[0].numpy()).max() < 1 / 255


def test_hugging_face_reads_its_folder(distilled: DistilledDataset, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export(distilled, "hf", tmp_path / "set")
    found = datasets.load_from_disk(str(tmp_path / "set"))
    assert len(found) == 20 and found[0]["image"].size == (8, 8)
    for row, pixels in zip(found, distilled.pixels(), strict=True):
        assert np.abs(np.asarray(row["image"]) / 255 - pixels[0].numpy()).max() < 1 / 255
    assert torch.equal(torch.tensor(found["label"][:]), distilled.labels)
    if not distilled.labels.is_floating_point():
        assert found.features["label"].names == list(distilled.class_names)
        again = load_dataset("hf", data_path=tmp_path / "set", val_fraction=0)
        assert again.class_names == distilled.class_names and again.image_shape == (1, 8, 8)


def test_the_command_writes_for_hugging_face(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    assert cli.main(["export", str(tiny_run), "--to", "hf", "--out", str(tmp_path / "set")]) == 0
    assert str(tmp_path / "set") in capsys.readouterr().out
    assert len(datasets.load_from_disk(str(tmp_path / "set"))) == 10
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert cli.main(["export", str(tiny_run), "--to", "hf", "--out", str(tmp_path / "none")]) == 2
    assert "to: hf needs the package datasets; pip install" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_pixels_of_an_npz_are_transformed(distilled: DistilledDataset, digits: Dataset, tmp_path: Path) -> None:
    pixels = distilled.pixels()
    labels = distilled.labels.numpy()
    np.savez(tmp_path / "a.npz", pixels=pixels.numpy(), labels=labels)
    np.savez(tmp_path / "b.npz", x=(pixels * 255).round().byte().numpy(), y=labels, lr=0.2)
    exact, _ = take_over(tmp_path / "a.npz", digits)
    assert torch.allclose(exact.images, distilled.images, atol=1e-5) and exact.syn_lr == 0.01
    coarse, _ = take_over(tmp_path / "b.npz", digits)
    assert (digits.transform.inverse(coarse.images) - pixels).abs().max() <= 0.5 / 255 + 1e-5 and coarse.syn_lr == 0.2


def write(folder: Path, **tensors: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}.pt")
    return folder


def test_files_of_the_field_mean_what_they_mean(digits: Dataset, tmp_path: Path) -> None:
    images, labels = digits.train.images[:10], torch.arange(10)
    logits = 5 * torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    for name, files, wanted, lr in [
        ("mtt", dict(images_best=images, labels_best=labels), labels, 0.01),
        ("datm", dict(images_best=images, labels_best=logits, lr_best=torch.tensor(0.05)), logits.softmax(1), 0.05),
        ("ftd", dict(images_best_ema=images, labels_best=labels, lr_best=torch.tensor([0.1, 0.3])), labels, 0.2),
        (
            "numbered",
            dict(images_500=images + 1, labels_500=labels, images_5000=images, labels_5000=labels),
            labels,
            0.01,
        ),
        ("float-labels", dict(images_best=images, labels_best=labels.float()[:, None]), labels, 0.01),
        ("no-labels", dict(images_best=images), labels, 0.01),
        ("parameter", dict(images_best=torch.nn.Parameter(images), labels_best=labels), labels, 0.01),
    ]:
        back, _ = take_over(write(tmp_path / name, **files), digits)
        order = torch.argsort(wanted if wanted.ndim == 1 else wanted.argmax(1), stable=True)
        assert torch.equal(back.images, images[order]) and torch.allclose(back.labels, wanted[order]), name
        assert back.syn_lr == pytest.approx(lr), name


class Evil:
    def __reduce__(self) -> Any:
        return open, ("/nonexistent/run", "w")


def bad(digits: Dataset, folder: Path) -> dict[str, Path]:
    images, labels = digits.train.images[:10], torch.arange(10)
    made = {
        "shape": write(folder / "shape", images_best=torch.zeros(10, 3, 8, 8), labels_best=labels),
        "nan": write(folder / "nan", images_best=images / 0, labels_best=labels),
        "labels-count": write(folder / "labels-count", images_best=images, labels_best=labels[:9]),
        "labels-range": write(folder / "labels-range", images_best=images, labels_best=labels + 1),
        "labels-half": write(folder / "labels-half", images_best=images, labels_best=labels + 0.5),
        "labels-nan": write(folder / "labels-nan", images_best=images, labels_best=torch.full((10, 10), torch.nan)),
        "lr": write(folder / "lr", images_best=images, labels_best=labels, lr_best=torch.tensor(-1.0)),
        "list": write(folder / "list", images_best=[images], labels_best=labels),
        "no-labels": write(folder / "no-labels", images_best=images[:9]),
        "empty": write(folder / "empty"),
        "missing": folder / "missing" / "images_best.pt",
    }
    for name in ("pickle", "torn", "npz-torn", "npz-pickle", "npz-nothing", "text"):
        (folder / name).mkdir()
    (folder / "pickle" / "images_best.pt").write_bytes(pickle.dumps(Evil()))
    whole = (made["lr"] / "images_best.pt").read_bytes()
    at = whole.index(images.numpy().tobytes()[:64])
    (folder / "torn" / "images_best.pt").write_bytes(whole[: at + 9] + b"!" + whole[at + 10 :])
    np.savez(folder / "npz-pickle" / "set.npz", images=np.array([Evil()], dtype=object))
    np.savez(folder / "npz-nothing" / "set.npz", other=labels.numpy())
    (folder / "npz-torn" / "set.npz").write_bytes(whole[:100])
    (folder / "text" / "images_best.pt").write_text("no tensor")
    made |= {name: folder / name for name in ("pickle", "torn", "text")}
    return made | {name: folder / name / "set.npz" for name in ("npz-torn", "npz-pickle", "npz-nothing")}


def test_what_does_not_fit_is_named_in_one_line(digits: Dataset, tmp_path: Path) -> None:
    for name, path in bad(digits, tmp_path).items():
        with pytest.raises(InputError, match=r"^path: .*; .") as caught:
            take_over(path, digits)
        assert "\n" not in str(caught.value), name
    with pytest.raises(InputError, match="^pixels: "):
        take_over(write(tmp_path / "space", images_best=digits.train.images[:10]), digits, pixels=True)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("cifar10", "CIFAR10"), ("folder:cifar100", "CIFAR100"), ("tiny-imagenet", "TinyImageNet"), ("imagewoof", "ImageWoof"),
        ("mine", "mine"),
    ],
)  # fmt: skip
def test_ddranking_knows_datasets_by_names_of_its_own(
    ours: str, theirs: str, distilled: DistilledDataset, tmp_path: Path
) -> None:
    export(replace(distilled, provenance={**distilled.provenance, "dataset": ours}), "ddranking", tmp_path)
    assert json.loads((tmp_path / "ddranking.json").read_text())["dataset"] == theirs


def test_formats_have_no_place_for_some_data(distilled: DistilledDataset, tmp_path: Path) -> None:
    four = replace(distilled, images=distilled.images.expand(-1, 4, -1, -1).contiguous())
    for to in ("png", "hf"):
        with pytest.raises(InputError, match="^to: "):
            export(four, to, tmp_path / to)
    with pytest.raises(InputError, match="^to: unknown format"):
        export(distilled, "jpeg", tmp_path)
    assert set(FORMATS) == {"mtt", "ddranking", "npz", "png", "hf"}


def test_anybodys_set_is_evaluated_by_commands(
    distilled: DistilledDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled.save(tmp_path / "set")
    there = ["--out", str(tmp_path / "there")]
    assert cli.main(["export", str(tmp_path / "set"), "--to", "mtt", *there]) == 0
    back = ["--dataset", "digits", "--out", str(tmp_path / "back")]
    assert cli.main(["import", str(tmp_path / "there"), *back]) == 0
    assert f"mct-fast evaluate {tmp_path / 'back'}" in capsys.readouterr().out
    assert same(DistilledDataset.load(tmp_path / "back"), replace(distilled, syn_lr=float(torch.tensor(0.03))))
    quick = ["--num_eval", "1", "--epoch_eval_train", "2", "--model", "MLP"]
    assert cli.main(["evaluate", str(tmp_path / "back"), *quick]) == 0
    assert "random real" in capsys.readouterr().out
    assert cli.main(["import", str(tmp_path / "nothing"), *back]) == 2
