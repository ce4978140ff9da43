"""The plane kernels on a GPU, at the reference shapes: exact, the same bits again, and the same in every company."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from mct_fast.matching.adjoint import Exact
from mct_fast.matching.cuda_graph import Graphed
from mct_fast.matching.problem import MatchingProblem, StudentGradients
from mct_fast.students.planes.memory import FAST, FINE, Precision
from tests.again import Watched
from tests.kernels import plane_laws
from tests.kernels.plane_cases import Anywhere, Case

pytestmark = pytest.mark.gpu

PRECISIONS = pytest.mark.parametrize("how", [FAST, FINE], ids=lambda how: how.name)

TOLERANCE = {"fast": 3e-3, "fine": 1e-4}
"""Relative error in the 2-norm at the reference shapes, where a ReLU that a rounding turns over weighs little."""

REFERENCE = {
    "ipc1": Case(students=2, images=10, batch=10, steps=2, augmented=True),
    "ipc10-soft": Case(labels="soft", images=100, batch=100, steps=2),
    "border-multi-label": Case(channels=1, image_size=(28, 28), outputs=3, labels="multi-label", images=40, batch=40),
    "four-blocks-many-classes": Case(4, 64, 3, (64, 64), 200, images=6, batch=4, steps=2),
    "ragged": Case(width=48, image_size=(16, 32), students=3, images=50, batch=35, steps=4, augmented=True),
}


def _solved(case: Case, how: Precision, keep_bytes: int = 1 << 40) -> StudentGradients:
    return case.match(how, "cuda", keep_bytes)()


def _same(found: StudentGradients, wanted: StudentGradients) -> None:
    for field in fields(wanted):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        assert (a is None and b is None) or torch.equal(a, b), field.name


@pytest.mark.usefixtures("poisoned_memory")
def test_small_shapes_agree_on_the_device() -> None:
    plane_laws.packing("cuda")
    plane_laws.point_agrees("cuda")
    plane_laws.confident_gradient("cuda")
    for name in plane_laws.STEPS:
        plane_laws.step_agrees(name, "fine", "cuda")
    plane_laws.step_agrees("decided", "fast", "cuda")
    for name in plane_laws.MATCHES:
        for kind in ("exact", "truncated"):
            for kept in ("all", "none"):
                plane_laws.match_agrees(name, kind, kept, "cuda")


@PRECISIONS
@pytest.mark.parametrize("name", REFERENCE)
def test_a_match_agrees_with_float64(name: str, how: Precision) -> None:
    case = REFERENCE[name]
    found, truth = _solved(case, how), Exact().solve(case.problem(torch.float64, "cuda"))
    start = case.problem(torch.float64, "cuda").theta
    for field in fields(truth):
        value, wanted = getattr(found, field.name), getattr(truth, field.name)
        if field.name == "final_params":  # how far the student came
            value, wanted = value.double() - start, wanted - start
        if wanted is not None:
            error = ((value.double() - wanted).norm() / wanted.norm()).item()
            assert error < TOLERANCE[how.name], f"{field.name}: {error:.1e}"


@PRECISIONS
@pytest.mark.parametrize("name", REFERENCE)
def test_the_same_bits_again_whatever_is_kept(name: str, how: Precision) -> None:
    first = _solved(REFERENCE[name], how)
    for keep_bytes in (1 << 40, 0, 1 << 40):
        _same(_solved(REFERENCE[name], how, keep_bytes), first)


@PRECISIONS
@pytest.mark.parametrize("name", ["ipc1", "ragged"])
def test_students_have_the_bits_that_they_have_alone(name: str, how: Precision) -> None:
    problem = REFERENCE[name].problem(device="cuda")
    student = Anywhere(problem.student, how)
    together = Exact().solve(replace(problem, student=student))
    for s in range(problem.num_students):
        alone = Exact().solve(replace(problem.of(range(s, s + 1)), student=student))
        for field in fields(together):
            value = getattr(together, field.name)
            assert value is None or torch.equal(getattr(alone, field.name)[0], value[s]), field.name


@PRECISIONS
@pytest.mark.parametrize("name", REFERENCE)
def test_a_graph_gives_the_bits_of_the_launches(name: str, how: Precision) -> None:
    case, graphs = REFERENCE[name], Watched()
    student = Anywhere(case.fused, how)
    graphed = Graphed(Exact(1 << 30), graphs)
    for seed in (0, 1, 0):
        problem: MatchingProblem = replace(replace(case, seed=seed).problem(device="cuda"), student=student)
        _same(graphed.solve(problem), Exact(1 << 30).solve(problem))
    assert graphs.recorded == 1


@PRECISIONS
def test_a_step_by_itself_is_the_step_of_a_match(how: Precision) -> None:
    """One step of a match and the same step by the protocol of students."""
    case = replace(REFERENCE["ipc10-soft"], steps=1)
    problem = case.problem(device="cuda")
    match, student = _solved(case, how), Anywhere(case.fused, how)
    loss, grad = student.gradient(problem.theta, *problem.batch(0, problem.images, problem.labels))
    arrived = torch.addcmul(problem.theta, grad, -problem.syn_lr.reshape(1, 1))
    torch.testing.assert_close(match.final_params, arrived, rtol=0, atol=1e-6)
    assert loss.isfinite().all()
