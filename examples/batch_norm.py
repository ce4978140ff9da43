"""A network of one's own, with batch norm: experts, distillation, evaluation.

python examples/batch_norm.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from mct_fast.data import load_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.evaluate import EvalConfig, evaluate, evaluate_random_real
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.models import register_model


def network(channels: int, image_size: int, num_classes: int) -> nn.Module:
    """Two blocks of convolution, batch norm, ReLU and pooling."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8, track_running_stats=False),  # the statistics of the batch at hand, also in evaluation
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * (image_size // 4) ** 2, num_classes),
    )


def main(out: Path, epochs: int = 5, iterations: int = 20, eval_epochs: int = 100) -> float:
    """Returns the test accuracy of networks that were trained on one image a class."""
    register_model("batch-norm", network)
    digits = load_dataset("digits")
    settings = ExpertConfig(dataset="digits", model="batch-norm", num_experts=2, train_epochs=epochs, batch_train=64)
    store = train_experts(settings, out / "experts", digits)
    config = DistillConfig(
        ipc=1, syn_steps=8, max_start_epoch=2, lr_img=30, iterations=iterations, eval_it=0, epoch_eval_train=eval_epochs
    )
    distilled = distill(config, store, digits, out=out / "run")
    how = EvalConfig(num_eval=3, epoch_eval_train=eval_epochs)
    found = evaluate(distilled, digits, how)
    print("distilled:  ", found)
    print("random real:", evaluate_random_real(1, digits, how, model="batch-norm", lrs=(0.01, distilled.lr_net)))
    return found.mean


if __name__ == "__main__":
    main(Path(sys.argv[1]))
