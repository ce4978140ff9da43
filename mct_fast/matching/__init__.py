"""One matching problem: its checks, and how the loss is carried back to images, labels and step size."""

from mct_fast.matching.adjoint import ADJOINTS, Adjoint, Exact, Truncated, Unrolled
from mct_fast.matching.matcher import Asked, Matcher, match
from mct_fast.matching.problem import MatchingProblem, MatchResult
from mct_fast.matching.terminal import RealLoss

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Asked",
    "Exact",
    "MatchResult",
    "Matcher",
    "MatchingProblem",
    "RealLoss",
    "Truncated",
    "Unrolled",
    "match",
]
