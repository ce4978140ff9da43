"""Recording and replaying a match: buffers, shapes and results with a recorder that runs anew; on a GPU the real graphs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from mct_fast import ops
from mct_fast.data import DSA
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import Matcher, MatchResult
from mct_fast.matching.adjoint import Exact
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.trajectory import ConvexTrajectory, DiscreteTrajectory
from tests.again import Again, Watched

MODEL = ConvNet(depth=2, width=5, channels=3, image_size=8, num_classes=4)
kernels = pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")


def arguments(
    seed: int, *, students: int = 2, batch: int = 3, soft: bool = False, dsa: bool = True, device: str = "cpu"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(7, 3, 8, 8, generator=g)
    labels = torch.randn(7, 4, generator=g).softmax(1) if soft else torch.randint(4, (7,), generator=g)
    start = torch.stack([FunctionalModel(MODEL).init(seed + s) for s in range(students)])
    target = start + 0.05 * torch.randn(start.shape, generator=g)
    rows = torch.stack([draw_batches(7, batch, 4, g) for _ in range(students)])
    plan = DSA().plan(students, 4, (rows[0] >= 0).sum(1).tolist(), (3, 8, 8), g) if dsa else None
    images, labels, start, target, rows = (t.to(device) for t in (images, labels, start, target, rows))
    return (images, labels, 0.03 + 0.01 * seed, start, target, rows), {"augment": plan}


def same(found: MatchResult, wanted: MatchResult) -> None:
    for field in fields(wanted):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


@kernels
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dsa", [False, True], ids=["plain", "dsa"])
def test_a_replay_is_the_match_of_its_own_inputs(soft: bool, dsa: bool) -> None:
    recorder = Again()
    graphed, plain = Matcher(MODEL, adjoint=Graphed(Exact(), recorder)), Matcher(MODEL, adjoint=Exact())
    kept = []
    for seed in range(4):
        args, named = arguments(seed, soft=soft, dsa=dsa)
        kept.append((graphed(*args, **named), plain(*args, **named)))
    for found, wanted in kept:  # only now: a later replay must not write into an earlier result
        same(found, wanted)
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def on_paths(kind: str, seed: int, *, students: int = 2, device: str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
    """:func:`arguments` with ends that are points of paths: of one path, or of different pieces or checkpoints of it."""
    (images, labels, lr, start, target, rows), named = arguments(seed, students=students, device=device)
    shapes = FunctionalModel(MODEL).shapes
    middle = start + 0.3 * (target - start).flip(1)
    checkpoints = [torch.stack(rows) for rows in zip(start, middle, target, strict=True)]
    if kind == "discrete":
        paths = [DiscreteTrajectory(points, shapes) for points in checkpoints]
        times = (0, 2)
    else:
        pace = torch.tensor([0.0, 1.0, 2.0]).double().expand(len(shapes), 3)
        paths = [ConvexTrajectory(points, pace, shapes) for points in checkpoints]
        times = (0.25 + 0.1 * seed, 0.7) if kind == "one piece" else (0.5, 1.5 + 0.1 * seed)
    ends = [[path.point(t) for path in paths] for t in times]
    return (images, labels, lr, *ends, rows), named


@kernels
@pytest.mark.parametrize("kind", ["one piece", "two pieces", "discrete"])
def test_a_recording_interpolates_between_the_models_of_its_own_inputs(kind: str) -> None:
    recorder = Again()
    graphed, plain = Matcher(MODEL, adjoint=Graphed(Exact(), recorder)), Matcher(MODEL, adjoint=Exact())
    for seed in range(3):
        args, named = on_paths(kind, seed)
        same(graphed(*args, **named), plain(*args, **named))
    assert (recorder.recorded, recorder.replayed) == (1, 3)


@kernels
def test_each_shape_has_its_recording_and_the_oldest_goes() -> None:
    recorder = Again()
    graphed = Matcher(MODEL, adjoint=Graphed(Exact(), recorder, most=2))
    plain = Matcher(MODEL, adjoint=Exact())
    for seed, batch in enumerate((3, 4, 3, 5, 4)):  # 5 pushes 4 out, which then is recorded again
        args, named = arguments(seed, batch=batch)
        same(graphed(*args, **named), plain(*args, **named))
    assert recorder.recorded == 4


@kernels
def test_a_match_that_cannot_be_recorded_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Again):
        def record(self, run: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphed, plain = Matcher(MODEL, adjoint=Graphed(Exact(), Refusing())), Matcher(MODEL, adjoint=Exact())
    for seed in range(2):
        args, named = arguments(seed)
        same(graphed(*args, **named), plain(*args, **named))
    assert [r.message for r in caplog.records] == [
        "mct_fast: this match cannot be recorded as a CUDA graph "
        "(operation not permitted when stream is capturing); it runs without"
    ]


def test_the_processor_is_left_alone() -> None:
    args, named = arguments(0)
    same(Matcher(MODEL, adjoint=Graphed(Exact()))(*args, **named), Matcher(MODEL, adjoint=Exact())(*args, **named))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_graph_gives_the_bits_of_the_launches(soft: bool, micro_batch: int | None) -> None:
    graphs = Watched()
    graphed = Matcher(MODEL, adjoint=Graphed(Exact(1 << 20), graphs), micro_batch=micro_batch)
    plain = Matcher(MODEL, adjoint=Exact(1 << 20), micro_batch=micro_batch)
    for seed in (0, 1, 2, 0):
        args, named = arguments(seed, soft=soft, device="cuda")
        wanted = plain(*args, **named)
        same(graphed(*args, **named), wanted)
        same(plain(*args, **named), wanted)  # twice the same bits
    assert graphs.recorded == 1


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["one piece", "two pieces", "discrete"])
def test_a_graph_interpolates_as_the_launches_do(kind: str) -> None:
    graphs = Watched()
    graphed, plain = Matcher(MODEL, adjoint=Graphed(Exact(), graphs)), Matcher(MODEL, adjoint=Exact())
    for seed in range(3):
        args, named = on_paths(kind, seed, device="cuda")
        same(graphed(*args, **named), plain(*args, **named))
    assert graphs.recorded == 1


@pytest.mark.gpu
def test_two_students_at_once_are_two_students() -> None:
    plain = Matcher(MODEL, adjoint=Exact())
    args, _ = arguments(0, students=2, dsa=False, device="cuda")
    both = plain(*args)
    images, labels, lr, start, target, rows = args
    alone = [plain(images, labels, lr, start[s], target[s], rows[s]) for s in range(2)]
    assert torch.equal(both.loss, torch.cat([one.loss for one in alone]))
    assert torch.equal(both.grad_images, (alone[0].grad_images + alone[1].grad_images) / 2)


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_processor() -> None:
    plain = Matcher(MODEL, adjoint=Exact())
    (args, named), (args_gpu, named_gpu) = arguments(0), arguments(0, device="cuda")
    found, wanted = plain(*args_gpu, **named_gpu), plain(*args, **named)
    error = (found.grad_images.cpu() - wanted.grad_images).norm() / wanted.grad_images.norm()
    assert error < 2e-2  # tf32 multiplies in the convolutions; the kernels' own tests are sharper
