"""What encoding a path costs in accuracy, without making its points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mct_fast.trajectory.convex import ConvexTrajectory


def encoding_error(whole: ConvexTrajectory, decoded: ConvexTrajectory) -> dict[str, Any]:
    """See :meth:`TrajectoryStore.entry`."""
    epochs = whole.epochs
    lengths = [m for m in (1, 2, 4) if m <= epochs]
    starts = sorted({round(share * (epochs - lengths[-1]), 3) for share in (0, 0.25, 0.5, 0.75, 1)})
    times = sorted({t + m for t in starts for m in (0, *lengths)})
    # Each tensor's path is first point + sum of share_i(t) * step_i, linear in the steps: all norms wanted are quadratic
    # forms of one small Gram matrix a tensor, so that no point of the path need be made.
    pieces = torch.arange(len(whole.waypoints) - 1, dtype=torch.float64)
    shares = {t: (whole.pace(t)[:, None] - pieces).clamp(0, 1) for t in times}  # (L, w - 1)
    sizes = [shape.numel() for shape in whole.shapes]
    grams = []
    for true, coded in zip(whole.waypoints.split(sizes, dim=1), decoded.waypoints.split(sizes, dim=1), strict=True):
        off = coded.double() - true.double()
        grams.append((_gram(true.double().diff(dim=0)), _gram(torch.cat([off[:1], off.diff(dim=0)]))))
    steps, offs = (torch.stack(list(kind)) for kind in zip(*grams, strict=True))
    error: dict[str, Any] = {"expert_epochs": lengths, "start": starts, "point": [], "segment": []}
    first = torch.ones(len(sizes), 1, dtype=torch.float64)
    for length in lengths:
        point, segment = [], []
        for t in starts:
            moved = shares[t + length] - shares[t]
            size = _norm(steps, moved)
            point.append(_share(_norm(offs, torch.cat([first, shares[t + length]], dim=1)), size))
            segment.append(_share(_norm(offs, torch.cat([0 * first, moved], dim=1)), size))
        error["point"].append(point)
        error["segment"].append(segment)
    return error


def _gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _norm(grams: Tensor, factors: Tensor) -> float:
    return float(torch.einsum("li,lij,lj->", factors, grams, factors).clamp(min=0).sqrt())


def _share(error: float, size: float) -> float | None:
    return float(f"{error / size:.3g}") if size > 0 else None
