"""Clinical tables: networks trained on distilled rows, on as many random rows, and on all of them.

    python -m bench.clinical --work FOLDER --json bench/results/clinical.json --docs docs/clinical.md

MTT (checkpoints, whole epochs), MCT (convex path) and Bézier paths distil along the same experts, on open sets that packages
ship.  A seed draws the validation split, the experts and everything after them; the test split is always the same.  What is
finished is kept in ``--work``, and the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from bench import document, tables
from bench.harness import Pieces, Report, command, work_folder
from mct_fast.data import Dataset, TableSpec
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, EvalResult, evaluate_random_real, evaluate_splits
from mct_fast.experts import ExpertConfig, expert_spec, expert_task, load_for, train_experts
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.run.errors import InputError
from mct_fast.run.progress import for_stream
from mct_fast.tasks import format_metric, metric_label
from mct_fast.trajectory import TrajectoryStore

SECTION = "clinical table"
"""The place of the table in the page."""


@dataclass(frozen=True)
class Case:
    """A dataset and how many rows a class (or times the labels) it is distilled into."""

    title: str
    dataset: str
    ipc: tuple[int, ...]
    table: TableSpec = TableSpec()


CASES = (
    Case("breast_cancer", "breast_cancer", (10, 50)),
    Case("whas500", "whas500", (10, 50)),
    Case("whas500-complications", "whas500-complications", (10, 50)),
    Case("diabetes", "diabetes", (10, 50), TableSpec(missing_mask=True)),
    Case("breast_cancer, 1 % positive", "breast_cancer", (2,), TableSpec(subsample_positive=0.01)),
)

EXPERTS = ExpertConfig(
    model="MLP", depth=1, width=64, num_experts=20, train_epochs=20, batch_train=64, lr_teacher=0.1, val_fraction=0.2,
    keep_checkpoints=True, encoding="float32", parallel=20, stratify=True,
)  # fmt: skip
DISTILL = DistillConfig(
    syn_steps=20, expert_epochs=2.0, max_start_epoch=5.0, img_optimizer="adam", lr_img=0.05, lr_teacher=0.1, lr_lr=1e-3,
    iterations=300, eval_it=50, num_eval=5, epoch_eval_train=300, batch_train=64,
)  # fmt: skip
BEZIER = BezierConfig(epochs=20, batch_train=64, lr=0.1, parallel=20)
STEP_SIZES = (0.01, 0.1)
"""Of random rows and of all rows the better on validation is taken; random rows may also have the distilled set's."""

ARMS: Mapping[str, Mapping[str, Any]] = {
    "MTT": {"trajectory": "discrete", "sampling": "integer", "expert_epochs": 2, "max_start_epoch": 5},
    "MCT": {"trajectory": "convex"},
    "Bézier": {"trajectory": "bezier"},
}
ALL, RANDOM = "all rows", "random rows"


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    only: tuple[str, ...] = ()
    """These cases alone, by title."""
    seeds: int = 5
    """Seeds of each."""
    iterations: int = DISTILL.optimizer.iterations
    """Iterations of each distillation."""
    work: str | None = None
    """Folder of what is finished; None takes a temporary one."""
    threads: int | None = None
    """PyTorch's threads; None leaves its choice."""
    json: str | None = None
    """Where to write the result."""
    docs: str | None = None
    """A page with the comments of the section "clinical table", between which the table is written."""


