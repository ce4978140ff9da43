"""ConvNet and MLP students on the project's operators: S networks a call, without an autograd graph.

`FusedStudent` computes the step's gradient by one forward and one backward sweep, and its tangent by the same sweeps
over dual numbers (forward over reverse): activations of one step are all the memory it needs. Notation as in
`mct_fast.ops`: a trailing ``dot`` is a tangent, a leading ``g`` a cotangent. Sources: the chain rule; the block formulas
stand in `mct_fast.ops`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mct_fast import ops
from mct_fast.errors import InputError
from mct_fast.models import MLP, ConvNet, FunctionalModel
from mct_fast.student import GenericStudent, Student, Tangent
from mct_fast.tasks import Classification, Head, Task

NORM_EPS = 1e-5
"""PyTorch's default epsilon of the instance norm, which the reference ConvNet uses."""

_LOGITS_PIXELS = 1 << 18
"""Pixels (images x students x plane) that `logits` carries at once, which bounds its memory."""


@dataclass(frozen=True)
class ConvPlan:
    """The shape of a ConvNet: `depth` blocks of conv 3x3 -> norm -> ReLU -> 2x2 pool, then a linear layer."""

    depth: int
    width: int
    channels: int
    image_size: tuple[int, int]
    num_classes: int
    norm: bool
    pool: bool

    @property
    def border(self) -> int:
        """Zeros added on each side: one-channel 28-pixel images become 32 pixels wide, as in the reference."""
        return 2 if self.channels == 1 and self.image_size == (28, 28) else 0

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        rows, columns = (side + 2 * self.border >> (self.depth if self.pool else 0) for side in self.image_size)
        return self.width * rows * columns

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters, in the order of the flat vector."""
        shapes: list[tuple[int, ...]] = []
        for i in range(self.depth):
            shapes += [(self.width, self.width if i else self.channels, 3, 3), (self.width,)]
            shapes += [(self.width,), (self.width,)] if self.norm else []
        return (*shapes, (self.num_classes, self.features), (self.num_classes,))


@dataclass(frozen=True)
class MLPPlan:
    """The shape of an MLP: linear layers (inputs, ..., num_classes) with ReLU between them, after a layer norm or none."""

    sizes: tuple[int, ...]
    norm: bool = False

    @property
    def num_classes(self) -> int:
        return self.sizes[-1]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters, in the order of the flat vector."""
        shapes: list[tuple[int, ...]] = []
        for i, o in zip(self.sizes, self.sizes[1:], strict=False):
            shapes += [(o, i), (o,)]
            shapes += [(o,), (o,)] if self.norm and len(shapes) < self._each * (len(self.sizes) - 2) else []
        return tuple(shapes)

    @property
    def _each(self) -> int:
        return 4 if self.norm else 2


@dataclass(frozen=True)
class _Block:
    """Parameters of one block as (S, ...) views."""

    w: Tensor
    bias: Tensor
    gamma: Tensor | None
    beta: Tensor | None


@dataclass(frozen=True)
class Tape:
    """What `FusedStudent.gradient_keeping` leaves for the tangent of the same step: activations and their cotangents.

    Holding it saves 2 of the 11 convolution passes of a gradient with its tangent. `nbytes` is its size.
    """

    saved: tuple[tuple[Any, ...], ...]
    """Tensors of each layer; None where a lighter tape leaves one out."""
    top: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for entry in (*self.saved, (self.top,)) for t in entry if t is not None)

    def lighter(self) -> Tape | None:
        """The tape without what is large and soon computed again, or None where there is no such thing."""
        return None


class _ConvTape(Tape):
    """Of each block its input, the convolution's output, its statistics, and the cotangent of the block's output.

    The first block has few channels and the largest planes: at CIFAR's shape its activations are two thirds of the bytes and
    a fifth of the time that a tape saves.
    """

    def lighter(self) -> _ConvTape | None:
        if len(self.saved) < 2:
            return None
        (*_, cotangent), (_, *second), *rest = self.saved
        return _ConvTape(((None, None, None, None, cotangent), (None, *second), *rest), self.top)


