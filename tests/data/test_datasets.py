"""Sources, splits and validation, on small files that the tests write themselves."""

import math
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mct_fast.data import ZCA, Dataset, Normalize, Split, load_dataset, random_real, register_dataset
from mct_fast.data.images import decode_images
from mct_fast.data.registry import CONSTANTS, canonical_name
from mct_fast.data.splits import hash_split
from mct_fast.run.errors import InputError
from mct_fast.run.progress import LineProgress, quiet
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.tasks.layout import stratified_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MCT_FAST_CACHE", str(folder))
    return folder


def write_image(path: Path, seed: Any, size: Any = (6, 6), mode: str = "RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, **options)
    return pixels


def write_tree(
    root: Path, classes: Any = ("ant", "bee"), count: int = 6, suffix: str = ".png", seed: Any = 0, **options: Any
):
    pixels = {}
    for label, name in enumerate(classes):
        for index in range(count):
            path = root / name / f"{index:03d}{suffix}"
            pixels[path] = write_image(path, (seed, label, index), **options)
    return pixels


def one_line(caught: pytest.ExceptionInfo[BaseException]):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raw_bytes(dataset: Dataset, split: Split):
    return dataset.transform.inverse(split.images).mul(255).round().to(torch.uint8)


def same_dataset(a: Dataset, b: Dataset):
    return a.fingerprint == b.fingerprint and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and x.sha256 == y.sha256
        for x, y in ((a.train, b.train), (a.val, b.val), (a.test, b.test))
    )


# --- digits and splits ---------------------------------------------------------


def test_digits_is_whole_and_standardised():
    dataset = load_dataset("digits")
    assert dataset.image_shape == (1, 8, 8) and dataset.num_classes == 10
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == 1797
    assert dataset.train.images.dtype == torch.float32 and dataset.train.labels.dtype == torch.int64
    assert abs(float(dataset.train.images.double().mean())) < 1e-6
    assert abs(float(dataset.train.images.double().std(correction=0)) - 1) < 1e-6
    levels = dataset.transform.inverse(dataset.test.images) * 16
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    assert int(levels.round().max()) == 16 and int(levels.round().min()) == 0


def test_loading_twice_gives_the_same_bits_and_spares_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_dataset("digits")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same_dataset(first, load_dataset("digits"))


def test_split_seed_changes_validation_but_never_test():
    first, second = load_dataset("digits", split_seed=0), load_dataset("digits", split_seed=1)
    assert first.val.sha256 != second.val.sha256
    assert first.train.sha256 != second.train.sha256
    assert first.test.sha256 == second.test.sha256
    assert first.fingerprint != second.fingerprint


def test_no_validation_split():
    dataset = load_dataset("digits", val_fraction=0)
    assert len(dataset.val) == 0 and dataset.val.images.shape == (0, 1, 8, 8)
    with pytest.raises(InputError, match="val_fraction above 0"):
        dataset.split("val")
    with pytest.raises(InputError, match="unknown"):
        dataset.split("dev")
    assert dataset.split("test") is dataset.test


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, math.nan])
def test_val_fraction_out_of_range(fraction: float):
    with pytest.raises(InputError, match="val_fraction"):
        load_dataset("digits", val_fraction=fraction)


