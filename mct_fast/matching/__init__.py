"""One matching problem: its checks, and how the loss is carried back to images, labels and step size."""

from mct_fast.matching.adjoint import ADJOINTS, Adjoint, Exact, MatchingProblem, MatchResult, Truncated, Unrolled
from mct_fast.matching.matcher import Matcher, match

__all__ = [
    "ADJOINTS",
    "Adjoint",
    "Exact",
    "MatchResult",
    "Matcher",
    "MatchingProblem",
    "Truncated",
    "Unrolled",
    "match",
]
