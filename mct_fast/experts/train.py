"""Stage 1: train experts on real data, several at once, keeping only what the convex path needs.

The recipe is the reference's ``buffer.py``: SGD, batch 256, DSA, one point of the path an epoch.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from mct_fast.data import Dataset, augmentation_of
from mct_fast.experts.config import expert_spec, expert_task, load_for, recipe_of
from mct_fast.models import FunctionalModel, build_model
from mct_fast.ops.device import taken
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.estimate import Estimated
from mct_fast.run.files import RowSpool
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import derive_seed
from mct_fast.settings import ExpertConfig
from mct_fast.settings.experts import TrainingConfig
from mct_fast.students import student_for
from mct_fast.students.recording import recorder_for
from mct_fast.tasks import Task
from mct_fast.training import GSAM, SGD, Descent, FlatStack, Schedule, Steepest, largest_loss, scores, train_epochs
from mct_fast.trajectory import ConvexTrajectory, PathRecorder, TrajectoryStore


def train_experts(
    config: ExpertConfig,
    out: str | Path,
    dataset: Dataset | None = None,
    *,
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> TrajectoryStore:
    """Trains ``config.num_experts`` experts into the store ``out`` and returns it.

    Experts that the store already holds are not trained again, so a killed run continues where it stopped.  Of several
    processes each trains its share, ``config.parallel`` at once; the leader writes.
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
        rounds = _rounds(todo, config.engine.parallel, communicator)
        images = sum(map(len, rounds)) * config.training.train_epochs * len(dataset.train.labels)
        with progress.task("experts, images", images) as shown:
            bar = Estimated(shown, progress, "experts", images, unit="images", device=config.engine.device)
            for mine in rounds:
                with _Spools(None if store is None else store.path) as spools:
                    trained = _train_group(mine, config, dataset, task, model, spools, bar) if mine else []
                    found = [expert for group in communicator.collect(trained) for expert in group]
                    # Those that diverged come last: the others of their round are kept.
                    for expert in sorted(found, key=lambda expert: isinstance(expert, _Diverged)):
                        assert store is not None
                        expert.add_to(store, config.path.encoding)
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


def _rounds(todo: list[int], parallel: int, communicator: Communicator) -> list[list[int]]:
    """The experts that this process trains, round by round; a round keeps every process busy."""
    together = parallel * communicator.size
    chunks = [todo[first : first + together] for first in range(0, len(todo), together)]
    return [[chunk[i] for i in communicator.share(len(chunk))] for chunk in chunks]


class _Spools(contextlib.ExitStack):
    """Files for checkpoints that are not in the store yet: beside it, or where temporary files go if it is another's."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder

    def one(self) -> RowSpool:
        return self.enter_context(RowSpool(self._folder))


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


def _train_group(
    numbers: list[int],
    config: ExpertConfig,
    dataset: Dataset,
    task: Task,
    model: FunctionalModel,
    files: _Spools,
    bar: Any,
) -> list[_Trained | _Diverged]:
    began = time.perf_counter()
    seeds = [_init_seed(config, number) for number in numbers]
    initial = torch.stack([model.init(seed) for seed in seeds])
    student = student_for(model, task, config.engine.device)
    rule = SGD(config.training.mom, config.training.l2)
    stack = FlatStack(student, initial.to(config.engine.device), rule, _descent(config.training))
    del initial
    recorders = [_recorder(config, model, seed) for seed in seeds]
    spools = [files.one() for _ in numbers] if config.path.keep_checkpoints else []
    watch = _Watch(numbers, recorders, spools)
    losses = _train(stack, watch, config, dataset, task, bar)
    held_out = "val" if len(dataset.val.labels) else "test"
    split = getattr(dataset, held_out)
    reached = scores(stack, split.images, split.labels, task)
    seconds = (time.perf_counter() - began) / len(numbers)
    worst = largest_loss(task, dataset.train.labels, dataset.num_classes)
    trained: list[_Trained | _Diverged] = []
    for i, number in enumerate(numbers):
        final = losses[-1][i]
        if number not in watch.finite or not final <= worst:  # "not <=": NaN fails too
            trained.append(_Diverged(number, final, config.training.lr_teacher))
            continue
        info = {
            task.headline: _short(reached[i]),
            "split": held_out,
            "train_loss": [_short(row[i]) for row in losses],
            "seconds": _short(seconds),
            "device": config.engine.device,
        }
        seed = seeds[i] if model.init_plan is not None else None
        checkpoints = spools[i].rows() if spools else None
        path = recorders[i].finish()
        path = ConvexTrajectory(path.waypoints.cpu(), path.progress, path.shapes)  # may go to another process
        trained.append(_Trained(number, path, info, checkpoints, seed))
    return trained


@dataclass
class _Watch:
    """What looks at experts after each whole epoch: recorders of their paths, and files if checkpoints are kept."""

    numbers: list[int]
    recorders: list[PathRecorder]
    spools: list[RowSpool]

    def __post_init__(self) -> None:
        self.finite = set(self.numbers)
        """The experts whose parameters were finite at every epoch."""

    def observe(self, stacked: torch.Tensor) -> None:
        for number, recorder, params in zip(self.numbers, self.recorders, stacked, strict=True):
            if number in self.finite and bool(params.isfinite().all()):
                recorder.observe(params)
            else:
                self.finite.discard(number)
        for spool, params in zip(self.spools, stacked, strict=False):
            spool.append(params)


def _train(
    stack: FlatStack, watch: _Watch, config: ExpertConfig, dataset: Dataset, task: Task, bar: Any
) -> list[list[float]]:
    """Trains ``stack`` under ``watch`` and returns the losses, a row an epoch."""

    def tick(images: int, losses: torch.Tensor) -> None:
        bar.advance(images, loss=losses.mean())

    train, how = dataset.train, config.training
    decay_after = how.train_epochs // 2 if how.decay else None
    losses = []
    watch.observe(stack.params)
    for _, loss in train_epochs(
        stack,
        train.images,
        train.labels,
        Schedule(how.train_epochs, how.batch_train, how.lr_teacher, decay_after),
        [("expert", number) for number in watch.numbers],
        seed=config.engine.seed,
        augment=augmentation_of(config.augmentation, dataset.kind),
        strata=task.strata(train.labels) if config.objective.stratify else None,
        tick=tick,
        recorder=recorder_for(config.engine.cuda_graphs),
    ):
        watch.observe(stack.params)
        losses.append(loss.tolist())
    return losses


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
