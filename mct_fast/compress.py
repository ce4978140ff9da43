"""Stage 2 for paths that exist already: convexify checkpoints, MTT's ``replay_buffer_*.pt`` among them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mct_fast.data.datasets import REGISTRY
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
    canonical, _ = REGISTRY.find(dataset)  # a misspelt name would be noticed only when the store is used
    files = _files(Path(source))
    store: TrajectoryStore | None = None
    number = 0
    with progress.task("compress", len(files)) as bar:
        for file in files:
            for checkpoints in _experts(file):
                if store is None:
                    shapes = [t.shape for t in checkpoints[0]]
                    spec = _full_spec(model, shapes) if model is not None else recognise_convnet(shapes, canonical)
                    store = _begin(out, spec, dataset, data_path, zca, waypoints, schedule, smooth)
                path = ConvexTrajectory.fit(checkpoints, waypoints, schedule, smooth)
                kept = DiscreteTrajectory(checkpoints).checkpoints if keep_checkpoints else None
                store.add(number, path, {"source": file.name}, kept)
                number += 1
            bar.advance(1)
    if store is None:
        raise InputError(f"source: {source} holds no expert; give the files that MTT's buffer.py wrote")
    return store


def _full_spec(model: Mapping[str, Any], shapes: list[torch.Size]) -> dict[str, Any]:
    network = build_model(model)
    for position, (own, given) in enumerate(zip_longest((p.shape for p in network.parameters()), shapes)):
        if own != given:
            raise InputError(
                f"model: its parameter tensor {position} has shape {_text(own)}, that of the checkpoints {_text(given)}; "
                "describe the network that was trained"
            )
    return model_spec(network)


def _text(shape: torch.Size | None) -> str:
    return "(absent)" if shape is None else str(tuple(shape))


def recognise_convnet(shapes: list[torch.Size], dataset: str | None = None) -> dict[str, Any]:
    """The spec of the square-image ConvNet with instance norm whose parameter tensors have these shapes.

    Sizes that pooling rounds down to the same feature map cannot be told apart: the multiple of 2^depth is taken, but for
    ``dataset`` MNIST and Fashion-MNIST their 28, which the first convolution pads to 32.
    """
    blocks, rest = divmod(len(shapes) - 2, 4)
    if rest == 0 and blocks >= 1 and len(shapes[0]) == 4:
        width, channels = shapes[0][0], shapes[0][1]
        if len(shapes[-2]) != 2 or width == 0:
            raise _unrecognised()
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
        }
        try:
            candidate = ConvNet(**spec)
        except InputError:
            candidate = None
        if candidate is not None and [p.shape for p in candidate.parameters()] == list(shapes):
            return model_spec(candidate)
    raise _unrecognised()


def _unrecognised() -> InputError:
    return InputError(
        "model: the checkpoints are no ConvNet of the default form; name the network with model=... (--model)"
    )


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
    where = None if data_path is None else str(Path(data_path).expanduser().absolute())
    origin = {"name": dataset, "data_path": where, "zca": zca}
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; either it loads or it is refused
            experts = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can fail in every layer of the reader
        raise InputError(
            f"source: {file} is not a plain file of tensors ({type(error).__name__}), and nothing in it was run; "
            "give a buffer that torch.save wrote from lists of tensors"
        ) from error
    if not isinstance(experts, list) or not all(_well_formed(expert) for expert in experts):
        raise InputError(
            f"source: {file} is not a list of experts of epochs of tensors; give a file of MTT's buffer.py"
        )
    yield from experts


def _well_formed(expert: object) -> bool:
    return isinstance(expert, list) and len(expert) > 0 and all(
        isinstance(epoch, list) and len(epoch) > 0 and all(isinstance(t, Tensor) and t.is_floating_point() for t in epoch)
        for epoch in expert
    )  # fmt: skip
