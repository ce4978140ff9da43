"""What a trajectory store costs and what its encodings lose: bytes on disk, error, distilled accuracy, seconds of reading.

    python -m bench.storage --cifar PATH --work FOLDER --json bench/results/storage.json

``--cifar`` names CIFAR-10 as an image tree with the folders train and test; without it the accuracy is that on digits
alone.  Experts and distillations are kept in ``--work``, and the same command goes on where an interrupted one stopped.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from bench import tables
from bench.harness import Pieces, Report, command, work_folder
from bench.timing import Spread, clock
from mct_fast.data import Dataset, load_dataset
from mct_fast.demo import DISTILL, EXPERTS
from mct_fast.distill import DistillConfig, distill
from mct_fast.experts import ExpertConfig, expert_spec, train_experts
from mct_fast.models import FunctionalModel, build_model
from mct_fast.run.folder import Run
from mct_fast.run.progress import for_stream
from mct_fast.run.seeds import derive_seed, generator
from mct_fast.trajectory import ENCODINGS, ConvexTrajectory, TrajectoryStore
from mct_fast.view.inspect import encoding_errors

Part = Literal["sizes", "accuracy", "reading"]

MTT_CHECKPOINTS = 51
EPOCHS = 50

ITERATION_SECONDS = 1.5
"""Less than an iteration at IPC 1 with the reference's ConvNet takes on two cores; ``--iteration-seconds``."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    parts: tuple[Part, ...] = ("sizes", "accuracy", "reading")
    """The parts, in this order."""
    cifar: str | None = None
    """CIFAR-10 as an image tree: PATH/train/CLASS/*, PATH/test/CLASS/*."""
    images_a_class: int = 900
    """Training images a class of CIFAR-10 for the experts."""
    work: str | None = None
    """Folder for experts and runs; None takes a temporary one."""
    experts: int = 2
    """Experts of a store whose size or reading is measured."""
    seeds: int = 1
    """Distillations of each encoding."""
    iteration_seconds: float = ITERATION_SECONDS
    """Seconds of the iteration that the reading is a share of."""
    readings: int = 60
    """Matches timed of each encoding."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    json: str | None = None
    """Where to write the result."""


@dataclass(frozen=True)
class Network:
    """The reference's ConvNet for one dataset, and the bytes that MCT's ``exps/storage_compare.py`` gives for MTT."""

    title: str
    depth: int
    image_size: int
    num_classes: int
    published: int | None = None
    """MTT's bytes of 100 experts."""

    def model(self) -> FunctionalModel:
        return FunctionalModel(build_model(self.spec()))

    def spec(self) -> dict[str, Any]:
        size = {"image_size": self.image_size, "num_classes": self.num_classes}
        return {"name": "ConvNet", "depth": self.depth, "width": 128, "channels": 3, **size}


NETWORKS = (
    Network("CIFAR-10, depth 3", 3, 32, 10, 6_547_733_490),
    Network("CIFAR-100, depth 3", 3, 32, 100, 10_309_830_130),
    Network("Tiny-ImageNet, depth 4", 4, 64, 200),
    Network("Tiny-ImageNet, depth 3", 3, 64, 200, 39_557_228_530),
)

