"""Published command lines of the field read the same here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from mct_fast.cli import commands, main
from mct_fast.run.errors import InputError

# As their READMEs and scripts print them, after `python FILE`; ours beside them. Folders are made up.
PLACES = " --buffer_path=buffers --data_path=data"
EXPERTS = {
    "mtt": (
        "--dataset=CIFAR100 --model=ConvNet --train_epochs=50 --num_experts=100 --zca" + PLACES,
        {"dataset": "CIFAR100", "train_epochs": 50, "num_experts": 100, "zca": True, "data_path": "data"},
    ),
    "mtt-imagenet": (
        "--dataset=ImageNet --subset=imagefruit --model=ConvNetD5 --res=128" + PLACES,
        {"dataset": "imagefruit", "model": "ConvNetD5", "image_size": 128},
    ),
    "mct": ("--dataset=Tiny --zca --buffer_path=buffers --data_path=./data/tiny", {"dataset": "Tiny", "zca": True}),
    "ftd": ("--dataset=CIFAR100 --model=ConvNet --train_epochs=50 --zca --rho 0.01" + PLACES, {"rho": 0.01}),
    "ftd-script": ("--dataset=CIFAR10 --zca --rho_max=0.01 --rho_min=0.01" + PLACES, {"rho": 0.01, "zca": True}),
    "datm": (
        "--dataset=CIFAR10 --model=ConvNet --train_epochs=100 --num_experts=100 --zca --buffer_path=../buffer_storage/ "
        "--data_path=../dataset/ --rho_max=0.01 --rho_min=0.01 --alpha=0.3 --lr_teacher=0.01 --mom=0. --batch_train=256",
        {"train_epochs": 100, "rho": 0.01, "gsam_alpha": 0.3, "mom": 0.0, "batch_train": 256},
    ),
    "tesla": (
        "--dataset=CIFAR10 --model=ConvNet --train_epochs=50 --num_experts=100 --zca --buffer_path=b",
        {"dataset": "CIFAR10", "zca": True},
    ),
    "values": (
        "--dataset CIFAR10 --zca True --dsa True --batch_real 256 --save_interval 10 --buffer_path b",
        {"zca": True, "dsa": True},
    ),
}
DISTILL = {
    "mtt": (
        "--dataset=CIFAR100 --ipc=1 --syn_steps=20 --expert_epochs=3 --max_start_epoch=20 --zca --lr_img=1000 "
        "--lr_lr=1e-05 --lr_teacher=0.01" + PLACES,
        {"ipc": 1, "syn_steps": 20, "expert_epochs": 3.0, "max_start_epoch": 20.0, "lr_img": 1000.0, "lr_lr": 1e-5},
        {"dataset": "CIFAR100", "zca": True},
    ),
    "mtt-imagenet": (
        "--dataset=ImageNet --subset=imagefruit --model=ConvNetD5 --ipc=1 --res=128 --syn_steps=20 --expert_epochs=2 "
        "--max_start_epoch=10 --lr_img=1000 --lr_lr=1e-06 --lr_teacher=0.01" + PLACES,
        {"canvas": 1, "lr_lr": 1e-6},
        {"dataset": "imagefruit", "model": "ConvNetD5", "image_size": 128},
    ),
    "mtt-textures": (
        "--texture --dataset=ImageNet --subset=imagesquawk --model=ConvNetD5 --ipc=1 --res=256 --syn_steps=20" + PLACES,
        {"canvas": 2, "syn_steps": 20},
        {"dataset": "imagesquawk", "image_size": 256},
    ),
    "mct-1": (
        "--dataset=CIFAR10 --ipc=1 --syn_steps=60 --expert_epochs=6 --max_start_epoch=4 --lr_img=1e3 --lr_lr=1e-07 "
        "--lr_init=1e-2 --buffer_path=b",
        {"syn_steps": 60, "lr_img": 1000.0, "lr_lr": 1e-7, "lr_teacher": 0.01},
        {"dataset": "CIFAR10"},
    ),
    "mct-10": (
        "--convex_ver=1 --dataset=CIFAR10 --ipc=10 --syn_steps=30 --expert_epochs=15 --max_start_epoch=8 --lr_img=1e3 "
        "--lr_lr=1e-05 --buffer_path=b",
        {"ipc": 10, "expert_epochs": 15.0},
        {"dataset": "CIFAR10"},
    ),
    "mct-50": ("--dataset=CIFAR10 --ipc=50 --syn_steps=30 --lr_init 1e-3 --buffer_path=b", {"ipc": 50}, {}),
    "ftd": (
        "--dataset=CIFAR100 --ipc=10 --syn_steps=20 --expert_epochs=2 --max_start_epoch=40 --zca --lr_img=1000 "
        "--lr_lr=1e-05 --lr_teacher=0.01 --ema_decay=0.9995 --Iteration=5000" + PLACES,
        {"ema": 0.9995, "iterations": 5000},
        {"zca": True},
    ),
    "tesla": (
        "--dataset=CIFAR100 --ipc=50 --syn_steps=80 --expert_epochs=2 --max_start_epoch=40 --lr_img=1000 --lr_lr=1e-05 "
        "--lr_teacher=0.01 --batch_syn=125  --zca --buffer_path=b",
        {"batch_syn": 125, "syn_steps": 80},
        {"zca": True},
    ),
    "tesla-labels": (
        "--dataset=ImageNet --ipc=1 --syn_steps=10 --expert_epochs=3 --max_start_epoch=10 --lr_img=10000 --lr_lr=1e-04 "
        "--lr_teacher=0.01 --batch_syn=100 --model=ConvNetD4 --teacher_label --buffer_path=b",
        {"labels": "expert", "lr_lr": 1e-4},
        {"model": "ConvNetD4"},
    ),
    "datm": (
        "--cfg FILE",
        {
            "iterations": 700, "ema": 0.9995, "lr_label": 2.0, "max_loss": 1.0, "pix_init": "real", "growth_iterations": 90,
            "initial_start_epoch": 10.0, "max_start_epoch": 20.0, "batch_syn": 100,
        },
        {"dataset": "CIFAR10", "zca": True},
    ),
}  # fmt: skip
CONFIGURATION = """
dataset: CIFAR10
device: [3]

