"""A distilled table or series for people: rows in their own units and categories, and how near they lie to real ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mct_fast.data import Dataset, TableTransform
from mct_fast.data.transforms import Transform
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, write_json
from mct_fast.tasks import Binary, MultiLabel, Task

if TYPE_CHECKING:
    import pandas as pd

PRIVACY = (
    "Distillation alone is no privacy guarantee: these rows were computed from real records, may lie close to some of "
    "them, and carry no differential privacy. Treat them as the data they came from unless their release was reviewed."
)
_CHUNK = 1 << 24  # distances held at once


class Rows(Protocol):
    """What is read of a distilled set here; :class:`~mct_fast.distilled.DistilledDataset` is one."""

    def __len__(self) -> int: ...

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def syn_lr(self) -> float: ...

    @property
    def transform(self) -> Transform: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def task(self) -> Task: ...


def table_frame(distilled: Rows) -> pd.DataFrame:
    """The rows of a distilled table in original units and categories, with their targets.

    Numbers that were whole in the data are rounded; nothing is clipped to the range of the data. A category that is the
    level "missing" is an empty cell. Series give a row a step, numbered by the columns `series` and `step`.

    Raises:
        InputError: the set holds images.
    """
    import pandas as pd  # imported here: slow to load, and only tables need it

    transform = _transform_of(distilled)
    raw = transform.inverse(distilled.images.double())
    steps = raw.shape[1] if transform.series else 1
    flat = raw.reshape(-1, raw.shape[-1])
    frame = pd.DataFrame(index=range(len(flat)))
    if transform.series:
        frame["series"] = [row for row in range(len(raw)) for _ in range(steps)]
        frame["step"] = [step for _ in range(len(raw)) for step in range(steps)]
    for values, column in zip(flat.unbind(1), transform.columns, strict=True):
        numbers = values.tolist()
        if column.levels is not None:
            frame[column.name] = [None if number != number else column.levels[int(number)] for number in numbers]
        elif column.whole:
            frame[column.name] = pd.array([None if n != n else round(n) for n in numbers], dtype="Int64")
        else:
            frame[column.name] = numbers
    for name, cells in _targets(distilled).items():
        frame[name] = [cell for cell in cells for _ in range(steps)]
    return frame


def _targets(distilled: Rows) -> dict[str, list[Any]]:
    """Cells of each target column, one a row of the set."""
    labels, names = distilled.labels, distilled.class_names
    columns: dict[str, list[Any]]
    target = tuple(distilled.provenance.get("target", ())) or ("label",)
    if isinstance(distilled.task, MultiLabel):
        return {name: [_cell(value) for value in column.tolist()] for name, column in zip(names, labels.T, strict=True)}
    if isinstance(distilled.task, Binary):
        positive = labels.flatten()
        columns = {target[0]: [names[int(share > 0.5)] for share in positive.tolist()]}
        return columns | (
            {f"{target[0]}: weight of {names[1]}": positive.tolist()} if positive.is_floating_point() else {}
        )
    hard = labels.argmax(1) if labels.ndim == 2 else labels.long()
    columns = {target[0]: [names[number] for number in hard.tolist()]}
    if labels.ndim == 2:
        columns |= {
            f"{target[0]}: weight of {name}": column.tolist() for name, column in zip(names, labels.T, strict=True)
        }
    return columns


def _cell(value: float) -> float | int:
    return int(value) if value in (0.0, 1.0) else value


def write_table(distilled: Rows, path: str | Path, dataset: Dataset | None = None) -> Path:
    """Writes :func:`table_frame` as a CSV file and a JSON file of the same name beside it; returns ``path``.

    The CSV begins with comment lines (`#`) that say what the rows are and are not; `load_dataset("table", ...)` skips
    them, and so does `pandas.read_csv(path, comment="#")`. The JSON says the same, with the provenance and
    :func:`nearest_real`: that of `dataset`, or of the dataset it was distilled from where the set noted it.

    Raises:
        InputError: the set holds images, or the folder cannot be written to.
    """
    path = Path(path)
    frame = table_frame(distilled)
    nearest = distilled.provenance.get("nearest_real") if dataset is None else nearest_real(distilled.images, dataset)
    name = distilled.provenance.get("dataset", "a table")
    comments = [f"{len(distilled)} synthetic rows that mct_fast distilled from {name}.", PRIVACY]
    if nearest is not None:
        comments.append(nearest_text(nearest))
    head = "".join(f"# {line}\n" for line in comments)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(head)
            frame.to_csv(file, index=False, float_format="%.6g")

    if path.suffix.lower() != ".csv":
        raise InputError(f"path: {path.name} is no .csv; give a name that ends in .csv")
    atomic_write(path, write)
    meta = {
        "rows": len(distilled),
        "dataset": name,
        "task": distilled.task.name,
        "target": list(distilled.provenance.get("target", ())),
        "class_names": list(distilled.class_names),
        "columns": [str(column) for column in frame.columns],
        "syn_lr": distilled.syn_lr,
        "privacy": PRIVACY,
        "nearest_real": nearest,
        "provenance": {key: value for key, value in distilled.provenance.items() if key != "nearest_real"},
    }
    write_json(path.with_suffix(".json"), meta)
    return path


def nearest_real(images: Tensor, dataset: Dataset) -> dict[str, Any]:
    """Distance of each synthetic row to the nearest real training row, with a yardstick.

    Euclidean, in the space that networks train in (numbers standardised, categories 0 or 1), over all features (and
    steps). The yardstick is the same for the real rows of the test split, which no network was trained on.

    Returns a JSON-able dict: `distances` of the synthetic rows in order, their `min` and `median`; `held_out` with `rows`,
    `min` and `median`; `closer_than_held_out`: the share of synthetic rows nearer to a training row than half of the
    held-out rows are; `copies`: synthetic rows that lie within 1e-3 of a training row.
    """
    train = dataset.train.images.flatten(1)
    own = _nearest(images.to(train).flatten(1), train)
    held_out = _nearest(dataset.test.images.flatten(1), train)
    yardstick = median(held_out)
    return {
        "space": "standardised",
        "rows": len(own),
        "min": min(own),
        "median": median(own),
        "held_out": {"split": "test", "rows": len(held_out), "min": min(held_out), "median": yardstick},
        "closer_than_held_out": sum(distance < yardstick for distance in own) / len(own),
        "copies": sum(distance < 1e-3 for distance in own),
        "distances": own,
    }


def nearest_text(nearest: Mapping[str, Any]) -> str:
    """What :func:`nearest_real` found, in one line."""
    held_out = nearest["held_out"]
    return (
        f"Distance to the nearest real training row, standardised: median {nearest['median']:.4g}, smallest "
        f"{nearest['min']:.4g}; of {held_out['rows']} held-out real rows: median {held_out['median']:.4g}, smallest "
        f"{held_out['min']:.4g}; copies of a training row: {nearest['copies']}."
    )


def _nearest(rows: Tensor, real: Tensor) -> list[float]:
    # Differences, not the product form: that one loses the digits that tell a copy from a neighbour.
    step = max(1, _CHUNK // max(1, len(real)))
    parts = [
        torch.cdist(part, real, compute_mode="donot_use_mm_for_euclid_dist").min(1).values for part in rows.split(step)
    ]
    return torch.cat(parts).tolist()


def _transform_of(distilled: Rows) -> TableTransform:
    if not isinstance(distilled.transform, TableTransform):
        raise InputError("to_csv: this distilled set holds images, not rows of a table; use to_png")
    return distilled.transform
