"""Damage of every kind: one line that names the file, and no finished expert lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mct_fast.data import load_dataset
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.models.init import Uniform, draw
from mct_fast.run import files
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_file
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

SHAPES = [torch.Size((4, 3, 3)), torch.Size((5,))]
PLAN = (Uniform(9), Uniform(9))
ENCODED = ["float32", "fp16", "int8", "int4"]


def about(**changed: Any) -> dict[str, Any]:
    return {
        "model": {"name": "MLP"},
        "shapes": [list(shape) for shape in SHAPES],
        "init": [fill.to_json() for fill in PLAN],
        "dataset": {"name": "toy", "fingerprint": "abc", "data_path": "/old"},
        "recipe": {"seed": 0},
        **changed,
    }


def path_of(seed: int) -> ConvexTrajectory:
    start = draw(PLAN, SHAPES, seed)
    generator = torch.Generator().manual_seed(seed)
    flats = [start + t * torch.randn(len(start), generator=generator) / 20 for t in range(6)]
    return ConvexTrajectory.fit([[f[:36].view(4, 3, 3), f[36:]] for f in flats])


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    made = TrajectoryStore.create(tmp_path / "store", about())
    for number, encoding in enumerate(ENCODED):
        made.add(number, path_of(number), {"accuracy": 0.5}, encoding=encoding, init_seed=number)
    return made


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def points(store: TrajectoryStore) -> list[bytes]:
    found = []
    for path in store:
        assert isinstance(path, ConvexTrajectory)
        found.append(path.waypoints.numpy().tobytes())
    return found


# Shards


@pytest.mark.parametrize("number", range(4), ids=ENCODED)
def test_every_flipped_bit_of_a_shard_is_seen(store: TrajectoryStore, number: int) -> None:
    file = store.path / f"expert_{number:05d}.safetensors"
    data = file.read_bytes()
    others = points(store)
    for position in range(0, len(data), 7):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
        with pytest.raises(InputError, match=file.name) as caught:
            TrajectoryStore.open(store.path)[number]
        assert "SHA-256" in one_line(caught)
    opened = TrajectoryStore.open(store.path)
    assert [opened[i].at(5).numpy().tobytes() for i in range(4) if i != number] == [
        store[i].at(5).numpy().tobytes() for i in range(4) if i != number
    ]
    with pytest.raises(InputError, match=rf"1 of 4 .*{file.name}") as caught:
        opened.verify()
    one_line(caught)
    file.write_bytes(data)
    opened.verify()
    assert points(opened) == others


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1])
def test_a_truncated_shard_is_named_with_its_sizes(store: TrajectoryStore, left: int) -> None:
    file = store.path / "expert_00002.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:left])
    with pytest.raises(InputError, match=rf"{file.name} has {len(data[:left])} bytes, not {len(data)}") as caught:
        TrajectoryStore.open(store.path)[2]
    one_line(caught)


def test_a_file_that_changes_while_the_store_is_open_is_checked_again(store: TrajectoryStore) -> None:
    opened = TrajectoryStore.open(store.path)
    assert isinstance(opened[1], ConvexTrajectory)
    file = store.path / "expert_00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.unlink()
    file.write_bytes(data)
    with pytest.raises(InputError, match=file.name):
        opened[1]


def test_missing_shards_and_all_damage_at_once(store: TrajectoryStore) -> None:
    (store.path / "expert_00000.safetensors").unlink()
    (store.path / "expert_00003.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="expert_00000.safetensors is missing") as caught:
        TrajectoryStore.open(store.path)[0]
    one_line(caught)
    with pytest.raises(InputError, match="2 of 4 .*expert_00000.*expert_00003") as caught:
        store.verify()
    one_line(caught)
    assert TrajectoryStore.open(store.path)[1].epochs == 5


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch pwned",)


def replace_shard(store: TrajectoryStore, number: int, file: Path) -> None:
    """As an attacker would: the manifest is made to fit."""
    edit(store, lambda m: m["experts"][str(number)].update(sha256=sha256_file(file), bytes=file.stat().st_size))


def edit(store: TrajectoryStore, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((store.path / "manifest.json").read_text())
    change(manifest)
    (store.path / "manifest.json").write_text(json.dumps({**manifest, "checksum": None}))


@pytest.mark.parametrize("content", ["pickle", "torch", "text", "foreign", "other-model"])
def test_content_that_is_no_shard_is_refused_and_never_unpickled(
    store: TrajectoryStore, content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = store.path / "expert_00001.safetensors"
    if content == "pickle":
        file.write_bytes(pickle.dumps(Hostile()))
    elif content == "torch":
        torch.save({"progress": Hostile()}, file)
    elif content == "text":
        file.write_text("no tensors")
    elif content == "foreign":
        save_file({"weights": torch.ones(3)}, file)
    else:
        tensors = load_file(file)
        save_file({name: part[..., :-1].contiguous() for name, part in tensors.items()}, file)
    replace_shard(store, 1, file)
    with pytest.raises(InputError, match=file.name) as caught:
        TrajectoryStore.open(store.path)[1]
    one_line(caught)
    assert not (tmp_path / "pwned").exists()


# Manifest


def test_every_flipped_bit_of_the_manifest_is_seen(store: TrajectoryStore) -> None:
    file = store.path / "manifest.json"
    data = file.read_bytes()
    shards = sorted(store.path.glob("*.safetensors"))
    for position in range(0, len(data), 11):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 7]) + data[position + 1 :])
        with pytest.raises(InputError, match=r"manifest\.json") as caught:
            TrajectoryStore.open(store.path)
        one_line(caught)
        with pytest.raises(InputError, match=r"manifest\.json"):
            TrajectoryStore.create(store.path, about())  # and not: begun anew
        with pytest.raises(InputError, match=r"manifest\.json"):
            store.add(9, path_of(9), {})
    assert sorted(store.path.glob("*.safetensors")) == shards
    file.write_bytes(data)
    assert len(points(TrajectoryStore.open(store.path))) == 4


def test_an_edited_manifest_is_accepted_once_it_says_so(store: TrajectoryStore) -> None:
    file = store.path / "manifest.json"
    file.write_text(file.read_text().replace('"name":"toy"', '"name":"toys"'))
    with pytest.raises(InputError, match="set its checksum to null"):
        TrajectoryStore.open(store.path)
    edit(store, lambda m: None)
    opened = TrajectoryStore.open(store.path)
    assert opened.manifest["dataset"]["name"] == "toys"
    opened.add(7, path_of(7), {})
    assert re.search(r'"checksum": "[0-9a-f]{64}"', file.read_text())
    assert TrajectoryStore.open(store.path).experts == [0, 1, 2, 3, 7]


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden.safetensors", "x.pt", 3, None]
)
def test_a_manifest_that_names_files_elsewhere_is_refused(store: TrajectoryStore, name: object) -> None:
    shutil.copy(store.path / "expert_00001.safetensors", store.path.parent / "other.safetensors")
    edit(store, lambda m: m["experts"]["1"].update(file=name))
    with pytest.raises(InputError, match=r"manifest\.json .*no file of this folder") as caught:
        TrajectoryStore.open(store.path)
    one_line(caught)


def test_duplicates_in_the_manifest_are_refused(store: TrajectoryStore) -> None:
    file = store.path / "manifest.json"
    text = file.read_text()
    edit(store, lambda m: m["experts"].update({"5": m["experts"]["1"]}))
    with pytest.raises(InputError, match=r"manifest\.json names expert_00001.safetensors as two"):
        TrajectoryStore.open(store.path)
    file.write_text(text.replace('"2": {', '"1": {'))
    with pytest.raises(InputError, match=r"manifest\.json .*'1' twice") as caught:
        TrajectoryStore.open(store.path)
    one_line(caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), "format version 3"),
        (lambda m: m.update(format_version="2"), "format version 2"),
        (lambda m: m.pop("shapes"), "lacks shapes"),
        (lambda m: m.update(experts=[]), "experts"),
        (lambda m: m["experts"].update({"x": {}}), "expert x"),
        (lambda m: m["experts"]["0"].pop("sha256"), "expert 0"),
    ],
    ids=["future", "string", "no-shapes", "list", "no-number", "no-hash"],
)
def test_malformed_manifests_are_named(store: TrajectoryStore, change: Callable, message: str) -> None:
    edit(store, change)
    with pytest.raises(InputError, match=rf"manifest\.json.*{message}") as caught:
        TrajectoryStore.open(store.path)
    one_line(caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["experts"]["1"]["origin"].update(seed="12"), "expert_00001.*seed 12"),
        (lambda m: m["experts"]["1"]["origin"].update(generator="mt19937"), "expert_00001.*mt19937"),
        (lambda m: m["experts"]["1"].update(encoding="int2"), "expert_00001.*int2"),
        (lambda m: m["experts"]["1"].update(encoding="int8"), "expert_00001"),
        (lambda m: m["init"][0].update(fan_in=10), "expert_00001.*SHA-256"),
        (lambda m: m.pop("init"), "expert_00001"),
    ],
    ids=["seed", "generator", "encoding", "other-encoding", "fan-in", "no-init"],
)
def test_a_manifest_that_does_not_fit_its_shards_is_named(
    store: TrajectoryStore, change: Callable, message: str
) -> None:
    edit(store, change)
    opened = TrajectoryStore.open(store.path)
    with pytest.raises(InputError, match=message) as caught:
        opened[1]
    one_line(caught)


# Another model, dataset, number


def test_a_store_of_something_else_is_refused(store: TrajectoryStore) -> None:
    for key, other in (("model", {"name": "ConvNet"}), ("shapes", [[3]]), ("recipe", {"seed": 1}), ("init", None)):
        with pytest.raises(InputError, match=rf"{store.path} holds experts of another {key}"):
            TrajectoryStore.create(store.path, about(**{key: other}))
    for other in (
        {"name": "toy", "fingerprint": "xyz", "data_path": "/old"},
        {"name": "other", "data_path": "/old"},
    ):
        with pytest.raises(InputError, match="another dataset"):
            TrajectoryStore.create(store.path, about(dataset=other))


def test_moved_data_are_the_same_data(store: TrajectoryStore) -> None:
    moved = about(dataset={"name": "toy", "fingerprint": "abc", "data_path": "/new", "zca": False})
    assert TrajectoryStore.create(store.path, moved).experts == [0, 1, 2, 3]
    assert TrajectoryStore.open(store.path).manifest["dataset"]["data_path"] == "/new"
    without = about(dataset={"name": "toy", "data_path": "/else"})
    assert TrajectoryStore.create(store.path, without).experts == [0, 1, 2, 3]


def test_an_experts_number_is_given_once(store: TrajectoryStore) -> None:
    before = points(store)
    with pytest.raises(InputError, match=r"holds expert 2 already"):
        store.add(2, path_of(8), {})
    assert points(TrajectoryStore.open(store.path)) == before


def test_a_seed_that_draws_something_else_is_refused(store: TrajectoryStore) -> None:
    with pytest.raises(InputError, match="^init_seed: 6 does not draw"):
        store.add(7, path_of(7), {}, init_seed=6)
    plain = TrajectoryStore.create(store.path.parent / "plain", about(init=None))
    with pytest.raises(InputError, match="^init_seed: .*create the store with 'init'"):
        plain.add(7, path_of(7), {}, init_seed=7)
    with pytest.raises(InputError, match="^info: "):
        store.add(7, path_of(7), {"loss": float("nan")})
    with pytest.raises(InputError, match="^encoding: unknown 'int2'"):
        store.add(7, path_of(7), {}, encoding="int2")
    with pytest.raises(InputError, match="^start_encoding: unknown 'int2'"):
        store.add(7, path_of(7), {}, start_encoding="int2")
    bad = path_of(7)
    bad.waypoints[1, 3] = float("inf")
    with pytest.raises(InputError, match="^path: .*finite"):
        store.add(7, bad, {})
    assert TrajectoryStore.open(store.path).experts == [0, 1, 2, 3]


# A full disk


FILL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from mct_fast.run.errors import InputError
from mct_fast.trajectory import ConvexTrajectory, TrajectoryStore

where = Path(sys.argv[2])
shapes = [torch.Size((64, 256))]
same = {"model": {}, "shapes": [[64, 256]], "dataset": {"name": "toy"}, "recipe": {}}
store = TrajectoryStore.create(where, same)
written = []
for number in range(100):
    generator = torch.Generator().manual_seed(number)
    lists = [[torch.randn(64, 256, generator=generator)] for _ in range(3)]
    path = ConvexTrajectory.fit(lists)
    try:
        store.add(number, path, {})
    except InputError as error:
        print(error)
        break
    written.append(path.waypoints)
opened = TrajectoryStore.open(where)
opened.verify()
assert opened.experts == store.experts == list(range(len(written))) and written
assert all(torch.equal(opened[i].waypoints, points) for i, points in enumerate(written))
strangers = [f.name for f in where.iterdir() if f.name not in {e["file"] for e in opened.manifest["experts"].values()}]
print(len(written), strangers)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "fill.py"
    script.write_text(FILL)
    where = tmp_path / "disk"
    where.mkdir()
    mount = f'mount -t tmpfs -o size=600k tmpfs "{where}" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, sys.executable, str(script), root, str(where)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    error, summary = done.stdout.strip().splitlines()
    assert re.search(r"cannot write .*(expert_0000\d.safetensors|manifest.json): No space left on device", error)
    assert int(summary.split()[0]) >= 3 and summary.endswith("['manifest.json']")


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_file_that_may_not_grow_is_named(tmp_path: Path) -> None:
    # The same by a limit on file sizes, which needs no permission: the first shard (131 kB) does not fit.
    (tmp_path / "fill.py").write_text(FILL.replace("and written", "and not written"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "fill.py"), str(Path(__file__).parents[2]), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_limited,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"cannot write .*expert_00000.safetensors: File too large", done.stdout)


@pytest.mark.parametrize("what", ["shard", "manifest", "rename"])
def test_no_space_at_any_step_keeps_the_store(
    store: TrajectoryStore, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, names = points(store), sorted(file.name for file in store.path.iterdir())
    sync, replace = files._fsync, os.replace
    target = "manifest" if what == "manifest" else "expert"

    def fail(path: Path) -> None:
        if what != "rename" and path.name.startswith(f".{target}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    def fail_rename(source: Path, to: Path) -> None:
        if what == "rename" and Path(to).name.startswith(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, to)

    monkeypatch.setattr(files, "_fsync", fail)
    monkeypatch.setattr(files.os, "replace", fail_rename)
    with pytest.raises(InputError, match=rf"{target}.*No space left on device; free some space") as caught:
        store.add(4, path_of(4), {}, encoding="int8", init_seed=4)
    one_line(caught)
    assert store.experts == [0, 1, 2, 3]
    assert sorted(file.name for file in store.path.iterdir()) == names
    monkeypatch.undo()
    assert points(TrajectoryStore.open(store.path)) == before
    store.add(4, path_of(4), {}, encoding="int8", init_seed=4)
    assert TrajectoryStore.open(store.path).experts == [0, 1, 2, 3, 4]


# Two writers


def test_two_writers_in_one_process(store: TrajectoryStore) -> None:
    other = TrajectoryStore.open(store.path)
    with store.writing():
        with pytest.raises(InputError, match=rf"{store.path} is being written by process {os.getpid()} on") as caught:
            other.add(4, path_of(4), {})
        one_line(caught)
        store.add(5, path_of(5), {})
        with store.writing():
            store.add(6, path_of(6), {})
        with pytest.raises(InputError, match="is being written"):
            other.add(4, path_of(4), {})
    other.add(4, path_of(4), {})  # knows nothing of 5 and 6, and does not drop them
    assert other.experts == TrajectoryStore.open(store.path).experts == [0, 1, 2, 3, 4, 5, 6]
    assert not (store.path / ".lock").exists()
    with pytest.raises(InputError, match="expert 5 already"):
        other.add(5, path_of(5), {})


def test_two_writers_in_two_processes(store: TrajectoryStore) -> None:
    script = """
        import sys, time
        from mct_fast.run.files import exclusive
        with exclusive(sys.argv[1], "it"):
            print("held", flush=True)
            time.sleep(60)
    """
    lock = store.path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(lock)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"is being written by process {holder.pid} on .* since ") as caught:
            store.add(4, path_of(4), {})
        one_line(caught)
        assert TrajectoryStore.open(store.path)[0].epochs == 5, "reading needs no lock"
        holder.kill()
    assert lock.exists(), "the dead process left its lock file"
    store.add(4, path_of(4), {})  # which holds nothing any more
    assert store.experts == [0, 1, 2, 3, 4] and not lock.exists()


def test_a_second_training_run_is_told_who_trains(tmp_path: Path) -> None:
    config = ExpertConfig(num_experts=1, train_epochs=1, depth=1, width=4, batch_train=1300)
    digits = load_dataset("digits")
    store = train_experts(config, tmp_path, digits)
    with store.writing(), pytest.raises(InputError, match=f"is being written by process {os.getpid()}"):
        train_experts(config, tmp_path, digits)
    assert train_experts(config, tmp_path, digits).experts == [0]


def test_leftovers_of_a_killed_writer_are_cleared(store: TrajectoryStore) -> None:
    left = [
        store.path / ".expert_00004-0123456789abcdef.safetensors",
        store.path / ".manifest-0123456789abcdef.json",
    ]
    mine = store.path / ".notes-0123456789abcdef.json"
    for file in [*left, mine]:
        file.write_text("half")
    assert points(TrajectoryStore.open(store.path)) == points(store)
    store.add(4, path_of(4), {})
    assert not any(file.exists() for file in left) and mine.exists()


# Format 1


def test_format_1_is_read_and_not_extended(tmp_path: Path) -> None:
    path = path_of(3)
    file = tmp_path / "expert_00000.safetensors"
    kept = torch.randn(6, 41)
    save_file({"waypoints": path.waypoints, "progress": path.progress, "checkpoints": kept}, file)
    entry = {"file": file.name, "sha256": sha256_file(file), "bytes": file.stat().st_size, "info": {"accuracy": 0.5}}
    old = {"format_version": 1, **about(), "experts": {"0": entry}}
    old.pop("init")
    (tmp_path / "manifest.json").write_text(json.dumps(old, indent=2))
    store = TrajectoryStore.open(tmp_path)
    assert torch.equal(store[0].at(2.3), path.at(2.3)) and store.info(0) == {"accuracy": 0.5}
    assert torch.equal(store.trajectory(0, "discrete").at(4), kept[4])
    store.verify()
    assert store.entry(0)["encoding"] == "float32" and store.entry(0)["origin"]["kind"] == "stored"
    for extend in (lambda: TrajectoryStore.create(tmp_path, about()), lambda: store.add(1, path, {})):
        with pytest.raises(InputError, match=r"manifest.json is of format 1, .*not extended"):
            extend()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=file.name):
        TrajectoryStore.open(tmp_path)[0]
