"""The parts of `bench.gpu`: each measures one row of the GPU's table and returns its results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bench import contestants, reference
from bench.graphed_rival import double_backward
from bench.problem import Setting, build
from bench.reference import Learned
from bench.timing import Run, Spread, alternate, clock
from mct_fast.data import DSA, Dataset, load_dataset, register_dataset
from mct_fast.distill import DistillConfig
from mct_fast.distill.initial import initial_state
from mct_fast.distill.job import Job
from mct_fast.distill.matches import Matches
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, evaluate
from mct_fast.matching.adjoint import Exact, Unrolled
from mct_fast.models import FunctionalModel
from mct_fast.run.distributed import Single
from mct_fast.run.progress import quiet
from mct_fast.run.seeds import generator
from mct_fast.students import student_for
from mct_fast.tasks import Classification
from mct_fast.training import SGD, FlatStack, Schedule, train_epochs
from mct_fast.trajectory import ConvexTrajectory

Results = list[dict[str, Any]]

FAST, FINE = "tf32", "ieee"
"""What PyTorch's switch for convolutions says: the engine's products are `fast`, or `fine`."""


class Arguments(Protocol):
    """What the parts read of the command line."""

    @property
    def reference(self) -> str | None: ...

    @property
    def device(self) -> str: ...

    @property
    def warm(self) -> bool: ...

    @property
    def dry_run(self) -> bool: ...


@contextmanager
def convolutions(precision: str) -> Iterator[None]:
    """PyTorch's switch for the precision of float32 convolutions, set for a while."""
    cudnn: Any = torch.backends.cudnn  # its stubs lack `conv`
    before, cudnn.conv.fp32_precision = cudnn.conv.fp32_precision, precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def _data(name: str, setting: Setting, each: int, tests: int, device: str) -> Dataset:
    """Random images of the setting's shape, `each` a class."""
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> tuple[Tensor, Tensor]:
        images = torch.randint(256, (count, *setting.image_shape), dtype=torch.uint8, generator=draw)
        return images, torch.arange(count) % setting.num_classes

    register_dataset(name, split(each * setting.num_classes), split(tests), split(setting.num_classes))
    return load_dataset(name, device=device)


def _iteration(setting: Setting, arguments: Arguments, precision: str = FAST, **options: Any) -> Run:
    """One iteration of the outer loop as `distill` makes it, recorded as a graph: draws, match, update, read-back."""
    problem = build(setting)
    ends = problem.start, (problem.start + problem.target) / 2, problem.target
    path = ConvexTrajectory.fit([list(_shaped(end, problem.model)) for end in ends])
    data = _data("bench-gpu", setting, max(2, setting.ipc), setting.num_classes, setting.device)
    config = DistillConfig(
        ipc=setting.ipc, syn_steps=setting.syn_steps, batch_syn=min(setting.batch_syn, setting.num_images),
        expert_epochs=1, max_start_epoch=1, iterations=1 << 20, lr_img=1e-3, lr_lr=1e-9, eval_it=0, max_loss=1e30,
        dsa_strategy=setting.strategy, device=setting.device, random_real=False, **options,
    )  # fmt: skip
    with convolutions(precision):
        job = Job.find(config, [path], data, setting.convnet(), None, quiet())
        matches, state = Matches([job], Single()), initial_state(job)

    def iterate() -> None:
        with convolutions(precision):
            result, _ = matches.solve({0: state})[0]
            state.advance(result)

    return iterate


def _shaped(point: Tensor, model: FunctionalModel) -> Iterator[Tensor]:
    """A flat vector as the model's tensors."""
    sizes = [shape.numel() for shape in model.shapes]
    for part, shape in zip(point.cpu().split(sizes), model.shapes, strict=True):
        yield part.view(shape)


def _mtt(setting: Setting, arguments: Arguments) -> Run:
    assert arguments.reference is not None
    problem, clone = build(setting), reference.load(arguments.reference)
    learned = Learned.of(problem, contestants.LR_IMG, contestants.LR_LR)
    return lambda: reference.mtt_iteration(clone, problem, learned)


