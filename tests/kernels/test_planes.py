"""The plane kernels under Triton's interpreter, and how often a step launches one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from mct_fast.data import Jitter
from mct_fast.kernels.planes import tiles
from mct_fast.matching.adjoint import Exact
from mct_fast.students.planes.memory import FAST, FINE, Precision
from tests.kernels import plane_laws
from tests.kernels.plane_cases import Anywhere, Case
from tests.kernels.recording import Launch, launches


def test_parameters_come_back_and_filling_is_zero(interpreter: Any) -> None:
    interpreter.run("packing")


def test_a_point_between_two_models(interpreter: Any) -> None:
    interpreter.run("point_agrees")


def test_a_confident_network_loses_no_gradient(interpreter: Any) -> None:
    interpreter.run("confident_gradient")


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fine") for name in plane_laws.STEPS if name != "decided"), ("decided", "fast")]
)
def test_a_step_agrees_with_float64(name: str, precision: str, interpreter: Any) -> None:
    interpreter.run("step_agrees", name, precision)


@pytest.mark.parametrize(("name", "kind", "kept"), [("soft-augmented", "exact", "all"), ("hard", "truncated", "none")])
def test_a_match_agrees_with_float64(name: str, kind: str, kept: str, interpreter: Any) -> None:
    interpreter.run("match_agrees", name, kind, kept)


def _launches(depth: int, steps: int) -> list[Launch]:
    case = Case(depth, 16, 3, (32, 32), students=2, steps=steps, augmented=True)
    return launches(case.match(FAST, "meta"))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_launches_of_a_step(depth: int) -> None:
    """Forward, backward and update: 13 of three blocks; the tangent with its update: 14. Each block more or less: 3 and 3."""
    one, two = (_launches(depth, steps) for steps in (1, 2))
    there, both = (_before_the_tangent(two) - _before_the_tangent(one), len(two) - len(one))
    assert (there, both - there) == (13 + 3 * (depth - 3), 14 + 3 * (depth - 3))
    assert depth > 3 or both <= 30


def _before_the_tangent(found: list[Launch]) -> int:
    return next(i for i, launch in enumerate(found) if "tangent" in launch.kernel)


def test_what_a_match_adds_does_not_grow_with_its_steps() -> None:
    one, four = (Counter(launch.kernel for launch in _launches(3, steps)) for steps in (1, 4))
    once = ("patches_kernel", "pixels_kernel", "permute_kernel", "point_kernel")
    assert {k: n for k, n in one.items() if k.endswith(once)} == {k: n for k, n in four.items() if k.endswith(once)}


def test_the_interpreted_cases_use_every_kernel_and_switch(kernels: set[str]) -> None:
    cases = [*plane_laws.STEPS.values(), *plane_laws.MATCHES.values()]
    interpreted = [launch for case in cases for launch in launches(case.match(FINE, "meta"))]
    interpreted += launches(plane_laws.STEPS["two-blocks"].step(FINE, "meta"))
    planes = {kernel for kernel in kernels if kernel.startswith("planes.")}
    assert {launch.kernel for launch in interpreted} == planes
    compiled = launches(Case(steps=2).match(FAST, "meta")) + launches(Case(labels="binary").match(FAST, "meta"))
    assert _switches(compiled) <= _switches(interpreted)


def _switches(found: list[Launch]) -> set[tuple[str, str, Any]]:
    return {(launch.kernel, name, value) for launch in found for name, value in launch.constants if type(value) is bool}


def test_noise_is_matched_a_step_at_a_time() -> None:
    """It has no table, by which the steps' images are made together."""
    case = Case(2, 16, 3, (8, 8), images=4, batch=3, steps=3)
    noise = Jitter(0.1).plan(1, 3, [1, 3, 1], (3, 8, 8), torch.Generator().manual_seed(0))
    problem = replace(case.problem(device="meta"), student=Anywhere(case.fused, FAST), augment=noise)
    found = Counter(launch.kernel for launch in launches(Exact().solve, problem))
    assert found["planes.first.patches_kernel"] == 6


SIZES = {
    "reference": Case(images=100, batch=100, steps=1),
    "few": Case(images=10, batch=10, steps=1),
    "cifar100-ipc50": Case(outputs=100, images=125, batch=125, steps=1),
    "tiny-imagenet": Case(4, 128, 3, (64, 64), 200, images=200, batch=200, steps=1),
    "tiny-imagenet-few": Case(4, 128, 3, (64, 64), 200, images=10, batch=10, steps=1),
    "wide": Case(3, 512, 3, (64, 64), 10, images=64, batch=64, steps=1),
}


@pytest.mark.parametrize("how", [FAST, FINE], ids=lambda how: how.name)
@pytest.mark.parametrize("name", SIZES)
def test_tiles_fit_into_shared_memory(name: str, how: Precision) -> None:
    """What the stages of a product hold, counted; an sm_80 has 163 KiB for a program."""
    assert tiles.SHARED_BYTES <= 163 << 10
    for launch in launches(SIZES[name].match(how, "meta")):
        c = {**dict(launch.constants), **dict(launch.options)}
        if "BP" in c:
            rows, depth = 3 * c["BI"] + c["BO"], c["BP"]
        elif "ROWS" in c and "BK" in c:
            quads = 4 if launch.kernel.endswith(("plane_forward_kernel", "plane_tangent_kernel")) else 1
            rows, depth = quads * c["ROWS"] + c["BC"], c["BK"]
        else:
            continue
        assert c["num_stages"] * rows * depth * 2 <= tiles.SHARED_BYTES, launch.describe()
