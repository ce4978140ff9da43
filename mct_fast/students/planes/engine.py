"""One step of S students and its tangent, as launches.

Forward and backward take 13 launches for three blocks, the tangent of both 14; each block more takes 3 and 3. Nothing is read
from the device and nothing waits for it, so a whole match can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels.planes import first, head, params, plane, tiles, weight
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.layout import BLOCK, Layout
from mct_fast.students.planes.memory import Parts, Precision, Step, TangentStep

EPS = 1e-5
"""PyTorch's default epsilon of the instance norm, which the reference ConvNet uses."""

PARTS_AT_ONCE = 8


@dataclass(frozen=True)
class Loss:
    """Softmax and cross-entropy, or with `binary` the sigmoids' with weights pos and neg ``(K,)`` of an output's two terms."""

    binary: bool
    pos: Tensor
    neg: Tensor
    targets: Callable[[Tensor, int, Tensor], Tensor]
    """Labels as targets, as `mct_fast.tasks.heads.Head.targets`."""


@dataclass(frozen=True)
class Weights:
    """Parameters in the kernels' order: ``values (S, size)`` float32, ``half (S, halves * size)``."""

    values: Tensor
    half: Tensor


@dataclass(frozen=True)
class Batch:
    """Images as the first block reads them: patches, and sums ``(S B, KP)`` of an image's windows."""

    patches: Tensor
    sums: Tensor


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    kernel[grid](*args, **constants)


def power_of_two(vectors: Tensor) -> Tensor:
    """For each row the power of two that brings its largest number to [1, 2); 1 where there is none."""
    largest = vectors.abs().amax(1)
    usable = (largest > 1e-30) & (largest < 1e30)
    return torch.where(usable, torch.exp2(-torch.floor(torch.log2(largest))), torch.ones_like(largest))


