"""Fits the control points of Bézier paths on real data: the loss is kept low along the curve, its two ends fixed.

Source: arXiv 2510.05805 (Bézier trajectory matching) with the objective of Garipov et al. (NeurIPS 2018, eq. 2): minimise
E_{s ~ U[0, 1]} loss(theta_phi(s)) over phi by SGD, dloss/dphi = 2 s (1 - s) dloss/dtheta.  Every expert has its own random
stream, so that its curve does not depend on which others are fitted beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.data import Dataset, load_noted
from mct_fast.models import FunctionalModel, build_model
from mct_fast.ops.device import taken
from mct_fast.run.errors import InputError
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.seeds import generator
from mct_fast.settings import BezierConfig
from mct_fast.students import Student, student_for
from mct_fast.tasks import Task, task_from_state
from mct_fast.trajectory import TrajectoryStore

MOMENTUM = 0.9
PROBES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Places on the curve at which the loss is reported."""


def fit_bezier(
    trajectories: TrajectoryStore | str | Path,
    config: BezierConfig = BezierConfig(),
    dataset: Dataset | None = None,
    *,
    progress: Progress = quiet(),
) -> TrajectoryStore:
    """Fits a control point for every expert of a store that has none, and adds it to the store.

    Experts that have one are left alone, so a killed run goes on.  What is noted with each: the mean training loss at
    :data:`PROBES` along the straight line and along the fitted curve.

    Raises:
        InputError: a setting out of range, another dataset than the experts', or an expert whose fit diverged.
    """
    config = replace(config, device=taken(config.device))
    store = trajectories if isinstance(trajectories, TrajectoryStore) else TrajectoryStore.open(trajectories)
    noted = store.manifest["dataset"]
    if dataset is None:
        dataset = load_noted(noted, data_path=config.data_path, device=config.device, progress=progress)
    if noted.get("fingerprint") not in (None, dataset.fingerprint):
        raise InputError(f"dataset: {dataset.name} is not the data the experts were trained on; load it as they did")
    task = task_from_state(store.manifest.get("task"), dataset.task)
    student = student_for(FunctionalModel(build_model(store.manifest["model"])), task, config.device)
    todo = [i for i in range(len(store)) if not store.has_control(i)]
    with progress.task("control points", len(todo) * config.epochs) as bar:
        for first in range(0, len(todo), config.parallel):
            _fit_group(todo[first : first + config.parallel], store, config, dataset, student, task, bar)
    return store


def _fit_group(
    rows: list[int],
    store: TrajectoryStore,
    config: BezierConfig,
    dataset: Dataset,
    student: Student,
    task: Task,
    bar: Any,
) -> None:
    paths = [store[i] for i in rows]
    starts, ends = (torch.stack([path.at(t) for path, t in zip(paths, ts, strict=True)]).to(config.device)
                    for ts in ([0.0] * len(paths), [float(path.epochs) for path in paths]))  # fmt: skip
    numbers = [store.experts[i] for i in rows]
    streams = [generator(config.seed, "bezier", number) for number in numbers]
    images, labels = (t.to(config.device) for t in (dataset.train.images, dataset.train.labels))
    line = (starts + ends) / 2
    control = fit_control(
        student, starts, ends, images, labels, streams, config, tick=lambda loss: bar.advance(len(rows), loss=loss)
    )
    before = _loss_along(student, task, starts, line, ends, images, labels)
    after = _loss_along(student, task, starts, control, ends, images, labels)
    for row, number in enumerate(numbers):
        if not bool(torch.isfinite(control[row]).all()):
            raise InputError(f"lr: the control point of expert {number} diverged; lower it below {config.lr}")
        info = {
            "recipe": {k: v for k, v in asdict(config).items() if k not in ("parallel", "device", "data_path")},
            "places": list(PROBES),
            "loss_line": before[:, row].tolist(),
            "loss_curve": after[:, row].tolist(),
        }
        store.add_control(number, control[row].cpu(), info)


def fit_control(
    student: Student,
    starts: Tensor,
    ends: Tensor,
    images: Tensor,
    labels: Tensor,
    streams: Sequence[torch.Generator],
    config: BezierConfig,
    tick: Any = None,
) -> Tensor:
    """Control points ``(E, P)`` of E curves from ``starts (E, P)`` to ``ends (E, P)``, begun at the middle of the line.

    ``streams``: one CPU generator a curve.  ``tick(mean loss)`` is called after each epoch.
    """
    control = (starts + ends) / 2
    velocity = torch.zeros_like(control)
    steps = math.ceil(len(images) / config.batch_train) * config.epochs
    done = 0
    for _ in range(config.epochs):
        order = torch.stack([torch.randperm(len(images), generator=g) for g in streams]).to(images.device)
        losses = []
        for rows in order.split(config.batch_train, dim=1):
            share = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in streams])
            s = share.to(control)[:, None]
            theta = (1 - s).square() * starts + 2 * s * (1 - s) * control + s.square() * ends
            loss, grad = student.gradient(theta, images[rows], labels[rows])
            lr = config.lr * 0.5 * (1 + math.cos(math.pi * done / steps))
            lrs = torch.full((len(control),), lr, dtype=control.dtype, device=control.device)
            ops.sgd_step_(control, grad * (2 * s * (1 - s)), velocity, lrs, MOMENTUM, 0.0)
            losses.append(loss.mean())
            done += 1
        if tick is not None:
            tick(float(torch.stack(losses).mean()))
    return control


def _loss_along(
    student: Student, task: Task, starts: Tensor, control: Tensor, ends: Tensor, images: Tensor, labels: Tensor,
    chunk: int = 1024,
) -> Tensor:  # fmt: skip
    """Mean training losses ``(places, E)`` at :data:`PROBES`."""
    found = []
    for s in PROBES:
        theta = (1 - s) ** 2 * starts + 2 * s * (1 - s) * control + s**2 * ends
        total = torch.zeros(len(starts), dtype=torch.float64)
        for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
            losses = torch.stack([task.loss(outputs, y) for outputs in student.logits(theta, x)])
            total += losses.double().cpu() * len(x)
        found.append(total / len(images))
    return torch.stack(found)
