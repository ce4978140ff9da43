"""How experts are trained: the settings, what is wrong with them, and the data, task and network that they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mct_fast.data import AugmentationConfig, Dataset, TableSpec, TimeGrid, load_dataset
from mct_fast.models import build_model, check_name, model_spec
from mct_fast.models.convnet import ACTIVATIONS, NORMS, POOLINGS, one_of
from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.settings import AUTO, Checked, Count, Fraction, Grouped, Natural, NonNegative, Positive, Seed
from mct_fast.tasks import Task, task_named
from mct_fast.training import named_spec
from mct_fast.trajectory.convex import SCHEDULES


@dataclass(frozen=True)
class DataConfig(Checked):
    """The real data that experts are trained on."""

    dataset: str = "digits"
    """Dataset name: digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenette, ..., or folder:NAME;
    table, series, breast_cancer, whas500, diabetes, curial, eicu-mortality, mimic3-phenotyping, ... (docs/clinical.md)."""
    data_path: str | None = None
    """Folder that holds the dataset, or the file of a table (not needed for digits and packaged sets)."""
    download: bool = False
    """Download the dataset into data_path through torchvision if it is not there."""
    zca: bool = False
    """Whiten with ZCA (eps 0.1) instead of normalising."""
    val_fraction: Fraction = 0.1
    """Share of the training images held out for validation, stratified."""
    split_seed: Seed = 0
    """Seed of the validation split."""
    image_size: Count | None = None
    """Side of the images in pixels; None keeps the dataset's."""
    table: TableSpec = TableSpec()
    """Which columns of a table are what."""
    grid: TimeGrid = TimeGrid()
    """How a long table becomes regular series."""


@dataclass(frozen=True)
class NetworkConfig(Checked):
    """The network of experts, and of the students after them."""

    model: str = "ConvNet"
    """Architecture: ConvNet, MLP, or a named variant such as ConvNetD4."""
    depth: Count = 3
    """Blocks of the ConvNet, hidden layers of the MLP, layers of the GRU, or blocks of the TCN."""
    width: Count = 128
    """Channels a block, or units a hidden layer."""
    norm: str = "instance"
    """Normalisation: instance, none, layer, group; of the MLP instance means none."""
    activation: str = "relu"
    """Activation: relu, leakyrelu, sigmoid."""
    pooling: str = "avg"
    """Pooling: avg, max, none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.model)
        one_of("norm", self.norm, NORMS)
        one_of("activation", self.activation, ACTIVATIONS)
        one_of("pooling", self.pooling, POOLINGS)


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
    """What the networks are trained to do."""

    task: str | None = None
    """What labels say: classification, binary, multilabel; None: what the data are (of two classes either of the first two)."""
    pos_weight: NonNegative = 1.0
    """Weight of the positives in the loss of binary and multi-label tasks, for experts and students; 0 balances them."""
    stratify: bool = False
    """Spread each class (of multi-label rows the rarest label) evenly over the batches of an epoch, for rare positives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is not None:
            task_named(self.task)


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """How many experts are trained, and by which steps."""

    num_experts: Count = 100
    """Experts to train."""
    train_epochs: Count = 50
    """Epochs an expert."""
    lr_teacher: Positive = 0.01
    """Step size of SGD."""
    mom: Fraction = 0.0
    """Momentum of SGD."""
    l2: NonNegative = 0.0
    """Weight decay of SGD."""
    rho: NonNegative = 0.0
    """Radius of GSAM, which finds flatter experts at twice the time (FTD: 0.01); 0: plain SGD."""
    gsam_alpha: NonNegative = 0.3
    """Weight of GSAM's orthogonal part (FTD: 0.3); without rho it plays no part."""
    batch_train: Count = 256
    """Real images a step."""
    decay: bool = False
    """Multiply the step size by 0.1 after half the epochs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fits("num_experts", 1000 * self.num_experts, "what is noted of each expert")


@dataclass(frozen=True)
class PathConfig(Checked):
    """What is kept of an expert."""

    waypoints: Count | tuple[Natural, ...] = 2
    """Checkpoints that the convex path runs through: 2 is the paper's, 4 the official code's default; or their epochs,
    e.g. 0 6 25 50."""
    smooth: bool = False
    """Average each later waypoint with its neighbours, as the official code does."""
    schedule: str = "arc_length"
    """Pace along the path: arc_length, uniform, decreasing."""
    keep_checkpoints: bool = False
    """Also keep every epoch's checkpoint (100 times the space of fp16), which MTT needs."""
    encoding: Literal["fp16", "int8", "int4", "float32"] = "fp16"
    """How experts are stored: fp16, int8 (half the space), int4 (a quarter), float32 (exact, twice the space)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule: unknown {self.schedule!r}; choose one of {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class EngineConfig(Checked):
    """How and where it is computed."""

    seed: Seed = 0
    """Seed of everything random."""
    parallel: Count = 4
    """Experts trained at once; does not change the result."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor."""


@dataclass(frozen=True, init=False)
class ExpertConfig(Grouped):
    """How experts are trained.  Settings are known by their own names: ``ExpertConfig(dataset="cifar10", num_experts=20)``."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    path: PathConfig = PathConfig()
    engine: EngineConfig = EngineConfig()


def expert_task(config: ExpertConfig, dataset: Dataset) -> Task:
    """The task that experts, and the students after them, are trained for."""
    task = task_named(config.objective.task or dataset.task).weighted(config.objective.pos_weight, dataset.train.labels)
    task.check(dataset.train.labels, task.num_outputs(dataset.num_classes))
    return task


def expert_spec(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """The full model spec of the experts."""
    network = config.network
    shape = {"depth": network.depth, "width": network.width, "activation": network.activation}
    by_name: dict[str, dict[str, Any]] = {
        "ConvNet": {**shape, "norm": network.norm, "pooling": network.pooling},
        # A vector has no plane to normalise: the default norm of the ConvNet means none here.
        "MLP": {**shape, "norm": "none" if network.norm == "instance" else network.norm},
        "GRU": {"depth": network.depth, "width": network.width},
        "TCN": shape,
    }
    given = {"name": network.model, **by_name.get(network.model, {})}
    return model_spec(build_model(named_spec(given, dataset, expert_task(config, dataset))))


def load_for(config: ExpertConfig, progress: Progress = quiet()) -> Dataset:
    """The dataset that ``config`` names."""
    data = config.data
    return load_dataset(
        data.dataset,
        data_path=data.data_path,
        download=data.download,
        zca=data.zca,
        val_fraction=data.val_fraction,
        split_seed=data.split_seed,
        image_size=data.image_size,
        device=config.engine.device,
        table=data.table,
        grid=data.grid,
        progress=progress,
    )


_RECIPE = (
    "stratify", "train_epochs", "lr_teacher", "mom", "l2", "rho", "gsam_alpha", "batch_train", "dsa", "dsa_strategy", "jitter",
    "decay", "waypoints", "smooth", "schedule", "keep_checkpoints", "seed",
)  # fmt: skip
"""The settings that make two experts comparable, in the order of the stores that exist."""


def recipe_of(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """What makes two experts comparable: the training recipe without what does not change the result."""
    without = {"jitter"} if dataset.kind == "images" else {"dsa", "dsa_strategy"}
    settings = config.flat()
    recipe = {name: settings[name] for name in _RECIPE if name not in without}
    return {"kind": "sgd", "torch": torch.__version__, **recipe}
