"""How a dataset is distilled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from mct_fast.run.errors import InputError
from mct_fast.run.settings import (
    AUTO,
    Bounds,
    Checked,
    Count,
    Epochs,
    Fraction,
    Grouped,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Share,
)
from mct_fast.settings.data import AugmentationConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SegmentSampler(Checked):
    """Which path, and which segments of it: a match starts at a random time and should arrive expert_epochs later.

    The target lies at most at the path's end.  While the window of starts grows, its bounds rise linearly ("floating upper
    bound" of MCT, growing window of DATM).
    """

    expert_epochs: Epochs = 2.0
    """M: how many expert epochs ahead the target lies; may be a fraction on a convex path."""
    max_start_epoch: Epochs = 10.0
    """Latest start on the expert's path, in epochs (integer sampling excludes it)."""
    min_start_epoch: Epochs = 0.0
    """Earliest start, in epochs."""
    sampling: Literal["continuous", "integer"] = "continuous"
    """Starts: 'continuous' (real times) or 'integer' (whole epochs)."""
    growth_iterations: Natural = 0
    """Iterations over which the latest start grows to max_start_epoch (floating upper bound); 0: fixed."""
    initial_start_epoch: Epochs = 0.0
    """Latest start at the first iteration when it grows."""
    initial_min_start_epoch: Epochs | None = None
    """Earliest start at the first iteration when it grows, too; None: min_start_epoch throughout."""
    trajectory: Literal["convex", "discrete", "bezier"] = "convex"
    """The expert's path: 'convex' (MCT), 'discrete' (MTT; the store must hold checkpoints) or 'bezier' (control points)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_start_epoch <= self.max_start_epoch:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} is not in 0..max_start_epoch ({self.max_start_epoch:g}); lower it"
            )
        first = self.initial_min_start_epoch
        if first is not None and not 0 <= first <= self.min_start_epoch:
            raise InputError(
                f"initial_min_start_epoch: {first:g} is not in 0..min_start_epoch ({self.min_start_epoch:g}); lower it"
            )
        if self.sampling == "integer":
            whole = all(float(v).is_integer() for v in (self.expert_epochs, self.min_start_epoch, self.max_start_epoch))
            if not whole or self.max_start_epoch <= self.min_start_epoch:
                raise InputError(
                    "sampling: 'integer' needs whole epochs and max_start_epoch above min_start_epoch; round or use 'continuous'"
                )

    def check(self, epochs: int, *, continuous_path: bool) -> None:
        """Raises :class:`InputError` if no segment of a path of ``epochs`` fits."""
        if not 0 < self.expert_epochs <= epochs:
            raise InputError(
                f"expert_epochs: {self.expert_epochs:g} does not fit a path of {epochs} epochs; give above 0, at most {epochs}"
            )
        if self.min_start_epoch >= epochs:
            raise InputError(
                f"min_start_epoch: {self.min_start_epoch:g} leaves nothing of a path of {epochs} epochs; give less than {epochs}"
            )
        if self.max_start_epoch > epochs:
            raise InputError(
                f"max_start_epoch: {self.max_start_epoch:g} exceeds the path's {epochs} epochs; give at most {epochs}"
            )
        if self.sampling == "continuous" and not continuous_path:
            raise InputError(
                "sampling: 'continuous' needs a convex trajectory; use sampling='integer' with checkpoints"
            )

    def window(self, iteration: int) -> tuple[float, float]:
        """The bounds of the start at ``iteration``."""
        if iteration >= self.growth_iterations:
            return self.min_start_epoch, self.max_start_epoch
        share = iteration / self.growth_iterations
        first = self.min_start_epoch if self.initial_min_start_epoch is None else self.initial_min_start_epoch
        last = max(self.initial_start_epoch, first)
        low = first + share * (self.min_start_epoch - first)
        if self.sampling == "integer":
            low = float(int(low))
        high = min(last + share * (self.max_start_epoch - last), self.max_start_epoch)
        return low, max(high, low)

    def draw(self, epochs: int, iteration: int, generator: torch.Generator) -> tuple[float, float]:
        """``(start, target)`` on a path of ``epochs``."""
        import torch  # here: settings are made without it

        low, high = self.window(iteration)
        share = float(torch.rand((), dtype=torch.float64, generator=generator))
        if self.sampling == "integer":
            count = max(int(high - low), 1)
            start = low + min(int(share * count), count - 1)
        else:
            start = low + share * (high - low)
        # A start at the very end of the path would leave an empty segment.
        start = min(start, epochs - min(self.expert_epochs, 1e-3))
        return start, min(start + self.expert_epochs, float(epochs))


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
    keep_prior: bool = False
    """Of a binary task: weigh the positives of the synthetic set, which has as many rows of each class, as frequent as they
    are in the training split. So students are trained for the base rate that experts saw."""


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
    cosine: bool = False
    """Let lr_img fall to 0 along half a cosine."""
    clip: NonNegative = 0.0
    """Shorten a gradient that is longer than so many times the median length of the last 200; 0: never."""
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
    """On a GPU, record an iteration, and the steps of networks that are trained, once and replay them: the same bits sooner,
    for the memory of one more iteration."""
    data_path: str | None = None
    """Folder of the dataset; None takes the one that the store names."""
    checkpoint_every: Count = 100
    """Iterations between checkpoints of a run folder."""
    seed: Seed = 0
    """Seed of everything random."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor. A run keeps what was taken."""


@dataclass(frozen=True)
class GoalConfig(Checked):
    """What the synthetic images are to achieve."""

    objective: Literal["matching", "unrolled"] = "matching"
    """'matching': students follow experts' paths (MTT, MCT). 'unrolled': students from fresh parameters do well on real
    data (RaT-BPTT), which needs no experts."""
    window: Count | None = None
    """M: the last of a student's steps through which the loss on real data is carried back. A student then makes a random
    number of steps, from M to syn_steps. None: all of syn_steps."""
    growing: Natural = 0
    """Iterations over which the most steps of a student grow from M to syn_steps (RaT-BPTT's growing T); 0: syn_steps at once."""
    real_batch: Count = 256
    """Real images of the loss that is carried back."""
    balanced: bool = False
    """Draw as many of them from each class (of several labels: from the rarest that a row has), frequent or rare."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            "window": self.window is not None,
            "growing": self.growing > 0,
            "real_batch": self.real_batch != 256,
            "balanced": self.balanced,
        }
        if self.objective == "matching" and any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise InputError(
                f"{name}: plays no part in objective='matching'; leave it out, or use objective='unrolled'"
            )
        if self.growing and self.window is None:
            raise InputError(
                "growing: steps grow from the window, which is all of them; give a window, or leave it out"
            )


@dataclass(frozen=True, init=False)
class DistillConfig(Grouped):
    """How a dataset is distilled.  Names are the field's, so that a published command line reads the same."""

    images: ImagesConfig = ImagesConfig()
    goal: GoalConfig = GoalConfig()
    path: SegmentSampler = SegmentSampler()
    student: StudentConfig = StudentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
