"""Stage 3: synthetic images, improved so that students trained on them follow the experts' paths."""

from mct_fast.distill.config import adjoint_of, check_config
from mct_fast.distill.loop import distill, sweep
from mct_fast.distilled import DistilledDataset
from mct_fast.settings import DistillConfig

__all__ = ["DistillConfig", "DistilledDataset", "adjoint_of", "check_config", "distill", "sweep"]
