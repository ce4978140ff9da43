"""Experts: their training against a plain PyTorch loop, and what may and may not change their bits."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mct_fast.data import DSA, Dataset, load_dataset
from mct_fast.experts import ExpertConfig, expert_spec, train_experts
from mct_fast.experts.config import recipe_of
from mct_fast.models import FunctionalModel, build_model
from mct_fast.run.errors import InputError
from mct_fast.run.progress import LineProgress, quiet
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.trajectory import ConvexTrajectory, DiscreteTrajectory, TrajectoryStore

# 1293 training images in batches of 500: three steps an epoch, the last one shorter.
TINY = ExpertConfig(num_experts=3, train_epochs=4, depth=1, width=4, batch_train=500, lr_teacher=0.05, parallel=2)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def plain_sgd(config: ExpertConfig, dataset: Dataset, number: int) -> list[Tensor]:
    """An expert's checkpoints from torch.optim.SGD in float64, written without the package's training code."""
    network = build_model(expert_spec(config, dataset))
    initial = FunctionalModel(network).init(derive_seed(config.seed, "expert-init", number))
    nn.utils.vector_to_parameters(initial, network.parameters())
    network = network.double()
    stream, lr = generator(config.seed, "expert", number), config.lr_teacher
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=config.mom, weight_decay=config.l2)
    checkpoints = [nn.utils.parameters_to_vector(network.parameters()).detach().clone()]
    for epoch in range(config.train_epochs):
        if config.decay and epoch == config.train_epochs // 2 + 1:
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1 * lr, momentum=config.mom, weight_decay=config.l2)
        for rows in torch.randperm(len(dataset.train), generator=stream).split(config.batch_train):
            x = dataset.train.images[rows].double()
            if config.dsa:
                x = DSA(config.dsa_strategy).draw(len(rows), dataset.image_shape, stream).apply(x)
            y = dataset.train.labels[rows]
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            if config.rho:
                _gsam_(network, x, y, config)
            optimizer.step()
        checkpoints.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
    return checkpoints


def _gsam_(network: nn.Module, x: Tensor, y: Tensor, config: ExpertConfig) -> None:
    """Puts GSAM's direction in place of the gradients."""
    params = list(network.parameters())

    def gradient() -> Tensor:
        return torch.cat([p.grad.flatten() for p in params if p.grad is not None])

    here, before = gradient(), nn.utils.parameters_to_vector(params).detach().clone()
    nn.utils.vector_to_parameters(before + config.rho * here / here.norm(), params)
    network.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    there = gradient()
    nn.utils.vector_to_parameters(before, params)
    direction = there - config.gsam_alpha * (here - (here @ there) / (there @ there) * there)
    for p, part in zip(params, direction.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p).clone()


