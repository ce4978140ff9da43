"""Stage 3: the outer loop.  Match a student trained on synthetic images to an expert's path, and improve the images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from mct_fast.data import Dataset
from mct_fast.distill.extend import change_iterations
from mct_fast.distill.initial import initial_state
from mct_fast.distill.job import Job
from mct_fast.distill.matches import Matches
from mct_fast.distill.objectives import Segment
from mct_fast.distill.selection import Selection
from mct_fast.distill.skips import Skips
from mct_fast.distill.state import State
from mct_fast.distilled import DistilledDataset
from mct_fast.matching import MatchResult
from mct_fast.ops.device import taken
from mct_fast.run.checkpoint import restoring
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.estimate import Estimated
from mct_fast.run.folder import Run, Unkept
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.settings import AUTO
from mct_fast.run.watch import Unwatched, Watcher
from mct_fast.settings import DistillConfig
from mct_fast.tasks import Task
from mct_fast.trajectory import Trajectory, TrajectoryStore


def distill(
    config: DistillConfig,
    trajectories: TrajectoryStore | str | Path | Sequence[Trajectory] | None = None,
    dataset: Dataset | None = None,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    until: int | None = None,
    progress: Progress = quiet(),
    watcher: Watcher = Unwatched(),
    communicator: Communicator = Single(),
) -> DistilledDataset:
    """Distils ``dataset`` into ``config.images.ipc`` images a class and returns the best set found.

    Args:
        config: the settings.
        trajectories: a store (its manifest names model and dataset), or paths together with ``model`` and ``dataset``; None,
            with both, for an objective that needs no experts.
        dataset: the data; by default those that the store names.
        model: the network of the paths, where they are given as a list.
        task: what the labels say and which loss students have; by default that of the store's experts, or of the dataset.
        out: a run folder to write (config, metrics, checkpoints, images).  A folder that holds a run is refused, unless
            it is this one and finished: then its result is returned.
        resume: goes on with the run in ``out``; it reaches the same bits as an uninterrupted one.  A run, finished or not,
            goes on to other ``iterations`` as if it had been begun with them.
        until: stops after so many iterations, evaluated if an evaluation is due there, and returns the best set so far.
        progress: shows how far it is.
        watcher: is told every record and shown the images, at evaluations and checkpoints; of several processes the first one's.
        communicator: processes over which students and evaluation networks are split.  All call this with the same
            arguments and get the same set, that of one process.

    Raises:
        InputError: before anything is computed, if the configuration does not fit the data or the paths.
    """
    config = replace(config, device=communicator.tell(lambda: _device(config.engine.device, out)))
    job = communicator.lead_first(lambda: Job.find(config, trajectories, dataset, model, task, progress)).selectable()
    job.check()
    with ExitStack() as held:
        watcher = watcher if communicator.rank == 0 else Unwatched()
        begun = _begun(job, out, held, resume=resume, progress=progress, communicator=communicator, watcher=watcher)
        if isinstance(begun, DistilledDataset):
            return begun
        found = _go(Matches([job], communicator), {0: begun}, until, progress)[0]
        if isinstance(found, InputError):
            raise found
        return found


def sweep(
    configs: Sequence[DistillConfig],
    trajectories: TrajectoryStore | str | Path | Sequence[Trajectory] | None = None,
    dataset: Dataset | None = None,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    outs: Sequence[str | Path] | None = None,
    resume: bool = False,
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> list[DistilledDataset]:
    """Several runs side by side, such as seeds, step sizes or methods: their students are computed together.

    Each run ends in the bits that :func:`distill` gives it alone.  On a GPU, which one run leaves idle, several take hardly
    longer than one.

    Args:
        configs: one a run.  They may differ in all but what the shapes of a match, and the engine, depend on (:data:`SHARED`).
        outs: a run folder each.  Those that hold the same run, finished, are left as they are.
        resume: goes on with the runs in ``outs`` where they stopped, which may be at different iterations; begins those that
            have none.

    The other arguments and what is returned are as :func:`distill` has them.

    Raises:
        InputError: before anything is computed, if a configuration does not fit the data, the paths or the others.  A run that
            comes to an end with an error does not end the others; the error is raised when they are done.
    """
    if not configs or (outs is not None and len(outs) != len(configs)):
        raise InputError(f"outs: got {len(outs or ())} folders for {len(configs)} configurations; give one each")
    if outs is not None and len({Path(out).resolve() for out in outs}) != len(outs):
        raise InputError("outs: names a folder twice; give each run its own")
    folders = [None] * len(configs) if outs is None else list(outs)
    named = [
        replace(config, device=communicator.tell(lambda config=config, out=out: _device(config.engine.device, out)))
        for config, out in zip(configs, folders, strict=True)
    ]
    _check_together(named)
    first = communicator.lead_first(lambda: Job.find(named[0], trajectories, dataset, model, task, progress))
    jobs = [first.configured(config).selectable() for config in named]
    for job in jobs:
        job.check()
    with ExitStack() as held:
        begun = [
            _begun(
                job, out, held, progress=progress, communicator=communicator,
                resume=resume and communicator.tell(lambda out=out: out is not None and Run.holds_one(out)),
            )
            for job, out in zip(jobs, folders, strict=True)
        ]  # fmt: skip
        going = {i: run for i, run in enumerate(begun) if isinstance(run, _Going)}
        found = _go(Matches(jobs, communicator), going, None, progress)
    results = [found.get(i, one) for i, one in enumerate(begun)]
    failed = [i for i, result in enumerate(results) if isinstance(result, InputError)]
    if failed:
        name = f"run {failed[0]}" if outs is None else str(outs[failed[0]])
        raise InputError(f"{results[failed[0]]} ({name}, {len(failed)} of {len(configs)} runs ended so)")
    return [result for result in results if isinstance(result, DistilledDataset)]


SHARED = (
    "objective", "window", "real_batch", "balanced", "keep_prior", "ipc", "canvas", "labels", "syn_steps", "batch_syn",
    "students", "dsa", "jitter", "adjoint", "keep_mb", "micro_batch", "cuda_graphs", "device", "data_path",
)  # fmt: skip
"""The settings that runs side by side have in common."""


def _check_together(configs: Sequence[DistillConfig]) -> None:
    settings = [{**config.flat(), "lr_label": config.optimizer.lr_label > 0} for config in configs]
    for name in (*SHARED, "lr_label"):
        values = {repr(each[name]): None for each in settings}
        if len(values) > 1:
            which = "is 0 in some runs and not in others" if name == "lr_label" else f"differs ({', '.join(values)})"
            raise InputError(f"{name}: {which}; runs side by side have it in common, so start these apart")


def _device(asked: str, out: str | Path | None) -> str:
    """The device to compute on: ``asked``, where "auto" is that of the run in ``out``, if there is one."""
    if asked == AUTO and out is not None and Run.holds_one(out):
        asked = Run.open(out).config.get("device", AUTO)
    return taken(asked)


def _folder(out: str | Path, job: Job, *, resume: bool) -> Run:
    """The run in ``out``: a new one; the same one, finished; or, to ``resume``, one that was begun with the same settings."""
    described = job.described()
    if resume:
        run = Run.open(out)
        # Folders may have moved since, how many activations are kept changes no bit, and more iterations are gone on to.
        differing = run.differing(described, moved=("trajectories", "data_path", "keep_mb", "iterations"))
        if differing is not None:
            raise InputError(
                f"resume: {out} was begun with {differing}; a run goes on with its own settings, so begin a new one for others"
            )
        return run
    begun = Run.holds_one(out)
    run = Run.create(out, described)
    if begun and not _is_finished(run):
        raise InputError(
            f"out: {out} holds a run that is not finished; go on with it (resume=True, or mct-fast distill --resume {out}), "
            "or choose another folder"
        )
    return run


def _is_finished(run: Run) -> bool:
    return any(record.get("kind") == "final" for record in run.metrics())


def _finished(run: Run | None) -> DistilledDataset | None:
    """The result of ``run`` if it has come to its end."""
    return DistilledDataset.load(run.path / "distilled") if run is not None and _is_finished(run) else None


@dataclass(frozen=True)
class _Going:
    """A run on its way."""

    job: Job
    state: State
    selection: Selection
    skips: Skips

    def end(self, until: int | None) -> int:
        """The iteration to stop at."""
        last = self.job.config.optimizer.iterations
        return last if until is None else min(until, last)

    def advance(self, result: MatchResult, segment: Segment, seconds: float, *, last: bool) -> float:
        """One step along ``result``, noted; returns the loss."""
        state, selection = self.state, self.selection
        began = time.perf_counter()
        found = state.advance(result)
        seconds += time.perf_counter() - began
        state.seconds += seconds
        selection.note(
            kind="iter",
            iteration=state.iteration,
            loss=found["loss"],
            syn_lr=state.step_size.value,
            grad_norm=found["grad_norm"],
            start=segment.start,
            target=segment.target,
            seconds=seconds,
            skipped=state.skipped,
        )
        self.skips.look_at(state)
        # The last one precedes the last evaluation, which a run that is killed after it does again.
        if last or state.iteration % self.job.config.engine.checkpoint_every == 0:
            selection.run.save_checkpoint(*state.state_dict())
            if not selection.scheduled(state.iteration):  # then the evaluation shows them
                selection.show(state)
        return found["loss"]

    def finish(self) -> DistilledDataset:
        """Evaluates what is due where the iterations end, and at the end of the run what was found."""
        state, selection = self.state, self.selection
        if state.iteration == self.job.config.optimizer.iterations:
            self.skips.finish(state)
            if state.evaluated != state.iteration:  # which it is where the run was to end later
                selection.evaluate(state)
            result = selection.finish(state)
            selection.run.save_checkpoint(*state.state_dict())  # it knows of every record, so that none is lost unseen
            return result
        if selection.due(state):
            selection.evaluate(state)
            selection.run.save_checkpoint(*state.state_dict())
        return selection.best(state)


def _begun(
    job: Job,
    out: str | Path | None,
    held: ExitStack,
    *,
    resume: bool,
    progress: Progress,
    communicator: Communicator,
    watcher: Watcher = Unwatched(),
) -> _Going | DistilledDataset:
    """The run of ``job``, held until ``held`` ends, or its result where it is finished."""
    state, skips = initial_state(job), Skips(job.config, heard=communicator.rank == 0)
    if out is None:
        return _Going(job, state, Selection(job, Unkept(), progress, communicator, watcher), skips)
    run = communicator.lead(lambda: _folder(out, job, resume=resume))
    iterations = job.config.optimizer.iterations
    changed = communicator.tell(lambda: run is not None and run.config.get("iterations") != iterations)
    finished = None if changed else communicator.tell(lambda: _finished(run))
    if finished is not None:
        return finished
    communicator.lead(lambda: None if run is None else held.enter_context(run.held()))
    if changed:
        communicator.lead(lambda: None if run is None else change_iterations(run, job.config))
    # Of several processes the leader has the run; the others follow it from the same checkpoint.
    saved = communicator.tell(lambda: None if run is None else run.load_checkpoint())
    if saved is not None:
        with restoring("resume", out, "begin a new run"):
            state.load_state_dict(*saved)
    kept = run if run is not None else Unkept(elsewhere=True)
    return _Going(job, state, Selection(job, kept, progress, communicator, watcher), skips)


def _go(
    matches: Matches, runs: Mapping[int, _Going], until: int | None, progress: Progress
) -> dict[int, DistilledDataset | InputError]:
    """Iterates all ``runs`` at once up to ``until``, each to its own end; what each found, or the error that ended it."""
    ended: dict[int, DistilledDataset | InputError] = {}
    going = dict(runs)
    total, done = sum(run.end(until) for run in runs.values()), sum(run.state.iteration for run in runs.values())
    name = "distil" if len(runs) == 1 else f"distil, {len(runs)} runs"
    with progress.task(name, total, done=done) as shown:
        bar = Estimated(shown, progress, name, total - done, unit="iterations", device=matches.device)
        while going := {i: run for i, run in going.items() if i not in ended and run.state.iteration < run.end(until)}:
            for run in going.values():
                if run.selection.due(run.state):
                    run.selection.evaluate(run.state)
            began = time.perf_counter()
            found = matches.solve({i: run.state for i, run in going.items()})
            seconds = (time.perf_counter() - began) / len(going)
            for i, run in going.items():
                last = run.state.iteration + 1 == run.end(until)
                try:
                    loss = run.advance(*found[i], seconds, last=last)
                except InputError as error:
                    ended[i] = error
                else:
                    bar.advance(1, loss=loss, lr=run.state.step_size.value)
    for i in runs.keys() - ended.keys():
        try:
            ended[i] = runs[i].finish()
        except InputError as error:
            ended[i] = error
    return ended
