"""What is wrong with the settings of a run, and the strategies that they name."""

from __future__ import annotations

import math
from typing import Any

import torch

from mct_fast.data import Dataset, augmentation_of
from mct_fast.distill.pixels import Canvases, Layout, Plain
from mct_fast.evaluate import check_scorable, split_of
from mct_fast.matching.adjoint import ADJOINTS, KEEP_BYTES, Adjoint, Exact, Truncated
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.ops.device import usable_device
from mct_fast.run.errors import InputError
from mct_fast.run.memory import check_fits
from mct_fast.run.seeds import derive_seed
from mct_fast.settings import DistillConfig, EvalConfig
from mct_fast.settings.distill import EngineConfig
from mct_fast.tasks import Task, task_named
from mct_fast.trajectory import Trajectory


def check_config(config: DistillConfig, dataset: Dataset, first: Trajectory | None, task: Task | None = None) -> None:
    """Raises :class:`InputError` for settings that do not fit the data or the paths, naming the field and the remedy.

    ``first`` is one of the paths, None where there are no experts; ``task`` what the dataset's labels say, by default.
    """
    layout = layout_of(config)
    layout.check(dataset, config.images.labels)
    augmentation_of(config.augmentation, dataset.kind)  # refuses what does not fit the data
    task = task or task_named(dataset.task)
    wanted = config.images.ipc * (layout.real_images if config.images.pix_init == "real" else 1)
    task.draw_rows(dataset.train.labels, dataset.num_classes, wanted, torch.Generator())  # refuses too many
    select_on = config.evaluation.select_on
    check_scorable(split_of(dataset, select_on), dataset, task, select_on)
    window, steps = config.goal.window, config.student.syn_steps
    if window is not None and window > steps:
        raise InputError(f"window: {window} steps are more than syn_steps={steps}; give at most {steps}")
    if first is None and config.images.labels == "expert":
        raise InputError("labels: 'expert' needs experts; give a store, or use labels='hard'")
    if first is not None and config.goal.objective == "matching":
        config.path.check(first.epochs, continuous_path=first.continuous)


def check_memory(config: DistillConfig, dataset: Dataset, num_params: int) -> None:
    """Raises :class:`InputError` for settings that ask for more memory than the device has in all."""
    device, students = config.engine.device, config.student.students
    count = config.images.ipc * dataset.num_classes * math.prod(layout_of(config).shape(dataset.image_shape))
    path = 4.0 * (config.student.syn_steps + 1) * num_params
    check_fits("syn_steps", path, "a student's parameters of every step", device)
    check_fits("canvas" if config.images.canvas > 1 else "ipc", 16.0 * count, "the images and their gradients", device)
    check_fits("students", 4.0 * students * count, "the images' gradient of each student", device)


LATER = {
    "objective": "matching",
    "window": None,
    "real_batch": 256,
    "balanced": False,
    "growing": 0,
    "keep_prior": False,
    "cosine": False,
    "clip": 0.0,
}
"""Settings that earlier releases did not know, and what they did."""


def noted(config: DistillConfig) -> dict[str, Any]:
    """The settings as a run notes them: without those that say what runs of earlier releases did too, which can so go on."""
    return {name: value for name, value in config.flat().items() if name not in LATER or value != LATER[name]}


def evaluation_of(config: DistillConfig) -> EvalConfig:
    """How the images of a run are evaluated, every time with the same networks."""
    chosen = config.evaluation
    return EvalConfig(
        augmentation=config.augmentation,
        num_eval=chosen.num_eval,
        epoch_eval_train=chosen.epoch_eval_train,
        batch_train=chosen.batch_train,
        lr_net=chosen.lr_net,
        select_on=chosen.select_on,
        seed=derive_seed(config.engine.seed, "eval"),
        device=config.engine.device,
        cuda_graphs=config.engine.cuda_graphs,
    )


def adjoint_of(config: DistillConfig) -> Adjoint:
    """The strategy that ``config`` asks for."""
    engine = config.engine
    if engine.adjoint == "unrolled":  # autograd's graph is another at every iteration
        return ADJOINTS[engine.adjoint]
    strategy = Exact if engine.adjoint == "exact" else Truncated
    sweep = strategy(keep_bytes=_keep_bytes(engine))
    return Graphed(sweep) if engine.cuda_graphs else sweep


def _keep_bytes(engine: EngineConfig) -> int:
    """Bytes of activations to keep; how many are kept changes no bit of a result."""
    if engine.keep_mb is not None:
        return engine.keep_mb << 20
    if usable_device(engine.device).type != "cuda":
        return KEEP_BYTES
    return torch.cuda.get_device_properties(engine.device).total_memory // 8


def layout_of(config: DistillConfig) -> Layout:
    """How the images that ``config`` asks for lie in the pixels."""
    times = config.images.canvas
    return Plain() if times == 1 else Canvases(times)
