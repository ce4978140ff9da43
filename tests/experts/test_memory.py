"""Experts train in memory that does not grow with the number of epochs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mct_fast.data import load_dataset
from mct_fast.experts import ExpertConfig, train_experts


def peak(epochs: int, folder: Path) -> tuple[int, int]:
    """Bytes of an expert's parameters, and the most that tensors took at once while one was trained, by PyTorch's own count."""
    digits = load_dataset("digits")
    # Three images, so that an epoch is one small step, and scoring takes less than a copy of the parameters.
    parts = {name: getattr(digits, name) for name in ("train", "val", "test")}
    few = replace(
        digits, **{name: replace(part, images=part.images[:3], labels=part.labels[:3]) for name, part in parts.items()}
    )
    config = ExpertConfig(
        num_experts=1, train_epochs=epochs, model="MLP", depth=2, width=100, dsa=False, lr_teacher=1e-3
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as counted:
        store = train_experts(config, folder / str(epochs), few)
    held = most = 0
    for event in counted.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return sum(shape.numel() for shape in store.shapes) * torch.float32.itemsize, most


def test_peak_memory_is_flat_in_the_number_of_epochs(tmp_path: Path) -> None:
    peak(2, tmp_path)  # what is made once in a process is not counted
    copy, few = peak(4, tmp_path)
    _, many = peak(26, tmp_path)
    assert copy > 5e4
    assert few > 4 * copy, "the count misses what training takes"
    assert many - few < 1.5 * copy, f"22 more epochs took {(many - few) / copy:.2f} copies"
