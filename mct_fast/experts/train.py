"""Stage 1: train experts on real data, several at once, keeping only what the convex path needs.

The recipe is the reference's ``buffer.py``: SGD, batch 256, DSA, one point of the path an epoch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from mct_fast.data import Dataset, augmentation_of
from mct_fast.experts.config import expert_spec, expert_task, load_for, recipe_of
from mct_fast.experts.group import Group, Keeper, Unfinished, spools
from mct_fast.models import FunctionalModel, build_model
from mct_fast.ops.device import taken
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.estimate import Estimated
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.run.watch import Unwatched, Watcher
from mct_fast.settings import ExpertConfig
from mct_fast.settings.experts import TrainingConfig
from mct_fast.students import student_for
from mct_fast.students.recording import recorder_for
from mct_fast.tasks import Task
from mct_fast.training import GSAM, SGD, Descent, FlatStack, Schedule, Steepest, largest_loss, outputs, train_epochs
from mct_fast.trajectory import ConvexTrajectory, PathRecorder, TrajectoryStore


def train_experts(
    config: ExpertConfig,
    out: str | Path,
    dataset: Dataset | None = None,
    *,
    progress: Progress = quiet(),
    watcher: Watcher = Unwatched(),
    communicator: Communicator = Single(),
) -> TrajectoryStore:
    """Trains ``config.num_experts`` experts into the store ``out`` and returns it.

    Experts that the store already holds are not trained again, and those under way go on from their last checkpoint, so a
    killed run continues where it stopped and ends in the same bits.  Of several processes each trains its share,
    ``config.parallel`` at once; the leader writes the store.  ``watcher`` is told each expert's loss after each epoch, and
    its score in the end.
    """
    config = replace(config, device=taken(config.engine.device))
    dataset = communicator.lead_first(
        lambda: dataset.to(config.engine.device) if dataset is not None else load_for(config, progress)
    )
    augmentation_of(config.augmentation, dataset.kind)  # refuses what does not fit the data
    task, spec = expert_task(config, dataset), expert_spec(config, dataset)
    network = build_model(spec)
    if any(True for _ in network.buffers()):
        raise InputError("norm: experts with batch norm have state beside their parameters; use 'instance' or 'group'")
    model = FunctionalModel(network)
    together = min(config.engine.parallel, config.training.num_experts)
    check_fits("parallel", 12.0 * together * model.num_params, "so many experts at once", config.engine.device)
    _recorder(config, model, 0)  # refuses what it cannot record before a store is begun
    with contextlib.ExitStack() as held:

        def begin() -> TrajectoryStore:
            store = TrajectoryStore.create(out, _manifest(config, dataset, task, spec, model))
            held.enter_context(store.writing())
            return store

        store = communicator.lead(begin)
        done = communicator.tell(lambda: set(store.experts) if store is not None else set())
        todo = [number for number in range(config.training.num_experts) if number not in done]
        unfinished = Unfinished(Path(out))
        stage = _Stage(config, dataset, task, model, unfinished, progress, watcher)
        behind = communicator.tell(lambda: _behind(unfinished, done))
        rounds = _rounds(todo, behind, config.engine.parallel, communicator)
        mine = [number for numbers in rounds for number in numbers]
        epochs = sum(config.training.train_epochs - behind.get(number, 0) for number in mine)
        images = epochs * len(dataset.train.labels)
        with progress.task("experts, images", images) as shown:
            bar = Estimated(shown, progress, "experts", images, unit="images", device=config.engine.device)
            for numbers in rounds:
                at = behind.get(numbers[0], 0) if numbers else 0
                trained = _train_group(stage, numbers, at, bar) if numbers else []
                found = [expert for group in communicator.collect(trained) for expert in group]
                if store is not None:
                    _add(found, store, config.path.encoding, unfinished)
            communicator.lead(unfinished.tidy)
    return communicator.tell(lambda: cast(TrajectoryStore, store))


def _manifest(
    config: ExpertConfig, dataset: Dataset, task: Task, spec: dict[str, Any], model: FunctionalModel
) -> dict[str, Any]:
    """What the store notes of the network, the data and how its experts were trained."""
    return {
        "model": spec,
        "shapes": [list(shape) for shape in model.shapes],
        "init": None if model.init_plan is None else [fill.to_json() for fill in model.init_plan],
        "dataset": {
            **dataset.source,
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            **({} if dataset.report is None else {"report": dataset.report.json()}),
        },
        "task": task.state(),
        "recipe": recipe_of(config, dataset),
    }


def _rounds(todo: list[int], behind: Mapping[int, int], parallel: int, communicator: Communicator) -> list[list[int]]:
    """The experts that this process trains, round by round; a round keeps every process busy.

    Those of a round have as many epochs ``behind`` them; the furthest come first.
    """
    together = parallel * communicator.size
    alike = [[n for n in todo if behind.get(n, 0) == epoch] for epoch in sorted({0, *behind.values()}, reverse=True)]
    chunks = [same[first : first + together] for same in alike for first in range(0, len(same), together)]
    return [[chunk[i] for i in communicator.share(len(chunk))] for chunk in chunks]


def _behind(unfinished: Unfinished, done: Collection[int]) -> dict[int, int]:
    """The epochs that experts under way have behind them; what is left of those that are ``done`` is removed."""
    unfinished.forget(done)
    unfinished.tidy()
    return unfinished.epochs()


@dataclass(frozen=True)
class _Trained:
    """A finished expert on its way into the store."""

    number: int
    path: ConvexTrajectory
    info: dict[str, Any]
    checkpoints: torch.Tensor | None
    init_seed: int | None

    def add_to(self, store: TrajectoryStore, encoding: str) -> None:
        store.add(self.number, self.path, self.info, self.checkpoints, encoding=encoding, init_seed=self.init_seed)


@dataclass(frozen=True)
class _Diverged:
    """An expert that ended further from the labels than guessing is."""

    number: int
    loss: float
    lr_teacher: float

    def add_to(self, store: TrajectoryStore, encoding: str) -> None:
        """Refuses to."""
        raise InputError(
            f"lr_teacher: expert {self.number} diverged (training loss {self.loss:g} at its end), so it and later ones are not "
            f"kept in {store.path}; lower lr_teacher={self.lr_teacher:g}, mom or rho"
        )


def _add(found: list[_Trained | _Diverged], store: TrajectoryStore, encoding: str, unfinished: Unfinished) -> None:
    """Adds a round's experts to the store; an InputError for those that diverged, when the others are there."""
    unfinished.forget({expert.number for expert in found if isinstance(expert, _Diverged)})
    for expert in sorted(found, key=lambda expert: isinstance(expert, _Diverged)):
        expert.add_to(store, encoding)
        unfinished.forget({expert.number})


