"""What each command takes: a dataclass whose docstrings are its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mct_fast.run.settings import AUTO
from mct_fast.settings import BezierConfig, DistillConfig, EvalConfig, ExpertConfig


@dataclass(frozen=True)
class ExpertsArguments:
    """Train experts on real data; of each, only its convexified trajectory is kept.

    The same command again goes on where an interrupted one stopped.
    """

    out: Path
    """Folder of the trajectory store to write."""
    preset: str | None = None
    """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    dry_run: bool = False
    """Check everything, say what would be done, and do nothing."""
    tensorboard: bool = False
    """Also write TensorBoard event files while it runs, into tensorboard-live in its folder (needs the package tensorboard)."""
    config: ExpertConfig = ExpertConfig()


@dataclass(frozen=True)
class CompressArguments:
    """Convexify MTT's replay_buffer_N.pt, or take over the waypoint and step files of the official MCT code.

    The result is the trajectory store --out. The same command again goes on where a failed one stopped.
    With --to-mtt FOLDER the source is a store, and replay_buffer_N.pt for MTT's distill.py are written.
    """

    source: Positional[Path]
    """A replay_buffer_N.pt or waypoint_buffer_N.pt, or the folder that holds them; with --to-mtt a store."""
    out: Path | None = None
    """Folder of the trajectory store to write."""
    dataset: str | None = None
    """Name of the dataset that the experts were trained on, e.g. cifar10."""
    data_path: str | None = None
    """Folder that holds the dataset."""
    zca: bool = False
    """The experts were trained on ZCA-whitened images."""
    model: str | None = None
    """The network as JSON, e.g. '{"name": "ConvNet", "depth": 4, "image_size": 64, "num_classes": 200}'.
    Left out, a ConvNet is recognised from its shapes."""
    norm: str | None = None
    """Normalisation of a ConvNet that is recognised: instance, group, layer or none. Left out, instance, where the
    shapes allow it: they do not tell it from group norm, or from batch norm, which is not supported."""
    files: str | None = None
    """Which files of a folder, e.g. waypoint_buffer_ip4. Left out, replay_buffer, else the only kind there is."""
    waypoints: int | tuple[int, ...] = 2
    """Checkpoints that the convex path runs through: 2 is the paper's, 4 the official code's default; or their
    epochs, e.g. 0 6 25 50."""
    schedule: str = "arc_length"
    """Pace along the path: arc_length, uniform, decreasing or projected."""
    smooth: bool = False
    """Average each later waypoint with its neighbours, as the official code does."""
    keep_checkpoints: bool = False
    """Also keep every checkpoint (about 25 times the space), which MTT needs."""
    encoding: str = "fp16"
    """How experts are stored: fp16, int8 (half the space), int4 (a quarter), float32 (exact, twice the space)."""
    start_encoding: str = "float32"
    """How an expert's first parameters are stored, whose seed nobody knows: float32 (exact), or as above."""
    to_mtt: Path | None = None
    """Write MTT's files into this folder: the kept checkpoints, or the convex path at whole epochs."""
    per_file: int = 10
    """Experts a file with --to-mtt: what memory holds at once."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""


@dataclass(frozen=True)
class BezierArguments:
    """Fit a control point between the two ends of each expert, so that the loss stays low along a quadratic Bézier
    curve, and add it to the store (4 bytes a parameter and expert).

    Then 'mct-fast distill --trajectory bezier' matches these curves. Experts that have a control point keep it; the
    same command again goes on where an interrupted one stopped.
    """

    store: Positional[Path]
    """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    config: BezierConfig = BezierConfig()


@dataclass(frozen=True)
class StoreClaims:
    """The data and the network. The store names both: what is given is checked against it. An objective that needs no
    experts takes them from here."""

    dataset: str | None = None
    """The dataset."""
    model: str | None = None
    """The network."""
    depth: int | None = None
    """Blocks or layers of the network."""
    width: int | None = None
    """Channels or units of the network."""
    image_size: int | None = None
    """Side of the images in pixels."""
    zca: bool = False
    """The images are whitened with ZCA."""
    download: bool = False
    """Without a store: download the dataset if it is not there."""


@dataclass(frozen=True)
class DistillArguments:
    """Distil a dataset into --ipc images a class, into the run folder --out.

    A new run needs --trajectories and --out; with --objective unrolled, which needs no experts, --dataset and --out do.
    --resume goes on with a killed run, or with a finished one for more --iterations, with the run's own settings
    (--trajectories and --data-path say where its folders have moved to).
    """

    trajectories: Path | None = None
    """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
    out: Path | None = None
    """Run folder to write: configuration, metrics, checkpoints, images, report."""
    resume: Path | None = None
    """Run folder to go on with."""
    preset: str | None = None
    """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    dry_run: bool = False
    """Check everything, say what would be done, and do nothing."""
    tensorboard: bool = False
    """Also write TensorBoard event files while it runs, into tensorboard-live in its folder (needs the package tensorboard)."""
    experts: StoreClaims = StoreClaims()
    config: DistillConfig = DistillConfig()


