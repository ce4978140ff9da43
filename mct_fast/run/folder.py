"""A run is a folder: its frozen configuration, what was measured, and the last checkpoint.

::

    config.json              what was asked for; only the number of iterations may change
    environment.json         versions and processor at the beginning
    metrics.jsonl            one JSON object a line, in the order of events
    checkpoint.safetensors   tensors, and the rest of the state as JSON in the file's metadata
    first/                   what it began with
    evaluations.json         what 'mct-fast evaluate' found afterwards, one record a network

Nothing is pickled, and every file knows its own checksum (``run/sealed.py``, ``run/journal.py``). A checkpoint is whole or
absent and knows how long ``metrics.jsonl`` was when it was written, so a run that goes on from it first forgets the records
after it: the file ends as that of a run that was never interrupted. Files of earlier releases have no checksum and are read.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mct_fast import __version__
from mct_fast.run.checkpoint import Checkpoint, write_checkpoint
from mct_fast.run.errors import InputError
from mct_fast.run.files import exclusive, is_locked, read_json
from mct_fast.run.journal import Journal
from mct_fast.run.sealed import read_sealed, write_sealed

log = logging.getLogger("mct_fast")

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.safetensors"
EVALUATIONS = "evaluations.json"
_LOCK, _EVALUATIONS_LOCK = ".lock", ".evaluations.lock"


class Product(Protocol):
    """What a run makes: a distilled set."""

    def save(self, folder: Path) -> object: ...

    def write_preview(self, folder: Path) -> object: ...


class Unkept:
    """In place of a :class:`Run` where nothing is to be written: there is none, or it is ``elsewhere``, another process's."""

    def __init__(self, *, elsewhere: bool = False) -> None:
        self.elsewhere = elsewhere

    def log(self, **metrics: Any) -> None:
        pass

    def keep(self, product: Product) -> None:
        pass

    def keep_first(self, product: Product) -> None:
        pass

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        pass


