"""Does a study piece by piece. Every piece is whole on disk or done again, so a study may be killed anywhere.

::

    OUT/study.json              the plan; another plan in the same folder is refused
    OUT/experts/                trajectory store with every checkpoint
    OUT/runs/ARM-SEED/          a run of mct_fast.distill
    OUT/pieces/NAME.json        when, where and at which commit a piece was done, and what it found
    OUT/results.json            everything that tables and plots are made of
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bench.machine import circumstances, code
from bench.study.collect import collect, pieces_of
from bench.study.paths import path_scores, storage
from bench.study.plans import STEP_SIZES, Arm, Study
from mct_fast.data import Dataset
from mct_fast.distill import distill
from mct_fast.distill.config import evaluation_of
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import baseline_lrs, evaluate, evaluate_random_real
from mct_fast.experts import load_for, train_experts
from mct_fast.models import build_model
from mct_fast.run.errors import InputError
from mct_fast.run.files import read_json, write_json
from mct_fast.run.folder import Run
from mct_fast.run.progress import Progress
from mct_fast.run.seeds import derive_seed
from mct_fast.trajectory import Trajectory, TrajectoryStore


@dataclass(frozen=True)
class Piece:
    """A part of a study that leaves one file when it is done."""

    name: str
    work: Callable[[], Mapping[str, Any]]
    """Does it and returns what it found, JSON-able."""


class Runner:
    """One study in one folder."""

    def __init__(
        self,
        study: Study,
        out: Path,
        data_path: str | None,
        progress: Progress,
        say: Callable[[str], None],
        seeds: Sequence[int] | None = None,
    ) -> None:
        """``seeds``: which of the study's to do, so that several processes can share it; None: all."""
        unknown = sorted({*(seeds or ())} - {*study.seeds})
        if unknown:
            raise InputError(
                f"seeds: {study.name} has no seed {unknown[0]}; choose of {', '.join(map(str, study.seeds))}"
            )
        # Absolute: what the store notes must not depend on where the command was given.
        path = None if data_path is None else str(Path(data_path).expanduser().absolute())
        self.study = replace(study, experts=replace(study.experts, data_path=path))
        self.out, self.data_path, self._progress, self._say = out, path, progress, say
        self._seeds = study.seeds if seeds is None else tuple(seeds)
        self._paths: dict[str, list[Trajectory]] = {}
        self._code = code()  # now, when it was loaded: another commit may be checked out while a study runs

    def run(self) -> dict[str, Any]:
        """Does what is left to do and returns the results.

        Raises:
            InputError: the folder holds another study, or the data cannot be read.
        """
        self._claim()
        kept = pieces_of(self.study, self.out, self._say)
        for piece in self.pieces():
            if not kept.file(piece.name).exists():
                kept.found(piece.name, partial(self._timed, piece))
                self._collect()
        return self._collect()

    def _timed(self, piece: Piece) -> Mapping[str, Any]:
        """What a piece found, with when, where and at which commit."""
        where, began = {**circumstances(), **self._code}, time.perf_counter()
        found = dict(piece.work())
        return {**where, "seconds": time.perf_counter() - began, "found": found}

    def pieces(self) -> Iterator[Piece]:
        """In the order in which partial results are worth most."""
        yield Piece("experts", lambda: self._experts("experts", {}))
        yield Piece("storage", lambda: storage(self.store))
        for arm in self.study.arms:
            if arm.experts:
                yield Piece(arm.store, partial(self._experts, arm.store, arm.experts))
        for seed in self._seeds:
            iterations = self.study.distill.optimizer.iterations
            for stop in [*range(self.study.piece, iterations, self.study.piece), iterations]:
                for arm in self.study.arms:
                    yield self._distilling(arm, seed, stop)
            if seed == self.study.seeds[0]:
                yield Piece("random", self._random)
                yield Piece("paths", lambda: path_scores(self.store, self.dataset))
                yield Piece("step-sizes", self._step_sizes)

    @cached_property
    def store(self) -> TrajectoryStore:
        return TrajectoryStore.open(self.out / "experts")

    @cached_property
    def dataset(self) -> Dataset:
        return load_for(self.study.experts, self._progress)

    def _claim(self) -> None:
        plan = _plan(self.study)
        file = self.out / "study.json"
        if not file.exists():
            write_json(file, plan)
            return
        noted = read_json(file)
        differing = sorted(key for key in {*plan, *noted} if plan.get(key) != noted.get(key))
        if differing:
            raise InputError(f"out: {self.out} holds a study with other {differing[0]}; choose another folder")

    def _experts(self, folder: str, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        config = replace(self.study.experts, **changes)
        store = train_experts(config, self.out / folder, self.dataset, progress=self._progress)
        infos = [store.info(i) for i in range(len(store))]
        return {"accuracies": [i["accuracy"] for i in infos], "seconds_an_expert": [i["seconds"] for i in infos]}

    def _distilling(self, arm: Arm, seed: int, stop: int) -> Piece:
        def work() -> Mapping[str, Any]:
            config = arm.config(self.study.distill, seed, None)
            out = self.out / "runs" / f"{arm.name}-{seed}"
            model = build_model(self.store.manifest["model"])
            paths = self._paths_of(arm)
            distill(
                config, paths, self.dataset, model=model, out=out, resume=Run.holds_one(out), until=stop, progress=self._progress
            )  # fmt: skip
            iterations = [r for r in Run.open(out).metrics() if r["kind"] == "iter"]
            return {"arm": arm.name, "seed": seed, "iterations": len(iterations)}

        return Piece(f"{arm.name}-{seed}-{stop:05d}", work)

    def _random(self) -> Mapping[str, Any]:
        """Networks trained on random real images: the baseline of all arms, with the step sizes of the first."""
        config, first = self.study.distill, self.study.arms[0]
        images = DistilledDataset.load(self.out / "runs" / f"{first.name}-{self.study.seeds[0]}" / "distilled")
        evaluation = evaluation_of(replace(config, seed=self.study.seeds[0]))
        model = self.store.manifest["model"]
        return evaluate_random_real(
            config.images.ipc, self.dataset, evaluation, model=model, lrs=baseline_lrs(images), progress=self._progress
        ).record()

    def _step_sizes(self) -> Mapping[str, Any]:
        """What the step size of evaluation does to the first seed's images: networks of their own, scored on the test split."""
        seed, found = self.study.seeds[0], {}
        evaluation = evaluation_of(replace(self.study.distill, seed=derive_seed(self.study.seeds[0], "step-sizes")))
        for arm in self.study.step_sizes_of:
            images = DistilledDataset.load(self.out / "runs" / f"{arm}-{seed}" / "distilled")
            network = self.store.manifest["model"]
            found[arm] = [
                evaluate(
                    images,
                    self.dataset,
                    replace(evaluation, lr_net=factor * images.syn_lr),
                    model=network,
                    progress=self._progress,
                ).record()
                for factor in STEP_SIZES
            ]
        return {"factors": list(STEP_SIZES), "arms": found}

    def _paths_of(self, arm: Arm) -> list[Trajectory]:
        if arm.name not in self._paths:
            self._paths[arm.name] = arm.path.paths(TrajectoryStore.open(self.out / arm.store))
        return self._paths[arm.name]

    def _collect(self) -> dict[str, Any]:
        results = collect(self.study, self.out)
        file = self.out / "results.json"
        if not file.exists() or read_json(file) != results:
            write_json(file, results)
        return results


def _plan(study: Study) -> dict[str, Any]:
    """What makes a study this one, as JSON will give it back; where the data lie is no part of it."""
    experts = {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in study.experts.flat().items()
        if name not in ("data_path", "parallel")
    }
    arms = {
        arm.name: {"path": {"kind": type(arm.path).__name__, **asdict(arm.path)}, "changes": dict(arm.changes)}
        | ({"experts": dict(arm.experts)} if arm.experts else {})
        for arm in study.arms
    }
    plan = {
        "name": study.name,
        "experts": experts,
        "distill": study.distill.flat(),
        "arms": arms,
        "seeds": list(study.seeds),
        "piece": study.piece,
    }
    return json.loads(json.dumps(plan))  # tuples become lists
