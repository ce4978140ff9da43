"""Transforms: from raw pixels in [0, 1], or a table's raw values, to the space that networks train in, and back.

A transform is immutable and holds its own constants: a distilled set saved with it needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.tabular.columns import TableTransform

ZCA_MAX_FEATURES = 3 * 72 * 72
"""The largest C*H*W that ZCA is offered for: the matrix and its inverse then take 1.9 GB together."""


@runtime_checkable
class Transform(Protocol):
    """What every transform offers; those of pixels stand here, that of tables and series in `tabular/columns.py`."""

    def forward(self, raw: Tensor) -> Tensor:
        """Raw floating-point pixels (n, C, H, W) in [0, 1] to transform space; same shape, dtype, device.

        Raw values of tables (n, C) or series (n, T, C) become features (n, F) or (n, T, F)."""
        ...

    def inverse(self, x: Tensor) -> Tensor:
        """Undo `forward`; pixels are not clipped to [0, 1]."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors (for safetensors) and a JSON-able dict with a "kind"; `transform_from_state` reads them."""
        ...

    def to(self, device: torch.device | str) -> Transform:
        """The same transform with its tensors on `device`."""
        ...


@dataclass(frozen=True)
class Identity:
    """Leaves pixels as they are."""

    def forward(self, raw: Tensor) -> Tensor:
        return raw

    def inverse(self, x: Tensor) -> Tensor:
        return x

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"kind": "identity"}

    def to(self, device: torch.device | str) -> Identity:
        return self


