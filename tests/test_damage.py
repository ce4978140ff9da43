"""Random damage to every file that a run or a store writes, and to the files that are read: the same result, or one line."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mct_fast.cli.output import distilled_rows, run_rows
from mct_fast.data import load_dataset
from mct_fast.data.cache import load_cached, store_cached
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import default_model
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.interchange.buffers import Fit, find
from mct_fast.run.errors import InputError
from mct_fast.run.files import sha256_tensor
from mct_fast.run.folder import Run
from mct_fast.run.sealed import read_tensors, write_tensors
from mct_fast.trajectory import TrajectoryStore
from mct_fast.view.inspect import inspect_store, rows
from mct_fast.view.report import write_report

Read = Callable[[Path], Any]


def _run(folder: Path) -> Any:
    run = Run.open(folder)
    found = [dict(run.config), run.environment(), run.metrics(), run.evaluations()]
    loaded = run.load_checkpoint()
    assert loaded is not None
    return [*found, {name: sha256_tensor(tensor) for name, tensor in loaded[0].items()}, loaded[1]]


def _set(folder: Path) -> Any:
    distilled = DistilledDataset.load(folder)
    images, labels = sha256_tensor(distilled.images), sha256_tensor(distilled.labels)
    return images, labels, distilled.syn_lr, distilled.class_names, dict(distilled.provenance), distilled.transform


def _store(folder: Path) -> Any:
    store = TrajectoryStore.open(folder)
    paths = [sha256_tensor(store.trajectory(i, kind).at(1.0)) for i in range(2) for kind in ("convex", "bezier")]
    return paths, store.manifest


def _buffer(folder: Path) -> Any:
    source = find(folder)
    return [sha256_tensor(expert.path(Fit()).at(1.0)) for file in source.files for expert in source.experts(file)]


def _cache(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCT_FAST_CACHE", str(folder))
        found = load_cached("made")
    if found is None:
        raise InputError("made anew: as if there were none")
    return {name: sha256_tensor(tensor) for name, tensor in found.items()}


def _arrays(folder: Path) -> Any:
    return {file.name: load_dataset("series", data_path=file).fingerprint for file in sorted(folder.iterdir())}


READERS: dict[str, Read] = {
    "run": _run, "run/distilled": _set, "store": _store, "mtt": _buffer, "mct": _buffer, "cache": _cache,
    "arrays": _arrays,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny_run: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of everything. Read only: copy it to change it."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_run, root / "run")
    Run.open(root / "run").add_evaluation(
        {"model": "A", "split": "test", "mean": 0.5, "std": 0.1, "scores": [0.5], "lr": 0.1}
    )
    shutil.copytree(tiny_store, root / "store")
    fit_bezier(root / "store", BezierConfig(epochs=1))
    generator = torch.Generator().manual_seed(0)
    expert = [[torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator)] for _ in range(4)]
    for name, content in (
        ("mtt/replay_buffer_0.pt", [expert, expert[::-1]]),
        ("mct/waypoint_buffer_0.pt", [[expert[0], expert[3]]]),
        ("mct/step_buffer_0.pt", [[[torch.tensor(t / 3)] * 2 for t in range(4)]]),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        torch.save(content, root / name)
    (root / "arrays").mkdir()
    x, y = torch.randn(12, 3, 2, generator=generator).numpy(), torch.arange(12).numpy() % 2
    np.savez(root / "arrays" / "plain.npz", x=x, y=y)
    np.savez_compressed(root / "arrays" / "packed.npz", x=x, y=y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCT_FAST_CACHE", str(root / "cache"))
        store_cached("made", {"images": torch.arange(40), "mean": torch.rand(3)})
    return root


@pytest.fixture(scope="module")
def results(whole: Path) -> dict[str, Any]:
    return {name: read(whole / name) for name, read in READERS.items()}


def changed(data: bytes, chance: random.Random) -> bytes:
    """``data`` after one of the ways in which files are damaged."""
    at = chance.randrange(len(data) + 1)
    length = min(chance.choice((1, 1, 2, 7, 64, 600)), len(data) - at)
    junk = chance.randbytes(length)
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    some = chance.choice(digits) if digits else at
    return chance.choice(
        (
            data[:at],
            data[:at] + data[at + length :],
            data[:at] + junk + data[at:],
            data[:at] + junk + data[at + length :],
            data[:at] + bytes(length) + data[at + length :],
            data[:at] + data[at : at + length] * 2 + data[at + length :],
            data[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :],
            data[:some] + str(chance.randrange(10)).encode() + data[some + 1 :],
            data + junk,
        )
    )


def attempt(read: Read, folder: Path) -> Any:
    """What ``read`` finds; None where it refuses in one line."""
    try:
        return read(folder)
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    return None


def files_of(folder: Path, below: Path) -> list[Path]:
    """What a reader of ``folder`` reads."""
    names = [path.relative_to(below) for path in sorted(folder.iterdir()) if path.is_file()]
    return [name for name in names if name.suffix in (".json", ".jsonl", ".safetensors", ".pt", ".npz")]


@given(seed=st.integers(0, 2**63))
def test_any_damage_is_refused_in_one_line_or_harmless(
    seed: int, whole: Path, results: dict[str, Any], tally: Callable[[str, str], None]
) -> None:
    chance = random.Random(seed)
    kind = chance.choice(list(READERS))
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        shutil.copytree(whole / kind, place / kind)
        file = place / chance.choice(files_of(place / kind, place))
        file.write_bytes(changed(file.read_bytes(), chance))
        found = attempt(READERS[kind], place / kind)
    if found is None:
        tally("damaged files", "refused")
        return
    assert found == results[kind], f"{file.relative_to(place)}: another result without a word"
    tally("damaged files", "right")


# JSON whose checksum was taken away, so that only its form is left to be checked


DIGITS = load_dataset("digits")
VALUES: list[Any] = [None, True, 3, -1, 0.5, 1e308, 10**400, "", "x", "../x", [], [[]], {}, {"x": 1}, [1, "x"]]
deep: Any = 1
for _ in range(500):
    deep = [deep]
VALUES.append(deep)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in ``value`` with each of its keys."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


def _unsealed(content: Any) -> Any:
    return {**content, "checksum": None} if isinstance(content, dict) else content


def _page(folder: Path) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mct_fast.view.figures.png", lambda *_, **__: b"")  # what is drawn, not its pixels
        return [run_rows(folder), Run.open(folder).load_checkpoint(), write_report(folder)]


def _told(folder: Path) -> list[Any]:
    return [run_rows(folder), Run.open(folder).load_checkpoint()]


def _described(folder: Path) -> list[Any]:
    distilled = DistilledDataset.load(folder / "distilled")
    return [distilled_rows(distilled), distilled.task, distilled.lr_net, default_model(DIGITS, distilled.provenance)]


def _shown(folder: Path) -> list[Any]:
    store = TrajectoryStore.open(folder)
    store.verify()
    return rows(inspect_store(store, samples=20, points=2))


@given(seed=st.integers(0, 2**63))
def test_any_wrong_type_or_name_in_json_is_one_line(seed: int, whole: Path, tally: Callable[[str, str], None]) -> None:
    chance = random.Random(seed)
    file, show = chance.choice(
        (
            *[("store/manifest.json", _shown)] * 8,
            *[("run/metrics.jsonl", _told)] * 5,
            *[("run/distilled/distilled.safetensors", _described)] * 3,
            ("run/config.json", _page),
            ("run/environment.json", _page),
            ("run/evaluations.json", _told),
        )
    )
    kind, tensors, metadata = file.split("/")[0], {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        shutil.copytree(whole / kind, place / kind)
        text = "" if file.endswith(".safetensors") else (place / file).read_text()
        if file.endswith(".safetensors"):  # what it says, sealed again
            tensors, metadata, _ = read_tensors(place / file, "folder", "")
            content = json.loads(metadata["meta"])
            container, key = chance.choice(list(places(content)))
        elif file.endswith(".jsonl"):
            content = [json.loads(line) for line in text.splitlines()]
            for line in content:
                del line["sum"]
            container, key = chance.choice([p for line in content for p in places(line)])
        else:
            content = _unsealed(json.loads(text))
            container, key = chance.choice(list(places(content)))
        if chance.random() < 0.2:
            del container[key]
        else:
            container[key] = chance.choice(VALUES)
        if tensors:
            metadata.pop("checksum", None)
            write_tensors(place / file, tensors, {**metadata, "meta": json.dumps(content)})
        else:
            lines = content if file.endswith(".jsonl") else [content]
            (place / file).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        tally("JSON of another form", "refused" if attempt(show, place / kind) is None else "read")
