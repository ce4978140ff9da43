"""The interpreter's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import Report, kernel_names


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


@pytest.fixture(scope="session")
def kernels() -> set[str]:
    return kernel_names()


@pytest.fixture(scope="session")
def interpreter(report: Report) -> Iterator[Interpreter]:
    pytest.importorskip("triton")
    process = Interpreter()
    yield process
    process.close()
    report.interpreted |= process.kernels
