"""Runs side by side: each has the files and bits that it has alone, whatever the others do."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mct_fast.distill.loop
from mct_fast.data import Dataset, load_dataset
from mct_fast.distill import DistillConfig, distill, sweep
from mct_fast.distill.selection import Selection
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.run.errors import InputError
from mct_fast.trajectory import TrajectoryStore
from tests.distill.runs import last_images, same_runs

EXPERTS = ExpertConfig(
    num_experts=2, train_epochs=4, depth=1, width=4, batch_train=500, lr_teacher=0.05, keep_checkpoints=True, dsa=False
)
TINY = DistillConfig(
    ipc=1, syn_steps=3, expert_epochs=1, max_start_epoch=2.0, lr_img=20.0, lr_lr=1e-4, lr_teacher=0.05, batch_syn=4,
    iterations=4, eval_it=2, num_eval=1, epoch_eval_train=2, checkpoint_every=2, random_real=False,
)  # fmt: skip
MTT = dict(trajectory="discrete", sampling="integer", expert_epochs=2)

CASES: dict[str, list[DistillConfig]] = {
    "seeds": [replace(TINY, seed=seed) for seed in range(3)],
    "step-sizes": [replace(TINY, lr_img=20.0, lr_teacher=0.05), replace(TINY, lr_img=300.0, lr_teacher=0.01)],
    "methods": [TINY, replace(TINY, **MTT), replace(TINY, ema=0.9, img_optimizer="adam", lr_img=0.1)],
    "lengths": [TINY, replace(TINY, iterations=2), replace(TINY, iterations=3, eval_it=0)],
    "students": [replace(TINY, students=2, seed=seed) for seed in range(2)],
    "soft-labels": [replace(TINY, lr_label=5.0, seed=seed) for seed in range(2)],
    "textures": [replace(TINY, canvas=2, seed=seed) for seed in range(2)],
    "truncated": [replace(TINY, adjoint="truncated", seed=seed) for seed in range(2)],
    "unrolled": [replace(TINY, adjoint="unrolled", iterations=2, seed=seed) for seed in range(2)],
    "pieces": [replace(TINY, micro_batch=2, seed=seed) for seed in range(2)],
    "noise-and-real": [replace(TINY, pix_init=begin) for begin in ("noise", "real")],
    "augmentations": [replace(TINY, dsa_strategy=name) for name in ("color_crop", "flip_rotate_cutout")],
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def store(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrajectoryStore:
    return train_experts(EXPERTS, tmp_path_factory.mktemp("experts") / "store", digits)


@pytest.mark.parametrize("case", CASES)
def test_each_run_has_the_bits_that_it_has_alone(
    case: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    configs = CASES[case]
    outs = [tmp_path / f"side{i}" for i in range(len(configs))]
    found = sweep(configs, store, digits, outs=outs)
    for i, config in enumerate(configs):
        alone = distill(config, store, digits, out=tmp_path / f"alone{i}")
        same_runs(outs[i], tmp_path / f"alone{i}")
        assert torch.equal(found[i].images, alone.images)
    last = {last_images(out).numpy().tobytes() for out in outs}
    assert len(last) == len(configs), "the runs differ"


def test_without_folders_nothing_is_written(digits: Dataset, store: TrajectoryStore) -> None:
    found = sweep(CASES["seeds"], store, digits)
    for config, one in zip(CASES["seeds"], found, strict=True):
        assert torch.equal(one.images, distill(config, store, digits).images)


def test_killed_runs_go_on_from_where_each_stopped(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was finished, one stopped at its checkpoint, one was killed in the middle, one not begun."""
    configs = [replace(TINY, seed=seed) for seed in range(4)]
    outs = [tmp_path / f"run{i}" for i in range(4)]
    distill(configs[0], store, digits, out=outs[0])
    distill(configs[1], store, digits, out=outs[1], until=2)

    def killed(self: Selection, state: Any) -> None:
        if state.iteration == 2:
            raise KeyboardInterrupt
        evaluate(self, state)

    evaluate = Selection.evaluate
    monkeypatch.setattr(Selection, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        distill(configs[2], store, digits, out=outs[2])
    monkeypatch.undo()
    with pytest.raises(InputError, match="out: .*run1 holds a run that is not finished"):
        sweep(configs, store, digits, outs=outs)
    shutil.rmtree(outs[3], ignore_errors=True)
    sweep(configs, store, digits, outs=outs, resume=True)
    for i, config in enumerate(configs):
        distill(config, store, digits, out=tmp_path / f"alone{i}")
        same_runs(outs[i], tmp_path / f"alone{i}")


def test_a_run_that_ends_with_an_error_ends_no_other(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    bad = replace(TINY, max_loss=1e-9, iterations=4)
    with pytest.raises(InputError, match="max_loss: all of the last .*bad, 1 of 2 runs ended so"):
        sweep([bad, TINY], store, digits, outs=[tmp_path / "bad", tmp_path / "good"])
    distill(TINY, store, digits, out=tmp_path / "alone")
    same_runs(tmp_path / "good", tmp_path / "alone")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ipc": 2}, "ipc: differs .1, 2."),
        ({"syn_steps": 4}, "syn_steps: differs"),
        ({"batch_syn": 5}, "batch_syn"),
        ({"students": 2}, "students"),
        ({"canvas": 2}, "canvas"),
        ({"labels": "expert"}, "labels"),
        ({"lr_label": 1.0}, "lr_label: is 0 in some runs"),
        ({"dsa": False}, "dsa: differs"),
        ({"adjoint": "truncated"}, "adjoint"),
        ({"micro_batch": 2}, "micro_batch"),
        ({"data_path": "elsewhere"}, "data_path"),
    ],
)
def test_runs_of_other_shapes_are_refused(
    change: dict[str, Any], named: str, digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=named):
        sweep([TINY, replace(TINY, **change)], store, digits, outs=[tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_the_paths_is_refused_before_a_folder_is_made(
    digits: Dataset, store: TrajectoryStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="max_start_epoch: 9 exceeds"):
        sweep([TINY, replace(TINY, max_start_epoch=9.0)], store, digits, outs=[tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())


def test_folders_are_one_a_run(digits: Dataset, store: TrajectoryStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="outs: got 1 folders for 2 configurations"):
        sweep([TINY, TINY], store, digits, outs=[tmp_path])
    with pytest.raises(InputError, match="outs: names a folder twice"):
        sweep([TINY, TINY], store, digits, outs=[tmp_path, tmp_path / "x" / ".."])
    with pytest.raises(InputError, match="outs: got 0 folders for 0 configurations"):
        sweep([], store, digits)


def test_every_setting_is_shared_or_may_differ_on_purpose() -> None:
    """A new setting has to be looked at: does it change a shape?"""
    free = {
        "pix_init", "expert_epochs", "max_start_epoch", "min_start_epoch", "sampling", "growth_iterations",
        "initial_start_epoch", "initial_min_start_epoch", "trajectory", "lr_teacher", "iterations", "lr_img",
        "img_optimizer", "mom_img", "lr_decay", "lr_decay_every", "lr_lr", "lr_label", "ema", "max_loss", "max_skipped",
        "dsa_strategy", "eval_it", "num_eval", "epoch_eval_train", "batch_train", "lr_net", "random_real", "select_on",
        "eval_test", "checkpoint_every", "seed", "cosine", "clip", "growing",
    }  # fmt: skip
    assert set(DistillConfig().flat()) == free | set(mct_fast.distill.loop.SHARED)
