"""The GPU's benchmarks at toy size on the processor: that all of it runs and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu, machine, ops, vs_mtt
from mct_fast.run.errors import InputError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--dry-run" in said
    for benchmark in (ops, vs_mtt):
        assert benchmark.main(["--device", "cuda"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(InputError, match="device: PyTorch sees no 'cuda'"):
        machine.check_device("cuda")


def test_a_dry_run_runs_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler in this test")

    monkeypatch.setattr(torch, "compile", refuse)
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"ops.json", "large.json", "vs_mtt.json"}
    large = json.loads((tmp_path / "large.json").read_text())
    assert large["schema"] == "mct_fast.bench/1" and large["kind"] == "large"
    rows = large["results"]
    assert len(rows) == 3 * len(gpu.LARGE)
    assert all(row["seconds"]["median"] > 0 for row in rows)
