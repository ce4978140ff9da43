"""Which implementation serves which device."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from mct_fast import ops
from mct_fast.ops import dispatch
from mct_fast.ops.operator import NAMESPACE


@pytest.mark.parametrize("name", list(ops.OPERATORS))
def test_every_operator_has_a_cuda_kernel_where_triton_is(name: str) -> None:
    pytest.importorskip("triton")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", "CUDA")


@pytest.mark.parametrize(
    ("available", "device", "wanted"),
    [
        ({"compiled", "triton", "reference"}, "cpu", "compiled"),
        ({"compiled", "triton", "reference"}, "cuda", "triton"),
        ({"triton", "reference"}, "cpu", "reference"),
        ({"compiled", "reference"}, "cuda", "reference"),
        ({"compiled", "triton", "reference"}, "xpu", "reference"),
    ],
    ids=["cpu", "gpu", "cpu-without-extension", "gpu-without-triton", "another-device"],
)
def test_the_first_available_implementation_of_the_device_is_chosen(
    available: set[str], device: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = [dataclasses.replace(i, available=lambda _, n=i.name: n in available) for i in dispatch.PREFERENCE]
    monkeypatch.setattr(dispatch, "PREFERENCE", has)
    assert dispatch.choose("dsa", device).name == wanted
    assert ops.kernels_available(device) == (wanted != "reference")


def test_every_preference_has_its_reason() -> None:
    assert all(len(i.reason) > 20 for i in dispatch.PREFERENCE)


def test_importing_the_operators_imports_no_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import mct_fast.ops; "
        "sys.exit(not before and 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
