"""GRU and TCN: against PyTorch's own, causality, derivatives, specs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mct_fast.models import GRU, MLP, TCN, FunctionalModel, build_model, model_spec
from mct_fast.run.errors import InputError

NETWORKS = {
    "gru": GRU(2, 5, channels=3, image_size=(7, 1), num_classes=2),
    "tcn": TCN(2, 5, channels=3, image_size=(7, 1), num_classes=2, activation="sigmoid"),
}


def test_gru_is_pytorchs() -> None:
    net = GRU(2, 5, channels=3, num_classes=2).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), net.classifier(net.cells(x)[0][:, -1]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_initial_parameters_come_from_a_plan(name: str) -> None:
    model = FunctionalModel(NETWORKS[name])
    assert model.init_plan is not None


def test_tcn_sees_no_future_and_all_of_its_field() -> None:
    net = TCN(2, 4, channels=1, num_classes=1, activation="sigmoid").double()
    x = torch.randn(1, 30, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    h = x.transpose(1, 2)
    for block in net.blocks:
        h = block(h)
    (grad,) = torch.autograd.grad(h[0, :, 20].sum(), x)
    touched = grad[0, :, 0].nonzero().flatten()
    assert touched.tolist() == list(range(20 - 4 * (2**2 - 1), 21))


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_over_reverse_equals_reverse_over_reverse(name: str) -> None:
    model = FunctionalModel(NETWORKS[name])
    g = torch.Generator().manual_seed(1)
    theta = model.init(0).double()
    direction = torch.randn(theta.shape, generator=g, dtype=torch.float64)
    x = torch.randn(3, 7, 3, generator=g, dtype=torch.float64)

    def loss(p: torch.Tensor) -> torch.Tensor:
        return model(p, x).square().sum()

    _, forward = torch.func.jvp(torch.func.grad(loss), (theta,), (direction,))
    leaf = theta.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (reverse,) = torch.autograd.grad(torch.dot(first, direction), leaf)
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_match_finite_differences(name: str) -> None:
    model = FunctionalModel(NETWORKS[name])
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    theta = model.init(0).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda p, y: model(p, y), (theta, x), fast_mode=True)


@pytest.mark.parametrize(
    "network",
    [
        *NETWORKS.values(),
        GRU(1, 3, channels=2, dropout=0.5),
        TCN(1, 3, channels=2, dropout=0.25),
        MLP(1, 3, dropout=0.5),
    ],
    ids=lambda n: f"{type(n).__name__}-{getattr(n, 'dropout', 0)}",
)
def test_spec_round_trips(network: nn.Module) -> None:
    again = build_model(model_spec(network))
    assert model_spec(again) == model_spec(network)
    assert [p.shape for p in again.parameters()] == [p.shape for p in network.parameters()]


def test_wrong_shapes_and_dropout_are_refused() -> None:
    with pytest.raises(InputError, match="^images: "):
        GRU(channels=3)(torch.zeros(2, 5, 4))
    with pytest.raises(InputError, match="dropout"):
        TCN(dropout=1.0)
    with pytest.raises(InputError, match="dropout"):
        FunctionalModel(GRU(dropout=0.5))


def test_initial_parameters_depend_on_the_seed_alone() -> None:
    model = FunctionalModel(GRU(1, 4, channels=2))
    assert torch.equal(model.init(3), model.init(3))
    assert not torch.equal(model.init(3), model.init(4))
    assert float(model.init(3).abs().max()) <= 4**-0.5
