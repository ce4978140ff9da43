"""Students: S networks of one architecture, one step and its tangent at a time."""

from mct_fast.students.fused import FusedStudent, student_for, supports
from mct_fast.students.generic import GenericStudent
from mct_fast.students.microbatch import MicroBatched, check_pieces
from mct_fast.students.protocol import Student, Tangent, Tape

__all__ = [
    "FusedStudent",
    "GenericStudent",
    "MicroBatched",
    "Student",
    "Tangent",
    "Tape",
    "check_pieces",
    "student_for",
    "supports",
]