@dataclass(frozen=True)
class Bench:
    """One case with one seed, in a folder of its own."""

    case: Case
    seed: int
    iterations: int
    folder: Path

    @property
    def config(self) -> ExpertConfig:
        seeds = {"seed": self.seed, "split_seed": self.seed}
        return replace(EXPERTS, dataset=self.case.dataset, table=self.case.table, **seeds)

    @cached_property
    def dataset(self) -> Dataset:
        return load_for(self.config)

    @cached_property
    def store(self) -> TrajectoryStore:
        store = train_experts(self.config, self.folder / "experts", self.dataset, progress=for_stream())
        return fit_bezier(store, replace(BEZIER, seed=self.seed), self.dataset, progress=for_stream())

    @property
    def evaluation(self) -> EvalConfig:
        return EvalConfig(
            num_eval=DISTILL.evaluation.num_eval,
            epoch_eval_train=DISTILL.evaluation.epoch_eval_train,
            batch_train=DISTILL.evaluation.batch_train,
            seed=self.seed,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The results, each kept when it is there."""
        pieces = Pieces(self.folder, f"{self.case.title}, seed {self.seed}")
        yield pieces.found("all", lambda: self._row(ALL, len(self.dataset.train), None, self._on_all_rows()))
        for ipc in self.case.ipc:
            for name, changes in ARMS.items():
                yield pieces.found(f"{ipc}-{name}", partial(self._distilled, name, changes, ipc))
            yield pieces.found(f"{ipc}-random", partial(self._random, ipc, pieces))

    def _row(self, name: str, rows: int, ipc: int | None, found: EvalResult) -> dict[str, Any]:
        return {**self._where(name, rows, ipc), **found.json()}

    def _where(self, name: str, rows: int, ipc: int | None) -> dict[str, Any]:
        return {"case": self.case.title, "seed": self.seed, "ipc": ipc, "trained_on": name, "rows": rows}

    def _distilled(self, name: str, changes: Mapping[str, Any], ipc: int) -> dict[str, Any]:
        config = replace(DISTILL, ipc=ipc, seed=self.seed, iterations=self.iterations, **changes)
        out = self.folder / f"run-{ipc}-{name}"
        made = distill(config, self.store, self.dataset, out=out, resume=out.exists(), progress=for_stream())
        found = made.provenance
        best = {"iteration": found["iteration"], "nearest_real": _brief(found["nearest_real"])}
        return {**self._where(name, len(made), ipc), **found["test"], **best}

    def _random(self, ipc: int, pieces: Pieces) -> dict[str, Any]:
        """As many random rows, a fresh draw for each network."""
        learned = [pieces.done()[f"{ipc}-{name}"]["lr"] for name in ARMS]
        found = evaluate_random_real(
            ipc,
            self.dataset,
            self.evaluation,
            model=expert_spec(self.config, self.dataset),
            split="test",
            lrs=tuple(dict.fromkeys((*STEP_SIZES, *learned))),
            progress=for_stream(),
        )
        return self._row(RANDOM, ipc * self.dataset.num_classes, ipc, found)

    def _on_all_rows(self) -> EvalResult:
        """Networks trained on the whole training split."""
        dataset, train = self.dataset, self.dataset.train
        task, spec = expert_task(self.config, dataset), expert_spec(self.config, dataset)
        whole = DistilledDataset(train.images, train.labels, STEP_SIZES[0], dataset.transform, dataset.class_names)
        config = replace(self.evaluation, epoch_eval_train=2 * EXPERTS.training.train_epochs)
        tried = [
            evaluate_splits(whole, dataset, replace(config, lr_net=lr), model=spec, task=task, progress=for_stream())
            for lr in STEP_SIZES
        ]
        return max(tried, key=lambda found: found["val"].mean)["test"]


def _brief(nearest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in nearest.items() if key != "distances"}


# The table


def summary(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line a case and number of rows: the headline's mean ± standard deviation over seeds of the mean of the networks."""
    lines = []
    for case, ipc in dict.fromkeys((row["case"], row["ipc"]) for row in rows if row["ipc"] is not None):
        own = [row for row in rows if row["case"] == case and row["ipc"] in (ipc, None)]
        metric = own[0]["metric"]
        cells = [case, metric_label(metric), str(next(row["rows"] for row in own if row["ipc"] == ipc))]
        for name in (RANDOM, *ARMS, ALL):
            means = [row["mean"] for row in own if row["trained_on"] == name]
            cells.append(format_metric(metric, fmean(means), pstdev(means)) if means else "-")
        lines.append([*cells, str(len({row["seed"] for row in own}))])
    return lines


COLUMNS = ("set", "metric", "rows", RANDOM, *ARMS, ALL, "seeds")


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command("clinical", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    with work_folder(arguments.work) as folder:
        rows = [row for bench in _benches(arguments, folder) for row in bench.rows()]
    lines = summary(rows)
    report.show(tables.table("Networks trained on", COLUMNS, lines, "test split; mean ± standard deviation of seeds"))
    report.keep(rows)
    if arguments.docs is not None:
        document.replace_section(arguments.docs, SECTION, document.table(COLUMNS, lines))
    return 0


def _benches(arguments: Arguments, folder: Path) -> list[Bench]:
    known = [case.title for case in CASES]
    unknown = [title for title in arguments.only if title not in known]
    if unknown:
        raise InputError(f"only: no case {unknown[0]!r}; there are {', '.join(known)}")
    if arguments.seeds < 1:
        raise InputError(f"seeds: got {arguments.seeds}; give at least 1")
    return [
        Bench(case, seed, arguments.iterations, folder / f"{case.title}-{seed}")
        for case in CASES
        if not arguments.only or case.title in arguments.only
        for seed in range(arguments.seeds)
    ]


if __name__ == "__main__":
    sys.exit(main())
