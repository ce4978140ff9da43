"""Published settings stay what was published, fit together, and give way to every option that is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import mct_fast.distill
import mct_fast.experts
import mct_fast.view.report
from mct_fast.cli import commands, main
from mct_fast.distill import DistillConfig
from mct_fast.experts import ExpertConfig
from mct_fast.presets import Preset, preset, preset_names, presets
from mct_fast.run.errors import InputError
from mct_fast.settings import SegmentSampler
from mct_fast.settings.imagenet_subsets import IMAGENET_SUBSETS

UNROLLED = ("fashion-mnist-unrolled-ipc1", "cifar10-unrolled-ipc1")


def test_what_there_is() -> None:
    names = preset_names()
    assert len(set(names)) == len(names)
    assert {*names} == {*PUBLISHED, "digits", "fashion-mnist-ipc1", "fashion-mnist-ipc10", *UNROLLED}


# Copied by hand: syn_steps / expert_epochs / max_start_epoch / lr_img / lr_lr / lr_teacher / batch_syn (-: all), from DC-BENCH's
# methods/tm/readme.md (MTT), issue 1 of MTT's repository (ImageNet), run_command.md, the docstring of distill_compressed.py and
# exps/ablation_visualization.py (MCT).
PUBLISHED = {
    "mtt-cifar10-ipc1": "50 2 2 100 1e-7 0.01 -",
    "mtt-cifar10-ipc10": "30 2 20 100 1e-5 0.001 -",
    "mtt-cifar10-ipc50": "30 2 40 1000 1e-5 0.001 -",
    "mtt-cifar100-ipc1": "20 3 20 1000 1e-5 0.01 -",
    "mtt-cifar100-ipc10": "20 2 20 1000 1e-5 0.01 -",
    "mtt-cifar100-ipc50": "80 2 40 1000 1e-5 0.01 125",
    "mtt-tiny-ipc1": "10 2 10 10000 1e-4 0.01 -",
    "mtt-tiny-ipc10": "20 2 40 10000 1e-4 0.01 200",
    "mtt-tiny-ipc50": "20 2 40 10000 1e-4 0.01 300",
    **{f"mtt-{subset}-ipc1": "20 2 10 1e5 1e-6 0.01 -" for subset in IMAGENET_SUBSETS},
    **{f"mtt-{subset}-ipc10": "20 2 10 1e5 1e-6 0.01 20" for subset in IMAGENET_SUBSETS},
    "mct-cifar10-ipc1": "50 5 3 1000 1e-7 0.01 -",
    "mct-cifar10-ipc1-nozca": "60 6 4 1000 1e-7 0.01 -",
    "mct-cifar10-ipc10": "30 15 8 1000 1e-5 0.01 -",
    "mct-cifar10-ipc50": "30 2 40 1000 1e-5 0.01 -",
    "mct-cifar100-ipc1": "40 8 20 1000 1e-5 0.01 -",
    "mct-cifar100-ipc10": "30 3 20 1000 1e-5 0.01 -",
    "mct-cifar100-ipc50": "50 3 40 1000 1e-5 0.01 125",
}
NUMBERS = ("syn_steps", "expert_epochs", "max_start_epoch", "lr_img", "lr_lr", "lr_teacher", "batch_syn")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    experts, config = preset(name).experts, preset(name).distill
    stated = [None if word == "-" else float(word) for word in PUBLISHED[name].split()]
    assert dict(zip(NUMBERS, stated, strict=True)) == {number: getattr(config, number) for number in NUMBERS}
    assert f"-ipc{config.ipc}" in name and config.iterations == 5000
    assert (experts.num_experts, experts.train_epochs, experts.lr_teacher, experts.batch_train) == (100, 50, 0.01, 256)
    method = (config.trajectory, config.sampling, experts.waypoints, experts.smooth)
    if name.startswith("mtt"):
        assert method == ("discrete", "integer", 2, False)
    else:
        assert method == ("convex", "continuous", (0, 6, 25, 50) if name == "mct-cifar10-ipc1" else 4, True)


def test_networks_are_those_of_the_sources() -> None:
    named = {p.name: p.experts.model for p in presets()}
    assert {model for name, model in named.items() if "-tiny-" in name} == {"ConvNetD4"}
    assert {named[f"mtt-{subset}-ipc{ipc}"] for subset in IMAGENET_SUBSETS for ipc in (1, 10)} == {"ConvNetD5"}
    assert {model for name, model in named.items() if "-cifar" in name} == {"ConvNet"}


def test_zca_is_where_the_source_has_it() -> None:
    whitened = {p.name for p in presets() if p.experts.zca}
    assert {n for n in whitened if n.startswith("mtt")} == {
        "mtt-cifar10-ipc1", "mtt-cifar10-ipc10", "mtt-cifar100-ipc1", "mtt-cifar100-ipc50",
    }  # fmt: skip
    assert {n for n in whitened if n.startswith("mct")} == {
        "mct-cifar10-ipc1", "mct-cifar100-ipc1", "mct-cifar100-ipc50",
    }  # fmt: skip


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
    monkeypatch.setattr(mct_fast.view.report, "write_report", lambda path: path)
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
    assert row[1:10] == ["50", "5", "0-3", "1000", "1e-07", "0.01", "all", "yes", "0,6,25,50"]
    assert [line.split()[0] for line in lines[1 : 1 + len(preset_names())]] == list(preset_names())
    assert max(map(len, lines)) <= 100


def test_the_list_for_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets", "--dataset", "CIFAR10"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]]
    assert names and set(names) == {
        name for name in preset_names() if "-cifar10-" in name or name.startswith("cifar10-")
    }
    assert main(["presets", "--dataset", "pets"]) == 2
    assert "fashion-mnist" in capsys.readouterr().err


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_prints_its_source_and_its_commands(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["presets", name]) == 0
    out = capsys.readouterr().out
    assert preset(name).source in out
    given, parse = [], commands.parse

    def stop(*arguments: object) -> None:
        given.append(parse(*arguments))  # pyright: ignore[reportArgumentType]
        raise InputError("parsed")

    monkeypatch.setattr(commands, "parse", stop)
    lines = [line for line in out.splitlines() if line.startswith("mct-fast ")]
    codes = [main(line.split()[1:]) for line in lines]
    if preset(name).distill.goal.objective == "unrolled":  # no experts are needed
        assert codes == [2, 2]
        assert given[0].config.flat() == {**preset(name).distill.flat(), "data_path": "data"}
        return
    assert codes == [2, 2, 2]
    experts, distill, evaluate = given
    assert (experts.config, distill.config.flat()) == (
        dataclasses.replace(preset(name).experts, data_path=experts.config.data_path, download=experts.config.download),
        preset(name).distill.flat(),
    )
    assert experts.out == distill.trajectories and distill.out == evaluate.path
