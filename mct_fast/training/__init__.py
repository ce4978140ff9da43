"""Plain training of several networks at once: experts on real data, evaluation networks on synthetic data."""

from mct_fast.training.epochs import Schedule, largest_loss, outputs, scores, train_epochs
from mct_fast.training.networks import named_spec
from mct_fast.training.stacks import (
    GSAM,
    SGD,
    Descent,
    FlatStack,
    ModuleStack,
    NetworkStack,
    Steepest,
    build_stack,
)

__all__ = [
    "GSAM",
    "SGD",
    "Descent",
    "FlatStack",
    "ModuleStack",
    "NetworkStack",
    "Schedule",
    "Steepest",
    "build_stack",
    "largest_loss",
    "named_spec",
    "outputs",
    "scores",
    "train_epochs",
]