class Run:
    """A run's folder ``path`` with its ``config``; make one with :meth:`create` or :meth:`open`."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, sealed: bool = True) -> None:
        self.path, self.config, self._sealed = path, config, sealed
        self._metrics = Journal(path / METRICS)

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> Run:
        """A new run, or the existing one at ``path`` if it was begun with the same ``config`` (JSON-able).

        Raises:
            InputError: the folder cannot be written, holds other files, or holds a run with another configuration.
        """
        path = Path(path)
        if cls.holds_one(path):
            run = cls.open(path)
            differing = run.differing(config)
            if differing is not None:
                raise InputError(f"out: {path} holds a run with {differing}; choose another folder, or delete this one")
            return run
        try:
            path.mkdir(parents=True, exist_ok=True)
            strangers = sorted(entry.name for entry in path.iterdir() if not _half_begun(entry.name))
        except OSError as error:
            raise InputError(
                f"out: cannot write to {path} ({error.strerror}); choose a folder that you may write to"
            ) from error
        if strangers:
            raise InputError(f"out: {path} holds other files ({strangers[0]}); choose a new or an empty folder")
        write_sealed(path / ENVIRONMENT, environment())
        plain = _as_read_back(config)
        write_sealed(path / CONFIG, plain)  # last: a folder with a configuration is a run
        return cls(path, plain)

    @staticmethod
    def holds_one(path: str | Path) -> bool:
        """Whether the folder ``path`` holds a run."""
        return (Path(path) / CONFIG).exists()

    def differing(self, config: Mapping[str, Any], moved: Collection[str] = ()) -> str | None:
        """A setting, not one of ``moved``, in which this run differs from ``config``, in words; None: there is none."""
        plain = _as_read_back(config)
        for name in sorted({*plain, *self.config} - {*moved}):
            if plain.get(name) != self.config.get(name):
                return f"another {name} ({self.config.get(name)!r}, not {plain.get(name)!r})"
        return None

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at ``path``.

        Raises:
            InputError: there is none.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise InputError(
                f"run: {path} holds no run ({CONFIG} is missing); give the folder that 'mct-fast distill' wrote"
            )
        config, sealed = read_sealed(
            path / CONFIG, "run", "restore it, or set its checksum to null if you changed it yourself"
        )
        return cls(path, config, sealed=sealed is not None)

    def held(self) -> AbstractContextManager[None]:
        """Holds the run for this process: two that write one run would mix their records.

        Raises:
            InputError: another process has it.
        """
        return exclusive(self.path / _LOCK, f"out: {self.path}")

    def is_held(self) -> bool:
        """Whether a process on this machine is at work on the run."""
        return is_locked(self.path / _LOCK)

    def log(self, **metrics: Any) -> None:
        """Appends one record to ``metrics.jsonl``; numbers that are not finite are written as null."""
        self._metrics.append(_plain(metrics))

    def metrics(self) -> list[dict[str, Any]]:
        """All records. A torn last line, left by a kill, is passed over.

        Raises:
            InputError: a line before the last is damaged, or records are missing that the checkpoint knows of.
        """
        at_least = self._bytes_at_checkpoint()  # first: the file only grows
        return self._metrics.records(at_least)

    def environment(self) -> dict[str, Any]:
        """What :func:`environment` said when the run began; empty if that was not kept."""
        file = self.path / ENVIRONMENT
        return read_sealed(file, "run", "delete it, and the run goes without")[0] if file.is_file() else {}

    def evaluations(self) -> list[dict[str, Any]]:
        """Later evaluations of the distilled set, one record a network (architecture)."""
        file = self.path / EVALUATIONS
        if not file.is_file():
            return []
        remedy = "restore it, or delete it and evaluate again"
        found = read_json(file)
        if not isinstance(found, list):  # which earlier releases wrote
            found = read_sealed(file, "run", remedy)[0].get("evaluations")
        if not isinstance(found, list) or not all(
            isinstance(r, dict) and {"model", "split"} <= r.keys() for r in found
        ):
            raise InputError(f"run: {file} is no list of evaluations; {remedy}")
        return found

    def add_evaluation(self, record: Mapping[str, Any]) -> None:
        """Keeps ``record``, in place of an earlier one of the same ``model`` and ``split``; several processes may."""
        key = (record["model"], record["split"])
        with exclusive(self.path / _EVALUATIONS_LOCK, f"out: {self.path}", wait=True):
            others = [r for r in self.evaluations() if (r["model"], r["split"]) != key]
            write_sealed(self.path / EVALUATIONS, {"evaluations": [*others, _plain(record)]})

    def keep(self, product: Product) -> None:
        """Writes what was made, in place of what was kept before, and what people look at."""
        product.save(self.path / "distilled")
        product.write_preview(self.path)

    def keep_first(self, product: Product) -> None:
        """Writes what the run began with, for people to compare."""
        product.save(self.path / "first")

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint, atomically. ``state`` is JSON-able; floats survive exactly."""
        self._save_checkpoint(tensors, state, self._metrics.flush())

    def go_back(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], records: int) -> None:
        """Replaces the checkpoint by an earlier one, of when there were only the first ``records`` records."""
        length = self._metrics.length_of(records)
        self._save_checkpoint(tensors, state, length)
        self._metrics.cut(length)

    def change(self, **settings: Any) -> None:
        """Replaces ``settings`` of the configuration, atomically."""
        self.config = {**self.config, **_as_read_back(settings)}
        write_sealed(self.path / CONFIG, self.config)

    def _save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], length: int) -> None:
        write_checkpoint(self.path / CHECKPOINT, tensors, state, metrics_bytes=str(length))

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint ``(tensors, state)`` or None, to go on from.

        ``metrics.jsonl`` is cut back to where it was then: records of work that will be done again are dropped.

        Raises:
            InputError: the checkpoint is damaged, or the metrics are shorter than they were then.
        """
        saved = self.checkpoint()
        if saved is None:
            self._metrics.cut(0)
            return None
        tensors, state, length = saved
        self._metrics.cut(length)
        return tensors, state

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any], int] | None:
        """The last checkpoint, ``(tensors, state)``, and how many bytes of metrics there were; None: there is none.

        Raises:
            InputError: it is damaged.
        """
        file = self.path / CHECKPOINT
        if not file.exists():
            return None
        remedy = "delete it to begin this run anew"
        saved = Checkpoint.read(file, "run", remedy)
        length = saved.notes.get("metrics_bytes", "")
        if not length.isdecimal():
            raise InputError(f"run: {file} is damaged; {remedy}")
        if not (saved.sealed and self._sealed):
            log.warning(
                "%s was begun by an earlier release: its files have no checksums and are taken as they are", self.path
            )
        return saved.tensors, saved.state, int(length)

    def _bytes_at_checkpoint(self) -> int:
        """How long the checkpoint says that the metrics were; 0 where it says nothing."""
        try:
            with safe_open(str(self.path / CHECKPOINT), framework="pt") as file:
                return int((file.metadata() or {}).get("metrics_bytes", 0))
        except (OSError, SafetensorError, ValueError):
            return 0


def chosen_images(final: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What the images of a run's last record are: those that it began with are no distilled ones, and called so.

    Where the test split chose them, as without a validation split, that is said too.
    """
    if final["iteration"]:
        images = f"images of iteration {final['iteration']}"
    else:
        images = f"the {'noise' if config.get('pix_init') == 'noise' else 'real images'} it began with"
    return images + (", selected on test" if final.get("select_on") == "test" else "")


def _half_begun(name: str) -> bool:
    """Whether a file may be what :meth:`Run.create` had written when it was killed."""
    return name == ENVIRONMENT or (name.startswith((".environment-", ".config-")) and name.endswith(".json"))


def _as_read_back(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(config))


def environment() -> dict[str, Any]:
    """What a number may depend on: versions, processor, threads, accelerator."""
    return {
        "mct_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux; platform's answer is shorter
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """``value`` with numbers that are not finite replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