class Engine:
    """The launches for one network, loss and precision, on one device. Holds no state but tables of where things lie."""

    def __init__(
        self, geometry: Geometry, loss: Loss, how: Precision, device: torch.device, *, chained: bool = False
    ) -> None:
        self.geometry, self.how, self.device = geometry, how, device
        self.layout = Layout(geometry)
        self._loss = loss
        self._index = self.layout.index.to(device)
        self._inverse, self._layers = self.layout.inverse.to(device), self.layout.layers.to(device)
        self._parts: dict[tuple[int, int], Parts] = {}
        self._chained = chained
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def _start(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """A launch that needs what the one before it on this stream wrote, and nothing else's."""
        how = {"launch_pdl": True} if self._chained else {}
        _launch(kernel, grid, *args, PDL=self._chained, **constants, **how)

    # ---- parameters ----

    def weights(self, students: int) -> Weights:
        """Room for parameters."""
        size = self.layout.size
        return Weights(
            torch.empty(students, size, device=self.device),
            torch.empty(students, self.how.halves * size, dtype=self.how.half, device=self.device),
        )

    def pack(self, vector: Tensor, into: Weights, scale: Tensor | None = None) -> None:
        """``vector (S, P)`` in the model's order, times ``scale (S,)``."""
        self._permute(vector, self._index, into.values, into.half, scale)

    def pack_point(self, origin: Tensor, end: Tensor, weights: Tensor, into: Weights) -> None:
        """``weights[0] origin + weights[1] end`` of models ``(S, P)``; weights ``(2, S, L)`` of L tensors, or of all as one."""
        students, size = into.values.shape
        count = weights.shape[2]
        layers = self._layers if count > 1 else torch.zeros_like(self._layers)
        _launch(
            params.point_kernel, (_blocks(size, BLOCK), students),
            origin, end, weights, self._index, layers, into.values, into.half, origin.shape[1], size, students, count,
            C=self.geometry.width, HALVES=self.how.halves,
        )  # fmt: skip

    def unpack(self, values: Tensor) -> Tensor:
        """``(S, size)`` back in the model's order, ``(S, P)``."""
        out = torch.empty(values.shape[0], self.layout.num_params, device=self.device)
        self._permute(values, self._inverse, out, None, None)
        return out

    def _permute(self, source: Tensor, index: Tensor, out: Tensor, half: Tensor | None, scale: Tensor | None) -> None:
        students, size = out.shape
        _launch(
            params.permute_kernel, (_blocks(size, BLOCK), students),
            source, index, out, out if half is None else half, source.shape[1], size, out if scale is None else scale,
            C=self.geometry.width, HALVES=self.how.halves, HALF=half is not None, SCALE=scale is not None,
        )  # fmt: skip

    def parts(self, students: int, batch: int) -> Parts:
        """How partial sums lie for batches of that size."""
        key = students, batch
        if key not in self._parts:
            counts = {}
            for name in self.layout.segments:
                kind, block = name.rstrip("0123456789"), name.lstrip("abegimstw")
                counts[name] = {"bias": 0, "gamma": batch, "beta": batch, "b": 1, "w": 1}[kind]
                if kind == "w" and block:
                    counts[name] = batch if block == "0" else self._splits(int(block), batch)
            self._parts[key] = Parts.of(self.layout, students, counts, self.device)
        return self._parts[key]

    def arena(self, students: int, sizes: Iterable[int]) -> Tensor:
        """Room for the partial sums of batches of these sizes."""
        return torch.empty(max(self.parts(students, size).size for size in set(sizes)), device=self.device)

    def update(self, before: Tensor, arena: Tensor, parts: Parts, alpha: Tensor, tau: Tensor, after: Weights) -> None:
        """after = before - alpha ``(S,)`` g, with its halves; g from the parts, over tau."""
        self._update(before, arena, parts, alpha, tau, after.values, after.half, gradient=False)

    def gradient(self, arena: Tensor, parts: Parts, tau: Tensor, students: int) -> Tensor:
        """The gradient ``(S, P)`` in the model's order, from the parts, over tau."""
        out = torch.empty(students, self.layout.size, device=self.device)
        self._update(out, arena, parts, tau, tau, out, out, gradient=True)
        return self.unpack(out)

    def _update(
        self, before: Tensor, arena: Tensor, parts: Parts, alpha: Tensor, tau: Tensor, after: Tensor, half: Tensor,
        *, gradient: bool,
    ) -> None:  # fmt: skip
        students, size = after.shape
        _launch(
            params.update_kernel, (size // BLOCK, students),
            before, arena, parts.table, alpha, tau, after, half, size,
            C=self.geometry.width, HALVES=self.how.halves, PARTS=PARTS_AT_ONCE, GRADIENT=gradient,
        )  # fmt: skip

    # ---- images and labels ----

    @property
    def patch_bytes(self) -> int:
        """Bytes of an image's patches."""
        g = self.geometry
        return g.tiles * 256 * g.window * self.how.halves * self.how.half.itemsize

    def targets(self, labels: Tensor) -> Tensor:
        """Labels ``(S, B)`` or ``(S, B, K)`` as targets ``(S, B, K)`` of the outputs."""
        return self._loss.targets(labels, self.geometry.outputs, torch.empty((), device=self.device)).float()

    def columns(self, batch: int) -> int:
        """Groups of channels by which `TangentStep.columns` comes for batches of that size."""
        return self.geometry.width // tiles.first(self.geometry.width, batch, self.how.halves).channels

    def batch(self, images: int) -> Batch:
        """Room for patches."""
        g = self.geometry
        return Batch(
            torch.empty(images, g.tiles * 256, self.how.halves * g.window, dtype=self.how.half, device=self.device),
            torch.empty(images, g.window, device=self.device),
        )

    def patch(self, x: Tensor, into: Batch) -> None:
        """The patches of augmented images ``x (images, C, H, W)``, contiguous."""
        g = self.geometry
        ph, pw = g.sides[1]
        _launch(
            first.patches_kernel, (x.shape[0],),
            x, into.patches, into.sums, g.tiles, ph, pw, *g.image_size, BORDER=g.border, CHANNELS=g.channels,
            KP=g.window, HALVES=self.how.halves,
        )  # fmt: skip

    def add_gradients(self, steps: Tensor, position: Tensor, alpha: Tensor, sigma: Tensor, out: Tensor) -> None:
        """``out (S, n, ...)`` += -alpha / sigma times the sum over the steps of an image's gradients.

        steps ``(rows of all steps, ...)`` holds them; position ``(S, steps, n)`` the row of an image in each step's, or -1.
        """
        students, count, n = position.shape
        values = out[0, 0].numel()
        block = min(1024, 1 << (values - 1).bit_length())
        _launch(
            params.pixels_kernel, (n, _blocks(values, block), students),
            steps, position, alpha, sigma, out, count, n, steps.numel() // (count * values), values, SIZE=block,
        )  # fmt: skip

    # ---- the step ----

    def forward(self, w: Weights, x: Batch, step: Step, students: int, batch: int) -> None:
        """Outputs of the students on their batches, and what the other sweeps read."""
        g = self.geometry
        t = tiles.first(g.width, batch, self.how.halves, forward=True)
        self._start(
            first.first_forward_kernel, (students * batch, g.width // t.channels),
            x.patches, x.sums, w.half, w.values, step.h[0], step.mean, step.rstd[0], step.px, batch, g.tiles,
            *g.sides[1], *self._places(0), EPS, **self._first(t),
        )  # fmt: skip
        for i in range(1, g.depth):
            t = tiles.convolution(g.width, g.pooled(i), batch)
            grid, constants = self._tiled(t, students * batch)
            self._start(
                plane.plane_forward_kernel, grid,
                step.h[i - 1], self._w(w.half, i), w.values, step.xhat[i], step.rstd[i], step.h[i], batch,
                *g.sides[i + 1], *self._places(i), EPS, BORDER=int(i + 1 < g.depth), **constants,
            )  # fmt: skip
        self._outputs(step.h[-1], step.h[-1], w.values, w.values, step.out, students, batch, pair=False)

    def backward(
        self, w: Weights, x: Batch, y: Tensor, step: Step, arena: Tensor, students: int, batch: int,
        *, gradients: bool = True,
    ) -> None:  # fmt: skip
        """The loss and its gradients, as parts; without ``gradients`` only what the tangent reads of it."""
        g, parts = self.geometry, self.parts(students, batch)
        top = g.depth - 1
        self._start(
            head.loss_kernel, (students,),
            step.out, y, self._loss.pos, self._loss.neg, step.loss, step.gl, step.tau, arena[parts.at["b"] :],
            batch, g.outputs, g.outputs, **self._loss_constants(batch),
        )  # fmt: skip
        if gradients:
            with self._beside():
                self._head_weight(step.gl, step.h[-1], step.gl, step.h[-1], arena, parts, students, batch, pair=False)
        grid, constants = self._tiled(tiles.top(g.width, g.pooled(top), batch), students * batch)
        self._start(
            head.top_backward_kernel, grid,
            step.gl, w.values, step.xhat[top], step.rstd[top], step.gz[top], step.gp[top],
            *self._norm_parts(arena, parts, top), step.gamma[top], step.beta[top], batch, g.features, g.outputs,
            *g.sides[-1], self.layout.size, self.layout.at("w"), *self._norm_places(top), **constants,
        )  # fmt: skip
        for i in range(top, 0, -1):
            if gradients:
                h, gz = step.h[i - 1], step.gz[i]
                with self._beside():
                    self._weight_grad(i, h, gz, h, gz, arena, parts, students, batch, pair=False)
            if i > 1:
                t = tiles.transposed(g.width, g.pooled(i - 1), batch, self.how.halves, tangent=False)
                grid, constants = self._tiled(t, students * batch)
                self._start(
                    plane.plane_backward_kernel, grid,
                    step.gz[i], self._w(w.half, i), w.values, step.xhat[i - 1], step.rstd[i - 1], step.gz[i - 1],
                    step.gp[i - 1], *self._norm_parts(arena, parts, i - 1), step.gamma[i - 1], step.beta[i - 1],
                    batch, *g.sides[i], *self._places(i - 1), **constants,
                )  # fmt: skip
        half = self._w(w.half, 1)
        self._input_grad(step.gz[1], half, step.gz[1], half, step.gp[0], students, batch, pair=False)
        t = tiles.first(g.width, batch, self.how.halves)
        self._start(
            first.first_backward_kernel, (students * batch, g.width // t.channels),
            x.patches, x.sums, w.half, w.values, step.mean, step.rstd[0], step.px, step.gp[0],
            arena[parts.at["w0"] :], *self._norm_parts(arena, parts, 0), step.gamma[0], step.beta[0], batch, g.tiles,
            *g.sides[1], *self._places(0), **self._first(t),
        )  # fmt: skip
        if gradients:
            self._together()

    def tangent(
        self, w: Weights, dot: Weights, x: Batch, y: Tensor, step: Step, t: TangentStep, arena: Tensor,
        loss_dot: Tensor, gydot: Tensor, gx: Tensor, students: int, batch: int, *, curvature: bool,
    ) -> None:  # fmt: skip
        """The derivative of the step along ``dot``: the Hessian's product as parts (with ``curvature``), and by the images.

        loss_dot ``(S,)`` float64; gydot ``(S B, K)``; gx ``(S B, C, H, W)`` by the augmented images.
        """
        self._tangent_forward(w, dot, x, step, t, students, batch)
        g, parts = self.geometry, self.parts(students, batch)
        self._start(
            head.loss_tangent_kernel, (students,),
            step.out, t.out, y, self._loss.pos, self._loss.neg, step.gl, step.tau, loss_dot, t.gl, gydot,
            arena[parts.at["b"] :], batch, g.outputs, g.outputs, **self._loss_constants(batch),
        )  # fmt: skip
        self._tangent_backward(w, dot, x, step, t, arena, parts, students, batch, curvature=curvature)
        size = g.image_size[0] * g.image_size[1]
        block = min(128 if batch < tiles.FEW else 256, 1 << (size - 1).bit_length())
        self._start(
            first.columns_kernel, (students * batch, g.channels, _blocks(size, block)),
            t.columns, step.tau, gx, batch, g.tiles, *g.sides[1], *g.image_size, t.columns.stride(0), BORDER=g.border,
            CHANNELS=g.channels, KP=g.window, PARTS=self.columns(batch), BLOCK=block,
        )  # fmt: skip

    def _tangent_forward(
        self, w: Weights, dot: Weights, x: Batch, step: Step, t: TangentStep, students: int, batch: int
    ) -> None:
        g = self.geometry
        f = tiles.first(g.width, batch, self.how.halves)
        self._start(
            first.first_tangent_kernel, (students * batch, g.width // f.channels),
            x.patches, x.sums, w.half, dot.half, w.values, dot.values, step.mean, step.rstd[0], step.px, t.h[0],
            t.zdot_mean, t.zdot_slope, batch, g.tiles, *g.sides[1], *self._places(0), **self._first(f),
        )  # fmt: skip
        for i in range(1, g.depth):
            block = tiles.convolution(g.width, g.pooled(i), batch)
            grid, constants = self._tiled(block, students * batch)
            self._start(
                plane.plane_tangent_kernel, grid,
                step.h[i - 1], t.h[i - 1], self._w(w.half, i), self._w(dot.half, i), w.values, dot.values,
                step.xhat[i], step.rstd[i], t.xhat[i], t.rstd[i], t.h[i], batch, *g.sides[i + 1], *self._places(i),
                BORDER=int(i + 1 < g.depth), **constants,
            )  # fmt: skip
        self._outputs(step.h[-1], t.h[-1], w.values, dot.values, t.out, students, batch, pair=True)

    def _tangent_backward(
        self, w: Weights, dot: Weights, x: Batch, step: Step, t: TangentStep, arena: Tensor, parts: Parts,
        students: int, batch: int, *, curvature: bool,
    ) -> None:  # fmt: skip
        g, top = self.geometry, self.geometry.depth - 1
        if curvature:
            with self._beside():
                self._head_weight(t.gl, step.h[-1], step.gl, t.h[-1], arena, parts, students, batch, pair=True)
        grid, constants = self._tiled(tiles.top(g.width, g.pooled(top), batch), students * batch)
        self._start(
            head.top_tangent_backward_kernel, grid,
            step.gl, t.gl, w.values, dot.values, step.xhat[top], step.rstd[top], t.xhat[top], t.rstd[top],
            step.gp[top], step.gamma[top], step.beta[top], t.gz[top], *self._norm_parts(arena, parts, top), batch,
            g.features, g.outputs, *g.sides[-1], self.layout.size, self.layout.at("w"), *self._norm_places(top),
            **constants,
        )  # fmt: skip
        for i in range(top, 0, -1):
            if curvature:
                h, hdot, gz, gzdot = step.h[i - 1], t.h[i - 1], step.gz[i], t.gz[i]
                with self._beside():
                    self._weight_grad(i, h, gzdot, hdot, gz, arena, parts, students, batch, pair=True)
            if i > 1:
                back = tiles.transposed(g.width, g.pooled(i - 1), batch, self.how.halves, tangent=True)
                grid, constants = self._tiled(back, students * batch)
                self._start(
                    plane.plane_tangent_backward_kernel, grid,
                    step.gz[i], t.gz[i], self._w(w.half, i), self._w(dot.half, i), w.values, dot.values,
                    step.xhat[i - 1], step.rstd[i - 1], t.xhat[i - 1], t.rstd[i - 1], step.gp[i - 1],
                    step.gamma[i - 1], step.beta[i - 1], t.gz[i - 1], *self._norm_parts(arena, parts, i - 1), batch,
                    *g.sides[i], *self._places(i - 1), **constants,
                )  # fmt: skip
        self._input_grad(
            t.gz[1], self._w(w.half, 1), step.gz[1], self._w(dot.half, 1), t.gp, students, batch, pair=True
        )  # fmt: skip
        f = tiles.first(g.width, batch, self.how.halves)
        self._start(
            first.first_tangent_backward_kernel, (students * batch, g.width // f.channels),
            x.patches, w.half, dot.half, w.values, dot.values, step.mean, step.rstd[0], t.zdot_mean, t.zdot_slope,
            step.gamma[0], step.beta[0], step.gp[0], t.gp, arena[parts.at["w0"] :],
            *self._norm_parts(arena, parts, 0), t.columns, batch, g.tiles, *g.sides[1], *self._places(0),
            t.columns.stride(0), **self._first(f),
        )  # fmt: skip
        if curvature:
            self._together()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Launches that the rest of a sweep does not wait for: on a stream of their own, until `_together`."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            yield

    def _together(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._side)

    # ---- arguments that launches share ----

    def _splits(self, block: int, batch: int) -> int:
        pixels = batch * self.geometry.sides[block][0] * self.geometry.sides[block][1]
        return _blocks(pixels, tiles.weight(self.geometry.width, pixels).chunk)

    def _w(self, half: Tensor, block: int) -> Tensor:
        """The halves from a block's weights on, students strided."""
        return half.view(-1)[self.how.halves * self.layout.at(f"w{block}") :]

    def _norm_places(self, block: int) -> tuple[int, int]:
        return self.layout.at(f"gamma{block}"), self.layout.at(f"beta{block}")

    def _places(self, block: int) -> tuple[int, int, int, int]:
        """Numbers of a student's halves and values; where the norm's parameters lie in the latter."""
        return self.how.halves * self.layout.size, self.layout.size, *self._norm_places(block)

    def _norm_parts(self, arena: Tensor, parts: Parts, block: int) -> tuple[Tensor, Tensor]:
        return arena[parts.at[f"gamma{block}"] :], arena[parts.at[f"beta{block}"] :]

    def _first(self, t: tiles.Tiles) -> dict[str, Any]:
        g = self.geometry
        return dict(C=g.width, KP=g.window, BC=t.channels, HALVES=self.how.halves, num_warps=t.warps)

    def _tiled(self, t: tiles.Tiles, images: int) -> tuple[tuple[int, int], dict[str, Any]]:
        """Grid and constants of a kernel whose programs have an image's planes of some channels."""
        width = self.geometry.width
        depth = {"BK": t.depth} if t.depth else {}
        return (images, width // t.channels), dict(
            C=width, BC=t.channels, ROWS=t.rows, HALVES=self.how.halves, num_warps=t.warps, num_stages=t.stages, **depth
        )  # fmt: skip

    def _loss_constants(self, batch: int) -> dict[str, Any]:
        columns = 1 << (self.geometry.outputs - 1).bit_length()
        rows = max(1, min(1 << (batch - 1).bit_length(), 4096 // columns))
        return dict(BINARY=self._loss.binary, ROWS=rows, COLS=columns, num_warps=4 if batch < tiles.FEW else 8)

    def _outputs(
        self,
        h: Tensor,
        hdot: Tensor,
        values: Tensor,
        dot: Tensor,
        out: Tensor,
        students: int,
        batch: int,
        *,
        pair: bool,
    ) -> None:
        g = self.geometry
        block = min(16, 1 << (g.outputs - 1).bit_length())
        self._start(
            head.outputs_kernel, (students * batch, _blocks(g.outputs, block)),
            h, hdot, values, dot, out, batch, g.features, g.outputs, self.layout.size, self.layout.at("w"),
            self.layout.at("b"), PAIR=pair, C=g.width, BK=block, BF=1024, HALVES=self.how.halves, num_warps=8,
        )  # fmt: skip

    def _head_weight(
        self, gl: Tensor, h: Tensor, gl2: Tensor, h2: Tensor, arena: Tensor, parts: Parts, students: int, batch: int,
        *, pair: bool,
    ) -> None:  # fmt: skip
        g = self.geometry
        block = tiles._part_of(g.features, 64)
        _launch(
            head.head_weight_kernel, (g.features // block, _blocks(g.outputs, 16), students),
            gl, h, gl2, h2, arena[parts.at["w"] :], batch, g.features, g.outputs, g.outputs * g.features, PAIR=pair,
            C=g.width, BK=16, BF=block, BB=16 if batch <= 16 else 64, HALVES=self.how.halves, num_warps=4,
        )  # fmt: skip

    def _weight_grad(
        self, block: int, x: Tensor, gz: Tensor, x2: Tensor, gz2: Tensor, arena: Tensor, parts: Parts, students: int,
        batch: int, *, pair: bool,
    ) -> None:  # fmt: skip
        g = self.geometry
        rows, columns = g.sides[block]
        t = tiles.weight(g.width, batch * rows * columns)
        programs = 3 * (g.width // t.inputs) * (g.width // t.outputs)
        _launch(
            weight.weight_grad_kernel, (programs, self._splits(block, batch), students),
            x, gz, x2, gz2, arena[parts.at[f"w{block}"] :], batch, rows, columns, t.chunk, PAIR=pair, C=g.width,
            BI=t.inputs, BO=t.outputs, BP=t.pixels, HALVES=self.how.halves, num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip

    def _input_grad(
        self, gz: Tensor, w: Tensor, gz2: Tensor, w2: Tensor, gp: Tensor, students: int, batch: int, *, pair: bool
    ) -> None:
        g = self.geometry
        rows, columns = g.sides[1]
        t = tiles.input_grad(g.width, batch * rows * columns)
        self._start(
            plane.input_grad_kernel, (_blocks(batch * rows * columns, t.rows), g.width // t.channels, students),
            gz, w, gz2, w2, gp, batch, rows, columns, self.how.halves * self.layout.size, PAIR=pair, C=g.width,
            BC=t.channels, BK=t.depth, ROWS=t.rows, HALVES=self.how.halves, num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
