"""FusedStudent against plain autograd of the plain network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mct_fast.models import MLP, ConvNet, FunctionalModel, build_zoo
from mct_fast.ops import dispatch
from mct_fast.run.errors import InputError
from mct_fast.students import FusedStudent, GenericStudent, student_for, supports
from mct_fast.tasks import Classification


def _problem(model: torch.nn.Module, students: int, batch: int, size: int, soft: bool) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    functional = FunctionalModel(model)
    shape = (students, batch, model.channels, size, size)
    params = torch.stack([functional.init(s) for s in range(students)]).double()
    params += 0.05 * torch.randn(params.shape, generator=generator, dtype=torch.float64)
    tangent = torch.randn(params.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    logits = torch.randn(students, batch, model.num_classes, generator=generator, dtype=torch.float64)
    y = 1.3 * logits.softmax(2) if soft else logits.argmax(2)
    return params, tangent, x, y


def _results(student: FusedStudent | GenericStudent, problem: tuple[Tensor, ...]) -> dict[str, Tensor]:
    params, tangent, x, y = problem
    loss, grad = student.gradient(params, x, y)
    t = student.gradient_tangent(params, tangent, x, y)
    found = {"loss": loss, "grad": grad, "loss_dot": t.loss_dot, "hvp": t.hvp, "grad_x_dot": t.grad_x_dot}
    if t.grad_y_dot is not None:
        found["grad_y_dot"] = t.grad_y_dot
    found["logits"] = student.logits(params, x[0])
    return found


def _relative(found: Tensor, truth: Tensor) -> float:
    return ((found.double() - truth).norm() / truth.norm()).item()


def _single(problem: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.is_floating_point() else t for t in problem)


CASES = {
    "depth1-width5-9px-3ch": (dict(depth=1, width=5, channels=3, image_size=9), 1, 3, 9, False),
    "depth2-width16-14px-1ch-S3": (dict(depth=2, width=16, channels=1, image_size=14), 3, 4, 14, True),
    "depth3-width48-28px-1ch": (dict(depth=3, width=48, channels=1, image_size=28), 1, 2, 28, False),
    "depth3-width32-32px-3ch-S2": (dict(depth=3, width=32, channels=3, image_size=32), 2, 2, 32, True),
    "depth4-width16-32px-3ch-S3": (dict(depth=4, width=16, channels=3, image_size=32), 3, 2, 32, False),
    "depth3-width5-11px-no-norm": (dict(depth=3, width=5, channels=3, image_size=11, norm="none"), 2, 3, 11, True),
    "depth2-width16-9px-no-pool": (dict(depth=2, width=16, channels=1, image_size=9, pooling="none"), 2, 3, 9, False),
    "depth2-width20-8px-one-image": (dict(depth=2, width=20, channels=3, image_size=8), 1, 1, 8, True),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[ConvNet, tuple[Tensor, ...]]:
    config, students, batch, size, soft = request.param
    model = ConvNet(num_classes=7, **config)
    return model, _problem(model, students, batch, size, soft)


def test_float64_agrees_with_double_backward(case: tuple[ConvNet, tuple[Tensor, ...]]) -> None:
    model, problem = case
    truth = _results(GenericStudent(FunctionalModel(model), Classification()), problem)
    for name, value in _results(FusedStudent(model), problem).items():
        assert _relative(value, truth[name]) < 1e-10, name


def test_float32_error_is_no_worse_than_three_times_pytorchs(case: tuple[ConvNet, tuple[Tensor, ...]]) -> None:
    model, problem = case
    generic = GenericStudent(FunctionalModel(model), Classification())
    truth, plain, fused = (
        _results(generic, problem),
        _results(generic, _single(problem)),
        _results(FusedStudent(model), _single(problem)),
    )
    for name, value in truth.items():
        if name == "loss_dot":
            # One number per student, <g, tangent>, which may cancel to anything: its scale is that of its terms.
            assert ((fused[name] - value).abs() <= 1e-6 * truth["grad"].norm(dim=1) * problem[1].norm(dim=1)).all(), (
                name
            )
            continue
        # a rounding flips a ReLU now and then, in either; 1e-6 is the accuracy of the convolutions alone
        assert _relative(fused[name], value) <= max(3 * _relative(plain[name], value), 1e-6), name


def test_tape_gives_the_same_tangent(case: tuple[ConvNet, tuple[Tensor, ...]]) -> None:
    model, problem = case
    params, tangent, x, y = problem
    student = FusedStudent(model)
    loss, grad, tape = student.gradient_keeping(params, x, y)
    assert torch.equal(loss, student.gradient(params, x, y)[0])
    assert torch.equal(grad, student.gradient(params, x, y)[1])
    with_tape = student.gradient_tangent(params, tangent, x, y, tape)
    without = student.gradient_tangent(params, tangent, x, y)
    assert _relative(with_tape.hvp, without.hvp) < 1e-13
    assert _relative(with_tape.grad_x_dot, without.grad_x_dot) < 1e-13
    assert tape.nbytes > tape.top.nbytes


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_agrees_with_double_backward(depth: int) -> None:
    model = MLP(depth=depth, width=13, channels=3, image_size=6, num_classes=5)
    problem = _problem(model, 2, 3, 6, True)
    truth = _results(GenericStudent(FunctionalModel(model), Classification()), problem)
    student = FusedStudent(model)
    for name, value in _results(student, problem).items():
        assert _relative(value, truth[name]) < 1e-10, name
    params, tangent, x, y = problem
    tape = student.gradient_keeping(params, x, y)[2]
    assert _relative(student.gradient_tangent(params, tangent, x, y, tape).hvp, truth["hvp"]) < 1e-10


def test_students_are_independent() -> None:
    model = ConvNet(depth=2, width=16, channels=3, image_size=8, num_classes=4)
    params, tangent, x, y = _single(_problem(model, 3, 2, 8, False))
    student = FusedStudent(model)
    together = student.gradient_tangent(params, tangent, x, y)
    alone = student.gradient_tangent(params[1:2].clone(), tangent[1:2].clone(), x[1:2].clone(), y[1:2])
    assert _relative(together.hvp[1], alone.hvp[0].double()) < 1e-5


def test_same_bits_with_any_number_of_threads() -> None:
    model = ConvNet(depth=2, width=32, channels=3, image_size=16, num_classes=4)
    problem = _single(_problem(model, 2, 5, 16, True))
    student = FusedStudent(model)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _results(student, problem)
        torch.set_num_threads(3)
        three = _results(student, problem)
    finally:
        torch.set_num_threads(threads)
    for name in set(one) - {"logits"}:  # logits end in PyTorch's own bmm
        assert torch.equal(one[name], three[name]), name


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ConvNet(norm="batch"), "norm='batch'"),
        (ConvNet(activation="sigmoid"), "activation='sigmoid'"),
        (ConvNet(pooling="max"), "pooling='max'"),
        (MLP(activation="sigmoid"), "activation='sigmoid'"),
        (MLP(norm="batch"), "norm='batch'"),
        (build_zoo("LeNet", 3, 32, 10), "neither ConvNet nor MLP"),
    ],
    ids=["batch-norm", "sigmoid", "max-pool", "mlp-sigmoid", "mlp-norm", "zoo"],
)
def test_unsupported_models_are_refused_with_the_reason(model: torch.nn.Module, words: str) -> None:
    assert words in (supports(model) or "")
    assert supports(FunctionalModel(model)) == supports(model)
    with pytest.raises(InputError, match="GenericStudent"):
        FusedStudent(model)


def test_bad_shapes_name_the_argument() -> None:
    model = ConvNet(depth=1, width=8, image_size=8, num_classes=3)
    params, tangent, x, y = _problem(model, 1, 2, 8, False)
    student = FusedStudent(model)
    with pytest.raises(InputError, match="^params: "):
        student.gradient(params[:, 1:], x, y)
    with pytest.raises(InputError, match="^tangent: "):
        student.gradient_tangent(params, tangent[:, 1:], x, y)
    with pytest.raises(InputError, match="^x: "):
        student.gradient(params, x[..., 1:], y)


def test_the_student_is_chosen_by_the_kernels_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU and no compiled extension: the operators are fast there, and slower than autograd here."""
    has = [replace(i, available=lambda _, n=i.name: n != "compiled") for i in dispatch.PREFERENCE]
    monkeypatch.setattr(dispatch, "PREFERENCE", has)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = ConvNet(depth=1, width=4, channels=1, image_size=8, num_classes=3)
    assert isinstance(student_for(model, device="cpu"), GenericStudent)
    assert isinstance(student_for(model, device="cuda"), FusedStudent)
