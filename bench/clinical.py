"""Clinical tables: networks trained on distilled rows, on as many random rows, and on all of them.

    python -m bench.clinical --work FOLDER --json bench/results/clinical.json --docs docs/clinical.md
    python -m bench.clinical --data-path DOWNLOADS --work FOLDER --json docs/results/clinical.json --docs docs/results.md

MTT (checkpoints, whole epochs), MCT (convex path) and Bézier paths distil along the same experts, on open sets that packages
ship; with ``--data-path`` on those that are downloaded, beside the unrolled objective, rows chosen by k-means and herding, and
gradient boosting on all rows.  A seed draws the validation split, the experts and everything after them; the test split is
always the same.  What is finished is kept in ``--work``, and the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, cast

from bench import document, tables
from bench.baselines import Measured, gradient_boosting
from bench.harness import Pieces, Report, command, work_folder
from mct_fast.coreset import coreset
from mct_fast.data import Dataset, TableSpec
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import EvalConfig, EvalResult, evaluate_random_real, evaluate_splits
from mct_fast.experts import ExpertConfig, expert_spec, load_for, train_experts
from mct_fast.experts.bezier import BezierConfig, fit_bezier
from mct_fast.models import build_model
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.run.progress import for_stream
from mct_fast.tasks import Task, format_metric, metric_label, task_named
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
    downloaded: bool = False
    """Read from the user's copy; the controls and the unrolled objective stand beside it."""
    experts: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its experts that differ."""
    distill: Mapping[str, Any] = field(default_factory=dict)
    """Settings of matching that differ; as those of its experts, chosen on validation data."""

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """What distils."""
        return {**ARMS, **(UNROLLED if self.downloaded else {})}


def _downloaded(name: str, ipc: tuple[int, ...], experts: Mapping[str, Any], distill: Mapping[str, Any]) -> Case:
    return Case(name, name, ipc, downloaded=True, experts={"num_experts": 10, **experts}, distill=distill)


CASES = (
    Case("breast_cancer", "breast_cancer", (10, 50)),
    Case("whas500", "whas500", (10, 50)),
    Case("whas500-complications", "whas500-complications", (10, 50)),
    Case("diabetes", "diabetes", (10, 50), TableSpec(missing_mask=True)),
    Case("breast_cancer, 1 % positive", "breast_cancer", (2,), TableSpec(subsample_positive=0.01)),
    _downloaded("physionet2012", (20, 100), {"pos_weight": 0.0}, {"keep_prior": True}),
    _downloaded("support2", (20, 100), {}, {"keep_prior": True}),
    _downloaded("covid-testing", (20, 100), {}, {"keep_prior": True}),
    _downloaded("myocardial-infarction", (4, 20), {"train_epochs": 30}, {"max_start_epoch": 20, "expert_epochs": 4}),
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
UNROLLED: Mapping[str, Mapping[str, Any]] = {
    "unrolled": {
        "objective": "unrolled", "balanced": True, "real_batch": 1024, "syn_steps": 20, "lr_img": 0.03, "cosine": True,
        "clip": 2.0,
    }
}  # fmt: skip
CHOSEN = {"k-means rows": "kmeans", "herding rows": "herding"}
"""Controls of real rows, chosen by the features of a network."""
ALL, RANDOM, BOOSTED = "all rows", "random rows", "gradient boosting"
ALL_ROWS = ((40, 1.0),)
"""Epochs and weight of the positives of networks on all rows; of several the best on validation is taken."""
ALL_DOWNLOADED = ((10, 1.0), (10, 0.0), (40, 1.0), (40, 0.0))


@dataclass(frozen=True)
class Arguments:
    """What to run."""

    only: tuple[str, ...] = ()
    """These cases alone, by title."""
    data_path: str | None = None
    """Folder of the sets that are downloaded, which take the place of the packaged ones."""
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
    data_path: str | None = None

    @property
    def config(self) -> ExpertConfig:
        seeds = {"seed": self.seed, "split_seed": self.seed}
        data = {"data_path": self.data_path} if self.case.downloaded else {}
        return replace(EXPERTS, dataset=self.case.dataset, table=self.case.table, **seeds, **data, **self.case.experts)

    @cached_property
    def dataset(self) -> Dataset:
        return load_for(self.config)

    @cached_property
    def store(self) -> TrajectoryStore:
        store = train_experts(self.config, self.folder / "experts", self.dataset, progress=for_stream())
        return fit_bezier(store, replace(BEZIER, seed=self.seed), self.dataset, progress=for_stream())

    @cached_property
    def network(self) -> dict[str, Any]:
        """The network of experts, students and evaluation."""
        return expert_spec(self.config, self.dataset)

    @property
    def evaluation(self) -> EvalConfig:
        return EvalConfig(
            num_eval=DISTILL.evaluation.num_eval,
            epoch_eval_train=DISTILL.evaluation.epoch_eval_train,
            batch_train=DISTILL.evaluation.batch_train,
            seed=self.seed,
        )

    def rows(self, ipcs: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The results, each kept when it is there: on all rows, and on ``ipcs`` rows a class."""
        pieces = Pieces(self.folder, f"{self.case.title}, seed {self.seed}")
        yield pieces.found("all", self._on_all_rows)
        if self.case.downloaded:
            yield pieces.found("boosted", self._boosted)
        for ipc in ipcs:
            for name, changes in self.case.arms.items():
                yield pieces.found(f"{ipc}-{name}", partial(self._distilled, name, changes, ipc))
            yield pieces.found(f"{ipc}-random", partial(self._random, ipc, self._step_sizes(ipc, pieces)))
            for name in CHOSEN if self.case.downloaded else ():
                yield pieces.found(f"{ipc}-{name}", partial(self._chosen, name, ipc, self._step_sizes(ipc, pieces)))

    def _where(self, name: str, rows: int, ipc: int | None) -> dict[str, Any]:
        return {"case": self.case.title, "seed": self.seed, "ipc": ipc, "trained_on": name, "rows": rows}

    def _row(
        self, name: str, rows: int, ipc: int | None, found: EvalResult, calibrated: Mapping[str, float]
    ) -> dict[str, Any]:
        """A result; of all metrics but the headline the means."""
        means = {metric: fmean(values) for metric, values in found.metrics.items()}
        return {**self._where(name, rows, ipc), **found.json(), "metrics": {**means, **calibrated}}

    def _distilled(self, name: str, changes: Mapping[str, Any], ipc: int) -> dict[str, Any]:
        own = {} if name in UNROLLED else self.case.distill
        given = {"ipc": ipc, "seed": self.seed, "iterations": self.iterations, "random_real": False}
        config = replace(DISTILL, **{**given, **changes, **own})
        out, how = self.folder / f"run-{ipc}-{name}", {}
        if name in UNROLLED:
            # Of several labels the rare ones weigh more; of two classes the real batch has as many of each.
            labels, plain = self.dataset.train.labels, task_named(self.dataset.task)
            task = plain.weighted(0.0, labels) if labels.is_floating_point() else plain
            how = {"model": build_model(self.network), "task": task}
            if labels.is_floating_point():
                config = replace(config, balanced=False)
        store = None if name in UNROLLED else self.store
        made = distill(config, store, self.dataset, out=out, resume=out.exists(), progress=for_stream(), **how)
        found, calibrated = self._best(made, [(None, self.evaluation, made.task)])
        best = {
            "iteration": made.provenance["iteration"],
            "nearest_real": _brief(made.provenance["nearest_real"]),
            "skipped": sum(
                record.get("loss") is None for record in Run.open(out).metrics() if record["kind"] == "iter"
            ),
        }
        return {**self._row(name, len(made), ipc, found, calibrated), **best}

    def _step_sizes(self, ipc: int, pieces: Pieces) -> tuple[float, ...]:
        """Of which controls may take the best: ours, and those that were learned with the distilled sets."""
        learned = [pieces.done()[f"{ipc}-{name}"]["lr"] for name in self.case.arms]
        return tuple(dict.fromkeys((*STEP_SIZES, *learned)))

    def _random(self, ipc: int, lrs: tuple[float, ...]) -> dict[str, Any]:
        """As many random rows, a fresh draw for each network."""
        task = Measured(task_named(self.dataset.task))
        found = evaluate_random_real(
            ipc,
            self.dataset,
            self.evaluation,
            model=self.network,
            task=cast(Task, task),
            split="test",
            lrs=lrs,
            progress=for_stream(),
        )
        calibrated = task.calibrated(self.evaluation.networks.num_eval, lrs.index(found.lr))
        return self._row(RANDOM, ipc * self.dataset.num_classes, ipc, found, calibrated)

    def _chosen(self, name: str, ipc: int, lrs: tuple[float, ...]) -> dict[str, Any]:
        """As many rows, chosen by the features of a network that was trained on all."""
        how = {"model": self.network, "epochs": 20, "lr": 0.1, "seed": self.seed}
        chosen = coreset(self.dataset, ipc, CHOSEN[name], **how, progress=for_stream())
        return self._row(
            name, len(chosen), ipc, *self._best(chosen, [(lr, self.evaluation, chosen.task) for lr in lrs])
        )

    def _on_all_rows(self) -> dict[str, Any]:
        """Networks trained on the whole training split."""
        dataset, train = self.dataset, self.dataset.train
        plain = task_named(dataset.task)
        whole = DistilledDataset(
            train.images, train.labels, STEP_SIZES[0], dataset.transform, dataset.class_names, {"task": plain.state()}
        )
        tried = [
            (lr, replace(self.evaluation, epoch_eval_train=epochs), plain.weighted(weight, train.labels))
            for lr in STEP_SIZES
            for epochs, weight in (ALL_DOWNLOADED if self.case.downloaded else ALL_ROWS)
        ]
        return self._row(ALL, len(train), None, *self._best(whole, tried))

    def _best(
        self, rows: DistilledDataset, tried: Sequence[tuple[float | None, EvalConfig, Task]]
    ) -> tuple[EvalResult, Mapping[str, float]]:
        """Networks on ``rows`` with that of the step sizes (None: its own), settings and tasks which does best on validation."""
        found = []
        for lr, how, task in tried:
            measured = Measured(task)
            given = {"model": self.network, "task": cast(Task, measured), "progress": for_stream()}
            results = evaluate_splits(rows, self.dataset, replace(how, lr_net=lr), **given)
            found.append((results, measured))
        results, measured = max(found, key=lambda one: one[0]["val"].mean)
        return results["test"], measured.calibrated(self.evaluation.networks.num_eval)

    def _boosted(self) -> dict[str, Any]:
        metrics, settings = gradient_boosting(self.dataset, self.seed)
        headline = task_named(self.dataset.task).headline
        own = {"split": "test", "metric": headline, "mean": metrics[headline], "metrics": metrics, "settings": settings}
        return {**self._where(BOOSTED, len(self.dataset.train), None), **own}


