"""Kill -9 at random moments: every store that opens is whole, and what was finished is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

KILLS = 60

# One process imports PyTorch once and forks the writers; it runs nothing in parallel, so that forking is safe.
SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_file
from mct_fast.models.init import Uniform, draw
from mct_fast.trajectory import ENCODINGS, ConvexTrajectory, TrajectoryStore

torch.set_num_threads(1)
root, kills = Path(sys.argv[1]), int(sys.argv[2])
shapes, plan = [torch.Size((4, 3, 3)), torch.Size((5,))], (Uniform(9), Uniform(9))
about = {
    "model": {"name": "MLP"},
    "shapes": [list(shape) for shape in shapes],
    "init": [fill.to_json() for fill in plan],
    "dataset": {"name": "toy"},
    "recipe": {},
}
encodings = list(ENCODINGS)


def path_of(number):
    start = draw(plan, shapes, number)
    generator = torch.Generator().manual_seed(number)
    flats = [start + t * torch.randn(41, generator=generator) / 20 for t in range(6)]
    return ConvexTrajectory.fit([[f[:36].view(4, 3, 3), f[36:]] for f in flats])


def write(where, progress):
    store = TrajectoryStore.create(where, about)
    with store.writing():
        for number in range(10_000):
            if number not in store.experts:
                encoding = encodings[number % 4]
                store.add(number, path_of(number), {"number": number}, encoding=encoding, init_seed=number)
                os.write(progress, b"%d\\n" % number)  # after it is promised to be there


def expected(number, cache={}):
    if number not in cache:
        alone = TrajectoryStore.create(root / f"alone_{number}", about)
        alone.add(number, path_of(number), {"number": number}, encoding=encodings[number % 4], init_seed=number)
        cache[number] = (sha256_file(alone.path / alone.entry(0)["file"]), alone[0].waypoints)
    return cache[number]


chance = random.Random(int(sys.argv[3]))
where, promised, generation, unopened, total, pace = root / "store_0", set(), 0, 0, 0, 0.02
for kill in range(kills):
    if kill % 10 == 9:  # begin anew now and then, so that the first moments of a store are hit too
        generation += 1
        where, promised = root / f"store_{generation}", set()
    read, progress = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            write(where, progress)
        finally:
            os._exit(1)
    os.close(progress)
    with os.fdopen(read) as pipe:
        # A moment after none to two more experts: how long one takes depends on the machine.
        for _ in range(chance.randrange(3)):
            begun = time.perf_counter()
            line = pipe.readline()
            assert line, "the writer ended by itself"
            promised.add(int(line))
            pace = time.perf_counter() - begun
        time.sleep(chance.uniform(0, 1.5 * pace))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        promised |= {int(line) for line in pipe if line.endswith("\\n")}
    try:
        store = TrajectoryStore.open(where)
    except InputError as error:
        assert "holds no manifest.json" in str(error) and not promised, error
        unopened += 1
        continue
    store.verify()
    assert promised <= set(store.experts), (promised, store.experts)
    assert store.experts == list(range(len(store))), store.experts
    for i, number in enumerate(store.experts):
        digest, waypoints = expected(number)
        assert store.entry(i)["sha256"] == digest and torch.equal(store[i].waypoints, waypoints)
        assert store.info(i) == {"number": number}
    total = max(total, len(store))
print("whole", kills - unopened, "begun", unopened, "experts", total)
"""


def test_sixty_kills(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(KILLS), "1"],
        capture_output=True,
        text=True,
        timeout=240,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[1]) >= KILLS // 2, "most stores had begun when their writer was killed"
    assert int(words[5]) >= 3
