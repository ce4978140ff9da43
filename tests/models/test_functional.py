"""FunctionalModel: flat parameters, purity, derivatives, initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mct_fast.models import MLP, ConvNet, FunctionalModel, build_zoo
from mct_fast.run.errors import InputError


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def tiny() -> ConvNet:
    return ConvNet(1, 2, 1, 4, 2, activation="sigmoid")


def test_flat_round_trip() -> None:
    model = FunctionalModel(ConvNet(2, 5, 3, 9, 4))
    params = torch.arange(model.num_params, dtype=torch.float64)
    tensors = model.unflatten(params)
    assert [tensor.shape for tensor in tensors] == list(model.shapes) and len(model.names) == len(model.shapes)
    assert torch.equal(model.flatten(tensors), params)
    assert tensors[1].data_ptr() == params[model.layer_offsets[1] :].data_ptr()
    assert model.layer_offsets[-1] == model.num_params and len(model.layer_offsets) == len(model.shapes) + 1
    students = model.unflatten(params.expand(3, 2, -1).contiguous())
    assert students[0].shape == (3, 2, 5, 3, 3, 3) and torch.equal(students[-1][2, 1], tensors[-1])


@pytest.mark.parametrize(
    "module",
    [ConvNet(2, 5, 3, 9, 4), MLP(1, 7, 3, 9, 4), build_zoo("AlexNet", 3, 9, 4)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_equal_the_modules(module: nn.Module, dtype: torch.dtype) -> None:
    model, x = FunctionalModel(module), torch.randn(3, 3, 9, 9, dtype=dtype)
    other = torch.randn(model.num_params, dtype=dtype) * 0.1
    before = flat(module).clone()
    logits = model(other, x)
    assert logits.dtype == dtype and torch.equal(flat(module), before)
    expected = torch.func.functional_call(module, dict(zip(model.names, model.unflatten(other), strict=True)), (x,))
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["instance", "none", "batch", "layer", "group"])
def test_second_derivatives(norm: str) -> None:
    torch.manual_seed(0)
    net = ConvNet(1, 4, 1, 4, 2, norm=norm, activation="sigmoid")
    model = FunctionalModel(net)
    params = flat(net).double().requires_grad_()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda p, y: model(p, y), (params, x), fast_mode=norm != "instance")


def test_forward_over_reverse_equals_reverse_over_reverse() -> None:
    torch.manual_seed(0)
    net = ConvNet(2, 5, 3, 9, 4)
    model, params = FunctionalModel(net), flat(net).double()
    x, v = torch.randn(3, 3, 9, 9, dtype=torch.float64), torch.randn(model.num_params, dtype=torch.float64)

    def loss(p: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(p, x), torch.tensor([0, 1, 2]))

    hvp = torch.func.jvp(torch.func.grad(loss), (params,), (v,))[1]
    leaf = params.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad(gradient @ v, leaf)
    torch.testing.assert_close(hvp, expected, rtol=1e-10, atol=1e-12)


def test_batch_norm_uses_the_batch_and_keeps_nothing() -> None:
    norm, linear = nn.BatchNorm1d(4), nn.Linear(4, 2)
    module = nn.Sequential(nn.Flatten(), norm, linear).eval()
    assert norm.running_mean is not None
    norm.running_mean.fill_(7)
    model, x = FunctionalModel(module), torch.randn(5, 1, 2, 2)
    first = model(flat(module), x)
    normed = (x.flatten(1) - x.flatten(1).mean(0)) / (x.flatten(1).var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(first, linear(normed))
    assert torch.equal(model(flat(module), x), first)
    assert norm.running_mean.eq(7).all() and not module.training


class Tied(nn.Module):
    """A linear map applied twice under two names, with a buffer that the forward pass counts in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.calls, Tensor)
        self.calls += 1
        return self.second(self.first(x.flatten(1)).relu_()) * self.calls


def test_shared_parameters_count_once_and_buffers_stay() -> None:
    module = Tied()
    model, x = FunctionalModel(module), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    assert model.num_params == 20
    weight, bias = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = (x.flatten(1) @ weight.T + bias).relu() @ weight.T + bias
    for _ in range(2):  # a counter that survived would double the second result
        torch.testing.assert_close(model(model.flatten([weight, bias]), x), expected)


def test_in_place_activations_do_not_spoil_derivatives() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    model = FunctionalModel(module)
    params = flat(module).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda p: model(p, torch.ones(1, 1, 2, 2).double()).square(), (params,))
    assert isinstance(module[2], nn.ReLU) and module[2].inplace


def test_init_leaves_the_generator_and_depends_on_the_seed() -> None:
    model = FunctionalModel(ConvNet(2, 5, 3, 9, 4, norm="batch"))
    state = torch.get_rng_state()
    first, again, other = model.init(3), model.init(3), model.init(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other) and first.dtype == torch.float32


def test_init_of_other_modules_is_pytorchs_own() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2)
            return self.attend(tokens, tokens, tokens)[0].mean(1)

    model = FunctionalModel(Attention())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert torch.equal(model.init(5), flat(Attention()))
    assert model(model.init(0), torch.randn(2, 3, 2, 2)).shape == (2, 4)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(InputError, match=r"parameter 1.scale belongs to Bare.*reset_parameters"):
        FunctionalModel(nn.Sequential(nn.Identity(), Bare())).init(0)
    with pytest.raises(InputError, match=r"dropout in 1 .* set its rate to 0"):
        FunctionalModel(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    with pytest.raises(InputError, match="dropout in MultiheadAttention"):
        FunctionalModel(nn.MultiheadAttention(4, 2, dropout=0.1))
    FunctionalModel(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
    with pytest.raises(InputError, match="parameter weight is frozen"):
        FunctionalModel(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(InputError, match="not initialised: run the lazy module"):
        FunctionalModel(nn.LazyLinear(2))
    with pytest.raises(InputError, match="no parameters"):
        FunctionalModel(nn.ReLU())
    model = FunctionalModel(tiny())
    with pytest.raises(InputError, match="params must end in"):
        model(torch.zeros(3), torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match=r"features.0.weight must have shape \(2, 1, 3, 3\)"):
        model.flatten([parameter.reshape(-1) for parameter in tiny().parameters()])
    with pytest.raises(InputError, match="6 parameter tensors, got 1"):
        model.flatten([torch.zeros(1)])
