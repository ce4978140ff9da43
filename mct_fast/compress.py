"""Stage 2 for paths that exist already: the experts of MTT's and MCT's own code become a store, and a store MTT's files."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.data.datasets import inputs_of
from mct_fast.data.registry import REGISTRY
from mct_fast.interchange.buffers import UNFINISHED, Fit, Source, StoredExpert, find, write_experts
from mct_fast.models import ConvNet, FunctionalModel, build_model, model_spec
from mct_fast.run.errors import InputError
from mct_fast.run.files import exclusive
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.sealed import read_sealed, write_sealed
from mct_fast.trajectory import Trajectory, TrajectoryStore
from mct_fast.trajectory.encoding import find_encoding

log = logging.getLogger("mct_fast")

_ASSUMED = (
    "the experts are taken for ConvNets with instance norm, ReLU and average pooling, which shapes do not tell from "
    "group norm, batch norm, other activations or max pooling: where that is wrong, say --norm or --model"
)
_RECOGNISED = ("instance", "group", "layer", "none")
MTT_EXPERTS_A_FILE = 10
"""What ``--save_interval`` of MTT's buffer.py is by default."""


def compress(
    source: str | Path,
    out: str | Path,
    *,
    dataset: str,
    data_path: str | None = None,
    zca: bool = False,
    model: Mapping[str, Any] | None = None,
    norm: str | None = None,
    files: str | None = None,
    waypoints: int | tuple[int, ...] = 2,
    schedule: str = "arc_length",
    smooth: bool = False,
    keep_checkpoints: bool = False,
    encoding: str = "fp16",
    start_encoding: str = "float32",
    progress: Progress = quiet(),
) -> TrajectoryStore:
    """Turns experts that exist into a :class:`TrajectoryStore` at ``out``.

    ``source``: a file or a folder of MTT's ``replay_buffer_N.pt`` (of the kind ``files``, see
    :func:`mct_fast.interchange.buffers.find`), or of the ``waypoint_buffer*_N.pt`` and ``step_buffer*_N.pt`` of the official
    MCT code, whose paths are taken as they are.  Files are read one at a time and never run.  ``dataset``, ``data_path`` and
    ``zca`` say what the experts were trained on; channels, pixels and classes are compared with it.
    ``model``: spec of the network; left out, a ConvNet is recognised from its shapes, which do not tell instance norm from
    group or batch norm: ``norm`` does, else instance is assumed and said.  ``encoding`` of the waypoints after the
    first and ``start_encoding`` of the first, whose seed nobody knows: see :meth:`TrajectoryStore.add`.  Other arguments:
    :meth:`ConvexTrajectory.fit`.

    Experts that ``out`` already holds are compared with the source and not written again, so the same call goes on after a
    failure.  Raises :class:`InputError` that names the file, and keeps the experts that came before.
    """
    for argument, name in (("encoding", encoding), ("start_encoding", start_encoding)):
        find_encoding(name, argument)
    _check_norm(norm, model)
    canonical, _ = REGISTRY.find(dataset)  # a misspelt name would be noticed only when the store is used
    kept_as = {"keep_checkpoints": keep_checkpoints, "encoding": encoding, "start_encoding": start_encoding}
    given, fit = find(Path(source), files), Fit(waypoints, schedule, smooth)
    job = _Job(given, Path(out), fit, kept_as, dataset, canonical, data_path, zca, model, norm)
    store: TrajectoryStore | None = None
    first: StoredExpert | None = None
    number = 0
    with progress.task("compress", len(job.found.files)) as bar, ExitStack() as locked:
        for file in job.found.files:
            for index, expert in enumerate(job.found.experts(file)):
                if store is None or first is None:
                    store, first = job.begin(expert, locked), expert
                _check_alike(f"{file} expert {index}", expert, first)
                job.take(expert, store, number, file, index)
                number += 1
            bar.advance(1, experts=number)
    assert store is not None  # find() gave a file, and a file without experts is refused
    return store


