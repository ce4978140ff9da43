"""Every Triton kernel through Triton's own launcher, down to a driver that runs nothing.

Other versions of Triton take part where ``MCT_FAST_TRITON`` names their folders, as a path list; one is made by
``pip install --no-deps --target FOLDER triton==3.5.1``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [folder for folder in os.environ.get("MCT_FAST_TRITON", "").split(os.pathsep) if folder]
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may use."""

pytestmark = pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")


@functools.cache
def _results(triton: str | None, *cases: str) -> list[dict[str, Any]]:
    """What `tests.kernels.launching` printed: a line of the version, then one for each launch."""
    path = os.pathsep.join([*([triton] if triton else []), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env.pop("TRITON_INTERPRET", None)
    with contextlib.ExitStack() as stack:
        processes = []
        for arch in SHARED:  # side by side
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            command = [sys.executable, "-m", "tests.kernels.launching", folder, str(arch), *cases]
            output, errors = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in "12")
            process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=output, stderr=errors)
            stack.callback(process.kill)
            processes.append((process, output, errors))
        version: dict[str, Any] = {}
        found: list[dict[str, Any]] = []
        for process, output, errors in processes:
            process.wait(timeout=900)
            for file in (output, errors):
                file.seek(0)
            assert process.returncode == 0, errors.read()
            version, *launches = map(json.loads, output)
            found += launches
    return [version, *found]


@pytest.fixture(scope="module", params=[None, *OTHERS], ids=["installed", *(Path(o).name for o in OTHERS)])
def launched(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return _results(request.param)


def test_every_kernel_reaches_the_driver(launched: list[dict[str, Any]], kernels: set[str], report: Any) -> None:
    version, *launches = launched
    failed = [
        f"{line['kernel']} {line['variant']} sm_{line['arch']}: {line['error']}" for line in launches if line["error"]
    ]
    assert not failed, f"Triton {version['triton']}:\n" + "\n".join(failed)
    for arch in SHARED:
        assert {line["kernel"] for line in launches if line["arch"] == arch} == kernels
    report.launched[version["triton"]] = launches


SPILLS = {
    ("planes.first.first_forward_kernel", "HALVES=1", 90): 24,
    ("planes.first.first_tangent_backward_kernel", "HALVES=1", 90): 48,
    ("planes.first.first_backward_kernel", "HALVES=1", 80): 32,
    ("planes.first.first_tangent_backward_kernel", "HALVES=1", 80): 256,
    ("planes.plane.plane_tangent_kernel", "HALVES=1", 80): 440,
    ("planes.weight.weight_grad_kernel", "HALVES=1", 80): 200,
}
"""Bytes a thread, at most, of the kernels whose tiles were chosen by their times on an sm_90; no other kernel spills."""


def test_no_kernel_spills_but_those_that_are_known() -> None:
    """With the installed Triton; older ones may spill a few registers more."""
    _, *launches = _results(None)
    spilled = {}
    for line in launches:
        pairs = next((word for word in line["variant"].split() if word.startswith("HALVES=")), "")
        if line["stack"] > SPILLS.get((line["kernel"], pairs, line["arch"]), 0):
            spilled[f"{line['kernel']} {line['variant']} sm_{line['arch']}"] = line["stack"]
    assert not spilled
    assert all(line["shared"] <= SHARED[line["arch"]] for line in launches)


def test_what_cannot_be_launched_is_found() -> None:
    version, *launches = _results(None, "tests.kernels.launch_failures")
    assert {"params", "specialization", "options", "grid", "num_warps"} <= set(version["reserved"])
    errors = {line["case"]: line["error"] for line in launches}
    assert "params" in errors["an argument named as a local of the binder"]
    assert "invalid value" in errors["a grid that no card takes"]
    assert "CompilationError" in errors["a kernel that does not compile"]
