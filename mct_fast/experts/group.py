"""Experts that train together: what an epoch changes, and what is kept of it so that a killed training goes on."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.run.checkpoint import Checkpoint, restoring, write_checkpoint
from mct_fast.run.files import RowSpool
from mct_fast.training import FlatStack
from mct_fast.trajectory import UNFINISHED, PathRecorder

_NAME = re.compile(r"expert_(\d+)\.(safetensors|rows)")
_FRESH = "delete it, and the expert is trained from its beginning"


class Unfinished:
    """A folder in a store: of each expert under way a checkpoint, and its parameters at every epoch if these are kept."""

    def __init__(self, store: Path) -> None:
        self._folder = store / UNFINISHED

    def file(self, number: int, suffix: str = "safetensors") -> Path:
        """Where the checkpoint of expert ``number`` is, or, with the suffix "rows", its parameters."""
        return self._folder / f"expert_{number:05d}.{suffix}"

    def read(self, number: int) -> Checkpoint:
        """The checkpoint of expert ``number``, checked; :class:`InputError` where it is damaged."""
        return Checkpoint.read(self.file(number), "out", _FRESH)

    def epochs(self) -> dict[int, int]:
        """The epochs that each expert under way has behind it."""
        found = {}
        for number, suffix in self._there():
            if suffix == "safetensors":
                with restoring("out", self.file(number), _FRESH):
                    found[number] = int(self.read(number).state["epoch"])
        return found

    def forget(self, done: Collection[int]) -> None:
        """Removes what is kept of the experts ``done``."""
        for number in done:
            for suffix in ("safetensors", "rows"):
                self.file(number, suffix).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Removes rows that no checkpoint knows of, and the folder if it is empty; no process may be training."""
        there = self._there()
        for number, suffix in there:
            if suffix == "rows" and (number, "safetensors") not in there:
                self.file(number, suffix).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # which refuses while there is something in it

    def _there(self) -> list[tuple[int, str]]:
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted((int(found[1]), found[2]) for name in names if (found := _NAME.fullmatch(name)))


@dataclass
class Group:
    """The experts ``numbers`` as they train: networks, random streams, recorders, and spools if every epoch is kept."""

    numbers: list[int]
    stack: FlatStack
    streams: list[torch.Generator]
    recorders: list[PathRecorder]
    spools: list[RowSpool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.epoch = 0
        self.finite = [True] * len(self.numbers)
        """Whether an expert's parameters were finite at every epoch."""
        self.losses: list[list[float]] = [[] for _ in self.numbers]
        """The mean training losses of an expert's epochs."""
        self.seconds = [0.0] * len(self.numbers)
        """What each expert took before it was gone on with."""

    def observe(self) -> None:
        """Looks at the parameters after a whole epoch, and before the first."""
        for i, params in enumerate(self.stack.params):
            if self.finite[i] and bool(params.isfinite().all()):
                self.recorders[i].observe(params)
            else:
                self.finite[i] = False
            if self.spools:
                self.spools[i].append(params)

    def advance(self, epoch: int, losses: Tensor) -> None:
        """One epoch more, whose ``losses`` are ``(E,)``."""
        self.epoch = epoch
        self.observe()
        for own, loss in zip(self.losses, losses.tolist(), strict=True):
            own.append(loss)

    def save(self, unfinished: Unfinished, seconds: float) -> None:
        """Keeps every expert as it is; ``seconds``: what each took since :meth:`load` or its beginning."""
        for i, number in enumerate(self.numbers):
            tensors = {name: tensor[i] for name, tensor in zip(_STACK, self.stack.state(), strict=False)}
            tensors["stream"] = self.streams[i].get_state()
            tensors |= {f"path.{name}": tensor for name, tensor in self.recorders[i].state_dict().items()}
            state = {
                "epoch": self.epoch,
                "finite": self.finite[i],
                "losses": self.losses[i],
                "seconds": self.seconds[i] + seconds,
                "rows": self.spools[i].noted() if self.spools else None,
            }
            write_checkpoint(unfinished.file(number), tensors, state)

    def load(self, unfinished: Unfinished) -> None:
        """Goes on from what was kept of every expert, which have as many epochs behind them."""
        for i, number in enumerate(self.numbers):
            saved, file = unfinished.read(number), unfinished.file(number)
            with restoring("out", file, _FRESH):
                for name, tensor in zip(_STACK, self.stack.state(), strict=False):
                    tensor[i] = saved.tensors[name]
                self.streams[i].set_state(saved.tensors["stream"])
                path = {k.removeprefix("path."): v for k, v in saved.tensors.items() if k.startswith("path.")}
                here = {
                    k: v.to("cpu" if k == "steps" else self.stack.params.device, copy=True) for k, v in path.items()
                }
                self.recorders[i].load_state_dict(here)
                self.epoch, self.finite[i] = int(saved.state["epoch"]), bool(saved.state["finite"])
                self.losses[i], self.seconds[i] = list(saved.state["losses"]), float(saved.state["seconds"])


_STACK = ("params", "momentum")


class Keeper:
    """Saves a group now and then: after an epoch that ends ``minutes`` or more after the last time."""

    def __init__(self, group: Group, unfinished: Unfinished, minutes: float) -> None:
        self._group, self.unfinished, self._every = group, unfinished, 60 * minutes
        self._began = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """What each expert took of the time since this was made."""
        return (time.monotonic() - self._began) / len(self._group.numbers)

    def after_epoch(self) -> None:
        """Saves if it is time to."""
        if time.monotonic() - self._last >= self._every:
            self._group.save(self.unfinished, self.seconds)
            self._last = time.monotonic()


def spools(numbers: list[int], unfinished: Unfinished, begun: bool, held: contextlib.ExitStack) -> list[RowSpool]:
    """Files for the parameters of every epoch, closed with ``held``; those of experts that have ``begun`` go on."""
    found: list[RowSpool] = []
    for number in numbers:
        kept: Any = None
        if begun:
            with restoring("out", unfinished.file(number), _FRESH):
                kept = dict(unfinished.read(number).state["rows"])
        found.append(held.enter_context(RowSpool(unfinished.file(number, "rows"), kept)))
    return found
