"""The PyTorch reference in float64 against automatic differentiation of the plain formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vjp

from mct_fast import ops
from mct_fast.data.augment import AugmentDraw


def assert_all_close(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> None:
    for i, (a, b) in enumerate(zip(found, truth, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, i=i: f"output {i}: {m}")


def students(fn: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
    """fn on each student's arguments."""
    count = next(a.shape[0] for a in args if a is not None)
    return torch.stack([fn(*(None if a is None else a[s] for a in args)) for s in range(count)])


def conv(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    return students(lambda x, w, b: F.conv2d(x.permute(0, 3, 1, 2), w, b, padding=1).permute(0, 2, 3, 1), x, w, bias)


def block(z: Tensor, gamma: Tensor | None, beta: Tensor | None, pool: bool) -> Tensor:
    def one(z: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        u = z.permute(0, 3, 1, 2).contiguous()  # forward AD of group_norm needs it in PyTorch 2.9
        if gamma is not None:
            u = F.group_norm(u, u.shape[1], gamma, beta, eps=1e-5)
        a = F.relu(u)
        return (F.avg_pool2d(a, 2) if pool else a).permute(0, 2, 3, 1)

    return students(one, z, gamma, beta)


def test_conv3x3(dims: Any, make: Any) -> None:
    x, w, bias, *pair = make(dims).of("conv3x3")
    truth = conv(x, w, bias) + (conv(*pair) if pair else 0)
    assert_all_close((ops.conv3x3.reference(x, w, bias, *pair),), (truth,))


def test_conv3x3_input_grad(dims: Any, make: Any) -> None:
    g, w, *pair = make(dims).of("conv3x3_input_grad")
    x = make(dims).image(dims.Ci)
    truth = vjp(lambda x: conv(x, w), x)[1](g)[0]
    if pair:
        truth = truth + vjp(lambda x: conv(x, pair[1]), x)[1](pair[0])[0]
    assert_all_close((ops.conv3x3_input_grad.reference(g, w, *pair),), (truth,))


def test_conv3x3_weight_grad(dims: Any, make: Any) -> None:
    g, x, *pair = make(dims).of("conv3x3_weight_grad")
    w = make(dims).parameter(dims.S, dims.Co, dims.Ci, 3, 3)
    truth = vjp(lambda w: conv(x, w), w)[1](g)[0]
    if pair:
        truth = truth + vjp(lambda w: conv(pair[1], w), w)[1](pair[0])[0]
    assert_all_close(ops.conv3x3_weight_grad.reference(g, x, *pair), (truth, g.sum((1, 2, 3))))


def test_block_forward_and_backward(dims: Any, make: Any) -> None:
    gp, z, _, _, gamma, beta, pool = make(dims).of("block_backward")
    p, mean, rstd = ops.block_forward.reference(z, gamma, beta, 1e-5, pool)
    found = ops.block_backward.reference(gp, z, mean, rstd, gamma, beta, pool)
    if gamma is None:
        truth, back = vjp(lambda z: block(z, None, None, pool), z)
        zero = z.new_zeros(dims.S, dims.Co)
        assert_all_close((p, *found), (truth, *back(gp), zero, zero))
    else:
        truth, back = vjp(lambda *a: block(*a, pool), z, gamma, beta)
        assert_all_close((p, *found), (truth, *back(gp)))
        assert_all_close((mean,), (z.mean((2, 3)),))


def test_block_tangents(dims: Any, make: Any) -> None:
    args = make(dims).of("block_tangent_backward")
    gp, gpdot, z, zdot, _, _, m1, m2, gamma, beta, gammadot, betadot, pool = args
    _, mean, rstd = ops.block_forward.reference(z, gamma, beta, 1e-5, pool)
    tangent = ops.block_tangent.reference(z, zdot, mean, rstd, gamma, beta, gammadot, betadot, pool)
    found = ops.block_tangent_backward.reference(gp, gpdot, z, zdot, mean, rstd, *tangent[1:], *args[8:])
    zero = z.new_zeros(dims.S, dims.Co)
    if gamma is None:
        primals, tangents, absent = (z,), (zdot,), (None, None)
    else:
        primals, tangents, absent = (z, gamma, beta), (zdot, gammadot, betadot), ()

    def fn(*given: Any) -> Any:
        return block(*given, *absent, pool)

    truth = jvp(fn, primals, tangents)[1]
    grads, dots = jvp(lambda gp, *a: vjp(fn, *a)[1](gp), (gp, *primals), (gpdot, *tangents))
    parameter_dots = dots[1:] if gamma is not None else (zero, zero)
    assert_all_close((tangent[0], *found), (truth, grads[0], dots[0], *parameter_dots))
    assert_all_close(tangent[1:], (m1, m2))


def _loss(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return students(lambda h, w, b, y: -(y * F.log_softmax(F.linear(h, w, b), 1)).sum(1).mean(), h, w, b, y)


def test_linear_ce(dims: Any, make: Any) -> None:
    h, w, b, y = make(dims).of("linear_ce")
    loss, back = vjp(lambda *a: _loss(*a, y), h, w, b)
    assert_all_close(ops.linear_ce.reference(h, w, b, y), (loss, *back(torch.ones_like(loss))))


def test_linear_ce_equals_cross_entropy_of_hard_labels(make: Any, odd: Any) -> None:
    h, w, b, y = make(odd).of("linear_ce")
    labels = y.argmax(2)
    truth = students(lambda h, w, b, t: F.cross_entropy(F.linear(h, w, b), t), h, w, b, labels)
    assert_all_close(ops.linear_ce.reference(h, w, b, F.one_hot(labels, y.shape[2]).to(y.dtype))[:1], (truth,))


def test_linear_ce_tangent(dims: Any, make: Any) -> None:
    h, hdot, w, wdot, b, bdot, y = make(dims).of("linear_ce_tangent")

    def step(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        loss, back = vjp(_loss, h, w, b, y)
        return loss, *back(torch.ones_like(loss))

    (_, gh, _, _, _), dots = jvp(step, (h, w, b), (hdot, wdot, bdot))
    loss_dot, ghdot, gwdot, gbdot, gydot = dots
    found = ops.linear_ce_tangent.reference(h, hdot, w, wdot, b, bdot, y)
    assert_all_close(found, (loss_dot, gh, ghdot, gwdot, gbdot, gydot))


def _bce(h: Tensor, w: Tensor, b: Tensor, y: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    def one(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(h, w, b)
        # PyTorch weighs the positive term by pos_weight and both by weight: pos = weight pos_weight, neg = weight
        loss = F.binary_cross_entropy_with_logits(logits, y, neg.expand_as(y), pos_weight=pos / neg, reduction="none")
        return loss.sum(1).mean()

    return students(one, h, w, b, y)


def test_linear_bce(dims: Any, make: Any) -> None:
    h, w, b, y, pos, neg = make(dims).of("linear_bce")
    loss, back = vjp(lambda *a: _bce(*a, y, pos, neg), h, w, b)
    assert_all_close(ops.linear_bce.reference(h, w, b, y, pos, neg), (loss, *back(torch.ones_like(loss))))


def test_linear_bce_tangent(dims: Any, make: Any) -> None:
    h, hdot, w, wdot, b, bdot, y, pos, neg = make(dims).of("linear_bce_tangent")

    def step(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        loss, back = vjp(lambda *a: _bce(*a, pos, neg), h, w, b, y)
        return loss, *back(torch.ones_like(loss))

    (_, gh, _, _, _), dots = jvp(step, (h, w, b), (hdot, wdot, bdot))
    loss_dot, ghdot, gwdot, gbdot, gydot = dots
    found = ops.linear_bce_tangent.reference(h, hdot, w, wdot, b, bdot, y, pos, neg)
    assert_all_close(found, (loss_dot, gh, ghdot, gwdot, gbdot, gydot))


def test_matching_loss(dims: Any, make: Any) -> None:
    theta, origin, end, frac, offsets, denom = make(dims).of("matching_loss")

    def loss(theta: Tensor) -> Tensor:
        total = torch.zeros_like(denom)
        for i in range(len(offsets) - 1):
            part = slice(int(offsets[i]), int(offsets[i + 1]))
            f = frac[:, i : i + 1]
            total = total + (theta[:, part] - torch.lerp(origin[:, part], end[:, part], f)).square().sum(1)
        return total / denom

    truth, back = vjp(loss, theta)
    assert_all_close(
        ops.matching_loss.reference(*make(dims).of("matching_loss")), (truth, *back(torch.ones_like(truth)))
    )


def test_sgd_step_is_torch_optim_sgd(dims: Any, make: Any) -> None:
    params, grad, buffer, lr, momentum, weight_decay = make(dims).of("sgd_step_")
    buffer = None if buffer is None else torch.zeros_like(buffer)
    truth = [p.clone().requires_grad_() for p in params]
    for p, g, rate in zip(truth, grad, lr.tolist(), strict=True):
        optimizer = torch.optim.SGD([p], lr=rate, momentum=momentum, weight_decay=weight_decay)
        for scale in (1.0, -0.5):
            p.grad = g * scale
            optimizer.step()
    for scale in (1.0, -0.5):
        ops.sgd_step_.reference(params, grad * scale, buffer, lr, momentum, weight_decay)
    assert_all_close((params,), (torch.stack(truth).detach(),))


def test_arc_length(dims: Any, make: Any) -> None:
    previous, current, offsets = make(dims).of("arc_length")
    truth = [(current - previous)[:, a:b].norm(dim=1) for a, b in itertools.pairwise(offsets)]
    assert_all_close((ops.arc_length.reference(previous, current, offsets),), (torch.stack(truth, 1),))


def _draws(batch: int, height: int, width: int) -> list[AugmentDraw]:
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(6, batch, generator=generator)
    return [
        AugmentDraw.none(batch),
        AugmentDraw.color(u[0] - 0.5, 2 * u[1], u[2] + 0.5),
        AugmentDraw.crop((u[0] * 5).floor() - 2, (u[1] * 5).floor() - 2),
        AugmentDraw.cutout((u[0] * height).floor(), (u[1] * width).floor(), (3, 4), (height, width)),
        AugmentDraw.flip(u[0] < 0.5),
        AugmentDraw.scale(u[0] * 0.4 + 0.8, u[1] * 0.4 + 0.8),
        AugmentDraw.rotate((u[0] - 0.5) * 0.6),
    ]


def test_dsa_is_the_augmentation_of_the_data_package() -> None:
    draws = _draws(4, 6, 9)
    x = torch.randn(7, 4, 3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kinds = torch.tensor([draw.table()[0] for draw in draws])
    params = torch.stack([draw.table()[1] for draw in draws])
    assert sorted(kinds.tolist()) == list(range(7))
    for s, draw in enumerate(draws):
        name = draw.kind
        torch.testing.assert_close(ops.dsa.reference(x, kinds, params)[s], draw.apply(x[s]), msg=name)
        torch.testing.assert_close(ops.dsa_transpose.reference(x, kinds, params)[s], draw.transpose(x[s]), msg=name)
