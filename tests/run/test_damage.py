"""Whatever part of a run's files is missing or odd: every reader says so in one line, or does not need it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mct_fast.cli import main
from mct_fast.run.files import sha256_file

ODD: tuple[Any, ...] = (None, "odd", [3])


def changed(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``found`` without each of its parts, and with something else in its place."""
    for name in found:
        yield {key: value for key, value in found.items() if key != name}
        for odd in ODD:
            if type(odd) is not type(found[name]):
                yield {**found, name: odd}


def unsealed(file: Path) -> list[dict[str, Any]]:
    """Records without their checksums, so that only their form is left to be wrong."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "sum"} for record in records]


def as_before(folder: Path) -> dict[str, Any]:
    """The set in ``folder`` as an earlier release wrote it, without checksum; returns its description."""
    content = json.loads((folder / "distilled.json").read_text())
    save_file(load_file(folder / "distilled.safetensors"), folder / "distilled.safetensors")
    del content["checksum"], content["tensors"]
    content |= {"format_version": 1, "sha256": sha256_file(folder / "distilled.safetensors")}
    (folder / "distilled.json").write_text(json.dumps(content))
    return content


def says(capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """A command that ends well, or with one line; an exception would escape here."""
    status = main([str(word) for word in words])
    lines = [line for line in capsys.readouterr().err.splitlines() if "an earlier release" not in line]
    assert status == 0 or (status == 2 and len(lines) == 1 and lines[0].startswith("mct-fast: error: ")), lines


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.mark.parametrize("kind", ["iter", "eval", "final"])
def test_a_record(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "metrics.jsonl"
    records = unsealed(file)
    at = next(i for i, record in enumerate(records) if record["kind"] == kind)
    for odd in [*changed(records[at]), *ODD]:
        file.write_text("".join(json.dumps(record) + "\n" for record in [*records[:at], odd, *records[at + 1 :]]))
        says(capsys, "inspect", run)


def test_a_record_on_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "metrics.jsonl"
    records = unsealed(file)
    for at, record in [(0, records[0]), (1, records[1]), (len(records) - 1, records[-1])]:
        for name in ("iteration", "mean", "test_mean"):
            if name in record:
                odd = {**record, name: "odd"}
                file.write_text("".join(json.dumps(r) + "\n" for r in [*records[:at], odd, *records[at + 1 :]]))
                says(capsys, "report", run)


@pytest.mark.parametrize("name", ["environment.json", "evaluations.json"])
def test_a_file_beside(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for odd in ("odd", [{"model": "ConvNet", "split": "test"}]):
        (run / name).write_text(json.dumps(odd))
        says(capsys, "report", run)


def test_the_configuration(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "config.json"
    config = {**json.loads(file.read_text()), "checksum": None}
    for odd in [*list(changed(config))[::3], *ODD]:
        file.write_text(json.dumps(odd))
        says(capsys, "distill", "--resume", run, "--trajectories", run / "nowhere")


@pytest.mark.parametrize("part", ["json", "tensors"])
def test_the_distilled_set(part: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "distilled"
    meta = as_before(folder)
    if part == "json":
        deeper = [{**meta, "provenance": odd} for odd in changed(meta["provenance"])]
        for odd in [*changed(meta), *deeper, *ODD]:
            (folder / "distilled.json").write_text(json.dumps(odd))
            says(capsys, "inspect", folder)
        return
    tensors = load_file(folder / "distilled.safetensors")
    for name in tensors:
        for odd in ({k: v for k, v in tensors.items() if k != name}, {**tensors, name: torch.zeros(2)}):
            save_file(odd, folder / "distilled.safetensors")
            digest = sha256_file(folder / "distilled.safetensors")
            (folder / "distilled.json").write_text(json.dumps({**meta, "sha256": digest}))
            says(capsys, "evaluate", run, "--epoch-eval-train", "1", "--num-eval", "1", "--no-random-real")
