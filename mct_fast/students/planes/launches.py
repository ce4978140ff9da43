"""How a kernel is launched: grids, tiles, where parameters lie, and which launches wait for which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels.planes import head, plane, tiles, weight
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.layout import Layout
from mct_fast.students.planes.memory import Parts, Precision


def blocks(count: int, size: int) -> int:
    """Blocks of ``size`` that hold ``count``."""
    return -(-count // size)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """A launch that needs what all before it on its stream wrote."""
    kernel[grid](*args, **constants)


def splits(geometry: Geometry, block: int, batch: int) -> int:
    """Partial sums that a block's weight gradient comes in."""
    pixels = batch * geometry.sides[block][0] * geometry.sides[block][1]
    return blocks(pixels, tiles.weight(geometry.width, pixels).chunk)


class Launches:
    """Launches for one network and precision on one device, and the arguments that they share.

    ``chained``: a launch may begin while the one before it ends (programmatic dependent launch).
    """

    def __init__(
        self, geometry: Geometry, layout: Layout, how: Precision, device: torch.device, *, chained: bool
    ) -> None:
        self._geometry, self._layout, self._how, self._device = geometry, layout, how, device
        self._chained = chained
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        """A launch that needs what the one before it on this stream wrote, and nothing else's."""
        how = {"launch_pdl": True} if self._chained else {}
        launch(kernel, grid, *args, PDL=self._chained, **constants, **how)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Launches that the rest of a sweep does not wait for: on a stream of their own, until :meth:`together`."""
        if self._side is None:
            yield
            return
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            yield

    def together(self) -> None:
        """Waits for what was launched :meth:`beside`."""
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)

    def halves_of(self, half: Tensor, block: int) -> Tensor:
        """The halves from a block's weights on, students strided."""
        return half.view(-1)[self._how.halves * self._layout.at(f"w{block}") :]

    def norm_places(self, block: int) -> tuple[int, int]:
        """Where the norm's parameters lie among a student's values."""
        return self._layout.at(f"gamma{block}"), self._layout.at(f"beta{block}")

    def places(self, block: int) -> tuple[int, int, int, int]:
        """Numbers of a student's halves and values; where the norm's parameters lie in the latter."""
        return self._how.halves * self._layout.size, self._layout.size, *self.norm_places(block)

    def norm_parts(self, arena: Tensor, parts: Parts, block: int) -> tuple[Tensor, Tensor]:
        """Room for the partial sums of the norm's gradients."""
        return arena[parts.at[f"gamma{block}"] :], arena[parts.at[f"beta{block}"] :]

    def first_block(self, t: tiles.Tiles) -> dict[str, Any]:
        """Constants of a kernel of the first block."""
        g = self._geometry
        return dict(C=g.width, KP=g.window, BC=t.channels, HALVES=self._how.halves, num_warps=t.warps)

    def tiled(self, t: tiles.Tiles, images: int) -> tuple[tuple[int, int], dict[str, Any]]:
        """Grid and constants of a kernel whose programs have an image's planes of some channels."""
        width = self._geometry.width
        depth = {"BK": t.depth} if t.depth else {}
        return (images, width // t.channels), dict(
            C=width, BC=t.channels, ROWS=t.rows, HALVES=self._how.halves, num_warps=t.warps, num_stages=t.stages, **depth
        )  # fmt: skip

    def head_places(self) -> tuple[int, int, int, int]:
        """Numbers of a student's values; where the classifier's weights and the last norm's parameters lie in them."""
        return self._layout.size, self._layout.at("w"), *self.norm_places(self._geometry.depth - 1)

    def outputs(
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
        """The classifier's outputs of activations ``h``; with ``pair`` their derivative along ``hdot`` and ``dot``."""
        g = self._geometry
        block = min(16, 1 << (g.outputs - 1).bit_length())
        self.start(
            head.outputs_kernel, (students * batch, blocks(g.outputs, block)),
            h, hdot, values, dot, out, batch, g.features, g.outputs, self._layout.size, self._layout.at("w"),
            self._layout.at("b"), PAIR=pair, C=g.width, BK=block, BF=1024, HALVES=self._how.halves, num_warps=8,
        )  # fmt: skip

    def head_weight(
        self, gl: Tensor, h: Tensor, gl2: Tensor, h2: Tensor, arena: Tensor, parts: Parts, students: int, batch: int,
        *, pair: bool,
    ) -> None:  # fmt: skip
        """The gradient by the classifier's weights as parts: of ``gl h``, and with ``pair`` of ``gl h + gl2 h2``."""
        g = self._geometry
        block = tiles._part_of(g.features, 64)
        launch(
            head.head_weight_kernel, (g.features // block, blocks(g.outputs, 16), students),
            gl, h, gl2, h2, arena[parts.at["w"] :], batch, g.features, g.outputs, g.outputs * g.features, PAIR=pair,
            C=g.width, BK=16, BF=block, BB=16 if batch <= 16 else 64, HALVES=self._how.halves, num_warps=4,
        )  # fmt: skip

    def weight_grad(
        self, block: int, x: Tensor, gz: Tensor, x2: Tensor, gz2: Tensor, arena: Tensor, parts: Parts, students: int,
        batch: int, *, pair: bool,
    ) -> None:  # fmt: skip
        """The gradient by a block's weights as parts; with ``pair`` the sum of two."""
        g = self._geometry
        rows, columns = g.sides[block]
        t = tiles.weight(g.width, batch * rows * columns)
        programs = 3 * (g.width // t.inputs) * (g.width // t.outputs)
        launch(
            weight.weight_grad_kernel, (programs, splits(self._geometry, block, batch), students),
            x, gz, x2, gz2, arena[parts.at[f"w{block}"] :], batch, rows, columns, t.chunk, PAIR=pair, C=g.width,
            BI=t.inputs, BO=t.outputs, BP=t.pixels, HALVES=self._how.halves, num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip

    def input_grad(
        self, gz: Tensor, w: Tensor, gz2: Tensor, w2: Tensor, gp: Tensor, students: int, batch: int, *, pair: bool
    ) -> None:
        """The gradient by the first block's output; with ``pair`` the sum of two."""
        g = self._geometry
        rows, columns = g.sides[1]
        t = tiles.input_grad(g.width, batch * rows * columns)
        self.start(
            plane.input_grad_kernel, (blocks(batch * rows * columns, t.rows), g.width // t.channels, students),
            gz, w, gz2, w2, gp, batch, rows, columns, self._how.halves * self._layout.size, PAIR=pair, C=g.width,
            BC=t.channels, BK=t.depth, ROWS=t.rows, HALVES=self._how.halves, num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
