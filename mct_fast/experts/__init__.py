"""Stage 1: experts trained on real data, and the paths that they took."""

from mct_fast.experts.config import expert_spec, expert_task, load_for
from mct_fast.experts.train import train_experts
from mct_fast.settings import ExpertConfig

__all__ = ["ExpertConfig", "expert_spec", "expert_task", "load_for", "train_experts"]
