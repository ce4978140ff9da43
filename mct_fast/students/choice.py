"""Which student computes a network's step."""

from __future__ import annotations

import torch
from torch import nn

from mct_fast import ops
from mct_fast.models import FunctionalModel
from mct_fast.run.tensors import check_mode
from mct_fast.students.fused import FusedStudent, supports
from mct_fast.students.generic import GenericStudent
from mct_fast.students.planes.student import PlaneStudent
from mct_fast.students.protocol import Student
from mct_fast.tasks import Classification, Task


def student_for(
    model: nn.Module | FunctionalModel, task: Task | None = None, device: torch.device | str = "cpu"
) -> Student:
    """The fastest student on ``device`` that computes the step of ``model`` exactly: by kernels, else by autograd.

    On a GPU a ConvNet that the plane kernels take runs on them, other networks of ours on the operators.
    InputError within ``torch.autocast`` or ``torch.inference_mode``.
    """
    check_mode(device)
    functional = model if isinstance(model, FunctionalModel) else FunctionalModel(model)
    task = task or Classification()
    if not ops.kernels_available(device) or task.head() is None or supports(functional) is not None:
        return GenericStudent(functional, task)
    fused = FusedStudent(functional, task)
    return PlaneStudent(fused) if PlaneStudent.serves(fused, torch.device(device)) else fused
