"""Decode image files, threaded and cached, into one uint8 tensor; resize tensors to a square size."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional as vision
from torchvision.transforms.functional import InterpolationMode

from mct_fast.data.cache import load_cached, store_cached
from mct_fast.data.transforms import rows_in
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress

_SUFFIXES = ".png .apng .jpg .jpeg .jpe .jfif .webp .avif .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .jpx .tga .ico"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
CHANGES = (
    "turned upright by its EXIF orientation",
    "its transparency dropped",
    "the first of several pictures",
)
"""What decoding may change; bit k of a file's code stands for the k-th."""
_TURNED, _OPAQUE, _FIRST = (1 << bit for bit in range(len(CHANGES)))

_BATCH = 64  # files a thread takes at once: fewer would spend the time on hand-over
_DECODER = 3  # raise it when decoding changes, so that old cache entries are not used
_GREY_MODES = frozenset({"1", "L", "LA"})
_EXIF = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_ORIENTATION = 0x0112


def decode_images(
    files: Sequence[str | os.PathLike[str]],
    root: Path,
    *,
    image_size: int | None,
    cache: bool,
    progress: Progress,
    title: str,
    changed: Callable[[Tensor], None] = lambda codes: None,
) -> Tensor:
    """Decode image files into one tensor, in the order given.

    Args:
        files: at least one file. 8-bit grey, palette or colour in any format that Pillow reads; turned as EXIF says;
            alpha is dropped; of several pictures in a file the first is taken.
        root: the folder that names the files in the cache key.
        image_size: pixels a side: shorter side resized to it (bilinear, antialiased), then centre-cropped.
            None keeps the pixels; all files must then have one square size.
        cache: read and write the result in the cache folder, keyed by every file's path below `root`, inode, size, and
            times of its content's and its own last change. The last is the system's: no copy can bring it along.
        progress: shows the work as a task.
        title: what the task is called.
        changed: told (n,) uint8 codes of what decoding changed (see CHANGES).

    Returns:
        (n, C, H, W) uint8; C is 1 if every file is grey, else 3.

    Raises:
        InputError: a file that is no readable image, has 16 or more bits, or differs in size; or one whose colour is the
            same everywhere, because it is drawn in its transparency.
    """
    paths = [os.fspath(file) for file in files]
    key = f"images-{_files_key(paths, os.fspath(root), image_size)}" if cache else ""
    stored = load_cached(key) if cache else None
    if stored is None or any(len(stored.get(part, ())) != len(paths) for part in ("images", "changes")):
        stored = _decode_all(paths, image_size, progress, title)
        if cache:
            store_cached(key, stored)
    changed(stored["changes"])
    return stored["images"]


def decode_pictures(
    pictures: Mapping[str, bytes | str], image_size: int | None, progress: Progress, title: str
) -> Tensor:
    """As `decode_images`, pictures by the name that messages give them: their files' bytes, or paths; never cached."""

    def opened(name: str) -> Any:
        picture = pictures[name]
        return io.BytesIO(picture) if isinstance(picture, bytes) else picture

    return _decode_all(list(pictures), image_size, progress, title, opened)["images"]


def _decode_all(
    files: Sequence[str],
    image_size: int | None,
    progress: Progress,
    title: str,
    opened: Callable[[str], Any] = lambda file: file,
) -> dict[str, Tensor]:
    """`opened` gives what Pillow opens for the name of a file."""
    first, _, _ = _decode_file(files[0], image_size, opened)
    height, width = first.shape[:2]
    if height != width:
        raise InputError(f"{files[0]} is {width}x{height} pixels, not square; pass image_size to resize and crop")
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)
    changes = np.zeros(len(files), dtype=np.uint8)

    def decode_batch(start: int) -> tuple[int, bool]:
        grey = True
        batch = files[start : start + _BATCH]
        for index, file in enumerate(batch, start):
            pixels, is_grey, changes[index] = _decode_file(file, image_size, opened)
            if pixels.shape[:2] != (height, width):
                raise InputError(
                    f"{file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, others are {width}x{height}; "
                    f"pass image_size to bring all to one size"
                )
            images[index] = pixels.transpose(2, 0, 1)
            grey = grey and is_grey
        return len(batch), grey

    all_grey = True
    with ThreadPoolExecutor() as pool, progress.task(title, len(files)) as bar:
        try:
            for done, grey in pool.map(decode_batch, range(0, len(files), _BATCH)):
                bar.advance(done)
                all_grey = all_grey and grey
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    result = torch.from_numpy(images)
    if all_grey:
        result = result[:, :1].contiguous()
    return {"images": result, "changes": torch.from_numpy(changes)}


