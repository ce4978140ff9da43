"""The interpreter's process, and what the summary says about the kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

# The tests import each other's cases and the benchmarks' shapes, which are no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Interpreter:
    """Runs the checks of `tests.kernels.laws` in a process whose Triton interprets its kernels on the CPU."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("interpreter.py"))],
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, law: str, *args: str) -> None:
        """Fails with the message of the assertion that failed there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([law, *args]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the interpreter's process died"
        reply: dict[str, Any] = json.loads(line)
        self.kernels |= set(reply["kernels"])
        if reply["error"] is not None:
            pytest.fail(reply["error"], pytrace=False)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


@dataclass
class Proof:
    """What the run has shown of the Triton kernels."""

    interpreted: set[str] = field(default_factory=set)
    binaries: list[Any] = field(default_factory=list)

    def lines(self, gpu: bool) -> list[str]:
        kernels = kernel_names()
        by_arch: dict[int, list[Any]] = {}
        for binary in self.binaries:
            by_arch.setdefault(binary.arch, []).append(binary)
        compiled = ", ".join(
            f"{len({b.launch.kernel for b in found})} compiled for sm_{arch} ({len(found)} variants, at most "
            f"{max(b.registers for b in found)} registers, {sum(b.stack > 0 for b in found)} with a stack)"
            for arch, found in sorted(by_arch.items())
        )
        seen = self.interpreted | {b.launch.kernel for b in self.binaries}
        skipped = sorted(kernels - seen)
        return [
            f"Triton: {len(kernels)} kernels: {len(self.interpreted)} interpreted, {compiled or '0 compiled'}, "
            f"{len(skipped)} skipped{': ' if skipped else ''}{', '.join(skipped)}",
            "on a device: see the tests marked gpu" if gpu else "on a device: skipped, PyTorch sees no CUDA GPU",
        ]


def kernel_names() -> set[str]:
    """The kernels of the package, by the names of its sources' functions; importing Triton is not needed for that."""
    folder = Path(__file__).resolve().parents[2] / "kernels"
    return {name for file in folder.glob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.M)}


@pytest.fixture(scope="session")
def proof(final_report: dict[str, list[str]]) -> Iterator[Proof]:
    found = Proof()
    yield found
    final_report.setdefault("GPU kernels", []).extend(found.lines(torch.cuda.is_available()))


@pytest.fixture(scope="session")
def kernels() -> set[str]:
    return kernel_names()


@pytest.fixture(scope="session")
def interpreter(proof: Proof) -> Iterator[Interpreter]:
    pytest.importorskip("triton")
    process = Interpreter()
    yield process
    process.close()
    proof.interpreted |= process.kernels