@contextmanager
def _kernels_only() -> Iterator[None]:
    """No graph, and none of the dispatcher's autograd layer either: it costs more than the small kernels."""
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


def plan_of(model: nn.Module | FunctionalModel) -> ConvPlan | MLPPlan | str:
    """The plan of a supported model; else the reason, in words, why `FusedStudent` cannot take it."""
    module = model.module if isinstance(model, FunctionalModel) else model
    if type(module) is MLP:
        if module.activation != "relu":
            return f"MLP with activation={module.activation!r}: the operators have ReLU only"
        if module.norm not in ("layer", "none"):
            return f"MLP with norm={module.norm!r}: the operators have layer norm or none"
        weights = [p for p in module.parameters() if p.dim() == 2]
        return MLPPlan((weights[0].shape[1], *(w.shape[0] for w in weights)), norm=module.norm == "layer")
    if type(module) is not ConvNet:
        return f"{type(module).__name__} is neither ConvNet nor MLP of mct_fast.models"
    if module.activation != "relu":
        return f"ConvNet with activation={module.activation!r}: the operators have ReLU only"
    if module.norm not in ("instance", "none"):
        return f"ConvNet with norm={module.norm!r}: the operators have instance norm or none"
    if module.pooling not in ("avg", "none"):
        return f"ConvNet with pooling={module.pooling!r}: the operators have average pooling or none"
    size = module.image_size
    return ConvPlan(
        depth=module.depth,
        width=module.width,
        channels=module.channels,
        image_size=(size, size) if isinstance(size, int) else size,
        num_classes=module.num_classes,
        norm=module.norm == "instance",
        pool=module.pooling == "avg",
    )


def supports(model: nn.Module | FunctionalModel) -> str | None:
    """None where `FusedStudent` takes `model`, else the reason why it does not."""
    plan = plan_of(model)
    return plan if isinstance(plan, str) else None


class FusedStudent:
    """The `mct_fast.student.Student` of a ConvNet or MLP on `mct_fast.ops`, with the loss of `task` (cross-entropy).

    Takes the model (for its shape only), or a plan. Images are (S, b, C, H, W), an MLP's any (S, b, ...); labels int64
    (S, b) or floating (S, b, k), as the task has them; parameters (S, P) in the order of ``model.parameters()``; float32
    or float64. Raises InputError for a model that the operators do not cover; `supports` tells without raising.
    """

    def __init__(self, model: nn.Module | FunctionalModel | ConvPlan | MLPPlan, task: Task | None = None) -> None:
        plan = model if isinstance(model, ConvPlan | MLPPlan) else plan_of(model)
        if isinstance(plan, str):
            raise InputError(f"model: {plan}; use GenericStudent")
        self.plan = plan
        head = (task or Classification()).head()
        if head is None:
            raise InputError("task: has no loss on the operators; use GenericStudent")
        self._head = head
        self._net: _Net = _ConvNet(plan, self._head) if isinstance(plan, ConvPlan) else _MLP(plan, self._head)
        sizes = [math.prod(shape) for shape in plan.shapes]
        offsets = [0, *itertools.accumulate(sizes)]
        self._num_params = offsets[-1]
        # where each parameter lies in the flat vector: offset, shape, strides
        self._layout = [
            (offset, shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))))
            for offset, shape in zip(offsets, plan.shapes, strict=False)
        ]

    @property
    def num_params(self) -> int:
        """P, the length of the flat parameter vector."""
        return self._num_params

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (S,), its gradient (S, P)) at `params` on the batches `x`, `y`."""
        loss, grad, _ = self._gradient(params, x, y, keep=False)
        return loss, grad

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tape]:
        """`gradient`, and the tape that spares `gradient_tangent` of the same arguments the recomputation."""
        loss, grad, tape = self._gradient(params, x, y, keep=True)
        assert tape is not None
        return loss, grad, tape

    def gradient_tangent(
        self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Tape | None = None
    ) -> Tangent:
        """Derivative at 0 of (loss, gradient, gradient by the images and labels) at params + eps tangent."""
        with _kernels_only():
            soft = y.is_floating_point()
            loss_dot, hvp, gxdot, gydot = self._net.tangent(
                self._views(params, "params"), self._views(tangent, "tangent"), x, self._targets(x, y), tape
            )
            return Tangent(loss_dot, self._flat(hvp), gxdot, gydot.view(y.shape) if soft else None)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        """Outputs (S, n, k) of all networks on the same images (n, C, H, W)."""
        with _kernels_only():
            views = self._views(params, "params")
            students = params.shape[0]
            chunk = max(1, _LOGITS_PIXELS // (students * math.prod(x.shape[2:])))
            parts = [
                self._net.logits(views, part.unsqueeze(0).expand(students, *part.shape)) for part in x.split(chunk)
            ]
            return torch.cat(parts, dim=1)

    def _gradient(self, params: Tensor, x: Tensor, y: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tape | None]:
        with _kernels_only():
            loss, grads, tape = self._net.gradient(self._views(params, "params"), x, self._targets(x, y), keep)
            return loss, self._flat(grads), tape

    def _views(self, params: Tensor, name: str) -> list[Tensor]:
        if params.dim() != 2 or params.shape[1] != self._num_params:
            raise InputError(f"{name}: shape {tuple(params.shape)}, expected (S, {self._num_params})")
        if params.stride(1) != 1:
            params = params.contiguous()
        step, start = params.stride(0), params.storage_offset()
        return [
            params.as_strided((params.shape[0], *shape), (step, *strides), start + offset)
            for offset, shape, strides in self._layout
        ]

    @staticmethod
    def _flat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _targets(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels as (S, b, k) targets of the outputs, of the images' dtype."""
        return self._head.targets(y, self.plan.num_classes, x)


