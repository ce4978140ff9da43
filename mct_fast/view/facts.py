"""What a run's folder says, read once and put into words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mct_fast.coreset import coreset_text
from mct_fast.data import TableTransform
from mct_fast.distilled import DistilledDataset
from mct_fast.evaluate import baseline_text
from mct_fast.presets import presets
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.run.progress import duration
from mct_fast.settings import DistillConfig
from mct_fast.tasks import format_metric, metric_label
from mct_fast.trajectory import TrajectoryStore
from mct_fast.view.figures import metric_of

DISTILLED, FIRST = "distilled", "first"
_MTT_CHECKPOINTS = 51  # what MTT's buffer.py keeps of an expert: 50 epochs and the beginning

Pairs = list[tuple[str, Any]]


@dataclass(frozen=True)
class Facts:
    """A run, read once."""

    run: Run
    records: list[dict[str, Any]]
    distilled: DistilledDataset | None
    first: DistilledDataset | None
    store: TrajectoryStore | None
    evaluations: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Run) -> Facts:
        distilled, first = (
            DistilledDataset.load(folder) if folder.is_dir() else None
            for folder in (run.path / DISTILLED, run.path / FIRST)
        )
        return cls(run, run.metrics(), distilled, first, _store(run), run.evaluations())

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of ``kind``: iter, eval or final."""
        return [record for record in self.records if record.get("kind") == kind]

    @property
    def name(self) -> str:
        """The dataset's name."""
        return str(self.run.config.get("dataset", "a dataset"))

    @property
    def noun(self) -> str:
        """What the set holds, in the plural."""
        is_table = self.distilled is not None and isinstance(self.distilled.transform, TableTransform)
        return "rows" if is_table else "images"

    @property
    def title(self) -> str:
        """The run in a line."""
        ipc = self.run.config.get("ipc", "?")
        return f"{self.name}, {ipc} {self.noun[: -1 if ipc == 1 else None]} a class"

    @cached_property
    def metric(self) -> str:
        """What the networks were scored by."""
        return metric_of([*self.of_kind("eval"), *self.of_kind("final")])

    @cached_property
    def final(self) -> dict[str, Any] | None:
        """The record of the end."""
        return next(iter(self.of_kind("final")[-1:]), None)

    @cached_property
    def experts_score(self) -> tuple[float, float, int] | None:
        """Mean and standard deviation of what the experts reached, which saw all data, and their number."""
        noted = [] if self.store is None else [self.store.info(i).get(self.metric) for i in range(len(self.store))]
        known = [float(value) for value in noted if isinstance(value, (int, float))]
        if not known:
            return None
        mean = fmean(known)
        return mean, fmean((value - mean) ** 2 for value in known) ** 0.5, len(known)


def _store(run: Run) -> TrajectoryStore | None:
    place = run.config.get("trajectories")
    if not isinstance(place, str):
        return None
    try:
        return TrajectoryStore.open(place)
    except InputError:
        return None  # moved or deleted since; the run stands without it


def compared(facts: Facts) -> list[tuple[str, str, str]]:
    """What networks reach by what they are trained on: the set, as many random or chosen real ones, all data."""
    final, rows = facts.final, []
    if final is not None:
        score = format_metric(facts.metric, final["test_mean"], final["test_std"])
        rows.append((f"{_count(facts)} distilled {facts.noun}", score, f"{final['num_eval']} networks, test split"))
        random = baseline_text(final)
        if random is not None:
            rows.append((f"{_count(facts)} random real {facts.noun}", random, "as many networks, test split"))
        for record in facts.evaluations:
            if (record["model"], record["split"]) == (final["model"], "test"):
                networks = f"{len(record['scores'])} networks, test split, by mct-fast evaluate"
                rows += [
                    (f"{_count(facts)} {_chosen(facts, method)}", coreset_text(record, method) or "–", networks)
                    for method in record.get("coresets") or {}
                ]
    if facts.experts_score is not None:
        mean, std, count = facts.experts_score
        where = f"{count} experts, {facts.store.info(0).get('split', 'held-out') if facts.store else ''} split, noted in training"
        rows.append((f"all training {facts.noun}", format_metric(facts.metric, mean, std), where))
    return rows if len(rows) > 1 else []


def _count(facts: Facts) -> str:
    return "" if facts.distilled is None else str(len(facts.distilled))


