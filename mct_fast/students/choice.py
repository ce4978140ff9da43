"""Which student computes a network's step."""

from __future__ import annotations

from torch import nn

from mct_fast import ops
from mct_fast.models import FunctionalModel
from mct_fast.students.fused import FusedStudent, supports
from mct_fast.students.generic import GenericStudent
from mct_fast.students.planes.student import PlaneStudent
from mct_fast.students.protocol import Student
from mct_fast.tasks import Classification, Task


def student_for(model: nn.Module | FunctionalModel, task: Task | None = None) -> Student:
    """The fastest student that computes the step of ``model`` exactly: on the operators where they can, else autograd's.

    Where there is a GPU, a ConvNet that the plane kernels take runs on them when its tensors lie there.
    """
    functional = model if isinstance(model, FunctionalModel) else FunctionalModel(model)
    task = task or Classification()
    if not ops.kernels_available() or task.head() is None or supports(functional) is not None:
        return GenericStudent(functional, task)
    fused = FusedStudent(functional, task)
    return PlaneStudent(fused) if PlaneStudent.serves(fused) else fused
