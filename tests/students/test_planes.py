"""Which networks the plane kernels take, and where they put the parameters: without a GPU, and without Triton."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mct_fast import ops
from mct_fast.models import ConvNet
from mct_fast.run.errors import InputError
from mct_fast.students import FusedStudent, GenericStudent, PlaneStudent, student_for
from mct_fast.students.fused_convnet import ConvPlan
from mct_fast.students.planes import geometry
from mct_fast.students.planes.geometry import Geometry, why_not
from mct_fast.students.planes.layout import BLOCK, Layout
from mct_fast.students.planes.memory import FINE
from mct_fast.tasks import Classification

REFERENCE = dict(depth=3, width=128, channels=3, image_size=32, num_classes=10)

TAKEN = {
    "reference": {},
    "one channel with its border": dict(channels=1, image_size=28),
    "two blocks of a small width": dict(depth=2, width=16),
    "not a power of two": dict(width=48),
    "not square": dict(image_size=(16, 64)),
    "Tiny-ImageNet": dict(depth=4, image_size=64, num_classes=200),
}

NOT_TAKEN = {
    "one block": (dict(depth=1), "two blocks or more"),
    "no norm": (dict(norm="none"), "instance norm"),
    "no pooling": (dict(pooling="none"), "pooling"),
    "a narrow width": (dict(width=8), "a width that 16 divides"),
    "an odd width": (dict(width=100), "a width that 16 divides"),
    "four channels": (dict(channels=4), "three channels at most"),
    "odd planes": (dict(image_size=28), "even planes before each pooling"),
    "odd rows": (dict(image_size=(12, 32)), "even planes before each pooling"),
    "large planes": (dict(image_size=128), "256 pooled pixels at most behind the second block"),
}
"""What differs from the reference network, and what the kernels lack for it."""


def _plan(**changes: object) -> ConvPlan:
    plan = FusedStudent(ConvNet(**REFERENCE | changes)).plan
    assert isinstance(plan, ConvPlan)
    return plan


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_networks_that_are_taken(changes: dict[str, object]) -> None:
    assert why_not(_plan(**changes)) is None


@pytest.mark.parametrize(("changes", "reason"), NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_networks_that_are_not_taken_and_why(changes: dict[str, object], reason: str) -> None:
    assert why_not(_plan(**changes)) == f"needs {reason}"


def test_every_reason_is_said() -> None:
    plan = replace(_plan(), depth=1, norm=False, width=8)
    assert why_not(plan) == "needs two blocks or more, instance norm, a width that 16 divides"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU has kernels for the operators."""
    monkeypatch.setattr(ops, "kernels_available", lambda device: True)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_runs_networks_that_are_taken_on_planes() -> None:
    pytest.importorskip("triton")
    assert isinstance(student_for(ConvNet(**REFERENCE), Classification(), "cuda"), PlaneStudent)
    assert type(student_for(ConvNet(**REFERENCE), Classification(), "cpu")) is FusedStudent


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("changes", [changes for changes, _ in NOT_TAKEN.values()], ids=NOT_TAKEN)
def test_a_gpu_runs_the_others_on_the_operators(changes: dict[str, object]) -> None:
    assert type(student_for(ConvNet(**REFERENCE | changes), Classification(), "cuda")) is FusedStudent


@pytest.mark.usefixtures("gpu")
def test_without_triton_a_gpu_runs_all_on_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mct_fast.students.planes.student.find_spec", lambda name: None)
    assert type(student_for(ConvNet(**REFERENCE), Classification(), "cuda")) is FusedStudent


