"""Real data on one device: datasets, splits, pixel transforms and DSA augmentation."""

from mct_fast.data.augment import DSA, AugmentPlan
from mct_fast.data.datasets import Dataset, load_dataset, register_dataset
from mct_fast.data.splits import Split, random_real
from mct_fast.data.transforms import ZCA, Identity, Normalize, Transform, transform_from_state

__all__ = [
    "DSA",
    "ZCA",
    "AugmentPlan",
    "Dataset",
    "Identity",
    "Normalize",
    "Split",
    "Transform",
    "load_dataset",
    "random_real",
    "register_dataset",
    "transform_from_state",
]
