"""How experts are trained, and curves fitted between their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.settings import AUTO, Checked, Count, Fraction, Grouped, Natural, NonNegative, Positive, Seed
from mct_fast.settings.data import AugmentationConfig, TableSpec, TimeGrid
from mct_fast.settings.names import ACTIVATIONS, NORMS, POOLINGS, SCHEDULES, check_name, check_task, one_of


@dataclass(frozen=True)
class DataConfig(Checked):
    """The real data that experts are trained on."""

    dataset: str = "digits"
    """Dataset name: digits, mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenette, ..., folder:NAME, arrays:NAME,
    hf:NAME; table, series, breast_cancer, whas500, curial, eicu-mortality, physionet2012, support2, ... (docs/clinical.md)."""
    data_path: str | None = None
    """Folder that holds the dataset, or the file of arrays or of a table (not needed for digits and packaged sets)."""
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
            check_task(self.task)


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
    checkpoint_minutes: NonNegative = 5.0
    """Minutes between checkpoints of the experts under way, from which a killed training goes on; 0: after every epoch."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor."""
    cuda_graphs: bool = True
    """On a GPU, record the steps of training once and replay them: the same bits sooner."""


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


@dataclass(frozen=True)
class BezierConfig(Checked):
    """How control points are fitted."""

    epochs: Count = 20
    """Epochs over the training data."""
    batch_train: Count = 256
    """Real images, rows or series a step; each step has its own random place on the curve."""
    lr: Positive = 0.1
    """Step size of SGD with momentum 0.9; it falls to 0 along a half cosine."""
    seed: Seed = 0
    """Seed of batches and places."""
    parallel: Count = 8
    """Experts fitted at once; does not change the result."""
    data_path: str | None = None
    """Folder of the dataset; None takes the one that the store names."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor."""
