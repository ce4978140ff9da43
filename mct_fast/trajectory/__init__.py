"""Expert paths through parameter space and the files that hold them."""

from mct_fast.trajectory.bezier import BezierTrajectory
from mct_fast.trajectory.convex import SCHEDULES, ConvexTrajectory, PathRecorder
from mct_fast.trajectory.discrete import DiscreteTrajectory
from mct_fast.trajectory.encoding import ENCODINGS, Encoding
from mct_fast.trajectory.path import Trajectory
from mct_fast.trajectory.point import PathPoint
from mct_fast.trajectory.store import UNFINISHED, TrajectoryStore

__all__ = [
    "ENCODINGS",
    "SCHEDULES",
    "UNFINISHED",
    "BezierTrajectory",
    "ConvexTrajectory",
    "DiscreteTrajectory",
    "Encoding",
    "PathPoint",
    "PathRecorder",
    "Trajectory",
    "TrajectoryStore",
]
