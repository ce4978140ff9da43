"""How a dataset is distilled: the settings, what is wrong with them, and the strategies that they name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from mct_fast.data import AugmentationConfig, Dataset
from mct_fast.distill.pixels import Canvases, Layout, Plain
from mct_fast.distill.sampling import SegmentSampler
from mct_fast.evaluate import EvalConfig, check_scorable, split_of
from mct_fast.matching.adjoint import ADJOINTS, KEEP_BYTES, Adjoint, Exact, Truncated
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.ops.device import usable_device
from mct_fast.run.memory import check_fits
from mct_fast.run.seeds import derive_seed
from mct_fast.run.settings import (
    AUTO,
    Bounds,
    Checked,
    Count,
    Fraction,
    Grouped,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Share,
)
from mct_fast.tasks import Task, task_named
from mct_fast.trajectory import Trajectory


@dataclass(frozen=True)
class ImagesConfig(Checked):
    """The synthetic set, and how it begins."""

    ipc: Count = 1
    """Synthetic images a class."""
    pix_init: Literal["real", "noise"] = "real"
    """Images at the beginning: 'real' (random training images) or 'noise'."""
    canvas: Count = 1
    """Textures: images are windows of canvases so many times as wide and high, whose edges meet (MTT: 2); 1: plain images."""
    labels: Literal["hard", "expert"] = "hard"
    """Labels at the beginning: 'hard', or 'expert': soft, what the trained experts see in the first images."""


@dataclass(frozen=True)
class StudentConfig(Checked):
    """The student that is trained on the synthetic images."""

    syn_steps: Count = 20
    """N: steps of the student an iteration."""
    batch_syn: Count | None = None
    """Synthetic images a student step; None takes all of them."""
    students: Count = 1
    """S: students (experts and starts) averaged in one iteration."""
    lr_teacher: Positive = 0.01
    """The student's step size at the beginning."""


@dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Iterations of the outer loop, and the steps of what it learns."""

    iterations: Count = 5000
    """Iterations of the outer loop."""
    lr_img: NonNegative = 1000.0
    """Step size for the pixels."""
    img_optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimiser of the pixels: 'sgd' (momentum mom_img) or 'adam'."""
    mom_img: Fraction = 0.5
    """Momentum of the pixels and of the step size."""
    lr_decay: Annotated[float, Bounds(0, 1, above=True)] = 1.0
    """Factor on lr_img every lr_decay_every iterations."""
    lr_decay_every: Natural = 0
    """Iterations between decays of lr_img; 0: never."""
    lr_lr: Annotated[float, Bounds(0)] = 1e-5
    """Step size for the student's step size; 0 keeps it fixed."""
    lr_label: Annotated[float, Bounds(0)] = 0.0
    """Step size for soft labels, learned through a softmax (DATM); 0: they stay as they are. Hard ones begin at 0.9."""
    ema: Fraction = 0.0
    """Decay of the moving average of the pixels that is evaluated and saved (FTD, DATM: 0.99 to 0.9999); 0: the pixels."""
    max_loss: Positive = 10.0
    """An iteration with a larger matching loss is skipped and counted: it explodes, or harms (DATM's threshold: 1)."""
    max_skipped: Share = 0.2
    """Share of skipped iterations above which a run warns; all of an evaluation interval end it with an error."""


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How the images are evaluated, and which are kept."""

    eval_it: Natural = 100
    """Iterations between evaluations; 0 evaluates the last images only."""
    num_eval: Count = 5
    """Networks an evaluation."""
    epoch_eval_train: Count = 1000
    """Epochs an evaluation network is trained."""
    batch_train: Count = 256
    """Images a step when an evaluation network is trained."""
    lr_net: Positive | None = None
    """Step size of evaluation networks, kept with the images; None takes the learned one. Their momentum of 0.9 makes steps
    ten times as long as a student's: a tenth of the learned one leads where students were."""
    random_real: bool = True
    """At the end, also train networks on as many random real images, for comparison."""
    select_on: Literal["val", "test"] = "val"
    """The split that picks the best images: 'val', or 'test' for tables that maximise on test data (labelled so)."""
    eval_test: bool = False
    """Also score the networks of every evaluation on the test split, for curves; it picks nothing."""


