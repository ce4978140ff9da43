"""What all tests share: who may use a GPU, poisoned memory, and one small finished run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Processes beside each other (pytest-xdist) have a core each, and so have the processes that they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from mct_fast.distill import DistillConfig, distill
from mct_fast.experts import ExpertConfig, train_experts
from tests.report import Report

# Generated tests: a fixed few cases with every run; with --hypothesis-profile=thorough many, other ones each time.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("quick", max_examples=40, derandomize=True, **_COMMON)
# A case that fails is told by its seed, which is shrunk to nothing simpler.
_PHASES = (Phase.explicit, Phase.generate)
_TRIES = int(os.environ.get("MCT_FAST_TRIES", "2000"))  # fewer, with several --hypothesis-seed, go in pieces
settings.register_profile("thorough", max_examples=_TRIES, phases=_PHASES, **_COMMON)
settings.load_profile("quick")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files begin first, so that processes beside each other end together.
    items.sort(key=lambda item: "kernels" not in item.path.parts)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and PyTorch sees none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one process of several, by pytest-xdist
        session.config.workeroutput["report"] = session.config.stash[_REPORT].plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_REPORT].add(node.workeroutput["report"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for heading, lines in config.stash[_REPORT].sections().items():
        terminalreporter.section(heading)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """What the summary says at the end of the run."""
    return pytestconfig.stash[_REPORT]


@pytest.fixture(scope="session")
def tally(report: Report) -> Callable[[str, str], None]:
    """Counts an outcome (such as "right", "refused") of a class of generated cases, for the end of the run."""
    return report.count


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills what ``torch.empty`` and its like return with NaN, so that an op which leaves a value unwritten shows it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]


TINY_EXPERTS = ExpertConfig(num_experts=2, train_epochs=3, depth=2, width=4, parallel=2)
TINY_DISTILL = DistillConfig(
    syn_steps=2,
    expert_epochs=1.5,
    max_start_epoch=1.0,
    lr_img=10.0,
    iterations=5,
    eval_it=2,
    num_eval=2,
    epoch_eval_train=3,
    checkpoint_every=2,
)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny experts on digits. Read only."""
    path = tmp_path_factory.mktemp("tiny") / "experts"
    train_experts(TINY_EXPERTS, path)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_store: Path) -> Path:
    """A finished run of five iterations, without its page. Read only: copy it to change it."""
    path = tiny_store.parent / "run"
    distill(TINY_DISTILL, tiny_store, out=path)
    return path