def _brief(nearest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in nearest.items() if key != "distances"}


# The tables

_CALIBRATED = "_calibrated"


def trained_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What has a column: what every table has, and what there are results of."""
    found = {RANDOM, *ARMS, ALL} | {row["trained_on"] for row in rows}
    return [name for name in (RANDOM, *CHOSEN, *ARMS, *UNROLLED, ALL, BOOSTED) if name in found]


def heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of :func:`summary`."""
    return ["set", "metric", "rows", *trained_on(rows), "seeds"]


def summary(rows: Sequence[Mapping[str, Any]], metric: str | None = None) -> list[list[str]]:
    """A line a case and number of rows: the headline's mean ± standard deviation over seeds of the mean of the networks.

    ``metric``: another one, of which the mean alone is shown.
    """
    lines = []
    for case, ipc in dict.fromkeys((row["case"], row["ipc"]) for row in rows if row["ipc"] is not None):
        own = [row for row in rows if row["case"] == case and row["ipc"] in (ipc, None)]
        named = metric or own[0]["metric"]
        label = metric_label(named.removesuffix(_CALIBRATED)) + (", calibrated" if named.endswith(_CALIBRATED) else "")
        cells = [case, label, str(next(row["rows"] for row in own if row["ipc"] == ipc))]
        for name in trained_on(rows):
            of = [row for row in own if row["trained_on"] == name]
            means = [row["mean"] if metric is None else row["metrics"][metric] for row in of]
            whole = format_metric(named, fmean(means), pstdev(means)) if means else "-"
            cells.append(whole if metric is None else whole.partition(" ±")[0])
        lines.append([*cells, str(len({row["seed"] for row in own if row["ipc"] == ipc}))])
    return lines


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of a page: the headlines, and where they are known the errors of probabilities."""
    parts = [document.table(heads(rows), summary(rows))]
    if all("brier_calibrated" in row.get("metrics", ()) for row in rows):
        parts += [document.table(heads(rows), summary(rows, metric)) for metric in ("brier_calibrated", "ece")]
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return command("clinical", Arguments, _run, words, __doc__)


def _run(arguments: Arguments, report: Report) -> int:
    rows: dict[str, dict[str, Any]] = {}
    with work_folder(arguments.work) as folder:
        benches = _benches(arguments, folder)
        # First all cases and seeds with few rows: what is done is worth most.
        for turn in range(max(len(bench.case.ipc) for bench in benches)):
            for bench in benches:
                for row in bench.rows(bench.case.ipc[turn : turn + 1]):
                    rows[f"{bench.folder}-{row['ipc']}-{row['trained_on']}"] = row
                _keep(arguments, report, list(rows.values()))
    every = list(rows.values())
    shown = tables.table("Networks trained on", heads(every), summary(every), "test split; mean ± deviation of seeds")
    report.show(shown)
    return 0


def _keep(arguments: Arguments, report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    order = {case.title: number for number, case in enumerate(CASES)}
    rows = sorted(rows, key=lambda row: (order[row["case"]], row["ipc"] or 0, row["seed"]))
    report.keep(rows)
    if arguments.docs is not None:
        document.replace_section(arguments.docs, SECTION, page(rows))


def _benches(arguments: Arguments, folder: Path) -> list[Bench]:
    path = arguments.data_path
    cases = [case for case in CASES if case.downloaded == (path is not None)]
    known = [case.title for case in cases]
    unknown = [title for title in arguments.only if title not in known]
    if unknown:
        raise InputError(f"only: no case {unknown[0]!r}; there are {', '.join(known)}")
    if arguments.seeds < 1:
        raise InputError(f"seeds: got {arguments.seeds}; give at least 1")
    data = None if path is None else str(Path(path).expanduser().absolute())
    return [
        Bench(case, seed, arguments.iterations, folder / f"{case.title}-{seed}", data)
        for seed in range(arguments.seeds)
        for case in cases
        if not arguments.only or case.title in arguments.only
    ]


if __name__ == "__main__":
    sys.exit(main())
