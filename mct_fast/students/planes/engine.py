"""One step of S students and its tangent, as launches.

Forward and backward take 13 launches for three blocks, the tangent of both 14; each block more takes 3 and 3. Nothing is read
from the device and nothing waits for it, so a whole match can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels.planes import first, head, plane, tiles
from mct_fast.run.errors import InputError
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.launches import Launches, blocks
from mct_fast.students.planes.memory import Parts, Precision, Step, TangentStep
from mct_fast.students.planes.parameters import Parameters, Weights
from mct_fast.students.planes.patches import Batch, Patches

EPS = 1e-5
"""PyTorch's default epsilon of the instance norm, which the reference ConvNet uses."""


@dataclass(frozen=True)
class Loss:
    """Softmax and cross-entropy, or with `binary` the sigmoids' with weights pos and neg ``(K,)`` of an output's two terms."""

    binary: bool
    pos: Tensor
    neg: Tensor
    targets: Callable[[Tensor, int, Tensor], Tensor]
    """Labels as targets, as `mct_fast.tasks.heads.Head.targets`."""


class Engine:
    """The sweeps over one network with a loss, in one precision, on one device."""

    def __init__(
        self, geometry: Geometry, loss: Loss, how: Precision, device: torch.device, *, chained: bool = False
    ) -> None:
        self.geometry, self.how, self.device = geometry, how, device
        self.parameters, self.patches = Parameters(geometry, how, device), Patches(geometry, how, device)
        self._loss = loss
        self._run = Launches(geometry, self.parameters.layout, how, device, chained=chained)

    def check_batch(self, batch: int) -> None:
        """Raises :class:`InputError` for more images of a student at once than the kernels number in 32 bits."""
        rows, columns = self.geometry.sides[1]
        each = (rows + 2) * (columns + 2) * self.how.halves * self.geometry.width
        if batch * each >= 1 << 31:
            raise InputError(
                f"batch: {batch} images of a network at once are more than a GPU's kernels take; give at most "
                f"{((1 << 31) - 1) // each}, by micro_batch, batch_syn or batch_train"
            )

    def targets(self, labels: Tensor) -> Tensor:
        """Labels ``(S, B)`` or ``(S, B, K)`` as targets ``(S, B, K)`` of the outputs."""
        return self._loss.targets(labels, self.geometry.outputs, torch.empty((), device=self.device)).float()

    def columns(self, batch: int) -> int:
        """Groups of channels by which `TangentStep.columns` comes for batches of that size."""
        return self.geometry.width // tiles.first(self.geometry.width, batch, self.how.halves).channels

    def forward(self, w: Weights, x: Batch, step: Step, students: int, batch: int) -> None:
        """Outputs of the students on their batches, and what the other sweeps read."""
        g = self.geometry
        t = tiles.first(g.width, batch, self.how.halves, forward=True)
        self._run.start(
            first.first_forward_kernel, (students * batch, g.width // t.channels),
            x.patches, x.sums, w.half, w.values, step.h[0], step.mean, step.rstd[0], step.px, batch, g.tiles,
            *g.sides[1], *self._run.places(0), EPS, **self._run.first_block(t),
        )  # fmt: skip
        for i in range(1, g.depth):
            t = tiles.convolution(g.width, g.pooled(i), batch)
            grid, constants = self._run.tiled(t, students * batch)
            self._run.start(
                plane.plane_forward_kernel, grid,
                step.h[i - 1], self._run.halves_of(w.half, i), w.values, step.xhat[i], step.rstd[i], step.h[i], batch,
                *g.sides[i + 1], *self._run.places(i), EPS, BORDER=int(i + 1 < g.depth), **constants,
            )  # fmt: skip
        self._run.outputs(step.h[-1], step.h[-1], w.values, w.values, step.out, students, batch, pair=False)

    def backward(
        self, w: Weights, x: Batch, y: Tensor, step: Step, arena: Tensor, students: int, batch: int,
        *, gradients: bool = True,
    ) -> None:  # fmt: skip
        """The loss and its gradients, as parts; without ``gradients`` only what the tangent reads of it."""
        g, parts = self.geometry, self.parameters.parts(students, batch)
        top = g.depth - 1
        self._run.start(
            head.loss_kernel, (students,),
            step.out, y, self._loss.pos, self._loss.neg, step.loss, step.gl, step.tau, arena[parts.at["b"] :],
            batch, g.outputs, g.outputs, **self._loss_constants(batch),
        )  # fmt: skip
        if gradients:
            with self._run.beside():
                self._run.head_weight(
                    step.gl, step.h[-1], step.gl, step.h[-1], arena, parts, students, batch, pair=False
                )
        grid, constants = self._run.tiled(tiles.top(g.width, g.pooled(top), batch), students * batch)
        self._run.start(
            head.top_backward_kernel, grid,
            step.gl, w.values, step.xhat[top], step.rstd[top], step.gz[top], step.gp[top],
            *self._run.norm_parts(arena, parts, top), step.gamma[top], step.beta[top], batch, g.features, g.outputs,
            *g.sides[-1], *self._run.head_places(), **constants,
        )  # fmt: skip
        for i in range(top, 0, -1):
            if gradients:
                h, gz = step.h[i - 1], step.gz[i]
                with self._run.beside():
                    self._run.weight_grad(i, h, gz, h, gz, arena, parts, students, batch, pair=False)
            if i > 1:
                t = tiles.transposed(g.width, g.pooled(i - 1), batch, self.how.halves, tangent=False)
                grid, constants = self._run.tiled(t, students * batch)
                self._run.start(
                    plane.plane_backward_kernel, grid,
                    step.gz[i], self._run.halves_of(w.half, i), w.values, step.xhat[i - 1], step.rstd[i - 1], step.gz[i - 1],
                    step.gp[i - 1], *self._run.norm_parts(arena, parts, i - 1), step.gamma[i - 1], step.beta[i - 1],
                    batch, *g.sides[i], *self._run.places(i - 1), **constants,
                )  # fmt: skip
        half = self._run.halves_of(w.half, 1)
        self._run.input_grad(step.gz[1], half, step.gz[1], half, step.gp[0], students, batch, pair=False)
        t = tiles.first(g.width, batch, self.how.halves)
        self._run.start(
            first.first_backward_kernel, (students * batch, g.width // t.channels),
            x.patches, x.sums, w.half, w.values, step.mean, step.rstd[0], step.px, step.gp[0],
            arena[parts.at["w0"] :], *self._run.norm_parts(arena, parts, 0), step.gamma[0], step.beta[0], batch, g.tiles,
            *g.sides[1], *self._run.places(0), **self._run.first_block(t),
        )  # fmt: skip
        if gradients:
            self._run.together()

    def tangent(
        self, w: Weights, dot: Weights, x: Batch, y: Tensor, step: Step, t: TangentStep, arena: Tensor,
        loss_dot: Tensor, gydot: Tensor, gx: Tensor, students: int, batch: int, *, curvature: bool,
    ) -> None:  # fmt: skip
        """The derivative of the step along ``dot``: the Hessian's product as parts (with ``curvature``), and by the images.

        loss_dot ``(S,)`` float64; gydot ``(S B, K)``; gx ``(S B, C, H, W)`` by the augmented images.
        """
        self._tangent_forward(w, dot, x, step, t, students, batch)
        g, parts = self.geometry, self.parameters.parts(students, batch)
        self._run.start(
            head.loss_tangent_kernel, (students,),
            step.out, t.out, y, self._loss.pos, self._loss.neg, step.gl, step.tau, loss_dot, t.gl, gydot,
            arena[parts.at["b"] :], batch, g.outputs, g.outputs, **self._loss_constants(batch),
        )  # fmt: skip
        self._tangent_backward(w, dot, x, step, t, arena, parts, students, batch, curvature=curvature)
        size = g.image_size[0] * g.image_size[1]
        block = min(128 if batch < tiles.FEW else 256, 1 << (size - 1).bit_length())
        self._run.start(
            first.columns_kernel, (students * batch, g.channels, blocks(size, block)),
            t.columns, step.tau, gx, batch, g.tiles, *g.sides[1], *g.image_size, t.columns.stride(0), BORDER=g.border,
            CHANNELS=g.channels, KP=g.window, PARTS=self.columns(batch), BLOCK=block,
        )  # fmt: skip

    def _tangent_forward(
        self, w: Weights, dot: Weights, x: Batch, step: Step, t: TangentStep, students: int, batch: int
    ) -> None:
        g = self.geometry
        f = tiles.first(g.width, batch, self.how.halves)
        self._run.start(
            first.first_tangent_kernel, (students * batch, g.width // f.channels),
            x.patches, x.sums, w.half, dot.half, w.values, dot.values, step.mean, step.rstd[0], step.px, t.h[0],
            t.zdot_mean, t.zdot_slope, batch, g.tiles, *g.sides[1], *self._run.places(0), **self._run.first_block(f),
        )  # fmt: skip
        for i in range(1, g.depth):
            block = tiles.convolution(g.width, g.pooled(i), batch)
            grid, constants = self._run.tiled(block, students * batch)
            self._run.start(
                plane.plane_tangent_kernel, grid,
                step.h[i - 1], t.h[i - 1], self._run.halves_of(w.half, i), self._run.halves_of(dot.half, i), w.values, dot.values,
                step.xhat[i], step.rstd[i], t.xhat[i], t.rstd[i], t.h[i], batch, *g.sides[i + 1], *self._run.places(i),
                BORDER=int(i + 1 < g.depth), **constants,
            )  # fmt: skip
        self._run.outputs(step.h[-1], t.h[-1], w.values, dot.values, t.out, students, batch, pair=True)

    def _tangent_backward(
        self, w: Weights, dot: Weights, x: Batch, step: Step, t: TangentStep, arena: Tensor, parts: Parts,
        students: int, batch: int, *, curvature: bool,
    ) -> None:  # fmt: skip
        g, top = self.geometry, self.geometry.depth - 1
        if curvature:
            with self._run.beside():
                self._run.head_weight(t.gl, step.h[-1], step.gl, t.h[-1], arena, parts, students, batch, pair=True)
        grid, constants = self._run.tiled(tiles.top(g.width, g.pooled(top), batch), students * batch)
        self._run.start(
            head.top_tangent_backward_kernel, grid,
            step.gl, t.gl, w.values, dot.values, step.xhat[top], step.rstd[top], t.xhat[top], t.rstd[top],
            step.gp[top], step.gamma[top], step.beta[top], t.gz[top], *self._run.norm_parts(arena, parts, top), batch,
            g.features, g.outputs, *g.sides[-1], *self._run.head_places(),
            **constants,
        )  # fmt: skip
        for i in range(top, 0, -1):
            if curvature:
                h, hdot, gz, gzdot = step.h[i - 1], t.h[i - 1], step.gz[i], t.gz[i]
                with self._run.beside():
                    self._run.weight_grad(i, h, gzdot, hdot, gz, arena, parts, students, batch, pair=True)
            if i > 1:
                back = tiles.transposed(g.width, g.pooled(i - 1), batch, self.how.halves, tangent=True)
                grid, constants = self._run.tiled(back, students * batch)
                self._run.start(
                    plane.plane_tangent_backward_kernel, grid,
                    step.gz[i], t.gz[i], self._run.halves_of(w.half, i), self._run.halves_of(dot.half, i), w.values, dot.values,
                    step.xhat[i - 1], step.rstd[i - 1], t.xhat[i - 1], t.rstd[i - 1], step.gp[i - 1],
                    step.gamma[i - 1], step.beta[i - 1], t.gz[i - 1], *self._run.norm_parts(arena, parts, i - 1), batch,
                    *g.sides[i], *self._run.places(i - 1), **constants,
                )  # fmt: skip
        self._run.input_grad(
            t.gz[1], self._run.halves_of(w.half, 1), step.gz[1], self._run.halves_of(dot.half, 1), t.gp, students, batch,
            pair=True,
        )  # fmt: skip
        f = tiles.first(g.width, batch, self.how.halves)
        self._run.start(
            first.first_tangent_backward_kernel, (students * batch, g.width // f.channels),
            x.patches, w.half, dot.half, w.values, dot.values, step.mean, step.rstd[0], t.zdot_mean, t.zdot_slope,
            step.gamma[0], step.beta[0], step.gp[0], t.gp, arena[parts.at["w0"] :],
            *self._run.norm_parts(arena, parts, 0), t.columns, batch, g.tiles, *g.sides[1], *self._run.places(0),
            t.columns.stride(0), **self._run.first_block(f),
        )  # fmt: skip
        if curvature:
            self._run.together()

    def _loss_constants(self, batch: int) -> dict[str, Any]:
        columns = 1 << (self.geometry.outputs - 1).bit_length()
        rows = max(1, min(1 << (batch - 1).bit_length(), 4096 // columns))
        return dict(BINARY=self._loss.binary, ROWS=rows, COLS=columns, num_warps=4 if batch < tiles.FEW else 8)
