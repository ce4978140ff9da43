"""Several processes give what one gives, bit for bit: with processes on threads, and as torchrun starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from mct_fast.data import DSA
from mct_fast.distill import DistilledDataset
from mct_fast.distill.sampling import draw_batches
from mct_fast.matching import Matcher, MatchResult
from mct_fast.models import ConvNet, FunctionalModel
from mct_fast.run.distributed import Single, check_agreement
from mct_fast.run.errors import PeerError
from mct_fast.run.folder import Run

T = TypeVar("T")


class Threads:
    """A communicator between the threads of one test."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier

    def share(self, count: int) -> range:
        ends = [count * rank // self.size for rank in range(self.size + 1)]
        return range(ends[self.rank], ends[self.rank + 1])

    def gather(self, rows: Tensor, count: int) -> Tensor:
        assert len(rows) == len(self.share(count))
        return torch.cat(self.gather_all(rows))

    def gather_all(self, value: T) -> list[T]:
        self._board[self.rank] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def collect(self, value: T) -> list[T]:
        found = self.gather_all(value)
        return found if self.rank == 0 else []

    def lead(self, work: Callable[[], T]) -> T | None:
        found = self.tell(work)
        return found if self.rank == 0 else None

    def tell(self, work: Callable[[], T]) -> T:
        return self.gather_all(work() if self.rank == 0 else None)[0]  # pyright: ignore[reportReturnType]

    def lead_first(self, work: Callable[[], T]) -> T:
        first = self.lead(work)
        return work() if first is None else first


def on_threads(size: int, work: Callable[[Threads], T]) -> list[T]:
    """``work`` on ``size`` threads at once; what each returned."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=60)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, size, board, barrier))
        except BaseException as error:
            found[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in found:
        if isinstance(value, BaseException) and not isinstance(value, threading.BrokenBarrierError):
            raise value
    return found


def match_of(students: int, *, soft: bool, dtype: torch.dtype) -> Callable[[Any], MatchResult]:
    """A match of several students, as a function of the communicator."""
    model = ConvNet(depth=2, width=5, channels=3, image_size=9, num_classes=4)
    g = torch.Generator().manual_seed(3)
    images = torch.randn(7, 3, 9, 9, generator=g).to(dtype)
    labels = torch.randn(7, 4, generator=g).softmax(1).to(dtype) if soft else torch.arange(7) % 4
    start = torch.stack([FunctionalModel(model).init(s) for s in range(students)]).to(dtype)
    target = start + 0.05 * torch.randn(start.shape, generator=g).to(dtype)
    rows = torch.stack([draw_batches(7, 3, 4, g) for _ in range(students)])
    plan = DSA().plan(students, 4, (rows[0] >= 0).sum(1).tolist(), (3, 9, 9), g)
    return lambda communicator: Matcher(model, communicator=communicator)(
        images, labels, 0.05, start, target, rows, augment=plan
    )


@pytest.mark.parametrize(("students", "size"), [(3, 2), (4, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_students_split_over_processes_give_the_same_bits(students: int, size: int, soft: bool) -> None:
    match = match_of(students, soft=soft, dtype=torch.float32)
    whole = match(Single())
    for split in on_threads(size, match):
        for name in ("loss", "grad_images", "grad_lr", "grad_labels", "final_params"):
            found, wanted = getattr(split, name), getattr(whole, name)
            assert (found is None and wanted is None) or torch.equal(found, wanted), name


def test_the_mean_over_students_is_the_mean_of_their_gradients() -> None:
    whole = match_of(3, soft=False, dtype=torch.float64)(Single())
    # one after another through the same door: each student alone on a process of three
    parts = on_threads(3, match_of(3, soft=False, dtype=torch.float64))
    assert all(torch.equal(part.grad_images, whole.grad_images) for part in parts)
    assert whole.loss.shape == (3,) and len(set(whole.loss.tolist())) == 3


def store_content(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A store without what the clock decides."""
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["checksum"]  # of the whole, clock included
    for entry in manifest["experts"].values():
        del entry["info"]["seconds"]
    return manifest, {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.suffix == ".safetensors"}


EXPERTS: dict[str, Any] = {
    "num_experts": 3, "train_epochs": 2, "depth": 1, "width": 4, "parallel": 1, "batch_train": 512, "seed": 4,
    "keep_checkpoints": True,
}  # fmt: skip


def test_processes_that_disagree_are_stopped() -> None:
    on_threads(2, lambda c: check_agreement(c, "images", "same"))
    with pytest.raises(PeerError, match="hold different images"):
        on_threads(2, lambda c: check_agreement(c, "images", str(c.rank)))


# As torchrun starts them

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
PROCESSES += ["--rdzv-endpoint", "127.0.0.1:0", "--monitor-interval", "0.1"]


def launch(*words: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Two processes of a module or a script, over Gloo."""
    command = [*PROCESSES, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


CONFIG: dict[str, Any] = {
    "syn_steps": 2, "expert_epochs": 1.5, "max_start_epoch": 1.0, "lr_img": 10.0, "iterations": 3, "eval_it": 2,
    "num_eval": 3, "epoch_eval_train": 2, "checkpoint_every": 1, "students": 3,
}  # fmt: skip
WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from mct_fast.distill import DistillConfig, distill
from mct_fast.run.distributed import session
from mct_fast.run.errors import InputError
from mct_fast.experts import ExpertConfig, train_experts

CONFIG = DistillConfig(**{config!r})
EXPERTS = ExpertConfig(**{experts!r})
folder, store = Path(sys.argv[1]), Path(sys.argv[2])


class Stop(Exception):
    pass


class StopAfter:
    # a kill in the middle of a run: the second step of the bar of the outer loop does not return
    def task(self, name, total, *, done=0):
        import contextlib

        @contextlib.contextmanager
        def bar():
            yield self if name == "distil" else type("Bar", (), dict(advance=lambda *_, **__: None))()

        return bar()

    steps = 0

    def advance(self, n=1, **shown):
        self.steps += 1
        if self.steps == 2:
            raise Stop


with session() as communicator:
    assert communicator.size == 2
    train_experts(EXPERTS, folder / "experts", communicator=communicator)
    try:
        distill(CONFIG, store, out=folder / "run", progress=StopAfter(), communicator=communicator)
        raise AssertionError("was to be stopped")
    except Stop:
        pass
    found = distill(CONFIG, store, out=folder / "run", resume=True, communicator=communicator)
    torch.save(found.images, folder / f"images{{communicator.rank}}.pt")
    again = distill(CONFIG, store, out=folder / "run", resume=True, communicator=communicator)
    assert torch.equal(again.images, found.images)
    try:
        distill(replace(CONFIG, seed=9), store, out=folder / "run", communicator=communicator)
    except InputError as error:
        Path(folder / f"refused{{communicator.rank}}").write_text(str(error))
"""


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in records]


def test_two_processes_of_torchrun_write_what_one_writes(tiny_store: Path, tmp_path: Path) -> None:
    script, folder, alone = tmp_path / "worker.py", tmp_path / "two", tmp_path / "one"
    script.write_text(WORKER.format(config=CONFIG, experts=EXPERTS))
    folder.mkdir()
    done = launch(script, folder, tiny_store)
    assert done.returncode == 0, done.stderr[-3000:]

    code = f"""
from pathlib import Path
from mct_fast.distill import DistillConfig, distill
from mct_fast.experts import ExpertConfig, train_experts
train_experts(ExpertConfig(**{EXPERTS!r}), Path({str(alone / "experts")!r}))
distill(DistillConfig(**{CONFIG!r}), Path({str(tiny_store)!r}), out=Path({str(alone / "run")!r}))
"""
    one = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-3000:]

    assert store_content(folder / "experts") == store_content(alone / "experts")
    runs = Run.open(folder / "run"), Run.open(alone / "run")
    (split, state), (whole, wanted) = (run.load_checkpoint() or ({}, {}) for run in runs)
    assert split.keys() == whole.keys() and all(torch.equal(split[name], whole[name]) for name in whole)
    assert {**state, "seconds": 0} == {**wanted, "seconds": 0}
    assert without_time(runs[0].metrics()) == without_time(runs[1].metrics())
    best = DistilledDataset.load(alone / "run" / "distilled").images
    for rank in range(2):
        assert torch.equal(torch.load(folder / f"images{rank}.pt", weights_only=True), best)
        assert "another seed" in (folder / f"refused{rank}").read_text()


FAILING = """
import os
from mct_fast.run.distributed import leave, session
from mct_fast.run.errors import PeerError

with session() as communicator:
    communicator.gather_all(1)
    if communicator.rank == 1:
        os._exit(7)
    try:
        communicator.gather_all(2)
    except PeerError as error:
        print(error)
        leave(1)
"""


def test_a_process_that_fails_is_noticed_by_the_others(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert processes[0].returncode == 1 and processes[1].returncode == 7
    assert said[0] == "another process of this run has failed; its own message says why\n"


def test_commands_that_are_not_split_refuse_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mct_fast.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["inspect", "nowhere"]) == 2
    assert (
        capsys.readouterr().err
        == "mct-fast: process 1: error: inspect runs in one process: start it without torchrun\n"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"WORLD_SIZE": "many"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "first", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    ],
    ids=["size", "alone", "rank"],
)
def test_variables_that_torchrun_did_not_set_are_told_of(
    wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mct_fast.cli import main

    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    assert main(["experts", "--out", str(tmp_path / "store")]) == 2
    assert "error: torchrun: the environment variables that it sets hold something else" in capsys.readouterr().err
