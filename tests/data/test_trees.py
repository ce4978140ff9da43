"""Folders of images: what is read, what is refused, and that nothing is left out in silence."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from mct_fast.cli import main
from mct_fast.data import Dataset, load_dataset
from mct_fast.data.trees import HIDDEN, LOOP, NO_FILE, NO_PICTURE, OTHER_FORMAT, SPLIT_NAMES, STRAY
from mct_fast.run.errors import InputError

SIDE = 4


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MCT_FAST_CACHE", str(tmp_path / "cache"))


def picture(seed: Any) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def write(path: Path, seed: Any = 0, format: str = "PNG", **options: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(seed)
    Image.fromarray(pixels).save(path, format, **options)
    return pixels


def fill(folder: Path, count: int, seed: int = 0) -> None:
    for index in range(count):
        write(folder / f"{index}.png", (seed, index, len(folder.parts)))


def two_classes(root: Path, count: int = 4) -> Path:
    fill(root / "ant", count)
    fill(root / "bee", count, 1)
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset("folder:pets", data_path=root, **{"val_fraction": 0, "cache": False, **options})


def refused(root: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load(root)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def counts(dataset: Dataset, part: str = "train") -> dict[str, int]:
    return dataset.report.files[part]


# --- links, hidden folders, files that are no pictures --------------------------


def test_a_link_to_a_folder_inside_a_class_is_followed(tmp_path: Path):
    root = two_classes(tmp_path / "t", 2)
    fill(root / "cat", 6)
    fill(tmp_path / "elsewhere", 6, 9)
    (root / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    assert counts(load(root)) == {"ant": 8, "bee": 2, "cat": 6}


def test_hidden_folders_hold_no_images_and_are_reported(tmp_path: Path):
    root = tmp_path / "t"
    for part, count in (("train", 6), ("test", 2)):
        two_classes(root / part, count)
    fill(root / "train" / "ant" / ".ipynb_checkpoints", 3)
    fill(root / "train" / "ant" / "@eaDir", 3)
    fill(root / "train" / "__MACOSX", 3)
    write(root / "train" / "bee" / "._0.png")
    dataset = load(root)
    assert len(dataset.train) == 12 and len(dataset.test) == 4
    assert sorted(dataset.report.left_out[HIDDEN]) == [
        "train/__MACOSX", "train/ant/.ipynb_checkpoints", "train/ant/@eaDir", "train/bee/._0.png",
    ]  # fmt: skip


def test_links_in_a_circle_and_links_to_nothing(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    (root / "ant" / "back").symlink_to(root)
    (root / "ant" / "down").mkdir()
    (root / "ant" / "down" / "up").symlink_to("../../bee")
    (root / "bee" / "across").symlink_to("../ant")
    dataset = load(root)
    assert counts(dataset) == {"ant": 8, "bee": 8}  # each its own 4, and the other's 4 once
    assert "ant/back" in dataset.report.left_out[LOOP]
    (root / "bee" / "gone.png").symlink_to("nowhere.png")
    refused(root, r"gone\.png is a link to nothing")


def test_pipes_and_sockets_do_not_hang(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    os.mkfifo(root / "ant" / "pipe.png")
    os.mkfifo(root / "bee" / "pipe")
    assert sorted(load(root).report.left_out[NO_FILE]) == ["ant/pipe.png", "bee/pipe"]


def test_pictures_with_other_suffixes_are_read_or_named(tmp_path: Path):
    root = two_classes(tmp_path / "t", 1)
    for name, format in (("a.JFIF", "JPEG"), ("b.avif", "AVIF"), ("c.jpe", "JPEG"), ("d.jp2", "JPEG2000")):
        write(root / "ant" / name, format=format)
    write(root / "bee" / "photo")
    write(root / "bee" / "photo.jpg_large", format="JPEG")
    (root / "bee" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(30))
    (root / "bee" / "labels.csv").write_text("BMW, bee\n")
    write(root / "bee" / "old.pcx", format="PCX")
    (root / "bee" / "drawn.svg").write_text("<svg/>")
    report = load(root).report
    assert report.files["train"] == {"ant": 5, "bee": 1}
    assert sorted(report.left_out[OTHER_FORMAT]) == ["bee/drawn.svg", "bee/old.pcx"]
    named = {why.split(" picture")[0]: names for why, names in report.left_out.items()}
    assert named["a PNG"] == ["bee/photo"] and named["a JPEG"] == ["bee/photo.jpg_large"]
    assert named["a HEIC"] == ["bee/phone.heic"] and report.left_out[NO_PICTURE] == ["bee/labels.csv"]


def test_pictures_beside_the_class_folders_are_reported(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    write(root / "cover.png")
    assert load(root).report.left_out[STRAY] == ["cover.png"]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = two_classes(tmp_path / "t")
    scan = os.scandir

    def locked(path: Any):
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("mct_fast.data.trees.os.scandir", locked)
    refused(root, "bee: Permission denied")


# --- which folders are splits and which classes ---------------------------------


@pytest.mark.parametrize("name", ["train", "val", "test", "Train", "valid"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str):
    root = two_classes(tmp_path / "t")
    fill(root / name, 6)
    assert counts(load(root)) == {"ant": 4, "bee": 4, name: 6} or name == "Train"
    assert sum(counts(load(root)).values()) + len(load(root).test) >= 14
    below = tmp_path / "s"
    for part in ("train", "test"):
        two_classes(below / part)
        fill(below / part / name, 6)
    assert counts(load(below), "test") == dict(sorted({"ant": 4, "bee": 4, name: 6}.items()))


@pytest.mark.parametrize(("train", "test"), [("Training", "Test"), ("train", "valid"), ("TRAIN", "testing")])
def test_splits_by_other_names(tmp_path: Path, train: str, test: str):
    two_classes(tmp_path / train, 5)
    two_classes(tmp_path / test, 2)
    dataset = load(tmp_path)
    assert len(dataset.train) == 10 and len(dataset.test) == 4


def test_the_folder_above_the_splits_is_refused(tmp_path: Path):
    for part in ("train", "test"):
        two_classes(tmp_path / "pets" / part)
    refused(tmp_path, rf"splits were looked for in {tmp_path}.*data_path={tmp_path}/pets")
    for part in ("train", "test"):
        two_classes(tmp_path / "birds" / part)
    refused(tmp_path, r"holds train/ and others")
    shutil.rmtree(tmp_path / "pets")
    shutil.rmtree(tmp_path / "birds")
    fill(tmp_path / "one", 4)
    refused(tmp_path, "1 class folders, and two are the least")


def test_splits_inside_the_classes_are_refused(tmp_path: Path):
    for name in ("ant", "bee"):
        for part in ("train", "test"):
            fill(tmp_path / name / part, 3)
    refused(tmp_path, "holds train/ and others")


def test_trees_that_may_be_read_in_two_ways_are_refused(tmp_path: Path):
    for part in ("train", "test"):
        two_classes(tmp_path / part)
    fill(tmp_path / "extra", 3)
    refused(tmp_path, "extra lies beside train/")
    shutil.rmtree(tmp_path / "extra")
    two_classes(tmp_path / "Validation")
    two_classes(tmp_path / "val")
    refused(tmp_path, "holds both Validation/ and val/")
    shutil.rmtree(tmp_path / "Validation")
    shutil.rmtree(tmp_path / "val")
    shutil.rmtree(tmp_path / "test")
    fill(tmp_path / "test", 4)
    refused(tmp_path, "test has pictures but is no class")
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "test")
    two_classes(tmp_path / "test")
    two_classes(tmp_path)
    refused(tmp_path, "no train/ with class folders lies beside it")


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_is_refused(tmp_path: Path, part: str):
    for name in ("train", "test"):
        two_classes(tmp_path / name)
        fill(tmp_path / name / "cat", 2)
    shutil.rmtree(tmp_path / part / "cat")
    (tmp_path / part / "cat").mkdir()
    refused(tmp_path, f"{part}/cat has no images; add some")
    write(tmp_path / part / "cat" / "photo")
    refused(tmp_path, f"{part}/cat has no images but {part}/cat/photo .a PNG picture whose name")


def test_a_test_split_may_lack_a_class_and_the_report_says_so(tmp_path: Path):
    two_classes(tmp_path / "train")
    fill(tmp_path / "test" / "ant", 2)
    assert counts(load(tmp_path), "test") == {"ant": 2, "bee": 0}


# --- what decoding changes -------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation_is_applied_and_reported(tmp_path: Path, orientation: int, format: str):
    root = two_classes(tmp_path / "t", 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    suffix = {"MPO": "jpg"}.get(format, format.lower())
    sent = write(root / "ant" / f"turned.{suffix}", 5, format, exif=exif.tobytes(), **options)
    if format == "MPO":  # lossy
        sent = np.asarray(Image.open(root / "ant" / f"turned.{suffix}"))
    upright = {
        1: sent, 2: sent[:, ::-1], 3: sent[::-1, ::-1], 4: sent[::-1], 5: sent.transpose(1, 0, 2),
        6: np.rot90(sent, -1), 7: sent[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(sent),
    }[orientation]  # fmt: skip
    dataset = load(root)
    everything = [dataset.transform.inverse(part.images) for part in (dataset.train, dataset.test)]
    pixels = torch.cat(everything).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert any(np.array_equal(found, upright) for found in pixels)
    turned = [name for why, names in dataset.report.changed.items() if "EXIF" in why for name in names]
    assert bool(turned) == (orientation > 1)


def test_icons_drawn_in_alpha_are_refused_and_other_transparency_reported(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    pixels = np.concatenate([picture(3), picture(4)[..., :1]], 2)
    Image.fromarray(pixels).save(root / "ant" / "cut.png")
    opaque = pixels.copy()
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(root / "ant" / "opaque.png")
    (names,) = load(root).report.changed.values()
    assert names == ["ant/cut.png"]
    for mode, colour in (("RGBA", (0, 0, 0)), ("RGBA", (255, 255, 255)), ("LA", (7,))):
        icon = np.concatenate([np.broadcast_to(np.uint8(colour), (SIDE, SIDE, len(colour))), pixels[..., 3:]], 2)
        Image.fromarray(icon, mode).save(root / "bee" / "icon.png")
        refused(root, r"icon\.png is one colour everywhere, drawn in its transparency")


def test_too_many_pixels_are_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = two_classes(tmp_path / "t")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    refused(root, "more pixels than Pillow decodes")


@pytest.mark.parametrize("kind", ["png", "ppm", "tiff", "grey"])
def test_sixteen_bits_a_channel_are_refused(tmp_path: Path, kind: str):
    import struct
    import zlib

    root = two_classes(tmp_path / "t")
    if kind == "ppm":
        (root / "ant" / "deep.ppm").write_bytes(b"P6 4 4 65535\n" + bytes(range(96)))
    elif kind == "grey":
        Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)).save(root / "ant" / "deep.png")
    elif kind == "tiff":
        entries = [(256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2),
                   (273, 4, 1, 128), (277, 3, 1, 3), (278, 4, 1, SIDE), (279, 4, 1, 96)]  # fmt: skip
        head = b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        (root / "ant" / "deep.tif").write_bytes(
            head.ljust(122, b"\0") + struct.pack("<HHH", 16, 16, 16) + bytes(range(96))
        )
    else:
        rows = b"".join(b"\0" + bytes(range(24)) for _ in range(SIDE))
        chunks = (
            (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
        (root / "ant" / "deep.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
        )
    refused(root, "more than 8 bits a channel")


def test_only_the_first_of_several_pictures_is_read_and_that_is_reported(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    frames[0].save(root / "ant" / "film.png", save_all=True, append_images=frames[1:])
    assert list(load(root).report.changed.values()) == [["ant/film.png"]]


# --- names -----------------------------------------------------------------------


def test_names_that_are_no_text(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    strange = os.fsdecode(os.fsencode(root / "ant") + b"/\xff\n.png")
    write(Path(strange))
    (root / "bee" / os.fsdecode(b"\xfe.txt")).write_text("")
    dataset = load(root, cache=True)
    assert counts(dataset) == {"ant": 5, "bee": 4}
    assert json.loads(json.dumps(dataset.report.json()).encode())["left_out"][NO_PICTURE]["names"] == [
        r"bee/\udcfe.txt"
    ]
    assert all(line.isprintable() for line in dataset.report.remarks())
    fill(Path(os.fsdecode(os.fsencode(root) + b"/\xe9t\xe9")), 4)
    refused(root, r"is no printable UTF-8; rename it")
    shutil.rmtree(os.fsdecode(os.fsencode(root) + b"/\xe9t\xe9"))
    fill(root / "two\nlines", 4)
    refused(root, r"two\\nlines is no printable UTF-8")
    other = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    two_classes(other)
    refused(other, "data_path: .* is no UTF-8")


# --- the cache ---------------------------------------------------------------------


def test_the_cache_tells_folders_with_equal_names_sizes_and_times_apart(tmp_path: Path):
    first = two_classes(tmp_path / "a")
    other = tmp_path / "b"
    for label, name in enumerate(("ant", "bee")):
        for index in range(4):
            pixels = np.full((SIDE, SIDE, 3), 10 + 50 * label + index, np.uint8)
            (other / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(other / name / f"{index}.bmp")
            Image.fromarray(255 - pixels).save(first / name / f"{index}.bmp")
            (first / name / f"{index}.png").unlink()
    for file in [*first.rglob("*.bmp"), *other.rglob("*.bmp")]:
        os.utime(file, ns=(10**18, 10**18))
    one, two = load(first, cache=True), load(other, cache=True)
    assert one.fingerprint != two.fingerprint
    assert load(first, cache=True).fingerprint == one.fingerprint
    shutil.rmtree(first)
    other.rename(first)  # the same path, too
    assert load(first, cache=True).fingerprint == two.fingerprint
    changed = first / "ant" / "0.bmp"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 255
    changed.write_bytes(content)
    os.utime(changed, ns=(10**18, 10**18))
    assert load(first, cache=True).fingerprint == load(first).fingerprint != two.fingerprint


def test_the_report_of_cached_pictures_is_whole(tmp_path: Path):
    root = two_classes(tmp_path / "t")
    exif = Image.Exif()
    exif[0x0112] = 6
    write(root / "ant" / "turned.png", exif=exif.tobytes())
    first, again = load(root, cache=True), load(root, cache=True)
    assert first.report == again.report and list(first.report.changed.values()) == [["ant/turned.png"]]


# --- the report ----------------------------------------------------------------------


def test_the_command_line_prints_the_report_once_and_the_store_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = two_classes(tmp_path / "t", 8)
    fill(root / "ant" / ".ipynb_checkpoints", 1)
    words = ["--dataset", "folder:pets", "--data_path", str(root), "--num_experts", "1", "--train_epochs", "1"]
    assert (
        main(["experts", *words, "--depth", "1", "--width", "4", "--pooling", "none", "--out", str(tmp_path / "s")])
        == 0
    )
    error = capsys.readouterr().err
    assert error.count("train: 16 files of 2 classes (ant 8, bee 8)") == 1
    assert error.count("1 not read (hidden, or made by a tool): ant/.ipynb_checkpoints") == 1
    kept = json.loads((tmp_path / "s" / "manifest.json").read_text())["dataset"]["report"]
    assert kept["files"] == {"train": {"ant": 8, "bee": 8}}
    assert kept["left_out"] == {HIDDEN: {"count": 1, "names": ["ant/.ipynb_checkpoints"]}}


# --- any tree --------------------------------------------------------------------------

NAMES = ["ant", "bee", "a b", "été", "n01440764", "train", "val", "test", "Training"]
PLAIN = ["png", "nested", "upper suffix", "link to file", "link to folder", "turned"]
LEFT_OUT = ["hidden file", "hidden folder", "pipe", "text", "no suffix", "circle"]
REFUSED = ["damaged", "empty file", "deep", "icon", "dangling"]


@dataclass
class Wanted:
    """What a person would expect of a tree: images of each class and split, names that are left out, reasons to refuse."""

    images: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    may_refuse: bool = False
    must_refuse: bool = False


def plant(root: Path, folder: Path, kind: str, seed: Any, wanted: Wanted, images: list[bytes]) -> None:
    """Adds an entry of ``kind`` to the class ``folder`` and notes what is right."""
    pixels = picture(seed)
    number = "-".join(map(str, seed))
    path = folder / f"{number}.png"
    outside = root.parent / "outside" / number
    outside.mkdir(parents=True)
    image = Image.fromarray(pixels)
    if kind in PLAIN:
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned" else 1
        target = {"nested": folder / "deep" / "er" / path.name, "upper suffix": path.with_suffix(".PNG"),
                  "link to file": outside / "x.png", "link to folder": outside / "x.png"}.get(kind, path)  # fmt: skip
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, exif=exif.tobytes())
        if kind == "link to file":
            path.symlink_to(target)
        elif kind == "link to folder":
            (folder / number).symlink_to(outside)
        images.append((np.rot90(pixels, -1) if kind == "turned" else pixels).tobytes())
        return
    name = {"hidden file": f".{number}.png", "hidden folder": f".{number}", "text": f"{number}.txt",
            "no suffix": number, "circle": number}.get(kind, path.name)  # fmt: skip
    path = folder / name
    if kind in LEFT_OUT:
        wanted.left_out.add(path.relative_to(root).as_posix())
    else:
        wanted.must_refuse = True
    if kind == "hidden folder":
        path.mkdir()
        image.save(path / "x.png")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("BM, a bee\n")
    elif kind == "circle":
        path.symlink_to(folder)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "damaged":
        image.save(path, "PNG")
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "empty file":
        path.write_bytes(b"")
    elif kind == "deep":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(path)
    elif kind == "icon":
        icon = np.zeros((SIDE, SIDE, 4), np.uint8)
        icon[..., 3] = pixels[..., 0]
        Image.fromarray(icon).save(path)
    else:
        image.save(path, "PNG")


@st.composite
def trees(draw: Any) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Names of classes, and for each split (or "" for none) the kinds of entries of each class."""
    names = draw(
        st.lists(st.sampled_from(NAMES), min_size=draw(st.sampled_from([1, 2, 2, 3])), max_size=4, unique_by=str.lower)
    )
    parts = draw(
        st.sampled_from([[""], ["train", "test"], ["train", "val"], ["train", "test", "val"], ["Train", "Test"]])
    )
    # With no other class a tree of one split may as well be one of several.
    assume(len(parts) > 1 or not all(name.lower() in SPLIT_NAMES for name in names))
    kinds = draw(st.sampled_from([PLAIN, PLAIN + LEFT_OUT, PLAIN + LEFT_OUT, PLAIN + LEFT_OUT + REFUSED]))
    least = 0 if kinds[-1] == REFUSED[-1] else 1
    entries = st.lists(st.sampled_from(kinds), max_size=3)
    images = st.lists(st.sampled_from(PLAIN), min_size=least, max_size=2)
    return sorted(names), {part: [draw(images) + draw(entries) for _ in names] for part in parts}