@dataclass(frozen=True)
class _Stage:
    """What all groups have in common."""

    config: ExpertConfig
    dataset: Dataset
    task: Task
    model: FunctionalModel
    unfinished: Unfinished
    progress: Progress
    watcher: Watcher


def _train_group(stage: _Stage, numbers: list[int], behind: int, bar: Any) -> list[_Trained | _Diverged]:
    """Trains the experts ``numbers``, which have ``behind`` epochs behind them; their checkpoints stay."""
    config, dataset, task, model = stage.config, stage.dataset, stage.task, stage.model
    seeds = [_init_seed(config, number) for number in numbers]
    initial = torch.stack([model.init(seed) for seed in seeds])
    student = student_for(model, task, config.engine.device)
    rule = SGD(config.training.mom, config.training.l2)
    stack = FlatStack(student, initial.to(config.engine.device), rule, _descent(config.training))
    del initial
    streams = [generator(config.engine.seed, "expert", number) for number in numbers]
    group = Group(numbers, stack, streams, [_recorder(config, model, seed) for seed in seeds])
    with contextlib.ExitStack() as held:
        if config.path.keep_checkpoints:
            group.spools = spools(numbers, stage.unfinished, behind > 0, held)
        keeper = Keeper(group, stage.unfinished, config.engine.checkpoint_minutes)
        _train(stage, group, keeper, behind, bar)
        split = "val" if len(dataset.val.labels) else "test"
        held_out = getattr(dataset, split)
        with stage.progress.task(f"score experts on {split}", len(held_out.labels)) as scored:
            logits = outputs(stack, held_out.images, tick=scored.advance)
        reached = [task.score(own, held_out.labels) for own in logits]
        for number, score in zip(numbers, reached, strict=True):
            stage.watcher.record({"kind": f"expert_{number:05d}", "iteration": group.epoch, task.headline: score})
        about = [{task.headline: _short(score), "split": split} for score in reached]
        worst = largest_loss(task, dataset.train.labels, dataset.num_classes)
        planned = seeds if model.init_plan is not None else [None] * len(seeds)
        return [_ended(group, i, keeper, worst, about[i], seed, config) for i, seed in enumerate(planned)]


