"""Students: S networks of one architecture, one step and its tangent at a time."""

from mct_fast.students.choice import student_for
from mct_fast.students.fused import FusedStudent, supports
from mct_fast.students.generic import GenericStudent
from mct_fast.students.microbatch import MicroBatched, check_pieces
from mct_fast.students.planes.student import PlaneStudent
from mct_fast.students.protocol import Student, Tangent, Tape

__all__ = [
    "FusedStudent",
    "GenericStudent",
    "MicroBatched",
    "PlaneStudent",
    "Student",
    "Tangent",
    "Tape",
    "check_pieces",
    "student_for",
    "supports",
]
