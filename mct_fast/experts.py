"""Stage 1: train experts on real data, several at once, keeping only what the convex path needs.

The recipe is the reference's ``buffer.py``: SGD, batch 256, DSA, one point of the path an epoch.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mct_fast.data import Dataset, TableSpec, TimeGrid, augmentation, load_dataset
from mct_fast.distributed import Communicator, Single
from mct_fast.errors import InputError
from mct_fast.files import RowSpool
from mct_fast.fused import student_for
from mct_fast.models import FunctionalModel, build_model, model_spec
from mct_fast.networks import named_spec
from mct_fast.progress import Progress, quiet
from mct_fast.seeds import derive_seed
from mct_fast.tasks import Task, task_named
from mct_fast.training import GSAM, SGD, Descent, FlatStack, Schedule, Steepest, scores, train_epochs
from mct_fast.trajectory import ConvexTrajectory, PathRecorder, TrajectoryStore
from mct_fast.trajectory.encoding import find_encoding


@dataclass(frozen=True)
class ExpertConfig:
    """How experts are trained."""

    dataset: str = "digits"
    """Dataset name: digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenette, ..., or folder:NAME;
    table, series, breast_cancer, whas500, diabetes, curial, eicu-mortality, mimic3-phenotyping, ... (docs/clinical.md)."""
    data_path: str | None = None
    """Folder that holds the dataset, or the file of a table (not needed for digits and packaged sets)."""
    download: bool = False
    """Download the dataset into data_path through torchvision if it is not there."""
    zca: bool = False
    """Whiten with ZCA (eps 0.1) instead of normalising."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation, stratified."""
    split_seed: int = 0
    """Seed of the validation split."""
    model: str = "ConvNet"
    """Architecture: ConvNet, MLP, or a named variant such as ConvNetD4."""
    depth: int = 3
    """Blocks of the ConvNet, hidden layers of the MLP, layers of the GRU, or blocks of the TCN."""
    width: int = 128
    """Channels a block, or units a hidden layer."""
    norm: str = "instance"
    """Normalisation: instance, none, layer, group; of the MLP instance means none."""
    activation: str = "relu"
    """Activation: relu, leakyrelu, sigmoid."""
    pooling: str = "avg"
    """Pooling: avg, max, none."""
    image_size: int | None = None
    """Side of the images in pixels; None keeps the dataset's."""
    table: TableSpec = TableSpec()
    """Which columns of a table are what."""
    grid: TimeGrid = TimeGrid()
    """How a long table becomes regular series."""
    task: str | None = None
    """What labels say: classification, binary, multilabel; None: what the data are (of two classes either of the first two)."""
    pos_weight: float = 1.0
    """Weight of the positives in the loss of binary and multi-label tasks, for experts and students; 0 balances them."""
    stratify: bool = False
    """Spread each class (of multi-label rows the rarest label) evenly over the batches of an epoch, for rare positives."""
    num_experts: int = 100
    """Experts to train."""
    train_epochs: int = 50
    """Epochs an expert."""
    lr_teacher: float = 0.01
    """Step size of SGD."""
    mom: float = 0.0
    """Momentum of SGD."""
    l2: float = 0.0
    """Weight decay of SGD."""
    rho: float = 0.0
    """Radius of GSAM, which finds flatter experts at twice the time (FTD: 0.01); 0: plain SGD."""
    gsam_alpha: float = 0.3
    """Weight of GSAM's orthogonal part (FTD: 0.3); without rho it plays no part."""
    batch_train: int = 256
    """Real images a step."""
    dsa: bool = True
    """Augment with DSA; tables and series are not augmented."""
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    """The augmentations to draw from, joined by underscores."""
    jitter: float = 0.0
    """Standard deviation of Gaussian noise on the batches of tables and series, which are standardised; 0: none."""
    decay: bool = False
    """Multiply the step size by 0.1 after half the epochs."""
    waypoints: int | tuple[int, ...] = 2
    """Checkpoints that the convex path runs through: 2 is the paper's, 4 the official code's default; or their epochs,
    e.g. 0 6 25 50."""
    smooth: bool = False
    """Average each later waypoint with its neighbours, as the official code does."""
    schedule: str = "arc_length"
    """Pace along the path: arc_length, uniform, decreasing."""
    keep_checkpoints: bool = False
    """Also keep every epoch's checkpoint (100 times the space of fp16), which MTT needs."""
    encoding: str = "fp16"
    """How experts are stored: fp16, int8 (half the space), int4 (a quarter), float32 (exact, twice the space)."""
    seed: int = 0
    """Seed of everything random."""
    parallel: int = 4
    """Experts trained at once; does not change the result."""
    device: str = "cpu"
    """Where to compute, e.g. 'cpu' or 'cuda'."""


