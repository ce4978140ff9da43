"""The GPU's benchmarks at toy size on the processor: that all of it runs, counts and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import counted, gpu, machine, ops, vs_mtt
from bench.problem import Setting
from mct_fast.matching.adjoint import Exact, Unrolled
from mct_fast.run.errors import InputError

SMALL = Setting(ipc=2, syn_steps=4, batch_syn=8, depth=2, width=6, image_size=8, num_classes=4)
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
    assert len(rows) == 4 * len(gpu.LARGE)
    for row in rows:
        assert row["counted"] > 0
        assert (row["seconds"] is None) == row["how"].startswith("plain PyTorch")
    # nothing kept takes less than something kept, pieces less than the whole batch
    for kept, nothing, pieces, _ in zip(*[iter(rows)] * 4, strict=True):
        assert kept["counted"] >= nothing["counted"] >= pieces["counted"]


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
    from dataclasses import replace

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
