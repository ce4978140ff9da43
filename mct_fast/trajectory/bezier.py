"""A quadratic Bézier curve between an expert's two ends, with one learned control point (arXiv 2510.05805).

theta(s) = (1 - s)^2 theta_0 + 2 s (1 - s) phi + s^2 theta_K with s = t / K.  phi is fitted so that the training loss stays
low along the curve (Garipov et al., NeurIPS 2018): :mod:`mct_fast.experts.bezier`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.trajectory.path import check_time
from mct_fast.trajectory.point import PathPoint, bezier_weights


class BezierTrajectory:
    """The curve of ``points (3, P)``: theta_0, the control point, theta_K; ``epochs`` is K.

    Raises:
        InputError: another shape, values that are not finite, or fewer epochs than one.
    """

    def __init__(self, points: Tensor, epochs: int, shapes: Sequence[torch.Size]) -> None:
        self.points, self._epochs, self._shapes = points.detach(), int(epochs), tuple(shapes)
        count = sum(shape.numel() for shape in self._shapes)
        if points.shape != (3, count):
            raise InputError(f"points: shape is {tuple(points.shape)}; give (3, {count}): start, control point, end")
        if not bool(torch.isfinite(points).all()):
            raise InputError("points: hold NaN or infinity; fit the control point again with a smaller step size")
        if self._epochs < 1:
            raise InputError(f"epochs: got {epochs}; a path has at least one epoch")

    @property
    def epochs(self) -> int:
        return self._epochs

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._shapes

    @property
    def continuous(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return self.points.nbytes

    def to(self, device: torch.device | str) -> BezierTrajectory:
        """The same curve with its points on ``device``."""
        moved = copy.copy(self)  # checked when it was made
        moved.points = self.points.to(device)
        return moved

    def point(self, t: float) -> PathPoint:
        """The point at time ``t`` as a mixture of the three stored models."""
        share = check_time(t, self._epochs) / self._epochs
        return PathPoint(tuple(self.points), bezier_weights(share, len(self._shapes)), self._shapes)

    def at(self, t: float) -> Tensor:
        """The parameters ``(P,)`` at time ``t``; both ends come back bit for bit."""
        return self.point(t).dense()
