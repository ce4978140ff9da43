"""Which implementation serves a CUDA device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mct_fast.ops import cuda, schema

OPS = [schema.op_name(s) for s in schema.SCHEMAS]


@pytest.mark.parametrize("name", OPS)
def test_every_operator_has_a_cuda_kernel_where_triton_is(name: str) -> None:
    pytest.importorskip("triton")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{name}", "CUDA")


@pytest.mark.parametrize(
    ("available", "wanted"),
    [
        ({"compiled", "triton", "reference"}, "compiled"),
        ({"triton", "reference"}, "triton"),
        ({"reference"}, "reference"),
    ],
    ids=["all", "no-compiled", "reference-only"],
)
def test_the_first_available_implementation_is_chosen(
    available: set[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "PREFERENCE", {"dsa": ("compiled", "triton", "reference")})
    monkeypatch.setattr(cuda, "AVAILABLE", {name: lambda _, n=name: n in available for name in cuda.AVAILABLE})
    assert cuda.choose("dsa") == wanted


def test_importing_the_operators_imports_no_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import mct_fast.ops; "
        "sys.exit(not before and 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
