"""How a dataset is distilled: the settings, what is wrong with them, and the strategies that they name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mct_fast.data import Dataset, augmentation
from mct_fast.distill.learned import ImageAverage
from mct_fast.distill.pixels import Canvases, Layout, Plain
from mct_fast.distill.sampling import SegmentSampler
from mct_fast.evaluate import EvalConfig, check_evaluation, check_scorable, split_of
from mct_fast.matching.adjoint import ADJOINTS, Adjoint, Exact, Truncated
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.run.errors import InputError
from mct_fast.run.seeds import derive_seed
from mct_fast.tasks import Task, task_named
from mct_fast.trajectory import Trajectory


@dataclass(frozen=True)
class DistillConfig:
    """How a dataset is distilled.  Names are the field's, so that a published command line reads the same."""

    ipc: int = 1
    """Synthetic images a class."""
    syn_steps: int = 20
    """N: steps of the student an iteration."""
    expert_epochs: float = 2.0
    """M: how many expert epochs ahead the target lies; may be a fraction on a convex path."""
    max_start_epoch: float = 10.0
    """Latest start on the expert's path, in epochs (integer sampling excludes it)."""
    min_start_epoch: float = 0.0
    """Earliest start, in epochs."""
    trajectory: str = "convex"
    """The expert's path: 'convex' (MCT), 'discrete' (MTT; the store must hold checkpoints) or 'bezier' (control points)."""
    sampling: str = "continuous"
    """Starts: 'continuous' (real times) or 'integer' (whole epochs)."""
    growth_iterations: int = 0
    """Iterations over which the latest start grows to max_start_epoch (floating upper bound); 0: fixed."""
    initial_start_epoch: float = 0.0
    """Latest start at the first iteration when it grows."""
    initial_min_start_epoch: float | None = None
    """Earliest start at the first iteration when it grows, too; None: min_start_epoch throughout."""
    lr_img: float = 1000.0
    """Step size for the pixels."""
    lr_lr: float = 1e-5
    """Step size for the student's step size; 0 keeps it fixed."""
    lr_teacher: float = 0.01
    """The student's step size at the beginning."""
    batch_syn: int | None = None
    """Synthetic images a student step; None takes all of them."""
    iterations: int = 5000
    """Iterations of the outer loop."""
    pix_init: str = "real"
    """Images at the beginning: 'real' (random training images) or 'noise'."""
    img_optimizer: str = "sgd"
    """Optimiser of the pixels: 'sgd' (momentum mom_img) or 'adam'."""
    mom_img: float = 0.5
    """Momentum of the pixels and of the step size."""
    lr_decay: float = 1.0
    """Factor on lr_img every lr_decay_every iterations."""
    ema: float = 0.0
    """Decay of the moving average of the pixels that is evaluated and saved (FTD, DATM: 0.99 to 0.9999); 0: the pixels."""
    canvas: int = 1
    """Textures: images are windows of canvases so many times as wide and high, whose edges meet (MTT: 2); 1: plain images."""
    labels: str = "hard"
    """Labels at the beginning: 'hard', or 'expert': soft, what the trained experts see in the first images."""
    lr_label: float = 0.0
    """Step size for soft labels, learned through a softmax (DATM); 0: they stay as they are. Hard ones begin at 0.9."""
    lr_decay_every: int = 0
    """Iterations between decays of lr_img; 0: never."""
    students: int = 1
    """S: students (experts and starts) averaged in one iteration."""
    adjoint: str = "exact"
    """Gradient: 'exact', 'unrolled' (exact, memory grows with syn_steps) or 'truncated' (approximate)."""
    keep_mb: int = 448
    """Activations kept between the two sweeps, in MiB at most; the rest is computed again. Memory for speed."""
    micro_batch: int | None = None
    """Images of a student's batch in the network at once; None: all. Bounds memory; the gradient is the same."""
    cuda_graphs: bool = True
    """On a GPU, record an iteration once and replay it: the same bits sooner, for the memory of one more iteration."""
    dsa: bool = True
    """Augment the student's batches with DSA; tables and series are not augmented."""
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    """The augmentations to draw from, joined by underscores."""
    jitter: float = 0.0
    """Standard deviation of Gaussian noise on the student's batches of tables and series, which are standardised; 0: none."""
    max_loss: float = 10.0
    """An iteration with a larger matching loss is skipped and counted: it explodes, or harms (DATM's threshold: 1)."""
    eval_it: int = 100
    """Iterations between evaluations; 0 evaluates the last images only."""
    num_eval: int = 5
    """Networks an evaluation."""
    epoch_eval_train: int = 1000
    """Epochs an evaluation network is trained."""
    batch_train: int = 256
    """Images a step when an evaluation network is trained."""
    lr_net: float | None = None
    """Step size of evaluation networks, kept with the images; None takes the learned one. Their momentum of 0.9 makes steps
    ten times as long as a student's: a tenth of the learned one leads where students were."""
    random_real: bool = True
    """At the end, also train networks on as many random real images, for comparison."""
    select_on: str = "val"
    """The split that picks the best images: 'val', or 'test' for tables that maximise on test data (labelled so)."""
    eval_test: bool = False
    """Also score the networks of every evaluation on the test split, for curves; it picks nothing."""
    data_path: str | None = None
    """Folder of the dataset; None takes the one that the store names."""
    checkpoint_every: int = 100
    """Iterations between checkpoints of a run folder."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Where to compute, e.g. 'cpu' or 'cuda'."""


