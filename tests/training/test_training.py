"""Stacks of networks: each row trains as if it were alone, by PyTorch's SGD rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mct_fast.data import DSA
from mct_fast.models import MLP, ConvNet, FunctionalModel, build_model
from mct_fast.run.seeds import generator
from mct_fast.students import student_for
from mct_fast.tasks import Binary, Classification
from mct_fast.training import (
    GSAM,
    SGD,
    FlatStack,
    ModuleStack,
    NetworkStack,
    Schedule,
    build_stack,
    scores,
    train_epochs,
)

CLASSES = 3
NETWORKS = {
    "flat": {"name": "ConvNet", "depth": 1, "width": 5},
    "batchnorm": {"name": "ConvNet", "depth": 1, "width": 5, "norm": "batch"},
}


def make(kind: str) -> nn.Module:
    return build_model({**NETWORKS[kind], "channels": 1, "image_size": 8, "num_classes": CLASSES})


def data(count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(count, 1, 8, 8, generator=g), torch.randint(CLASSES, (count,), generator=g)


def train(stack: NetworkStack, x: Tensor, y: Tensor, schedule: Schedule, names: list[int], dsa: DSA | None = None):
    streams, shared = [generator(3, "row", n) for n in names], x.ndim == 4
    return list(train_epochs(stack, x, y, schedule, streams, augment=dsa, shared=shared))


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_training_equals_torch_sgd(kind: str, soft: bool) -> None:
    x, y = data(11)
    if soft:
        y = nn.functional.one_hot(y, CLASSES).float() * 0.8 + 0.1
    schedule = Schedule(epochs=5, batch=4, lr=0.2, decay_after=2)
    stack = build_stack(lambda: make(kind), [7, 8], Classification(), SGD(0.9, 5e-3), "cpu")
    found = train(stack, x, y, schedule, [0, 1], DSA())
    assert isinstance(stack, FlatStack if kind == "flat" else ModuleStack)
    for row, seed in enumerate((7, 8)):
        network = make(kind)
        nn.utils.vector_to_parameters(FunctionalModel(network).init(seed), network.parameters())
        network = network.double()
        stream = generator(3, "row", row)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-3)
        for epoch in range(5):
            if epoch == 3:  # as the reference: a new optimiser when the step size drops
                optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-3)
            total = 0.0
            for rows in torch.randperm(11, generator=stream).split(4):
                batch = DSA().draw(len(rows), (1, 8, 8), stream).apply(x[rows].double())
                labels = y[rows].double() if soft else y[rows]
                loss = nn.functional.cross_entropy(network(batch), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows) / 11
            assert found[epoch][0] == epoch + 1
            assert float(found[epoch][1][row]) == pytest.approx(total, rel=2e-4)
        expected = network.eval()(x.double()).detach()
        assert (stack.logits(x)[row].double() - expected).norm() < 5e-4 * expected.norm()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, y = data(9)
    task, schedule = Classification(), Schedule(epochs=3, batch=4, lr=0.1)

    def logits(seeds: list[int], names: list[int]) -> Tensor:
        stack = build_stack(lambda: make("flat"), seeds, task, SGD(0.9), "cpu")
        train(stack, x, y, schedule, names, DSA())
        return stack.logits(x)

    together = logits([1, 2, 3], [0, 1, 2])
    assert torch.equal(together[1], logits([2], [1])[0])
    assert not torch.equal(together[1], logits([2], [0])[0])


def test_own_images_for_each_network() -> None:
    x, y = data(12)
    task, schedule = Classification(), Schedule(epochs=2, batch=4, lr=0.1)
    own = build_stack(lambda: make("flat"), [1, 2], task, SGD(), "cpu")
    train(own, x.reshape(2, 6, 1, 8, 8), y.reshape(2, 6), schedule, [0, 1])
    second = build_stack(lambda: make("flat"), [2], task, SGD(), "cpu")
    train(second, x[6:], y[6:], schedule, [1])
    assert torch.equal(own.logits(x)[1], second.logits(x)[0])


def test_scores_are_accuracies_whatever_the_chunk() -> None:
    x, y = data(13)
    network = ConvNet(depth=1, width=5, channels=1, image_size=8, num_classes=CLASSES)
    stack = build_stack(lambda: network, [4], Classification(), SGD(), "cpu")
    expected = (stack.logits(x)[0].argmax(1) == y).double().mean().item()
    assert scores(stack, x, y, Classification(), chunk=5) == [pytest.approx(expected)]
    assert 0 < expected < 1


def test_the_step_size_drops_once() -> None:
    schedule = Schedule(epochs=6, batch=1, lr=0.5, decay_after=3)
    assert [schedule.lr_at(epoch) for epoch in range(6)] == [0.5, 0.5, 0.5, 0.5, 0.05, 0.05]
    assert Schedule(epochs=6, batch=1, lr=0.5).lr_at(5) == 0.5


def test_dropout_trains_reproducibly_and_leaves_the_generators_alone() -> None:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % 2

    def train(rate: float, seed: int) -> torch.Tensor:
        stack = build_stack(
            lambda: MLP(1, 16, channels=4, image_size=1, num_classes=1, dropout=rate), [seed], Binary(), SGD(), "cpu"
        )
        state = torch.get_rng_state()  # building a module draws from it
        for _ in range(3):
            stack.step(x[None], y[None], 0.5)
        assert torch.equal(torch.get_rng_state(), state)
        return stack.logits(x)

    first = train(0.5, 1)
    assert torch.equal(first, train(0.5, 1))
    assert not torch.allclose(first, train(0.0, 1))


def test_strata_are_spread_over_every_epoch() -> None:
    labels = (torch.arange(40) < 4).long()
    seen: list[int] = []

    class Watcher:
        def __len__(self) -> int:
            return 1

        def step(self, x: torch.Tensor, y: torch.Tensor, lr: float) -> torch.Tensor:
            seen.append(int(y.sum()))
            return torch.zeros(1)

    images = torch.zeros(40, 3)
    for _ in train_epochs(
        Watcher(), images, labels, Schedule(3, 10, 0.1), [generator(0, "a")], augment=None, strata=labels
    ):
        pass
    assert len(seen) == 12
    assert sum(seen) == 12
    assert max(seen) <= 2
    assert min(seen) >= 0
    assert seen.count(1) >= 8


@pytest.mark.parametrize(("rho", "alpha"), [(0.3, 0.4), (0.3, 0.0)], ids=["GSAM", "SAM"])
def test_gsam_equals_its_definition(rho: float, alpha: float) -> None:
    """Algorithm 1 of Zhuang et al., by autograd in float64, one network after another."""
    x, y = data(12)
    x, y = x.double().reshape(2, 6, 1, 8, 8), y.reshape(2, 6)
    network = make("flat").double()
    model = FunctionalModel(network)
    params = torch.stack([model.init(seed).double() for seed in (1, 2)])
    losses, directions = GSAM(rho, alpha)(student_for(model, Classification()), params, x, y)
    for row in range(2):

        def gradient(theta: Tensor, row: int = row) -> tuple[Tensor, Tensor]:
            theta = theta.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(theta, x[row]), y[row])
            return loss.detach(), torch.autograd.grad(loss, theta)[0]

        loss, g = gradient(params[row])
        _, g_p = gradient(params[row] + rho * g / g.norm())
        unit = g_p / g_p.norm()
        orthogonal = g - (g @ unit) * unit
        assert torch.allclose(losses[row], loss, rtol=1e-9)
        assert torch.allclose(directions[row], g_p - alpha * orthogonal, rtol=1e-7, atol=1e-9)
        assert (directions[row] - g).norm() > 1e-3 * g.norm()


def test_windows_of_canvases_are_drawn_before_they_are_augmented() -> None:
    x, y = data(6)
    canvases = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    schedule = Schedule(epochs=1, batch=4, lr=0.1)
    found = build_stack(lambda: make("flat"), [1], Classification(), SGD(), "cpu")
    list(train_epochs(found, canvases, y, schedule, [generator(3, "row", 0)], augment=DSA(), window=(8, 8)))
    stream = generator(3, "row", 0)
    expected = build_stack(lambda: make("flat"), [1], Classification(), SGD(), "cpu")
    for rows in torch.randperm(6, generator=stream).split(4):
        shifts = [torch.randint(16, (len(rows),), generator=stream).tolist() for _ in range(2)]
        cut = [
            torch.roll(canvases[row], (-down, -right), (1, 2))[:, :8, :8]
            for row, down, right in zip(rows.tolist(), *shifts, strict=True)
        ]
        batch = DSA().draw(len(rows), (1, 8, 8), stream).apply(torch.stack(cut))
        expected.step(batch[None], y[rows][None], 0.1)
    assert torch.allclose(found.logits(x), expected.logits(x), atol=1e-6)
