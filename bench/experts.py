"""Images a second of expert training: ours, several experts at once, against ``epoch()`` of mtt-distillation.

    python -m bench.experts --reference PATH --json bench/results/experts.json

The images are random, of CIFAR-10's shape, unless ``--data-path`` names CIFAR-10 itself.  One SGD step from the same
weights, batch and augmentation is compared first; if it differs nothing is timed and the exit status is 1.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import reference, tables
from bench.gate import relative
from bench.harness import Report, UnequalError, command
from bench.problem import FULL_DSA, Setting
from bench.timing import Samples, alternate, clock
from mct_fast.data import DSA, AugmentPlan, load_dataset
from mct_fast.models import FunctionalModel
from mct_fast.run.seeds import generator
from mct_fast.students import student_for
from mct_fast.tasks import Classification
from mct_fast.training import SGD, FlatStack, ModuleStack, NetworkStack, Schedule, train_epochs

LR = 0.01

TOLERANCE = 5e-3
"""Relative, for one update in float32: 1e-6 unless a ReLU within rounding of zero switches."""

CHECK_LR = 1.0
"""Step of the check: large, so that rounding of the parameters does not hide the gradient."""


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    reference: str | None = None
    """A clone of GeorgeCazenavette/mtt-distillation."""
    data_path: str | None = None
    """Folder that holds CIFAR-10; None takes random images."""
    images: int = 2560
    """Images an epoch."""
    batch_train: int = 256
    """Images a step."""
    parallel: int = 4
    """Experts that ours trains at once."""
    depth: int = 3
    """Blocks of the ConvNet."""
    width: int = 128
    """Channels of a block."""
    dsa_strategy: str = FULL_DSA
    """Augmentations to draw from, or 'none'."""
    rounds: int = 5
    """Rounds of one epoch each."""
    budget: float = 60.0
    """Seconds of timing a contestant."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    seed: int = 0
    """Seed of everything random."""
    json: str | None = None
    """Where to write the result."""

    @property
    def setting(self) -> Setting:
        return Setting(depth=self.depth, width=self.width, strategy=self.dsa_strategy, seed=self.seed)