@pytest.mark.usefixtures("gpu")
def test_what_the_operators_do_not_take_is_left_to_autograd() -> None:
    model = ConvNet(**REFERENCE | dict(activation="sigmoid"))
    assert type(student_for(model, Classification(), "cuda")) is GenericStudent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_of_a_processor_are_the_operators_own(dtype: torch.dtype) -> None:
    fused = FusedStudent(ConvNet(**REFERENCE | dict(width=16, image_size=8)))
    planes, generator = PlaneStudent(fused), torch.Generator().manual_seed(0)
    params = 0.1 * torch.randn(1, fused.num_params, generator=generator, dtype=dtype)
    x = torch.randn(1, 2, 3, 8, 8, generator=generator, dtype=dtype)
    y = torch.tensor([[3, 1]])
    for found, wanted in zip(planes.gradient(params, x, y), fused.gradient(params, x, y), strict=True):
        assert torch.equal(found, wanted)
    found, wanted = (student.gradient_tangent(params, params, x, y) for student in (planes, fused))
    assert torch.equal(found.hvp, wanted.hvp)
    assert torch.equal(found.grad_x_dot, wanted.grad_x_dot)
    assert torch.equal(planes.logits(params, x[0]), fused.logits(params, x[0]))


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_every_parameter_has_one_place(changes: dict[str, object]) -> None:
    plan = _plan(**changes)
    layout = Layout(Geometry.of(plan))
    assert layout.num_params == FusedStudent(plan).num_params
    every = torch.arange(layout.num_params)
    assert torch.equal(layout.index[layout.index >= 0].sort().values, every)
    assert torch.equal(layout.index[layout.inverse], every)
    shapes = [torch.Size(shape).numel() for shape in plan.shapes]
    layers = torch.arange(len(shapes)).repeat_interleave(torch.tensor(shapes))
    assert torch.equal(layout.layers[layout.inverse], layers)


@pytest.mark.parametrize("changes", TAKEN.values(), ids=TAKEN)
def test_tensors_begin_where_blocks_and_rows_do(changes: dict[str, object]) -> None:
    plan = _plan(**changes)
    layout = Layout(Geometry.of(plan))
    ends = 0
    for segment in layout.segments.values():
        assert segment.start >= ends
        assert segment.start % BLOCK == segment.start % plan.width == 0
        ends = segment.start + segment.size
    assert layout.size >= ends
    assert layout.size % BLOCK == layout.size % plan.width == 0


class _OnMeta(PlaneStudent):
    def takes(self, like: torch.Tensor) -> bool:
        return True


def test_what_does_not_fit_is_refused_before_a_kernel_reads_it() -> None:
    pytest.importorskip("triton")
    student = _OnMeta(FusedStudent(ConvNet(**REFERENCE | dict(width=16, image_size=8))))
    params = torch.empty(2, student.num_params, device="meta")
    x, y = torch.empty(2, 3, 3, 8, 8, device="meta"), torch.empty(2, 3, 10, device="meta")
    for call, name in (
        (lambda: student.gradient(params[:, 1:], x, y), "params"),
        (lambda: student.gradient(params, x[:, :, 1:], y), "x"),
        (lambda: student.gradient(params, x, y[..., 1:]), "y"),
        (lambda: student.gradient(params, x, y[:, 1:]), "y"),
        (lambda: student.gradient_tangent(params, params[:, 1:], x, y), "tangent"),
        (lambda: student.logits(params[:, 1:], x[0]), "params"),
        (lambda: student.logits(params, x[0, ..., 1:]), "x"),
    ):
        with pytest.raises(InputError, match=f"^{name}: "):
            call()


def test_what_modules_without_triton_repeat_of_the_kernels() -> None:
    pytest.importorskip("triton")
    from mct_fast.kernels.planes import first, params

    assert first.TILE.value == geometry.TILE
    assert params.BLOCK.value == BLOCK


def test_more_images_than_32_bits_number_are_refused() -> None:
    """At 64x64 and in pairs of halves 7,257 planes of 128 channels with their borders are 2^31 numbers."""
    pytest.importorskip("triton")
    from tests.kernels.plane_cases import Anywhere

    fused = FusedStudent(ConvNet(**{**REFERENCE, "depth": 4, "image_size": 64}), Classification())
    student = Anywhere(fused, FINE)
    student.engine(torch.device("meta")).check_batch(7256)
    params, x = torch.empty(1, fused.num_params, device="meta"), torch.empty(1, 7257, 3, 64, 64, device="meta")
    with pytest.raises(InputError, match="batch: 7257 images of a network at once .* give at most 7256"):
        student.gradient(params, x, torch.empty(1, 7257, dtype=torch.int64, device="meta"))
