"""The GPU's benchmarks at toy size on the processor: that all of it runs, writes, and outlives a part that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import gpu, machine, ops, vs_mtt
from bench.gpu_parts import PARTS
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


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_and_writes(part: str, tmp_path: Path) -> None:
    assert gpu.main(["--dry-run", "--part", part, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / f"{part}.json").read_text())
    assert document["schema"] == "mct_fast.bench/1" and document["kind"] == part
    names = [row["name"] for row in document["results"]]
    assert len(set(names)) == len(names)
    assert names or (part == "kernels" and not torch.cuda.is_available())


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--only", "races"]) == 2
    assert "race-ipc1" in capsys.readouterr().err


def test_a_part_that_fails_or_runs_out_of_time_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def words(name: str, arguments: gpu.Arguments) -> list[str]:
        ran.append(name)
        return {"errors": ["false"], "students": ["sleep", "60"], "experts": ["true"]}[name]

    monkeypatch.setattr(gpu, "_words", words)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--dry-run", "--only", "errors", "experts", "students", "--minutes", "0.02", "--out", str(tmp_path)]
    assert gpu.main(given) == 1
    said = capsys.readouterr().out
    assert ran == ["errors", "experts", "students"]
    assert "errors: failed with status 1" in said and "students: out of time" in said and "experts" not in said