@dataclass(frozen=True)
class Trainer:
    """``epoch()`` trains ``experts`` networks on all images once; ``step(params, x, y, seed)`` is one step of one network."""

    title: str
    experts: int
    epoch: Callable[[], None]
    step: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command("experts", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    images, labels = _data(arguments)
    trainers = {"mct_fast": _ours(arguments, images, labels), "plain": _plain(arguments, images, labels)}
    if arguments.reference is not None:
        trainers["mtt"] = _mtt(arguments, images, labels)
    errors = check(trainers, arguments, images, labels)
    for name, error in errors.items():
        report.show(f"one step, {name}: the update differs by {error:.1e} (at most {TOLERANCE:g})")
    if not all(error <= TOLERANCE for error in errors.values()):
        raise UnequalError("a training step differs")
    runs = {name: trainer.epoch for name, trainer in trainers.items()}
    expected = {name: clock(run) for name, run in runs.items()}  # warm-up
    samples = alternate(runs, expected, arguments.rounds, arguments.budget)
    results = [_row(name, trainers, samples, len(images)) for name in trainers]
    report.show(_shown(arguments, results))
    report.circumstances["gate"] = errors
    report.keep(results)
    return 0


def _data(arguments: Arguments) -> tuple[Tensor, Tensor]:
    if arguments.data_path is not None:
        split = load_dataset("cifar10", data_path=arguments.data_path).train
        return split.images[: arguments.images], split.labels[: arguments.images]
    generator = torch.Generator().manual_seed(arguments.seed)
    images = torch.randn(arguments.images, *arguments.setting.image_shape, generator=generator)
    return images, torch.randint(arguments.setting.num_classes, (arguments.images,), generator=generator)


def check(trainers: dict[str, Trainer], arguments: Arguments, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Relative error of the update of one step against the judge's (MTT's own if it is there, else plain PyTorch's).

    Several seeds, so that several kinds of augmentation are seen; the worst counts.
    """
    judge = "mtt" if "mtt" in trainers else "plain"
    start = FunctionalModel(arguments.setting.convnet()).init(arguments.seed)
    x, y = images[: arguments.batch_train], labels[: arguments.batch_train]
    worst = {name: 0.0 for name in trainers if name != judge}
    for seed in range(4):
        wanted = trainers[judge].step(start, x, y, seed) - start
        for name in worst:
            found = trainers[name].step(start, x, y, seed) - start
            worst[name] = max(worst[name], relative(found, wanted))
    return worst


def _stacked_step(
    make: Callable[[Tensor], NetworkStack], read: Callable[[Any], Tensor], arguments: Arguments, copies: int
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """One step of the last of ``copies`` equal networks, each with the same batch and augmentation."""
    dsa = DSA(arguments.dsa_strategy)

    def step(params: Tensor, x: Tensor, y: Tensor, seed: int) -> Tensor:
        stack = make(params.expand(copies, -1).contiguous())
        draw = dsa.draw(len(x), x.shape[1:], torch.Generator().manual_seed(seed))
        plan = AugmentPlan(((draw,),) * copies)
        x, y = x.expand(copies, *x.shape), y.expand(copies, -1)
        stack.step(plan.apply(0, x.contiguous()), y.contiguous(), CHECK_LR)
        return read(stack)

    return step


def _epoch(stack: NetworkStack, arguments: Arguments, images: Tensor, labels: Tensor) -> Callable[[], None]:
    schedule = Schedule(1, arguments.batch_train, LR)
    augment = DSA(arguments.dsa_strategy)

    def epoch() -> None:
        streams = [generator(arguments.seed, "bench", number) for number in range(len(stack))]
        for _ in train_epochs(stack, images, labels, schedule, streams, augment=augment):
            pass

    return epoch


def _ours(arguments: Arguments, images: Tensor, labels: Tensor) -> Trainer:
    model = FunctionalModel(arguments.setting.convnet())
    student = student_for(model, Classification(), images.device)

    def make(params: Tensor) -> FlatStack:
        return FlatStack(student, params, SGD())

    count = arguments.parallel
    stack = make(torch.stack([model.init(seed) for seed in range(count)]))
    step = _stacked_step(make, lambda stack: stack.params[-1], arguments, count)
    return Trainer(f"mct_fast, {count} at once", count, _epoch(stack, arguments, images, labels), step)


def _plain(arguments: Arguments, images: Tensor, labels: Tensor) -> Trainer:
    def make(params: Tensor) -> ModuleStack:
        module = arguments.setting.convnet()
        nn.utils.vector_to_parameters(params[0].clone(), module.parameters())
        return ModuleStack([module], Classification(), SGD(), [0])

    def read(stack: ModuleStack) -> Tensor:
        return nn.utils.parameters_to_vector(stack._modules[0].parameters()).detach()

    model = FunctionalModel(arguments.setting.convnet())
    stack = make(model.init(arguments.seed)[None])
    step = _stacked_step(make, read, arguments, 1)
    return Trainer("plain PyTorch, one", 1, _epoch(stack, arguments, images, labels), step)


def _mtt(arguments: Arguments, images: Tensor, labels: Tensor) -> Trainer:
    assert arguments.reference is not None
    clone = reference.load(arguments.reference)
    options = Namespace(
        device="cpu",
        dataset="CIFAR10",
        dsa=True,
        dsa_strategy=arguments.dsa_strategy,
        dsa_param=clone.utils.ParamDiffAug(),
    )
    criterion = nn.CrossEntropyLoss()

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
        clone.utils.epoch(
            "train", dataloader=loader, net=net, optimizer=optimizer, criterion=criterion, args=options, aug=True
        )

    def step(params: Tensor, x: Tensor, y: Tensor, seed: int) -> Tensor:
        net = clone.network(arguments.setting)
        nn.utils.vector_to_parameters(params.clone(), net.parameters())
        torch.manual_seed(seed)
        train(net, torch.optim.SGD(net.parameters(), lr=CHECK_LR), [(x, y)])
        return nn.utils.parameters_to_vector(net.parameters()).detach()

    net = clone.network(arguments.setting)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    dataset = clone.utils.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=arguments.batch_train, shuffle=True, num_workers=0)
    return Trainer("mtt-distillation, epoch()", 1, lambda: train(net, optimizer, loader), step)


def _row(name: str, trainers: dict[str, Trainer], samples: dict[str, Samples], count: int) -> dict[str, Any]:
    """Rates are images times experts a second; ``ratio`` and ``paired`` say how many times ours is faster."""
    trainer, ours, spread = trainers[name], trainers["mct_fast"], samples[name].spread
    work = count * trainer.experts
    paired = samples[name].ratio_to(samples["mct_fast"])
    more = ours.experts / trainer.experts  # ours trains more experts in an epoch's time
    return {
        "name": name,
        "title": trainer.title,
        "experts": trainer.experts,
        "images_a_second": {
            "median": work / spread.median,
            "least": work / spread.greatest,
            "greatest": work / spread.least,
            "count": spread.count,
        },
        "ratio": spread.median / samples["mct_fast"].spread.median * more,
        "paired": {"least": paired.least * more, "greatest": paired.greatest * more},
        "seconds": dict(samples[name].seconds),
    }


def _shown(arguments: Arguments, results: Sequence[dict[str, Any]]) -> Any:
    rows = []
    for result in results:
        rate, paired = result["images_a_second"], result["paired"]
        rows.append(
            [
                result["title"],
                f"{rate['median']:.0f}",
                f"{rate['least']:.0f} to {rate['greatest']:.0f}",
                str(rate["count"]),
                f"{result['ratio']:.2f}x",
                f"{paired['least']:.2f} to {paired['greatest']:.2f}",
            ]
        )
    kind = "random images of CIFAR-10's shape" if arguments.data_path is None else "CIFAR-10"
    title = (
        f"expert training: {arguments.images} {kind}, batch {arguments.batch_train}, "
        f"ConvNet depth {arguments.depth} width {arguments.width}, DSA {arguments.dsa_strategy}"
    )
    columns = ("trainer", "images/s", "least to greatest", "n", "ours is faster by", "within rounds")
    return tables.table(title, columns, rows)


if __name__ == "__main__":
    sys.exit(main())