def differing(config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The preset that is nearest to the run's settings (None: the defaults), and the settings that differ from it."""
    known = DistillConfig().flat()
    mine = {name: _plain(config[name]) for name in known if name in config}
    candidates: list[tuple[str | None, DistillConfig]] = [(None, DistillConfig())]
    candidates += [(p.name, p.distill) for p in presets() if p.experts.data.dataset == config.get("dataset")]
    own = {"data_path", "device"}  # of the place, not of the method
    found: list[tuple[str | None, dict[str, Any]]] = []
    for name, candidate in candidates:
        flat = candidate.flat()
        found.append((name, {k: v for k, v in mine.items() if v != _plain(flat[k]) and k not in own}))
    return min(found, key=lambda pair: len(pair[1]))


def command(facts: Facts) -> str | None:
    """The command that repeats the run; None where it was made in Python, of paths in memory."""
    config = facts.run.config
    made_of = _made_of(config)
    if made_of is None:
        return None
    preset, changed = differing(config)
    words = ["mct-fast distill", *made_of, f"--out {facts.run.path.name}-again"]
    words += [] if preset is None else [f"--preset {preset}"]
    for name, value in changed.items():
        flag = f"--{name}" if value else f"--no_{name}"
        words.append(flag if isinstance(value, bool) else f"--{name} {value}")
    return " ".join(words)


def _made_of(config: Mapping[str, Any]) -> list[str] | None:
    """The options that name what a run is made of: its store, or its data and network."""
    source, spec = config.get("source"), config.get("model") or {}
    if isinstance(config.get("trajectories"), str):
        return [f"--trajectories {config['trajectories']}"]
    if source is None or set(spec) == {"name"}:
        return None
    named = {"dataset": source["name"], "model": spec["name"], "depth": spec.get("depth"), "width": spec.get("width")}
    words = [f"--{name} {value}" for name, value in named.items() if value is not None]
    words += ["--zca"] if source.get("zca") else []
    return words + ([f"--image_size {source['image_size']}"] if source.get("image_size") else [])


def all_settings(config: Mapping[str, Any]) -> list[tuple[str, Pairs]]:
    """Every setting of a run under its group, and what else makes it the same."""
    default, groups = DistillConfig(), []
    known: set[str] = set()
    for group in fields(default):
        names = [field.name for field in fields(getattr(default, group.name)) if field.name in config]
        known |= {*names}
        groups.append((group.name, [(name, config[name]) for name in names]))
    groups.append(("what it is made of", [(name, config[name]) for name in sorted(config) if name not in known]))
    return [group for group in groups if group[1]]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def storage(facts: Facts) -> tuple[list[tuple[str, ...]], str] | None:
    """What the experts take beside MTT's files, in rows, and a note."""
    store = facts.store
    if store is None or len(store) == 0:
        return None
    parameters = sum(shape.numel() for shape in store.shapes)
    experts, mtt = len(store), 4 * parameters * _MTT_CHECKPOINTS * len(store)
    ours = ("this store", str(experts), size_text(store.nbytes), f"{store.nbytes / (parameters * experts):.2f}", "1")
    theirs = (
        f"MTT, {_MTT_CHECKPOINTS} checkpoints in float32 (computed)",
        str(experts),
        size_text(mtt),
        str(4 * _MTT_CHECKPOINTS),
        f"{mtt / store.nbytes:.1f}",
    )
    return [ours, theirs], f"{parameters:,} parameters in {len(store.shapes)} tensors; {store.path}"


def times(facts: Facts) -> Pairs:
    """What was spent on experts, iterations and evaluations."""
    rows: Pairs = []
    store, iterations, evaluations = facts.store, facts.of_kind("iter"), facts.of_kind("eval")
    if store is not None:
        known = [s for s in (store.info(i).get("seconds") for i in range(len(store))) if s is not None]
        if known:
            rows.append((f"training {len(known)} experts", f"{duration(sum(known))}, {duration(fmean(known))} each"))
    if iterations:
        spent = [r["seconds"] for r in iterations]
        rows.append((f"{len(spent)} iterations", f"{duration(sum(spent))}, {duration(median(spent))} each (median)"))
    if evaluations:
        spent = [r["seconds"] for r in evaluations]
        rows.append((f"{len(spent)} evaluations", f"{duration(sum(spent))}, {duration(fmean(spent))} each"))
    return rows


def provenance(facts: Facts) -> Pairs:
    """Where the set and its experts come from, and what it was computed with."""
    rows: Pairs = [("run", str(facts.run.path.resolve()))]
    if facts.distilled is not None:
        rows += sorted((k, v) for k, v in facts.distilled.provenance.items() if k not in ("config", "test"))
    if facts.store is not None:
        rows.append(("expert recipe", facts.store.manifest["recipe"]))
    return [*rows, *facts.run.environment().items()]


def other_networks(facts: Facts) -> tuple[tuple[str, ...], list[tuple[str, ...]]] | None:
    """What 'mct-fast evaluate' found, under its headings."""
    if not facts.evaluations:
        return None
    methods = [*dict.fromkeys(method for record in facts.evaluations for method in record.get("coresets") or {})]
    rows = [
        (
            str(record["model"]),
            format_metric(record.get("metric", "accuracy"), record["mean"], record["std"]),
            baseline_text(record) or "–",
            *(coreset_text(record, method) or "–" for method in methods),
            str(record["split"]),
            str(len(record["scores"])),
            f"{record['lr']:.4g}",
        )
        for record in facts.evaluations
    ]
    heads = ("network", metric_label(facts.metric), f"random real {facts.noun}", *(_chosen(facts, m) for m in methods))
    return (*heads, "split", "networks", "step size"), rows


def _chosen(facts: Facts, method: str) -> str:
    return f"real {facts.noun} chosen by {'k-centre' if method == 'kcenter' else method}"


def text_of(value: Any) -> str:
    """A value of a setting or a record, for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Path)):
        return ", ".join(text_of(item) for item in value)
    return str(value)


def size_text(count: int) -> str:
    """Bytes, for people."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