def expert_task(config: ExpertConfig, dataset: Dataset) -> Task:
    """The task that experts, and the students after them, are trained for."""
    task = task_named(config.task or dataset.task).weighted(config.pos_weight, dataset.train.labels)
    task.check(dataset.train.labels, task.num_outputs(dataset.num_classes))
    return task


def expert_spec(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """The full model spec of the experts."""
    shape = {"depth": config.depth, "width": config.width, "activation": config.activation}
    by_name: dict[str, dict[str, Any]] = {
        "ConvNet": {**shape, "norm": config.norm, "pooling": config.pooling},
        # A vector has no plane to normalise: the default norm of the ConvNet means none here.
        "MLP": {**shape, "norm": "none" if config.norm == "instance" else config.norm},
        "GRU": {"depth": config.depth, "width": config.width},
        "TCN": shape,
    }
    given = {"name": config.model, **by_name.get(config.model, {})}
    return model_spec(build_model(named_spec(given, dataset, expert_task(config, dataset))))


def load_for(config: ExpertConfig, progress: Progress = quiet()) -> Dataset:
    """The dataset that ``config`` names."""
    return load_dataset(
        config.dataset,
        data_path=config.data_path,
        download=config.download,
        zca=config.zca,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        image_size=config.image_size,
        device=config.device,
        table=config.table,
        grid=config.grid,
        progress=progress,
    )


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
    _check(config)
    dataset = communicator.lead_first(
        lambda: dataset.to(config.device) if dataset is not None else load_for(config, progress)
    )
    augmentation(dataset.kind, config.dsa, config.dsa_strategy, config.jitter)  # refuses what does not fit the data
    task, spec = expert_task(config, dataset), expert_spec(config, dataset)
    network = build_model(spec)
    if any(True for _ in network.buffers()):
        raise InputError("norm: experts with batch norm have state beside their parameters; use 'instance' or 'group'")
    model = FunctionalModel(network)
    _recorder(config, model, 0)  # refuses what it cannot record before a store is begun
    manifest = {
        "model": spec,
        "shapes": [list(shape) for shape in model.shapes],
        "init": None if model.init_plan is None else [fill.to_json() for fill in model.init_plan],
        "dataset": {**dataset.source, "name": dataset.name, "fingerprint": dataset.fingerprint},
        "task": task.state(),
        "recipe": _recipe(config, dataset),
    }
    with contextlib.ExitStack() as held:

        def begin() -> TrajectoryStore:
            store = TrajectoryStore.create(out, manifest)
            held.enter_context(store.writing())
            return store

        store = communicator.lead(begin)
        done = communicator.tell(lambda: set(store.experts) if store is not None else set())
        todo = [number for number in range(config.num_experts) if number not in done]
        rounds = _rounds(todo, config.parallel, communicator)
        images = sum(map(len, rounds)) * config.train_epochs * len(dataset.train.labels)
        with progress.task("experts, images", images) as bar:
            for mine in rounds:
                with _Spools(None if store is None else store.path) as spools:
                    trained = _train_group(mine, config, dataset, task, model, spools, bar) if mine else []
                    for expert in (expert for group in communicator.collect(trained) for expert in group):
                        assert store is not None
                        expert.add_to(store, config.encoding)
    return communicator.tell(lambda: cast(TrajectoryStore, store))


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


def _train_group(
    numbers: list[int],
    config: ExpertConfig,
    dataset: Dataset,
    task: Task,
    model: FunctionalModel,
    files: _Spools,
    bar: Any,
) -> list[_Trained]:
    began = time.perf_counter()
    seeds = [_init_seed(config, number) for number in numbers]
    initial = torch.stack([model.init(seed) for seed in seeds])
    stack = FlatStack(student_for(model, task), initial.to(config.device), SGD(config.mom, config.l2), _descent(config))
    del initial
    recorders = [_recorder(config, model, seed) for seed in seeds]
    half = config.train_epochs // 2
    schedule = Schedule(config.train_epochs, config.batch_train, config.lr_teacher, half if config.decay else None)
    streams = [("expert", number) for number in numbers]
    augment = augmentation(dataset.kind, config.dsa, config.dsa_strategy, config.jitter)
    losses = []
    train = dataset.train
    strata = task.strata(train.labels) if config.stratify else None

    def tick(images: int, losses: torch.Tensor) -> None:
        bar.advance(images, loss=float(losses.mean()))

    spools = [files.one() for _ in numbers] if config.keep_checkpoints else []

    def observe() -> None:
        for recorder, params in zip(recorders, stack.params, strict=True):
            recorder.observe(params)
        for spool, params in zip(spools, stack.params, strict=False):
            spool.append(params)

    observe()
    for _, loss in train_epochs(
        stack,
        train.images,
        train.labels,
        schedule,
        streams,
        seed=config.seed,
        augment=augment,
        strata=strata,
        tick=tick,
    ):
        observe()
        losses.append(loss.tolist())
    held_out = dataset.val if len(dataset.val.labels) else dataset.test
    reached = scores(stack, held_out.images, held_out.labels, task)
    seconds = (time.perf_counter() - began) / len(numbers)
    trained = []
    for i, number in enumerate(numbers):
        info = {
            task.headline: _short(reached[i]),
            "split": "val" if len(dataset.val.labels) else "test",
            "train_loss": [_short(row[i]) for row in losses],
            "seconds": _short(seconds),
        }
        seed = seeds[i] if model.init_plan is not None else None
        checkpoints = spools[i].rows() if spools else None
        path = recorders[i].finish()
        path = ConvexTrajectory(path.waypoints.cpu(), path.progress, path.shapes)  # may go to another process
        trained.append(_Trained(number, path, info, checkpoints, seed))
    return trained


def _short(value: float) -> float | None:
    """Six digits: a store keeps one such number an epoch, and JSON knows no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _init_seed(config: ExpertConfig, number: int) -> int:
    return derive_seed(config.seed, "expert-init", number)


def _descent(config: ExpertConfig) -> Descent:
    return GSAM(config.rho, config.gsam_alpha) if config.rho else Steepest()


def _recorder(config: ExpertConfig, model: FunctionalModel, init_seed: int) -> PathRecorder:
    return PathRecorder(
        model.shapes,
        config.train_epochs,
        waypoints=config.waypoints,
        schedule=config.schedule,
        smooth=config.smooth,
        start=lambda: model.init(init_seed),
    )


def _recipe(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """What makes two experts comparable: the training recipe without what does not change the result."""
    where = {
        "dataset",
        "data_path",
        "download",
        "zca",
        "val_fraction",
        "split_seed",
        "image_size",
        "table",
        "grid",
        "task",  # with its weights, by itself
        "pos_weight",
        "device",
        "parallel",
        "encoding",  # of each expert by itself, in its entry
    }
    shape = {"model", "depth", "width", "norm", "activation", "pooling"}
    where |= {"jitter"} if dataset.kind == "images" else {"dsa", "dsa_strategy"}
    recipe = {k: v for k, v in asdict(config).items() if k not in where | shape | {"num_experts"}}
    return {"kind": "sgd", "torch": torch.__version__, **recipe}


def _check(config: ExpertConfig) -> None:
    for name in ("num_experts", "train_epochs", "batch_train", "parallel"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}; give at least 1")
    find_encoding(config.encoding)
    for name in ("rho", "gsam_alpha"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}: got {getattr(config, name)}; give a finite number of at least 0")
    if not 0 < config.lr_teacher < math.inf:
        raise InputError(f"lr_teacher: got {config.lr_teacher}; give a positive step size, the field's is 0.01")
