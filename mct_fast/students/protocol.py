"""One inner step of the student and its tangent: all that the matching gradient needs of a network.

Everything carries a leading student dimension S: S networks of one architecture, each with its own parameters and its
own batch.  :class:`mct_fast.students.GenericStudent` takes any ``nn.Module`` through autograd;
:class:`mct_fast.students.FusedStudent` runs ConvNet and MLP on the project's operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Tangent:
    """Derivative at 0 of ``(loss, g, dloss/dx, dloss/dy)`` along ``params + eps * tangent``.

    ``loss_dot (S,)`` is <g, tangent>; ``hvp (S, P)`` the Hessian times the tangent; ``grad_x_dot (S, b, C, H, W)`` is
    the gradient by the images of <g, tangent>; ``grad_y_dot (S, b, k)`` the same by soft labels, None for hard ones.
    """

    loss_dot: Tensor
    hvp: Tensor
    grad_x_dot: Tensor
    grad_y_dot: Tensor | None


class Tape(Protocol):
    """What a student keeps of a step so that its tangent need not recompute it."""

    @property
    def nbytes(self) -> int: ...


class Student(Protocol):
    """S networks of one architecture, as functions of flat parameters ``(S, P)``."""

    @property
    def num_params(self) -> int: ...

    def gradient(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(loss (S,), dloss/dparams (S, P))`` for batches ``x (S, b, C, H, W)``, labels ``(S, b)`` or ``(S, b, k)``."""
        ...

    def gradient_keeping(self, params: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
        """:meth:`gradient` and a :class:`Tape` for :meth:`gradient_tangent` of the same step, or None."""
        ...

    def gradient_tangent(self, params: Tensor, tangent: Tensor, x: Tensor, y: Tensor, tape: Any = None) -> Tangent:
        """The derivative of the step along ``tangent (S, P)``; with the step's ``tape`` some work is spared."""
        ...

    def logits(self, params: Tensor, x: Tensor) -> Tensor:
        """Outputs ``(S, n, k)`` of all S networks on the same images ``(n, C, H, W)``, without a graph."""
        ...
