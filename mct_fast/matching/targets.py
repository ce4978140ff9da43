"""Where students should arrive: parameters as they are, or points of paths that are never made.

Both go through ``ops.matching_loss``, which interpolates between two models while it sums up the distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.run.errors import InputError
from mct_fast.trajectory.point import PathPoint, same_form


class Targets(Protocol):
    """Targets of S students."""

    @property
    def shape(self) -> tuple[int, int]:
        """(S, P)"""
        ...

    def of(self, rows: slice) -> Targets:
        """Those of some students."""
        ...

    def distance(self, theta: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
        """|theta - target|^2 / denominator, ``(S,)``, and its gradient by ``theta (S, P)``."""
        ...

    def dense(self) -> Tensor:
        """The targets ``(S, P)``."""
        ...


@dataclass(frozen=True)
class DenseTargets:
    """Parameters ``values (S, P)``; ``whole`` = [0, P] on their device: one layer, in the operator's form."""

    values: Tensor
    whole: Tensor

    @classmethod
    def of_values(cls, values: Tensor) -> DenseTargets:
        return cls(values, torch.tensor([0, values.shape[1]], device=values.device))

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def of(self, rows: slice) -> DenseTargets:
        return replace(self, values=self.values[rows])

    def distance(self, theta: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
        frac = theta.new_zeros(len(theta), 1)
        return ops.matching_loss(theta, self.values, self.values, frac, self.whole, denominator)

    def dense(self) -> Tensor:
        return self.values


@dataclass(frozen=True)
class PathTargets:
    """One point a student, each between two stored models: nothing of their size is made.

    ``points`` as :meth:`PathPoint.line` gives them; ``fractions (S, L)`` of the second model; ``offsets (L + 1,)``.
    """

    points: tuple[PathPoint, ...]
    fractions: Tensor
    offsets: Tensor

    @classmethod
    def of_points(cls, points: Sequence[PathPoint]) -> PathTargets:
        """A point of three models or more (a Bézier curve's) is mixed to one model here, once."""
        same_form(points)
        lines = tuple(point.line() for point in points)
        like = lines[0].models[0]
        fractions = torch.stack([line.weights[1] for line in lines]).to(like)
        return cls(lines, fractions, torch.tensor(lines[0].offsets, device=like.device))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.points), self.points[0].offsets[-1]

    def of(self, rows: slice) -> PathTargets:
        return PathTargets(self.points[rows], self.fractions[rows], self.offsets)

    def distance(self, theta: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
        rows = []
        for s, point in enumerate(self.points):
            one = slice(s, s + 1)
            origin, end = (model.contiguous()[None] for model in point.models)
            frac, scale = self.fractions[one], denominator[one]
            rows.append(ops.matching_loss(theta[one], origin, end, frac, self.offsets, scale))
        if len(rows) == 1:
            return rows[0]
        loss, grad = zip(*rows, strict=True)
        return torch.cat(loss), torch.cat(grad)

    def dense(self) -> Tensor:
        return torch.stack([point.dense() for point in self.points])


def targets_of(target: Tensor | PathPoint | Sequence[PathPoint], like: Tensor) -> PathTargets | Tensor:
    """Points as targets for a match whose images are ``like``; tensors come back as they are.

    Raises:
        InputError: points of another dtype or device than ``like``, or of different networks.
    """
    if isinstance(target, Tensor):
        return target
    points = [target] if isinstance(target, PathPoint) else list(target)
    for model in (model for point in points for model in point.models):
        if model.dtype != like.dtype or model.device != like.device:
            raise InputError(
                f"target: holds {model.dtype} on {model.device} but images are {like.dtype} on {like.device}; "
                "bring it there with point.to(device, dtype)"
            )
    return PathTargets.of_points(points)
