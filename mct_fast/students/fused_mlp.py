"""The MLP's step and its tangent: matrix products, with the task's loss on the operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.students.network import NORM_EPS, Tape
from mct_fast.tasks import Head


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


class FusedMLP:
    """Linear layers with ReLU between them, after a layer norm or none.

    The norm's formulas are those of the blocks, each row of features a plane: v = gamma xhat + beta,
    xhat = rstd (u - mean u), h' = max(v, 0).
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
