"""What a command would do, found and checked as if it did it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mct_fast.settings import DistillConfig, ExpertConfig

if TYPE_CHECKING:
    from mct_fast.cli.stored import Source
    from mct_fast.distill.job import Job

Rows = list[tuple[str, ...]]


def experts_plan(config: ExpertConfig, out: Path, progress: Any) -> Rows:
    """What training experts into ``out`` means; :class:`InputError` if it cannot be done."""
    from mct_fast.data import augmentation_of
    from mct_fast.experts import expert_spec, load_for
    from mct_fast.ops.device import taken
    from mct_fast.trajectory import TrajectoryStore

    config = replace(config, device=taken(config.engine.device))
    dataset = load_for(config, progress)
    augmentation_of(config.augmentation, dataset.kind)  # refuses what does not fit the data
    spec = expert_spec(config, dataset)
    training = config.training
    there = len(TrajectoryStore.open(out)) if (out / "manifest.json").is_file() else 0
    steps = training.train_epochs * -(-len(dataset.train) // training.batch_train)
    return [
        ("dataset", _data(dataset)),
        ("network", _network(spec)),
        ("experts", f"{training.num_experts} of {training.train_epochs} epochs, {steps:,} steps each"),
        ("store", f"{out}{f', which has {there} experts' if there else ''}"),
        *[("goes on", text) for text in _under_way(out)],
        ("nothing was done", "leave out --dry_run to begin"),
    ]


def _under_way(out: Path) -> list[str]:
    from mct_fast.experts.group import Unfinished

    behind = list(Unfinished(out).epochs().values())
    return [f"{behind.count(epoch)} experts under way, from epoch {epoch}" for epoch in sorted({*behind}, reverse=True)]


def distill_plan(config: DistillConfig, source: Source, out: Path, progress: Any) -> Rows:
    """What distilling into ``out`` means; :class:`InputError` if it cannot be done."""
    from mct_fast.distill.job import Job
    from mct_fast.ops.device import taken

    config = replace(config, device=taken(config.engine.device))
    given = source.arguments(config, progress)
    job = Job.find(config, given["trajectories"], given.get("dataset"), given.get("model"), None, progress).selectable()
    job.check()
    student, evaluation = config.student, config.evaluation
    images, iterations = config.images.ipc * job.dataset.num_classes, config.optimizer.iterations
    batch = images if student.batch_syn is None else min(student.batch_syn, images)
    count = len({*range(0, iterations, evaluation.eval_it or iterations + 1), iterations}) - (not evaluation.eval_it)
    return [
        ("dataset", _data(job.dataset)),
        ("experts", _experts(job, source)),
        ("network", _network(job.spec)),
        ("images", f"{images}, {config.images.ipc} a class"),
        ("iterations", f"{iterations:,}, each {student.students} x {student.syn_steps} steps on {batch} images"),
        (
            "evaluations",
            f"{count} on {job.config.evaluation.select_on}, each {evaluation.num_eval} networks of "
            f"{evaluation.epoch_eval_train} epochs",
        ),
        ("run", str(out)),
        ("nothing was done", "leave out --dry_run to begin"),
    ]


def _experts(job: Job, source: Source) -> str:
    if job.paths is None:
        return "none: students begin with fresh parameters and are measured on real data"
    return f"{len(job.paths)} of {source.trajectories}, {job.paths[0].epochs} epochs"


def _data(dataset: Any) -> str:
    sizes = ", ".join(f"{len(dataset.split(name))} {name}" for name in ("train", "val", "test"))
    return f"{dataset.name} ({sizes}), {dataset.num_classes} classes"


def _network(spec: dict[str, Any]) -> str:
    import torch

    from mct_fast.models import build_model

    with torch.device("meta"):
        numbers = sum(parameter.numel() for parameter in build_model(spec).parameters())
    return f"{spec['name']}, {numbers:,} parameters"
