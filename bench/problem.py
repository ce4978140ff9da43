"""One matching problem, the same for every contestant, rebuilt bit for bit from a few numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.data import DSA, AugmentPlan
from mct_fast.distill.sampling import draw_batches
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.students import GenericStudent
from mct_fast.tasks import Classification

FULL_DSA = "color_crop_cutout_flip_scale_rotate"

RECIPES = {1: (50, 10), 10: (30, 100), 50: (30, 500)}
"""IPC: (syn_steps, batch_syn) of MTT on CIFAR-10 as its author gives them; all images in every batch."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Setting:
    """The numbers that make a problem."""

    ipc: int = 1
    syn_steps: int = 50
    batch_syn: int = 10
    depth: int = 3
    width: int = 128
    channels: int = 3
    image_size: int = 32
    num_classes: int = 10
    strategy: str = FULL_DSA
    syn_lr: float = 0.01
    weights: str = "random"
    """Where the segment starts: ``random`` (a fresh network) or ``trained``."""
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0

    @property
    def num_images(self) -> int:
        return self.ipc * self.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def convnet(self) -> ConvNet:
        """The reference network of this setting, ours."""
        return ConvNet(
            depth=self.depth,
            width=self.width,
            channels=self.channels,
            image_size=self.image_size,
            num_classes=self.num_classes,
        )


@dataclass(frozen=True)
class Problem:
    """The tensors of a :class:`Setting`.  Everything random of an iteration follows from ``setting.seed``."""

    setting: Setting
    model: FunctionalModel
    images: Tensor
    labels: Tensor
    syn_lr: Tensor
    start: Tensor
    target: Tensor

    def to(self, dtype: str) -> Problem:
        """The same numbers in another precision."""
        wide = {name: getattr(self, name).to(DTYPES[dtype]) for name in ("images", "syn_lr", "start", "target")}
        return replace(self, setting=replace(self.setting, dtype=dtype), **wide)

    def batch_generator(self) -> torch.Generator:
        """A fresh stream of the order of batches, from PyTorch's ``randperm`` as the references draw it."""
        return torch.Generator().manual_seed(self.setting.seed)

    def step_seed(self, step: int) -> int:
        """The seed of the augmentation at ``step``: ours from a generator, the references' from the global one."""
        return 1_000_003 * (self.setting.seed + 1) + step

    def batches(self) -> Tensor:
        """Rows ``(syn_steps, batch_syn)``."""
        setting = self.setting
        return draw_batches(len(self.images), setting.batch_syn, setting.syn_steps, self.batch_generator())

    def augmentation(self, batches: Tensor) -> AugmentPlan | None:
        """The draws of all steps for one student."""
        dsa = DSA(self.setting.strategy)
        if not dsa.kinds:
            return None
        generator = torch.Generator()
        draws = [
            dsa.draw(size, self.setting.image_shape, generator.manual_seed(self.step_seed(step)))
            for step, size in enumerate((batches >= 0).sum(1).tolist())
        ]
        return AugmentPlan((tuple(draws),))


def build(setting: Setting) -> Problem:
    """The problem of ``setting``: smooth class patterns with noise for images, a short stretch of SGD for the segment."""
    model = FunctionalModel(setting.convnet())
    generator = torch.Generator().manual_seed(7919 * (setting.seed + 1))
    patterns = torch.randn(setting.num_classes, setting.channels, 4, 4, generator=generator)
    patterns = F.interpolate(patterns, size=setting.image_shape[1:], mode="bilinear", align_corners=True)
    images, labels = _images(patterns, setting.ipc, generator)
    start = model.init(setting.seed)
    if setting.weights == "trained":
        start = _train(model, start, patterns, steps=60, lr=0.05, generator=generator)
    target = _train(model, start, patterns, steps=12, lr=0.02, generator=generator)
    # float32 values in either precision: the float64 oracle has to see the same numbers.
    dtype, device = DTYPES[setting.dtype], setting.device
    syn_lr = torch.tensor(setting.syn_lr, dtype=torch.float32)
    images, start, target, syn_lr = (t.to(device, dtype) for t in (images, start, target, syn_lr))
    return Problem(setting, model, images, labels.to(device), syn_lr, start, target)


def _images(patterns: Tensor, ipc: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(patterns)).repeat_interleave(ipc)
    clean = patterns[labels]
    return clean + 0.5 * torch.randn(clean.shape, generator=generator), labels


def _train(
    model: FunctionalModel, params: Tensor, patterns: Tensor, *, steps: int, lr: float, generator: torch.Generator
) -> Tensor:
    """``steps`` of plain SGD on noisy patterns, four a class, in plain PyTorch."""
    student = GenericStudent(model, Classification())
    for _ in range(steps):
        x, y = _images(patterns, max(1, min(4, 400 // len(patterns))), generator)
        _, g = student.gradient(params[None], x[None], y[None])
        params = params - lr * g[0]
    return params
