"""Images and labels at the beginning of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from mct_fast.data import random_real
from mct_fast.distill.config import layout_of
from mct_fast.distill.job import Job
from mct_fast.distill.learned import HardLabels, Labels, SoftLabels, assigned
from mct_fast.distill.state import State
from mct_fast.run.seeds import generator


def initial_state(job: Job) -> State:
    """The state that a run begins with."""
    images, hard = _rows(job)
    return State(images, _labels(job, images, hard), job.config.student.lr_teacher, job.config.optimizer)


def _rows(job: Job) -> tuple[Tensor, Tensor]:
    """Real images with their labels; or noise, with the labels that real images would have."""
    config, train = job.config, job.dataset.train
    layout, seed = layout_of(config), config.engine.seed
    stream = generator(seed, "pix-init")
    if config.images.pix_init == "real":
        images, labels = layout.real(train, config.images.ipc, job.task, stream)
    else:
        _, labels = random_real(train, config.images.ipc, stream, job.task)
        shape = layout.shape(job.dataset.image_shape)
        images = torch.randn((len(labels), *shape), generator=generator(seed, "pix-init"))
    return images.to(config.engine.device), labels.to(config.engine.device)


def _labels(job: Job, images: Tensor, hard: Tensor) -> Labels:
    config, link = job.config.optimizer, job.task.link
    if job.config.images.labels == "expert":
        assert job.paths is not None  # which was checked
        experts = [job.paths[i] for i in range(len(job.paths))]
        seen = assigned(images, job.student(), experts, link)
        return SoftLabels(seen, config.lr_label, config.mom_img, link)
    if config.lr_label == 0:
        return HardLabels(hard)
    first = link.smoothed(job.task.soft(hard, job.dataset.num_classes, images.dtype))
    return SoftLabels(first, config.lr_label, config.mom_img, link)
