"""A multilayer perceptron on flattened images, on rows of a table, on flattened series."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mct_fast.models.convnet import activation_layer, check_size, positive, sides
from mct_fast.models.series import share
from mct_fast.settings.names import ACTIVATIONS, one_of

NORMS = {"none": "none", "layer": "layer", "layernorm": "layer", "batch": "batch", "batchnorm": "batch"}


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units, then one linear layer; the default is MTT's MLP.

    Args:
        depth: number of hidden layers.
        width: units of each.
        channels: channels of the images.
        image_size: side of the images in pixels, or (rows, columns).
        num_classes: outputs.
        activation: "relu", "sigmoid" or "leakyrelu".
        norm: "none", "layer" or "batch", between a hidden layer and its activation.
        dropout: probability after each activation; for evaluation networks only, a match refuses it.

    Raises:
        InputError: an unknown choice or a number below 1.

    ``forward`` maps images (n, C, H, W), or anything (n, ...) of as many numbers, to logits (n, num_classes).  The rows
    (n, features) of a table are images of ``channels=features`` at ``image_size=1``.
    """

    def __init__(
        self,
        depth: int = 2,
        width: int = 128,
        channels: int = 3,
        image_size: int | Sequence[int] = 32,
        num_classes: int = 10,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.depth = positive("depth", depth)
        self.width = positive("width", width)
        self.channels = positive("channels", channels)
        self.num_classes = positive("num_classes", num_classes)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.norm = one_of("norm", norm, NORMS)
        self.dropout = share("dropout", dropout)
        rows, columns = sides(image_size)
        self.image_size: int | tuple[int, int] = rows if rows == columns else (rows, columns)
        layers: list[nn.Module] = []
        inputs = self.channels * rows * columns
        check_size(self.depth, self.width, self.width * (inputs + self.num_classes))
        for _ in range(self.depth):
            layers.append(nn.Linear(inputs, self.width))
            if self.norm != "none":
                layers.append(nn.LayerNorm(self.width) if self.norm == "layer" else nn.BatchNorm1d(self.width))
            layers.append(activation_layer(self.activation))
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            inputs = self.width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, self.num_classes)

    @property
    def spec(self) -> dict[str, object]:
        """The JSON form that :func:`mct_fast.models.build_model` takes back."""
        size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        return {
            "name": "MLP",
            "depth": self.depth,
            "width": self.width,
            "channels": self.channels,
            "image_size": size,
            "num_classes": self.num_classes,
            "activation": self.activation,
            "norm": self.norm,
            **({"dropout": self.dropout} if self.dropout else {}),
        }

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x.flatten(1)))
