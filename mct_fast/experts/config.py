"""How experts are trained: the settings, what is wrong with them, and the data, task and network that they name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mct_fast.data import Dataset, TableSpec, TimeGrid, load_dataset
from mct_fast.models import build_model, model_spec
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.settings import Checked, Count, Fraction, Natural, NonNegative, Positive, Seed
from mct_fast.tasks import Task, task_named
from mct_fast.training import named_spec
from mct_fast.trajectory.encoding import find_encoding


@dataclass(frozen=True)
class ExpertConfig(Checked):
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
    val_fraction: Fraction = 0.1
    """Share of the training images held out for validation, stratified."""
    split_seed: Seed = 0
    """Seed of the validation split."""
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
    image_size: Count | None = None
    """Side of the images in pixels; None keeps the dataset's."""
    table: TableSpec = TableSpec()
    """Which columns of a table are what."""
    grid: TimeGrid = TimeGrid()
    """How a long table becomes regular series."""
    task: str | None = None
    """What labels say: classification, binary, multilabel; None: what the data are (of two classes either of the first two)."""
    pos_weight: NonNegative = 1.0
    """Weight of the positives in the loss of binary and multi-label tasks, for experts and students; 0 balances them."""
    stratify: bool = False
    """Spread each class (of multi-label rows the rarest label) evenly over the batches of an epoch, for rare positives."""
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
    dsa: bool = True
    """Augment with DSA; tables and series are not augmented."""
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    """The augmentations to draw from, joined by underscores."""
    jitter: NonNegative = 0.0
    """Standard deviation of Gaussian noise on the batches of tables and series, which are standardised; 0: none."""
    decay: bool = False
    """Multiply the step size by 0.1 after half the epochs."""
    waypoints: Count | tuple[Natural, ...] = 2
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
    seed: Seed = 0
    """Seed of everything random."""
    parallel: Count = 4
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


def recipe_of(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
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


def check_config(config: ExpertConfig) -> None:
    """Raises :class:`InputError` for a setting that cannot work, naming the field and the remedy."""
    find_encoding(config.encoding)