def _setting(arguments: Arguments, **numbers: Any) -> Setting:
    setting = Setting(device=arguments.device, **numbers)
    if not arguments.dry_run:
        return setting
    return Setting(
        device=arguments.device, ipc=1, syn_steps=2, batch_syn=3, depth=2, width=4, image_size=8, num_classes=3
    )  # fmt: skip


def _race(ipc: int) -> Callable[[Arguments], Results]:
    def race(arguments: Arguments) -> Results:
        steps, batch = {1: (50, 10), 10: (30, 100)}[ipc]
        setting = _setting(arguments, ipc=ipc, syn_steps=steps, batch_syn=batch)
        makers: dict[str, Callable[[], Run]] = {
            "mct_fast, fast": lambda: _iteration(setting, arguments),
            "mct_fast, fine": lambda: _iteration(setting, arguments, FINE),
        }
        if not arguments.warm:
            if setting.device != "cpu":
                makers["double backward as one CUDA graph, no augmentation"] = lambda: double_backward(build(setting))
            if arguments.reference is not None:
                makers["mtt-distillation"] = lambda: _mtt(setting, arguments)
        runs = {name: make() for name, make in makers.items()}
        expected = {}
        for name, run in runs.items():
            for _ in range(3):  # compiles, records, and prepares what the next one takes
                expected[name] = clock(run)
        if arguments.warm:
            return []
        found = alternate(runs, expected, rounds=3 if arguments.dry_run else 20, budget=8)
        ours = found["mct_fast, fast"]
        return [
            {"name": name, "seconds": asdict(sample.spread), "times_ours": asdict(sample.ratio_to(ours))}
            for name, sample in found.items()
        ]

    return race


def errors(arguments: Arguments) -> Results:
    """The gradient of a whole match of two steps against float64: ours and PyTorch's own, both precisions."""
    rows: Results = []
    for ipc, batch in ((1, 10), (10, 100)):
        for weights in ("random",) if arguments.warm else ("random", "trained"):
            setting = _setting(arguments, ipc=ipc, syn_steps=2, batch_syn=batch, weights=weights)
            problem = build(setting)
            truth = contestants.judge(problem.to("float64"))
            for how, adjoint in (("mct_fast", Exact(keep_bytes=8 << 30)), ("PyTorch, double backward", Unrolled())):
                for precision in (FAST, FINE):
                    with convolutions(precision):
                        found = contestants.ours(adjoint)(problem)()
                    rows.append(
                        {
                            "name": f"{how}, {_named(how, precision)}, ipc {ipc}, {weights}",
                            "images": _relative(found.grad_images, truth.grad_images),
                            "syn_lr": _relative(found.grad_lr, truth.grad_lr),
                            "loss": _relative(found.loss, truth.loss),
                        }
                    )
    return rows


def _named(how: str, precision: str) -> str:
    return {FAST: "fast", FINE: "fine"}[precision] if how == "mct_fast" else precision


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def students(arguments: Arguments) -> Results:
    """Several students in the launches of one."""
    rows: Results = []
    for count in (4, 16):
        setting = _setting(arguments, ipc=1, syn_steps=50, batch_syn=10)
        seconds = _timed(_iteration(setting, arguments, students=count), 1 if arguments.warm else 8)
        rows.append({"name": f"{count} students, ipc 1: a student", "seconds": _scaled(seconds, 1 / count)})
    return rows


def _timed(run: Run, rounds: int) -> Spread:
    for _ in range(3):
        run()
    return Spread.of([clock(run) for _ in range(rounds)])


def _scaled(spread: Spread, factor: float) -> dict[str, Any]:
    return asdict(Spread(spread.median * factor, spread.least * factor, spread.greatest * factor, spread.count))


