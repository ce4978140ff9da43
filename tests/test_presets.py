"""Published settings stay what was published, fit together, and give way to every option that is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import mct_fast.distill
import mct_fast.experts
import mct_fast.report
from mct_fast import presets as module
from mct_fast.cli import main
from mct_fast.data.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.distill import DistillConfig
from mct_fast.errors import InputError
from mct_fast.experts import ExpertConfig
from mct_fast.presets import Preset, preset, preset_names, presets
from mct_fast.sampling import SegmentSampler


def test_what_there_is() -> None:
    names = preset_names()
    assert len(set(names)) == len(names)
    sets = ("cifar10", "cifar100", "tiny")
    assert {f"mtt-{name}-ipc{ipc}" for name in sets for ipc in (1, 10, 50)} <= set(names)
    assert {f"mct-{name}-ipc{ipc}" for name in sets[:2] for ipc in (1, 10, 50)} <= set(names)
    assert {f"mtt-{subset}-ipc{ipc}" for subset in IMAGENET_SUBSETS for ipc in (1, 10)} <= set(names)
    assert "digits" in names


# Copied by hand from the command lines of DC-BENCH (methods/tm/readme.md) and MCT (run_command.md).
PUBLISHED = {
    "mtt-cifar10-ipc10": "ipc=10 syn_steps=30 expert_epochs=2 max_start_epoch=20 lr_img=100 lr_lr=1e-05 lr_teacher=0.001",
    "mtt-cifar100-ipc50": "ipc=50 syn_steps=80 expert_epochs=2 max_start_epoch=40 lr_img=1000 lr_lr=1e-05 lr_teacher=0.01 "
    "batch_syn=125",
    "mtt-tiny-ipc50": "ipc=50 syn_steps=20 expert_epochs=2 max_start_epoch=40 lr_img=10000 lr_lr=1e-04 lr_teacher=0.01 "
    "batch_syn=300",
    "mct-cifar10-ipc1-nozca": "ipc=1 syn_steps=60 expert_epochs=6 max_start_epoch=4 lr_img=1e3 lr_lr=1e-07",
    "mct-cifar10-ipc10": "ipc=10 syn_steps=30 expert_epochs=15 max_start_epoch=8 lr_img=1e3 lr_lr=1e-05",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    for word in PUBLISHED[name].split():
        field, _, value = word.partition("=")
        assert getattr(preset(name).distill, field) == float(value), field


def test_zca_is_where_the_source_has_it() -> None:
    whitened = {p.name for p in presets() if p.experts.zca}
    assert {n for n in whitened if n.startswith("mtt")} == {
        "mtt-cifar10-ipc1", "mtt-cifar10-ipc10", "mtt-cifar100-ipc1", "mtt-cifar100-ipc50",
    }  # fmt: skip
    assert "mct-cifar10-ipc1" in whitened and "mct-cifar10-ipc1-nozca" not in whitened


@pytest.mark.parametrize("known", presets(), ids=lambda p: p.name)
def test_the_two_stages_fit(known: Preset) -> None:
    experts, config = known.experts, known.distill
    discrete = config.trajectory == "discrete"
    SegmentSampler(config.expert_epochs, config.max_start_epoch, sampling=config.sampling).check(
        experts.train_epochs, continuous_path=not discrete
    )
    assert experts.keep_checkpoints or not discrete
    assert known.source and config.dsa_strategy == experts.dsa_strategy


def test_an_unknown_name_is_one_line_with_the_closest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean mtt-cifar10-ipc1"):
        preset("mtt-cifar10-ipc11")
    with pytest.raises(InputError, match="'mct-fast presets' lists them"):
        preset("zzzz")
    assert main(["experts", "--preset", "mtt-cifr10-ipc10", "--out", str(tmp_path / "s")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "mtt-cifar10-ipc10" in error
    assert not (tmp_path / "s").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> list[Any]:
    """The configurations that the commands would have run with."""
    seen: list[Any] = []
    monkeypatch.setattr(mct_fast.experts, "train_experts", lambda config, out, **kw: seen.append((config, out)))
    monkeypatch.setattr(mct_fast.distill, "distill", lambda config, store, **kw: seen.append((config, store)))
    monkeypatch.setattr(mct_fast.report, "write_report", lambda path: path)
    monkeypatch.setattr("mct_fast.cli.commands.store_rows", lambda store: [("store",)])
    monkeypatch.setattr("mct_fast.cli.commands.run_rows", lambda path: [("run",)])
    return seen


@pytest.mark.parametrize("joined", [False, True], ids=["--preset X", "--preset=X"])
def test_options_win_over_the_preset_even_when_they_are_the_default(joined: bool, asked: list[Any]) -> None:
    name = "mtt-cifar100-ipc50"
    chosen = [f"--preset={name}"] if joined else ["--preset", name]
    known = preset(name)
    main(["distill", "--trajectories", "s", "--out", "r", *chosen])
    assert asked[-1] == (known.distill, Path("s"))
    plain = DistillConfig()
    assert known.distill.ipc != plain.ipc and known.distill.trajectory != plain.trajectory
    words = ["--ipc", str(plain.ipc), "--trajectory", plain.trajectory, "--batch-syn", "None", "--lr-lr", "0.5"]
    main(["distill", "--trajectories", "s", "--out", "r", *words, *chosen])
    assert asked[-1][0] == dataclasses.replace(known.distill, ipc=1, trajectory="convex", batch_syn=None, lr_lr=0.5)
    main(["experts", "--out", "s", *chosen])
    assert asked[-1] == (known.experts, Path("s"))
    main(["experts", "--out", "s", *chosen, "--no-zca", "--num-experts", "7", "--no-keep-checkpoints"])
    assert asked[-1][0] == dataclasses.replace(known.experts, zca=False, num_experts=7, keep_checkpoints=False)
    main(["experts", "--out", "s"])
    assert asked[-1][0] == ExpertConfig()


def test_a_preset_needs_the_rest_too(asked: list[Any], capsys: pytest.CaptureFixture[str], tiny_run: Path) -> None:
    assert main(["experts", "--preset", "digits"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["distill", "--preset", "digits", "--resume", str(tiny_run)]) == 2
    assert capsys.readouterr().err.startswith("mct-fast: error: resume: ")
    assert main(["distill", "--preset"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not asked


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("mct-cifar10-ipc1 "))
    assert row[1:9] == ["50", "5", "0-3", "1000", "1e-07", "0.01", "all", "yes"]
    assert [line.split()[0] for line in lines[1 : 1 + len(preset_names())]] == list(preset_names())
    assert module._MTT in "\n".join(lines)
