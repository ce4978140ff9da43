"""One matching problem: from a start on the expert's path, N steps on synthetic data, how far from the target?"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from mct_fast.data.augment import AugmentPlan
from mct_fast.matching.adjoint import ADJOINTS, Adjoint, Unrolled
from mct_fast.matching.points import Points
from mct_fast.matching.problem import MatchingProblem, MatchResult, Sets, StudentGradients
from mct_fast.matching.terminal import PathDistance, RealLoss, Terminal
from mct_fast.models import FunctionalModel
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.tensors import check_dense, check_mode
from mct_fast.students import MicroBatched, Student, check_pieces, student_for
from mct_fast.tasks import Classification, Task
from mct_fast.trajectory import PathPoint
from mct_fast.trajectory.point import same_form

Ends = Tensor | PathPoint | Sequence[PathPoint]
"""Parameters ``(P,)`` or ``(S, P)``, or points of paths, one a student."""


@dataclass(frozen=True)
class Asked:
    """A match that a loop asks for: as :func:`match` has it, with S always present in ``batches (S, syn_steps, b)``.

    ``sizes``: images in the batch of each step, the same for all students.
    """

    images: Tensor
    labels: Tensor
    syn_lr: float
    start: Tensor | Sequence[PathPoint]
    target: Sequence[PathPoint] | RealLoss
    batches: Tensor
    sizes: tuple[int, ...]
    augment: AugmentPlan | None = None


def match(
    model: nn.Module | FunctionalModel,
    images: Tensor,
    labels: Tensor,
    syn_lr: float | Tensor,
    start: Ends,
    target: Ends | RealLoss,
    batches: Tensor,
    *,
    augment: AugmentPlan | None = None,
    task: Task | None = None,
    adjoint: str | Adjoint = "exact",
) -> MatchResult:
    """The matching loss of MTT (Cazenavette et al., CVPR 2022, eq. 2) and its gradient; or that of a loss on real data.

    ``images (n, C, H, W)`` (or rows ``(n, features)``, series ``(n, time, features)``, as the model takes them) float32 or
    float64; ``labels`` as ``task`` has them: ``(n,)`` int64, or float of the images' dtype, ``(n, classes)`` for classes,
    ``(n,)`` or ``(n, 1)`` for a binary task, ``(n, k)`` for k labels; ``task`` is cross-entropy over classes by default;
    ``syn_lr`` the positive step size alpha; ``start``, ``target`` ``(P,)`` or ``(S, P)``, the same dtype, or points of paths
    (``path.point(t)``), one a student: a GPU interpolates a target while it sums up the loss, and never makes it;
    where ``target`` is a :class:`RealLoss`, the loss is the student's own on that real batch, where it arrived;
    ``batches`` int64 ``(syn_steps, b)`` or ``(S, syn_steps, b)`` with rows of ``images``, no row twice in a batch;
    a shorter batch is padded with -1 at its end.  ``augment`` holds the drawn augmentation of every student and step.
    ``adjoint`` is ``"exact"`` (default), ``"unrolled"`` (exact, memory grows with syn_steps) or ``"truncated"``
    (approximate), which keep up to 448 MiB of activations between their sweeps, or a strategy such as
    ``Exact(keep_bytes=0)``.  Given the same inputs it returns the same bits.

    Raises :class:`InputError` naming the argument.  To call it many times for one model, keep a :class:`Matcher`.
    """
    return Matcher(model, task=task, adjoint=adjoint)(images, labels, syn_lr, start, target, batches, augment=augment)


class Matcher:
    """:func:`match` for one model, task and adjoint, with the network prepared once.

    ``micro_batch`` bounds how many images of each student's batch are in the network at once, and with them the memory; the
    result differs by rounding alone.  Students are split over the processes of ``communicator``, each of which is
    given all of them and returns the same result, that of one process.
    """

    def __init__(
        self,
        model: nn.Module | FunctionalModel,
        *,
        task: Task | None = None,
        adjoint: str | Adjoint = "exact",
        micro_batch: int | None = None,
        communicator: Communicator = Single(),
    ) -> None:
        self._adjoint, self._communicator = _adjoint(adjoint), communicator
        self._task: Task = task or Classification()
        self._model = model if isinstance(model, FunctionalModel) else FunctionalModel(model)
        self._micro_batch = micro_batch
        self._tried = False  # whether the network has been called, and seen to draw no random numbers
        if micro_batch is not None:
            if isinstance(self._adjoint, Unrolled):
                raise InputError("micro_batch: the unrolled adjoint keeps whole batches; use adjoint='exact'")
            check_pieces(self._model.module)
        self.student = functools.cache(self._student_on)
        self.student(torch.device("cpu"))  # so that what it cannot be made of is refused here

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        syn_lr: float | Tensor,
        start: Ends,
        target: Ends | RealLoss,
        batches: Tensor,
        *,
        augment: AugmentPlan | None = None,
    ) -> MatchResult:
        """See :func:`match`."""
        return self._solve(self._checked(images, labels, syn_lr, start, target, batches, augment))[0]

    def check(self, asked: Asked) -> None:
        """Raises :class:`InputError` for what :func:`match` would refuse."""
        self._checked(asked.images, asked.labels, asked.syn_lr, asked.start, asked.target, asked.batches, asked.augment)

    def _checked(
        self, images: Tensor, labels: Tensor, syn_lr: float | Tensor, start: Ends, target: Ends | RealLoss,
        batches: Tensor, augment: AugmentPlan | None,
    ) -> MatchingProblem:  # fmt: skip
        for name, given in (("images", images), ("labels", labels), ("batches", batches)):
            check_dense(name, given)
        images, labels = images.detach(), labels.detach()
        _check_images(images)
        check_mode(images.device)
        if labels.device != images.device:
            raise InputError(f"labels: are on {labels.device} but images are on {images.device}; bring them there")
        ends = {"start": start} if isinstance(target, RealLoss) else {"start": start, "target": target}
        points = _points(ends, self._model.num_params, images)
        begin, count = points[0], points[0].shape[0]
        batches, sizes = _check_batches(batches, count, len(images))
        alpha = _check_syn_lr(syn_lr, images)
        if labels.ndim == 0 or len(labels) != len(images):
            raise InputError(f"labels: have shape {tuple(labels.shape)} for {len(images)} images; give one an image")
        self._check_labels("labels", images, labels, begin)
        if augment is not None:
            _check_augment(augment, *batches.shape[:2])
        if isinstance(target, RealLoss):
            terminal = _check_real(target, images, count)
            for x, y in zip(terminal.images, terminal.labels, strict=True):
                self._check_labels("target: labels", x, y, begin)
        else:
            terminal = PathDistance(points[1])
            if bool((terminal.denominator(begin.dense()) == 0).any()):  # one that overflowed is NaN, and so is the loss
                raise InputError("target: equals start, so the loss is undefined; pick a target further along the path")
        return self._problem(images, labels, alpha, begin, terminal, batches, sizes, augment)

    def trusted(self, asked: Sequence[Asked]) -> list[MatchResult]:
        """Several matches at once, each as it is alone, unchecked: nothing is read from the device.

        Their tensors have equal shapes, batches equal sizes, and all or none have augmentation and soft labels.
        """
        first = asked[0]
        images, labels, batches = (
            _joined([getattr(one, name) for one in asked]) for name in ("images", "labels", "batches")
        )
        count, students = len(asked), len(first.start)
        alphas = [images.new_full((students,) if count > 1 else (), one.syn_lr) for one in asked]
        start, terminal = _ends(asked)
        plans = [one.augment for one in asked if one.augment is not None]
        plan = AugmentPlan.joined(plans) if len(plans) > 1 else next(iter(plans), None)
        problem = self._problem(images, labels, _joined(alphas), start, terminal, batches, first.sizes, plan)
        return self._solve(replace(problem, sets=Sets(count, students)))

    def _problem(
        self, images: Tensor, labels: Tensor, alpha: Tensor, start: Points, terminal: Terminal, batches: Tensor,
        sizes: tuple[int, ...], augment: AugmentPlan | None,
    ) -> MatchingProblem:  # fmt: skip
        student = self.student(images.device)
        return MatchingProblem(
            self._model, student, self._task, images, labels, alpha, start, terminal, batches, sizes, augment
        )

    def _solve(self, problem: MatchingProblem) -> list[MatchResult]:
        """A result a set."""
        count = problem.num_students
        mine = self._communicator.share(count)
        found = self._adjoint.solve(problem.of(mine)) if mine else StudentGradients.none(problem)
        found, each = found.gathered(self._communicator, count), count // problem.sets.count
        return [found.of(slice(first, first + each)).mean() for first in range(0, count, each)]

    def _student_on(self, device: torch.device) -> Student:
        student = student_for(self._model, self._task, device)
        return student if self._micro_batch is None else MicroBatched(student, self._micro_batch)

    def _check_labels(self, name: str, images: Tensor, labels: Tensor, start: Points) -> None:
        device = torch.get_device_module(images.device) if images.is_cuda else torch
        before = None if self._tried else device.get_rng_state()
        try:
            with torch.no_grad():
                num_outputs = self._model(start.of(slice(0, 1)).dense()[0], images[:1]).shape[-1]
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"images: the model does not take shape {tuple(images.shape[1:])} ({reason}); build it for these images"
            ) from error
        if before is not None and not torch.equal(before, device.get_rng_state()):
            raise InputError(
                "model: its forward pass draws random numbers, so the gradient would be that of another step; "
                "take out what is random, such as functional dropout or rrelu"
            )
        self._tried = True
        self._task.check(labels, num_outputs)
        if labels.is_floating_point() and labels.dtype != images.dtype:
            raise InputError(
                f"{name}: soft labels are {labels.dtype} but images are {images.dtype}; convert one of them"
            )


def _ends(asked: Sequence[Asked]) -> tuple[Points, Terminal]:
    """Where the students of all matches start and what they should reach."""
    starts, targets = [one.start for one in asked], [one.target for one in asked]
    if isinstance(targets[0], RealLoss):
        real = [target for target in targets if isinstance(target, RealLoss)]
        values = _joined([start for start in starts if isinstance(start, Tensor)])
        batch = RealLoss(_joined([one.images for one in real]), _joined([one.labels for one in real]))
        return Points.of_values(values), batch
    begin = [point for start in starts if not isinstance(start, Tensor) for point in start]
    reach = [point for target in targets if not isinstance(target, RealLoss) for point in target]
    start, target = Points.of_paths(begin, reach)
    return start, PathDistance(target)


def _check_real(target: RealLoss, images: Tensor, count: int) -> RealLoss:
    """The real batches of ``count`` students, for each its own or one for all of them."""
    for name in ("images", "labels"):
        check_dense(f"target: {name}", getattr(target, name))
    x, y = target.images.detach(), target.labels.detach()
    if x.ndim == images.ndim:
        x, y = (t.expand(count, *t.shape) for t in (x, y))
    if x.shape[:1] != (count,) or x.shape[2:] != images.shape[1:] or x.shape[1] == 0 or y.shape[:2] != x.shape[:2]:
        raise InputError(
            f"target: real images of shape {tuple(target.images.shape)} with labels of shape {tuple(target.labels.shape)} "
            f"for {count} students of images {tuple(images.shape[1:])}; give (b, ...) for all of them, or ({count}, b, ...)"
        )
    if (x.dtype, x.device, y.device) != (images.dtype, images.device, images.device):
        raise InputError(
            f"target: is {x.dtype} on {x.device}, its labels on {y.device}, but images are {images.dtype} on {images.device}; "
            "make them alike"
        )
    if not bool(torch.isfinite(x).all()):
        raise InputError("target: its images hold NaN or infinity; remove or repair these pixels")
    return RealLoss(x.contiguous(), y.contiguous())


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors))


def _adjoint(adjoint: str | Adjoint) -> Adjoint:
    if callable(getattr(adjoint, "solve", None)):
        return cast(Adjoint, adjoint)
    if not isinstance(adjoint, str) or adjoint not in ADJOINTS:
        raise InputError(f"adjoint: unknown strategy {adjoint!r}; choose one of {', '.join(ADJOINTS)}")
    return ADJOINTS[adjoint]


def _check_images(images: Tensor) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        raise InputError(f"images: dtype is {images.dtype}; convert them to float32 or float64")
    if images.ndim < 2 or len(images) == 0:
        raise InputError(f"images: shape is {tuple(images.shape)}; give (n, C, H, W) with n of at least 1")
    if not bool(torch.isfinite(images).all()):
        raise InputError("images: hold NaN or infinity; remove or repair these pixels")


def _points(given: Mapping[str, Ends], num_params: int, images: Tensor) -> list[Points]:
    """The ends that are given, by name, in one form, checked; points of paths may share their models."""
    paths = {name: _of_paths(name, end, images) for name, end in given.items() if not isinstance(end, Tensor)}
    made = dict(zip(paths, Points.of_paths(*paths.values()), strict=True)) if paths else {}
    for name, end in given.items():
        if isinstance(end, Tensor):
            made[name] = Points.of_values(_per_student(name, end, num_params, images))
    for name in paths:
        if made[name].shape[1] != num_params:
            raise InputError(f"{name}: points of {made[name].shape[1]} parameters but the model has {num_params}")
    first, last = made["start"], made.get("target", made["start"])
    if last.shape != first.shape:
        raise InputError(
            f"target: holds {last.shape[0]} students of {last.shape[1]} parameters but start holds "
            f"{first.shape[0]} of {first.shape[1]}; give equally many"
        )
    return [made[name] for name in given]


def _of_paths(name: str, end: PathPoint | Sequence[PathPoint], images: Tensor) -> list[PathPoint]:
    points = [end] if isinstance(end, PathPoint) else list(end) if isinstance(end, Sequence) else []
    if not points or not all(isinstance(point, PathPoint) for point in points):
        raise InputError(
            f"{name}: is neither parameters nor points of paths; give a tensor (P,) or (S, P), or path.point(t)"
        )
    same_form(points, name)
    for model in (model for point in points for model in point.models):
        check_dense(name, model)
        if model.dtype != images.dtype or model.device != images.device:
            raise InputError(
                f"{name}: holds {model.dtype} on {model.device} but images are {images.dtype} on {images.device}; "
                "bring it there with point.to(device, dtype)"
            )
    return points


def _per_student(name: str, params: Tensor, num_params: int, images: Tensor) -> Tensor:
    check_dense(name, params)
    stacked = params.detach()[None] if params.ndim == 1 else params.detach()
    if stacked.ndim != 2 or stacked.shape[1] != num_params or len(stacked) == 0:
        raise InputError(
            f"{name}: shape is {tuple(params.shape)} but the model has {num_params} parameters; give (P,) or (S, P)"
        )
    if stacked.dtype != images.dtype or stacked.device != images.device:
        raise InputError(
            f"{name}: is {stacked.dtype} on {stacked.device} but images are {images.dtype} on {images.device}; make them alike"
        )
    return stacked.contiguous()


def _check_batches(batches: Tensor, num_students: int, num_images: int) -> tuple[Tensor, tuple[int, ...]]:
    """``(S, syn_steps, b)``, and how many images each step has."""
    if batches.dtype != torch.int64 or batches.ndim not in (2, 3):
        raise InputError(
            f"batches: got {batches.dtype} of shape {tuple(batches.shape)}; give int64 (syn_steps, b) or (S, syn_steps, b)"
        )
    stacked = batches.expand(num_students, -1, -1) if batches.ndim == 2 else batches
    if len(stacked) != num_students or stacked[0].numel() == 0:
        raise InputError(
            f"batches: shape is {tuple(batches.shape)} for {num_students} students; give at least one step and one image for each"
        )
    if int(stacked.max()) >= num_images or int(stacked.min()) < -1:
        raise InputError(
            f"batches: holds rows outside 0..{num_images - 1}; index rows of images (-1 pads a short batch)"
        )
    used = stacked >= 0
    sizes = used.sum(2)
    columns = torch.arange(stacked.shape[2], device=stacked.device)
    if not bool((used == (columns < sizes[..., None])).all()) or not bool((sizes == sizes[:1]).all()):
        raise InputError("batches: -1 must come last in a batch and all students need equally large batches at a step")
    if not bool((sizes > 0).all()):
        raise InputError("batches: a step has an empty batch; give every step at least one image")
    ordered = stacked.sort(2).values
    if bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()):
        raise InputError("batches: a row appears twice in one batch; draw each batch without replacement")
    return stacked, tuple(sizes[0].tolist())


def _check_syn_lr(syn_lr: float | Tensor, images: Tensor) -> Tensor:
    if isinstance(syn_lr, Tensor):
        check_dense("syn_lr", syn_lr)
        syn_lr = syn_lr.detach()
    try:
        number = float(syn_lr)
    except (TypeError, ValueError, RuntimeError):  # also of a complex tensor
        number = math.nan
    alpha = torch.tensor(number, dtype=images.dtype, device=images.device)
    if not math.isfinite(alpha) or alpha <= 0:
        raise InputError(f"syn_lr: {syn_lr} is not a positive finite number; start from 0.01, the field's default")
    return alpha


def _check_augment(augment: AugmentPlan, num_students: int, syn_steps: int) -> None:
    if not isinstance(augment, AugmentPlan):
        raise InputError(f"augment: is a {type(augment).__name__}; give an AugmentPlan, or None")
    if len(augment.draws) != num_students or any(len(row) != syn_steps for row in augment.draws):
        raise InputError(
            f"augment: does not hold {syn_steps} draws for each of {num_students} students; draw the plan for these batches"
        )
