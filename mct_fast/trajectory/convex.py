"""The convexified path of MCT (Zhong et al., CVPR 2025): straight lines between few checkpoints.

Between two waypoints theta_a, theta_b each parameter tensor l moves on a line, at its own pace:
theta_l(t) = (1 - beta_l(t)) theta_a,l + beta_l(t) theta_b,l.  ``progress_l(t) = piece + beta_l(t)`` holds the pace of the
whole path in one table of float64 ``(L, K + 1)``; between whole epochs it is interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mct_fast.run.errors import InputError
from mct_fast.settings.names import SCHEDULES
from mct_fast.trajectory.path import check_checkpoints, check_time, flatten
from mct_fast.trajectory.point import PathPoint


class ConvexTrajectory:
    """A path of ``waypoints (w, P)`` with the pace ``progress (L, K + 1)`` float64, from 0 to w - 1.

    Build one from checkpoints with :meth:`fit`, or while an expert trains with :class:`PathRecorder`.
    """

    def __init__(self, waypoints: Tensor, progress: Tensor, shapes: Sequence[torch.Size]) -> None:
        self.waypoints, self.progress, self._shapes = waypoints, progress.double().cpu(), tuple(shapes)
        self._offsets = [0]
        for shape in self._shapes:
            self._offsets.append(self._offsets[-1] + shape.numel())
        if waypoints.ndim != 2 or len(waypoints) < 2 or waypoints.shape[1] != self._offsets[-1]:
            raise InputError(
                f"waypoints: shape is {tuple(waypoints.shape)}; give (w, {self._offsets[-1]}) with w of at least 2"
            )
        table = self.progress
        if table.ndim != 2 or len(table) != len(self._shapes) or table.shape[1] < 2:
            raise InputError(f"progress: shape is {tuple(table.shape)}; give (L, K + 1) = ({len(self._shapes)}, ...)")
        last = len(waypoints) - 1
        ends_fit = bool((table[:, 0] == 0).all()) and bool((table[:, -1] == last).all())
        if not ends_fit or not bool((table.diff(dim=1) >= 0).all()):
            raise InputError(
                f"progress: must rise from 0 to {last} for every layer; refit the path from its checkpoints"
            )

    @classmethod
    def fit(
        cls,
        checkpoints: Sequence[Sequence[Tensor]],
        waypoints: int | Sequence[int] = 2,
        schedule: str = "arc_length",
        smooth: bool = False,
    ) -> ConvexTrajectory:
        """Convexifies ``checkpoints``, K + 1 lists of parameter tensors.

        ``waypoints``: how many (see :func:`waypoint_epochs`), or their epochs, 0 and K among them.  ``waypoints=2,
        smooth=False`` is the paper's path.  ``waypoints=4, smooth=True`` is the default of the official code: an interior
        waypoint is replaced by the mean of its two neighbours and the last by the mean of the last two checkpoints.
        ``schedule``: ``arc_length`` (the paper's), ``uniform``, ``decreasing``, ``projected``, the last tensor by tensor
        like all of them (the official code's ablation projects the whole vector).
        """
        shapes = check_checkpoints(checkpoints)
        epochs = len(checkpoints) - 1
        recorder = PathRecorder(shapes, epochs, waypoints=waypoints, schedule=schedule, smooth=smooth, streaming=False)
        for tensors in checkpoints:
            recorder.observe(flatten(tensors))
        if schedule == "projected":
            recorder.project([flatten(tensors) for tensors in checkpoints])
        return recorder.finish()

    @property
    def epochs(self) -> int:
        return self.progress.shape[1] - 1

    @property
    def shapes(self) -> tuple[torch.Size, ...]:
        return self._shapes

    @property
    def continuous(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return self.waypoints.nbytes

    def to(self, device: torch.device | str) -> ConvexTrajectory:
        """The same path with its waypoints on ``device``."""
        return ConvexTrajectory(self.waypoints.to(device), self.progress, self._shapes)

    def pace(self, t: float) -> Tensor:
        """``progress (L,)`` at a real time ``t``."""
        t = check_time(t, self.epochs)
        low = min(int(t), self.epochs - 1)
        return torch.lerp(self.progress[:, low], self.progress[:, low + 1], t - low)

    def at(self, t: float) -> Tensor:
        """The parameters ``(P,)`` at time ``t``; a waypoint comes back bit for bit."""
        point = torch.empty_like(self.waypoints[0])
        for layer, pace in enumerate(self.pace(t).tolist()):
            span = slice(self._offsets[layer], self._offsets[layer + 1])
            piece = min(int(pace), len(self.waypoints) - 1)
            share = pace - piece
            if share == 0:  # not lerp: (1 - 0) * -0.0 + 0 * x would lose a sign
                point[span] = self.waypoints[piece, span]
            else:
                point[span] = (1 - share) * self.waypoints[piece, span] + share * self.waypoints[piece + 1, span]
        return point

    def point(self, t: float) -> PathPoint:
        """The point at time ``t`` between the two waypoints around it."""
        pace = self.pace(t)
        # Every layer passes a waypoint at the same epoch, so all lie in one piece; at its end a share is 1.
        piece = min(int(pace.min()), len(self.waypoints) - 2)
        share = pace - piece
        return PathPoint(
            (self.waypoints[piece], self.waypoints[piece + 1]), torch.stack([1 - share, share]), self._shapes
        )


class PathRecorder:
    """Builds a :class:`ConvexTrajectory` while its expert trains.

    Call :meth:`observe` with the flat parameters ``(P,)`` at epochs 0, 1, ..., K.  Holds the waypoints seen so far, the
    checkpoint before, and one running table: memory does not grow with K.  ``start`` makes the parameters of epoch 0 again,
    bit for bit; given it, they are not held either, and a path of two waypoints costs one copy beside the trainer's own.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        epochs: int,
        *,
        waypoints: int | Sequence[int] = 2,
        schedule: str = "arc_length",
        smooth: bool = False,
        streaming: bool = True,
        start: Callable[[], Tensor] | None = None,
    ) -> None:
        if schedule not in SCHEDULES:
            raise InputError(f"schedule: unknown {schedule!r}; choose one of {', '.join(SCHEDULES)}")
        if streaming and schedule == "projected":
            raise InputError(
                "schedule: 'projected' needs every checkpoint at once; train with keep_checkpoints and compress afterwards"
            )
        self._shapes, self._schedule, self._start = tuple(shapes), schedule, start
        self.knots = waypoint_epochs(epochs, waypoints)
        self._sizes = [shape.numel() for shape in self._shapes]
        self._means = _smoothing(self.knots) if smooth else {knot: (knot,) for knot in self.knots}
        self._wanted = {epoch for epochs_ in self._means.values() for epoch in epochs_}
        self._kept: dict[int, Tensor] = {}
        self._previous: Tensor | None = None
        self._seen = 0
        self._steps = torch.zeros(len(self._shapes), epochs, dtype=torch.float64)
        self._projected: Tensor | None = None

    def observe(self, params: Tensor) -> None:
        """Takes the parameters ``(P,)`` of the next epoch."""
        if self._seen > self.knots[-1]:
            raise InputError(
                f"params: epoch {self._seen} comes after the last, {self.knots[-1]}; record {self.knots[-1]} epochs"
            )
        if params.shape != (sum(self._sizes),) or not bool(torch.isfinite(params).all()):
            raise InputError(
                f"params: epoch {self._seen} is not {sum(self._sizes)} finite numbers; lower lr_teacher if the expert diverged"
            )
        if self._previous is not None:
            pairs = zip(params.detach().split(self._sizes), self._previous.split(self._sizes), strict=True)
            # Tensor by tensor: in float64 a whole vector would take six times its memory.
            self._steps[:, self._seen - 1] = torch.stack(
                [(new.double() - old.double()).norm() for new, old in pairs]
            ).cpu()
        wanted = self._seen in self._wanted and not (self._seen == 0 and self._start is not None)
        if self._previous is None or self._seen - 1 in self._kept:
            self._previous = params.detach().clone()
        else:
            self._previous.copy_(params.detach())
        if wanted:
            self._kept[self._seen] = self._previous
        self._seen += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What was observed so far, for :meth:`load_state_dict` of a recorder that was made alike; shared with this one."""
        tensors = {f"kept.{epoch}": params for epoch, params in self._kept.items()}
        if self._previous is not None and self._seen - 1 not in self._kept:
            tensors["previous"] = self._previous
        return {"steps": self._steps[:, : max(self._seen - 1, 0)], **tensors}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what :meth:`state_dict` gave, whose tensors it takes over."""
        steps = tensors["steps"]
        self._seen = steps.shape[1] + 1
        self._steps[:, : self._seen - 1] = steps
        self._kept = {int(name.removeprefix("kept.")): t for name, t in tensors.items() if name.startswith("kept.")}
        self._previous = self._kept[self._seen - 1] if self._seen - 1 in self._kept else tensors["previous"]

    def project(self, checkpoints: Sequence[Tensor]) -> None:
        """Fills the ``projected`` schedule: where theta(t) falls on the line, kept from running back or past the end."""
        share = torch.zeros(len(self._sizes), len(checkpoints), dtype=torch.float64)
        for piece, (a, b) in enumerate(pairwise(self.knots)):
            line = (checkpoints[b].double() - checkpoints[a].double()).split(self._sizes)
            for t in range(a, b + 1):
                step = (checkpoints[t].double() - checkpoints[a].double()).split(self._sizes)
                for layer, (u, v) in enumerate(zip(step, line, strict=True)):
                    length = torch.dot(v, v)
                    share[layer, t] = piece + (torch.dot(u, v) / length if length > 0 else 0.0)
            inner = share[:, a : b + 1]
            inner[:] = inner.clamp(piece, piece + 1).cummax(1).values
        self._projected = share

    def finish(self) -> ConvexTrajectory:
        """The path, once epochs 0 .. K have been observed."""
        if self._seen != self.knots[-1] + 1:
            raise InputError(f"epochs: {self._seen - 1} of {self.knots[-1]} were recorded; observe every epoch first")
        pieces = list(pairwise(self.knots))
        progress = torch.zeros(len(self._sizes), self.knots[-1] + 1, dtype=torch.float64)
        for piece, (a, b) in enumerate(pieces):
            if self._projected is not None:
                progress[:, a : b + 1] = self._projected[:, a : b + 1]
            else:
                progress[:, a + 1 : b + 1] = piece + _PACES[self._schedule](self._steps[:, a:b])
            progress[:, b] = piece + 1  # exactly, whatever the rounding
        if self._start is not None and self._previous is not None:
            self._kept[0] = self._start().to(self._previous)
        points = [torch.stack([self._kept[e] for e in epochs]).double().mean(0) for epochs in self._means.values()]
        exact = [self._kept[e[0]] if len(e) == 1 else p for e, p in zip(self._means.values(), points, strict=True)]
        dtype = self._kept[0].dtype
        return ConvexTrajectory(torch.stack([point.to(dtype) for point in exact]), progress, self._shapes)


def waypoint_epochs(epochs: int, waypoints: int | Sequence[int]) -> tuple[int, ...]:
    """The epochs as given; of a number w, equally spaced by (K + 1) // (w - 1) as in the official code, the last at K."""
    if not isinstance(waypoints, int):
        return _checked(epochs, tuple(waypoints))
    if waypoints < 2 or waypoints > epochs + 1:
        raise InputError(f"waypoints: {waypoints} do not fit a path of {epochs} epochs; give 2 to {epochs + 1}")
    spacing = (epochs + 1) // (waypoints - 1)
    if spacing * (waypoints - 2) >= epochs:
        spacing = epochs // (waypoints - 1)
    return (*(spacing * i for i in range(waypoints - 1)), epochs)


def _checked(epochs: int, knots: tuple[int, ...]) -> tuple[int, ...]:
    rising = all(a < b for a, b in pairwise(knots))
    if len(knots) < 2 or (knots[0], knots[-1]) != (0, epochs) or not rising:
        given = " ".join(map(str, knots)) or "none"
        raise InputError(f"waypoints: {given} are no epochs of a path; give epochs that rise from 0 to {epochs}")
    return knots


def _smoothing(knots: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    inner = {knot: (knot - 1, knot + 1) for knot in knots[1:-1]}
    return {0: (0,), **inner, knots[-1]: (knots[-1] - 1, knots[-1])}


def _arc_length(steps: Tensor) -> Tensor:
    # A tensor that never moved (a bias before a norm may be one) stays at the start and jumps at the end: no 0 / 0.
    total = steps.sum(1, keepdim=True)
    return torch.where(total > 0, steps.cumsum(1) / torch.where(total > 0, total, 1.0), 0.0).clamp(max=1.0)


def _uniform(steps: Tensor) -> Tensor:
    return (torch.arange(1, steps.shape[1] + 1, dtype=torch.float64) / steps.shape[1]).expand_as(steps)


def _decreasing(steps: Tensor) -> Tensor:
    sizes = torch.arange(steps.shape[1], 0, -1, dtype=torch.float64)
    return (sizes.cumsum(0) / sizes.sum()).expand_as(steps)


# How beta grows over a piece, from the norms (L, k) of its k steps to (L, k) values ending at 1.
_PACES: dict[str, Callable[[Tensor], Tensor]] = {
    "arc_length": _arc_length,
    "uniform": _uniform,
    "decreasing": _decreasing,
    "projected": _arc_length,  # replaced by PathRecorder.project once all checkpoints are known
}
