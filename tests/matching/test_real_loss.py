"""Matching a real batch instead of a path: the gradient of the unrolled training's loss on real data, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mct_fast import ops
from mct_fast.data import DSA, Jitter
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import Exact, Matcher, MatchResult, RealLoss, Truncated, match
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.matching.matcher import Asked
from mct_fast.models import GRU, MLP, ConvNet, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.tasks import Binary, Classification, MultiLabel, Task
from tests.again import Again

CONVNET = ConvNet(depth=2, width=5, channels=2, image_size=8, num_classes=3)
CASES: dict[str, tuple[nn.Module, Task, tuple[int, ...], str]] = {
    "convnet": (CONVNET, Classification(), (2, 8, 8), "hard"),
    "soft": (CONVNET, Classification(), (2, 8, 8), "soft"),
    "mlp-binary": (MLP(1, 6, channels=4, image_size=1, num_classes=1), Binary(2.0), (4,), "binary"),
    "gru-multi-label": (
        GRU(1, 5, channels=3, image_size=(4, 1), num_classes=2), MultiLabel((0.5, 2.0)), (4, 3), "multi-label",
    ),
}  # fmt: skip


def labels_of(kind: str, *shape: int, g: torch.Generator) -> Tensor:
    if kind in ("hard", "soft"):
        hard = torch.randint(3, shape, generator=g)
        return hard if kind == "hard" else 0.7 * nn.functional.one_hot(hard, 3).double() + 0.1
    drawn = torch.randint(2, (*shape, 2 if kind == "multi-label" else 1), generator=g).double()
    return 0.8 * drawn + 0.1


def problem(name: str, *, students: int = 2, augment: Any = None) -> tuple[FunctionalModel, Task, tuple[Any, ...], Any]:
    network, task, shape, kind = CASES[name]
    g = torch.Generator().manual_seed(7)
    model = FunctionalModel(network.double())
    images = torch.randn(7, *shape, generator=g, dtype=torch.float64)
    start = torch.stack([model.init(s).double() for s in range(students)])
    rows = torch.stack([draw_batches(7, 3, 4, g) for _ in range(students)])
    real = RealLoss(
        torch.randn(students, 5, *shape, generator=g, dtype=torch.float64),
        labels_of("hard" if kind == "soft" else kind, students, 5, g=g),
    )
    plan = None if augment is None else augment.plan(students, 4, (rows[0] >= 0).sum(1).tolist(), shape, g)
    return model, task, (images, labels_of(kind, 7, g=g), 0.3, start, real, rows), plan


def truth(model: FunctionalModel, task: Task, given: tuple[Any, ...], plan: Any) -> dict[str, Tensor]:
    """Training written out, and PyTorch's double backward through it."""
    images, labels, alpha, start, real, rows = given
    x, lr = images.clone().requires_grad_(), torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    y = labels.clone().requires_grad_() if labels.is_floating_point() else labels
    losses = []
    for s in range(len(start)):
        theta = start[s].clone().requires_grad_()
        for step in range(rows.shape[1]):
            chosen = rows[s, step][rows[s, step] >= 0]
            batch = x[chosen] if plan is None else plan.draws[s][step].apply(x[chosen])
            (g,) = torch.autograd.grad(task.loss(model(theta, batch), y[chosen]), theta, create_graph=True)
            theta = theta - lr * g
        losses.append(task.loss(model(theta, real.images[s]), real.labels[s]))
    wanted = [x, lr, y] if labels.is_floating_point() else [x, lr]
    found = torch.autograd.grad(torch.stack(losses).mean(), wanted)
    named = dict(zip(("grad_images", "grad_lr", "grad_labels"), found, strict=False))
    return {"loss": torch.stack(losses).detach(), **named}


