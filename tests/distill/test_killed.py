"""Kill -9 at random moments of a run: it can be read at once, and gone on with it ends in the bits of one that was let be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hypothesis import settings

KILLS = 5 if settings.default.derandomize else 60  # pyright: ignore[reportOptionalMemberAccess]

# One process imports PyTorch once and forks the runs; it runs nothing in parallel, so that forking is safe.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from mct_fast.cli.output import run_rows
from mct_fast.data import load_dataset
from mct_fast.distill import distill
from mct_fast.distilled import DistilledDataset
from mct_fast.run.files import sha256_tensor
from mct_fast.run.folder import Run
from mct_fast.trajectory import TrajectoryStore
from tests.conftest import TINY_DISTILL

torch.set_num_threads(1)
root, store, kills = Path(sys.argv[1]), TrajectoryStore.open(sys.argv[2]), int(sys.argv[3])
digits = load_dataset("digits")


def begin(out):
    child = os.fork()
    if child == 0:
        try:
            distill(TINY_DISTILL, store, digits, out=out, resume=(out / "config.json").exists())
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(out):
    distilled = DistilledDataset.load(out / "distilled")
    tensors, state = Run.open(out).load_checkpoint()
    kept = [{k: v for k, v in r.items() if "second" not in k and k != "time"} for r in Run.open(out).metrics()]
    bits = {name: sha256_tensor(tensor) for name, tensor in tensors.items()}
    return sha256_tensor(distilled.images), distilled.syn_lr, dict(distilled.provenance), bits, kept


def whole(out):
    assert os.waitpid(begin(out), 0)[1] == 0, "a run that was let be has failed"
    return ended(out)


began = time.perf_counter()
reference = whole(root / "reference")
pace = time.perf_counter() - began
chance, killed, finished, number = random.Random(int(sys.argv[4])), 0, 0, 0
while killed < kills:
    number += 1
    out = root / f"run{number}"
    for _ in range(chance.randrange(1, 6)):
        child = begin(out)
        time.sleep(chance.uniform(0, pace))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, "a run has failed"
            break
        killed += 1
        if (out / "config.json").exists():
            run_rows(out)
            Run.open(out).load_checkpoint()
        if (out / "distilled" / "distilled.safetensors").exists():
            DistilledDataset.load(out / "distilled")
    assert whole(out) == reference, f"run {number} ended otherwise"
    left = [file.name for file in out.rglob(".*-*") if file.is_file()]
    assert not left, f"temporary files stay: {left}"
    finished += 1
print(killed, finished)
"""


def test_runs_that_are_killed_end_in_the_same_bits(
    tiny_store: Path, tmp_path: Path, tally: Callable[[str, str], None]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(tiny_store), str(KILLS), "1"],
        capture_output=True,
        text=True,
        timeout=1200,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    killed, finished = map(int, done.stdout.split())
    assert killed >= KILLS and finished
    for _ in range(killed):
        tally("kills of runs", "right")
