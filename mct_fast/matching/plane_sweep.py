"""A whole match on `mct_fast.students.planes`: the adjoint recursion of `adjoint`, step by step on the GPU's own kernels.

What a match does once lies outside of its steps: parameters are brought into the kernels' order and back, images of all
steps are gathered, augmented and cut into windows in one launch each, and so are their gradients on the way back. The
co-state is scaled by sigma, a power of two a student, so that fp16 holds it: everything behind it is linear in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mct_fast import ops
from mct_fast.matching.problem import MatchingProblem, StudentGradients
from mct_fast.students.planes.engine import Engine
from mct_fast.students.planes.memory import Step, TangentStep
from mct_fast.students.planes.parameters import Weights, power_of_two
from mct_fast.students.planes.patches import Batch

PATCH_BYTES = 1 << 30
"""Windows of images that are held at once: of more steps than fit they are cut again on the way back."""


@dataclass(frozen=True)
class _Group:
    """Steps of equally large batches, whose images are handled together: of step k rows k S b to (k + 1) S b."""

    steps: list[int]
    size: int
    rows: Tensor
    kinds: Tensor | None
    tables: Tensor | None
    patches: Batch
    targets: Tensor
    gx: Tensor
    gy: Tensor


class _Images:
    """The images and labels of a range of steps, as the engine reads them, and their gradients."""

    def __init__(self, problem: MatchingProblem, engine: Engine, steps: range) -> None:
        self._problem, self._engine = problem, engine
        sizes: dict[int, list[int]] = {}
        for step in steps:
            sizes.setdefault(problem.sizes[step], []).append(step)
        self._groups = [self._group(size, found) for size, found in sizes.items()]
        self._place = {step: (group, k) for group in self._groups for k, step in enumerate(group.steps)}

    def _group(self, size: int, steps: list[int]) -> _Group:
        problem, engine = self._problem, self._engine
        outputs = engine.geometry.outputs
        rows = torch.stack([problem.batches[:, step, :size] for step in steps])
        places = problem.among_all(rows)
        x = problem.images[places].flatten(0, 1)
        kinds = tables = None
        if problem.augment is not None:
            kinds, tables = problem.augment.tables(steps, x.device)
            x = ops.dsa(x, kinds, tables)
        x = x.flatten(0, 1)
        patches = engine.patches.room(len(x))
        engine.patches.cut(x, patches)
        labels = problem.labels[places].flatten(0, 1)
        targets = engine.targets(labels).reshape(-1, outputs)
        return _Group(
            steps, size, rows, kinds, tables, patches, targets, torch.empty_like(x), torch.empty_like(targets)
        )  # fmt: skip

    def of(self, step: int) -> tuple[int, Batch, Tensor, Tensor, Tensor]:
        """Size of the batch, windows, targets, and room for the gradients by both."""
        group, k = self._place[step]
        count = self._problem.num_students * group.size
        at = slice(k * count, (k + 1) * count)
        patches = Batch(group.patches.patches[at], group.patches.sums[at])
        return group.size, patches, group.targets[at], group.gy[at], group.gx[at]

    def add_gradients(self, alpha: Tensor, sigma: Tensor, images: Tensor, labels: Tensor | None) -> None:
        """``images (S, n, C, H, W)`` and ``labels (S, n, K)`` += -alpha / sigma of what the steps left."""
        for group in self._groups:
            steps, students, size = group.rows.shape
            gx = group.gx.view(steps * students, size, *images.shape[2:])
            if group.kinds is not None and group.tables is not None:
                gx = ops.dsa_transpose(gx, group.kinds, group.tables)
            position = self._positions(group)
            self._engine.patches.add_gradients(gx, position, alpha, sigma, images)
            if labels is not None:
                self._engine.patches.add_gradients(group.gy, position, alpha, sigma, labels)

    def _positions(self, group: _Group) -> Tensor:
        """``(S, steps, n)``: where an image of the set lies among a step's images, -1 where it does not."""
        steps, students, size = group.rows.shape
        place = torch.arange(students * size, device=group.rows.device).view(students, 1, size)
        out = place.new_full((students, steps, self._problem.num_images), -1)
        return out.scatter_(2, group.rows.transpose(0, 1), place.expand(students, steps, size))


def sweep(problem: MatchingProblem, engine: Engine, *, carry_curvature: bool, keep_bytes: int) -> StudentGradients:
    """`mct_fast.matching.adjoint`'s sweep of `Exact` and `Truncated`: the same gradient, to the engine's precision."""
    with torch.cuda.device_of(problem.images):
        return _Sweep(problem, engine, carry_curvature, keep_bytes).run()