# names of DATM's configurations
ipc: 10
Iteration: 700
syn_steps: 80
buffer_path: ../stores/
ema_decay: 0.9995
batch_syn: 100
project: x
skip_first_eva: True
lr_y: 2.0
Momentum_y: 0.9
threshold: 1.  # of the loss
pix_init: samples_predicted_correctly
min_start_epoch: 0
current_max_start_epoch: 10
max_start_epoch: 20
expansion_end_epoch: 90
zca: True
"""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the real parser made of the words; the work behind it is left out."""
    found, parse = [], commands.parse

    def stop(*arguments: Any) -> None:
        found.append(parse(*arguments))
        raise InputError("parsed")

    monkeypatch.setattr(commands, "parse", stop)
    return found


@pytest.mark.parametrize("case", EXPERTS)
def test_experts(case: str, parsed: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    line, wanted = EXPERTS[case]
    main(["experts", *shlex.split(line)])
    (given,) = parsed
    assert {name: getattr(given.config, name) for name in wanted} == wanted
    assert given.out == Path(
        dict(option.split("=") for option in line.split() if "=" in option).get("--buffer_path", "b")
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith("mct-fast: taken ") and "--buffer_path as --out" in said[0]


@pytest.mark.parametrize("case", DISTILL)
def test_distill(case: str, parsed: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line, wanted, claims = DISTILL[case]
    file = tmp_path / "IPC10.yaml"
    file.write_text(CONFIGURATION)
    main(["distill", *shlex.split(line.replace("FILE", str(file))), "--out", "run"])
    (given,) = parsed
    assert {name: getattr(given.config, name) for name in wanted} == wanted
    assert {name: getattr(given.experts, name) for name in claims} == claims
    assert given.trajectories in (Path("buffers"), Path("b"), Path("../stores"))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "--buffer_path as --trajectories" in said[0]


def test_compress(parsed: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compress", "buffers", "--out", "store", *shlex.split("--num_interpolation=4 --zca --dataset=CIFAR10")])
    (given,) = parsed
    assert (given.waypoints, given.zca, given.dataset) == (4, True, "CIFAR10")
    assert "taken --num_interpolation as --waypoints" in capsys.readouterr().err


def test_our_own_names_are_taken_without_a_word(parsed: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    main(["experts", "--out", "store", "--zca", "True", "--no-dsa"])
    assert parsed[0].config.zca is True and parsed[0].config.dsa is False
    assert capsys.readouterr().err == "mct-fast: error: parsed\n"


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["experts", "--out=x", "--rho_max=0.1", "--rho_min=0.2"], "rho_max"),
        (["distill", "--trajectories=x", "--out=y", "--eval_mode=M"], "eval_mode"),
        (["distill", "--out=y", "--cfg=nowhere.yaml"], "cfg"),
        (["distill", "--trajectories=x", "--out=y", "--max_files=3"], "unknown option --max_files"),
    ],
)
def test_what_means_something_else_is_refused(
    words: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"mct-fast: error: {argument}")


def test_the_experts_must_be_those_that_are_named(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, argument in (
        (["--dataset=CIFAR10"], "dataset"),
        (["--zca"], "zca"),
        (["--model=MLP"], "model"),
        (["--model=ConvNetD9"], "model"),
        (["--res=9"], "image_size"),
    ):
        assert main(["distill", f"--trajectories={tiny_store}", "--out=y", *words]) == 2
        assert f"error: {argument}: the experts of" in capsys.readouterr().err
    good = ["--dataset=digits", "--model=ConvNetD2", "--res=8", "--max_start_epoch=1", "--dry_run"]
    assert main(["distill", f"--trajectories={tiny_store}", "--out=y", *good]) == 0