class _Net(Protocol):
    """A network on the operators; parameters come as a list of (S, ...) views in the order of the flat vector."""

    def gradient(
        self, params: list[Tensor], x: Tensor, y: Tensor, keep: bool
    ) -> tuple[Tensor, list[Tensor], Tape | None]: ...

    def tangent(
        self, params: list[Tensor], dots: list[Tensor], x: Tensor, y: Tensor, tape: Tape | None
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]: ...

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor: ...


class _ConvNet:
    def __init__(self, plan: ConvPlan, head: Head) -> None:
        self._plan, self._head = plan, head

    def gradient(
        self, params: list[Tensor], x: Tensor, y: Tensor, keep: bool
    ) -> tuple[Tensor, list[Tensor], Tape | None]:
        blocks, w, b = self._blocks(params)
        saved: list[tuple[Tensor, ...]] = []
        h = self._nhwc(x)
        for block in blocks:
            z = ops.conv3x3(h, block.w, block.bias)
            p, mean, rstd = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, self._plan.pool)
            saved.append((h, z, mean, rstd))
            h = p
        features = self._features(h)
        loss, gf, gw, gb = self._head.gradient(features, w, b, y)
        gp = self._unfeatures(gf, h)
        grads = [gb, gw]
        cotangents: list[Tensor] = []
        for i in reversed(range(self._plan.depth)):
            block, (x_in, z, mean, rstd) = blocks[i], saved[i]
            cotangents.append(gp)
            gz, ggamma, gbeta = ops.block_backward(gp, z, mean, rstd, block.gamma, block.beta, self._plan.pool)
            gw, gb = ops.conv3x3_weight_grad(gz, x_in)
            grads += [gbeta, ggamma, gb, gw] if self._plan.norm else [gb, gw]
            if not keep:
                saved.pop()
            if i:
                gp = ops.conv3x3_input_grad(gz, block.w)
        tape = None
        if keep:
            kept = tuple((*entry, gp) for entry, gp in zip(saved, reversed(cotangents), strict=True))
            tape = _ConvTape(kept, features)
        return loss, grads[::-1], tape

    def tangent(
        self, params: list[Tensor], dots: list[Tensor], x: Tensor, y: Tensor, tape: Tape | None
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        pool = self._plan.pool
        blocks, w, b = self._blocks(params)
        dotted, wdot, bdot = self._blocks(dots)
        nothing: tuple[Any, ...] = (None,) * 5
        kept = (nothing,) * len(blocks) if tape is None else tape.saved
        h: Tensor = self._nhwc(x) if kept[0][0] is None else kept[0][0]
        hdot: Tensor | None = None
        saved: list[tuple[Any, ...]] = []
        for i, (block, dot) in enumerate(zip(blocks, dotted, strict=True)):
            _, z, mean, rstd, _ = kept[i]
            if tape is None or z is None:
                z = ops.conv3x3(h, block.w, block.bias)
                p, mean, rstd = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, pool)
            else:
                p = kept[i + 1][0] if i + 1 < len(blocks) else tape.top
            zdot = ops.conv3x3(h, dot.w, dot.bias, hdot, None if hdot is None else block.w)
            pdot, m1, m2 = ops.block_tangent(z, zdot, mean, rstd, block.gamma, block.beta, dot.gamma, dot.beta, pool)
            saved.append((h, hdot, z, zdot, mean, rstd, m1, m2))
            h, hdot = p, pdot
        assert hdot is not None
        features = self._features(h) if tape is None else tape.top
        loss_dot, gf, gfdot, gwdot, gbdot, gydot = self._head.tangent(
            features, self._features(hdot), w, wdot, b, bdot, y
        )
        gp = self._unfeatures(gf, hdot) if tape is None else None
        gpdot = self._unfeatures(gfdot, hdot)
        grads = [gbdot, gwdot]
        for i in reversed(range(self._plan.depth)):
            block, dot = blocks[i], dotted[i]
            h, hdot, z, zdot, mean, rstd, m1, m2 = saved.pop()
            if tape is not None:
                gp = kept[i][4]
            assert gp is not None
            gz, gzdot, ggamma, gbeta = ops.block_tangent_backward(
                gp, gpdot, z, zdot, mean, rstd, m1, m2, block.gamma, block.beta, dot.gamma, dot.beta, pool
            )
            gw, gb = ops.conv3x3_weight_grad(gzdot, h, None if hdot is None else gz, hdot)
            grads += [gbeta, ggamma, gb, gw] if self._plan.norm else [gb, gw]
            gpdot = ops.conv3x3_input_grad(gzdot, block.w, gz, dot.w)
            if i and tape is None:
                gp = ops.conv3x3_input_grad(gz, block.w)
        return loss_dot, grads[::-1], self._nchw(gpdot), gydot

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor:
        blocks, w, b = self._blocks(params)
        h = self._nhwc(x)
        for block in blocks:
            z = ops.conv3x3(h, block.w, block.bias)
            h = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, self._plan.pool)[0]
        return torch.baddbmm(b.unsqueeze(1), self._features(h), w.transpose(1, 2))

    def _blocks(self, params: list[Tensor]) -> tuple[list[_Block], Tensor, Tensor]:
        each = 4 if self._plan.norm else 2
        rows = [params[i : i + each] for i in range(0, each * self._plan.depth, each)]
        blocks = [_Block(row[0], row[1], *(row[2:] or (None, None))) for row in rows]
        return blocks, params[-2], params[-1]

    def _nhwc(self, x: Tensor) -> Tensor:
        plan = self._plan
        if tuple(x.shape[2:]) != (plan.channels, *plan.image_size):
            raise InputError(f"x: images of shape {tuple(x.shape[2:])}, expected {(plan.channels, *plan.image_size)}")
        if plan.border:
            x = F.pad(x, (plan.border,) * 4)
        return x.permute(0, 1, 3, 4, 2).contiguous()

    def _nchw(self, x: Tensor) -> Tensor:
        k = self._plan.border
        if k:
            x = x[:, :, k:-k, k:-k]
        return x.permute(0, 1, 4, 2, 3).contiguous()

    @staticmethod
    def _features(h: Tensor) -> Tensor:
        """(S, b, H, W, C) to the classifier's (S, b, C*H*W)."""
        return h.permute(0, 1, 4, 2, 3).flatten(2).contiguous()

    @staticmethod
    def _unfeatures(g: Tensor, like: Tensor) -> Tensor:
        s, b, h, w, c = like.shape
        return g.view(s, b, c, h, w).permute(0, 1, 3, 4, 2).contiguous()


