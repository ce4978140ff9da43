"""Which implementation serves a CUDA device."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from mct_fast import ops
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


@pytest.mark.parametrize("extension", [True, False])
@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_who_has_kernels(extension: bool, triton: bool, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_LOADED", extension)
    monkeypatch.setattr(cuda, "has_triton", lambda: triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert ops.kernels_available("cpu") == extension
    assert ops.kernels_available(torch.device("cuda", 1)) == triton
    assert ops.kernels_available() == ops.kernels_available("meta") == (extension or (triton and gpu))
    assert not ops.kernels_available("xpu")


def test_importing_the_operators_imports_no_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import mct_fast.ops; "
        "sys.exit(not before and 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
