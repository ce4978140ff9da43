"""The operators that training steps call, with their arguments as meta tensors: no memory, no arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mct_fast import ops
from mct_fast.kernels import launcher
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.ops.operator import NAMESPACE
from mct_fast.students import FusedStudent
from tests.kernels.recording import Launch, launches

IPC_BATCHES = {1: 10, 10: 100}
"""Images a step at each number of images per class, as MTT's recipes for CIFAR-10 have it."""


@dataclass(frozen=True)
class Call:
    """One operator call; `args` are all its arguments, defaults included."""

    op: str
    args: tuple[Any, ...]
    results: tuple[Tensor, ...]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == NAMESPACE:
            schema = func._schema.arguments
            filled = (*args, *(a.default_value for a in schema[len(args) :]))
            results = result if isinstance(result, tuple) else () if result is None else (result,)
            self.calls.append(Call(func._schema.name.split("::")[1], filled, results))
        return result


def record(run: Callable[[], object]) -> list[Call]:
    """The operator calls of ``run()``, in order."""
    with _Recorder() as recorder:
        run()
    return recorder.calls


def step_calls(students: int, batch: int, model: ConvNet | None = None) -> list[Call]:
    """A matching step, forth and back: augmentation, gradient, update; then the tangent with its transposed augmentation,

    and what the iteration adds once: the loss. The activations of the gradient are kept for the tangent.
    """
    network = model or ConvNet()
    functional = FunctionalModel(network)
    size = network.image_size if isinstance(network.image_size, int) else network.image_size[0]
    student = FusedStudent(network)
    count = student.num_params

    def run() -> None:
        with torch.device("meta"):
            params, tangent = torch.empty(students, count), torch.empty(students, count)
            x = torch.empty(students, batch, network.channels, size, size)
            y = torch.empty(students, batch, network.num_classes)
            kinds, table = torch.empty(students, dtype=torch.int64), torch.empty(students, batch, 4)
            sizes = [0, *(shape.numel() for shape in functional.shapes)]
            offsets = torch.empty(len(sizes), dtype=torch.int64)
            frac, one = torch.empty(students, len(sizes) - 1), torch.empty(students)
        augmented = ops.dsa(x, kinds, table)
        _, grad, tape = student.gradient_keeping(params, augmented, y)
        ops.sgd_step_(params, grad, None, one, 0.0, 0.0)
        ops.matching_loss(params, params, tangent, frac, offsets, one)
        result = student.gradient_tangent(params, tangent, augmented, y, tape)
        ops.dsa_transpose(result.grad_x_dot, kinds, table)
        ops.arc_length(params, tangent, offsets)

    return record(run)


@functools.cache
def reference_steps() -> tuple[list[Call], ...]:
    """The steps of one student of the reference ConvNet at IPC 1 and IPC 10."""
    return tuple(step_calls(1, batch) for batch in IPC_BATCHES.values())


def binary_calls(students: int, batch: int, features: int = 2048, labels: int = 10) -> list[Call]:
    """The last layer of a network with a binary cross-entropy, and its tangent: what a classification does not call."""
    with torch.device("meta"):
        h, y = torch.empty(students, batch, features), torch.empty(students, batch, labels)
        w, b, weights = torch.empty(students, labels, features), torch.empty(students, labels), torch.empty(labels)

    def run() -> None:
        ops.linear_bce(h, w, b, y, weights, weights)
        ops.linear_bce_tangent(h, h, w, w, b, b, y, weights, weights)

    return record(run)


def launches_of(calls: Iterable[Call]) -> list[Launch]:
    """All kernels that the calls launch, in order."""
    return [launch for call in calls for launch in launches(launcher(call.op), *call.args)]


@contextmanager
def allowing(precision: str) -> Any:
    """With ``torch.backends.cudnn.conv.fp32_precision`` as given."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = precision
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


PRECISIONS = ("ieee", "tf32")
"""Settings of PyTorch's switch: "ieee" gives fine, "tf32" fast."""


def variants() -> list[Launch]:
    """One launch for each cubin that the reference ConvNet needs at IPC 1 and IPC 10, and a binary cross-entropy's."""
    found: dict[Any, Launch] = {}
    for precision in PRECISIONS:
        with allowing(precision):
            for calls in (*reference_steps(), binary_calls(1, 100)):
                for launch in launches_of(calls):
                    found.setdefault(launch.variant, launch)
    return list(found.values())


def _blocks(launch: Launch) -> int:
    product = 1
    for name, value in launch.constants:
        product *= value if name.isupper() and type(value) is int else 1
    return product


def heaviest(launches: Iterable[Launch]) -> list[Launch]:
    """Of each kernel with each of its switches and dtypes, the launch with the most values a program."""
    found: dict[Any, Launch] = {}
    for launch in launches:
        switches = tuple((n, v) for n, v in launch.constants if isinstance(v, bool | str))
        key = launch.kernel, switches, tuple(kind for _, kind in launch.signature if kind.startswith("*"))
        if key not in found or _blocks(launch) > _blocks(found[key]):
            found[key] = launch
    return list(found.values())
