"""The operators under pytest-benchmark: ``pytest tests/bench/test_ops_speed.py --benchmark-enable``.

Without the flag each runs once and is only checked.
"""

from typing import Any

import pytest
import torch

from bench.op_cases import Case, cases
from bench.ops import TOLERANCE, _pytorch


def _id(case: Case) -> str:
    return f"{case.op}-{case.shape}".replace(" ", "").replace(",", "-")


CASES = list(cases(1, 4, width=32, image_size=16))


@pytest.mark.parametrize("provider", ["mct_fast", "pytorch"])
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_speed(case: Case, provider: str, benchmark: Any) -> None:
    with torch.no_grad():
        assert case.error() <= TOLERANCE["cpu"]
        benchmark.group = _id(case)
        if provider == "mct_fast":
            benchmark(case.run)
            return
    benchmark(_pytorch(case))