class _Sweep:
    def __init__(self, problem: MatchingProblem, engine: Engine, carry_curvature: bool, keep_bytes: int) -> None:
        self._problem, self._engine, self._curvature = problem, engine, carry_curvature
        students, batch = problem.num_students, max(problem.sizes)
        images = students * batch
        engine.check_batch(batch)
        g = engine.geometry
        kept = min(problem.syn_steps, keep_bytes // Step.nbytes(g, images, engine.how))
        self._first_kept = problem.syn_steps - kept
        spare = 1 if self._first_kept else 0
        self._steps = Step.allocate(g, kept + spare, students, batch, engine.device, engine.how)
        at_once = max(1, PATCH_BYTES // (images * engine.patches.nbytes))
        self._chunks = [
            range(first, min(first + at_once, problem.syn_steps)) for first in range(0, problem.syn_steps, at_once)
        ]
        self._arena = engine.parameters.arena(students, problem.sizes)
        self._alpha = problem.alpha

    def _step(self, step: int) -> Step:
        """The buffers of a step; those that are not kept share the last."""
        return self._steps[step - self._first_kept if step >= self._first_kept else -1]

    def run(self) -> StudentGradients:
        problem, engine = self._problem, self._engine
        path, images = self._forward()
        final, start = engine.parameters.unpack(path[-1].values), engine.parameters.unpack(path[0].values)
        loss, costate = problem.terminal.value(problem, final, start)
        sigma = power_of_two(costate)
        dot = engine.parameters.room(problem.num_students)
        engine.parameters.pack(costate, dot, sigma)
        grad_images, grad_labels = problem.zeros(problem.num_students)
        by_outputs = None if grad_labels is None else grad_labels.view(*grad_labels.shape[:2], -1)
        loss_dot = self._backward(path, images, dot, sigma, grad_images, by_outputs)
        return StudentGradients(loss, grad_images, -loss_dot.sum(0) / sigma, grad_labels, final)

    def _forward(self) -> tuple[list[Weights], _Images]:
        """Parameters of every step, and the images of the last steps."""
        problem, engine = self._problem, self._engine
        path = [engine.parameters.room(problem.num_students) for _ in range(problem.syn_steps + 1)]
        start = problem.start
        engine.parameters.pack_point(start.origin, start.end, start.weights, path[0])
        images = None
        for chunk in self._chunks:
            images = _Images(problem, engine, chunk)
            for step in chunk:
                batch, x, y, _, _ = images.of(step)
                here, students = self._step(step), problem.num_students
                engine.forward(path[step], x, here, students, batch)
                engine.backward(path[step], x, y, here, self._arena, students, batch)
                parts = engine.parameters.parts(students, batch)
                engine.parameters.update(path[step].values, self._arena, parts, self._alpha, here.tau, path[step + 1])
        assert images is not None
        return path, images

    def _backward(
        self, path: list[Weights], images: _Images, dot: Weights, sigma: Tensor, grad_images: Tensor,
        grad_labels: Tensor | None,
    ) -> Tensor:  # fmt: skip
        problem, engine, g = self._problem, self._engine, self._engine.geometry
        students, most = problem.num_students, max(problem.sizes)
        groups = max(engine.columns(size) for size in problem.sizes)
        t = TangentStep.allocate(g, students, most, groups, engine.device, engine.how)
        loss_dot = torch.empty(problem.syn_steps, students, dtype=torch.float64, device=engine.device)
        for chunk in reversed(self._chunks):
            if chunk is not self._chunks[-1]:
                images = _Images(problem, engine, chunk)
            for step in reversed(chunk):
                batch, x, y, gy, gx = images.of(step)
                here = self._step(step)
                if step < self._first_kept:
                    engine.forward(path[step], x, here, students, batch)
                    engine.backward(path[step], x, y, here, self._arena, students, batch, gradients=False)
                carry = self._curvature and step > 0
                engine.tangent(
                    path[step], dot, x, y, here, t, self._arena, loss_dot[step], gy, gx, students, batch,
                    curvature=carry,
                )  # fmt: skip
                if carry:
                    parts = engine.parameters.parts(students, batch)
                    engine.parameters.update(dot.values, self._arena, parts, self._alpha, here.tau, dot)
            images.add_gradients(self._alpha, sigma, grad_images, grad_labels)
        return loss_dot
