"""The tasks: a loss, its form on the operators, checks of labels, metrics, and how a synthetic set is laid out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.settings.names import check_task
from mct_fast.tasks import metrics
from mct_fast.tasks.heads import BinaryCrossEntropyHead, CrossEntropyHead, Head
from mct_fast.tasks.layout import rarest_label, rows_of_labels, rows_per_class
from mct_fast.tasks.links import Link, Sigmoid, Softmax


class Task(Protocol):
    """A loss over a batch, with checks of its labels, metrics, and the layout of a synthetic set."""

    name: ClassVar[str]
    """What :func:`task_named` takes."""
    headline: ClassVar[str]
    """The metric that picks the best of several sets; larger is better."""
    link: ClassVar[Link]
    """What makes probabilities of a network's outputs."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of ``logits (n, k)`` against ``labels``, a scalar, differentiable twice."""
        ...

    def head(self) -> Head | None:
        """The same loss and its tangents on the operators; None where there is only :meth:`loss`."""
        ...

    def score(self, logits: Tensor, labels: Tensor) -> float:
        """The headline metric of ``logits (n, k)``; NaN where it has no answer."""
        ...

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Every metric by name, the headline's among them; NaN where one has no answer."""
        ...

    def check(self, labels: Tensor, num_outputs: int) -> None:
        """Raises :class:`InputError` if ``labels`` do not fit a network with ``num_outputs`` outputs."""
        ...

    def num_outputs(self, num_classes: int) -> int:
        """Outputs of a network for a dataset with so many class names."""
        ...

    def weighted(self, pos_weight: float, labels: Tensor) -> Task:
        """The task with positive cases weighing ``pos_weight``; 0 balances those of the training ``labels``."""
        ...

    def kept_prior(self, labels: Tensor) -> Task:
        """The task for rows that `draw_rows` gives, weighing as frequent as those of the training ``labels`` are."""
        ...

    def draw_rows(self, labels: Tensor, num_classes: int, ipc: int, generator: torch.Generator) -> Tensor:
        """Rows of a training split that a synthetic set begins with: ``ipc`` a class, or ``ipc`` times the labels."""
        ...

    def strata(self, labels: Tensor) -> Tensor:
        """Groups ``(n,)`` int64 of rows that every batch should have its share of."""
        ...

    def soft(self, labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        """``labels`` as numbers that can be learned."""
        ...

    def state(self) -> dict[str, Any]:
        """The JSON form that :func:`task_from_state` takes back."""
        ...


@dataclass(frozen=True)
class Classification:
    """Mean cross-entropy over hard labels ``(n,)`` int64 or soft labels ``(n, k)`` of float; headline: accuracy."""

    name: ClassVar[str] = "classification"
    headline: ClassVar[str] = "accuracy"
    link: ClassVar[Link] = Softmax()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            return -(labels * F.log_softmax(logits, dim=-1)).sum(-1).mean()
        return F.cross_entropy(logits, labels)

    def head(self) -> Head:
        return CrossEntropyHead()

    def score(self, logits: Tensor, labels: Tensor) -> float:
        return (logits.argmax(-1) == self._hard(labels)).double().mean().item()

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        return metrics.of_classes(logits, self._hard(labels))

    def check(self, labels: Tensor, num_outputs: int) -> None:
        if labels.is_floating_point():
            if labels.ndim != 2 or labels.shape[1] != num_outputs:
                raise InputError(
                    f"labels: soft labels have shape {tuple(labels.shape)}; give (n, {num_outputs}), one column a class"
                )
            _check_distribution(labels)
            return
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; give int64 (n,) or float (n, classes)"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= num_outputs):
            raise InputError(
                f"labels: values span {int(labels.min())}..{int(labels.max())}, out of range for {num_outputs} classes; "
                f"number the classes 0..{num_outputs - 1} or build the model with more classes"
            )

    def num_outputs(self, num_classes: int) -> int:
        return num_classes

    def weighted(self, pos_weight: float, labels: Tensor) -> Classification:
        if pos_weight != 1:
            raise InputError("pos_weight: is for binary and multi-label tasks; leave it out for classes")
        return self

    def kept_prior(self, labels: Tensor) -> Classification:
        raise InputError("keep_prior: is for binary tasks; leave it out for classes")

    def draw_rows(self, labels: Tensor, num_classes: int, ipc: int, generator: torch.Generator) -> Tensor:
        return rows_per_class(labels.cpu(), num_classes, ipc, generator)

    def strata(self, labels: Tensor) -> Tensor:
        return labels

    def soft(self, labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        return F.one_hot(labels, num_classes).to(dtype)

    def state(self) -> dict[str, Any]:
        return {"name": self.name}

    @staticmethod
    def _hard(labels: Tensor) -> Tensor:
        return labels.argmax(-1) if labels.is_floating_point() else labels


@dataclass(frozen=True)
class Binary:
    """Binary cross-entropy of a network with one output; headline: AUROC.

    Labels ``(n,)`` int64 of 0 and 1, or float ``(n,)`` or ``(n, 1)`` from 0 to 1.  ``pos_weight`` multiplies the term of
    the positives, as in PyTorch's ``BCEWithLogitsLoss``.
    """

    pos_weight: float = 1.0
    name: ClassVar[str] = "binary"
    headline: ClassVar[str] = "auroc"
    link: ClassVar[Link] = Sigmoid()

    def __post_init__(self) -> None:
        _check_weights("pos_weight", (self.pos_weight,))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return _binary_cross_entropy(logits, labels.to(logits.dtype).reshape(logits.shape), self.pos_weight, 1.0)

    def head(self) -> Head:
        return BinaryCrossEntropyHead((self.pos_weight,), (1.0,))

    def score(self, logits: Tensor, labels: Tensor) -> float:
        return self.metrics(logits, labels)[self.headline]

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        return metrics.of_one(logits.flatten(), labels.flatten())

    def check(self, labels: Tensor, num_outputs: int) -> None:
        if num_outputs != 1:
            raise InputError(
                f"model: has {num_outputs} outputs, a binary task needs one; build it with num_classes=1, or use classes"
            )
        if labels.is_floating_point():
            if labels.ndim != 1 and (labels.ndim != 2 or labels.shape[1] != 1):
                raise InputError(
                    f"labels: soft labels have shape {tuple(labels.shape)}; give (n,) or (n, 1) for a binary task"
                )
            _check_unit(labels)
            return
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; give int64 (n,) of 0 and 1, or float (n,)"
            )
        if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) > 1):
            raise InputError(f"labels: values span {int(labels.min())}..{int(labels.max())}; a binary task has 0 and 1")

    def num_outputs(self, num_classes: int) -> int:
        if num_classes != 2:
            raise InputError(f"task: binary needs two classes, there are {num_classes}; use classification")
        return 1

    def weighted(self, pos_weight: float, labels: Tensor) -> Binary:
        return replace(self, pos_weight=pos_weight or _balance(labels.reshape(-1, 1))[0])

    def kept_prior(self, labels: Tensor) -> Binary:
        return replace(self, pos_weight=self.pos_weight / _balance(labels.reshape(-1, 1))[0])

    def draw_rows(self, labels: Tensor, num_classes: int, ipc: int, generator: torch.Generator) -> Tensor:
        return rows_per_class(labels.cpu(), num_classes, ipc, generator)

    def strata(self, labels: Tensor) -> Tensor:
        return (labels.flatten() > 0.5).long()

    def soft(self, labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        return labels.to(dtype)

    def state(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class MultiLabel:
    """Mean over the labels of their binary cross-entropies, one output each; headline: macro AUROC.

    Labels float ``(n, k)`` from 0 to 1.  ``pos_weight`` multiplies the terms of the positives, ``weight`` both terms of a
    label: one number for all labels, or one each.
    """

    pos_weight: tuple[float, ...] = (1.0,)
    weight: tuple[float, ...] = (1.0,)
    name: ClassVar[str] = "multilabel"
    headline: ClassVar[str] = "macro_auroc"
    link: ClassVar[Link] = Sigmoid()

    def __post_init__(self) -> None:
        for field in ("pos_weight", "weight"):
            _check_weights(field, getattr(self, field))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        pos, neg = (logits.new_tensor(weights) for weights in self._weights())
        return _binary_cross_entropy(logits, labels.to(logits.dtype), pos, neg)

    def head(self) -> Head:
        return BinaryCrossEntropyHead(*self._weights())

    def score(self, logits: Tensor, labels: Tensor) -> float:
        return self.metrics(logits, labels)[self.headline]

    def metrics(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        return metrics.of_labels(logits, labels)

    def check(self, labels: Tensor, num_outputs: int) -> None:
        if not labels.is_floating_point() or labels.ndim != 2 or labels.shape[1] != num_outputs:
            raise InputError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; "
                f"give float (n, {num_outputs}), one column a label"
            )
        for field in ("pos_weight", "weight"):
            count = len(getattr(self, field))
            if count not in (1, num_outputs):
                raise InputError(f"{field}: holds {count} weights for {num_outputs} labels; give one, or one a label")
        _check_unit(labels)

    def num_outputs(self, num_classes: int) -> int:
        return num_classes

    def weighted(self, pos_weight: float, labels: Tensor) -> MultiLabel:
        return replace(self, pos_weight=(pos_weight,) if pos_weight else _balance(labels))

    def kept_prior(self, labels: Tensor) -> MultiLabel:
        return self  # rows of several labels are drawn as frequent as they are

    def draw_rows(self, labels: Tensor, num_classes: int, ipc: int, generator: torch.Generator) -> Tensor:
        return rows_of_labels(labels.cpu(), num_classes * ipc, generator)

    def strata(self, labels: Tensor) -> Tensor:
        return rarest_label(labels)

    def soft(self, labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
        return labels.to(dtype)

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "pos_weight": list(self.pos_weight), "weight": list(self.weight)}

    def _weights(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the positive and the negative term, each one number or one a label."""
        count = max(len(self.pos_weight), len(self.weight))
        pos, both = (weights * count if len(weights) == 1 else weights for weights in (self.pos_weight, self.weight))
        return tuple(p * w for p, w in zip(pos, both, strict=True)), both


_ROUNDING = 5e-3
"""How far soft labels may miss a distribution: 200 classes in half precision, each to a relative 2^-11."""


def task_named(name: str) -> Task:
    """The task called ``name``: classification, binary or multilabel."""
    return _task_class(name)()


def task_from_state(state: Mapping[str, Any] | None, otherwise: str = "classification") -> Task:
    """The task whose ``state()`` was kept, or the one called ``otherwise`` where none was."""
    if state is None:
        return task_named(otherwise)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in state.items() if key != "name"}
    task = _task_class(str(state.get("name")))
    try:
        return task(**given)
    except TypeError as error:
        raise InputError(f"task: {dict(state)!r} is damaged ({error}); restore it") from error


def _task_class(name: str) -> type[Any]:
    check_task(name)
    return _TASKS[name]


_TASKS: dict[str, type[Any]] = {task.name: task for task in (Classification, Binary, MultiLabel)}


def _binary_cross_entropy(logits: Tensor, y: Tensor, pos: Tensor | float, neg: Tensor | float) -> Tensor:
    # logsigmoid, not softplus: PyTorch's softplus is cut off at 20
    terms = pos * y * F.logsigmoid(logits) + neg * (1 - y) * F.logsigmoid(-logits)
    return -terms.mean()


def _balance(labels: Tensor) -> tuple[float, ...]:
    """Negatives over positives of each column of ``labels (n, k)``; 1 where a column has only one of them."""
    positives = (labels > 0.5).sum(0).tolist()
    return tuple((len(labels) - p) / p if 0 < p < len(labels) else 1.0 for p in positives)


def _check_weights(name: str, weights: tuple[float, ...]) -> None:
    if not weights or not all(math.isfinite(w) and w > 0 for w in weights):
        raise InputError(f"{name}: {weights} must be positive finite numbers; 1 is the neutral weight")


def _check_finite(labels: Tensor) -> None:
    if not bool(torch.isfinite(labels).all()):
        raise InputError("labels: soft labels hold NaN or infinity; give finite weights")


def _check_distribution(labels: Tensor) -> None:
    """Raises :class:`InputError` unless each row holds weights of at least 0 that sum to 1, to rounding in half precision."""
    _check_finite(labels)
    if labels.numel() == 0:
        return
    low, sums = float(labels.min()), labels.double().sum(-1)
    if low < -_ROUNDING or not bool(((sums - 1).abs() <= _ROUNDING).all()):
        raise InputError(
            f"labels: soft labels are no distributions over the classes (least {low:g}, rows sum to "
            f"{float(sums.min()):g}..{float(sums.max()):g}); if they are logits, as DATM saves them, give labels.softmax(-1)"
        )


def _check_unit(labels: Tensor) -> None:
    _check_finite(labels)
    if labels.numel() and (float(labels.min()) < 0 or float(labels.max()) > 1):
        raise InputError(
            f"labels: span {float(labels.min()):g}..{float(labels.max()):g}; give probabilities from 0 to 1"
        )