@dataclass(frozen=True)
class _Layer:
    """One hidden layer of an MLP and what its forward pass leaves: input h, output `out`, and with a norm xhat and rstd."""

    w: Tensor
    b: Tensor
    gamma: Tensor | None
    h: Tensor
    out: Tensor
    xhat: Tensor | None
    rstd: Tensor | None

    @property
    def kept(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.h, self.out, self.xhat, self.rstd) if t is not None)


class _MLP:
    """Linear layers with ReLU between them, after a layer norm or none; the norm's formulas are those of the blocks, each

    row of features a plane: v = gamma xhat + beta, xhat = rstd (u - mean u), h' = max(v, 0).
    """

    def __init__(self, plan: MLPPlan, head: Head) -> None:
        self._plan, self._head = plan, head

    def gradient(
        self, params: list[Tensor], x: Tensor, y: Tensor, keep: bool
    ) -> tuple[Tensor, list[Tensor], Tape | None]:
        layers, top = self._forward(params, x)
        loss, gh, gw, gb = self._head.gradient(top, params[-2], params[-1], y)
        grads = [gb, gw]
        for i, layer in reversed(list(enumerate(layers))):
            gu = gh * (layer.out > 0)
            if layer.gamma is not None:
                assert layer.xhat is not None and layer.rstd is not None
                grads += [gu.sum(1), (gu * layer.xhat).sum(1)]
                gu = layer.rstd * _centred(layer.gamma * gu, layer.xhat)
            grads += [gu.sum(1), torch.bmm(gu.transpose(1, 2), layer.h)]
            if i:
                gh = torch.bmm(gu, layer.w)
        return loss, grads[::-1], Tape(tuple(layer.kept for layer in layers), top) if keep else None

    def tangent(
        self, params: list[Tensor], dots: list[Tensor], x: Tensor, y: Tensor, tape: Tape | None
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        layers, top = self._forward(params, x) if tape is None else (self._of_tape(params, tape), tape.top)
        rows, hdot = self._rows(dots), None
        hdots: list[Tensor | None] = []
        xhatdots: list[Tensor | None] = []
        rdots: list[Tensor | None] = []
        for layer, (wdot, bdot, gammadot, betadot) in zip(layers, rows, strict=True):
            hdots.append(hdot)
            udot = torch.baddbmm(bdot.unsqueeze(1), layer.h, wdot.transpose(1, 2))
            if hdot is not None:
                udot.baddbmm_(hdot, layer.w.transpose(1, 2))
            xhatdot = rdot = None
            if layer.gamma is not None:
                assert layer.xhat is not None and layer.rstd is not None
                xhatdot = layer.rstd * _centred(udot, layer.xhat)
                rdot = -layer.rstd.square() * (layer.xhat * udot).mean(2, keepdim=True)
                udot = gammadot.unsqueeze(1) * layer.xhat + layer.gamma * xhatdot + betadot.unsqueeze(1)
            xhatdots.append(xhatdot)
            rdots.append(rdot)
            hdot = udot * (layer.out > 0)
        if hdot is None:
            hdot = torch.zeros_like(top)
        loss_dot, gh, ghdot, gwdot, gbdot, gydot = self._head.tangent(
            top, hdot, params[-2], dots[-2], params[-1], dots[-1], y
        )
        grads = [gbdot, gwdot]
        for layer, (wdot, _, gammadot, _), hdot, xhatdot, rdot in reversed(
            list(zip(layers, rows, hdots, xhatdots, rdots, strict=True))
        ):
            mask = layer.out > 0
            gu, gudot = gh * mask, ghdot * mask
            if layer.gamma is not None:
                xhat, rstd = layer.xhat, layer.rstd
                assert xhat is not None and rstd is not None and xhatdot is not None and rdot is not None
                grads += [gudot.sum(1), (gudot * xhat + gu * xhatdot).sum(1)]
                q = layer.gamma * gu
                qdot = layer.gamma * gudot + gammadot.unsqueeze(1) * gu
                inner = _centred(q, xhat)
                innerdot = (
                    qdot
                    - qdot.mean(2, keepdim=True)
                    - xhatdot * (q * xhat).mean(2, keepdim=True)
                    - xhat * (qdot * xhat + q * xhatdot).mean(2, keepdim=True)
                )
                gu, gudot = rstd * inner, rdot * inner + rstd * innerdot
            gw = torch.bmm(gudot.transpose(1, 2), layer.h)
            if hdot is not None:
                gw.baddbmm_(gu.transpose(1, 2), hdot)
            grads += [gudot.sum(1), gw]
            gh = torch.bmm(gu, layer.w)
            ghdot = torch.bmm(gudot, layer.w).baddbmm_(gu, wdot)
        return loss_dot, grads[::-1], ghdot.view(x.shape), gydot

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor:
        return torch.baddbmm(params[-1].unsqueeze(1), self._forward(params, x)[1], params[-2].transpose(1, 2))

    def _rows(self, params: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(weight, bias, gamma, beta) of each hidden layer; without a norm the last two are the first two again."""
        each = 4 if self._plan.norm else 2
        rows = [params[i : i + each] for i in range(0, len(params) - 2, each)]
        return [(row[0], row[1], row[-2], row[-1]) for row in rows]

    def _forward(self, params: list[Tensor], x: Tensor) -> tuple[list[_Layer], Tensor]:
        """The hidden layers, and the input (S, b, features) of the last linear layer."""
        if x[0, 0].numel() != self._plan.sizes[0]:
            raise InputError(f"x: shape {tuple(x.shape)}, expected {self._plan.sizes[0]} numbers an image")
        h, layers = x.flatten(2).contiguous(), []
        for w, b, gamma, beta in self._rows(params):
            u = torch.baddbmm(b.unsqueeze(1), h, w.transpose(1, 2))
            scale = xhat = rstd = None
            if self._plan.norm:
                u = u - u.mean(2, keepdim=True)
                rstd = (u.square().mean(2, keepdim=True) + NORM_EPS).rsqrt()
                xhat, scale = u * rstd, gamma.unsqueeze(1)
                u = scale * xhat + beta.unsqueeze(1)
            out = u.clamp_min_(0)
            layers.append(_Layer(w, b, scale, h, out, xhat, rstd))
            h = out
        return layers, h

    def _of_tape(self, params: list[Tensor], tape: Tape) -> list[_Layer]:
        layers = []
        for (w, b, gamma, _), (h, out, *norm) in zip(self._rows(params), tape.saved, strict=True):
            xhat, rstd = norm or (None, None)
            layers.append(_Layer(w, b, gamma.unsqueeze(1) if norm else None, h, out, xhat, rstd))
        return layers


def _centred(q: Tensor, xhat: Tensor) -> Tensor:
    """q - mean q - xhat mean(q xhat) over the features."""
    return q - q.mean(2, keepdim=True) - xhat * (q * xhat).mean(2, keepdim=True)


def student_for(model: nn.Module | FunctionalModel, task: Task | None = None) -> Student:
    """The fastest student that computes the step of ``model`` exactly: this module's where it can, else autograd's."""
    functional = model if isinstance(model, FunctionalModel) else FunctionalModel(model)
    task = task or Classification()
    if ops.kernels_available() and task.head() is not None and supports(functional) is None:
        return FusedStudent(functional, task)
    return GenericStudent(functional, task)
