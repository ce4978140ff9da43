"""Stage 3: the outer loop.  Match a student trained on synthetic images to an expert's path, and improve the images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from mct_fast.data import Dataset
from mct_fast.distill.config import check_config
from mct_fast.distill.initial import initial_state
from mct_fast.distill.job import Job
from mct_fast.distill.matches import Matches
from mct_fast.distill.selection import Selection
from mct_fast.distill.skips import Skips
from mct_fast.distill.state import State
from mct_fast.distilled import DistilledDataset
from mct_fast.ops.device import taken
from mct_fast.run.distributed import Communicator, Single
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run, Unkept
from mct_fast.run.progress import Progress, quiet
from mct_fast.run.settings import AUTO
from mct_fast.settings import DistillConfig
from mct_fast.tasks import Task
from mct_fast.trajectory import Trajectory, TrajectoryStore


def distill(
    config: DistillConfig,
    trajectories: TrajectoryStore | str | Path | Sequence[Trajectory],
    dataset: Dataset | None = None,
    *,
    model: nn.Module | None = None,
    task: Task | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    until: int | None = None,
    progress: Progress = quiet(),
    communicator: Communicator = Single(),
) -> DistilledDataset:
    """Distils ``dataset`` into ``config.images.ipc`` images a class and returns the best set found.

    Args:
        config: the settings.
        trajectories: a store (its manifest names model and dataset), or paths together with ``model`` and ``dataset``.
        dataset: the data; by default those that the store names.
        model: the network of the paths, where they are given as a list.
        task: what the labels say and which loss students have; by default that of the store's experts, or of the dataset.
        out: a run folder to write (config, metrics, checkpoints, images).  A folder that holds a run is refused, unless
            it is this one and finished: then its result is returned.
        resume: goes on with the run in ``out``; it reaches the same bits as an uninterrupted one.
        until: stops after so many iterations, evaluated if an evaluation is due there, and returns the best set so far.
        progress: shows how far it is.
        communicator: processes over which students and evaluation networks are split.  All call this with the same
            arguments and get the same set, that of one process.

    Raises:
        InputError: before anything is computed, if the configuration does not fit the data or the paths.
    """
    config = replace(config, device=communicator.tell(lambda: _device(config.engine.device, out)))
    job = communicator.lead_first(lambda: Job.find(config, trajectories, dataset, model, task, progress))
    job = job.selectable()
    check_config(job.config, job.dataset, job.paths[0], job.task)
    matches, state = Matches(job, communicator), initial_state(job)
    end = config.optimizer.iterations if until is None else until
    if out is None:
        return _run(job, state, matches, Selection(job, Unkept(), progress, communicator), end)
    run = communicator.lead(lambda: _begin(out, job, resume=resume))
    finished = communicator.tell(lambda: _finished(run))
    if finished is not None:
        return finished
    with ExitStack() as held:
        communicator.lead(lambda: None if run is None else held.enter_context(run.held()))
        # Of several processes the leader has the run; the others follow it from the same checkpoint.
        saved = communicator.tell(lambda: None if run is None else run.load_checkpoint())
        if saved is not None:
            _restore(state, *saved, out)
        kept = run if run is not None else Unkept(elsewhere=True)
        return _run(job, state, matches, Selection(job, kept, progress, communicator), end)


def _device(asked: str, out: str | Path | None) -> str:
    """The device to compute on: ``asked``, where "auto" is that of the run in ``out``, if there is one."""
    if asked == AUTO and out is not None and Run.holds_one(out):
        asked = Run.open(out).config.get("device", AUTO)
    return taken(asked)


def _begin(out: str | Path, job: Job, *, resume: bool) -> Run:
    """The run in ``out``: a new one; the same one, finished; or, to ``resume``, one that was begun with the same settings."""
    described = job.described()
    if resume:
        run = Run.open(out)
        # Folders may have moved since, and how many activations are kept changes no bit.
        differing = run.differing(described, moved=("trajectories", "data_path", "keep_mb"))
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


def _restore(state: State, tensors: Any, numbers: Any, out: str | Path) -> None:
    try:
        state.load_state_dict(tensors, numbers)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"resume: the checkpoint in {out} is none of this release ({reason}); go on with the release that wrote it, "
            "or begin a new run"
        ) from error


def _run(job: Job, state: State, matches: Matches, selection: Selection, until: int) -> DistilledDataset:
    """Iterates up to ``until``, evaluates what is due, and at the end what was found."""
    config, run = job.config, selection.run
    last = config.optimizer.iterations
    end, skips = min(until, last), Skips(config, heard=selection.communicator.rank == 0)
    with selection.progress.task("distil", end, done=state.iteration) as bar:
        while state.iteration < end:
            if selection.due(state):
                selection.evaluate(state)
            loss = _iterate(state, matches, run)
            skips.look_at(state)
            bar.advance(1, loss=loss, lr=state.step_size.value)
            # The last one precedes the last evaluation, which a run that is killed after it does again.
            if state.iteration % config.engine.checkpoint_every == 0 or state.iteration == end:
                run.save_checkpoint(*state.state_dict())
    if end == last:
        skips.finish(state)
        selection.evaluate(state)
        result = selection.finish(state)
        run.save_checkpoint(*state.state_dict())  # it knows of every record, so that none is lost unseen
        return result
    if selection.due(state):
        selection.evaluate(state)
        run.save_checkpoint(*state.state_dict())
    return selection.best(state)


def _iterate(state: State, matches: Matches, run: Run | Unkept) -> float:
    """One match and one step; returns the loss."""
    began = time.perf_counter()
    result, segment = matches.solve(state)
    found = state.advance(result)
    spent = time.perf_counter() - began
    state.seconds += spent
    run.log(
        kind="iter",
        iteration=state.iteration,
        loss=found["loss"],
        syn_lr=state.step_size.value,
        grad_norm=found["grad_norm"],
        start=segment.start,
        target=segment.target,
        seconds=spent,
        skipped=state.skipped,
    )
    return found["loss"]
