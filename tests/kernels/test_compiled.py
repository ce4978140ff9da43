"""Every Triton kernel compiled ahead of time, at the block sizes that the reference ConvNet is run with."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

pytest.importorskip("triton")

from bench.gpu_calls import launches_of, reference_steps
from bench.gpu_kernels import heaviest, variants
from mct_fast.kernels import MODULES, aot, launcher
from tests.kernels import laws

ARCHITECTURES = (80, 90)


@pytest.fixture(scope="module")
def reference_launches() -> list[aot.Launch]:
    """Of each kernel with each of its switches, the launch with the most values a program, at IPC 1 and IPC 10."""
    return heaviest(variants())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(arch: int, reference_launches: list[aot.Launch], proof: Any) -> None:
    binaries = [aot.compile_for(launch, arch) for launch in reference_launches]
    proof.binaries += binaries
    spilled = {f"{b.launch.kernel} {b.launch.describe()}": b.stack for b in binaries if b.stack}
    assert not spilled
    shared = 163 * 1024 if arch == 80 else 227 * 1024  # what one program may use
    assert all(b.shared <= shared for b in binaries)


def test_the_reference_network_uses_every_kernel(reference_launches: list[aot.Launch], kernels: set[str]) -> None:
    assert {launch.kernel for launch in reference_launches} == kernels


def test_the_interpreted_cases_use_every_kernel(kernels: set[str]) -> None:
    used: set[str] = set()
    for op, shape in laws.cases():
        args = [a.to("meta") if hasattr(a, "to") else a for a in laws.arguments(op, shape, "cpu")]
        used |= {launch.kernel for launch in aot.launches(launcher(op), *args)}
    assert used == kernels


def test_every_switch_of_the_kernels_is_interpreted() -> None:
    """Every value of the constants by name that the reference network compiles is among the interpreted cases."""
    interpreted: set[tuple[str, str, Any]] = set()
    for op, shape in laws.cases():
        args = [a.to("meta") if hasattr(a, "to") else a for a in laws.arguments(op, shape, "cpu")]
        interpreted |= {s for launch in aot.launches(launcher(op), *args) for s in _switches(launch)}
    compiled = {s for launch in variants() for s in _switches(launch)}
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
