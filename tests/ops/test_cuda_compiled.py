"""The CUDA sources compile with nvcc, without spilled registers, for every architecture that an install compiles for."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mct_fast import ops

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90")
KERNELS = {
    "blocks.cu": {
        "forward_kernel",
        "backward_kernel",
        "tangent_kernel",
        "tangent_backward_kernel",
        "sum_images_kernel",
    },
    "matching.cu": {"matching_kernel", "loss_kernel"},
}


@dataclass(frozen=True)
class Usage:
    """What one compiled kernel takes: registers a thread, bytes spilled, bytes of shared memory that is not dynamic."""

    kernel: str
    registers: int
    spilled: int
    shared: int


def usages(log: str) -> list[Usage]:
    """What ``ptxas -v`` says about each kernel."""
    found = []
    for part in log.split("Compiling entry function '")[1:]:
        name = re.search(r"([a-z_]+_kernel)I[fd]", part.split("'")[0])
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers, shared = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        assert name is not None and spills is not None and registers is not None, part
        spilled = int(spills[1]) + int(spills[2])
        found.append(Usage(name[1], int(registers[1]), spilled, int(shared[1]) if shared else 0))
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", KERNELS)
def test_nvcc_compiles_the_kernels_without_spills(
    source: str, architecture: str, tmp_path: Path, final_report: dict[str, list[str]]
) -> None:
    lines = final_report.setdefault("CUDA C++ kernels", [])
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        lines.append(f"{source} for sm_{architecture}: skipped, no nvcc")
        pytest.skip("no nvcc")
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", f"-arch=sm_{architecture}", f"-I{ROOT / 'csrc'}", "-cubin"]
    command += ["-o", str(tmp_path / "out.cubin"), str(ROOT / "csrc" / "cuda" / source)]
    done = subprocess.run(command, capture_output=True, text=True)
    log = done.stdout + done.stderr
    if done.returncode and "Unsupported gpu architecture" in log:
        lines.append(f"{source} for sm_{architecture}: skipped, this nvcc does not know it")
        pytest.skip("this nvcc does not know the architecture")
    assert done.returncode == 0, log[-3000:]
    found = usages(log)
    assert {usage.kernel for usage in found} == KERNELS[source]
    assert not [usage for usage in found if usage.spilled]
    most = max(found, key=lambda usage: usage.registers)
    lines.append(
        f"{source} for sm_{architecture}: {len(found)} kernels compiled, none spills; "
        f"at most {most.registers} registers ({most.kernel}), {max(u.shared for u in found)} bytes of fixed shared memory"
    )
    # two blocks of 512 threads an SM need at most 64 registers a thread; double precision may take more
    assert all(usage.registers <= 128 for usage in found)


@pytest.mark.skipif(not ops.extension_loaded(), reason="the compiled extension is not installed")
def test_a_built_extension_registers_its_kernels() -> None:
    import importlib.util

    if importlib.util.find_spec("mct_fast._C_cuda") is None:
        pytest.skip("built without CUDA kernels")
    for op in ("block_forward", "block_backward", "block_tangent", "block_tangent_backward", "matching_loss"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mct_fast::{op}", "CUDA")