@dataclass(frozen=True)
class SweepArguments:
    """Distil once for each combination of the values of --vary, all side by side, a run folder each in --out.

    --vary seed=0,1,2 lr_img=100,1000 makes six runs. Each ends in the bits that 'mct-fast distill' gives it alone. What
    the shapes of a match depend on, such as ipc and syn_steps, all have in common. The same command again goes on
    where the runs stopped.
    """

    trajectories: Path
    """Trajectory store that 'mct-fast experts' or 'mct-fast compress' wrote."""
    out: Path
    """Folder of the run folders."""
    vary: tuple[str, ...]
    """Options and their values: NAME=VALUE,VALUE,... each. NAME may be preset."""
    preset: str | None = None
    """Settings by name ('mct-fast presets' lists them), for every option that is not given."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    config: DistillConfig = DistillConfig()


@dataclass(frozen=True)
class EvaluateArguments:
    """Train fresh networks on a distilled set and on as many random real images, and score them.

    Given a run, results on its own data are kept there, and 'mct-fast report' shows them.
    """

    path: Positional[Path]
    """A run folder, or the folder of a distilled set."""
    model: str | None = None
    """Networks, separated by commas: ConvNet, MLP, AlexNet, VGG11, ResNet18, LeNet, or a variant such as
    ConvNetD4 or ResNet18BN. Left out, the one that the set was distilled with."""
    split: Literal["test", "val"] = "test"
    """The split to score on: test or val."""
    random_real: bool = True
    """Also train on as many random real images, the baseline."""
    coreset: str | None = None
    """Also train on as many real images that are chosen by a network's features, the field's controls: herding,
    kcenter, kmeans or several, separated by commas."""
    coreset_epochs: int = 5
    """Epochs that this network is trained on all training data; 0: a random network."""
    dataset: str | None = None
    """Dataset to score on; left out, the one that the set was distilled from."""
    data_path: str | None = None
    """Folder that holds the dataset; left out, the one noted with the experts."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""
    config: EvalConfig = EvalConfig()


@dataclass(frozen=True)
class ReportArguments:
    """Write report.html, images.png and curves.png into a run's folder; of several runs, one page that compares them.

    A run that is still going gives a page too.
    """

    runs: Positional[tuple[Path, ...]]
    """Run folders that 'mct-fast distill' wrote."""
    out: Path = Path("comparison.html")
    """The page that compares several runs."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the package tensorboard)."""


@dataclass(frozen=True)
class InspectArguments:
    """Say what a trajectory store, a run or a distilled set holds.

    Of a store also the accuracy of the networks along the path: SGD's checkpoints, where they were kept, against the
    convex path. All options are for stores.
    """

    path: Positional[Path]
    """Folder of a trajectory store, a run or a distilled set."""
    accuracy: bool = True
    """Evaluate networks along the path."""
    data_path: str | None = None
    """Folder that holds the dataset; left out, the one noted with the experts."""
    split: str | None = None
    """The split to evaluate on: test or val. Left out, val, or test where there is none."""
    samples: int = 500
    """Random images of the split to evaluate on."""
    experts: int = 1
    """Experts to evaluate."""
    points: int = 11
    """Whole epochs to evaluate, from the first to the last; after each, also a time half an epoch on."""
    verify: bool = False
    """Check every file against its SHA-256."""
    out: Path | None = None
    """Picture (PNG) to write: pace of each layer, accuracy along the path."""
    json: bool = False
    """Print everything as JSON instead."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve."""
    plugin: str | None = None
    """Your Python module, in this folder or installed, that registers datasets and networks of your own."""


@dataclass(frozen=True)
class PresetsArguments:
    """List the settings that 'mct-fast experts' and 'mct-fast distill' take by --preset NAME.

    'mct-fast presets NAME' prints the commands of one, 'mct-fast distill --preset NAME --help' all its settings.
    """

    name: Positional[str] = ""
    """A preset, whose three commands are printed."""
    dataset: str | None = None
    """Only those for this dataset."""


@dataclass(frozen=True)
class DemoArguments:
    """Train experts on scikit-learn's handwritten digits, distil one image a class, and write a page about it."""

    out: Path = Path("runs/demo")
    """Folder to write."""