@dataclass(frozen=True)
class Normalize:
    """Per-channel standardisation (raw - mean) / std.

    Args:
        mean: C numbers, in units of raw pixels (0..1). Any sequence or 1-dimensional tensor.
        std: C positive numbers, same units.

    Raises:
        InputError: lengths differ, or a std is not positive and finite.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in mean))
        object.__setattr__(self, "std", tuple(float(value) for value in std))
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; give one of each for every channel"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise InputError(f"mean={self.mean} is not finite; give finite numbers")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise InputError(f"std={self.std} must be positive and finite; drop channels that never vary")

    @classmethod
    def fit(cls, raw: Tensor) -> Normalize:
        """Mean and (population) standard deviation of each channel.

        raw: pixels (n, C, H, W), uint8 or float in [0, 1].

        uint8 pixels are summed as integers, hence exactly. A channel that never varies gets std 1.
        """
        channels = raw.shape[1]
        count = raw.numel() // channels
        accumulate = torch.float64 if raw.is_floating_point() else torch.int64
        total = torch.zeros(channels, dtype=accumulate)
        squares = torch.zeros(channels, dtype=accumulate)
        for piece in raw.split(rows_in(1 << 26, raw)):
            values = piece.to(accumulate)
            total += values.sum(dim=(0, 2, 3)).cpu()
            squares += (values * values).sum(dim=(0, 2, 3)).cpu()
        scale = 1.0 if raw.is_floating_point() else 255.0
        mean = total.double() / count
        variance = (squares.double() / count - mean * mean).clamp_min(0)
        std = variance.sqrt() / scale
        # A deviation this small is rounding: the channel is constant, and dividing would magnify it.
        std[std < 1e-6] = 1.0
        return cls((mean / scale).tolist(), std.tolist())

    def forward(self, raw: Tensor) -> Tensor:
        mean, std = self._constants(raw)
        return (raw - mean) / std

    def inverse(self, x: Tensor) -> Tensor:
        mean, std = self._constants(x)
        return x * std + mean

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"kind": "normalize", "mean": list(self.mean), "std": list(self.std)}

    def to(self, device: torch.device | str) -> Normalize:
        return self

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.ndim < 3 or like.shape[-3] != len(self.mean):
            raise InputError(
                f"images have shape {tuple(like.shape)}; this normalisation is for (n, {len(self.mean)}, H, W)"
            )
        return like.new_tensor(self.mean).view(-1, 1, 1), like.new_tensor(self.std).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class ZCA:
    """ZCA whitening with its inverse, equal to `kornia.enhance.ZCAWhitening(eps=0.1, compute_inv=True)`.

    With D = C*H*W features, covariance U S Uᵀ of the flattened training images and their mean mu:
    forward x -> (x - mu) T with T = U (S + eps)^(-1/2) Uᵀ;
    inverse x -> x T⁻¹ + mu with T⁻¹ = U (S + eps)^(1/2) Uᵀ.
    kornia is needed to fit, not to apply.

    Args:
        mean: (D,) float32. matrix: T, (D, D). inverse_matrix: T⁻¹, (D, D). All on one device.
        image_shape: (C, H, W).
        eps: added to the eigenvalues before the root.
    """

    mean: Tensor
    matrix: Tensor
    inverse_matrix: Tensor
    image_shape: tuple[int, int, int]
    eps: float = 0.1

    def __post_init__(self) -> None:
        features = math.prod(self.image_shape)
        if self.mean.shape != (features,) or not (
            self.matrix.shape == self.inverse_matrix.shape == (features, features)
        ):
            raise InputError(
                f"ZCA tensors do not fit images of shape {self.image_shape}: "
                f"mean must be ({features},), both matrices ({features}, {features}); fit the transform anew"
            )

    @classmethod
    def fit(cls, raw: Tensor, eps: float = 0.1) -> ZCA:
        """Fit on raw pixels (n, C, H, W), uint8 or float in [0, 1], n >= 2, on their device.

        Needs about 2 float32 copies of `raw` and 12 (D, D) matrices of memory while it runs.

        Raises:
            InputError: kornia is missing, fewer than 2 images, or more than ZCA_MAX_FEATURES features.
        """
        shape = (int(raw.shape[1]), int(raw.shape[2]), int(raw.shape[3]))
        check_zca_size(shape)
        if len(raw) < 2:
            raise InputError("zca=True needs at least 2 training images; give more or use zca=False")
        try:
            from kornia.enhance import ZCAWhitening  # imported here: it is slow to load and few runs need it
        except ImportError as error:
            raise InputError("zca=True needs kornia to fit the whitening; run: pip install kornia") from error
        whitening = ZCAWhitening(eps=eps, compute_inv=True).fit(to_unit(raw))
        mean, matrix, inverse = (
            getattr(whitening, name) for name in ("mean_vector", "transform_matrix", "transform_inv")
        )
        if not bool(torch.isfinite(matrix).all()):
            raise InputError("zca=True: the whitening matrix is not finite; check the training images or use zca=False")
        return cls(mean.reshape(-1).contiguous(), matrix.contiguous(), inverse.contiguous(), shape, eps)

    def forward(self, raw: Tensor) -> Tensor:
        self._check(raw)
        mean, matrix = self.mean.to(raw), self.matrix.to(raw)
        return ((raw.flatten(1) - mean) @ matrix).reshape(raw.shape)

    def inverse(self, x: Tensor) -> Tensor:
        self._check(x)
        mean, matrix = self.mean.to(x), self.inverse_matrix.to(x)
        return torch.addmm(mean, x.flatten(1), matrix).reshape(x.shape)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"zca_mean": self.mean, "zca_matrix": self.matrix, "zca_inverse": self.inverse_matrix}
        return tensors, {"kind": "zca", "eps": self.eps, "image_shape": list(self.image_shape)}

    def to(self, device: torch.device | str) -> ZCA:
        return replace(
            self,
            mean=self.mean.to(device),
            matrix=self.matrix.to(device),
            inverse_matrix=self.inverse_matrix.to(device),
        )

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"images have shape {tuple(images.shape)}; this whitening was fitted on (n, {self._shape_text()})"
            )

    def _shape_text(self) -> str:
        return ", ".join(str(size) for size in self.image_shape)


def transform_from_state(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Transform:
    """Rebuild a transform from what its `state()` gave.

    Raises:
        InputError: unknown kind, or a part is missing or malformed.
    """
    kind = meta.get("kind")
    try:
        if kind == "identity":
            return Identity()
        if kind == "normalize":
            return Normalize(meta["mean"], meta["std"])
        if kind == "zca":
            channels, height, width = (int(size) for size in meta["image_shape"])
            return ZCA(
                tensors["zca_mean"],
                tensors["zca_matrix"],
                tensors["zca_inverse"],
                (channels, height, width),
                float(meta["eps"]),
            )
        if kind in ("table", "series"):
            return TableTransform.from_state(tensors, meta)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"transform of kind {kind!r} is incomplete ({error}); save the set again") from error
    raise InputError(f"transform kind {kind!r} is unknown; use identity, normalize, zca, table or series")


def check_zca_size(image_shape: tuple[int, int, int]) -> None:
    """Refuse images (C, H, W) so large that their whitening matrix is out of reach."""
    features = math.prod(image_shape)
    if features > ZCA_MAX_FEATURES:
        raise InputError(
            f"zca=True would need a {features} x {features} matrix for images of shape {image_shape}; "
            f"use zca=False or a smaller image_size"
        )


def to_unit(raw: Tensor) -> Tensor:
    """uint8 0..255 divided by 255, as torchvision's ToTensor does, to float32; floats pass unchanged."""
    return raw if raw.is_floating_point() else raw.to(torch.float32).div_(255)


def rows_in(num_bytes: int, images: Tensor) -> int:
    """How many images (n, ...) fit into `num_bytes` of memory at 4 bytes a pixel; at least 1."""
    return max(1, num_bytes // max(1, 4 * images[:1].numel()))
