"""The product on disk."""

from mct_fast.distilled.dataset import DistilledDataset

__all__ = ["DistilledDataset"]
