"""Labels that learn, labels that experts assign, the average of the images: each against plain PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor, nn

from mct_fast.distill.learned import HardLabels, ImageAverage, SoftLabels, assigned
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.settings.distill import OptimizerConfig
from mct_fast.tasks import Classification, Link, MultiLabel
from mct_fast.trajectory import DiscreteTrajectory

Squash: TypeAlias = Callable[[Tensor], Tensor]


SOFTMAX, SIGMOID = Classification.link, MultiLabel.link


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize(
    ("link", "squash", "inverse"),
    [(SOFTMAX, lambda z: z.softmax(1), torch.log), (SIGMOID, torch.sigmoid, torch.logit)],
    ids=["softmax", "sigmoid"],
)
def test_soft_labels_descend_as_torch_does(momentum: float, link: Link, squash: Squash, inverse: Squash) -> None:
    g = torch.Generator().manual_seed(1)
    first = torch.rand(5, 3, generator=g, dtype=torch.float64).softmax(1)
    labels = SoftLabels(first, 0.7, momentum, link)
    assert torch.allclose(labels.value, first)
    z = inverse(first).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=0.7, momentum=momentum)
    for _ in range(4):
        weights = torch.randn(5, 3, generator=g, dtype=torch.float64)
        optimizer.zero_grad()
        (squash(z) * weights).sum().backward()
        optimizer.step()
        labels.step(weights)  # the gradient by the labels of <labels, weights>
        assert torch.allclose(labels.value, squash(z.detach()), rtol=1e-12, atol=0)
    again = SoftLabels(first, 0.7, momentum, link)
    again.load_state_dict(labels.state_dict())
    for either in (labels, again):
        either.step(first)
    assert torch.equal(again.value, labels.value)


def test_labels_that_stay() -> None:
    first = torch.rand(4, 3, dtype=torch.float64).softmax(1)
    labels = SoftLabels(first, 0.0, 0.5, SOFTMAX)
    labels.step(torch.ones(4, 3))
    assert torch.allclose(labels.value, first)
    hard = HardLabels(torch.tensor([0, 2]))
    hard.step(None)
    assert hard.value.tolist() == [0, 2] and hard.state_dict() == {}


@pytest.mark.parametrize("link", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_a_certain_label_stays_finite(link: Link) -> None:
    labels = SoftLabels(torch.eye(3, dtype=torch.float64), 1.0, 0.0, link)
    labels.step(torch.randn(3, 3, dtype=torch.float64))
    assert bool(torch.isfinite(labels.value).all()) and labels.value.argmax(1).tolist() == [0, 1, 2]


def test_smoothed_labels() -> None:
    classes = Classification().soft(torch.tensor([2, 0]), 3, torch.float64)
    expected = torch.tensor([[0.05, 0.05, 0.9], [0.9, 0.05, 0.05]], dtype=torch.float64)
    assert torch.allclose(SOFTMAX.smoothed(classes), expected)
    assert SOFTMAX.smoothed(torch.eye(4)).dtype == torch.float32
    assert torch.allclose(SIGMOID.smoothed(torch.tensor([[1.0, 0.0]])), torch.tensor([[0.9, 0.1]]))


def test_experts_assign_the_mean_of_what_they_see_at_the_end() -> None:
    network = ConvNet(depth=1, width=3, channels=1, image_size=8, num_classes=4)
    model = FunctionalModel(network)
    ends = [model.init(seed) for seed in (1, 2)]
    experts = [DiscreteTrajectory(torch.stack([torch.zeros_like(end), end]), model.shapes) for end in ends]
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    expected = torch.zeros(6, 4)
    for end in ends:
        nn.utils.vector_to_parameters(end, network.parameters())
        expected += network(images).detach().softmax(1) / 2
    assert torch.allclose(assigned(images, model, experts, SOFTMAX), expected, atol=1e-6)


def test_the_average_is_the_sum_of_its_history() -> None:
    g = torch.Generator().manual_seed(2)
    history = torch.randn(41, 2, 3, generator=g, dtype=torch.float64)
    average = ImageAverage(history[0], 0.8)
    weights = torch.zeros(41, dtype=torch.float64)
    weights[0] = 1
    for i in range(1, 41):
        average.update(history[i], i)
        decay = min(0.8, (1 + i) / (10 + i))
        weights *= decay
        weights[i] += 1 - decay
    assert torch.allclose(average.value, (weights[:, None, None] * history).sum(0), rtol=1e-12)
    assert float(weights[0]) < 1e-4  # a short run forgets where it began
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="^ema: "):
            OptimizerConfig(ema=bad)
