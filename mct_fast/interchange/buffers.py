"""The files in which the field keeps experts: MTT's replay buffers, and the waypoints and steps of the official MCT code.

``replay_buffer_N.pt`` (MTT, ``buffer.py``): a list of experts, each a list of epochs, each a list of parameter tensors.
``waypoint_buffer*_N.pt`` and ``step_buffer*_N.pt`` (MCT, ``exps/trajectory_compression.py``): of each expert a list of
waypoints, each a list of parameter tensors, and beta: for two waypoints a list of epochs, for more a list of pieces, each
a list of epochs from its first to its last, each a list of one number a parameter tensor.

Nothing in such a file is ever run (`mct_fast.run.plain`); of one that is mapped into memory only the parts in use occupy it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, sha256_tensor
from mct_fast.run.plain import read_plain
from mct_fast.trajectory import ConvexTrajectory
from mct_fast.trajectory.path import flatten

_NAMES = re.compile(
    r"(?P<family>(?:convexified_(?:v\d+_)?)?replay_buffer|waypoint_buffer(?:_[a-z]+\d*)?)_(?P<number>\d+)\.pt"
)
UNFINISHED = ".to_mtt.json"
"""Beside MTT's files while they are being written: of which store they are."""
_ROUNDING = 1e-5
"""How far beta of the MCT code, sums of at most some hundred float32 numbers, may miss 0, 1 or its own order."""


@dataclass(frozen=True)
class Fit:
    """How checkpoints become a path: the arguments of :meth:`ConvexTrajectory.fit`."""

    waypoints: int | tuple[int, ...] = 2
    schedule: str = "arc_length"
    smooth: bool = False


