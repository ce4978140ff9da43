"""Real data on one device: images, tables and series, splits, transforms and DSA augmentation."""

from mct_fast.data.augment import DSA, Augment, AugmentPlan, Jitter, augmentation, augmentation_of
from mct_fast.data.dataset import Dataset
from mct_fast.data.datasets import load_dataset, load_noted, register_dataset, table_dataset
from mct_fast.data.splits import Split, random_real
from mct_fast.data.transforms import ZCA, Identity, Normalize, Transform, transform_from_state
from mct_fast.settings import AugmentationConfig, TableSpec, TimeGrid
from mct_fast.tabular.columns import Column, TableTransform

__all__ = [
    "DSA",
    "ZCA",
    "Augment",
    "AugmentPlan",
    "AugmentationConfig",
    "Column",
    "Dataset",
    "Identity",
    "Jitter",
    "Normalize",
    "Split",
    "TableSpec",
    "TableTransform",
    "TimeGrid",
    "Transform",
    "augmentation",
    "augmentation_of",
    "load_dataset",
    "load_noted",
    "random_real",
    "register_dataset",
    "table_dataset",
    "transform_from_state",
]