def test_stratified_split_has_the_share_of_every_class():
    counts = [40, 11, 3, 2, 1]
    labels = torch.arange(5).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    rest, held_out = stratified_split(labels, 0.25, torch.Generator().manual_seed(0))
    assert sorted([*rest.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert torch.bincount(labels[held_out], minlength=5).tolist() == [10, 3, 1, 1, 0]
    assert torch.equal(rest, rest.sort().values) and torch.equal(held_out, held_out.sort().values)
    other = stratified_split(labels, 0.25, torch.Generator().manual_seed(1))[1]
    assert not torch.equal(held_out, other)


def test_hash_covers_pixels_and_labels():
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    labels = torch.tensor([0, 1])
    reference = hash_split(images, labels)
    assert reference == hash_split(images.clone(), labels.clone())
    assert reference != hash_split(images.flip(0), labels)
    assert reference != hash_split(images, labels.flip(0))


def test_hashes_ignore_the_transform_but_the_fingerprint_does_not():
    plain, whitened = load_dataset("digits"), load_dataset("digits", zca=True)
    assert plain.train.sha256 == whitened.train.sha256
    assert plain.fingerprint != whitened.fingerprint


def test_image_size_resizes_any_source():
    dataset = load_dataset("digits", image_size=16)
    assert dataset.image_shape == (1, 16, 16)
    reference = torch.nn.functional.interpolate(
        load_dataset("digits").transform.inverse(load_dataset("digits").test.images), size=16, mode="bilinear"
    )
    torch.testing.assert_close(dataset.transform.inverse(dataset.test.images), reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8"])
def test_image_size_must_be_a_positive_whole_number(size: Any):
    with pytest.raises(InputError, match="image_size"):
        load_dataset("digits", image_size=size)


def test_device_and_dtype_after_to():
    dataset = load_dataset("digits").to("cpu")
    assert dataset.train.images.device.type == "cpu"
    with pytest.raises(InputError, match="device"):
        load_dataset("digits", device="gpu0")


@pytest.mark.gpu
def test_everything_is_on_the_gpu():
    dataset = load_dataset("digits", device="cuda", zca=True)
    for split in (dataset.train, dataset.val, dataset.test):
        assert split.images.is_cuda and split.labels.is_cuda
    assert isinstance(dataset.transform, ZCA) and dataset.transform.matrix.is_cuda
    images, labels = random_real(dataset.train, 2, torch.Generator().manual_seed(0))
    assert images.is_cuda and labels.is_cuda


# --- the random-real baseline --------------------------------------------------


def test_random_real_is_class_ordered_real_and_without_repeats():
    train = load_dataset("digits").train
    images, labels = random_real(train, 3, torch.Generator().manual_seed(1))
    assert labels.tolist() == [digit for digit in range(10) for _ in range(3)]
    flat = train.images.flatten(1)
    where = [(flat == image.flatten()).all(1).nonzero().flatten().tolist() for image in images]
    assert all(found and int(train.labels[found[0]]) == label for found, label in zip(where, labels, strict=True))
    assert len({found[0] for found in where}) == 30
    again, _ = random_real(train, 3, torch.Generator().manual_seed(1))
    other, _ = random_real(train, 3, torch.Generator().manual_seed(2))
    assert torch.equal(images, again) and not torch.equal(images, other)


def test_random_real_refuses_more_than_a_class_has():
    split = Split(torch.rand(5, 1, 4, 4), torch.tensor([0, 0, 0, 1, 1]), "")
    assert len(random_real(split, 2, torch.Generator())[0]) == 4
    with pytest.raises(InputError, match="ipc: 3 is larger than class 1, which has 2") as caught:
        random_real(split, 3, torch.Generator())
    one_line(caught)
    with pytest.raises(InputError, match="class 2, which has 0"):
        random_real(Split(split.images, split.labels, "", num_classes=3), 1, torch.Generator())


@pytest.mark.parametrize("ipc", [0, -1, 1.5, True])
def test_random_real_refuses_a_bad_ipc(ipc: Any):
    with pytest.raises(InputError, match="ipc"):
        random_real(Split(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), ""), ipc, torch.Generator())


# --- names ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CIFAR10", "cifar10"),
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("FashionMNIST", "fashion-mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("MNIST", "mnist"),
        ("Tiny", "tiny-imagenet"),
        ("tiny-imagenet-200", "tiny-imagenet"),
        ("ImageWoof", "imagewoof"),
        ("my-own", "my-own"),
    ],
)
def test_spellings_of_the_field(spelling: str, name: str):
    assert canonical_name(spelling) == name


def test_unknown_dataset_lists_the_known_ones():
    with pytest.raises(InputError, match=r"cifar10.*register_dataset") as caught:
        load_dataset("cifar11")
    one_line(caught)
    with pytest.raises(InputError, match="imagenette"):
        load_dataset("ImageNet")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_missing_torchvision_folder_names_the_remedy(name: str, tmp_path: Path):
    for folder in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=r"data_path.*download=True") as caught:
            load_dataset(name, data_path=folder)
        one_line(caught)