def resize_and_crop(images: Tensor, size: int) -> Tensor:
    """Resize the shorter side of images (n, C, H, W), uint8 or float, to `size` (bilinear, antialiased), then
    centre-crop to (n, C, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    pieces = [
        vision.center_crop(vision.resize(piece, [size], InterpolationMode.BILINEAR, antialias=True), [size, size])
        for piece in images.split(rows_in(1 << 26, images))
    ]
    return torch.cat(pieces)


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"), (b"\xff\xd8\xff", 0, "JPEG"), (b"GIF87a", 0, "GIF"), (b"GIF89a", 0, "GIF"),
    (b"WEBP", 8, "WebP"), (b"II*\0", 0, "TIFF"), (b"MM\0*", 0, "TIFF"), (b"ftypavif", 4, "AVIF"), (b"ftyphei", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIC"), (b"\0\0\0\x0cjP  ", 0, "JPEG 2000"), (b"\xff\x4f\xff\x51", 0, "JPEG 2000"),
)  # fmt: skip


def picture_format(path: str) -> str | None:
    """The picture format that a file's first bytes name, whatever its own name; None for anything else.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(32)
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "BMP"
    return next((kind for magic, at, kind in _MAGIC if head.startswith(magic, at)), None)


def _decode_file(file: str, image_size: int | None, opened: Callable[[str], Any]) -> tuple[np.ndarray, bool, int]:
    """Pixels (H, W, 3) uint8, whether the file is grey, and what was changed."""
    try:
        with Image.open(opened(file)) as image:
            if _is_deep(image):
                raise InputError(f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
            grey = image.mode in _GREY_MODES
            changes = _FIRST if getattr(image, "is_animated", False) else 0
            turned = image.format == "TIFF" and _orientation(image) in range(2, 9)  # which Pillow does while it loads
            colour: Any = image.convert("RGB")
            if not _EXIF.isdisjoint(image.info) and _orientation(image) in range(2, 9):
                colour, turned = ImageOps.exif_transpose(colour), True
            changes |= _TURNED if turned else 0
            if image.has_transparency_data:
                changes |= _drop_alpha(file, image, colour)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{file} has more pixels than Pillow decodes (twice its limit of {Image.MAX_IMAGE_PIXELS}); scale it down"
        ) from error
    except Exception as error:  # decoders raise anything over damaged bytes
        raise InputError(f"{file} cannot be decoded as an image; repair or remove it") from error
    if image_size is not None and colour.size != (image_size, image_size):
        # torchvision rounds the longer side and the crop's corner as the field's pipelines do.
        resized = vision.resize(colour, [image_size], InterpolationMode.BILINEAR)
        colour = vision.center_crop(resized, [image_size, image_size])
    return np.asarray(colour), grey, changes


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits; Pillow cuts those of colour images without a word."""
    if image.mode.startswith(("I", "F")):
        return True
    for tile in getattr(image, "tile", ()):
        facts = tile.args if isinstance(tile.args, tuple) else (tile.args,)  # a raw mode, of PNM also its largest value
        if any(isinstance(fact, str) and ";16" in fact for fact in facts):
            return True
        if tile.codec_name.startswith("ppm") and any(isinstance(fact, int) and fact > 255 for fact in facts):
            return True
    return False


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF beside sound pixels says nothing
        return None


def _drop_alpha(file: str, image: Image.Image, colour: Image.Image) -> int:
    alpha = image.convert("RGBA").getchannel("A")
    low, high = alpha.getextrema()
    if low != high and colour.getcolors(1) is not None:
        raise InputError(
            f"{file} is one colour everywhere, drawn in its transparency, which is dropped; paint it on a background"
        )
    return 0 if low == 255 else _OPAQUE


def _files_key(files: Sequence[str], root: str, image_size: int | None) -> str:
    digest = hashlib.sha256(json.dumps([_DECODER, image_size, len(files)]).encode())
    prefix = os.path.join(root, "")
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror or error}; check data_path") from error
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        digest.update(json.dumps([file.removeprefix(prefix), *facts]).encode())
    return digest.hexdigest()[:32]