def experts(arguments: Arguments) -> Results:
    """Training with DSA, batches of 256: images a second, all networks together."""
    setting = _setting(arguments)
    model = FunctionalModel(setting.convnet())
    count = 512 if arguments.dry_run else 2048 if arguments.warm else 12_800
    images = torch.randn(count, *setting.image_shape, device=arguments.device)
    labels = torch.randint(setting.num_classes, (count,), device=arguments.device)
    rows: Results = []
    for parallel in (1, 4, 16):
        stack = FlatStack(
            student_for(model, Classification(), arguments.device),
            torch.stack([model.init(seed) for seed in range(parallel)]).to(arguments.device), SGD(),
        )  # fmt: skip

        def epoch(stack: FlatStack = stack) -> None:
            schedule, augment = Schedule(1, 256, 0.01), DSA(setting.strategy)
            streams = [generator(0, "bench", number) for number in range(len(stack))]
            for _ in train_epochs(stack, images, labels, schedule, streams, augment=augment):
                pass

        epoch()
        seconds = Spread.of([clock(epoch) for _ in range(1 if arguments.warm else 3)])
        work = count * parallel
        rate = Spread(work / seconds.median, work / seconds.greatest, work / seconds.least, seconds.count)
        rows.append({"name": f"{parallel} experts at once, DSA", "images_a_second": asdict(rate)})
    return rows


def evaluation(arguments: Arguments) -> Results:
    """Five networks of 1,000 epochs on ten images a class, the test set of 10,000 images included."""
    setting = _setting(arguments, ipc=10)
    tests = 300 if arguments.dry_run else 10_000
    data = _data("bench-gpu", setting, max(2, setting.ipc), tests, arguments.device)
    images = data.train.images[: setting.num_images].cpu()
    labels = data.train.labels[: setting.num_images].cpu()
    distilled = DistilledDataset(images, labels, 0.01, data.transform, data.class_names, {})
    epochs = 2 if arguments.dry_run or arguments.warm else 1000
    config = EvalConfig(num_eval=5, epoch_eval_train=epochs, device=arguments.device)
    evaluate(distilled, data, replace(config, epoch_eval_train=2), model=setting.convnet(), split="test")
    began = time.perf_counter()
    evaluate(distilled, data, config, model=setting.convnet(), split="test")
    return [{"name": f"5 networks, {epochs} epochs, {len(images)} images", "seconds": time.perf_counter() - began}]


LARGE = (
    ("CIFAR-100, IPC 50: 80 steps of 125", dict(ipc=50, syn_steps=80, batch_syn=125, num_classes=100)),
    (
        "Tiny-ImageNet, IPC 10: 20 steps of 200",
        dict(ipc=10, syn_steps=20, batch_syn=200, depth=4, image_size=64, num_classes=200),
    ),
    (
        "Tiny-ImageNet, IPC 50: 20 steps of 300",
        dict(ipc=50, syn_steps=20, batch_syn=300, depth=4, image_size=64, num_classes=200),
    ),
)
"""Steps and batches of MTT's author (DC-BENCH)."""


def large(arguments: Arguments) -> Results:
    """Settings that do not fit with MTT: seconds an iteration and PyTorch's peak of memory."""
    rows: Results = []
    for title, numbers in LARGE:
        run = _iteration(_setting(arguments, **numbers), arguments)
        seconds = _timed(run, 1 if arguments.warm else 5)
        peak = torch.cuda.max_memory_allocated() if arguments.device != "cpu" else None
        rows.append({"name": title, "seconds": asdict(seconds), "peak_bytes": peak})
        del run
        if arguments.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return rows


def kernels(arguments: Arguments) -> Results:
    """Where an iteration's time goes on the device: kernels by name, launches and microseconds an iteration."""
    rows: Results = []
    for ipc, steps, batch in ((1, 50, 10), (10, 30, 100)):
        run = _iteration(_setting(arguments, ipc=ipc, syn_steps=steps, batch_syn=batch), arguments)
        for _ in range(3):
            run()
        if arguments.warm or arguments.device == "cpu":
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            run()
            torch.cuda.synchronize()
        found: dict[str, list[float]] = {}
        for event in profiler.events() or ():
            if event.device_type.name == "CUDA":
                found.setdefault(event.name, []).append(event.device_time)
        rows += [
            {"name": f"ipc {ipc}: {name[:60]}", "launches": len(each), "microseconds": sum(each)}
            for name, each in sorted(found.items(), key=lambda item: -sum(item[1]))
        ]
    return rows


PARTS: dict[str, Callable[[Arguments], Results]] = {
    "race-ipc1": _race(1),
    "race-ipc10": _race(10),
    "errors": errors,
    "students": students,
    "experts": experts,
    "evaluation": evaluation,
    "large": large,
    "kernels": kernels,
}