@dataclass(frozen=True)
class _Job:
    """Where experts come from, the store they go to, and what is known of their network; see :func:`compress`."""

    found: Source
    out: Path
    fit: Fit
    kept_as: Mapping[str, Any]
    """The arguments of :func:`compress` that say how a path is kept, by name."""
    dataset: str
    canonical: str
    data_path: str | None
    zca: bool
    model: Mapping[str, Any] | None
    norm: str | None

    def __post_init__(self) -> None:
        if not self.found.has_checkpoints and (self.kept_as["keep_checkpoints"] or self.fit != Fit()):
            raise InputError(
                f"waypoints: {self.found.family} files hold finished paths; leave out --waypoints, --schedule, --smooth and "
                "--keep-checkpoints, or compress the replay_buffer files"
            )

    def begin(self, first: StoredExpert, locked: ExitStack) -> TrajectoryStore:
        """The store for experts like ``first``, in which no other process writes while ``locked`` is held."""
        shapes = list(first.shapes)
        if self.model is not None:
            spec = _full_spec(self.model, shapes)
        else:
            spec = recognise_convnet(shapes, self.canonical, self.norm or "instance")
        spec = _of_dataset(spec, shapes, self.dataset, self.data_path)
        where = None if self.data_path is None else str(Path(self.data_path).expanduser().absolute())
        noted = {"name": self.dataset, "data_path": where, "zca": self.zca}
        store = _begin(self.out, spec, noted, _recipe(self.found, first, self.fit, self.kept_as))
        locked.enter_context(store.writing())
        if self.norm is None and self.model is None:
            log.warning(_ASSUMED)
        return store

    def take(self, expert: StoredExpert, store: TrajectoryStore, number: int, file: Path, index: int) -> None:
        """Writes expert ``index`` of ``file`` as ``number`` of the store, or compares it with the one that is there."""
        if number in store.experts:
            _check_same(store, number, expert, file)
            return
        info = {"source": file.name, "index": index, "sha256": expert.fingerprint()}
        kept = expert.checkpoints() if self.kept_as["keep_checkpoints"] else None
        encodings = {name: self.kept_as[name] for name in ("encoding", "start_encoding")}
        store.add(number, expert.path(self.fit), info, kept, **encodings)


@dataclass(frozen=True)
class MTTFiles:
    """What :func:`to_mtt` wrote."""

    files: tuple[Path, ...]
    checkpoints: int
    """Experts written as SGD left them, epoch by epoch."""
    convex: int
    """Experts of which the store keeps no checkpoints, written as points of the convex path at whole epochs."""