@dataclass(frozen=True)
class EngineConfig(Checked):
    """How and where it is computed."""

    adjoint: Literal["exact", "unrolled", "truncated"] = "exact"
    """Gradient: 'exact', 'unrolled' (exact, memory grows with syn_steps) or 'truncated' (approximate)."""
    keep_mb: Natural | None = None
    """Activations kept between the two sweeps, in MiB at most; the rest is computed again. None: 448, or an eighth of a GPU."""
    micro_batch: Count | None = None
    """Images of a student's batch in the network at once; None: all. Bounds memory; the gradient is the same."""
    cuda_graphs: bool = True
    """On a GPU, record an iteration once and replay it: the same bits sooner, for the memory of one more iteration."""
    data_path: str | None = None
    """Folder of the dataset; None takes the one that the store names."""
    checkpoint_every: Count = 100
    """Iterations between checkpoints of a run folder."""
    seed: Seed = 0
    """Seed of everything random."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor. A run keeps what was taken."""


@dataclass(frozen=True, init=False)
class DistillConfig(Grouped):
    """How a dataset is distilled.  Names are the field's, so that a published command line reads the same."""

    images: ImagesConfig = ImagesConfig()
    path: SegmentSampler = SegmentSampler()
    student: StudentConfig = StudentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()


def check_config(config: DistillConfig, dataset: Dataset, first: Trajectory, task: Task | None = None) -> None:
    """Raises :class:`InputError` for settings that do not fit the data or the paths, naming the field and the remedy.

    ``first`` is one of the paths, ``task`` what the dataset's labels say, by default.
    """
    layout = layout_of(config)
    layout.check(dataset, config.images.labels)
    config.augmentation.of(dataset.kind)  # refuses what does not fit the data
    task = task or task_named(dataset.task)
    numbers, device = sum(shape.numel() for shape in first.shapes), config.engine.device
    check_fits(
        "syn_steps", 4.0 * (config.student.syn_steps + 1) * numbers, "a student's parameters of every step", device
    )
    count = config.images.ipc * dataset.num_classes * math.prod(layout.shape(dataset.image_shape))
    check_fits("canvas" if config.images.canvas > 1 else "ipc", 16.0 * count, "the images and their gradients", device)
    check_fits("students", 4.0 * config.student.students * count, "the images' gradient of each student", device)
    wanted = config.images.ipc * (layout.real_images if config.images.pix_init == "real" else 1)
    task.draw_rows(dataset.train.labels, dataset.num_classes, wanted, torch.Generator())  # refuses too many
    select_on = config.evaluation.select_on
    check_scorable(split_of(dataset, select_on), dataset, task, select_on)
    config.path.check(first.epochs, continuous_path=first.continuous)


def evaluation_of(config: DistillConfig) -> EvalConfig:
    """How the images of a run are evaluated, every time with the same networks."""
    chosen = config.evaluation
    return EvalConfig(
        augmentation=config.augmentation,
        num_eval=chosen.num_eval,
        epoch_eval_train=chosen.epoch_eval_train,
        batch_train=chosen.batch_train,
        lr_net=chosen.lr_net,
        select_on=chosen.select_on,
        seed=derive_seed(config.engine.seed, "eval"),
        device=config.engine.device,
    )


def adjoint_of(config: DistillConfig) -> Adjoint:
    """The strategy that ``config`` asks for."""
    engine = config.engine
    if engine.adjoint == "unrolled":  # autograd's graph is another at every iteration
        return ADJOINTS[engine.adjoint]
    strategy = Exact if engine.adjoint == "exact" else Truncated
    sweep = strategy(keep_bytes=_keep_bytes(engine))
    return Graphed(sweep) if engine.cuda_graphs else sweep


def _keep_bytes(engine: EngineConfig) -> int:
    """Bytes of activations to keep; how many are kept changes no bit of a result."""
    if engine.keep_mb is not None:
        return engine.keep_mb << 20
    if usable_device(engine.device).type != "cuda":
        return KEEP_BYTES
    return torch.cuda.get_device_properties(engine.device).total_memory // 8


def layout_of(config: DistillConfig) -> Layout:
    """How the images that ``config`` asks for lie in the pixels."""
    times = config.images.canvas
    return Plain() if times == 1 else Canvases(times)
