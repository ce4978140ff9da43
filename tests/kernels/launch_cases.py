"""The calls whose kernels go through Triton's launcher: at least one for every kernel of `mct_fast.kernels`.

A case takes no arguments and makes its tensors on the meta device. Add one by an entry in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mct_fast.kernels import launcher
from mct_fast.matching.plane_sweep import sweep
from mct_fast.matching.problem import MatchingProblem
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.students import FusedStudent
from mct_fast.students.planes.student import PlaneStudent
from mct_fast.tasks import Classification
from tests.kernels.calls import IPC_BATCHES, PRECISIONS, Call, allowing, binary_calls, reference_steps


def _replay(calls: list[Call], precision: str = "tf32") -> Callable[[], None]:
    def run() -> None:
        with allowing(precision):
            for call in calls:
                launcher(call.op)(*call.args)

    return run


class _OnMeta(PlaneStudent):
    def takes(self, like: Tensor) -> bool:
        return True


def _meta(*shape: int, **options: Any) -> Tensor:
    return torch.empty(shape, device="meta", **options)


def _planes(batch: int, precision: str, **shape: Any) -> Callable[[], None]:
    """A match of three steps by the plane kernels, of which one is kept; and a student's step by itself."""

    def run() -> None:
        model = ConvNet(**shape)
        student = _OnMeta(FusedStudent(model))
        rows, size, classes, count = 2 * batch, model.image_size, model.num_classes, student.num_params
        with allowing(precision):
            images, labels = _meta(rows, model.channels, size, size), _meta(rows, classes)
            theta, batches = _meta(1, count), _meta(1, 3, batch, dtype=torch.int64)
            start = SimpleNamespace(shape=theta.shape, origin=theta, end=theta, weights=_meta(2, 1, 1))
            target = SimpleNamespace(value=lambda problem, theta, start: (_meta(1), theta))
            problem = MatchingProblem(
                FunctionalModel(model), student, Classification(), images, labels, _meta(), start, target, batches,
                (batch, batch, batch - 1), None,
            )  # fmt: skip
            engine = student.engine(torch.device("meta"))
            sweep(problem, engine, carry_curvature=True, keep_bytes=engine.geometry.width * 4096 * batch)
            student.gradient_tangent(theta, theta, images[None], labels[None])

    return run


CASES: dict[str, Callable[[], object]] = {
    **{
        f"step-ipc{ipc}-{precision}": _replay(calls, precision)
        for ipc, calls in zip(IPC_BATCHES, reference_steps(), strict=True)
        for precision in PRECISIONS
    },
    "binary": _replay(binary_calls(1, 100)),
    # The larger tiles and the default products: others hold less of everything, and all take minutes to compile.
    "planes-ipc10-tf32": _planes(IPC_BATCHES[10], "tf32"),
}
"""By name: a call of launchers on meta tensors, as large as on a card."""