def to_mtt(
    store: TrajectoryStore | str | Path,
    folder: str | Path,
    *,
    per_file: int = MTT_EXPERTS_A_FILE,
    progress: Progress = quiet(),
) -> MTTFiles:
    """Writes ``folder/replay_buffer_0.pt``, ... that MTT's ``distill.py`` reads, ``per_file`` experts each.

    An expert whose checkpoints the store keeps is written bit for bit as it was trained; of any other the convex path is
    written at whole epochs, which is not what SGD passed through.  Memory holds one file's experts, as in MTT itself.  Each
    file is whole or absent, and ``replay_buffer_0.pt`` is written last: without it MTT finds nothing, so a folder never looks
    complete before it is.  The same call goes on after a failure.  Raises :class:`InputError` if the folder holds other such
    files.
    """
    if per_file < 1:
        raise InputError(f"per_file: got {per_file}; give at least 1, MTT has {MTT_EXPERTS_A_FILE}")
    store = store if isinstance(store, TrajectoryStore) else TrajectoryStore.open(store)
    folder = Path(folder)
    if not len(store):
        raise InputError(f"source: {store.path} holds no expert; train or compress some first")
    files = [folder / f"replay_buffer_{number}.pt" for number in range(-(-len(store) // per_file))]
    kept = 0
    with _unfinished(store, folder, per_file), progress.task("to MTT, experts", len(store)) as bar:
        for number, file in reversed(list(enumerate(files))):
            experts = []
            for i in range(number * per_file, min((number + 1) * per_file, len(store))):
                path, exact = _best_path(store, i)
                kept += exact
                if not file.exists():
                    experts.append(_checkpoints(path, store))
                bar.advance(1)
            if experts:
                _write_mtt(file, experts)
    return MTTFiles(tuple(files), kept, len(store) - kept)


@contextlib.contextmanager
def _unfinished(store: TrajectoryStore, folder: Path, per_file: int) -> Iterator[None]:
    """Within it ``folder`` is noted as one that lacks files, and no other process writes them."""
    note = folder / UNFINISHED
    experts = {str(entry["number"]): entry["sha256"] for entry in map(store.entry, range(len(store)))}
    content = {"experts": experts, "per_file": per_file}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"to_mtt: cannot write to {folder} ({error.strerror}); choose a writable folder") from error
    with exclusive(folder / ".lock", f"to_mtt: {folder}"):
        begun = read_sealed(note, "to_mtt", f"empty {folder} and begin anew")[0] if note.exists() else None
        if begun != content and (begun is not None or any(folder.glob("replay_buffer_*.pt"))):
            whose = "those of another store or --per-file" if begun is not None else "replay_buffer files"
            raise InputError(f"to_mtt: {folder} already holds {whose}; choose an empty folder, nothing was written")
        write_sealed(note, content)
        try:
            yield
        except BaseException:
            if not any(folder.glob("replay_buffer_*.pt")):
                note.unlink()
            raise
        note.unlink()


def _checkpoints(path: Trajectory, store: TrajectoryStore) -> list[list[Tensor]]:
    sizes = [shape.numel() for shape in store.shapes]
    return [_tensors(path.at(t), store.shapes, sizes) for t in range(path.epochs + 1)]


def _write_mtt(file: Path, experts: list[list[list[Tensor]]]) -> None:
    try:
        write_experts(file, experts)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as RuntimeError
        reason = str(error).splitlines()[0]
        raise InputError(
            f"to_mtt: cannot write {file} ({reason}); free some space and give the same command again"
        ) from error


def _best_path(store: TrajectoryStore, i: int) -> tuple[Trajectory, bool]:
    """SGD's checkpoints and True, or the convex path and False."""
    try:
        return store.trajectory(i, "discrete"), True
    except InputError:  # none were kept; if the file is damaged, the next line says so
        return store.trajectory(i), False


def _tensors(params: Tensor, shapes: tuple[torch.Size, ...], sizes: list[int]) -> list[Tensor]:
    # Copies: torch.save writes the whole memory behind a view.
    return [part.clone().view(shape) for part, shape in zip(params.split(sizes), shapes, strict=True)]


def _recipe(source: Source, first: StoredExpert, fit: Fit, kept_as: Mapping[str, Any]) -> dict[str, Any]:
    """What a second call must share with the first to go on in its store: the source, by content, and all arguments."""
    how = asdict(fit) if source.has_checkpoints else {"path": "of the files"}
    origin = {"files": source.family, "epochs": first.epochs, "first": first.fingerprint()}
    return {"kind": "compressed", **how, **kept_as, "source": origin}


def _begin(out: Path, spec: dict[str, Any], dataset: dict[str, Any], recipe: dict[str, Any]) -> TrajectoryStore:
    shapes = [list(shape) for shape in FunctionalModel(build_model(spec)).shapes]
    return TrajectoryStore.create(out, {"model": spec, "shapes": shapes, "dataset": dataset, "recipe": recipe})


def _check_alike(where: str, expert: StoredExpert, first: StoredExpert) -> None:
    if expert.shapes != first.shapes:
        raise InputError(
            f"source: {where} is another network than the first expert (other shapes); use one store a network"
        )
    if expert.epochs != first.epochs:
        raise InputError(
            f"source: {where} has {expert.epochs} epochs, the first expert {first.epochs}; "
            "compress files of one length into one store"
        )


def _check_same(store: TrajectoryStore, number: int, expert: StoredExpert, file: Path) -> None:
    noted = store.info(store.experts.index(number))
    if noted.get("sha256") != expert.fingerprint():
        raise InputError(
            f"out: expert {number} of {store.path} came from {noted.get('source')} and differs from the one in {file}; "
            "give the same files in the same order, or an empty folder"
        )


def _full_spec(model: Mapping[str, Any], shapes: list[torch.Size]) -> dict[str, Any]:
    network = build_model(model)
    for position, (own, given) in enumerate(zip_longest((p.shape for p in network.parameters()), shapes)):
        if own != given:
            raise InputError(
                f"model: its parameter tensor {position} has shape {_text(own)}, that of the checkpoints {_text(given)}; "
                "describe the network that was trained"
            )
    return model_spec(network)


def _of_dataset(spec: dict[str, Any], shapes: list[torch.Size], dataset: str, data_path: str | None) -> dict[str, Any]:
    """``spec`` with the size of the dataset's images, which shapes alone may leave open; refused if the two do not fit."""
    inputs = inputs_of(dataset, data_path)
    if inputs is None:
        log.warning("%s was not compared with the experts' shapes: give --data-path to have that done", dataset)
        return spec
    for key, what in (("channels", "channels"), ("num_classes", "outputs for its classes")):
        if spec.get(key) != inputs[key]:
            raise InputError(
                f"dataset: {dataset} has {inputs[key]} {what}, the experts' network {spec.get(key)}; "
                "name the dataset that they were trained on"
            )
    try:
        resized = build_model({**spec, "image_size": inputs["image_size"]})
    except InputError:
        resized = None
    if resized is None or [p.shape for p in resized.parameters()] != shapes:
        raise InputError(
            f"dataset: {dataset} has images of size {inputs['image_size']}, the experts' network is for "
            f"{spec.get('image_size')}; name the dataset that they were trained on"
        )
    return model_spec(resized)


def _text(shape: torch.Size | None) -> str:
    return "(absent)" if shape is None else str(tuple(shape))


def recognise_convnet(shapes: list[torch.Size], dataset: str | None = None, norm: str = "instance") -> dict[str, Any]:
    """The spec of the square-image ConvNet with ``norm`` whose parameter tensors have these shapes.

    Sizes that pooling rounds down to the same feature map cannot be told apart: the multiple of 2^depth is taken, but for
    ``dataset`` MNIST and Fashion-MNIST their 28, which the first convolution pads to 32.
    """
    blocks, rest = divmod(len(shapes) - 2, 2 if norm == "none" else 4)
    if rest == 0 and blocks >= 1 and len(shapes[0]) == 4:
        width, channels = shapes[0][0], shapes[0][1]
        if len(shapes[-2]) != 2 or width == 0:
            raise _unrecognised(norm)
        classes, features = shapes[-2]
        side = math.isqrt(features // width) << blocks
        if channels == 1 and side == 32 and dataset in ("mnist", "fashion-mnist"):
            side = 28
        spec: dict[str, Any] = {
            "depth": blocks,
            "width": width,
            "channels": channels,
            "image_size": side,
            "num_classes": classes,
            "norm": norm,
        }
        try:
            candidate = ConvNet(**spec)
        except InputError:
            candidate = None
        if candidate is not None and [p.shape for p in candidate.parameters()] == list(shapes):
            return model_spec(candidate)
    raise _unrecognised(norm)


def _unrecognised(norm: str) -> InputError:
    return InputError(
        f"model: the checkpoints are no ConvNet of the default form with norm {norm}; "
        "say norm=... (--norm), or name the network with model=... (--model)"
    )


def _check_norm(norm: str | None, model: Mapping[str, Any] | None) -> None:
    """Raises :class:`InputError` if there is no ConvNet with ``norm`` to recognise."""
    if norm is not None and model is not None:
        raise InputError("norm: the model says its norm; leave one of the two out")
    if norm == "batch":
        raise InputError(
            "norm: networks with batch norm have state beside the parameters in these files; train experts with instance norm"
        )
    if norm not in (None, *_RECOGNISED):
        raise InputError(f"norm: unknown {norm!r}; choose one of {', '.join(_RECOGNISED)}")