class StoredExpert(Protocol):
    """One expert in a file."""

    @property
    def shapes(self) -> tuple[torch.Size, ...]: ...

    @property
    def epochs(self) -> int: ...

    def fingerprint(self) -> str:
        """SHA-256 of the first and the last parameters."""
        ...

    def path(self, fit: Fit) -> ConvexTrajectory:
        """Its convex path; raises :class:`InputError`, naming the file, where values are not finite or do not fit."""
        ...

    def checkpoints(self) -> Tensor | None:
        """Every epoch's parameters ``(K + 1, P)`` float32, or None where the file does not have them."""
        ...


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order of their numbers."""

    family: str
    files: tuple[Path, ...]

    @property
    def has_checkpoints(self) -> bool:
        return not self.family.startswith("waypoint_buffer")

    def experts(self, file: Path) -> list[StoredExpert]:
        """The experts of one file, whose form has been checked and whose values have not been read."""
        if self.has_checkpoints:
            return [Checkpoints(f"{file} expert {i}", expert) for i, expert in enumerate(_experts_of(file))]
        steps_file = file.with_name(file.name.replace("waypoint_buffer", "step_buffer", 1))
        if not steps_file.is_file():
            raise InputError(f"source: {file} has no {steps_file.name} beside it; the two files belong together")
        waypoints, steps = _experts_of(file), read_list(steps_file)
        if len(waypoints) != len(steps):
            raise InputError(
                f"source: {file} has {len(waypoints)} experts, {steps_file.name} {len(steps)}; give files of one run"
            )
        return [
            Waypoints(f"{file} expert {i}", points, _pieces(f"{steps_file} expert {i}", len(points), step))
            for i, (points, step) in enumerate(zip(waypoints, steps, strict=True))
        ]


def find(source: Path, family: str | None = None) -> Source:
    """The files at ``source``, a file or a folder.

    ``family`` chooses among the kinds of a folder, e.g. ``"waypoint_buffer_ip4"``; left out, ``replay_buffer`` where there
    are some, else the only kind there is.
    """
    if source.is_file():
        if source.name.startswith("step_buffer"):
            raise InputError(f"source: {source} holds only steps; give the waypoint_buffer file beside it")
        named = _NAMES.fullmatch(source.name)
        return Source(named["family"] if named else "replay_buffer", (source,))
    if (source / UNFINISHED).exists():
        raise InputError(
            f"source: {source} lacks files: 'compress --to-mtt {source}' was interrupted; give that command again"
        )
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in source.glob("*.pt"):
        if named := _NAMES.fullmatch(file.name):
            found.setdefault(named["family"], []).append((int(named["number"]), file))
    if not found:
        raise InputError(f"source: {source} holds no replay_buffer_*.pt; give a buffer file of MTT or its folder")
    if family is None:
        family = "replay_buffer" if "replay_buffer" in found else min(found) if len(found) == 1 else None
        if family is None:
            raise InputError(f"files: {source} holds {', '.join(sorted(found))}; choose one with --files")
    if family not in found:
        raise InputError(f"files: {source} holds no {family}_*.pt; choose one of {', '.join(sorted(found))}")
    return Source(family, tuple(file for _, file in sorted(found[family])))


class Checkpoints:
    """Every epoch of one expert, as MTT keeps it; ``where`` names it in errors."""

    def __init__(self, where: str, epochs: list[list[Tensor]]) -> None:
        self._where, self._epochs = where, epochs
        if len(epochs) < 2:
            raise InputError(f"source: {where} has {len(epochs)} epoch; a path needs at least two")
        self.shapes = tuple(tensor.shape for tensor in epochs[0])
        for number, tensors in enumerate(epochs):
            if tuple(tensor.shape for tensor in tensors) != self.shapes:
                raise InputError(
                    f"source: {where} has other shapes at epoch {number} than at epoch 0; give one network's checkpoints"
                )

    @property
    def epochs(self) -> int:
        return len(self._epochs) - 1

    def fingerprint(self) -> str:
        return _fingerprint(self._epochs[0], self._epochs[-1])

    def path(self, fit: Fit) -> ConvexTrajectory:
        for number, tensors in enumerate(self._epochs):
            _check_finite(f"{self._where} epoch {number}", tensors)
        if all(torch.equal(first, last) for first, last in zip(self._epochs[0], self._epochs[-1], strict=True)):
            raise InputError(
                f"source: {self._where} ends where it began: MTT's buffer.py, run without a GPU, saves the last network at "
                "every epoch; train the experts again, on a GPU or with 'mct-fast experts'"
            )
        try:
            return ConvexTrajectory.fit(
                [_float32(tensors) for tensors in self._epochs], fit.waypoints, fit.schedule, fit.smooth
            )
        except InputError as error:
            raise InputError(f"{error} (source: {self._where})") from error

    def checkpoints(self) -> Tensor:
        rows = torch.empty(len(self._epochs), sum(shape.numel() for shape in self.shapes))
        for row, tensors in zip(rows, self._epochs, strict=True):
            row.copy_(flatten(tensors))
        return rows


class Waypoints:
    """A path of one expert that the official MCT code has convexified; ``pieces (n_j + 1, L)`` hold its beta."""

    def __init__(self, where: str, waypoints: list[list[Tensor]], pieces: list[Tensor]) -> None:
        self._where, self._waypoints, self._pieces = where, waypoints, pieces
        self.shapes = tuple(tensor.shape for tensor in waypoints[0])
        for number, tensors in enumerate(waypoints):
            if tuple(tensor.shape for tensor in tensors) != self.shapes:
                raise InputError(f"source: {where} has other shapes at waypoint {number} than at waypoint 0")
        if any(piece.shape[1] != len(self.shapes) for piece in pieces):
            raise InputError(
                f"source: {where} has {len(self.shapes)} tensors, its steps {pieces[0].shape[1]}; give files of one run"
            )

    @property
    def epochs(self) -> int:
        return sum(len(piece) - 1 for piece in self._pieces)

    def fingerprint(self) -> str:
        return _fingerprint(self._waypoints[0], self._waypoints[-1])

    def path(self, fit: Fit) -> ConvexTrajectory:
        """The path as it stands; ``fit`` plays no part."""
        for number, tensors in enumerate(self._waypoints):
            _check_finite(f"{self._where} waypoint {number}", tensors)
        progress = [torch.zeros(1, len(self.shapes), dtype=torch.float64)]
        for number, beta in enumerate(self._pieces):
            progress.append(number + self._from_0_to_1(beta)[1:])
        points = torch.stack([flatten(_float32(tensors)) for tensors in self._waypoints])
        return ConvexTrajectory(points, torch.cat(progress).T.contiguous(), self.shapes)

    def checkpoints(self) -> None:
        return None

    def _from_0_to_1(self, beta: Tensor) -> Tensor:
        """``beta (n + 1, L)`` without its rounding.

        A tensor that never moved has beta 0 throughout in the MCT code: it goes to 1 at the end, where it makes no difference.
        """
        still = (beta == 0).all(0)
        beta = beta.clone()
        beta[-1, still] = 1.0
        straight = beta.clamp(0, 1).cummax(0).values
        straight[0], straight[-1] = 0.0, 1.0
        if not bool(((straight - beta).abs() <= _ROUNDING).all()):  # "not <=": NaN fails too
            raise InputError(
                f"source: beta of {self._where} does not rise from 0 to 1 (so it is with --abl_decreasing_points and "
                "--abl_projected_points); compress the replay_buffer files with --schedule decreasing or projected"
            )
        return straight


def write_experts(file: Path, experts: Sequence[Sequence[Sequence[Tensor]]]) -> None:
    """A ``replay_buffer_N.pt`` as MTT writes it, whole or not at all."""
    content = [[list(tensors) for tensors in expert] for expert in experts]

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as opened:  # given a path, torch.save would write its random name into the file
            torch.save(content, opened)

    atomic_write(file, write)


def read_list(file: Path) -> list[Any]:
    """The list of plain containers and tensors that ``file`` holds."""
    content = read_plain("source", file, "give a buffer that torch.save wrote from lists of tensors, whole")
    if not isinstance(content, list) or not content:
        raise InputError(f"source: {file} is no list of experts; give a file of MTT's buffer.py")
    return content


def _experts_of(file: Path) -> list[list[list[Tensor]]]:
    experts = read_list(file)
    for number, expert in enumerate(experts):
        if not _listed(expert) or not all(_listed(epoch) and all(map(_plain, epoch)) for epoch in expert):
            raise InputError(
                f"source: {file} expert {number} is not a list of epochs of tensors; give a file of MTT's buffer.py"
            )
    return experts


def _listed(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0


def _plain(value: object) -> bool:
    """A dense float tensor, no larger than the memory behind it (a forged one could claim any size)."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _pieces(where: str, waypoints: int, steps: object) -> list[Tensor]:
    """``(n_j + 1, L)`` float64 of each piece."""
    if waypoints < 2:
        raise InputError(f"source: {where} has {waypoints} waypoint; a path needs at least two")
    pieces: Any = [steps] if waypoints == 2 else steps
    if not _listed(pieces) or len(pieces) != waypoints - 1:
        raise InputError(f"source: {where} does not have the {waypoints - 1} pieces of {waypoints} waypoints")
    tables = []
    for piece in pieces:
        numbers = _listed(piece) and all(
            _listed(epoch) and len(epoch) == len(piece[0]) and all(_plain(beta) and beta.numel() == 1 for beta in epoch)
            for epoch in piece
        )
        if not numbers or len(piece) < 2:
            raise InputError(
                f"source: {where} is not a list of epochs of one number a tensor; give the MCT code's file"
            )
        tables.append(torch.tensor([[float(beta) for beta in epoch] for epoch in piece], dtype=torch.float64))
    return tables


def _check_finite(where: str, tensors: Sequence[Tensor]) -> None:
    for number, tensor in enumerate(tensors):
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"source: {where} tensor {number} holds NaN or infinity, so the expert diverged; "
                "leave its file out or train it again with a smaller step size"
            )


def _float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().float() for tensor in tensors]


def _fingerprint(first: Sequence[Tensor], last: Sequence[Tensor]) -> str:
    parts: Iterator[str] = (sha256_tensor(flatten(_float32(tensors))) for tensors in (first, last))
    return hashlib.sha256("".join(parts).encode()).hexdigest()
