"""Segments stay on the path and batches use every image once a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mct_fast.distill.sampling import draw_batches
from mct_fast.run.errors import InputError
from mct_fast.settings import SegmentSampler


def draws(sampler: SegmentSampler, epochs: int, iteration: int = 0, count: int = 2000) -> list[tuple[float, float]]:
    g = torch.Generator().manual_seed(0)
    return [sampler.draw(epochs, iteration, g) for _ in range(count)]


def test_continuous_fills_the_interval_and_clips_the_target() -> None:
    found = draws(SegmentSampler(expert_epochs=2.5, max_start_epoch=9, min_start_epoch=1), 10)
    starts = torch.tensor([s for s, _ in found])
    assert starts.min() >= 1 and starts.max() <= 9 and starts.frac().unique().numel() > 1000
    assert abs(float(starts.mean()) - 5) < 0.2
    assert all(t == min(s + 2.5, 10) for s, t in found)


def test_integer_draws_whole_epochs_below_the_bound() -> None:
    found = draws(SegmentSampler(expert_epochs=2, max_start_epoch=4, sampling="integer"), 10)
    assert {s for s, _ in found} == {0, 1, 2, 3}
    assert all(t == s + 2 for s, t in found)


def test_floating_upper_bound_grows_linearly() -> None:
    sampler = SegmentSampler(2, max_start_epoch=8, growth_iterations=100, initial_start_epoch=2)
    assert [sampler.window(i) for i in (0, 50, 100, 500)] == [(0, 2), (0, 5), (0, 8), (0, 8)]
    assert max(s for s, _ in draws(sampler, 10, iteration=50)) <= 5


def test_both_bounds_grow() -> None:
    sampler = SegmentSampler(
        1, 8, min_start_epoch=4, growth_iterations=100, initial_start_epoch=2, initial_min_start_epoch=1
    )
    assert [sampler.window(i) for i in (0, 50, 100)] == [(1, 2), (2.5, 5), (4, 8)]
    starts = [s for s, _ in draws(sampler, 10, iteration=50)]
    assert 2.5 <= min(starts) < 2.6 and 4.9 < max(starts) <= 5
    whole = replace(sampler, sampling="integer")
    assert {s for s, _ in draws(whole, 10, iteration=50)} == {2, 3, 4}
    assert {s for s, _ in draws(whole, 10, iteration=0)} == {1}
    # Where the latest start begins below the earliest, it begins there.
    late = SegmentSampler(1, 5, min_start_epoch=4, growth_iterations=10, initial_min_start_epoch=3)
    assert late.window(0) == (3, 3) and late.window(5) == (3.5, 4) and late.window(10) == (4, 5)


def test_a_start_at_the_end_still_leaves_a_segment() -> None:
    assert all(
        target > start for start, target in draws(SegmentSampler(2, max_start_epoch=4, min_start_epoch=4 - 1e-9), 4)
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"expert_epochs": 11, "max_start_epoch": 3}, "expert_epochs"),
        ({"expert_epochs": 0, "max_start_epoch": 3}, "expert_epochs"),
        ({"expert_epochs": 2, "max_start_epoch": 12}, "max_start_epoch"),
        ({"expert_epochs": 2, "max_start_epoch": 3, "min_start_epoch": 4}, "min_start_epoch"),
        ({"expert_epochs": 2, "max_start_epoch": 10, "min_start_epoch": 10}, "min_start_epoch"),
        ({"expert_epochs": 2, "max_start_epoch": 3, "initial_min_start_epoch": 1}, "initial_min_start_epoch"),
        ({"expert_epochs": 2.5, "max_start_epoch": 3, "sampling": "integer"}, "sampling"),
        ({"expert_epochs": 2, "max_start_epoch": 3, "sampling": "often"}, "sampling"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_segments_that_cannot_fit_are_refused(arguments: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        SegmentSampler(**arguments).check(10, continuous_path=True)


def test_continuous_sampling_of_checkpoints_is_refused() -> None:
    with pytest.raises(InputError, match="integer"):
        SegmentSampler(2, 3).check(10, continuous_path=False)


@pytest.mark.parametrize(("images", "batch"), [(10, 10), (23, 10), (7, 3), (5, 50), (1, 1)])
def test_batches_use_the_set_up_before_reshuffling(images: int, batch: int) -> None:
    rounds = -(-images // min(batch, images))
    rows = draw_batches(images, batch, rounds * 3 + 1, torch.Generator().manual_seed(1))
    assert rows.shape == (rounds * 3 + 1, min(batch, images))
    for r in range(3):
        used = rows[r * rounds : (r + 1) * rounds]
        assert sorted(used[used >= 0].tolist()) == list(range(images))
