"""Settings by name: what was published for MTT and MCT, and what was found here for small datasets.

A preset is a whole configuration of both stages; every field may still be given on the command line.  A published preset
holds the numbers of its source.  What the sources do not set stays ours: the gradient is exact (MCT's code drops terms and a
factor of 2 of the pixel gradient, so its ``lr_img`` acts as half the number), a tenth of the training data is held out
(``val_fraction=0`` keeps all) and the best images are chosen on it (``select_on='test'`` does as the published tables do), and
an evaluation trains ``num_eval=5`` networks, as MTT's (MCT's: 3).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mct_fast.data.imagenet_subsets import IMAGENET_SUBSETS
from mct_fast.distill import DistillConfig
from mct_fast.experts import ExpertConfig
from mct_fast.run.errors import InputError

# Where the numbers come from. The table of MTT's paper has an error, confirmed by its author (github.com/
# GeorgeCazenavette/mtt-distillation, issue 31: CIFAR-10, IPC 10), so MTT's numbers are those its author gave to DC-BENCH.
_MTT = "MTT's author, github.com/justincui03/dc_benchmark, methods/tm/readme.md"
_MTT_IMAGENET = "MTT's author, github.com/GeorgeCazenavette/mtt-distillation, issue 1"
_MCT_COMMANDS = "github.com/Zhong0x29a/MCT, run_command.md"
# Its docstring gives syn_steps, expert_epochs, max_start_epoch and the epochs of the waypoints; lr_img and lr_teacher are the
# defaults of the code, lr_lr that of its command for IPC 1.
_MCT_DOCSTRING = "github.com/Zhong0x29a/MCT, distill_compressed.py (docstring: 48.48 ± 0.23 %)"
_MCT_ABLATION = (
    "syn_steps and expert_epochs: github.com/Zhong0x29a/MCT, exps/ablation_visualization.py; the rest as MTT"
)
_HERE = "found here: docs/results.md"


@dataclass(frozen=True)
class Preset:
    """Settings of both stages under a name."""

    name: str
    source: str
    """Where the numbers come from."""
    experts: ExpertConfig
    distill: DistillConfig


def preset_names() -> tuple[str, ...]:
    """All names, in the order in which they are shown."""
    return tuple(preset.name for preset in _all())


def presets() -> tuple[Preset, ...]:
    """All presets."""
    return tuple(_all())


def preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        InputError: there is none; the message names the closest.
    """
    for known in _all():
        if known.name == name:
            return known
    close = difflib.get_close_matches(name, preset_names(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "'mct-fast presets' lists them"
    raise InputError(f"preset: unknown {name!r}; {hint}")


def _all() -> Iterator[Preset]:
    yield from _mtt()
    yield from _mct()
    yield from _own()


def _experts(dataset: str, **changes: Any) -> ExpertConfig:
    """The reference's buffer.py: 100 experts of 50 epochs, step size 0.01, batch 256."""
    recipe = ExpertConfig(dataset=dataset, num_experts=100, train_epochs=50, lr_teacher=0.01, batch_train=256)
    return replace(recipe, **changes)


# syn_steps, expert_epochs, max_start_epoch, lr_img, lr_lr, lr_teacher, batch_syn, zca
_Row = tuple[int, float, float, float, float, float, "int | None", bool]

_MTT_ROWS: dict[tuple[str, int], _Row] = {
    ("cifar10", 1): (50, 2, 2, 100, 1e-7, 0.01, None, True),
    ("cifar10", 10): (30, 2, 20, 100, 1e-5, 0.001, None, True),
    ("cifar10", 50): (30, 2, 40, 1000, 1e-5, 0.001, None, False),
    ("cifar100", 1): (20, 3, 20, 1000, 1e-5, 0.01, None, True),
    ("cifar100", 10): (20, 2, 20, 1000, 1e-5, 0.01, None, False),
    ("cifar100", 50): (80, 2, 40, 1000, 1e-5, 0.01, 125, True),
    ("tiny-imagenet", 1): (10, 2, 10, 10_000, 1e-4, 0.01, None, False),
    ("tiny-imagenet", 10): (20, 2, 40, 10_000, 1e-4, 0.01, 200, False),
    ("tiny-imagenet", 50): (20, 2, 40, 10_000, 1e-4, 0.01, 300, False),
}

# Four smoothed waypoints are what the commands of its code ask for, and equally spaced; the paper describes two.
_MCT_ROWS: dict[str, tuple[str, int, str, int | tuple[int, ...], _Row]] = {
    "mct-cifar10-ipc1": ("cifar10", 1, _MCT_DOCSTRING, (0, 6, 25, 50), (50, 5, 3, 1000, 1e-7, 0.01, None, True)),
    "mct-cifar10-ipc1-nozca": ("cifar10", 1, _MCT_COMMANDS, 4, (60, 6, 4, 1000, 1e-7, 0.01, None, False)),
    "mct-cifar10-ipc10": ("cifar10", 10, _MCT_COMMANDS, 4, (30, 15, 8, 1000, 1e-5, 0.01, None, False)),
    # The command says --lr_init 1e-3, which the code never reads: it runs with lr_teacher's default, 0.01.
    "mct-cifar10-ipc50": ("cifar10", 50, _MCT_COMMANDS, 4, (30, 2, 40, 1000, 1e-5, 0.01, None, False)),
    "mct-cifar100-ipc1": ("cifar100", 1, _MCT_ABLATION, 4, (40, 8, 20, 1000, 1e-5, 0.01, None, True)),
    "mct-cifar100-ipc10": ("cifar100", 10, _MCT_ABLATION, 4, (30, 3, 20, 1000, 1e-5, 0.01, None, False)),
    "mct-cifar100-ipc50": ("cifar100", 50, _MCT_ABLATION, 4, (50, 3, 40, 1000, 1e-5, 0.01, 125, True)),
}

# MTT's author names ConvNetD4 for Tiny-ImageNet (issue 6 of its repository); its commands for IPC 1 and 10 leave the default.
_NETWORKS = {"tiny-imagenet": "ConvNetD4"}


def _distill(ipc: int, row: _Row, **changes: Any) -> DistillConfig:
    syn_steps, expert_epochs, max_start_epoch, lr_img, lr_lr, lr_teacher, batch_syn, _ = row
    return DistillConfig(
        ipc=ipc,
        syn_steps=syn_steps,
        expert_epochs=expert_epochs,
        max_start_epoch=max_start_epoch,
        lr_img=lr_img,
        lr_lr=lr_lr,
        lr_teacher=lr_teacher,
        batch_syn=batch_syn,
        iterations=5000,
        **changes,
    )


def _mtt() -> Iterator[Preset]:
    path = {"trajectory": "discrete", "sampling": "integer"}
    for (dataset, ipc), row in _MTT_ROWS.items():
        network = _NETWORKS.get(dataset, "ConvNet")
        experts = _experts(dataset, model=network, zca=row[-1], keep_checkpoints=True)
        yield Preset(f"mtt-{_short(dataset)}-ipc{ipc}", _MTT, experts, _distill(ipc, row, **path))
    for subset in IMAGENET_SUBSETS:
        for ipc, batch_syn in ((1, None), (10, 20)):
            row = (20, 2.0, 10.0, 1e5, 1e-6, 0.01, batch_syn, False)
            experts = _experts(subset, model="ConvNetD5", image_size=128, keep_checkpoints=True)
            yield Preset(f"mtt-{subset}-ipc{ipc}", _MTT_IMAGENET, experts, _distill(ipc, row, **path))


def _mct() -> Iterator[Preset]:
    for name, (dataset, ipc, source, waypoints, row) in _MCT_ROWS.items():
        experts = _experts(dataset, zca=row[-1], waypoints=waypoints, smooth=True)
        yield Preset(name, source, experts, _distill(ipc, row))


def _short(dataset: str) -> str:
    return {"tiny-imagenet": "tiny"}.get(dataset, dataset)


def _own() -> Iterator[Preset]:
    # Digits are 8 x 8 pixels and easy: two narrow blocks and few epochs do. A mirrored digit is no digit, and gray has no
    # colour, so those two augmentations of the field are left out.
    augment = "crop_cutout_scale_rotate"
    yield Preset(
        "digits",
        _HERE,
        ExpertConfig(
            dataset="digits", num_experts=10, train_epochs=20, depth=2, width=64, batch_train=64, dsa_strategy=augment
        ),
        DistillConfig(
            ipc=1,
            syn_steps=20,
            expert_epochs=4.0,
            max_start_epoch=5.0,
            lr_img=100.0,
            lr_lr=1e-5,
            lr_teacher=0.02,
            iterations=150,
            eval_it=50,
            epoch_eval_train=300,
            checkpoint_every=50,
            dsa_strategy=augment,
        ),
    )
    # Gray 28 x 28 pixels, few experts of few epochs and a narrow network: what two cores do in an hour. The evaluation's step
    # size is a part of the student's, because of its momentum.
    for ipc, latest, lr_teacher, batch_syn, iterations, eval_it in (
        (1, 3.0, 0.03, None, 1000, 100),
        (10, 5.0, 0.01, 50, 500, 125),
    ):
        yield Preset(
            f"fashion-mnist-ipc{ipc}",
            _HERE,
            ExpertConfig(dataset="fashion-mnist", num_experts=6, train_epochs=10, width=32),
            DistillConfig(
                ipc=ipc,
                syn_steps=20,
                expert_epochs=2.0,
                max_start_epoch=latest,
                lr_img=300.0,
                lr_lr=1e-6,
                lr_teacher=lr_teacher,
                lr_net=0.002,
                batch_syn=batch_syn,
                iterations=iterations,
                eval_it=eval_it,
                checkpoint_every=50,
            ),
        )
