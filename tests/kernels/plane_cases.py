"""Matches for the plane kernels: to be run, or on meta tensors to have only their launches recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast.data import DSA
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching.plane_sweep import sweep
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchingProblem, Sets, StudentGradients
from mct_fast.matching.terminal import PathDistance
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.students import FusedStudent, PlaneStudent
from mct_fast.students.planes.memory import Precision
from mct_fast.tasks import Binary, Classification, MultiLabel, Task

TASKS: dict[str, Task] = {
    "hard": Classification(),
    "soft": Classification(),
    "binary": Binary(pos_weight=2.5),
    "multi-label": MultiLabel(pos_weight=(0.5, 2.0, 1.5)),
}
"""By the kind of labels."""


class Anywhere(PlaneStudent):
    """Takes the tensors of any device."""

    def takes(self, like: Tensor) -> bool:
        return like.dtype == torch.float32


@dataclass(frozen=True)
class Case:
    """A network, and the match of S students that train on n images in steps of up to ``batch``."""

    depth: int = 3
    width: int = 128
    channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    outputs: int = 10
    labels: str = "hard"
    students: int = 1
    sets: int = 1
    """Sets of images, of which each has its own students with step sizes of their own."""
    images: int = 10
    batch: int = 10
    steps: int = 3
    augmented: bool = False
    decided: bool = False
    """No unit lies near the bend of its ReLU: the norms' betas are far from zero, of either sign."""
    seed: int = 0

    @property
    def model(self) -> ConvNet:
        return ConvNet(
            depth=self.depth, width=self.width, channels=self.channels, image_size=self.image_size,
            num_classes=self.outputs,
        )  # fmt: skip

    @property
    def fused(self) -> FusedStudent:
        return FusedStudent(self.model, TASKS[self.labels])

    def draw_labels(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Labels of ``shape``; floating ones have a number an output more."""
        if self.labels == "hard":
            return torch.randint(self.outputs, shape, generator=generator)
        drawn = torch.randn(*shape, self.outputs, generator=generator, dtype=torch.float64)
        return (1.3 * drawn.softmax(-1) if self.labels == "soft" else drawn.sigmoid()).float()

    def problem(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MatchingProblem:
        """The same numbers in every dtype, on every device."""
        g = torch.Generator().manual_seed(self.seed)
        functional = FunctionalModel(self.model)
        images = torch.randn(self.sets * self.images, self.channels, *self.image_size, generator=g)
        labels = self.draw_labels(self.sets * self.images, generator=g)
        start = torch.stack([functional.init(s) for s in range(self.students)])
        start = start + 0.05 * torch.randn(start.shape, generator=g)
        if self.decided:
            self._decide(start)
        target = start + 0.05 * torch.randn(start.shape, generator=g)
        rows = torch.stack([draw_batches(self.images, self.batch, self.steps, g) for _ in range(self.students)])
        sizes = (rows[0] >= 0).sum(1).tolist()
        shape = images.shape[1:]
        augment = DSA().plan(self.students, self.steps, sizes, shape, g) if self.augmented else None

        def there(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else t.dtype)

        alpha = torch.tensor(0.05) if self.sets == 1 else torch.linspace(0.02, 0.1, self.students)
        sets = Sets(self.sets, self.students // self.sets)
        return MatchingProblem(
            functional, self.fused, TASKS[self.labels], there(images), there(labels), there(alpha),
            Points.of_values(there(start)), PathDistance(Points.of_values(there(target))), rows.to(device), tuple(sizes),
            augment, sets,
        )  # fmt: skip

    def _decide(self, theta: Tensor) -> None:
        sizes = [torch.Size(shape).numel() for shape in self.fused.plan.shapes]
        for tensor in range(3, 4 * self.depth, 4):
            first = sum(sizes[:tensor])
            theta[:, first : first + self.width] += 5.0 - 10.0 * (torch.arange(self.width) % 3 == 0)

    def match(self, how: Precision, device: str = "cpu", keep_bytes: int = 1 << 40) -> Callable[[], StudentGradients]:
        """A whole match by the engine."""
        problem = self.problem(device=device)
        engine = Anywhere(self.fused, how).engine(torch.device(device))
        return lambda: sweep(problem, engine, carry_curvature=True, keep_bytes=keep_bytes)

    def step(self, how: Precision, device: str = "cpu") -> Callable[[], object]:
        """A step's gradient and its tangent by themselves."""
        problem, student = self.problem(device=device), Anywhere(self.fused, how)
        x, y = problem.batch(0, problem.images, problem.labels)

        def run() -> None:
            student.gradient(problem.theta, x, y)
            student.gradient_tangent(problem.theta, problem.theta, x, y)

        return run