def _ended(
    group: Group, i: int, keeper: Keeper, worst: float, about: dict[str, Any], seed: int | None, config: ExpertConfig
) -> _Trained | _Diverged:
    """The expert in row ``i`` of a group that is trained: its path, or that it ended above the loss ``worst``."""
    number, losses = group.numbers[i], group.losses[i]
    if not group.finite[i] or not losses[-1] <= worst:  # "not <=": NaN fails too
        return _Diverged(number, losses[-1], config.training.lr_teacher)
    info = {
        **about,
        "train_loss": [_short(loss) for loss in losses],
        "seconds": _short(group.seconds[i] + keeper.seconds),
        "device": config.engine.device,
    }
    path = group.recorders[i].finish()
    path = ConvexTrajectory(path.waypoints.cpu(), path.progress, path.shapes)  # may go to another process
    return _Trained(number, path, info, group.spools[i].rows() if group.spools else None, seed)


def _train(stage: _Stage, group: Group, keeper: Keeper, behind: int, bar: Any) -> None:
    """Trains ``group`` to its end, from its beginning or from what was kept of it."""

    def tick(images: int, losses: torch.Tensor) -> None:
        bar.advance(images, loss=losses.mean())

    config, dataset = stage.config, stage.dataset
    train, how = dataset.train, config.training
    if behind:
        group.load(keeper.unfinished)
    else:
        group.observe()
    for epoch, loss in train_epochs(
        group.stack,
        train.images,
        train.labels,
        Schedule(how.train_epochs, how.batch_train, how.lr_teacher, how.train_epochs // 2 if how.decay else None),
        group.streams,
        augment=augmentation_of(config.augmentation, dataset.kind),
        strata=stage.task.strata(train.labels) if config.objective.stratify else None,
        tick=tick,
        recorder=recorder_for(config.engine.cuda_graphs),
        done=behind,
    ):
        group.advance(epoch, loss)
        for number, own in zip(group.numbers, group.losses, strict=True):
            stage.watcher.record({"kind": f"expert_{number:05d}", "iteration": epoch, "train_loss": own[-1]})
        if epoch < how.train_epochs:
            keeper.after_epoch()


def _short(value: float) -> float | None:
    """Six digits: a store keeps one such number an epoch, and JSON knows no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _init_seed(config: ExpertConfig, number: int) -> int:
    return derive_seed(config.engine.seed, "expert-init", number)


def _descent(config: TrainingConfig) -> Descent:
    return GSAM(config.rho, config.gsam_alpha) if config.rho else Steepest()


def _recorder(config: ExpertConfig, model: FunctionalModel, init_seed: int) -> PathRecorder:
    return PathRecorder(
        model.shapes,
        config.training.train_epochs,
        waypoints=config.path.waypoints,
        schedule=config.path.schedule,
        smooth=config.path.smooth,
        start=lambda: model.init(init_seed),
    )
