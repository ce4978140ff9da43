"""Experts train in memory that does not grow with the number of epochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Two million parameters, 8.3 MB; three images, so that an epoch is one small step.
SCRIPT = """
import resource, sys
import torch
from dataclasses import replace
from mct_fast.data import load_dataset
from mct_fast.experts import ExpertConfig, train_experts

torch.set_num_threads(1)
epochs, folder = int(sys.argv[1]), sys.argv[2]
digits = load_dataset("digits")
few = replace(digits, train=replace(digits.train, images=digits.train.images[:3], labels=digits.train.labels[:3]))
config = ExpertConfig(
    num_experts=1, train_epochs=epochs, model="MLP", depth=2, width=1400, dsa=False, lr_teacher=1e-3
)
store = train_experts(config, folder + "/store", few)
print(sum(shape.numel() for shape in store.shapes) * 4, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(epochs: int, folder: Path) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(epochs), str(folder / str(epochs))],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "1"},
    )
    copy, most = map(int, done.stdout.split())
    return copy, most


def test_peak_memory_is_flat_in_the_number_of_epochs(tmp_path: Path) -> None:
    copy, few = peak(4, tmp_path)
    _, many = peak(26, tmp_path)
    assert copy > 8e6
    assert many - few < 1.5 * copy, f"22 more epochs took {(many - few) / copy:.2f} copies"
