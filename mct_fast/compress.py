"""Stage 2 for paths that exist already: convexify checkpoints, MTT's ``replay_buffer_*.pt`` among them."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.errors import InputError
from mct_fast.models import ConvNet, FunctionalModel, build_model, model_spec
from mct_fast.progress import Progress, quiet
from mct_fast.trajectory import ConvexTrajectory, DiscreteTrajectory, TrajectoryStore


def compress(
    source: str | Path,
    out: str | Path,
    *,
    dataset: str,
    data_path: str | None = None,
    zca: bool = False,
    model: Mapping[str, Any] | None = None,
    waypoints: int = 2,
    schedule: str = "arc_length",
    smooth: bool = False,
    keep_checkpoints: bool = False,
    progress: Progress = quiet(),  # noqa: B008 (stateless)
) -> TrajectoryStore:
    """Turns checkpoints into a :class:`TrajectoryStore` at ``out``.

    ``source``: a ``replay_buffer_*.pt`` of MTT (a list of experts, each a list of epochs, each a list of tensors) or a folder
    of them; files are read one at a time, with ``weights_only=True``: a file that needs unpickling of code is refused.
    ``dataset``, ``data_path`` and ``zca`` say what the experts were trained on.  ``model``: spec of the network; left out, a
    ConvNet is recognised from its shapes.  Other arguments: :meth:`ConvexTrajectory.fit`.
    """
    files = _files(Path(source))
    store: TrajectoryStore | None = None
    number = 0
    with progress.task("compress", len(files)) as bar:
        for file in files:
            for checkpoints in _experts(file):
                if store is None:
                    spec = dict(model) if model is not None else recognise_convnet([t.shape for t in checkpoints[0]])
                    store = _begin(out, spec, dataset, data_path, zca, waypoints, schedule, smooth)
                path = ConvexTrajectory.fit(checkpoints, waypoints, schedule, smooth)
                kept = DiscreteTrajectory(checkpoints).checkpoints if keep_checkpoints else None
                store.add(number, path, {"source": file.name}, kept)
                number += 1
            bar.advance(1)
    if store is None:
        raise InputError(f"source: {source} holds no expert; give the files that MTT's buffer.py wrote")
    return store


def recognise_convnet(shapes: list[torch.Size]) -> dict[str, Any]:
    """The spec of the square-image ConvNet with instance norm whose parameter tensors have these shapes."""
    blocks, rest = divmod(len(shapes) - 2, 4)
    if rest == 0 and blocks >= 1 and len(shapes[0]) == 4:
        width, channels = shapes[0][0], shapes[0][1]
        classes, features = shapes[-2]
        side = math.isqrt(features // width) << blocks
        spec = {"depth": blocks, "width": width, "channels": channels, "image_size": side, "num_classes": classes}
        try:
            candidate = ConvNet(**spec)
        except InputError:
            candidate = None
        if candidate is not None and [p.shape for p in candidate.parameters()] == list(shapes):
            return model_spec(candidate)
    raise InputError("model: the checkpoints are no ConvNet of the default form; name the network with model=... (--model)")


def _begin(
    out: str | Path,
    spec: dict[str, Any],
    dataset: str,
    data_path: str | None,
    zca: bool,
    waypoints: int,
    schedule: str,
    smooth: bool,
) -> TrajectoryStore:
    shapes = [list(shape) for shape in FunctionalModel(build_model(spec)).shapes]
    recipe = {"kind": "compressed", "waypoints": waypoints, "schedule": schedule, "smooth": smooth}
    origin = {"name": dataset, "data_path": data_path, "zca": zca}
    return TrajectoryStore.create(out, {"model": spec, "shapes": shapes, "dataset": origin, "recipe": recipe})


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = sorted(source.glob("replay_buffer_*.pt"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise InputError(f"source: {source} holds no replay_buffer_*.pt; give a buffer file of MTT or its folder")
    return files


def _experts(file: Path) -> Iterator[list[list[Tensor]]]:
    try:
        experts = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"source: {file} is no plain file of tensors ({str(error).splitlines()[0]}); it was not loaded, save it again"
        ) from error
    well_formed = isinstance(experts, list) and all(
        isinstance(e, list) and all(isinstance(c, list) and all(isinstance(t, Tensor) for t in c) for c in e) for e in experts
    )
    if not well_formed:
        raise InputError(f"source: {file} is not a list of experts of epochs of tensors; give a file of MTT's buffer.py")
    yield from experts
