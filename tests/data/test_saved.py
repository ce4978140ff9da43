"""Folders of Hugging Face ``datasets``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mct_fast.data import Dataset, load_dataset, load_noted, register_dataset
from mct_fast.run.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
LABELS = [row % 3 for row in range(24)]
NAMES = ["c", "a", "b"]
ROWS = {"train": slice(0, 12), "validation": slice(12, 18), "test": slice(18, 24)}


def test_the_package_is_asked_for_where_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package datasets; run: pip install datasets"):
        load_dataset("hf", data_path=tmp_path)
    with pytest.raises(InputError, match="data_path is missing: hf needs a folder"):
        load_dataset("hf")
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_dataset("hf", data_path=tmp_path, download=True)


@pytest.fixture(scope="module")
def hf() -> Any:
    return pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def registered() -> Dataset:
    train, val, test = ((PIXELS[rows], LABELS[rows]) for rows in ROWS.values())
    register_dataset("saved-wanted", train, test, val, class_names=NAMES)
    return load_dataset("saved-wanted")


def saved(hf: Any, part: str, *, image: str = "image", label: str = "label", named: bool = True, **more: Any) -> Any:
    columns: dict[str, Any] = {
        image: [Image.fromarray(picture) for picture in PIXELS[ROWS[part]]],
        label: LABELS[ROWS[part]],
    }
    kind = hf.ClassLabel(names=NAMES) if named else hf.Value("int64")
    features = {image: hf.Image(), label: kind, **{name: hf.Value("string") for name in more}}
    return hf.Dataset.from_dict({**columns, **more}, features=hf.Features(features))


@pytest.mark.parametrize(
    "columns", [{}, {"image": "img", "label": "fine_label"}, {"label": "species"}, {"named": False}], ids=str
)
def test_saved_splits_give_what_registered_arrays_give(
    hf: Any, registered: Dataset, tmp_path: Path, columns: dict[str, Any]
) -> None:
    hf.DatasetDict({part: saved(hf, part, **columns) for part in ROWS}).save_to_disk(str(tmp_path))
    dataset = load_dataset("hf", data_path=tmp_path)
    assert dataset.fingerprint == registered.fingerprint
    assert dataset.class_names == (("c", "a", "b") if columns.get("named", True) else ("0", "1", "2"))
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint


def test_one_data_set_is_split_and_its_pictures_are_resized(hf: Any, tmp_path: Path) -> None:
    saved(hf, "train", note=["?"] * 12).save_to_disk(str(tmp_path))
    dataset = load_dataset("hf:cifar10", data_path=tmp_path, image_size=4, val_fraction=0)
    assert dataset.image_shape == (3, 4, 4) and dataset.name == "hf:cifar10"
    assert (len(dataset.train), len(dataset.test)) == (9, 3)


def test_what_cannot_be_read_is_refused_in_one_line(hf: Any, tmp_path: Path) -> None:
    train = saved(hf, "train")
    none = train.select(range(11)).add_item({"image": None, "label": 0})
    broken = train.cast_column("image", hf.Image(decode=False)).map(
        lambda row: {"image": {"bytes": b"?", "path": None}}
    )
    cases: dict[str, tuple[Any, str]] = {
        "no-train": (hf.DatasetDict({"test": saved(hf, "test")}), "has the splits test; it needs one called train"),
        "odd-split": (hf.DatasetDict({"train": train, "more": train}), "has a split 'more'; keep one each of"),
        "no-image": (train.remove_columns("image"), r"columns label \(ClassLabel\): 0 of pictures; keep one"),
        "no-label": (train.remove_columns("label"), r"columns image \(Image\): 0 of classes; keep one"),
        "other-columns": (
            hf.DatasetDict({"train": train, "test": saved(hf, "test", label="other")}),
            "split test has no column 'label', which train has",
        ),
        "no-picture": (none, "train row 11 has no picture; remove the row"),
        "broken": (broken, "train row 0 cannot be decoded as an image"),
    }
    for name, (data, message) in cases.items():
        data.save_to_disk(str(tmp_path / name))
        with pytest.raises(InputError, match=message) as caught:
            load_dataset("hf", data_path=tmp_path / name)
        assert "\n" not in str(caught.value), name
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "cannot be read .*; pass a folder that save_to_disk"), ("none", "is not a folder")):
        with pytest.raises(InputError, match=message):
            load_dataset("hf", data_path=tmp_path / name)
