"""The `mct_fast.students.Student` that runs a ConvNet on the plane kernels where they serve, and on the operators elsewhere."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.students.fused import FusedStudent
from mct_fast.students.fused_convnet import ConvPlan
from mct_fast.students.planes.geometry import Geometry, why_not
from mct_fast.students.planes.memory import Precision, Step, TangentStep, precision
from mct_fast.students.protocol import Tangent
from mct_fast.tasks.heads import BinaryCrossEntropyHead, Head

if TYPE_CHECKING:
    from mct_fast.students.planes.engine import Engine, Loss
    from mct_fast.students.planes.parameters import Weights

LOGITS_IMAGES = 2048
"""Images, times students, that `logits` takes at once: it bounds its memory."""


class PlaneStudent:
    """``fused``, a ConvNet's student, computed by `Engine` for float32 tensors on a CUDA device.

    Elsewhere it is ``fused``. The products' precision is PyTorch's own choice for convolutions when a device is first met
    (`mct_fast.students.planes.memory.precision`).
    """

    def __init__(self, fused: FusedStudent, how: Precision | None = None) -> None:
        assert isinstance(fused.plan, ConvPlan)
        self.fused, self._geometry, self._how = fused, Geometry.of(fused.plan), how
        self._engines: dict[tuple[torch.device, str], Engine] = {}
        self._last: tuple[Any, Step] | None = None

    @staticmethod
    def serves(fused: FusedStudent, device: torch.device) -> bool:
        """Whether there are kernels for the network on the device."""
        takes = isinstance(fused.plan, ConvPlan) and why_not(fused.plan) is None
        return takes and device.type == "cuda" and find_spec("triton") is not None

    @property
    def num_params(self) -> int:
        return self.fused.num_params

    def takes(self, like: Tensor) -> bool:
        """Whether the kernels serve tensors like this one."""
        return like.is_cuda and like.dtype == torch.float32

    def engine(self, device: torch.device) -> Engine:
        """The launches for a device, in the precision that PyTorch's switch asks for now."""
        from mct_fast.students.planes.engine import Engine  # imports Triton, at the first use on a GPU

        how = self._how or precision()
        key = device, how.name
        if key not in self._engines:
            loss = _loss(self.fused.head, self._geometry.outputs, device)
            # Programmatic launches are Hopper's: the same bits, 5 to 9 % sooner on an H100.
            chained = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
            self._engines[key] = Engine(self._geometry, loss, how, device, chained=chained)
        return self._engines[key]

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self.takes(x):
            return self.fused.gradient(params, x, y)
        with torch.cuda.device_of(x):
            engine, step, weights, patches, targets, arena = self._made(params, x, y)
            students, batch = x.shape[:2]
            engine.backward(weights, patches, targets, step, arena, students, batch)
            return step.loss.clone(), engine.parameters.gradient(
                arena, engine.parameters.parts(students, batch), step.tau, students
            )

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
        if not self.takes(x):
            return self.fused.gradient_keeping(params, x, y)
        return *self.gradient(params, x, y), None

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Any = None) -> Tangent:
        if not self.takes(x):
            return self.fused.gradient_tangent(params, tangent, x, y, tape)
        with torch.cuda.device_of(x):
            return self._tangent(params, tangent, x, y)

    def _tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor) -> Tangent:
        from mct_fast.students.planes.parameters import power_of_two

        tangent = self._checked(tangent, "tangent")
        engine, step, weights, patches, targets, arena = self._made(params, x, y)
        students, batch = x.shape[:2]
        engine.backward(weights, patches, targets, step, arena, students, batch, gradients=False)
        dot, g = engine.parameters.room(students), engine.geometry
        sigma = power_of_two(tangent)
        engine.parameters.pack(tangent, dot, sigma)
        t = TangentStep.allocate(g, students, batch, engine.columns(batch), engine.device, engine.how)
        loss_dot = torch.empty(students, dtype=torch.float64, device=x.device)
        gx = torch.empty_like(x, memory_format=torch.contiguous_format)
        gy = torch.empty_like(targets)
        engine.tangent(
            weights, dot, patches, targets, step, t, arena, loss_dot, gy, gx, students, batch, curvature=True
        )  # fmt: skip
        hvp = engine.parameters.gradient(arena, engine.parameters.parts(students, batch), step.tau, students)
        scale = sigma[:, None]
        soft = (gy.view(students, -1) / scale).view(y.shape) if y.is_floating_point() else None
        by_images = (gx.view(students, -1) / scale).view(gx.shape)
        return Tangent((loss_dot / sigma).to(x.dtype), hvp / scale, by_images, soft)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        if not self.takes(x):
            return self.fused.logits(params, x)
        with torch.cuda.device_of(x):
            engine, students = self.engine(x.device), len(params)
            params, weights = self._checked(params, "params"), engine.parameters.room(students)
            self._check_images(x[None])
            engine.parameters.pack(params, weights)
            chunk = max(1, LOGITS_IMAGES // students)
            return torch.cat([self._outputs(engine, weights, part, students) for part in x.split(chunk)], dim=1)

    def _outputs(self, engine: Engine, weights: Weights, x: Tensor, students: int) -> Tensor:
        """``(S, b, K)`` of all students on the same images ``(b, C, H, W)``."""
        step, one = self._room(engine, students, len(x)), engine.patches.room(len(x))
        engine.patches.cut(x.contiguous(), one)
        shared = type(one)(one.patches.repeat(students, 1, 1), one.sums.repeat(students, 1))
        engine.forward(weights, shared, step, students, len(x))
        return step.out[: students * len(x)].view(students, len(x), -1).clone()

    def _room(self, engine: Engine, students: int, batch: int) -> Step:
        """Buffers of a step: those of the last call, where they are of its size; a graph being recorded has its own."""
        if engine.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return Step.allocate(engine.geometry, 1, students, batch, engine.device, engine.how)[0]
        key = engine.how.name, engine.device, students, batch
        if self._last is None or self._last[0] != key:
            self._last = None  # the old ones go first
            (step,) = Step.allocate(engine.geometry, 1, students, batch, engine.device, engine.how)
            self._last = key, step
        return self._last[1]

    def _made(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Any, ...]:
        """Everything in the engine's form, and the forward sweep done."""
        engine = self.engine(x.device)
        students, batch = x.shape[:2]
        params, targets = self._checked(params, "params"), engine.targets(y)
        self._check_images(x)
        if targets.shape != (students, batch, engine.geometry.outputs):
            raise InputError(
                f"y: labels of shape {tuple(y.shape)}; give {engine.geometry.outputs} outputs for {batch} images"
            )
        engine.check_batch(batch)
        targets = targets.flatten(0, 1)
        weights, patches = engine.parameters.room(students), engine.patches.room(students * batch)
        engine.parameters.pack(params, weights)
        engine.patches.cut(x.contiguous().flatten(0, 1), patches)
        step = self._room(engine, students, batch)
        arena = engine.parameters.arena(students, (batch,))
        engine.forward(weights, patches, step, students, batch)
        return engine, step, weights, patches, targets, arena

    def _checked(self, vectors: Tensor, name: str) -> Tensor:
        """``vectors (S, P)``, contiguous. The kernels trust what they are given."""
        if vectors.dim() != 2 or vectors.shape[1] != self.num_params:
            raise InputError(f"{name}: shape {tuple(vectors.shape)}, expected (S, {self.num_params})")
        return vectors.contiguous()

    def _check_images(self, x: Tensor) -> None:
        expected = self._geometry.channels, *self._geometry.image_size
        if tuple(x.shape[2:]) != expected:
            raise InputError(f"x: images of shape {tuple(x.shape[2:])}, expected {expected}")


def _loss(head: Head, outputs: int, device: torch.device) -> Loss:
    from mct_fast.students.planes.engine import Loss

    if isinstance(head, BinaryCrossEntropyHead):
        return Loss(True, *head.weights(outputs, torch.float32, device), head.targets)
    ones = torch.ones(outputs, device=device)
    return Loss(False, ones, ones, head.targets)
