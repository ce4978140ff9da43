"""The ConvNet's step and its tangent on the operators; the block formulas stand in `mct_fast.ops`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast import ops
from mct_fast.run.errors import InputError
from mct_fast.students.network import NORM_EPS, Tape
from mct_fast.tasks import Head


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
class _Block:
    """Parameters of one block as (S, ...) views."""

    w: Tensor
    bias: Tensor
    gamma: Tensor | None
    beta: Tensor | None


class FusedConvNet:
    """The network of a :class:`ConvPlan`."""

    def __init__(self, plan: ConvPlan, head: Head) -> None:
        self._plan, self._head = plan, head

    def gradient(
        self, params: list[Tensor], x: Tensor, y: Tensor, keep: bool
    ) -> tuple[Tensor, list[Tensor], Tape | None]:
        blocks, w, b = self._blocks(params)
        first, pool = blocks[0], self._plan.pool
        images = self._nhwc(x)
        h, mean, rstd = ops.first_block(images, first.w, first.bias, first.gamma, first.beta, NORM_EPS, pool)
        saved: list[tuple[Tensor, ...]] = [(mean, rstd)]
        for block in blocks[1:]:
            z = ops.conv3x3(h, block.w, block.bias)
            p, mean, rstd = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, pool)
            saved.append((h, z, mean, rstd))
            h = p
        features = self._features(h)
        loss, gf, gw, gb = self._head.gradient(features, w, b, y)
        gp = self._unfeatures(gf, h)
        grads = [gb, gw]
        cotangents: list[Tensor] = []
        for i in reversed(range(1, self._plan.depth)):
            block, (x_in, z, mean, rstd) = blocks[i], saved[i]
            cotangents.append(gp)
            gz, ggamma, gbeta = ops.block_backward(gp, z, mean, rstd, block.gamma, block.beta, pool)
            gw, gb = ops.conv3x3_weight_grad(gz, x_in)
            grads += self._in_reverse(gw, gb, ggamma, gbeta)
            if not keep:
                saved.pop()
            gp = ops.conv3x3_input_grad(gz, block.w)
        cotangents.append(gp)
        mean, rstd = saved[0]
        grads += self._in_reverse(
            *ops.first_block_backward(gp, images, mean, rstd, first.w, first.bias, first.gamma, first.beta, pool)
        )
        tape = None
        if keep:
            kept = tuple((*entry, gp) for entry, gp in zip(saved, reversed(cotangents), strict=True))
            tape = Tape(kept, features)
        return loss, grads[::-1], tape

    def tangent(
        self, params: list[Tensor], dots: list[Tensor], x: Tensor, y: Tensor, tape: Tape | None
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        pool = self._plan.pool
        blocks, w, b = self._blocks(params)
        dotted, wdot, bdot = self._blocks(dots)
        first, dot = blocks[0], dotted[0]
        pairs = (first.w, dot.w, first.bias, dot.bias, first.gamma, first.beta, dot.gamma, dot.beta, pool)
        images = self._nhwc(x)
        if tape is None:
            h, mean, rstd = ops.first_block(images, first.w, first.bias, first.gamma, first.beta, NORM_EPS, pool)
        else:
            h, (mean, rstd, _) = tape.output(0), tape.saved[0]
        hdot, m1, m2 = ops.first_block_tangent(images, mean, rstd, *pairs)
        known = (mean, rstd, m1, m2)
        saved: list[tuple[Tensor, ...]] = []
        for i in range(1, len(blocks)):
            block, dot = blocks[i], dotted[i]
            if tape is None:
                z = ops.conv3x3(h, block.w, block.bias)
                p, mean, rstd = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, pool)
            else:
                p, (_, z, mean, rstd, _) = tape.output(i), tape.saved[i]
            zdot = ops.conv3x3(h, dot.w, dot.bias, hdot, block.w)
            pdot, m1, m2 = ops.block_tangent(z, zdot, mean, rstd, block.gamma, block.beta, dot.gamma, dot.beta, pool)
            saved.append((h, hdot, z, zdot, mean, rstd, m1, m2))
            h, hdot = p, pdot
        features = self._features(h) if tape is None else tape.top
        loss_dot, gf, gfdot, gwdot, gbdot, gydot = self._head.tangent(
            features, self._features(hdot), w, wdot, b, bdot, y
        )
        gp = self._unfeatures(gf, hdot)
        gpdot = self._unfeatures(gfdot, hdot)
        grads = [gbdot, gwdot]
        for i in reversed(range(1, len(blocks))):
            block, dot = blocks[i], dotted[i]
            h, hdot, z, zdot, mean, rstd, m1, m2 = saved.pop()
            gp = gp if tape is None else tape.saved[i][-1]
            gz, gzdot, ggamma, gbeta = ops.block_tangent_backward(
                gp, gpdot, z, zdot, mean, rstd, m1, m2, block.gamma, block.beta, dot.gamma, dot.beta, pool
            )
            gw, gb = ops.conv3x3_weight_grad(gzdot, h, gz, hdot)
            grads += self._in_reverse(gw, gb, ggamma, gbeta)
            gpdot = ops.conv3x3_input_grad(gzdot, block.w, gz, dot.w)
            if tape is None:
                gp = ops.conv3x3_input_grad(gz, block.w)
        gp = gp if tape is None else tape.saved[0][-1]
        gxdot, *found = ops.first_block_tangent_backward(gp, gpdot, images, *known, *pairs)
        grads += self._in_reverse(*found)
        return loss_dot, grads[::-1], self._nchw(gxdot), gydot

    def logits(self, params: list[Tensor], x: Tensor) -> Tensor:
        blocks, w, b = self._blocks(params)
        h, first, pool = self._nhwc(x), blocks[0], self._plan.pool
        h = ops.first_block(h, first.w, first.bias, first.gamma, first.beta, NORM_EPS, pool)[0]
        for block in blocks[1:]:
            z = ops.conv3x3(h, block.w, block.bias)
            h = ops.block_forward(z, block.gamma, block.beta, NORM_EPS, pool)[0]
        return torch.baddbmm(b.unsqueeze(1), self._features(h), w.transpose(1, 2))

    def _in_reverse(self, gw: Tensor, gb: Tensor, ggamma: Tensor, gbeta: Tensor) -> list[Tensor]:
        """A block's gradients, the last parameter first."""
        return [gbeta, ggamma, gb, gw] if self._plan.norm else [gb, gw]

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
