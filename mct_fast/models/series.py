"""Networks for time series (n, time, features): a temporal convolution network and a GRU.

Both are written in plain operators, because the matching gradient differentiates a step twice: PyTorch's fused GRU has no
second derivative and no forward mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mct_fast.models.convnet import activation_layer, check_size, positive, sides
from mct_fast.run.errors import InputError
from mct_fast.settings.names import ACTIVATIONS, one_of


class _SeriesModel(nn.Module):
    """What both networks share: sizes and the spec."""

    def __init__(
        self, depth: int, width: int, channels: int, image_size: int | Sequence[int], num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.depth = positive("depth", depth)
        self.width = positive("width", width)
        self.channels = positive("channels", channels)
        self.num_classes = positive("num_classes", num_classes)
        self.dropout = share("dropout", dropout)
        self.image_size = sides(image_size)
        check_size(self.depth, self.width, self.width * (self.channels + self.num_classes))

    @property
    def spec(self) -> dict[str, object]:
        """The JSON form that :func:`mct_fast.models.build_model` takes back."""
        dropout = {"dropout": self.dropout} if self.dropout else {}
        return {
            "name": type(self).__name__,
            "depth": self.depth,
            "width": self.width,
            "channels": self.channels,
            "image_size": list(self.image_size),
            "num_classes": self.num_classes,
            **dropout,
        }

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[2] != self.channels:
            raise InputError(
                f"images: shape is {tuple(x.shape)}; {type(self).__name__} takes series (n, time, {self.channels})"
            )


class GRU(_SeriesModel):
    """``depth`` layers of gated recurrent units (Cho et al., EMNLP 2014), then one linear layer on the last state.

    Args:
        depth: number of layers.
        width: units a layer.
        channels: features at each time.
        image_size: (time, 1) of the series; the network takes any length.
        num_classes: outputs.
        dropout: probability between the layers and before the last; for evaluation networks only.

    Parameters are those of ``torch.nn.GRU(channels, width, depth, batch_first=True)``, in its order and with its initial
    distribution, then the classifier's.  ``forward`` maps series (n, time, channels) to logits (n, num_classes).
    """

    def __init__(
        self,
        depth: int = 1,
        width: int = 64,
        channels: int = 1,
        image_size: int | Sequence[int] = (48, 1),
        num_classes: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(depth, width, channels, image_size, num_classes, dropout)
        # PyTorch's module holds the parameters, and draws them at the beginning; its own forward is not used.
        self.cells = nn.GRU(self.channels, self.width, self.depth, batch_first=True)
        self.drop = nn.Dropout(self.dropout) if self.dropout else nn.Identity()
        self.classifier = nn.Linear(self.width, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        for layer in range(self.depth):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            x = self.drop(_gru_layer(x, *(getattr(self.cells, f"{name}_l{layer}") for name in names)))
        return self.classifier(x[:, -1])


def _gru_layer(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """(n, time, inputs) to the states (n, time, width); gates r, z, n in PyTorch's order."""
    inputs = F.linear(x, weight_ih, bias_ih)
    state = x.new_zeros(x.shape[0], weight_hh.shape[1])
    states = []
    for step in inputs.unbind(1):
        r, z, candidate = step.chunk(3, 1)
        hr, hz, hidden = F.linear(state, weight_hh, bias_hh).chunk(3, 1)
        update = torch.sigmoid(z + hz)
        new = torch.tanh(candidate + torch.sigmoid(r + hr) * hidden)
        state = new + update * (state - new)
        states.append(state)
    return torch.stack(states, 1)


class TCN(_SeriesModel):
    """A temporal convolution network (Bai, Kolter and Koltun, arXiv 1803.01271): ``depth`` residual blocks, one linear layer.

    Block i has two causal convolutions of 3 steps, dilated by 2^i: an output sees nothing later than itself.  The linear
    layer reads the last time.  No weight norm: a match moves plain parameters.

    Args:
        depth: number of blocks; they see 1 + 4 (2^depth - 1) steps.
        width: channels of the blocks.
        channels: features at each time.
        image_size: (time, 1) of the series; the network takes any length.
        num_classes: outputs.
        activation: "relu", "sigmoid" or "leakyrelu".
        dropout: probability after each convolution; for evaluation networks only.

    ``forward`` maps series (n, time, channels) to logits (n, num_classes).
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 64,
        channels: int = 1,
        image_size: int | Sequence[int] = (48, 1),
        num_classes: int = 2,
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(depth, width, channels, image_size, num_classes, dropout)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.blocks = nn.ModuleList(
            _TCNBlock(self.width if i else self.channels, self.width, 2**i, self.activation, self.dropout)
            for i in range(self.depth)
        )
        self.classifier = nn.Linear(self.width, self.num_classes)

    @property
    def spec(self) -> dict[str, object]:
        """The JSON form that :func:`mct_fast.models.build_model` takes back."""
        return {**super().spec, "activation": self.activation}

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        h = x.transpose(1, 2)
        for block in self.blocks:
            h = block(h)
        return self.classifier(h[:, :, -1])


class _TCNBlock(nn.Module):
    def __init__(self, inputs: int, width: int, dilation: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, width, 3, dilation=dilation)
        self.second = nn.Conv1d(width, width, 3, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, width, 1) if inputs != width else nn.Identity()
        self.activation = activation_layer(activation)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.past = 2 * dilation

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for convolution in (self.first, self.second):
            h = self.drop(self.activation(convolution(F.pad(h, (self.past, 0)))))
        return self.activation(h + self.shortcut(x))


def share(argument: str, value: float) -> float:
    """``value`` as a probability below 1; InputError naming ``argument`` otherwise."""
    if not 0 <= value < 1:
        raise InputError(f"{argument} must be from 0 to below 1, not {value!r}")
    return float(value)
