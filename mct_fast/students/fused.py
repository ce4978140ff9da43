"""ConvNet and MLP students on the project's operators: S networks a call, without an autograd graph.

`FusedStudent` computes the step's gradient by one forward and one backward sweep, and its tangent by the same sweeps
over dual numbers (forward over reverse): activations of one step are all the memory it needs. Notation as in
`mct_fast.ops`: a trailing ``dot`` is a tangent, a leading ``g`` a cotangent. Sources: the chain rule; the block formulas
stand in `mct_fast.ops`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mct_fast.models import MLP, ConvNet, FunctionalModel
from mct_fast.run.errors import InputError
from mct_fast.students.fused_convnet import ConvPlan, FusedConvNet
from mct_fast.students.fused_mlp import FusedMLP, MLPPlan
from mct_fast.students.network import Network, Tape
from mct_fast.students.protocol import Tangent
from mct_fast.tasks import Classification, Task

_LOGITS_PIXELS = 1 << 18
"""Pixels (images x students x plane) that `logits` carries at once, which bounds its memory."""


@contextmanager
def _kernels_only() -> Iterator[None]:
    """No graph, and none of the dispatcher's autograd layer either: it costs more than the small kernels."""
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        yield


def plan_of(model: nn.Module | FunctionalModel) -> ConvPlan | MLPPlan | str:
    """The plan of a supported model; else the reason, in words, why `FusedStudent` cannot take it."""
    module = model.module if isinstance(model, FunctionalModel) else model
    if type(module) is MLP:
        if module.activation != "relu":
            return f"MLP with activation={module.activation!r}: the operators have ReLU only"
        if module.norm not in ("layer", "none"):
            return f"MLP with norm={module.norm!r}: the operators have layer norm or none"
        weights = [p for p in module.parameters() if p.dim() == 2]
        return MLPPlan((weights[0].shape[1], *(w.shape[0] for w in weights)), norm=module.norm == "layer")
    if type(module) is not ConvNet:
        return f"{type(module).__name__} is neither ConvNet nor MLP of mct_fast.models"
    if module.activation != "relu":
        return f"ConvNet with activation={module.activation!r}: the operators have ReLU only"
    if module.norm not in ("instance", "none"):
        return f"ConvNet with norm={module.norm!r}: the operators have instance norm or none"
    if module.pooling not in ("avg", "none"):
        return f"ConvNet with pooling={module.pooling!r}: the operators have average pooling or none"
    size = module.image_size
    return ConvPlan(
        depth=module.depth,
        width=module.width,
        channels=module.channels,
        image_size=(size, size) if isinstance(size, int) else size,
        num_classes=module.num_classes,
        norm=module.norm == "instance",
        pool=module.pooling == "avg",
    )


def supports(model: nn.Module | FunctionalModel) -> str | None:
    """None where `FusedStudent` takes `model`, else the reason why it does not."""
    plan = plan_of(model)
    return plan if isinstance(plan, str) else None


class FusedStudent:
    """The `mct_fast.students.Student` of a ConvNet or MLP on `mct_fast.ops`, with the loss of `task` (cross-entropy).

    Takes the model (for its shape only), or a plan. Images are (S, b, C, H, W), an MLP's any (S, b, ...); labels int64
    (S, b) or floating (S, b, k), as the task has them; parameters (S, P) in the order of ``model.parameters()``; float32
    or float64. Raises InputError for a model that the operators do not cover; `supports` tells without raising.
    """

    def __init__(self, model: nn.Module | FunctionalModel | ConvPlan | MLPPlan, task: Task | None = None) -> None:
        plan = model if isinstance(model, ConvPlan | MLPPlan) else plan_of(model)
        if isinstance(plan, str):
            raise InputError(f"model: {plan}; use GenericStudent")
        self.plan = plan
        head = (task or Classification()).head()
        if head is None:
            raise InputError("task: has no loss on the operators; use GenericStudent")
        self.head = head
        self._net: Network = FusedConvNet(plan, self.head) if isinstance(plan, ConvPlan) else FusedMLP(plan, self.head)
        sizes = [math.prod(shape) for shape in plan.shapes]
        offsets = [0, *itertools.accumulate(sizes)]
        self._num_params = offsets[-1]
        # where each parameter lies in the flat vector: offset, shape, strides
        self._layout = [
            (offset, shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))))
            for offset, shape in zip(offsets, plan.shapes, strict=False)
        ]

    @property
    def num_params(self) -> int:
        """P, the length of the flat parameter vector."""
        return self._num_params

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(loss (S,), its gradient (S, P)) at `params` on the batches `x`, `y`."""
        loss, grad, _ = self._gradient(params, x, y, keep=False)
        return loss, grad

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tape]:
        """`gradient`, and the tape that spares `gradient_tangent` of the same arguments the recomputation."""
        loss, grad, tape = self._gradient(params, x, y, keep=True)
        assert tape is not None
        return loss, grad, tape

    def gradient_tangent(
        self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Tape | None = None
    ) -> Tangent:
        """Derivative at 0 of (loss, gradient, gradient by the images and labels) at params + eps tangent."""
        with _kernels_only():
            soft = y.is_floating_point()
            loss_dot, hvp, gxdot, gydot = self._net.tangent(
                self._views(params, "params"), self._views(tangent, "tangent"), x, self._targets(x, y), tape
            )
            return Tangent(loss_dot, self._flat(hvp), gxdot, gydot.view(y.shape) if soft else None)

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        """Outputs (S, n, k) of all networks on the same images (n, C, H, W)."""
        with _kernels_only():
            views = self._views(params, "params")
            students = params.shape[0]
            chunk = max(1, _LOGITS_PIXELS // (students * math.prod(x.shape[2:])))
            parts = [
                self._net.logits(views, part.unsqueeze(0).expand(students, *part.shape)) for part in x.split(chunk)
            ]
            return torch.cat(parts, dim=1)

    def _gradient(self, params: Tensor, x: Tensor, y: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tape | None]:
        with _kernels_only():
            loss, grads, tape = self._net.gradient(self._views(params, "params"), x, self._targets(x, y), keep)
            return loss, self._flat(grads), tape

    def _views(self, params: Tensor, name: str) -> list[Tensor]:
        if params.dim() != 2 or params.shape[1] != self._num_params:
            raise InputError(f"{name}: shape {tuple(params.shape)}, expected (S, {self._num_params})")
        if params.stride(1) != 1:
            params = params.contiguous()
        step, start = params.stride(0), params.storage_offset()
        return [
            params.as_strided((params.shape[0], *shape), (step, *strides), start + offset)
            for offset, shape, strides in self._layout
        ]

    @staticmethod
    def _flat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _targets(self, x: Tensor, y: Tensor) -> Tensor:
        """Labels as (S, b, k) targets of the outputs, of the images' dtype."""
        return self.head.targets(y, self.plan.num_classes, x)
