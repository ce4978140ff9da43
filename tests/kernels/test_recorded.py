"""Which kernels the operators launch, looked at on meta tensors."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest

pytest.importorskip("triton")

from mct_fast.kernels import MODULES, aot, launcher
from tests.kernels import laws
from tests.kernels.calls import PRECISIONS, allowing, launches_of, reference_steps, variants


@functools.cache
def _interpreted() -> list[aot.Launch]:
    """What the interpreted cases launch: the convolutions' in both precisions."""
    found = []
    for precision in PRECISIONS:
        with allowing(precision):
            for op, shape in laws.cases():
                args = [a.to("meta") if hasattr(a, "to") else a for a in laws.arguments(op, shape, "cpu")]
                found += aot.launches(launcher(op), *args)
    return found


def test_the_interpreted_cases_use_every_kernel(kernels: set[str]) -> None:
    assert {launch.kernel for launch in _interpreted()} == kernels


def test_every_switch_of_the_kernels_is_interpreted() -> None:
    """Every value of the constants by name that the reference network compiles is among the interpreted cases."""
    interpreted = {switch for launch in _interpreted() for switch in _switches(launch)}
    compiled = {switch for launch in variants() for switch in _switches(launch)}
    assert compiled <= interpreted


def _switches(launch: aot.Launch) -> set[tuple[str, str, Any]]:
    return {(launch.kernel, name, value) for name, value in launch.constants if isinstance(value, bool)}


def test_no_kernel_waits_for_the_device_or_reads_it() -> None:
    """Launchers run on meta tensors, where any look at a value raises: so they can be captured in a graph."""
    for calls in reference_steps():
        assert launches_of(calls)


def test_modules_name_launchers() -> None:
    for op, module in MODULES.items():
        assert launcher(op) is getattr(importlib.import_module(f"mct_fast.kernels.{module}"), op)
