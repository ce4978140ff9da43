"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) as trajectory matching uses it, and noise on rows.

One operation is drawn for a whole batch, its parameters for each image. Every operation is affine in the
pixels, ``A x + c`` (`mct_fast.data.operations` gives the formulas), so a draw offers ``apply`` (differentiable) and
``transpose`` (the exact adjoint of ``A``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.data.operations import AFFINE, LINEAR, TRANSPOSE, operate
from mct_fast.run.errors import InputError
from mct_fast.settings.data import AugmentationConfig
from mct_fast.settings.names import AUGMENTATIONS, dsa_kinds


@dataclass(frozen=True)
class AugmentDraw:
    """One drawn augmentation of a batch: replays exactly, holds no generator.

    Attributes:
        kind: one of :data:`AUGMENTATIONS`.
        params: (b, 4) float32, the parameter table of `mct_fast.data.operations`.

    Build one from explicit parameters with :meth:`none`, :meth:`color`, :meth:`crop`, :meth:`cutout`,
    :meth:`flip`, :meth:`scale`, :meth:`rotate`. Raises InputError for an unknown kind or a misshapen table.
    """

    kind: str
    params: Tensor

    def __post_init__(self) -> None:
        if self.kind not in AUGMENTATIONS:
            raise InputError(f"augmentation kind {self.kind!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}")
        if self.params.ndim != 2 or self.params.shape[1] != 4 or self.params.dtype != torch.float32:
            raise InputError(
                f"augmentation params must be (b, 4) float32, not {tuple(self.params.shape)} {self.params.dtype}"
            )

    @staticmethod
    def _of(kind: str, *columns: Tensor) -> AugmentDraw:
        params = torch.zeros(columns[0].numel(), 4, dtype=torch.float32, device=columns[0].device)
        for index, column in enumerate(columns):
            params[:, index] = column.reshape(-1)
        return AugmentDraw(kind, params)

    @classmethod
    def none(cls, batch: int) -> AugmentDraw:
        """The identity on ``batch`` images."""
        return cls("none", torch.zeros(batch, 4))

    @classmethod
    def color(cls, offset: Tensor, saturation: Tensor, contrast: Tensor) -> AugmentDraw:
        """Brightness ``offset`` (added), then ``saturation`` and ``contrast`` factors; each (b,)."""
        return cls._of("color", offset, saturation, contrast)

    @classmethod
    def crop(cls, rows: Tensor, columns: Tensor) -> AugmentDraw:
        """Integer shifts (b,): output pixel (i, j) is input pixel (i + rows, j + columns), 0 outside."""
        return cls._of("crop", rows, columns)

    @classmethod
    def cutout(cls, rows: Tensor, columns: Tensor, size: tuple[int, int], image_size: tuple[int, int]) -> AugmentDraw:
        """Zero ``size`` (rows, columns) pixels from ``(rows, columns) - size//2``, clipped to the image."""

        def interval(offset: Tensor, extent: int, limit: int) -> tuple[Tensor, Tensor]:
            start = offset.reshape(-1) - extent // 2
            return start.clamp(0, limit), (start + extent).clamp(0, limit)

        return cls._of("cutout", *interval(rows, size[0], image_size[0]), *interval(columns, size[1], image_size[1]))

    @classmethod
    def flip(cls, mask: Tensor) -> AugmentDraw:
        """Mirror left and right the images where ``mask`` (b,) bool is true."""
        return cls._of("flip", mask)

    @classmethod
    def scale(cls, rows: Tensor, columns: Tensor) -> AugmentDraw:
        """Sampling factors (b,) about the centre: 0.5 enlarges twice, 2 halves."""
        return cls._of("scale", rows, columns)

    @classmethod
    def rotate(cls, angle: Tensor) -> AugmentDraw:
        """Rotate the sampling points by ``angle`` (b,) radians, in coordinates from -1 to 1 on both axes."""
        return cls._of("rotate", torch.cos(angle), torch.sin(angle))

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.params.shape[0]

    def table(self) -> tuple[int, Tensor]:
        """The kind id (index in :data:`AUGMENTATIONS`) and the (b, 4) float32 parameter table."""
        return AUGMENTATIONS.index(self.kind), self.params

    def to(self, device: torch.device | str) -> AugmentDraw:
        """The same draw with its table on ``device`` (saves a copy at each use)."""
        return AugmentDraw(self.kind, self.params.to(device))

    def apply(self, x: Tensor) -> Tensor:
        """Augment ``x`` (b, C, H, W), any float dtype; differentiable in ``x`` any number of times."""
        return self._operate(x, AFFINE)

    def linear(self, x: Tensor) -> Tensor:
        """The linear part alone: ``apply(x) - apply(0)``."""
        return self._operate(x, LINEAR)

    def transpose(self, g: Tensor) -> Tensor:
        """Carry a gradient (b, C, H, W) back to the pixels: the adjoint of the linear part, deterministic."""
        return self._operate(g, TRANSPOSE)

    def _operate(self, x: Tensor, which: int) -> Tensor:
        if x.ndim != 4 or x.shape[0] != self.batch or not x.is_floating_point():
            raise InputError(
                f"this augmentation was drawn for {self.batch} images: pass a float tensor "
                f"({self.batch}, C, H, W), not {tuple(x.shape)} {x.dtype}"
            )
        if self.kind == "none":
            return x
        return operate(x, self.params.to(device=x.device, dtype=x.dtype), self.kind, which)


@dataclass(frozen=True)
class JitterDraw:
    """Gaussian noise drawn from a seed and added to a batch: replays exactly on every device, holds no generator.

    Attributes:
        batch: number of rows.
        std: standard deviation of the noise.
        seed: of the noise, below 2^63.
    """

    batch: int
    std: float
    seed: int

    def apply(self, x: Tensor) -> Tensor:
        """``x (b, ...)`` plus the noise."""
        if x.shape[0] != self.batch:
            raise InputError(f"this noise was drawn for {self.batch} rows: pass as many, not {tuple(x.shape)}")
        stream = torch.Generator().manual_seed(self.seed)
        return x + self.std * torch.randn(x.shape, generator=stream).to(x)

    def linear(self, x: Tensor) -> Tensor:
        """The linear part alone, which is the identity."""
        return x

    def transpose(self, g: Tensor) -> Tensor:
        """The adjoint of the linear part."""
        return g

    def table(self) -> tuple[int, Tensor]:
        """There is none: noise is no row of four numbers."""
        raise RuntimeError("noise has no parameter table")

    def to(self, device: torch.device | str) -> JitterDraw:
        """The same noise; it is made on the CPU and brought to the rows' device."""
        return self


@dataclass(frozen=True)
class AugmentPlan:
    """All draws of one matching problem: ``draws[s][i]`` augments student ``s`` at step ``i``."""

    draws: tuple[tuple[AugmentDraw | JitterDraw, ...], ...]

    def __post_init__(self) -> None:
        if not self.draws or any(len(row) != len(self.draws[0]) for row in self.draws):
            raise InputError("draws must hold at least one student, and as many steps for each of them")

    @classmethod
    def joined(cls, plans: Iterable[AugmentPlan]) -> AugmentPlan:
        """The plan of the students of all ``plans``, in their order."""
        return cls(tuple(row for plan in plans for row in plan.draws))

    @property
    def students(self) -> int:
        """Number of students S."""
        return len(self.draws)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.draws[0])

    @property
    def noise(self) -> bool:
        """Whether it adds noise, which is no affine map of four numbers and has no table."""
        return isinstance(self.draws[0][0], JitterDraw)

    def to(self, device: torch.device | str) -> AugmentPlan:
        """The same plan with its tables on ``device``."""
        return AugmentPlan(tuple(tuple(draw.to(device) for draw in row) for row in self.draws))

    def table(self, step: int) -> tuple[Tensor, Tensor]:
        """Kind ids (S,) int64 and parameters (S, b, 4) float32 of one step."""
        tables = [row[step].table() for row in self.draws]
        return torch.tensor([kind for kind, _ in tables]), torch.stack([params for _, params in tables])

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Of all steps: kinds (steps, S), and the parameters one after the other, step by step and student by student."""
        rows = list(zip(*self.draws, strict=True))
        kinds = torch.tensor([[draw.table()[0] for draw in row] for row in rows])
        return kinds, torch.cat([draw.table()[1].reshape(-1) for row in rows for draw in row])

    def tables(self, steps: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Those of several steps of equally large batches on ``device``: kinds (steps S,), parameters (steps S, b, 4)."""
        kinds, params = zip(*(self.table(step) for step in steps), strict=True)
        return torch.cat(kinds).to(device), torch.cat(params).to(device)

    def apply(self, step: int, x: Tensor) -> Tensor:
        """Augment ``x`` (S, b, C, H, W), or rows or series (S, b, ...) by noise, with the draws of ``step``."""
        return self._each(step, x, lambda draw, one: draw.apply(one), ops.dsa)

    def transpose(self, step: int, g: Tensor) -> Tensor:
        """Adjoint of the linear part of :meth:`apply` on ``g``, shaped as there."""
        return self._each(step, g, lambda draw, one: draw.transpose(one), ops.dsa_transpose)

    def _each(
        self,
        step: int,
        x: Tensor,
        run: Callable[[AugmentDraw | JitterDraw, Tensor], Tensor],
        fused: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        if (x.ndim != 5 and not self.noise) or x.shape[0] != self.students:
            raise InputError(
                f"this plan is for {self.students} students: pass ({self.students}, b, C, H, W), not {tuple(x.shape)}"
            )
        # The kernel takes all students in one pass, but has no second derivative and no images one pixel high.
        if not self.noise and ops.kernels_available(x.device) and not x.requires_grad and min(x.shape[3:]) > 1:
            kinds, params = self.table(step)
            return fused(x.contiguous(), kinds, params.to(x.device))
        if self.students == 1:
            return run(self.draws[0][step], x[0])[None]
        return torch.stack([run(row[step], x[s]) for s, row in enumerate(self.draws)])


class Augment(Protocol):
    """A kind of augmentation, from which draws are taken."""

    def draw(self, batch: int, image_shape: Sequence[int], generator: torch.Generator) -> AugmentDraw | JitterDraw:
        """One draw for a batch of ``image_shape``."""
        ...

    def plan(
        self,
        students: int,
        steps: int,
        batches: Sequence[int] | int,
        image_shape: Sequence[int],
        generator: torch.Generator,
    ) -> AugmentPlan:
        """A draw for every student and step; ``batches`` is the batch size, or one size a step."""
        sizes = [batches] * steps if isinstance(batches, int) else list(batches)
        if len(sizes) != steps:
            raise InputError(f"batches has {len(sizes)} sizes for {steps} steps: pass one size a step")
        return AugmentPlan(
            tuple(tuple(self.draw(size, image_shape, generator) for size in sizes) for _ in range(students))
        )


@dataclass(frozen=True)
class Jitter(Augment):
    """Gaussian noise of standard deviation ``std`` on rows of tables and on series, which are standardised.

    Raises:
        InputError: ``std`` is not a positive finite number.
    """

    std: float

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise InputError(f"jitter: got {self.std}; give a positive standard deviation, such as 0.1")

    def draw(self, batch: int, image_shape: Sequence[int], generator: torch.Generator) -> JitterDraw:
        """Noise for ``batch`` rows; a CPU ``generator`` gives the seed."""
        return JitterDraw(batch, self.std, int(torch.randint(2**63 - 1, (), generator=generator)))


def augmentation(kind: str, dsa: bool, strategy: str, jitter: float) -> Augment | None:
    """What augments data of ``kind``: images by DSA with ``strategy`` if ``dsa``, tables and series by ``jitter`` if above 0.

    Raises:
        InputError: an unknown strategy, a negative jitter, or jitter for images.
    """
    if kind != "images":
        return None if jitter == 0 else Jitter(jitter)
    if jitter != 0:
        raise InputError("jitter: is for tables and series; leave it out for images, which DSA augments")
    return DSA(strategy) if dsa else None


def augmentation_of(config: AugmentationConfig, kind: str) -> Augment | None:
    """What augments data of ``kind``, see :func:`augmentation`."""
    return augmentation(kind, config.dsa, config.dsa_strategy, config.jitter)


@dataclass(frozen=True)
class DSA(Augment):
    """The augmentation with the strengths of the field (DC, DSA, MTT and their successors).

    Attributes:
        strategy: names joined by ``_`` out of color, crop, cutout, flip, scale, rotate; each batch gets one
            of them, all equally likely; "none" or "" draws the identity.
        prob_flip: probability that an image is mirrored.
        ratio_scale: factors are uniform in [1/ratio, ratio], rows and columns by themselves.
        ratio_rotate: angles are uniform in plus or minus this many degrees.
        ratio_crop_pad: shifts are uniform integers up to this fraction of the side, rounded.
        ratio_cutout: sides of the zeroed rectangle as a fraction of the image's.
        brightness: the offset is uniform in plus or minus half of this.
        saturation: the factor is uniform in [0, this].
        contrast: the factor is uniform in [this, 1 + this].

    Numbers are taken from the generator in the order in which MTT's code takes them from PyTorch's global CPU
    generator, so equal generator states give equal parameters.
    """

    strategy: str = "color_crop_cutout_flip_scale_rotate"
    prob_flip: float = 0.5
    ratio_scale: float = 1.2
    ratio_rotate: float = 15.0
    ratio_crop_pad: float = 0.125
    ratio_cutout: float = 0.5
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5

    def __post_init__(self) -> None:
        dsa_kinds(self.strategy)  # refuses unknown names
        if self.ratio_scale < 1:
            raise InputError(f"ratio_scale must be at least 1, not {self.ratio_scale}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The operations that a batch may get; empty for the identity."""
        return dsa_kinds(self.strategy)

    def draw(self, batch: int, image_shape: Sequence[int], generator: torch.Generator) -> AugmentDraw:
        """Draw one operation for ``batch`` images of ``image_shape`` (C, H, W) from a CPU ``generator``."""
        if generator.device.type != "cpu":
            raise InputError("generator must be a CPU torch.Generator (every device then draws the same numbers)")
        if len(image_shape) != 3 or min(image_shape[1:]) < 2:
            raise InputError(f"image_shape must be (C, H, W) with H, W >= 2, not {tuple(image_shape)}")
        if not self.kinds:
            return AugmentDraw.none(batch)
        height, width = int(image_shape[1]), int(image_shape[2])

        def uniform() -> Tensor:
            return torch.rand(batch, generator=generator)

        def integers(low: int, high: int) -> Tensor:
            return torch.randint(low, high, (batch,), generator=generator)

        kind = self.kinds[int(torch.randint(len(self.kinds), (1,), generator=generator))]
        if kind == "color":
            offset = (uniform() - 0.5) * self.brightness
            saturation = uniform() * self.saturation
            return AugmentDraw.color(offset, saturation, uniform() + self.contrast)
        if kind == "crop":
            rows, columns = (int(side * self.ratio_crop_pad + 0.5) for side in (height, width))
            return AugmentDraw.crop(integers(-rows, rows + 1), integers(-columns, columns + 1))
        if kind == "cutout":
            size = (int(height * self.ratio_cutout + 0.5), int(width * self.ratio_cutout + 0.5))
            rows = integers(0, height + 1 - size[0] % 2)
            return AugmentDraw.cutout(rows, integers(0, width + 1 - size[1] % 2), size, (height, width))
        if kind == "flip":
            return AugmentDraw.flip(uniform() < self.prob_flip)
        if kind == "scale":
            low = 1.0 / self.ratio_scale
            columns = uniform() * (self.ratio_scale - low) + low
            return AugmentDraw.scale(uniform() * (self.ratio_scale - low) + low, columns)
        return AugmentDraw.rotate((uniform() - 0.5) * 2 * self.ratio_rotate / 180 * math.pi)
