"""The buffers of one step of S students: what its sweeps leave for one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels.precision import conv_precision
from mct_fast.students.planes.geometry import Geometry
from mct_fast.students.planes.layout import BLOCK, Layout


@dataclass(frozen=True)
class Precision:
    """How the products are made: of one fp16 number, or of two that stand for a float32 one."""

    name: str
    halves: int
    half: torch.dtype
    wide: torch.dtype
    """dtype of what is read elementwise."""


FAST = Precision("fast", 1, torch.float16, torch.float16)
"""One product of fp16 numbers with a scale: a relative error of about 3e-4; tf32 has 8e-4."""

FINE = Precision("fine", 2, torch.float16, torch.float32)
"""Three products of pairs of fp16 numbers: a relative error of about 4e-6, float32 for the purposes of matching."""


def precision() -> Precision:
    """`FAST` where PyTorch's convolutions may use tf32, as they may by default, else `FINE`.

    ``torch.backends.cudnn.conv.fp32_precision = "ieee"`` or ``torch.backends.cudnn.allow_tf32 = False`` ask for `FINE`.
    """
    return FAST if conv_precision() == "fast" else FINE


@dataclass(frozen=True)
class _Room:
    """Where buffers of `count` steps of `images` images are made, each kind in one piece."""

    geometry: Geometry
    how: Precision
    device: torch.device
    count: int
    images: int

    def numbers(self, *shape: int) -> Tensor:
        """float32 ``(count, *shape)``."""
        return torch.empty(self.count, *shape, device=self.device)

    def wide(self, *shape: int) -> Tensor:
        return torch.empty(self.count, self.images, *shape, dtype=self.how.wide, device=self.device)

    def image(self, side: tuple[int, int]) -> Tensor:
        """Halves of planes with a border of zeros, which no kernel writes."""
        rows, columns = side[0] + 2, side[1] + 2
        shape = self.count, self.images, rows, columns, self.how.halves * self.geometry.width
        return torch.zeros(shape, dtype=self.how.half, device=self.device)

    def activations(self) -> list[Tensor]:
        """The blocks' outputs, the last without a border."""
        g = self.geometry
        last = self.count, self.images, g.pooled(g.depth - 1), self.how.halves * g.width
        return [
            *(self.image(g.sides[i + 1]) for i in range(g.depth - 1)),
            torch.empty(last, dtype=self.how.half, device=self.device),
        ]

    def behind_the_first(self, make: Callable[[int], Tensor]) -> list[Tensor]:
        """A buffer a block; nothing for the first."""
        return [self.numbers(0), *(make(i) for i in range(1, self.geometry.depth))]


@dataclass(frozen=True)
class Step:
    """What the tangent of a step reads of the step: `Engine.forward` and `Engine.backward` write it.

    Lists have an entry a block; the first block keeps sums instead of planes.
    """

    h: list[Tensor]
    xhat: list[Tensor]
    rstd: list[Tensor]
    mean: Tensor
    px: Tensor
    gz: list[Tensor]
    gp: list[Tensor]
    gamma: list[Tensor]
    beta: list[Tensor]
    out: Tensor
    gl: Tensor
    tau: Tensor
    loss: Tensor

    @classmethod
    def allocate(
        cls, g: Geometry, count: int, students: int, batch: int, device: torch.device, how: Precision
    ) -> list[Step]:
        """Room for `count` steps of batches up to that size."""
        images, c = students * batch, g.width
        room = _Room(g, how, device, count, images)
        every = range(g.depth)
        whole = cls(
            h=room.activations(),
            xhat=room.behind_the_first(lambda i: room.wide(4 * g.pooled(i), c)),
            rstd=[room.numbers(images, c) for _ in every],
            mean=room.numbers(images, c),
            px=room.numbers(images, g.window, c),
            gz=room.behind_the_first(lambda i: room.image(g.sides[i])),
            gp=[room.wide(g.pooled(i), c) for i in every],
            gamma=[room.numbers(images, c) for _ in every],
            beta=[room.numbers(images, c) for _ in every],
            out=room.numbers(images, g.outputs),
            gl=room.numbers(images, g.outputs),
            tau=room.numbers(students),
            loss=room.numbers(students),
        )
        return [whole._at(i) for i in range(count)]

    def _at(self, index: int) -> Step:
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: [t[index] for t in part] if isinstance(part, list) else part[index] for name, part in parts.items()
        }
        return Step(**chosen)

    @staticmethod
    def nbytes(g: Geometry, images: int, how: Precision) -> int:
        """Bytes of a step of that many images, counted."""
        c, half, wide = g.width, how.halves * how.half.itemsize, how.wide.itemsize
        padded = sum((rows + 2) * (columns + 2) for rows, columns in g.sides[1 : g.depth])
        values = (2 * padded * c + g.features) * half
        values += sum(4 * g.pooled(i) for i in range(1, g.depth)) * c * wide
        values += sum(g.pooled(i) for i in range(g.depth)) * c * wide
        return images * (values + 4 * c * (3 * g.depth + 1 + g.window) + 8 * g.outputs)