def check_config(config: DistillConfig, dataset: Dataset, first: Trajectory, task: Task | None = None) -> None:
    """Raises :class:`InputError` for a setting that cannot work, naming the field and the remedy.

    ``first`` is one of the paths, ``task`` what the dataset's labels say, by default.
    """
    for name in ("ipc", "syn_steps", "iterations", "students", "canvas", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}; give at least 1")
    for name in ("eval_it", "keep_mb", "growth_iterations", "lr_decay_every", "lr_img", "lr_lr", "lr_label"):
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}: got {getattr(config, name)}; give a finite number of at least 0")
    if config.batch_syn is not None and config.batch_syn < 1:
        raise InputError(f"batch_syn: got {config.batch_syn}; give at least 1, or leave it out to take all images")
    if not (config.lr_teacher > 0 and math.isfinite(config.lr_teacher)):
        raise InputError(f"lr_teacher: got {config.lr_teacher}; give a positive step size, the field's is 0.01")
    check_evaluation(evaluation_of(config))
    if not 0 <= config.mom_img < 1:
        raise InputError(f"mom_img: got {config.mom_img}; give a momentum of at least 0, below 1")
    for name in ("max_loss", "lr_decay"):
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name}: got {getattr(config, name)}; give a positive finite number")
    if not ImageAverage.check(config.ema):
        raise InputError(f"ema: got {config.ema}; give a decay of at least 0, below 1, such as 0.999")
    layout = layout_of(config)
    layout.check(dataset, config.labels)
    augmentation(dataset.kind, config.dsa, config.dsa_strategy, config.jitter)  # refuses what does not fit the data
    choices = {
        "labels": ("hard", "expert"),
        "adjoint": tuple(ADJOINTS),
        "pix_init": ("real", "noise"),
        "img_optimizer": ("sgd", "adam"),
        "trajectory": ("convex", "discrete", "bezier"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise InputError(f"{name}: unknown {getattr(config, name)!r}; choose one of {', '.join(allowed)}")
    task = task or task_named(dataset.task)
    wanted = config.ipc * (layout.real_images if config.pix_init == "real" else 1)
    task.draw_rows(dataset.train.labels, dataset.num_classes, wanted, torch.Generator())  # refuses too many
    check_scorable(split_of(dataset, config.select_on), dataset, task, config.select_on)
    sampler_of(config).check(first.epochs, continuous_path=first.continuous)


def evaluation_of(config: DistillConfig) -> EvalConfig:
    """How the images of a run are evaluated, every time with the same networks."""
    return EvalConfig(
        num_eval=config.num_eval,
        epoch_eval_train=config.epoch_eval_train,
        batch_train=config.batch_train,
        dsa=config.dsa,
        dsa_strategy=config.dsa_strategy,
        jitter=config.jitter,
        lr_net=config.lr_net,
        select_on=config.select_on,
        seed=derive_seed(config.seed, "eval"),
        device=config.device,
    )


def adjoint_of(config: DistillConfig) -> Adjoint:
    """The strategy that ``config`` asks for."""
    if config.adjoint == "unrolled":  # autograd's graph is another at every iteration
        return ADJOINTS[config.adjoint]
    strategy = Exact if config.adjoint == "exact" else Truncated
    sweep = strategy(keep_bytes=config.keep_mb << 20)
    return Graphed(sweep) if config.cuda_graphs else sweep


def layout_of(config: DistillConfig) -> Layout:
    """How the images that ``config`` asks for lie in the pixels."""
    return Plain() if config.canvas == 1 else Canvases(config.canvas)


def sampler_of(config: DistillConfig) -> SegmentSampler:
    """Which starts and targets ``config`` asks for."""
    return SegmentSampler(
        config.expert_epochs,
        config.max_start_epoch,
        config.min_start_epoch,
        config.sampling,
        config.growth_iterations,
        config.initial_start_epoch,
        config.initial_min_start_epoch,
    )
