"""The data, task and network that the settings of experts name."""

from __future__ import annotations

from typing import Any

import torch

from mct_fast.data import Dataset, load_dataset
from mct_fast.models import build_model, model_spec
from mct_fast.run.progress import Progress, quiet
from mct_fast.settings import ExpertConfig
from mct_fast.tasks import Task, task_named
from mct_fast.training import named_spec


def expert_task(config: ExpertConfig, dataset: Dataset) -> Task:
    """The task that experts, and the students after them, are trained for."""
    task = task_named(config.objective.task or dataset.task).weighted(config.objective.pos_weight, dataset.train.labels)
    task.check(dataset.train.labels, task.num_outputs(dataset.num_classes))
    return task


def expert_spec(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """The full model spec of the experts."""
    network = config.network
    shape = {"depth": network.depth, "width": network.width, "activation": network.activation}
    by_name: dict[str, dict[str, Any]] = {
        "ConvNet": {**shape, "norm": network.norm, "pooling": network.pooling},
        # A vector has no plane to normalise: the default norm of the ConvNet means none here.
        "MLP": {**shape, "norm": "none" if network.norm == "instance" else network.norm},
        "GRU": {"depth": network.depth, "width": network.width},
        "TCN": shape,
    }
    given = {"name": network.model, **by_name.get(network.model, {})}
    return model_spec(build_model(named_spec(given, dataset, expert_task(config, dataset))))


def load_for(config: ExpertConfig, progress: Progress = quiet()) -> Dataset:
    """The dataset that ``config`` names."""
    data = config.data
    return load_dataset(
        data.dataset,
        data_path=data.data_path,
        download=data.download,
        zca=data.zca,
        val_fraction=data.val_fraction,
        split_seed=data.split_seed,
        image_size=data.image_size,
        device=config.engine.device,
        table=data.table,
        grid=data.grid,
        progress=progress,
    )


_RECIPE = (
    "stratify", "train_epochs", "lr_teacher", "mom", "l2", "rho", "gsam_alpha", "batch_train", "dsa", "dsa_strategy", "jitter",
    "decay", "waypoints", "smooth", "schedule", "keep_checkpoints", "seed",
)  # fmt: skip
"""The settings that make two experts comparable, in the order of the stores that exist."""


def recipe_of(config: ExpertConfig, dataset: Dataset) -> dict[str, Any]:
    """What makes two experts comparable: the training recipe without what does not change the result."""
    without = {"jitter"} if dataset.kind == "images" else {"dsa", "dsa_strategy"}
    settings = config.flat()
    recipe = {name: settings[name] for name in _RECIPE if name not in without}
    return {"kind": "sgd", "torch": torch.__version__, **recipe}
