"""Block sizes by shape, in one place: tables made by counting registers and programs, not yet by timing on a device.

The choice depends on shapes alone, so a run gives the same bits on every card, and not on the number of students, so each of
them has the bits that it has alone. Where MCT_FAST_AUTOTUNE names a file, the
convolutions' choices are timed once a shape and kept there (JSON); a later run with that file repeats them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mct_fast.kernels.precision import Precision
from mct_fast.run.errors import InputError
from mct_fast.run.files import read_json, write_json

PROGRAMS = 264
"""Programs that fill a large card: two for each of an H100's 132 multiprocessors."""


@dataclass(frozen=True)
class Config:
    """Block sizes of one launch by their names in the kernel, warps a program, stages of the software pipeline."""

    blocks: dict[str, int] = field(hash=False)
    warps: int = 4
    stages: int = 1


def _power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def _clamp(n: int, low: int, high: int) -> int:
    return max(low, min(n, high))


def _warps(values: int, each: int) -> int:
    """Warps that hold `values` values at about `each` a thread."""
    return _clamp(_power(values // (32 * each)), 1, 16)


def flat(size: int) -> Config:
    """Kernels over flat parameters."""
    return Config({"BLOCK": _clamp(_power(size), 32, 1024)}, warps=4)


def layers(size: int, count: int) -> tuple[Config, int]:
    """Kernels over the layers of flat parameters: the config, and the programs that share a layer."""
    block = _clamp(_power(size), 32, 1024)
    return Config({"BLOCK": block}, warps=4), _clamp(_power(size // max(1, 4 * count * block)), 1, 64)


def rows(columns: int) -> Config:
    """Second stage of the sums: a tile of 1024 values."""
    across = _clamp(_power(columns), 1, 32)
    return Config({"ROWS": 1024 // across, "COLUMNS": across}, warps=4)


def softmax(batch: int, classes: int) -> Config:
    """Cross-entropy: whole rows, up to 4096 values a program."""
    across = _power(classes)
    down = _clamp(4096 // across, 1, _power(batch))
    return Config({"ROWS": down, "COLUMNS": across}, warps=_warps(down * across, 8))


def pixels(plane: int) -> Config:
    """Augmentation: pixels of one image."""
    return Config({"BLOCK": _clamp(_power(plane), 32, 256)}, warps=_warps(min(plane, 256), 2))


@dataclass(frozen=True)
class Plane:
    """A config of the block kernels, and whether its tile is the whole plane."""

    config: Config
    whole: bool


def plane(height: int, width: int, channels: int, images: int, arrays: int) -> Plane:
    """Block kernels that hold `arrays` values a pixel: at most 8192 pixels x channels on chip; `images` of a student.

    Eight channels fill a memory sector, so there are never fewer; more of them where there are images enough.
    """
    cells = _power(-(-height // 2) * -(-width // 2))
    limit, most = 8192, _power(channels)
    across = min(most, 8)
    whole = 4 * cells * across <= limit
    down = cells if whole else limit // (4 * across)
    while across < min(most, 32) and 8 * cells * across <= limit and images * channels >= 2 * across * PROGRAMS:
        across *= 2
    values = 4 * down * across
    return Plane(Config({"CELLS": down, "CHANNELS": across}, _warps(values, 32 if arrays < 4 else 16)), whole)


# ------------------------------------------------------------------------------------------------------ convolutions


def _conv_config(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config({"BM": m, "BN": n, "BK": k}, warps, stages)


def maximum(size: int) -> tuple[Config, int]:
    """Greatest magnitude: the config, and the programs that share a tensor, a power of two."""
    block = 2048
    return Config({"BLOCK": block}, warps=4), _clamp(_power(size // (2 * block)), 1, 256)


def split(width: int) -> Config:
    """Activations to halves: 4096 values a program, of at most 64 channels."""
    across = min(width, 64)
    return Config({"ROWS": 4096 // across, "COLUMNS": across}, warps=4)


def conv(pixels: int, outputs: int, inputs: int, precision: Precision) -> list[Config]:
    """Implicit GEMM (pixels x outputs, `inputs` a step): the table's choice first, then what may be tried instead.

    The largest tile of which one student has 72 programs: measured on an H100 at 640 to 25600 pixels. Channels are padded
    (`halves.padded`). With three products, four operands of a large tile leave room for steps of 32 only.
    """
    shapes = [(128, 128, 8), (64, 128, 4), (64, 64, 4), (64, 32, 4)]
    tiles = list(dict.fromkeys((m, _divisor(outputs, n), warps) for m, n, warps in shapes))
    programs = {tile: -(-pixels // tile[0]) * (outputs // tile[1]) for tile in tiles}
    first = next((tile for tile in tiles if programs[tile] >= 72), tiles[-1])

    def config(m: int, n: int, warps: int) -> Config:
        if precision == "fine" and m * n > 64 * 64:
            return _conv_config(m, n, _divisor(inputs, 32), warps, 4)
        return _conv_config(m, n, _divisor(inputs, 64), warps, 3)

    return [config(*tile) for tile in (first, *(t for t in tiles if t != first))]


def _divisor(channels: int, most: int) -> int:
    """The largest power of two up to `most` that divides padded channels."""
    return min(most, channels & -channels)


def conv_few(pixels: int, outputs: int) -> Config:
    """Few channels: GEMM (pixels x outputs) whose inner dimension is channels and window together."""
    return _conv_config(64 if pixels >= 64 * PROGRAMS else 32, _clamp(_power(outputs), 16, 64), 32, 4, 1)


def columns(pixels: int, outputs: int, count: int) -> Config:
    """Input gradient of few channels: GEMM (pixels x count) over the output channels."""
    m = 64 if pixels >= 64 * PROGRAMS else 32
    return _conv_config(m, _clamp(_power(count), 16, 32), _clamp(_power(outputs), 16, 32), 4, 3)


def pack() -> Config:
    """Packing of the weights: square tiles of (output, input) channels."""
    return Config({"BLOCK": 32}, warps=4)


def taps(splits: int) -> Config:
    """Second stage of the weight gradient: a tile of splits x pairs of channels."""
    down = _clamp(_power(splits), 1, 16)
    return Config({"ROWS": down, "COLUMNS": 1024 // down}, warps=4)


@dataclass(frozen=True)
class Splits:
    """A config of the weight gradient, and the pixels that one program sums."""

    config: Config
    chunk: int


def weight_grad(pixels: int, outputs: int, inputs: int, products: int, precision: Precision) -> list[Splits]:
    """Weight gradient: outputs x inputs of three taps a program, pixels split over programs in fixed parts of 256 or more.

    8 warps a multiprocessor; the large tile at many pixels, as measured on an H100 at 2560 to 25600. Channels are padded. Six
    operands of three products leave room for steps of 32 pixels.
    """
    found = []
    shapes = [(64, 64, 4), (128, 64, 8)]
    for most, n, warps in shapes[::-1] if pixels >= 16384 else shapes:
        m, n = _divisor(outputs, most), _divisor(inputs, n)
        tiles = 3 * (outputs // m) * (inputs // n) * products
        parts = _clamp(-(-4 * PROGRAMS // (tiles * warps)), 1, max(1, pixels // 256))
        config = _conv_config(m, n, 32 if precision == "fine" else 64, warps, 3)
        found.append(Splits(config, 64 * -(-pixels // (64 * parts))))
    return found if found[0].config.blocks != found[1].config.blocks else found[:1]


def weight_grad_few(pixels: int, outputs: int, columns: int) -> Splits:
    """Weight gradient of few channels: outputs x columns, pixels split over programs in fixed parts."""
    m, n = _clamp(_power(outputs), 16, 64), _clamp(_power(columns), 16, 64)
    tiles = -(-outputs // m) * -(-columns // n)
    parts = _clamp(-(-PROGRAMS // tiles), 1, max(1, pixels // 128))
    return Splits(_conv_config(m, n, 32, 4, 3), 32 * -(-pixels // (32 * parts)))


# ------------------------------------------------------------------------------------------------------- measurement


class Tuner:
    """Chooses the fastest of some candidates, once a key, and keeps the choices in a JSON file."""

    def __init__(self, path: Path, time: Callable[[Callable[[], Any]], float]) -> None:
        self._path, self._time = path, time
        self._known: dict[str, int] = {}
        if path.exists():
            known = read_json(path)
            if not isinstance(known, dict) or not all(isinstance(v, int) for v in known.values()):
                raise InputError(f"MCT_FAST_AUTOTUNE: {path} holds no choices; delete it or name another file")
            self._known = known

    def choose(self, key: str, count: int, run: Callable[[int], Any]) -> int:
        """The number of the fastest candidate; `run(i)` runs candidate i. One that does not start is passed over."""
        if key not in self._known or not 0 <= self._known[key] < count:
            times = [self._measure(run, i) for i in range(count)]
            self._known[key] = min(range(count), key=times.__getitem__)
            write_json(self._path, self._known)
        return self._known[key]

    def _measure(self, run: Callable[[int], Any], i: int) -> float:
        try:
            return self._time(lambda: run(i))
        except Exception:  # out of shared memory or registers on this card: Triton has a class for each
            return float("inf")


@functools.cache
def _tuner() -> Tuner | None:
    path = os.environ.get("MCT_FAST_AUTOTUNE")
    if not path:
        return None
    from triton.testing import do_bench

    def median(run: Callable[[], Any]) -> float:
        milliseconds: Any = do_bench(run, return_mode="median")
        return milliseconds

    return Tuner(Path(path), median)


def run_best(key: tuple[object, ...], candidates: Sequence[Any], run: Callable[[Any], Any]) -> None:
    """Run the first candidate, or the fastest where autotuning is on. `run` may be repeated: it must not accumulate."""
    tuner = _tuner() if len(candidates) > 1 else None
    best = 0
    if tuner is not None:
        best = tuner.choose(" ".join(map(str, key)), len(candidates), lambda i: run(candidates[i]))
    run(candidates[best])