def build(root: Path, names: list[str], parts: dict[str, list[list[str]]]) -> Wanted:
    wanted = Wanted(may_refuse=len(names) < 2)
    for part, classes in parts.items():
        found = wanted.images.setdefault(part.lower() or "all", {})
        for label, (name, kinds) in enumerate(zip(names, classes, strict=True)):
            folder = root / part / name
            folder.mkdir(parents=True)
            images = found.setdefault(name, [])
            for index, kind in enumerate(kinds):
                plant(root, folder, kind, (len(part), label, index), wanted, images)
            # A folder without a picture in it, but below it, may be a split as well as a class.
            directly = {"png", "upper suffix", "link to file", "turned"} & set(kinds)
            wanted.may_refuse |= name.lower() in SPLIT_NAMES and not part and not directly
            wanted.must_refuse |= not images
    return wanted


def pixels_of(dataset: Dataset) -> dict[str, dict[str, list[bytes]]]:
    found: dict[str, dict[str, list[bytes]]] = {}
    for part in ("train", "val", "test"):
        split = getattr(dataset, part)
        whole = dataset.transform.inverse(split.images).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for image, label in zip(whole, split.labels.tolist(), strict=True):
            found.setdefault(part, {}).setdefault(dataset.class_names[label], []).append(image.tobytes())
    return found


