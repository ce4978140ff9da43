"""A point of a path, described by the stored models that it mixes instead of by its own numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mct_fast.run.errors import InputError


@dataclass(frozen=True)
class PathPoint:
    """theta_l = sum_j weights[j, l] models[j]_l for each parameter tensor l.

    ``models``: J vectors ``(P,)``, one dtype and device; ``weights (J, L)`` float64 on the CPU, each column adding up to 1;
    ``shapes`` of the L tensors.  The models are shared with the path: nothing of size P is made until :meth:`dense`.
    """

    models: tuple[Tensor, ...]
    weights: Tensor
    shapes: tuple[torch.Size, ...]

    def __post_init__(self) -> None:
        if self.weights.shape != (len(self.models), len(self.shapes)) or not self.models:
            raise InputError(
                f"weights: shape is {tuple(self.weights.shape)}; give ({len(self.models)}, {len(self.shapes)}), "
                "one number a model and tensor"
            )
        if any(model.shape != (self.offsets[-1],) for model in self.models):
            raise InputError(f"models: give vectors of {self.offsets[-1]} numbers, as the shapes add up to")

    @property
    def offsets(self) -> list[int]:
        """L + 1 positions: tensor l is ``theta[offsets[l]:offsets[l + 1]]``."""
        return [0, *itertools.accumulate(shape.numel() for shape in self.shapes)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PathPoint:
        """The same point with its models on ``device`` and of ``dtype``."""
        return replace(self, models=tuple(model.to(device=device, dtype=dtype) for model in self.models))

    def dense(self) -> Tensor:
        """The parameters ``(P,)``, in the models' dtype; a model that stands alone comes back bit for bit."""
        point = torch.zeros_like(self.models[0])
        for layer, (begin, stop) in enumerate(itertools.pairwise(self.offsets)):
            parts = [(w, m) for w, m in zip(self.weights[:, layer].tolist(), self.models, strict=True) if w != 0]
            if len(parts) == 1 and parts[0][0] == 1:
                point[begin:stop] = parts[0][1][begin:stop]
                continue
            for weight, model in parts:
                point[begin:stop].add_(model[begin:stop], alpha=weight)
        return point

    def line(self) -> PathPoint:
        """The same point between two models, the form of ``ops.matching_loss``; more are mixed to one first."""
        if len(self.models) == 2:
            return self
        model = self.models[0] if len(self.models) == 1 and bool((self.weights == 1).all()) else self.dense()
        ends = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, len(self.shapes))
        return PathPoint((model, model), ends, self.shapes)


def bezier_weights(share: float, layers: int) -> Tensor:
    """Weights ``(3, layers)`` of the quadratic Bézier curve: (1 - s)^2, 2 s (1 - s), s^2."""
    row = [(1 - share) ** 2, 2 * share * (1 - share), share**2]
    return torch.tensor(row, dtype=torch.float64)[:, None].expand(3, layers)


def same_form(points: Sequence[PathPoint], argument: str = "target") -> tuple[torch.Size, ...]:
    """The common shapes of ``points``; ``argument``: how the message of an error calls them.

    Raises:
        InputError: there are none, or they belong to different networks.
    """
    if not points or any(point.shapes != points[0].shapes for point in points):
        raise InputError(f"{argument}: points of different networks; give points of paths of one network")
    return points[0].shapes
