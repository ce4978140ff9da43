"""Shapes of a ConvNet as the kernels see it, and which networks they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mct_fast.students.fused_convnet import ConvPlan

TILE = 64
"""Pooled pixels of a tile of patches."""

MOST_PIXELS = 256
"""Pooled pixels of a plane that one program can hold, behind the first block."""


def _sides(plan: ConvPlan) -> list[tuple[int, int]]:
    """Rows and columns of the planes that each block's convolution sees, and behind the last."""
    rows, columns = (side + 2 * plan.border for side in plan.image_size)
    return [(rows >> i, columns >> i) for i in range(plan.depth + 1)]


_NEEDS: tuple[tuple[str, Callable[[ConvPlan], bool]], ...] = (
    ("two blocks or more", lambda plan: plan.depth >= 2),
    ("instance norm", lambda plan: plan.norm),
    ("pooling", lambda plan: plan.pool),
    ("a width that 16 divides", lambda plan: plan.width % 16 == 0),
    ("three channels at most", lambda plan: plan.channels <= 3),
    ("even planes before each pooling", lambda plan: all(h % 2 == w % 2 == 0 for h, w in _sides(plan)[:-1])),
    (
        f"{MOST_PIXELS} pooled pixels at most behind the second block",
        lambda plan: all(h * w <= MOST_PIXELS for h, w in _sides(plan)[2:]),
    ),
)
"""What the kernels need, each with why a program could not hold or address the others' planes."""


def why_not(plan: ConvPlan) -> str | None:
    """What the network lacks for these kernels, or None: then they take it."""
    lacking = [name for name, holds in _NEEDS if not holds(plan)]
    return None if not lacking else f"needs {', '.join(lacking)}"


@dataclass(frozen=True)
class Geometry:
    """A ConvNet that the kernels take.

    Attributes:
        width: channels C of every block.
        channels: channels of the images.
        image_size: rows and columns of the images.
        border: zeros on each side of them.
        sides: rows and columns of the planes of each block's convolution; one more for the last pooled plane.
        outputs: K.
    """

    width: int
    channels: int
    image_size: tuple[int, int]
    border: int
    sides: tuple[tuple[int, int], ...]
    outputs: int

    @classmethod
    def of(cls, plan: ConvPlan) -> Geometry:
        return cls(
            plan.width, plan.channels, plan.image_size, plan.border, tuple(_sides(plan)), plan.num_classes
        )  # fmt: skip

    @property
    def depth(self) -> int:
        return len(self.sides) - 1

    @property
    def window(self) -> int:
        """Columns of a 3x3 window of the images, KP: a power of two of at least 16."""
        return 16 if self.channels == 1 else 32

    @property
    def tiles(self) -> int:
        """Tiles of an image's patches."""
        return -(-self.pooled(0) // TILE)

    def pooled(self, block: int) -> int:
        """Pixels of the pooled plane of a block."""
        rows, columns = self.sides[block + 1]
        return rows * columns

    @property
    def features(self) -> int:
        """Inputs of the classifier."""
        return self.width * self.pooled(self.depth - 1)