def close(found: MatchResult, wanted: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    for name, value in wanted.items():
        assert (getattr(found, name) - value).norm() <= tolerance * value.norm(), name


@pytest.mark.parametrize("augment", [None, "augmented"])
@pytest.mark.parametrize("adjoint", ["exact", "kept", "unrolled"])
@pytest.mark.parametrize("name", CASES)
def test_is_the_gradient_of_training_written_out(name: str, adjoint: str, augment: str | None) -> None:
    plans = DSA() if len(CASES[name][2]) == 3 else Jitter(0.1)
    model, task, given, plan = problem(name, augment=plans if augment else None)
    strategy = {"exact": Exact(0), "kept": Exact(1 << 30), "unrolled": "unrolled"}[adjoint]
    close(match(model, *given, task=task, adjoint=strategy, augment=plan), truth(model, task, given, plan))


def test_finite_differences_say_the_same() -> None:
    """The bottom of the chain: no derivative but that of the loss itself."""
    model, task, given, _ = problem("convnet", students=1)
    found = match(model, *given, task=task)

    def loss(images: Tensor, alpha: float) -> float:
        return float(match(model, images, given[1], alpha, *given[3:], task=task, adjoint=Truncated()).loss.mean())

    g = torch.Generator().manual_seed(1)
    for _ in range(3):
        along, eps = torch.randn(given[0].shape, generator=g, dtype=torch.float64), 1e-6
        slope = (loss(given[0] + eps * along, 0.3) - loss(given[0] - eps * along, 0.3)) / (2 * eps)
        assert float((found.grad_images * along).sum()) == pytest.approx(slope, rel=1e-5)
    slope = (loss(given[0], 0.3 + 1e-6) - loss(given[0], 0.3 - 1e-6)) / 2e-6
    assert float(found.grad_lr) == pytest.approx(slope, rel=1e-5)


def test_students_are_rows_and_share_a_batch_that_is_given_once() -> None:
    model, task, (images, labels, lr, start, real, rows), _ = problem("convnet")
    one = RealLoss(real.images[0], real.labels[0])
    both = match(model, images, labels, lr, start, one, rows, task=task)
    alone = [match(model, images, labels, lr, start[s], one, rows[s], task=task) for s in range(2)]
    assert torch.equal(both.loss, torch.cat([found.loss for found in alone]))
    assert torch.equal(both.grad_images, (alone[0].grad_images + alone[1].grad_images) / 2)


def test_runs_side_by_side_have_their_own_real_batches() -> None:
    matcher, asked, alone = Matcher(CONVNET.float(), adjoint=Exact()), [], []
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        images, labels = torch.randn(6, 2, 8, 8, generator=g), torch.randint(3, (6,), generator=g)
        start = torch.stack([FunctionalModel(CONVNET).init(seed + s) for s in range(2)])
        real = RealLoss(torch.randn(2, 5, 2, 8, 8, generator=g), torch.randint(3, (2, 5), generator=g))
        rows = torch.stack([draw_batches(6, 3, 3, g) for _ in range(2)])
        asked.append(Asked(images, labels, 0.1 + seed, start, real, rows, (3, 3, 3)))
        alone.append(matcher(images, labels, 0.1 + seed, start, real, rows))
    for found, wanted in zip(matcher.trusted(asked), alone, strict=True):
        assert torch.equal(found.loss, wanted.loss) and torch.equal(found.grad_images, wanted.grad_images)
        assert torch.equal(found.grad_lr, wanted.grad_lr)


@pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")
def test_a_recording_takes_the_real_batch_of_its_own_inputs() -> None:
    recorder = Again()
    network = ConvNet(depth=2, width=5, channels=2, image_size=8, num_classes=3)
    graphed, plain = Matcher(network, adjoint=Graphed(Exact(), recorder)), Matcher(network, adjoint=Exact())
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        images, labels = torch.randn(6, 2, 8, 8, generator=g), torch.randint(3, (6,), generator=g)
        start, rows = FunctionalModel(network).init(seed), draw_batches(6, 3, 3, g)
        real = RealLoss(torch.randn(5, 2, 8, 8, generator=g), torch.randint(3, (5,), generator=g))
        found, wanted = (m(images, labels, 0.1, start, real, rows) for m in (graphed, plain))
        assert torch.equal(found.loss, wanted.loss) and torch.equal(found.grad_images, wanted.grad_images)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


BAD: dict[str, tuple[Callable[[RealLoss], RealLoss], str]] = {
    "other-shape": (lambda r: RealLoss(r.images[..., :4], r.labels), "target: real images of shape"),
    "too-few": (lambda r: RealLoss(r.images[:1], r.labels[:1]), "for 2 students"),
    "none": (lambda r: RealLoss(r.images[:, :0], r.labels[:, :0]), "target: real images of shape"),
    "labels-short": (lambda r: RealLoss(r.images, r.labels[:, :3]), "with labels of shape"),
    "float32": (lambda r: RealLoss(r.images.float(), r.labels), "target: is torch.float32 on cpu"),
    "nan": (lambda r: RealLoss(r.images * torch.nan, r.labels), "target: its images hold NaN"),
    "label-9": (lambda r: RealLoss(r.images, r.labels + 9), "labels"),
    "logits": (lambda r: RealLoss(r.images, 9 * nn.functional.one_hot(r.labels, 3).double()), "softmax"),
    "sparse": (lambda r: RealLoss(r.images.to_sparse(), r.labels), "target: images"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_real_batches_are_refused_in_one_line(name: str) -> None:
    change, said = BAD[name]
    model, task, (images, labels, lr, start, real, rows), _ = problem("convnet")
    with pytest.raises(InputError, match=said) as caught:
        match(model, images, labels, lr, start, change(real), rows, task=task)
    assert "\n" not in str(caught.value)
