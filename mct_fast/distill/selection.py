"""Which images are best: evaluations along the way, and what is found of the chosen ones at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from mct_fast.distill.config import evaluation_of
from mct_fast.distill.job import Job
from mct_fast.distill.state import Best, State
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import nearest_real
from mct_fast.evaluate import baseline_lrs, evaluate_random_real, evaluate_splits
from mct_fast.run.distributed import Communicator, check_agreement
from mct_fast.run.files import sha256_tensor
from mct_fast.run.folder import Run, Unkept
from mct_fast.run.progress import Progress
from mct_fast.run.watch import Watcher


@dataclass(frozen=True)
class Selection:
    """Evaluates the images of a run and keeps the best, in the state and in the run's folder."""

    job: Job
    run: Run | Unkept
    progress: Progress
    communicator: Communicator
    watcher: Watcher

    def note(self, **record: Any) -> None:
        """Keeps a record of the run, and tells who watches."""
        self.run.log(**record)
        self.watcher.record(record)

    def show(self, state: State) -> None:
        """Shows the images of now to who watches."""
        if self.job.dataset.kind == "images":
            self.watcher.images(state.iteration, lambda: self._candidate(state).picture())

    def _candidate(self, state: State) -> DistilledDataset:
        return self.job.distilled(state.shown, state.labels.value, state.step_size.value, state.iteration)

    def best(self, state: State) -> DistilledDataset:
        """The best set so far."""
        best = state.best
        return self.job.distilled(best.images, best.labels, best.syn_lr, best.iteration)

    def due(self, state: State) -> bool:
        """Whether an evaluation is due and not done yet."""
        return self.scheduled(state.iteration) and state.iteration != state.evaluated

    def scheduled(self, iteration: int) -> bool:
        """Whether the images of ``iteration`` are evaluated wherever the run ends."""
        every = self.job.config.evaluation.eval_it
        return every > 0 and iteration % every == 0

    def evaluate(self, state: State) -> None:
        """Scores the images of now; the better ones are kept."""
        began = time.perf_counter()
        config = self.job.config.evaluation
        check_agreement(self.communicator, "images", sha256_tensor(state.images))
        images, labels, syn_lr = state.shown, state.labels.value, state.step_size.value
        candidate = self._candidate(state)
        if state.iteration == 0:
            self.run.keep_first(candidate)
        splits = tuple(dict.fromkeys((config.select_on, "test"))) if config.eval_test else (config.select_on,)
        results = self._scored(candidate, splits)
        result, state.evaluated = results[config.select_on], state.iteration
        if result.mean > state.best.score:
            # On the test split: what a last evaluation of these images would find again.
            test = results["test"].record() if "test" in results else None
            state.earlier = None if self.scheduled(state.iteration) else state.best
            state.best = Best(images.clone(), labels.clone(), syn_lr, result.mean, state.iteration, test)
        record = {"kind": "eval", "iteration": state.iteration, **result.json()}
        if config.eval_test:
            record["test"] = results["test"].json()
        self.note(**record, seconds=time.perf_counter() - began)
        self.show(state)
        self.run.keep(self.best(state))

    def finish(self, state: State) -> DistilledDataset:
        """The best set, kept with what it reaches on the test split beside random real images."""
        best, near = self.best(state), None
        if self.job.dataset.kind != "images":
            near = nearest_real(best.images, self.job.dataset)
            best = replace(best, provenance={**best.provenance, "nearest_real": near})
        if isinstance(self.run, Unkept) and not self.run.elsewhere:
            return best
        test = state.best.test or self._scored(best, ("test",))["test"].record()
        random = self._baseline(best)
        best = replace(
            best,
            provenance={**best.provenance, "test": {k: v for k, v in test.items() if k not in ("model", "confusion")}},
        )
        self.run.keep(best)
        self.note(
            kind="final",
            model=test["model"],
            iteration=state.best.iteration,
            select_on=self.job.config.evaluation.select_on,
            num_eval=self.job.config.evaluation.num_eval,
            test_mean=test["mean"],
            test_std=test["std"],
            test_scores=test["scores"],
            metric=test["metric"],
            test_metrics=test["metrics"],
            **({"test_confusion": test["confusion"]} if "confusion" in test else {}),
            labels="soft" if best.labels.is_floating_point() else "hard",
            distill_seconds=state.seconds,
            skipped=state.skipped,
            **random,
            **({} if near is None else {"nearest_real": {k: v for k, v in near.items() if k != "distances"}}),
        )
        return best

    def _scored(self, candidate: DistilledDataset, splits: tuple[str, ...]) -> dict[str, Any]:
        return evaluate_splits(
            candidate, self.job.dataset, evaluation_of(self.job.config), splits=splits, **self._common()
        )

    def _baseline(self, best: DistilledDataset) -> dict[str, Any]:
        config = self.job.config
        if not config.evaluation.random_real:
            return {}
        found = evaluate_random_real(
            config.images.ipc, self.job.dataset, evaluation_of(config), split="test", lrs=baseline_lrs(best), **self._common()
        )  # fmt: skip
        return found.baseline()

    def _common(self) -> dict[str, Any]:
        return {
            "model": self.job.network,
            "task": self.job.task,
            "progress": self.progress,
            "communicator": self.communicator,
        }
