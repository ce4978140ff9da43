"""What a run of the tests has shown beyond passed and failed, gathered from all its processes and printed at its end."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Report:
    """Generated cases by how they ended, and kernels by how they ran."""

    cases: dict[str, Counter[str]] = field(default_factory=dict)
    interpreted: set[str] = field(default_factory=set)
    launched: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By Triton's version, the lines of `tests.kernels.launching`."""

    def count(self, kind: str, outcome: str) -> None:
        """Counts an outcome (such as "right", "refused") of a class of generated cases."""
        self.cases.setdefault(kind, Counter())[outcome] += 1

    def plain(self) -> dict[str, Any]:
        """As what travels between processes."""
        return {
            "cases": {kind: dict(found) for kind, found in self.cases.items()},
            "interpreted": sorted(self.interpreted),
            "launched": self.launched,
        }

    def add(self, other: dict[str, Any]) -> None:
        """Adds what another process found, which :meth:`plain` returned there."""
        for kind, found in other["cases"].items():
            self.cases.setdefault(kind, Counter()).update(found)
        self.interpreted |= set(other["interpreted"])
        for version, lines in other["launched"].items():
            self.launched.setdefault(version, []).extend(lines)

    def sections(self) -> dict[str, list[str]]:
        """Lines to print, by heading."""
        cases = [
            f"{kind}: {sum(found.values())} tries, " + ", ".join(f"{n} {what}" for what, n in sorted(found.items()))
            for kind, found in sorted(self.cases.items())
        ]
        kernels = self._kernels() if self.interpreted or self.launched else []
        return {
            heading: lines for heading, lines in {"generated cases": cases, "GPU kernels": kernels}.items() if lines
        }

    def _kernels(self) -> list[str]:
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
            "on a device: see the tests marked gpu"
            if torch.cuda.is_available()
            else "on a device: skipped, PyTorch sees no CUDA GPU",
        ]


def jit_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """The package's functions under ``triton.jit`` with their names as `tests.kernels.recording.name_of` has them.

    Importing Triton is not needed for that.
    """
    folder = Path(__file__).resolve().parents[1] / "kernels"
    for file in folder.rglob("*.py"):
        module = ".".join(file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                yield f"{module}.{node.name}", node


def kernel_names() -> set[str]:
    """The kernels of the package: what is launched, and named so."""
    return {name for name, _ in jit_functions() if name.endswith("_kernel")}
