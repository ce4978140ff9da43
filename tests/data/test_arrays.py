"""Images in files of arrays, .npz, .npy and idx."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from mct_fast.data import Dataset, Normalize, load_dataset, load_noted, register_dataset
from mct_fast.data.arrays import SPELLINGS
from mct_fast.data.registry import CONSTANTS
from mct_fast.experts.config import ExpertConfig, load_for
from mct_fast.run.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(24) % 3


def split(part: str) -> tuple[np.ndarray, np.ndarray]:
    rows = {"train": slice(0, 12), "val": slice(12, 18), "test": slice(18, 24)}[part]
    return PIXELS[rows], LABELS[rows]


@pytest.fixture(scope="module")
def registered() -> Dataset:
    register_dataset("arrays-wanted", split("train"), split("test"), split("val"))
    return load_dataset("arrays-wanted")


def same(a: Dataset, b: Dataset) -> bool:
    return a.fingerprint == b.fingerprint and a.class_names == b.class_names


def spelt(number: int) -> dict[str, np.ndarray]:
    """All splits, by the spelling of that number or the last one a split has."""
    arrays = {}
    for part, spellings in SPELLINGS.items():
        images, labels = spellings[min(number, len(spellings) - 1)]
        arrays[images], arrays[labels] = split(part)
    return arrays


@pytest.mark.parametrize("form", ["npz", "packed", "folder"])
@pytest.mark.parametrize("number", range(len(SPELLINGS["train"])))
def test_every_spelling_gives_what_registered_arrays_give(
    tmp_path: Path, registered: Dataset, number: int, form: str
) -> None:
    arrays, path = spelt(number), tmp_path / "data.npz"
    if form == "folder":
        path = tmp_path
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    else:
        (np.savez if form == "npz" else np.savez_compressed)(path, **arrays)  # pyright: ignore[reportArgumentType]
    assert same(load_dataset("arrays", data_path=path), registered)


def test_labels_are_numbers_columns_or_texts(tmp_path: Path, registered: Dataset) -> None:
    names = np.array(["c", "a", "b"])
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "column": lambda y: y[:, None].astype(np.uint8),
        "texts": lambda y: np.array(["c", "a", "b"])[y],
        "bytes": lambda y: np.array([b"c", b"a", b"b"])[y],
    }
    for kind, change in kinds.items():
        arrays = {name: change(array) if name.startswith("y_") else array for name, array in spelt(0).items()}
        np.savez(tmp_path / "named.npz", class_names=names, **arrays)
        dataset = load_dataset("arrays", data_path=tmp_path / "named.npz")
        assert dataset.fingerprint == registered.fingerprint and dataset.class_names == ("c", "a", "b"), kind
        np.savez(tmp_path / "alone.npz", **arrays)
        alone = load_dataset("arrays", data_path=tmp_path / "alone.npz")
        assert alone.class_names == (("0", "1", "2") if kind == "column" else ("a", "b", "c"))


def test_a_name_gives_the_constants_and_a_test_split_is_held_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=PIXELS, y=LABELS)
    dataset = load_dataset("npz:CIFAR-10", data_path=tmp_path / "data.npz")
    assert dataset.name == "arrays:cifar10" and dataset.transform == Normalize(*CONSTANTS["cifar10"])
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (15, 3, 6)
    assert same(load_noted(dataset.source), dataset)


def test_a_configuration_names_a_file(tmp_path: Path, registered: Dataset) -> None:
    np.savez(tmp_path / "data.npz", **spelt(0))  # pyright: ignore[reportArgumentType]
    config = ExpertConfig(dataset="arrays", data_path=str(tmp_path / "data.npz"), device="cpu")
    assert same(load_for(config), registered)


def without(*names: str) -> dict[str, Any]:
    return {name: array for name, array in spelt(0).items() if name not in names}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "holds nothing; name images and labels x_train and y_train"),
    "positional": ({"arr_0": PIXELS, "arr_1": LABELS}, "holds arr_0, arr_1; name images and labels"),
    "no labels": (without("y_train"), "has x_train but no y_train; save both"),
    "no images": (without("x_test"), "has y_test but no x_test; save both"),
    "two spellings": ({**spelt(0), **spelt(2)}, "holds both x_train and x; keep one of them"),
    "objects": ({**spelt(0), "x_train": np.array([1, "a"], dtype=object)}, "not plain arrays; save images of one size"),
    "floats above 1": ({**spelt(0), "x_train": split("train")[0] * 1.0}, r"train: pixels reach .*; scale floats"),
    "one-hot": ({**spelt(0), "y_train": np.eye(3, dtype=int)[split("train")[1]]}, "train: labels have shape"),
    "an unseen class": ({**spelt(0), "y_test": split("test")[1] + 1}, "test: label 3 is out of range"),
    "an unnamed class": (
        {**without("y_val", "x_val"), "y_test": np.array(["d"] * 6), "class_names": np.array(["a", "b", "c"])},
        "test: label 'd' is not among class_names",
    ),
    "too few names": ({**spelt(0), "class_names": np.array(["a"])}, "train: label 2 is out of range for 1 classes"),
    "another size": ({**spelt(0), "x_test": split("test")[0][:, :4, :4]}, "test: images are .*; make them agree"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BAD[case]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("arrays", data_path=tmp_path / "data.npz")
    assert "\n" not in str(caught.value)


def test_bad_files_of_arrays_are_refused_in_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", **spelt(0))  # pyright: ignore[reportArgumentType]
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "renamed.npy").write_bytes(whole)
    (tmp_path / "text.npz").write_text("?")
    np.save(tmp_path / "x_train.npy", PIXELS)
    cases = {
        "cut.npz": "cannot be read as arrays",
        "text.npz": "cannot be read as arrays",
        "x_train.npy": "holds one array; give its folder, with x_train.npy and y_train.npy",
        "": "cannot be read as arrays .its name and what it holds disagree",
        "none.npz": "is no file; give an .npz or .npy file",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_dataset("arrays", data_path=tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="data_path is missing: arrays needs an .npz file"):
        load_dataset("arrays")
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_dataset("arrays", data_path=tmp_path / "whole.npz", download=True)
    with pytest.raises(InputError, match="belongs to a built-in dataset"):
        register_dataset("npz:mine", split("train"), split("test"))


# idx


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed, count in (("train", 1, 30), ("t10k", 2, 10)):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            file = folder / f"{part}-{kind}-ubyte"
            if packed:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                file.write_bytes(idx(array))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_wherever_they_lie(tmp_path: Path, name: str, folder: str) -> None:
    found = {}
    for place in ("", f"{folder}/raw"):
        for packed in (False, True):
            root = tmp_path / f"{len(found)}"
            write_idx(root / place, packed)
            found[place, packed] = load_dataset(name, data_path=root)
    first, *others = found.values()
    assert first.image_shape == (1, 28, 28) and len(first.test) == 10
    assert first.class_names[1] == ("1" if name == "mnist" else "Trouser")
    assert first.transform == Normalize(*CONSTANTS[name])
    wanted = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (10, 1, 28, 28), dtype=np.uint8))
    assert torch.equal(first.transform.inverse(first.test.images).mul(255).round().to(torch.uint8), wanted)
    assert all(same(other, first) for other in others)
    theirs = getattr(datasets, folder)(str(tmp_path / "2"), train=False)
    assert torch.equal(theirs.data, wanted[:, 0]) and theirs.targets.tolist() == first.test.labels.tolist()


PIECE = np.zeros((30, 28, 28), dtype=np.uint8)
BAD_IDX: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no whole idx file"),
    "short": (b"\0\0\x08", "is no whole idx file"),
    "no sizes": (b"\0\0\x08\0", "is no whole idx file"),
    "cut sizes": (idx(PIECE)[:10], "is no whole idx file"),
    "cut": (idx(PIECE)[:-1], "is no whole idx file"),
    "more": (idx(PIECE) + b"\0", "is no whole idx file"),
    "floats": (idx(PIECE, kind=13), "is no whole idx file"),
    "flat": (idx(PIECE.reshape(30, -1)), "images have shape"),
    "fewer": (idx(PIECE[:29]), "for 29 images"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_damaged_idx_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    write_idx(tmp_path, packed=False)
    content, message = BAD_IDX[case]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match=rf"data_path: .*train-images-idx3-ubyte.*{message}") as caught:
        load_dataset("mnist", data_path=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_refused_in_one_line(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=True)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = file.read_bytes()
    for content in (b"?", whole[:-9], whole[:12] + b"\xff" * 8 + whole[20:]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read .*; fetch it again") as caught:
            load_dataset("mnist", data_path=tmp_path)
        assert "\n" not in str(caught.value)
