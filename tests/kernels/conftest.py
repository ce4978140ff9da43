"""The interpreter's process, and what the summary says about the kernels."""

from __future__ import annotations

import ast
import json
import os
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
    launched: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By Triton's version, the lines of `tests.kernels.launching`."""

    def lines(self, gpu: bool) -> list[str]:
        kernels = kernel_names()
        said = []
        for version, launches in self.launched.items():
            names = {line["kernel"] for line in launches}
            most, stacks = max(line["registers"] for line in launches), sum(line["stack"] > 0 for line in launches)
            said.append(
                f"{len(names)} launched by Triton {version} without a card ({len(launches)} binaries, at most "
                f"{most} registers, {stacks} with a stack)"
            )
        seen = self.interpreted | {line["kernel"] for launches in self.launched.values() for line in launches}
        skipped = sorted(kernels - seen)
        return [
            f"Triton: {len(kernels)} kernels: {len(self.interpreted)} interpreted, {', '.join(said) or '0 launched'}, "
            f"{len(skipped)} skipped{': ' if skipped else ''}{', '.join(skipped)}",
            "on a device: see the tests marked gpu" if gpu else "on a device: skipped, PyTorch sees no CUDA GPU",
        ]


def jit_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The package's functions under ``triton.jit`` with their names as `tests.kernels.recording.name_of` has them.

    Importing Triton is not needed for that.
    """
    folder = Path(__file__).resolve().parents[2] / "kernels"
    for file in folder.rglob("*.py"):
        module = ".".join(file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                yield f"{module}.{node.name}", node


def kernel_names() -> set[str]:
    """The kernels of the package: what is launched, and named so."""
    return {name for name, _ in jit_functions() if name.endswith("_kernel")}


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
