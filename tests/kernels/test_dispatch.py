"""Which implementation serves a CUDA device."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mct_fast.ops import cuda, schema

OPS = [schema.op_name(s) for s in schema.SCHEMAS]


@pytest.mark.parametrize("name", OPS)
def test_every_operator_has_a_cuda_kernel_where_triton_is(name: str) -> None:
    pytest.importorskip("triton")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{schema.NAMESPACE}::{name}", "CUDA")


@pytest.mark.parametrize("installed", [True, False], ids=["triton", "no-triton"])
def test_the_reference_serves_where_triton_is_missing(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def __init__(self) -> None:
            self.registered: list[str] = []

        def impl(self, op: str, kernel: Any, key: str) -> None:
            assert key == "CUDA"
            self.registered.append(op)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    library: Any = Library()
    cuda.register(library)
    assert sorted(library.registered) == (sorted(OPS) if installed else [])


def test_importing_the_operators_imports_no_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import mct_fast.ops; "
        "sys.exit(not before and 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
