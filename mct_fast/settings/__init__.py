"""The settings of every stage, and the names that they may hold.

Nothing here needs PyTorch: help on the command line is there at once.
"""

from mct_fast.settings.data import AugmentationConfig, TableSpec, TimeGrid
from mct_fast.settings.distill import DistillConfig, SegmentSampler
from mct_fast.settings.evaluation import EvalConfig
from mct_fast.settings.experts import BezierConfig, ExpertConfig

__all__ = [
    "AugmentationConfig",
    "BezierConfig",
    "DistillConfig",
    "EvalConfig",
    "ExpertConfig",
    "SegmentSampler",
    "TableSpec",
    "TimeGrid",
]