@pytest.mark.parametrize("name", ["folder", "folder:cifar10", "tiny-imagenet", "imagenette"])
def test_sources_that_need_a_folder_say_so(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="data_path is missing"):
        load_dataset(name)
    with pytest.raises(InputError, match="is not a folder"):
        load_dataset(name, data_path=tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be downloaded"):
        load_dataset(name, data_path=tmp_path, download=True)


# --- torchvision ---------------------------------------------------------------


def write_cifar10(root: Path):
    """The layout of the real archive with 4 images a batch. The checksums do not fit, and torchvision sees that."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for number, name in enumerate(batches):
        data = np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = [(2 * number + index // 2) % 10 for index in range(4)]
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class{i}" for i in range(10)]}))


def test_cifar10_with_wrong_checksums_is_refused(tmp_path: Path):
    write_cifar10(tmp_path)
    with pytest.raises(InputError, match="incomplete or damaged") as caught:
        load_dataset("CIFAR10", data_path=tmp_path)
    one_line(caught)


def test_cifar10_reads_torchvisions_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import CIFAR10

    write_cifar10(tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    dataset = load_dataset("CIFAR10", data_path=tmp_path, val_fraction=0)
    assert dataset.name == "cifar10" and dataset.class_names[3] == "class3"
    assert dataset.transform == Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    expected = np.concatenate(
        [np.random.default_rng(n).integers(0, 256, (4, 3072), dtype=np.uint8) for n in range(5)]
    ).reshape(-1, 3, 32, 32)
    assert np.array_equal(raw_bytes(dataset, dataset.train).numpy(), expected)
    assert len(dataset.test) == 4


def write_mnist(root: Path, folder: str = "MNIST"):
    """MNIST's own idx files, uncompressed, with 30 training and 10 test images."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 10)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = b"".join(number.to_bytes(4, "big") for number in (2051, count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = bytes(index % 10 for index in range(count))
        head = b"".join(number.to_bytes(4, "big") for number in (2049, count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels)


@pytest.mark.parametrize(("name", "folder"), [("MNIST", "MNIST"), ("FashionMNIST", "FashionMNIST")])
def test_mnist_files_are_read(tmp_path: Path, name: str, folder: str):
    write_mnist(tmp_path, folder)
    dataset = load_dataset(name, data_path=tmp_path)
    assert dataset.image_shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (20, 10, 10)
    assert dataset.transform == Normalize(*CONSTANTS[canonical_name(name)])
    expected = np.random.default_rng(10).integers(0, 256, (10, 1, 28, 28), dtype=np.uint8)
    assert np.array_equal(raw_bytes(dataset, dataset.test).numpy(), expected)
    assert dataset.class_names[1] == ("1" if name == "MNIST" else "Trouser")


def test_failing_download_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import MNIST

    def unreachable(self: MNIST) -> None:
        raise RuntimeError("Error downloading train-images:\nTried 2 mirrors")

    monkeypatch.setattr(MNIST, "download", unreachable)
    with pytest.raises(InputError, match="download of mnist") as caught:
        load_dataset("mnist", data_path=tmp_path, download=True)
    one_line(caught)


# --- image trees ---------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["test", "val"])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_tree_with_its_own_test_split(tmp_path: Path, held_out: str, suffix: str):
    root = tmp_path / "tree"
    train = write_tree(root / "train", count=6, suffix=suffix)
    test = write_tree(root / held_out, count=2, suffix=suffix, seed=9)
    dataset = load_dataset("folder:insects", data_path=root, val_fraction=0)
    assert dataset.name == "folder:insects" and dataset.class_names == ("ant", "bee")
    for split, pixels in ((dataset.train, train), (dataset.test, test)):
        expected = np.stack([pixels[path] for path in sorted(pixels)]).transpose(0, 3, 1, 2)
        assert np.array_equal(raw_bytes(dataset, split).numpy(), expected)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6


def test_tree_with_test_and_val(tmp_path: Path):
    for seed, part in enumerate(("train", "test", "val")):
        write_tree(tmp_path / "t" / part, count=4 - seed, seed=seed)
    dataset = load_dataset("folder", data_path=tmp_path / "t", val_fraction=0.5)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (8, 4, 6)


def test_single_tree_is_split(tmp_path: Path):
    write_tree(tmp_path / "t", count=10)
    dataset = load_dataset("folder", data_path=tmp_path / "t", val_fraction=0.25)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (12, 4, 4)
    everything = torch.cat([raw_bytes(dataset, part) for part in (dataset.train, dataset.val, dataset.test)])
    assert len({bytes(image.numpy()) for image in everything}) == 20


def test_tree_named_for_a_known_set_takes_its_constants(tmp_path: Path):
    write_tree(tmp_path / "t")
    assert load_dataset("folder:CIFAR10", data_path=tmp_path / "t").transform == Normalize(*CONSTANTS["cifar10"])
    # MNIST's constants are for one channel, this tree has three
    own = load_dataset("folder:mnist", data_path=tmp_path / "t").transform
    assert isinstance(own, Normalize) and len(own.mean) == 3


def test_grey_tree_has_one_channel_and_a_mixed_one_three(tmp_path: Path):
    write_tree(tmp_path / "grey", mode="L")
    assert load_dataset("folder", data_path=tmp_path / "grey").image_shape == (1, 6, 6)
    write_tree(tmp_path / "mixed", classes=("ant",), mode="L")
    write_tree(tmp_path / "mixed", classes=("bee",), mode="RGBA")
    assert load_dataset("folder", data_path=tmp_path / "mixed").image_shape == (3, 6, 6)


def test_tree_of_many_sizes_needs_image_size(tmp_path: Path):
    write_tree(tmp_path / "t", size=(8, 8))
    write_image(tmp_path / "t" / "bee" / "wide.png", 5, size=(12, 8))
    with pytest.raises(InputError, match="image_size") as caught:
        load_dataset("folder", data_path=tmp_path / "t")
    one_line(caught)
    dataset = load_dataset("folder", data_path=tmp_path / "t", image_size=8)
    assert dataset.image_shape == (3, 8, 8)


def test_resizing_keeps_the_centre(tmp_path: Path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200  # the centre square is white, the borders that are cropped away black
    Image.fromarray(pixels).save(tmp_path / "x.png")
    images = decode_images([tmp_path / "x.png"], tmp_path, image_size=4, cache=False, progress=quiet(), title="")
    assert images.shape == (1, 3, 4, 4) and bool((images == 200).all())


def test_decoding_is_cached_until_a_file_changes(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "t"
    write_tree(root)
    first = load_dataset("folder", data_path=root)
    entries = list(own_cache.glob("images-*.safetensors"))
    assert len(entries) == 1
    with monkeypatch.context() as patch:
        patch.setattr("mct_fast.data.images._decode_file", lambda *args: pytest.fail("decoded again"))
        assert same_dataset(first, load_dataset("folder", data_path=root))
    write_image(root / "bee" / "000.png", 77)
    os.utime(root / "bee" / "000.png", ns=(1, 1))
    assert load_dataset("folder", data_path=root).fingerprint != first.fingerprint


def test_decoding_reports_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "t", count=70, size=(2, 2))
    load_dataset("folder:insects", data_path=tmp_path / "t", progress=LineProgress(sys.stdout))
    assert "decoding folder:insects 140/140" in capsys.readouterr().out


def test_a_damaged_cache_entry_is_decoded_again(tmp_path: Path, own_cache: Path):
    root = tmp_path / "t"
    write_tree(root)
    first = load_dataset("folder", data_path=root)
    (entry,) = own_cache.glob("images-*.safetensors")
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert same_dataset(first, load_dataset("folder", data_path=root))
    entry.write_bytes(content[:20])
    assert same_dataset(first, load_dataset("folder", data_path=root))


def test_cache_false_writes_nothing_and_gives_the_same(tmp_path: Path, own_cache: Path):
    write_tree(tmp_path / "t")
    first = load_dataset("folder", data_path=tmp_path / "t", zca=True, cache=False)
    assert not own_cache.exists()
    assert first.fingerprint == load_dataset("folder", data_path=tmp_path / "t", zca=True).fingerprint


def test_an_unwritable_cache_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MCT_FAST_CACHE", str(tmp_path / "file"))
    write_tree(tmp_path / "t")
    with pytest.warns(UserWarning, match="MCT_FAST_CACHE"):
        assert load_dataset("folder", data_path=tmp_path / "t").num_classes == 2


def test_zca_fit_is_cached_and_the_cached_fit_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_dataset("digits", zca=True)
    with monkeypatch.context() as patch:
        patch.setattr(ZCA, "fit", lambda *args: pytest.fail("fitted again"))
        assert same_dataset(first, load_dataset("digits", zca=True))


def test_zca_dataset_equals_kornia_on_the_training_split(tmp_path: Path):
    from kornia.enhance import ZCAWhitening

    write_tree(tmp_path / "t", count=20)
    plain = load_dataset("folder", data_path=tmp_path / "t")
    whitened = load_dataset("folder", data_path=tmp_path / "t", zca=True)
    reference = ZCAWhitening(eps=0.1, compute_inv=True).fit(raw_bytes(plain, plain.train).float() / 255)
    for mine, theirs in ((whitened.train, plain.train), (whitened.test, plain.test)):
        expected = reference(raw_bytes(plain, theirs).float() / 255)
        torch.testing.assert_close(mine.images, expected, rtol=0, atol=1e-5)


def test_broken_images_are_named(tmp_path: Path):
    write_tree(tmp_path / "t", count=200, size=(2, 2))
    (tmp_path / "t" / "bee" / "150.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"bee/150\.png cannot be decoded") as caught:
        load_dataset("folder", data_path=tmp_path / "t")
    one_line(caught)


def test_sixteen_bit_images_are_refused(tmp_path: Path):
    for name in ("ant", "bee"):
        (tmp_path / "t" / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "t" / name / "x.png")
    with pytest.raises(InputError, match="8 bits"):
        load_dataset("folder", data_path=tmp_path / "t")


def test_trees_without_classes_or_with_strange_ones_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        load_dataset("folder", data_path=tmp_path / "empty")
    write_tree(tmp_path / "t" / "train")
    write_tree(tmp_path / "t" / "test", classes=("ant", "wasp"))
    with pytest.raises(InputError, match="class wasp, which train/ lacks"):
        load_dataset("folder", data_path=tmp_path / "t")


# --- Tiny-ImageNet and ImageNet ------------------------------------------------


@pytest.mark.parametrize("layout", ["annotated", "folders", "nested"])
def test_tiny_imagenet_layouts(tmp_path: Path, layout: str):
    root = tmp_path / "tiny-imagenet-200"
    wnids = ("n01", "n02")
    for wnid in wnids:
        write_tree(root / "train" / wnid, classes=("images",), count=4, suffix=".JPEG", seed=int(wnid[1:]))
    (root / "words.txt").write_text("n02\tgoldfish, Carassius auratus\nn01\then\nn99\tnothing here\n")
    lines = []
    for index, wnid in enumerate(("n02", "n01", "n02")):
        folder = {"annotated": "images", "folders": f"{wnid}/images", "nested": f"images/{wnid}"}[layout]
        write_image(root / "val" / folder / f"val_{index}.JPEG", index, mode="L")
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t5\t5\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    dataset = load_dataset("Tiny", data_path=tmp_path, val_fraction=0)
    assert dataset.class_names == ("hen", "goldfish")
    assert dataset.test.labels.tolist() == [0, 1, 1] and len(dataset.train) == 8
    assert dataset.transform == Normalize(*CONSTANTS["tiny-imagenet"])
    grey = raw_bytes(dataset, dataset.test)  # grey files in a colour set become three equal channels
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_tiny_imagenet_annotation_of_an_unknown_class(tmp_path: Path):
    write_tree(tmp_path / "train" / "n01", classes=("images",))
    write_image(tmp_path / "val" / "images" / "a.JPEG", 0)
    (tmp_path / "val" / "val_annotations.txt").write_text("a.JPEG\tn05\t0\t0\t1\t1\n")
    with pytest.raises(InputError, match="line 1"):
        load_dataset("tiny-imagenet", data_path=tmp_path)


def test_imagenet_subsets_have_ten_classes_in_the_order_of_their_ids():
    assert set(IMAGENET_SUBSETS) == {
        "imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk",
    }  # fmt: skip
    members = sorted({member for subset in IMAGENET_SUBSETS.values() for member in subset})
    assert all(len(set(subset)) == 10 for subset in IMAGENET_SUBSETS.values())
    wnids = [member.wnid for member in members]
    assert wnids == sorted(wnids)  # the ids of ImageNet-1k number the sorted WordNet ids
    assert len(set(wnids)) == len(members) == 57  # banana, lemon and lion are in two subsets
    assert members[0] == (0, "n01440764", "tench")


def test_imagenet_subset_takes_its_ten_classes_in_order(tmp_path: Path):
    subset = IMAGENET_SUBSETS["imagewoof"]
    classes = [*(member.wnid for member in subset), "n01440764"]  # the last one is no dog
    write_tree(tmp_path / "train", classes=classes, count=2, size=(20, 12), suffix=".JPEG")
    write_tree(tmp_path / "val", classes=classes, count=1, size=(12, 20), suffix=".JPEG", seed=4)
    dataset = load_dataset("imagewoof", data_path=tmp_path, image_size=8, val_fraction=0)
    assert dataset.image_shape == (3, 8, 8)
    assert dataset.class_names[:2] == ("Australian terrier", "Border terrier")
    assert dataset.test.labels.tolist() == list(range(10)) and len(dataset.train) == 20
    with Image.open(tmp_path / "val" / subset[3].wnid / "000.JPEG") as image:
        expected = np.asarray(image.resize((8, 13), Image.Resampling.BILINEAR).crop((0, 2, 8, 10)))
    got = raw_bytes(dataset, dataset.test)[3].permute(1, 2, 0).numpy()
    assert np.array_equal(got, expected)
    assert load_dataset("imagewoof", data_path=tmp_path).image_shape == (3, 128, 128)


def test_imagenet_tree_with_a_missing_class(tmp_path: Path):
    for part in ("train", "val"):
        write_tree(tmp_path / part, classes=["n01440764"])
    with pytest.raises(InputError, match="lacks 9 of the 10 classes of imagenette, first n02102040"):
        load_dataset("imagenette", data_path=tmp_path)


# --- a user's own arrays -------------------------------------------------------


def arrays(shape: tuple[int, ...] = (12, 3, 5, 5), classes: int = 3, kind: str = "uint8"):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if kind != "uint8":
        images = (images / 255).astype(kind)
    return images, np.arange(shape[0]) % classes


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((12, 3, 5, 5), (3, 5, 5)),
        ((12, 5, 5, 3), (3, 5, 5)),
        ((12, 5, 5), (1, 5, 5)),
        ((12, 5, 5, 1), (1, 5, 5)),
    ],
    ids=["nchw", "nhwc", "nhw", "nhw1"],
)
def test_registered_arrays_of_every_layout(shape: tuple[int, ...], expected: tuple[int, ...], kind: str):
    images, labels = arrays(shape, kind=kind)
    register_dataset("mine", (images, labels), (torch.from_numpy(images[:3]), labels[:3].tolist()))
    dataset = load_dataset("mine", val_fraction=0)
    assert dataset.image_shape == expected and dataset.class_names == ("0", "1", "2")
    want = images if kind == "uint8" else np.round(images * 255).astype(np.uint8)
    if len(shape) == 3:
        want = want[:, None]
    elif shape[1] == 5:
        want = want.transpose(0, 3, 1, 2)
    assert np.array_equal(raw_bytes(dataset, dataset.train).numpy(), want)
    assert dataset.test.labels.tolist() == [0, 1, 2]


def test_registered_validation_split_is_used_as_it_is():
    images, labels = arrays()
    register_dataset("mine-val", (images, labels), (images[:3], labels[:3]), val=(images[3:9], labels[3:9]))
    dataset = load_dataset("mine-val", val_fraction=0.5)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (12, 6, 3)


def test_registering_again_replaces_and_builtin_names_are_safe():
    images, labels = arrays()
    register_dataset("again", (images, labels), (images, labels))
    first = load_dataset("again")
    register_dataset("again", (255 - images, labels), (images, labels), class_names=["a", "b", "c"])
    second = load_dataset("again")
    assert first.fingerprint != second.fingerprint and second.class_names == ("a", "b", "c")
    for name in ("CIFAR-10", "digits", "folder:x", ""):
        with pytest.raises(InputError, match="name"):
            register_dataset(name, (images, labels), (images, labels))


def change(images: Any, where: Any, value: float):
    images = images.copy()
    images[where] = value
    return images


BAD_ARRAYS = {
    "nan": (lambda x, y: (change(x / 255, 0, np.nan), y), "NaN"),
    "infinite": (lambda x, y: (change(x / 255, 0, np.inf), y), "NaN or infinite"),
    "scale": (lambda x, y: (x.astype(np.float32), y), r"scale floats to \[0, 1\]"),
    "negative": (lambda x, y: (x / 255 - 0.5, y), r"scale floats to \[0, 1\]"),
    "dtype": (lambda x, y: (x.astype(np.int64), y), "dtype int64"),
    "channels": (lambda x, y: (np.repeat(x[:, :1], 4, axis=1), y), "1 or 3 channels"),
    "flat": (lambda x, y: (x.reshape(12, -1), y), "shape"),
    "empty": (lambda x, y: (x[:0], y[:0]), "empty"),
    "ragged": (lambda x, y: ([[1, 2], [3]], y), "cannot be read as one array"),
    "text": (lambda x, y: (np.array(["a", "b"]), y), "cannot be read as one array"),
    "label-count": (lambda x, y: (x, y[:-1]), "for 12 images"),
    "label-float": (lambda x, y: (x, y.astype(np.float32)), "integer class numbers"),
    "label-2d": (lambda x, y: (x, np.eye(3, dtype=np.int64)[y]), "labels have shape"),
    "label-negative": (lambda x, y: (x, y - 1), "negative"),
    "label-range": (lambda x, y: (x, change(y, 5, 3)), "label 3 is out of range for 3 classes"),
    "no-image-of-a-class": (lambda x, y: (x, change(y, y == 1, 0)), r"class 1 \(b\) has no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_ARRAYS))
def test_bad_arrays_are_refused_in_one_line(case: str):
    spoil, message = BAD_ARRAYS[case]
    good = arrays()
    with pytest.raises(InputError, match=message) as caught:
        register_dataset("bad", spoil(*good), good, class_names=["a", "b", "c"])
    assert one_line(caught).startswith("train")


def test_bad_test_split_and_bad_pairs():
    images, labels = arrays()
    with pytest.raises(InputError, match=r"test: label 3 is out of range"):
        register_dataset("bad", (images, labels), (images, labels + 1))
    with pytest.raises(InputError, match="make them agree"):
        register_dataset("bad", (images, labels), (images[:, :1], labels))
    not_a_pair: Any = images
    with pytest.raises(InputError, match="train is not a pair"):
        register_dataset("bad", not_a_pair, (images, labels))
    register_dataset("oblong", (images[:, :, :4], labels), (images[:, :, :4], labels))
    with pytest.raises(InputError, match="not square"):
        load_dataset("oblong")
    assert load_dataset("oblong", image_size=4).image_shape == (3, 4, 4)