def attempt(root: Path) -> tuple[Dataset | None, str]:
    try:
        return load(root), ""
    except InputError as error:
        return None, str(error)


@given(tree=trees())
def test_any_tree_is_read_right_or_refused_in_one_line(tree: Any, tally: Callable[[str, str], None]):
    names, parts = tree
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        wanted = build(root, names, parts)
        dataset, refusal = attempt(root)
        if dataset is None:
            assert refusal.isprintable()
            assert wanted.may_refuse or wanted.must_refuse, f"refused without need: {refusal}"
            tally("trees of images", "refused")
            return
        assert not wanted.must_refuse
        found = pixels_of(dataset)
        images = wanted.images
        if "all" in images:  # one tree: its test split is drawn from it
            for name in names:
                got = [image for part in found.values() for image in part.get(name, [])]
                assert sorted(got) == sorted(images["all"][name])
        else:
            if "test" not in images:
                images["test"] = images.pop("val")
            for part, classes in images.items():
                assert {n: sorted(v) for n, v in found[part].items()} == {n: sorted(v) for n, v in classes.items() if v}
        assert {name for left in dataset.report.left_out.values() for name in left} == wanted.left_out
        turned = sum(kinds.count("turned") for classes in parts.values() for kinds in classes)
        assert sum(len(changed) for changed in dataset.report.changed.values()) == turned
        tally("trees of images", "right")