CIFAR_EXPERTS = ExpertConfig(
    dataset="folder:cifar10", num_experts=4, train_epochs=15, depth=3, width=32, lr_teacher=0.02
)
CIFAR_DISTILL = DistillConfig(
    ipc=1,
    syn_steps=20,
    expert_epochs=2.0,
    max_start_epoch=5.0,
    lr_img=300.0,
    lr_lr=1e-5,
    lr_teacher=0.02,
    iterations=50,
    eval_it=0,
    epoch_eval_train=100,
)
DIGITS_DISTILL = replace(DISTILL, expert_epochs=2.0, eval_it=0)  # the demonstration's, with matches of 2 epochs


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command("storage", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    results: list[dict[str, Any]] = []
    with work_folder(arguments.work) as folder:
        for name in arguments.parts:
            part = _PARTS[name]
            found = part.measure(arguments, folder)
            report.show(part.table(found))
            results.append({"part": name, "rows": found})
            report.keep(results)
    return 0


# Sizes


def sizes(arguments: Arguments, folder: Path) -> list[dict[str, Any]]:
    """Bytes of whole folders, theta_0 as a seed.

    The values are made up, which does not matter here: no encoding's size depends on them, and the manifest carries what
    training notes (accuracy, a loss an epoch).
    """
    rows = []
    for network in NETWORKS:
        model = network.model()
        for encoding in ENCODINGS:
            with tempfile.TemporaryDirectory(prefix="mct_fast_size_") as temporary:
                store = made_up_store(Path(temporary) / "store", network, model, encoding, arguments.experts)
                size = store.nbytes
            count = arguments.experts * model.num_params
            rows.append(
                {
                    "network": network.title,
                    "parameters": model.num_params,
                    "experts": arguments.experts,
                    "encoding": encoding,
                    "bytes": size,
                    "bytes_a_parameter": size / count,
                    "against_51_checkpoints": MTT_CHECKPOINTS * 4 * count / size,
                    "published_mtt_bytes_100_experts": network.published,
                    "against_published": None
                    if network.published is None
                    else network.published / 100 * arguments.experts / size,
                }
            )
            tables.note(f"{network.title}, {encoding}: {size:,} bytes")
    return rows


def made_up_store(
    folder: Path, network: Network, model: FunctionalModel, encoding: str, experts: int
) -> TrajectoryStore:
    """A store of ``experts`` two-waypoint paths of 50 epochs that begin at real initialisations and end near them."""
    store = TrajectoryStore.create(
        folder,
        {
            "model": network.spec(),
            "shapes": [list(shape) for shape in model.shapes],
            "init": [fill.to_json() for fill in model.init_plan or ()],
            "dataset": {"name": "made up", "fingerprint": "0" * 64, "data_path": None, "zca": False},
            "recipe": {"kind": "made up"},
        },
    )
    random = generator(0, "made-up")
    for number in range(experts):
        seed = derive_seed(0, "expert-init", number)
        begin = model.init(seed)
        end = begin + 0.01 * torch.randn(model.num_params, generator=random)
        steps = torch.rand(len(model.shapes), EPOCHS, dtype=torch.float64, generator=random)
        progress = torch.zeros(len(model.shapes), EPOCHS + 1, dtype=torch.float64)
        progress[:, 1:] = steps.cumsum(1) / steps.sum(1, keepdim=True)
        progress[:, -1] = 1.0
        losses = [float(f"{loss:.6g}") for loss in torch.rand(EPOCHS, dtype=torch.float64, generator=random).tolist()]
        info = {"accuracy": 0.123456, "split": "val", "train_loss": losses, "seconds": 12.3456}
        path = ConvexTrajectory(torch.stack([begin, end]), progress, model.shapes)
        store.add(number, path, info, encoding=encoding, init_seed=seed)
    return store


def _sizes_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    cells = [
        [
            str(row["network"]),
            f"{row['parameters']:,}",
            row["encoding"],
            f"{row['bytes'] // row['experts']:,}",
            f"{row['bytes_a_parameter']:.3f}",
            f"{row['against_51_checkpoints']:.1f}",
            tables.number(row["against_published"], ".1f"),
        ]
        for row in rows
    ]
    columns = ["network", "parameters", "encoding", "bytes an expert", "a parameter", "51 float32 / this", "MTT / this"]
    caption = (
        f"everything in the folder, theta_0 as a seed, stores of {rows[0]['experts']} experts; MTT: published bytes"
    )
    return tables.table("Bytes on disk", columns, cells, caption)


# Accuracy


@dataclass(frozen=True)
class Study:
    """Experts, and how their paths are distilled."""

    title: str
    experts: ExpertConfig
    distill: DistillConfig
    dataset: Dataset


def accuracy(arguments: Arguments, folder: Path) -> list[dict[str, Any]]:
    """The same experts and seeds with each encoding: error of the path, accuracy of what is distilled from it."""
    studies = [Study("digits", EXPERTS, DIGITS_DISTILL, load_dataset("digits"))]
    if arguments.cifar is not None:
        whole = load_dataset("folder:cifar10", data_path=arguments.cifar, progress=for_stream())
        studies.append(Study("CIFAR-10", CIFAR_EXPERTS, CIFAR_DISTILL, fewer_images(whole, arguments.images_a_class)))
    return [row for study in studies for row in _study(study, arguments.seeds, folder / study.title)]


def _study(study: Study, seeds: int, folder: Path) -> list[dict[str, Any]]:
    config = replace(study.experts, keep_checkpoints=True, encoding="float32")
    experts = train_experts(config, folder / "experts", study.dataset, progress=for_stream())
    pieces = Pieces(folder / "pieces", study.title)
    rows = []
    for encoding in ENCODINGS:
        store = encoded(experts, folder / encoding, encoding, config.engine.seed)
        costs = {
            "dataset": study.title,
            "encoding": encoding,
            "network": expert_spec(config, study.dataset),
            "experts": len(store),
            "expert_accuracy": [store.info(i)["accuracy"] for i in range(len(store))],
            "bytes": store.nbytes,
            "bytes_a_parameter": store.nbytes / (len(store) * sum(shape.numel() for shape in store.shapes)),
            "error": asdict(Spread.of([e for i in range(len(store)) for e in encoding_errors(store.entry(i))])),
        }
        for seed in range(seeds):
            final = pieces.found(f"{encoding}-{seed}", partial(_distilled, study, store, seed, folder))
            rows.append({**costs, "seed": seed, "ipc": study.distill.images.ipc, "final": final})
    return rows


def _distilled(study: Study, store: TrajectoryStore, seed: int, folder: Path) -> dict[str, Any]:
    out = folder / f"run-{store.path.name}-{seed}"
    config = replace(study.distill, seed=seed)
    distill(config, store, study.dataset, out=out, resume=out.exists(), progress=for_stream())
    return next(r for r in reversed(Run.open(out).metrics()) if r["kind"] == "final")


def encoded(source: TrajectoryStore, folder: Path, encoding: str, seed: int) -> TrajectoryStore:
    """The paths of ``source`` in another encoding, theta_0 as a seed."""
    kept = ("model", "shapes", "init", "dataset", "task", "recipe")
    given = {key: source.manifest[key] for key in kept if key in source.manifest}
    store = TrajectoryStore.create(folder, given)
    for i, number in enumerate(source.experts):
        if number not in store.experts:
            path = source.trajectory(i)
            assert isinstance(path, ConvexTrajectory)
            init_seed = derive_seed(seed, "expert-init", number)
            store.add(number, path, source.info(i), encoding=encoding, init_seed=init_seed)
    return store


def fewer_images(dataset: Dataset, images_a_class: int) -> Dataset:
    """``dataset`` with so many random training images of each class."""
    train = dataset.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    classes = [order[train.labels[order] == c][:images_a_class] for c in range(dataset.num_classes)]
    rows = torch.cat(classes).sort().values
    digest = hashlib.sha256(f"{dataset.fingerprint} {images_a_class}".encode()).hexdigest()
    subset = replace(train, images=train.images[rows], labels=train.labels[rows], sha256=digest)
    return replace(dataset, train=subset, fingerprint=digest)


def _accuracy_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    cells = []
    for row in rows:
        final, error = row["final"], row["error"]
        cells.append(
            [
                f"{row['dataset']}, seed {row['seed']}",
                row["encoding"],
                f"{row['bytes_a_parameter']:.2f}",
                f"{error['median']:.1e}, {error['greatest']:.1e}",
                f"{100 * final['test_mean']:.2f} ± {100 * final['test_std']:.2f}",
                f"{100 * final['random_real_mean']:.2f} ± {100 * final['random_real_std']:.2f}",
            ]
        )
    networks = rows[0]["final"]["num_eval"]
    caption = f"IPC {rows[0]['ipc']}, mean ± standard deviation of {networks} networks; same experts and seeds"
    columns = [
        "data",
        "encoding",
        "bytes a parameter",
        "error, median and largest",
        "distilled, test %",
        "random real, test %",
    ]
    return tables.table("Distilled accuracy", columns, cells, caption)


# Reading


def reading(arguments: Arguments, folder: Path) -> list[dict[str, Any]]:
    """Seconds from a random expert on disk to the start and the target of a match, for the reference's CIFAR-10 ConvNet.

    ``first``: a store just opened, so the file's SHA-256 is checked too; ``cold``: checked before, read and decoded again;
    ``warm``: among the experts that the store still holds in memory.  The operating system has the files in its cache.
    """
    network = NETWORKS[0]
    model = network.model()
    rows = []
    for encoding in ENCODINGS:
        with tempfile.TemporaryDirectory(prefix="mct_fast_read_") as temporary:
            made_up_store(Path(temporary) / "store", network, model, encoding, arguments.experts)
            spreads = _readings(Path(temporary) / "store", arguments.readings)
        row = {"network": network.title, "encoding": encoding, "iteration_seconds": arguments.iteration_seconds}
        rows.append({**row, **{name: asdict(spread) for name, spread in spreads.items()}})
    return rows


def _readings(folder: Path, count: int) -> dict[str, Spread]:
    random = generator(0, "readings")

    def match(store: TrajectoryStore, i: int) -> None:
        path = store.trajectory(i)
        start = 20 * float(torch.rand((), generator=random))
        path.at(start)
        path.at(start + 2)

    experts = len(TrajectoryStore.open(folder))
    order = torch.randint(experts, (count,), generator=random).tolist()
    first, cold, warm = [], [], []
    keeping = TrajectoryStore.open(folder)
    for i in order:
        fresh = TrajectoryStore.open(folder, cache_bytes=0)
        first.append(clock(partial(match, fresh, i)))
        cold.append(clock(partial(match, fresh, i)))
        match(keeping, i)
        warm.append(clock(partial(match, keeping, i)))
    return {"first": Spread.of(first), "cold": Spread.of(cold), "warm": Spread.of(warm)}


def _reading_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    cells = []
    for row in rows:
        limit = row["iteration_seconds"]
        cells.append([row["encoding"]])
        for name in ("first", "cold", "warm"):
            median = row[name]["median"]
            cells[-1].append(f"{tables.seconds(median)}, {100 * median / limit:.2f} %")
    caption = (
        f"medians of {rows[0]['first']['count']}, share of an iteration of {rows[0]['iteration_seconds']:g} s; "
        "first: SHA-256 checked; cold: decoded again; warm: still in memory"
    )
    return tables.table("Reading a match", ["encoding", "first", "cold", "warm"], cells, caption)


@dataclass(frozen=True)
class _Part:
    measure: Callable[[Arguments, Path], list[dict[str, Any]]]
    table: Callable[[Sequence[Mapping[str, Any]]], Any]


_PARTS = {
    "sizes": _Part(sizes, _sizes_table),
    "accuracy": _Part(accuracy, _accuracy_table),
    "reading": _Part(reading, _reading_table),
}


if __name__ == "__main__":
    sys.exit(main())
