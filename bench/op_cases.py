"""Every operator on the shapes of the reference ConvNet, beside what PyTorch offers for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vjp

from mct_fast import ops
from mct_fast.data import DSA
from mct_fast.models import ConvNet, FunctionalModel

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One operator on one shape.

    ``args`` are its arguments; ``pytorch`` does the same in PyTorch's own operators (channels_last for the convolutions and
    blocks, the faster layout there), and ``note`` says where it does more or less.  ``flops`` counts a direct
    convolution's operations, 0 where memory binds; ``moved`` the bytes of all arguments and results, once each.
    """

    op: str
    shape: str
    args: tuple[Any, ...]
    pytorch: Callable[[], object]
    flops: float = 0.0
    note: str = ""

    def run(self) -> object:
        return getattr(ops, self.op)(*self.args)

    @property
    def moved(self) -> int:
        results = [] if self.op == "sgd_step_" else _tensors(self.run())
        extra = 2 * self.args[0].nbytes if self.op == "sgd_step_" else 0  # parameters and buffer are written too
        return extra + sum(t.nbytes for t in (*_tensors(self.args), *results))

    def error(self) -> float:
        """The greatest relative error of a result against the operator's reference in float64."""
        wide: list[Any] = [a.double() if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in self.args]
        if self.op.startswith("dsa"):
            wide[2] = self.args[2]  # the table of parameters is float32 by definition
        if self.op == "sgd_step_":
            narrow: list[Any] = [a.clone() if isinstance(a, Tensor) else a for a in self.args]
            wide = [a.clone() if isinstance(a, Tensor) else a for a in wide]
            ops.sgd_step_(*narrow)
            ops.sgd_step_.reference(*wide)
            return max(_relative(n, w) for n, w in zip(_tensors(narrow)[:3:2], _tensors(wide)[:3:2], strict=True))
        wanted = _tensors(ops.OPERATORS[self.op].reference(*wide))
        least = 1e-6 * max(float(w.norm()) for w in wanted)  # below it are sums to zero, as a bias's before a norm
        pairs = zip(_tensors(self.run()), wanted, strict=True)
        return max(_relative(f, w) for f, w in pairs if float(w.norm()) > least)


