"""Where students start and where they should arrive: points of paths, or parameters, in one form.

Each tensor of a point lies between those of two stored models.  Nothing of the models' size is made for a target on a GPU:
``ops.matching_loss`` interpolates while it sums up the distance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.trajectory.point import PathPoint, same_form


@dataclass(frozen=True)
class Points:
    """A point a student: tensor l is ``weights[0, s, l] origin[s] + weights[1, s, l] end[s]``.

    ``origin``, ``end (S, P)`` of one dtype and device, the same object where nothing lies between them;
    ``weights (2, S, L)`` like them; ``sizes`` of the L tensors in numbers; ``offsets (L + 1,)`` int64 on the device.
    """

    origin: Tensor
    end: Tensor
    weights: Tensor
    sizes: tuple[int, ...]
    offsets: Tensor

    @classmethod
    def of_values(cls, values: Tensor) -> Points:
        """Parameters ``values (S, P)`` as they are: one tensor, in the form of the others."""
        count, size = values.shape
        weights = values.new_zeros(2, count, 1)
        weights[0] = 1
        return cls(values, values, weights, (size,), torch.tensor([0, size], device=values.device))

    @classmethod
    def of_paths(cls, *ends: Sequence[PathPoint]) -> tuple[Points, ...]:
        """One for each of ``ends``, S points of paths of one network; models that they share are put together once.

        A point of three models or more (a Bézier curve's) is mixed to one model here.

        Raises:
            InputError: there are no points, or they belong to different networks.
        """
        stacked: dict[tuple[int, ...], Tensor] = {}

        def together(models: tuple[Tensor, ...]) -> Tensor:
            key = tuple(model.data_ptr() for model in models)
            if key not in stacked:
                stacked[key] = models[0][None] if len(models) == 1 else torch.stack(models)
            return stacked[key]

        sizes = tuple(shape.numel() for shape in same_form([point for points in ends for point in points]))
        # Held until all are put together: an address names a model as long as it lives.
        lines = [[point.line() for point in points] for points in ends]
        like = lines[0][0].models[0]
        offsets = torch.tensor([0, *itertools.accumulate(sizes)], device=like.device)
        made = []
        for points in lines:
            origin, end = (together(models) for models in zip(*(point.models for point in points), strict=True))
            weights = torch.stack([point.weights for point in points], 1).to(like)
            made.append(cls(origin, end, weights, sizes, offsets))
        return tuple(made)

    @property
    def shape(self) -> tuple[int, int]:
        """(S, P)"""
        return self.origin.shape[0], self.origin.shape[1]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return self.origin, self.end, self.weights

    def placed(self, place: Callable[[Tensor], Tensor]) -> Points:
        """The same points with ``place`` of each leaf."""
        weights, offsets = place(self.weights), self.offsets.clone()
        return replace(self, origin=place(self.origin), end=place(self.end), weights=weights, offsets=offsets)

    def of(self, rows: slice) -> Points:
        """Those of some students."""
        chosen = self.on(lambda tensor: tensor[rows])
        return replace(chosen, weights=self.weights[:, rows])

    def on(self, place: Callable[[Tensor], Tensor]) -> Points:
        """The same points between other tensors: ``place`` of each model, once."""
        origin = place(self.origin)
        return replace(self, origin=origin, end=origin if self.end is self.origin else place(self.end))

    def dense(self) -> Tensor:
        """The parameters ``(S, P)``, the bits of ``path.at``; not to be written to."""
        if self.end is self.origin:
            return self.origin
        point = torch.empty_like(self.origin)
        bounds = [0, *itertools.accumulate(self.sizes)]
        for layer, (begin, stop) in enumerate(itertools.pairwise(bounds)):
            first, second = self.weights[:, :, layer, None]
            between = first * self.origin[:, begin:stop]
            torch.add(between, second * self.end[:, begin:stop], out=point[:, begin:stop])
        return point

    def distance(self, theta: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
        """|theta - point|^2 / denominator, ``(S,)``, and its gradient by ``theta (S, P)``."""
        if theta.is_cuda or self.end is self.origin:
            return ops.matching_loss(theta, self.origin, self.end, self.weights[1], self.offsets, denominator)
        # A processor's kernel would multiply and add in one rounding; here the bits are those of the point itself.
        values = self.dense()
        whole = self.offsets[:: len(self.sizes)].contiguous()
        return ops.matching_loss(theta, values, values, theta.new_zeros(len(theta), 1), whole, denominator)
