"""The ConvNet of dataset distillation (Gidaris and Komodakis, CVPR 2018; DC, DSA, MTT)."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from torch import Tensor, nn

from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.settings.names import ACTIVATIONS, NORMS, POOLINGS, one_of


def positive(argument: str, value: int) -> int:
    """``value`` as a positive int; InputError naming ``argument`` otherwise."""
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or value < 1:
        raise InputError(f"{argument} must be a positive whole number, not {value!r}")
    return int(value)


_DEEPEST = 1000


def check_size(depth: int, width: int, least: int) -> None:
    """Raises :class:`InputError` for a network that no memory holds: ``least`` parameters, and ``width`` squared a layer."""
    if depth > _DEEPEST:
        raise InputError(f"depth: got {depth}; give at most {_DEEPEST}")
    check_fits("width", 4 * (least + (depth - 1) * width**2), "the network's parameters")


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of an image size given as one number or two."""
    pair = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(pair) != 2:
        raise InputError(f"image_size must be one number or (rows, columns), not {image_size!r}")
    return positive("image_size", pair[0]), positive("image_size", pair[1])


def activation_layer(name: str) -> nn.Module:
    """The activation module; never in place, so that a graph through it can be differentiated twice."""
    if name == "sigmoid":
        return nn.Sigmoid()
    return nn.LeakyReLU(0.01) if name == "leakyrelu" else nn.ReLU()


class ConvNet(nn.Module):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, then one linear layer.

    Parameters come in the order and the shapes of MTT's ConvNet: weight and bias of the convolution, weight
    and bias of the norm for each block, then the classifier's weight and bias (320,010 numbers by default).
    One-channel images of 28x28 are padded to 32x32 by the first convolution, as in MTT.

    Args:
        depth: number of blocks.
        width: channels of every block.
        channels: channels of the images.
        image_size: side of the images in pixels, or (rows, columns).
        num_classes: outputs.
        norm: "instance" (one group a channel, with affine parameters), "none", "batch", "layer" or "group" (4
            groups); the spellings "instancenorm", ... of MTT as well.
        activation: "relu", "sigmoid" or "leakyrelu".
        pooling: "avg", "max" or "none"; "avgpooling", "maxpooling" as well.

    Raises:
        InputError: an unknown choice, a number below 1, or images too small for ``depth`` poolings.

    ``forward`` maps images (n, C, H, W) to logits (n, num_classes).
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 128,
        channels: int = 3,
        image_size: int | Sequence[int] = 32,
        num_classes: int = 10,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        super().__init__()
        self.depth = positive("depth", depth)
        self.width = positive("width", width)
        self.channels = positive("channels", channels)
        self.num_classes = positive("num_classes", num_classes)
        self.norm = one_of("norm", norm, NORMS)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.pooling = one_of("pooling", pooling, POOLINGS)
        rows, columns = sides(image_size)
        self.image_size: int | tuple[int, int] = rows if rows == columns else (rows, columns)
        if self.norm == "group" and self.width % 4:
            raise InputError(f"norm='group' has 4 groups: width={self.width} must be a multiple of 4")
        if self.pooling != "none" and min(rows, columns) >> self.depth < 1 and not self._padded:
            raise InputError(
                f"depth={self.depth} halves image_size={image_size} below one pixel: "
                f"use depth={min(rows, columns).bit_length() - 1} or less, larger images, or pooling='none'"
            )
        if self._padded and 32 >> self.depth < 1 and self.pooling != "none":
            raise InputError(
                f"depth={self.depth} halves image_size=28 (padded to 32) below one pixel: "
                "use depth=5 or less, larger images, or pooling='none'"
            )
        last_rows, last_columns = self.block_size(self.depth)
        check_size(self.depth, self.width, self.width * last_rows * last_columns * self.num_classes)
        self.features = self._blocks()
        self.classifier = nn.Linear(self.width * self.feature_size[0] * self.feature_size[1], self.num_classes)

    @property
    def _padded(self) -> bool:
        return self.channels == 1 and self.image_size == 28

    @property
    def first_padding(self) -> int:
        """Zeros around the image in the first convolution: 3 for one-channel 28x28 images, else 1."""
        return 3 if self._padded else 1

    def block_size(self, block: int) -> tuple[int, int]:
        """Rows and columns of the planes that convolution ``block`` (from 0) puts out."""
        rows, columns = (32, 32) if self._padded else sides(self.image_size)
        halvings = 0 if self.pooling == "none" else block
        return rows >> halvings, columns >> halvings

    @property
    def feature_size(self) -> tuple[int, int]:
        """Rows and columns of the planes that the classifier sees."""
        return self.block_size(self.depth)

    @property
    def spec(self) -> dict[str, object]:
        """The JSON form that :func:`mct_fast.models.build_model` takes back."""
        size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        return {
            "name": "ConvNet",
            "depth": self.depth,
            "width": self.width,
            "channels": self.channels,
            "image_size": size,
            "num_classes": self.num_classes,
            "norm": self.norm,
            "activation": self.activation,
            "pooling": self.pooling,
        }

    def _blocks(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for block in range(self.depth):
            inputs, padding = (self.channels, self.first_padding) if block == 0 else (self.width, 1)
            layers.append(nn.Conv2d(inputs, self.width, 3, padding=padding))
            if self.norm == "instance":
                layers.append(nn.GroupNorm(self.width, self.width))
            elif self.norm == "batch":
                layers.append(nn.BatchNorm2d(self.width))
            elif self.norm == "layer":
                layers.append(nn.LayerNorm([self.width, *self.block_size(block)]))
            elif self.norm == "group":
                layers.append(nn.GroupNorm(4, self.width))
            layers.append(activation_layer(self.activation))
            if self.pooling != "none":
                layers.append(nn.AvgPool2d(2) if self.pooling == "avg" else nn.MaxPool2d(2))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
