"""Block sizes are legal whatever the shape, and choices that were timed are kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from mct_fast.kernels import tuning
from mct_fast.kernels.halves import padded
from mct_fast.kernels.precision import Precision, conv_precision
from mct_fast.run.errors import InputError

SIZES = (1, 3, 16, 20, 128, 200)


def configs() -> list[tuning.Config]:
    found = [f(n) for f in (tuning.flat, tuning.rows, tuning.pixels, tuning.taps) for n in (*SIZES, 5000, 320010)]
    found += [tuning.layers(n, 14)[0] for n in SIZES] + [tuning.pack()]
    for pixels in (1, 49, 640, 102400):
        for outputs in SIZES:
            for inputs, how in itertools.product(SIZES, get_args(Precision)):
                found += tuning.conv(pixels, padded(outputs), padded(inputs), how)
                parts = tuning.weight_grad(pixels, padded(outputs), padded(inputs), 2, how)
                found += [part.config for part in parts]
            found += [
                tuning.conv_few(pixels, outputs),
                tuning.columns(pixels, outputs, 9),
                tuning.split(padded(outputs)),
            ]
            found += [tuning.weight_grad_few(pixels, outputs, 27).config]
            found += [tuning.softmax(pixels, outputs), tuning.plane(pixels, 3, outputs, 5, 4).config]
    return found


def test_blocks_are_powers_of_two_that_triton_takes() -> None:
    for config in configs():
        for size in (*config.blocks.values(), config.warps):
            assert size & (size - 1) == 0 < size
        assert config.warps <= 16
        product = 1
        for size in config.blocks.values():
            product *= size
        assert product <= 1 << 20
        if "BK" in config.blocks:
            assert min(config.blocks.values()) >= 16  # of a product on tensor cores


@pytest.mark.parametrize("height", [2, 7, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 5, 128])
def test_a_whole_plane_is_a_whole_plane(height: int, channels: int) -> None:
    for images in (1, 10, 1000):
        tile = tuning.plane(height, height, channels, images, 2)
        cells = tile.config.blocks["CELLS"]
        assert tile.whole == (cells >= (-(-height // 2)) ** 2)
        assert 4 * cells * tile.config.blocks["CHANNELS"] <= 8192


def test_parts_of_the_weight_gradient_cover_all_pixels() -> None:
    for pixels in (1, 255, 2560, 102400):
        for part in (*tuning.weight_grad(pixels, 128, 128, 1, "fine"), tuning.weight_grad_few(pixels, 128, 27)):
            assert part.chunk % part.config.blocks["BK"] == 0
            assert part.chunk * -(-pixels // part.chunk) >= pixels


def _timer(times: list[float], asked: list[int]) -> Callable[[Callable[[], Any]], float]:
    def time(run: Callable[[], Any]) -> float:
        asked.append(run())
        return times[asked[-1]]

    return time


def test_a_timed_choice_is_kept(tmp_path: Path) -> None:
    asked: list[int] = []
    tuner = tuning.Tuner(tmp_path / "choices.json", _timer([3.0, 1.0, 2.0], asked))
    assert tuner.choose("conv 1", 3, lambda i: i) == 1
    assert tuner.choose("conv 1", 3, lambda i: i) == 1
    assert asked == [0, 1, 2]
    again = tuning.Tuner(tmp_path / "choices.json", _timer([], asked))
    assert again.choose("conv 1", 3, lambda i: i) == 1


def test_a_candidate_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    def time(run: Callable[[], Any]) -> float:
        if run() == 0:
            raise RuntimeError("out of resource: shared memory")
        return 1.0

    assert tuning.Tuner(tmp_path / "choices.json", time).choose("conv", 2, lambda i: i) == 1


def test_a_file_that_holds_no_choices_is_named(tmp_path: Path) -> None:
    (tmp_path / "choices.json").write_text('["conv"]')
    with pytest.raises(InputError, match="^MCT_FAST_AUTOTUNE: "):
        tuning.Tuner(tmp_path / "choices.json", lambda run: 0.0)


def test_precision_follows_pytorch() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for setting, wanted in (("ieee", "fine"), ("tf32", "fast"), ("none", "fine")):
            torch.backends.cudnn.conv.fp32_precision = setting
            assert conv_precision() == wanted
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
