"""What run folders keep, to compare runs by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.distill import DistilledDataset
from mct_fast.run.folder import Run


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """metrics.jsonl, or its lines of one kind, without what the clock decides."""
    kept = [r for r in Run.open(run).metrics() if kind in (None, r["kind"])]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in kept]


def last_images(run: Path) -> Tensor:
    return _checkpoint(run)[0]["images"]


def same_runs(one: Path, two: Path) -> None:
    """All that the runs keep is the same, but times."""
    assert Run.open(one).config == Run.open(two).config
    assert records(one) == records(two)
    kept = [[part for part in ("first", "distilled") if (run / part).is_dir()] for run in (one, two)]
    assert kept[0] == kept[1]
    for part in kept[0]:
        assert DistilledDataset.load(one / part).provenance == DistilledDataset.load(two / part).provenance
        assert (one / part / "distilled.safetensors").read_bytes() == (
            two / part / "distilled.safetensors"
        ).read_bytes()
    (tensors, numbers), (others, same) = _checkpoint(one), _checkpoint(two)
    assert {**numbers, "seconds": 0} == {**same, "seconds": 0}
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def _checkpoint(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    saved = Run.open(run).checkpoint()  # load_checkpoint would cut the metrics back to it
    assert saved is not None
    return saved[0], saved[1]