@dataclass(frozen=True)
class TangentStep:
    """What the sweeps of a tangent leave for one another.

    ``columns (parts, S B, KP, tiles * 256)`` is the gradient by the windows of the images, from `parts` groups of channels.
    """

    h: list[Tensor]
    xhat: list[Tensor]
    rstd: list[Tensor]
    zdot_mean: Tensor
    zdot_slope: Tensor
    gz: list[Tensor]
    gp: Tensor
    out: Tensor
    gl: Tensor
    columns: Tensor

    @classmethod
    def allocate(
        cls, g: Geometry, students: int, batch: int, parts: int, device: torch.device, how: Precision
    ) -> TangentStep:
        images, c = students * batch, g.width
        room = _Room(g, how, device, 1, images)
        return cls(
            h=[t[0] for t in room.activations()],
            xhat=[t[0] for t in room.behind_the_first(lambda i: room.wide(4 * g.pooled(i), c))],
            rstd=[t[0] for t in room.behind_the_first(lambda i: room.numbers(images, c))],
            zdot_mean=room.numbers(images, c)[0],
            zdot_slope=room.numbers(images, c)[0],
            gz=[t[0] for t in room.behind_the_first(lambda i: room.image(g.sides[i]))],
            gp=room.wide(g.pooled(0), c)[0],
            out=room.numbers(images, g.outputs)[0],
            gl=room.numbers(images, g.outputs)[0],
            columns=torch.empty(parts, images, g.window, g.tiles * 256, dtype=how.wide, device=device),
        )


@dataclass(frozen=True)
class Parts:
    """How the partial sums of a gradient lie in an arena of float32, and how the update adds them up.

    Attributes:
        size: numbers of the arena.
        at: where each tensor's parts begin; a tensor lies as (S, parts, numbers).
        table: ``(blocks, 5)`` int64 as `kernels.planes.params.update_kernel` reads it.
    """

    size: int
    at: dict[str, int]
    table: Tensor

    @classmethod
    def of(cls, layout: Layout, students: int, counts: dict[str, int], device: torch.device) -> Parts:
        """``counts`` says in how many parts each tensor comes; 0 for one whose gradient is zero."""
        at, total = {}, 0
        table = torch.zeros(layout.size // BLOCK, 5, dtype=torch.int64)
        for name, segment in layout.segments.items():
            at[name], count = total, counts[name]
            for first in range(0, segment.size, BLOCK):
                table[(segment.start + first) // BLOCK] = torch.tensor(
                    (total + first, segment.size, count * segment.size, count, min(BLOCK, segment.size - first))
                )
            total += students * count * segment.size
        return cls(total, at, table.to(device))
