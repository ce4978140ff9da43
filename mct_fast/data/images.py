"""Decode image files, threaded and cached, into one uint8 tensor; resize tensors to a square size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as vision
from torchvision.transforms.functional import InterpolationMode

from mct_fast.data.cache import load_cached, store_cached
from mct_fast.data.transforms import rows_in
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_BATCH = 64  # files a thread takes at once: fewer would spend the time on hand-over
_DECODER = 1  # raise it when decoding changes, so that old cache entries are not used
_GREY_MODES = frozenset({"1", "L", "LA"})


def decode_images(
    files: Sequence[Path], root: Path, *, image_size: int | None, cache: bool, progress: Progress, title: str
) -> Tensor:
    """Decode image files into one tensor, in the order given.

    Args:
        files: at least one file. 8-bit grey, palette or colour in any format that Pillow reads; alpha is
            dropped.
        root: the folder that names the files in the cache key and in messages.
        image_size: pixels a side: shorter side resized to it (bilinear, antialiased), then centre-cropped.
            None keeps the pixels; all files must then have one square size.
        cache: read and write the result in the cache folder, keyed by every file's path, size and time of
            change.
        progress: shows the work as a task.
        title: what the task is called.

    Returns:
        (n, C, H, W) uint8; C is 1 if every file is grey, else 3.

    Raises:
        InputError: a file that is no readable image, has 16 or more bits, or differs in size.
    """
    key = f"images-{_files_key(files, root, image_size)}" if cache else ""
    if cache and (stored := load_cached(key)) is not None and len(stored.get("images", ())) == len(files):
        return stored["images"]

    first, _ = _decode_file(files[0], image_size)
    height, width = first.shape[:2]
    if height != width:
        raise InputError(f"{files[0]} is {width}x{height} pixels, not square; pass image_size to resize and crop")
    images = np.empty((len(files), 3, height, width), dtype=np.uint8)

    def decode_batch(start: int) -> tuple[int, bool]:
        grey = True
        batch = files[start : start + _BATCH]
        for offset, file in enumerate(batch):
            pixels, is_grey = _decode_file(file, image_size)
            if pixels.shape[:2] != (height, width):
                raise InputError(
                    f"{file} is {pixels.shape[1]}x{pixels.shape[0]} pixels, others are {width}x{height}; "
                    f"pass image_size to bring all to one size"
                )
            images[start + offset] = pixels.transpose(2, 0, 1)
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
    if cache:
        store_cached(key, {"images": result})
    return result


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


def _decode_file(file: Path, image_size: int | None) -> tuple[np.ndarray, bool]:
    """Pixels (H, W, 3) uint8, and whether the file is grey."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{file} has more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits")
            grey = image.mode in _GREY_MODES
            colour = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be decoded as an image; repair or remove it") from error
    if image_size is not None and colour.size != (image_size, image_size):
        # torchvision rounds the longer side and the crop's corner as the field's pipelines do.
        resized = vision.resize(colour, [image_size], InterpolationMode.BILINEAR)
        colour = vision.center_crop(resized, [image_size, image_size])
    return np.asarray(colour), grey


def _files_key(files: Sequence[Path], root: Path, image_size: int | None) -> str:
    digest = hashlib.sha256(json.dumps([_DECODER, image_size, len(files)]).encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror or error}; check data_path") from error
        digest.update(json.dumps([file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()[:32]
