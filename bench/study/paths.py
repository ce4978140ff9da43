"""What the experts' paths are like: how accurate a network on them is, and the bytes they take."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, pstdev
from typing import Any

import torch

from bench.study.plans import Convex
from mct_fast.data import Dataset
from mct_fast.models import FunctionalModel, build_model
from mct_fast.students import student_for
from mct_fast.tasks import Classification
from mct_fast.training import SGD, FlatStack, scores
from mct_fast.trajectory import ConvexTrajectory, Trajectory, TrajectoryStore
from mct_fast.trajectory.encoding import ENCODINGS

MTT_CHECKPOINTS = 51
"""What the reference keeps of an expert: 50 epochs and the beginning."""


def path_scores(store: TrajectoryStore, dataset: Dataset) -> Mapping[str, Any]:
    """Test accuracy along the SGD path and along the convex path at whole epochs, over the experts."""
    student = student_for(
        FunctionalModel(build_model(store.manifest["model"])), Classification(), dataset.test.images.device
    )

    def along(path: Trajectory, times: list[float]) -> list[float]:
        networks = torch.stack([path.at(t) for t in times]).to(dataset.test.images.device)
        stack = FlatStack(student, networks, SGD())
        return scores(stack, dataset.test.images, dataset.test.labels, Classification())

    times = [float(t) for t in range(store[0].epochs + 1)]
    sgd = [along(store.trajectory(i, "discrete"), times) for i in range(len(store))]
    convex = [along(path, times) for path in Convex().paths(store)]
    return {
        "split": "test",
        "networks": len(store),
        "sgd": {"epochs": times, **_spread(sgd)},
        "convex": {"epochs": times, **_spread(convex)},
    }


def _spread(rows: list[list[float]]) -> dict[str, list[float]]:
    """Mean and population standard deviation of each column."""
    columns = list(zip(*rows, strict=True))
    return {"mean": [fmean(column) for column in columns], "std": [pstdev(column) for column in columns]}


def storage(store: TrajectoryStore) -> Mapping[str, Any]:
    """Bytes of tensors that an expert's path takes: as checkpoints, as a convex path, and as one that begins from a seed."""
    path, kept = store[0], store.trajectory(0, "discrete")
    assert isinstance(path, ConvexTrajectory)
    parameters = sum(shape.numel() for shape in store.shapes)
    table = path.progress.numel() * 8
    from_seed = {
        f"convex_seed_{name}": encoding.nbytes(store.shapes) + table
        for name, encoding in ENCODINGS.items()
        if name != "float32"
    }
    return {
        "experts": len(store),
        "epochs": path.epochs,
        "parameters": parameters,
        "bytes_an_expert": {
            "checkpoints": 4 * parameters * (kept.epochs + 1),
            "convex_float32": path.waypoints.numel() * 4 + table,
            **from_seed,
            "mtt_51_checkpoints": 4 * parameters * MTT_CHECKPOINTS,
        },
    }
