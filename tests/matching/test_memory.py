"""Bytes that a match holds at once: the real code on tensors without data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.problem import Setting
from mct_fast.matching.adjoint import Exact, Unrolled
from tests.matching import counted

SMALL = Setting(ipc=2, syn_steps=4, batch_syn=8, depth=2, width=6, image_size=8, num_classes=4)


def test_the_count_is_what_the_tensors_hold() -> None:
    with counted.Meter() as meter:
        a = torch.empty(1000, device="meta")  # 4000 bytes
        b = a + 1
        assert meter.alive == 8000
        c = b[:10]  # a view: nothing new
        del b
        assert meter.alive == 8000
        del c
        assert meter.alive == 4000
    assert meter.peak == 8000 and a.numel() == 1000


def test_the_exact_gradient_is_flat_in_the_steps_and_the_unrolled_one_is_not() -> None:
    params = SMALL.convnet()
    step = 4 * sum(p.numel() for p in params.parameters())
    short, long = (counted.count(replace(SMALL, syn_steps=n), Exact()).peak for n in (4, 12))
    assert long - short == 8 * step  # the path: one parameter vector a step
    few, more, most = (counted.count(replace(SMALL, syn_steps=n), Unrolled(), fused=False).peak for n in (2, 4, 8))
    assert more - few > 10 * step
    assert counted.extrapolated(replace(SMALL, syn_steps=8), Unrolled(), fused=False).peak == pytest.approx(
        most, rel=0.05
    )


def test_pieces_need_less() -> None:
    whole, pieces = (counted.count(SMALL, Exact(), micro_batch=size).peak for size in (None, 2))
    assert pieces < whole


def test_what_is_kept_is_bounded_by_what_it_may_take() -> None:
    kept, nothing = (counted.count(SMALL, Exact(keep_bytes=size)).peak for size in (1 << 29, 0))
    assert kept >= nothing