def cases(students: int, batch: int, width: int = 128, image_size: int = 32, device: str = "cpu") -> Iterator[Case]:
    """All operators at ``students`` times ``batch`` images, layer by layer; built one at a time."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    side, channels = image_size, 3
    while side >= image_size // 4:
        yield from _convolutions(rand, (students, batch, side, side, channels), width)
        yield from _blocks(rand, (students, batch, side, side, width))
        if side == image_size:
            yield from _first_blocks(rand, (students, batch, side, side, channels), width)
        side, channels = side // 2, width
    yield from _classifier(rand, students, batch, width * side * side)
    yield from _flat(rand, students, width, image_size)
    yield from _augmentation(rand, students, batch, image_size)


Rand = Callable[..., Tensor]


def _convolutions(rand: Rand, shape: tuple[int, ...], width: int) -> Iterator[Case]:
    s, b, h, w, ci = shape
    x, x2, g, g2 = rand(*shape), rand(*shape), rand(s, b, h, w, width), rand(s, b, h, w, width)
    k, k2, bias = rand(s, width, ci, 3, 3) / 9, rand(s, width, ci, 3, 3) / 9, rand(s, width)
    text = f"{s}x{b}x{h}x{w}, {ci} to {width}"
    flops = 2.0 * s * b * h * w * ci * width * 9
    xs, x2s, gs, g2s = (_planes(t) for t in (x, x2, g, g2))
    ks, k2s = ([one.contiguous(memory_format=torch.channels_last) for one in t] for t in (k, k2))

    def backward(gs: Sequence[Tensor], xs: Sequence[Tensor], ks: Sequence[Tensor], mask: list[bool]) -> list[Any]:
        call = torch.ops.aten.convolution_backward
        return [
            call(g, x, k, [width], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
            for g, x, k in zip(gs, xs, ks, strict=True)
        ]

    def forward() -> list[Tensor]:
        return [F.conv2d(x, k, one, padding=1) for x, k, one in zip(xs, ks, bias, strict=True)]

    def forward_pair() -> list[Tensor]:
        second = zip(forward(), x2s, k2s, strict=True)
        return [z.add_(F.conv2d(x, k, padding=1)) for z, x, k in second]

    def input_grad_pair() -> list[Tensor]:
        first, second = (backward(a, xs, c, [True, False, False]) for a, c in ((gs, ks), (g2s, k2s)))
        return [one[0].add_(two[0]) for one, two in zip(first, second, strict=True)]

    def weight_grad_pair() -> list[Tensor]:
        first, second = (backward(a, c, ks, [False, True, True]) for a, c in ((gs, xs), (g2s, x2s)))
        return [one[1].add_(two[1]) for one, two in zip(first, second, strict=True)]

    yield Case("conv3x3", text, (x, k, bias), forward, flops)
    yield Case("conv3x3", text + ", pair", (x, k, bias, x2, k2), forward_pair, 2 * flops)
    yield Case("conv3x3_input_grad", text, (g, k), lambda: backward(gs, xs, ks, [True, False, False]), flops)
    yield Case("conv3x3_input_grad", text + ", pair", (g, k, g2, k2), input_grad_pair, 2 * flops)
    yield Case("conv3x3_weight_grad", text, (g, x), lambda: backward(gs, xs, ks, [False, True, True]), flops)
    yield Case("conv3x3_weight_grad", text + ", pair", (g, x, g2, x2), weight_grad_pair, 2 * flops)


def _blocks(rand: Rand, shape: tuple[int, ...]) -> Iterator[Case]:
    s, b, h, w, c = shape
    z, zdot = rand(*shape), rand(*shape)
    gamma, beta, gammadot, betadot = (rand(s, c) for _ in range(4))
    p, mean, rstd = ops.block_forward(z, gamma, beta, EPS, True)
    gp, gpdot = rand(*p.shape), rand(*p.shape)
    _, m1, m2 = ops.block_tangent(z, zdot, mean, rstd, gamma, beta, gammadot, betadot, True)
    text = f"{s}x{b}x{h}x{w}x{c}"
    points = list(zip(_planes(z), gamma, beta, strict=True))
    dots = list(zip(_planes(zdot), gammadot, betadot, strict=True))
    gps, gpdots = _planes(gp), _planes(gpdot)

    def block(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(F.group_norm(z, c, gamma, beta, EPS)), 2)

    def pull(z: Tensor, gamma: Tensor, beta: Tensor, g: Tensor) -> Any:
        return vjp(block, z, gamma, beta)[1](g)

    leaves = [tuple(t.detach().requires_grad_() for t in point) for point in points]
    ends = [block(*leaf) for leaf in leaves]

    def backward() -> list[Any]:
        return [
            torch.autograd.grad(end, leaf, g, retain_graph=True) for end, leaf, g in zip(ends, leaves, gps, strict=True)
        ]

    def tangent() -> list[Any]:
        return [jvp(block, point, dot) for point, dot in zip(points, dots, strict=True)]

    def tangent_backward() -> list[Any]:
        rows = zip(points, dots, gps, gpdots, strict=True)
        return [jvp(pull, (*point, g), (*dot, gdot)) for point, dot, g, gdot in rows]

    yield Case("block_forward", text, (z, gamma, beta, EPS, True), lambda: [block(*point) for point in points])
    yield Case("block_backward", text, (gp, z, mean, rstd, gamma, beta, True), backward)
    args = (z, zdot, mean, rstd, gamma, beta, gammadot, betadot, True)
    yield Case("block_tangent", text, args, tangent, note="PyTorch: jvp, with the value itself")
    args = (gp, gpdot, z, zdot, mean, rstd, m1, m2, gamma, beta, gammadot, betadot, True)
    yield Case(
        "block_tangent_backward", text, args, tangent_backward, note="PyTorch: jvp of vjp, with the value itself"
    )


def _first_blocks(rand: Rand, shape: tuple[int, ...], width: int) -> Iterator[Case]:
    """The first convolution with its block; the operations counted are those of convolutions whose results are needed."""
    s, b, h, w, ci = shape
    x = rand(*shape)
    layer, dot = ([rand(s, width, ci, 3, 3) / 9, *(rand(s, width) for _ in range(3))] for _ in range(2))
    forward: Any = ops.first_block  # their arguments come in lists here
    forward_dot: Any = ops.first_block_tangent
    p, mean, rstd = forward(x, *layer, EPS, True)
    pairs = [t for both in zip(layer, dot, strict=True) for t in both]
    pairs[4:] = [layer[2], layer[3], dot[2], dot[3]]
    _, m1, m2 = forward_dot(x, mean, rstd, *pairs, True)
    gp, gpdot = rand(*p.shape), rand(*p.shape)
    text, flops = f"{s}x{b}x{h}x{w}, {ci} to {width}", 2.0 * s * b * h * w * ci * width * 9
    points, dots = (list(zip(_planes(x), *each, strict=True)) for each in (layer, dot))
    zeros = [torch.zeros_like(point[0]) for point in points]
    gps, gpdots = _planes(gp), _planes(gpdot)

    def block(x: Tensor, w: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        z = F.conv2d(x, w, bias, padding=1)
        return F.avg_pool2d(F.relu(F.group_norm(z, width, gamma, beta, EPS)), 2)

    def pull(g: Tensor, *point: Tensor) -> Any:
        return vjp(block, *point)[1](g)

    leaves = [(point[0], *(t.detach().requires_grad_() for t in point[1:])) for point in points]
    ends = [block(*leaf) for leaf in leaves]

    def backward() -> list[Any]:
        rows = zip(ends, leaves, gps, strict=True)
        return [torch.autograd.grad(end, leaf[1:], g, retain_graph=True) for end, leaf, g in rows]

    def tangent() -> list[Any]:
        rows = zip(points, zeros, dots, strict=True)
        return [jvp(block, point, (zero, *dot[1:])) for point, zero, dot in rows]

    def tangent_backward() -> list[Any]:
        rows = zip(points, zeros, dots, gps, gpdots, strict=True)
        return [jvp(pull, (g, *point), (gdot, zero, *dot[1:])) for point, zero, dot, g, gdot in rows]

    args = (x, mean, rstd, *pairs, True)
    yield Case("first_block", text, (x, *layer, EPS, True), lambda: [block(*point) for point in points], flops)
    yield Case("first_block_backward", text, (gp, x, mean, rstd, *layer, True), backward, 2 * flops)
    yield Case("first_block_tangent", text, args, tangent, 2 * flops, note="PyTorch: jvp, with the value itself")
    args = (gp, gpdot, x, mean, rstd, m1, m2, *pairs, True)
    note = "PyTorch: jvp of vjp, with the value itself"
    yield Case("first_block_tangent_backward", text, args, tangent_backward, 5 * flops, note=note)


def _classifier(rand: Rand, s: int, b: int, features: int, classes: int = 10) -> Iterator[Case]:
    """The last layer with cross-entropy, and with binary cross-entropy of each output."""
    h, w, bias = rand(s, b, features), rand(s, classes, features) / features**0.5, rand(s, classes)
    dots = [rand(*t.shape) for t in (h, w, bias)]
    rows = torch.arange(s * b, device=h.device).view(s, b) % classes
    y = F.one_hot(rows, classes).float()
    weights = torch.full((2, classes), 1.0 / classes, device=h.device)
    text, flops = f"{s}x{b}x{features} to {classes}", 2.0 * s * b * features * classes
    points, directions = list(zip(h, w, bias, strict=True)), list(zip(*dots, strict=True))
    leaves = [tuple(t.detach().requires_grad_() for t in point) for point in points]
    losses = {"linear_ce": (F.cross_entropy, rows, ()), "linear_bce": (F.binary_cross_entropy_with_logits, y, weights)}
    for op, (criterion, labels, extra) in losses.items():

        def loss(h: Tensor, w: Tensor, bias: Tensor, row: Tensor, criterion: Any = criterion) -> Tensor:
            return criterion(F.linear(h, w, bias), row)

        def gradient(loss: Any = loss, labels: Tensor = labels) -> list[Any]:
            return [torch.autograd.grad(loss(*leaf, row), leaf) for leaf, row in zip(leaves, labels, strict=True)]

        def tangent(loss: Any = loss, labels: Tensor = labels) -> list[Any]:
            rows = zip(points, directions, labels, strict=True)
            of_three = grad(loss, argnums=(0, 1, 2))
            return [jvp(lambda *at, row=row: of_three(*at, row), point, dot) for point, dot, row in rows]

        yield Case(op, text, (h, w, bias, y, *extra), gradient, 3 * flops)
        pairs = (t for pair in zip((h, w, bias), dots, strict=True) for t in pair)
        note = "PyTorch: jvp of grad, with the value itself"
        yield Case(f"{op}_tangent", text, (*pairs, y, *extra), tangent, 8 * flops, note=note)


def _flat(rand: Rand, s: int, width: int, image_size: int) -> Iterator[Case]:
    model = FunctionalModel(ConvNet(width=width, image_size=image_size))
    count, sizes = model.num_params, [shape.numel() for shape in model.shapes]
    theta, origin, end = (rand(s, count) for _ in range(3))
    frac, denom = rand(s, len(sizes)).sigmoid(), rand(s) * 0 + float(count)
    offsets = torch.tensor(model.layer_offsets, device=theta.device)
    text = f"{s}x{count}"
    leaf = theta.clone().requires_grad_()

    def matching() -> Any:
        parts = zip(origin.split(sizes, 1), end.split(sizes, 1), frac.split(1, 1), strict=True)
        target = torch.cat([torch.lerp(a, b, f) for a, b, f in parts], 1)
        return torch.autograd.grad(((leaf - target).square().sum(1) / denom).sum(), leaf)

    def lengths() -> Tensor:
        return torch.stack([part.norm(dim=1) for part in (end - origin).split(sizes, 1)], 1)

    yield Case("matching_loss", text, (theta, origin, end, frac, offsets, denom), matching)
    own = torch.nn.Parameter(theta.clone())
    own.grad = origin.clone()
    optimizer = torch.optim.SGD([own], lr=1e-6, momentum=0.9, weight_decay=5e-4)
    args = (theta.clone(), origin, torch.zeros_like(theta), torch.full_like(denom, 1e-6), 0.9, 5e-4)
    yield Case("sgd_step_", text, args, optimizer.step)
    yield Case("arc_length", text, (origin, end, offsets), lengths, note="PyTorch: squares summed in float32")


def _augmentation(rand: Rand, s: int, b: int, side: int) -> Iterator[Case]:
    x = rand(s, b, 3, side, side)
    for kind in ("color", "crop", "scale", "rotate"):
        plan = DSA(kind).plan(s, 1, b, (3, side, side), torch.Generator().manual_seed(2))
        kinds, params = (t.to(x.device) for t in plan.table(0))
        for op in ("dsa", "dsa_transpose"):
            plain = ops.OPERATORS[op].reference
            args = (x, kinds, params)
            yield Case(op, f"{s}x{b}x3x{side}x{side}, {kind}", args, lambda plain=plain, args=args: plain(*args))


def _planes(x: Tensor) -> list[Tensor]:
    """Each student's (B, C, H, W), channels_last: a view."""
    return [one.permute(0, 3, 1, 2) for one in x]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for t in value if isinstance(t, Tensor)] if isinstance(value, (tuple, list)) else []


def _relative(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    norm = float(wanted.norm())
    error = float((found.double() - wanted).norm()) / (norm or 1.0)
    return error if error == error else float("inf")