RECIPES = {
    "gsam": replace(TINY, rho=0.1, gsam_alpha=0.5),
    "plain": replace(TINY, dsa=False),
    "dsa": TINY,
    "momentum-decay": replace(TINY, mom=0.9, l2=5e-3, decay=True, train_epochs=5),
    "mlp": replace(TINY, model="MLP", depth=2, width=7, mom=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_checkpoints_equal_a_plain_sgd_loop(recipe: str, digits: Dataset, tmp_path: Path) -> None:
    config = replace(RECIPES[recipe], num_experts=2, keep_checkpoints=True)
    store = train_experts(config, tmp_path, digits)
    for number in (0, 1):
        expected = plain_sgd(config, digits, number)
        path = store.trajectory(number, "discrete")
        for epoch in range(config.train_epochs + 1):
            moved = (expected[epoch] - expected[epoch - 1]).norm() if epoch else expected[0].norm()
            assert (path.at(epoch).double() - expected[epoch]).norm() < 1e-4 * moved


@pytest.mark.parametrize(
    ("waypoints", "smooth", "schedule"),
    [(2, False, "arc_length"), (3, True, "uniform"), ((0, 1, 4), True, "decreasing")],
)
def test_kept_checkpoints_convexify_to_the_streamed_path(
    waypoints: int | tuple[int, ...], smooth: bool, schedule: str, digits: Dataset, tmp_path: Path
) -> None:
    config = replace(TINY, num_experts=1, keep_checkpoints=True, waypoints=waypoints, smooth=smooth, schedule=schedule)
    config = replace(config, encoding="float32")  # the others are near, not equal
    store = train_experts(config, tmp_path, digits)
    assert train_experts(config, tmp_path, digits).info(0) == store.info(0), "a finished expert was trained again"
    kept, streamed = store.trajectory(0, "discrete"), store[0]
    assert isinstance(kept, DiscreteTrajectory) and isinstance(streamed, ConvexTrajectory)
    sizes = [shape.numel() for shape in store.shapes]
    lists = [
        [part.reshape(shape) for part, shape in zip(flat.split(sizes), store.shapes, strict=True)]
        for flat in kept.checkpoints
    ]
    refitted = ConvexTrajectory.fit(lists, waypoints, schedule, smooth)
    assert torch.equal(streamed.waypoints, refitted.waypoints) and torch.equal(streamed.progress, refitted.progress)
    assert streamed.epochs == config.train_epochs


def shards(store: TrajectoryStore) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.path.glob("*.safetensors")}


def test_parallel_and_resumption_do_not_change_a_bit(digits: Dataset, tmp_path: Path) -> None:
    whole = shards(train_experts(replace(TINY, mom=0.9, parallel=3), tmp_path / "three", digits))
    alone = shards(train_experts(replace(TINY, mom=0.9, parallel=1), tmp_path / "one", digits))
    assert len(whole) == 3 and whole == alone
    part = train_experts(replace(TINY, mom=0.9, num_experts=1), tmp_path / "resumed", digits)
    seconds = part.info(0)["seconds"]
    full = train_experts(replace(TINY, mom=0.9), tmp_path / "resumed", digits)
    assert full.info(0)["seconds"] == seconds, "a finished expert was trained again"
    assert shards(full) == whole
    other = shards(train_experts(replace(TINY, mom=0.9, seed=1), tmp_path / "seed", digits))
    assert all(other[name] != whole[name] for name in whole)


def test_a_kill_loses_only_the_group_under_way(digits: Dataset, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Killer:
        def task(self, name: str, total: int, *, done: int = 0) -> Any:
            if name != "experts, images":
                return quiet().task(name, total)
            self.left = total // 2  # while the second of three experts trains
            return self

        def __enter__(self) -> Killer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, n: int = 1, **shown: float | str) -> None:
            self.left -= n
            if self.left <= 0:
                raise Killed

    with pytest.raises(Killed):
        train_experts(replace(TINY, parallel=1), tmp_path / "killed", digits, progress=Killer())
    assert TrajectoryStore.open(tmp_path / "killed").experts == [0]
    resumed = train_experts(replace(TINY, parallel=1), tmp_path / "killed", digits)
    assert shards(resumed) == shards(train_experts(TINY, tmp_path / "whole", digits))


def test_scoring_is_shown_and_named(digits: Dataset, tmp_path: Path) -> None:
    stream = io.StringIO()
    train_experts(replace(TINY, num_experts=1), tmp_path, digits, progress=LineProgress(stream, every=0))
    lines = stream.getvalue().splitlines()
    assert any(line.startswith(f"score experts on val {len(digits.val)}/{len(digits.val)}") for line in lines), lines
    assert lines[-1].startswith("experts, images 5172/5172")


def test_the_manifest_says_what_was_trained(digits: Dataset, tmp_path: Path) -> None:
    store = train_experts(replace(TINY, num_experts=1), tmp_path, digits)
    manifest = store.manifest
    assert manifest["model"] == expert_spec(TINY, digits)
    assert manifest["dataset"]["fingerprint"] == digits.fingerprint and manifest["recipe"]["batch_train"] == 500
    info = store.info(0)
    assert info["split"] == "val" and 0 <= info["accuracy"] <= 1 and len(info["train_loss"]) == 4
    assert info["train_loss"][-1] < info["train_loss"][0]


def test_the_recipe_of_a_store_is_that_of_earlier_releases(digits: Dataset) -> None:
    """Byte for byte: a store goes on only with the recipe that it was begun with."""
    assert json.dumps(recipe_of(TINY, digits)) == (
        f'{{"kind": "sgd", "torch": "{torch.__version__}", "stratify": false, "train_epochs": 4, "lr_teacher": 0.05, '
        '"mom": 0.0, "l2": 0.0, "rho": 0.0, "gsam_alpha": 0.3, "batch_train": 500, "dsa": true, '
        '"dsa_strategy": "color_crop_cutout_flip_scale_rotate", "decay": false, "waypoints": 2, "smooth": false, '
        '"schedule": "arc_length", "keep_checkpoints": false, "seed": 0}'
    )
    table = recipe_of(replace(TINY, waypoints=(0, 4), jitter=0.5), load_dataset("breast_cancer"))
    assert json.dumps(table) == (
        f'{{"kind": "sgd", "torch": "{torch.__version__}", "stratify": false, "train_epochs": 4, "lr_teacher": 0.05, '
        '"mom": 0.0, "l2": 0.0, "rho": 0.0, "gsam_alpha": 0.3, "batch_train": 500, "jitter": 0.5, "decay": false, '
        '"waypoints": [0, 4], "smooth": false, "schedule": "arc_length", "keep_checkpoints": false, "seed": 0}'
    )


BAD = {
    "num_experts": (dict(num_experts=0), "^num_experts"),
    "train_epochs": (dict(train_epochs=0), "^train_epochs"),
    "batch_train": (dict(batch_train=0), "^batch_train"),
    "parallel": (dict(parallel=0), "^parallel"),
    "lr_teacher": (dict(lr_teacher=float("nan")), "^lr_teacher"),
    "lr_teacher-inf": (dict(lr_teacher=float("inf")), "^lr_teacher"),
    "norm": (dict(norm="batch"), "^norm"),
    "norm-by-name": (dict(model="ConvNetBN"), "^norm"),
    "projected": (dict(schedule="projected"), "^schedule"),
    "waypoints": (dict(waypoints=9), "^waypoints"),
    "waypoint-epochs": (dict(waypoints=(0, 9)), "^waypoints"),
    "strategy": (dict(dsa_strategy="colour"), "colour"),
    "model": (dict(model="ConvNot"), "ConvNot"),
    "depth": (dict(depth=9), "depth"),
    "encoding": (dict(encoding="int2"), "^encoding"),
}


@pytest.mark.parametrize("field", BAD)
def test_bad_settings_are_named_before_anything_is_written(field: str, digits: Dataset, tmp_path: Path) -> None:
    config, message = BAD[field]
    with pytest.raises(InputError, match=message):
        train_experts(replace(TINY, **config), tmp_path / "store", digits)
    assert not (tmp_path / "store").exists()


def test_a_diverged_expert_is_refused_with_a_remedy(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower lr_teacher"):
        train_experts(replace(TINY, lr_teacher=1e30, train_epochs=2), tmp_path, digits)
    # Nothing is in the store yet, so the remedy can be followed in the same folder.
    assert len(train_experts(replace(TINY, num_experts=1), tmp_path, digits)) == 1
