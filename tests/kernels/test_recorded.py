"""Which kernels the operators launch, looked at on meta tensors."""

from __future__ import annotations

import ast
import functools
import importlib
from typing import Any

import pytest

pytest.importorskip("triton")

from mct_fast.kernels import MODULES, launcher
from tests.kernels import laws, recording
from tests.kernels.calls import PRECISIONS, allowing, launches_of, reference_steps, variants
from tests.report import jit_functions


@functools.cache
def _interpreted() -> list[recording.Launch]:
    """What the interpreted cases launch: the convolutions' in both precisions."""
    found = []
    for precision in PRECISIONS:
        with allowing(precision):
            for op, shape in laws.cases():
                args = [a.to("meta") if hasattr(a, "to") else a for a in laws.arguments(op, shape, "cpu")]
                found += recording.launches(launcher(op), *args)
    return found


def test_the_interpreted_cases_use_every_kernel_of_the_operators(kernels: set[str]) -> None:
    files = {module for name in kernels if (module := name.rpartition(".")[0]) and "." not in module}
    assert {launch.kernel for launch in _interpreted()} == {k for k in kernels if k.rpartition(".")[0] in files}


def test_every_switch_of_the_kernels_is_interpreted() -> None:
    """Every value of the constants by name that the reference network compiles is among the interpreted cases."""
    interpreted = {switch for launch in _interpreted() for switch in _switches(launch)}
    compiled = {switch for launch in variants() for switch in _switches(launch)}
    assert compiled <= interpreted


def _switches(launch: recording.Launch) -> set[tuple[str, str, Any]]:
    return {(launch.kernel, name, value) for name, value in launch.constants if isinstance(value, bool)}


def test_kernels_are_named_so() -> None:
    """A function under ``triton.jit`` is a kernel by its name, or called by another one."""
    functions = list(jit_functions())
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for _, function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    assert [name for name, f in functions if not name.endswith("_kernel") and f.name not in called] == []


def test_no_kernel_waits_for_the_device_or_reads_it() -> None:
    """Launchers run on meta tensors, where any look at a value raises: so they can be captured in a graph."""
    for calls in reference_steps():
        assert launches_of(calls)


def test_modules_name_launchers() -> None:
    for op, module in MODULES.items():
        assert launcher(op) is getattr(importlib.import_module(f"mct_fast.kernels.{module}"), op)
