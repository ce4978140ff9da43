"""How a distilled set is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mct_fast.run.settings import AUTO, Checked, Count, Fraction, Grouped, NonNegative, Positive, Seed
from mct_fast.settings.data import AugmentationConfig


@dataclass(frozen=True)
class NetworksConfig(Checked):
    """The fresh networks, and how they are trained."""

    num_eval: Count = 5
    """Fresh networks to train; the result is their mean and standard deviation."""
    epoch_eval_train: Count = 1000
    """Epochs of training on the distilled set."""
    batch_train: Count = 256
    """Images a step."""
    lr_net: Positive | None = None
    """Step size; None takes the set's own: the one it was distilled to be trained with, or else the learned one."""
    mom: Fraction = 0.9
    """Momentum of SGD."""
    l2: NonNegative = 5e-4
    """Weight decay of SGD."""
    dropout: Fraction = 0.0
    """Share of units that MLP, GRU and TCN drop while they are trained here; students never do."""


@dataclass(frozen=True)
class ProtocolConfig(Checked):
    """What is chosen on which split, with which random numbers, where."""

    select_on: Literal["val", "test"] = "val"
    """The split that picks the step size of the random-real baseline: 'val', or 'test' where that picked the images too."""
    seed: Seed = 0
    """Seed of initialisations, order and augmentation."""
    device: str = AUTO
    """Where to compute: 'cpu', 'cuda', 'cuda:N', or 'auto', the GPU where there is one that the kernels serve, else the
    processor."""
    cuda_graphs: bool = True
    """On a GPU, record the steps of training once and replay them: the same bits sooner."""


@dataclass(frozen=True, init=False)
class EvalConfig(Grouped):
    """How a distilled set is evaluated.  Settings are known by their own names: ``EvalConfig(num_eval=3, device="cuda")``."""

    networks: NetworksConfig = NetworksConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    protocol: ProtocolConfig = ProtocolConfig()
