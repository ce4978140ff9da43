"""What the outer loop learns beside the pixels, the student's step size and the labels, and the average of the pixels.

Each is an object with its own state, which a checkpoint keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mct_fast.models import FunctionalModel
from mct_fast.tasks import Link
from mct_fast.trajectory import Trajectory


class StepSize:
    """The student's learnable step size alpha > 0: SGD with momentum that cannot cross zero.

    One step at most halves or doubles alpha; where it would do more, its momentum is dropped.  It does not fall below a
    thousandth of where it began: students would stand still, and a number halved for long enough is none.  In the references
    alpha can turn negative, or leap to where every student explodes, and the run ends in NaN.
    """

    def __init__(self, value: float, lr: float, momentum: float) -> None:
        self.value, self.velocity, self._least = value, 0.0, value / 1000
        self._lr, self._momentum = lr, momentum

    def step(self, grad: float) -> None:
        """One descent step along ``grad``, dloss/dalpha."""
        if self._lr == 0:
            return
        self.velocity = self._momentum * self.velocity + grad
        moved = self.value - self._lr * self.velocity
        if not self.value / 2 <= moved <= self.value * 2:
            moved, self.velocity = min(max(moved, self.value / 2), self.value * 2), 0.0
        if moved < self._least:
            moved, self.velocity = self._least, 0.0
        self.value = moved


class Labels(Protocol):
    """The labels of the synthetic images."""

    @property
    def value(self) -> Tensor:
        """As the task has them: ``(n,)`` int64, or probabilities ``(n, k)`` or ``(n,)`` of float."""
        ...

    def step(self, grad: Tensor | None) -> None:
        """One descent step along ``grad``, dloss/dvalue; None for hard classes."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The state, for a checkpoint."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes back to what :meth:`state_dict` gave."""
        ...


class HardLabels:
    """Labels as they are in the data, fixed."""

    def __init__(self, labels: Tensor) -> None:
        self.value = labels

    def step(self, grad: Tensor | None) -> None:
        pass

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        pass


class SoftLabels:
    """Probabilities of numbers z, through a softmax over classes or a sigmoid a label (``link``); z learns by SGD with
    momentum, or stays where ``lr`` is 0.

    DATM (Guo et al., ICLR 2024) learns such logits too; its own begin as an expert's, on images that the expert gets right.
    """

    def __init__(self, values: Tensor, lr: float, momentum: float, link: Link) -> None:
        self._z, self._link = link.inverse(values), link
        self._velocity = torch.zeros_like(self._z)
        self._lr, self._momentum = lr, momentum

    @property
    def value(self) -> Tensor:
        return self._link.forward(self._z)

    def step(self, grad: Tensor | None) -> None:
        if self._lr == 0 or grad is None:
            return
        self._velocity = self._momentum * self._velocity + self._link.pull(self.value, grad)
        self._z = self._z - self._lr * self._velocity

    def state_dict(self) -> dict[str, Tensor]:
        return {"z": self._z, "velocity": self._velocity}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self._z = tensors["z"].to(self._z.device)
        self._velocity = tensors["velocity"].to(self._z.device)


def assigned(images: Tensor, model: FunctionalModel, experts: Sequence[Trajectory], link: Link) -> Tensor:
    """What fully trained experts see in ``images``: the mean of their probabilities ``(n, k)``."""
    total: Tensor | None = None
    with torch.no_grad():
        for path in experts:
            outputs = link.forward(model(path.at(path.epochs).to(images.device), images))
            total = outputs if total is None else total + outputs
    assert total is not None
    return total / len(experts)


class ImageAverage:
    """The exponential moving average of the pixels, which is evaluated and saved in their place.

    After iteration i the average moves by 1 - min(decay, (1 + i) / (10 + i)) towards the pixels: with the bare decay a run
    that is short beside 1 / (1 - decay) would end near the images that it began with.
    """

    def __init__(self, images: Tensor, decay: float) -> None:
        self.value = images.detach().clone()
        self._decay = decay

    def update(self, images: Tensor, iteration: int) -> None:
        """Takes in the pixels after ``iteration``, counted from 1."""
        decay = min(self._decay, (1 + iteration) / (10 + iteration))
        self.value.lerp_(images.detach(), 1 - decay)
