"""The second stage of every sum: partial results of a kernel's programs, added in a fixed order and in double."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mct_fast.kernels import tuning
from mct_fast.kernels.launch import ceil_div, launch


@triton.jit
def _sum_group(x, out, divisor, group, rows, n, FINISH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < n)[None, :]
        at = (group.to(tl.int64) * rows + row)[:, None] * n + column[None, :]
        total += tl.sum(tl.load(x + at, mask=inside, other=0).to(tl.float64), axis=0)
    if FINISH == "divide":
        by = tl.load(divisor + group).to(tl.float64)
        total = total / tl.where(tl.abs(by) < float("inf"), by, float("nan"))  # divided by infinity any sum would be 0
    if FINISH == "sqrt":
        total = tl.sqrt(total)
    tl.store(out + group.to(tl.int64) * n + column, total, mask=column < n)


@triton.jit
def sum_rows_kernel(
    x, out, n, x2, out2, n2, divisor, rows, FINISH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out[g, i] = sum over r of x[g, r, i]; in the second half of the grid, the same for x2."""
    if tl.program_id(2) == 0:
        _sum_group(x, out, divisor, tl.program_id(1), rows, n, FINISH, ROWS, COLUMNS)
    else:
        _sum_group(x2, out2, divisor, tl.program_id(1), rows, n2, FINISH, ROWS, COLUMNS)


def sum_rows(
    x: Tensor,
    out: Tensor,
    x2: Tensor | None = None,
    out2: Tensor | None = None,
    *,
    divisor: Tensor | None = None,
    finish: str = "none",
) -> None:
    """Write the sums over the middle dimension: x (G, rows, n) to out (G, n), x2 (G, rows, n2) to out2 (G, n2).

    `finish`: "none", "divide" (by `divisor` (G,)) or "sqrt" of the sum. All contiguous.
    """
    groups, rows = x.shape[:2]
    n, n2 = x[0, 0].numel(), 0 if x2 is None else x2[0, 0].numel()
    config = tuning.rows(max(n, n2))
    grid = (ceil_div(max(n, n2), config.blocks["COLUMNS"]), groups, 1 if x2 is None else 2)
    # an argument that the kernel does not touch still has to be a pointer
    others = (x, out, n) if x2 is None else (x2, out2, n2)
    launch(sum_rows_kernel, grid, config, x, out, n, *others, x if divisor is None else divisor, rows, FINISH=finish)
