"""From committed JSON to ``docs/results.md``: every table, line and picture of a study is made here, none by hand.

``docs/results/study-NAME.json`` holds what a study found. In ``docs/results.md`` the text between ``<!-- study NAME -->`` and
``<!-- end -->`` is replaced; what stands around it is written by people.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.study.plans import METHODS
from bench.tables import size
from mct_fast.run.files import atomic_write, read_json, write_json
from mct_fast.run.progress import duration

PAGE, RESULTS = "results.md", "results"
_COLUMNS = ("runs", "iterations", "n", "validation", "chosen on it", "seeds differ by", "last", "s/iteration")
_COLOURS = ("#2f7fd6", "#e07b1f", "#3a9d5d", "#b0479e", "#8a6d3b", "#5b5fc7", "#c0392b", "#16a0a0", "#7f7f7f")


def adopt(out: Path, docs: Path) -> str:
    """Takes a study's results, and the pictures of its first seed's images, from its folder; returns its name."""
    results = read_json(out / "results.json")
    name = results["plan"]["name"]
    write_json(docs / RESULTS / f"study-{name}.json", results)
    for run in results["runs"]:
        picture = out / "runs" / f"{run['arm']}-{run['seed']}" / "images.png"
        if run["arm"] in METHODS and run["seed"] == results["plan"]["seeds"][0] and picture.is_file():
            shutil.copyfile(picture, docs / RESULTS / f"study-{name}-{run['arm']}.png")
    return name


def write(docs: Path) -> Path:
    """Renders every ``study-*.json`` below ``docs`` into its block of ``docs/results.md``, with its plots."""
    page = docs / PAGE
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Results\n"
    for file in sorted((docs / RESULTS).glob("study-*.json")):
        results = read_json(file)
        name = results["plan"]["name"]
        _plots(results, docs / RESULTS / f"study-{name}")
        text = place(text, name, block(results, docs))
    atomic_write(page, lambda temporary: _write(temporary, text))
    return page


def place(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` as the block of study ``name``, appended where there is none yet."""
    begin, end = f"<!-- study {name} -->", "<!-- end -->"
    new = f"{begin}\n{content.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: new, text)
    return f"{text.rstrip()}\n\n## {name}\n\n{new}\n"


def block(results: Mapping[str, Any], docs: Path) -> str:
    """The Markdown of one study."""
    plan, name = results["plan"], results["plan"]["name"]
    parts = [_head(results)]
    soft = {arm for arm, spec in plan["arms"].items() if _is_soft(spec["changes"])}
    hard = [*_rows(results, set(plan["arms"]) - soft), *_random(results), *_published(results)]
    for title, rows in (("Hard labels", hard), ("Soft labels", list(_rows(results, soft)))):
        if rows:
            parts.append(_table((title, *_COLUMNS), rows))
    parts += [line for line in (_race(results), _storage(results), _experts(results)) if line]
    if (sizes := results["step_sizes"]) is not None and sizes["arms"]:
        parts.append(_step_sizes(sizes))
    for suffix, says in (("curves", "test accuracy"), ("paths", "accuracy along the experts' paths")):
        if (docs / RESULTS / f"study-{name}-{suffix}.png").is_file():
            parts.append(f"![{name}, {says}]({RESULTS}/study-{name}-{suffix}.png)")
    for arm in METHODS:
        if (docs / RESULTS / f"study-{name}-{arm}.png").is_file():
            parts.append(f"Images of `{arm}`:\n\n![{name}, images of {arm}]({RESULTS}/study-{name}-{arm}.png)")
    return "\n\n".join(parts)


def chosen(run: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The point of a run's curve that validation data pick; the earliest of equals."""
    curve: list[Mapping[str, Any]] = run["curve"]
    return max(curve, key=lambda point: (fmean(point["val"]), -point["iteration"])) if curve else None


def mean_curve(results: Mapping[str, Any], arm: str) -> list[tuple[int, float]]:
    """``(iteration, mean test accuracy over seeds and networks)`` where every run of ``arm`` has been evaluated."""
    runs = [run for run in results["runs"] if run["arm"] == arm and run["curve"]]
    tables: list[dict[int, list[float]]] = [
        {point["iteration"]: point["test"] for point in run["curve"]} for run in runs
    ]
    common = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(i, fmean(accuracy for table in tables for accuracy in table[i])) for i in common]


def reached(results: Mapping[str, Any], arm: str, goal: float) -> int | None:
    """The first evaluated iteration at which the mean curve of ``arm`` is at least ``goal``."""
    return next((i for i, mean in mean_curve(results, arm) if mean >= goal), None)


def _is_soft(changes: Mapping[str, Any]) -> bool:
    return changes.get("labels", "hard") != "hard" or changes.get("lr_label", 0) > 0


def _head(results: Mapping[str, Any]) -> str:
    plan, distill, experts = results["plan"], results["plan"]["distill"], results["plan"]["experts"]
    state = "Finished." if results["complete"] else "**Not finished: the numbers below are of what is done so far.**"
    made = [_place(place, experts["device"]) for place in results["made"]]
    data = "" if experts["dataset"] == "digits" else " --data-path DATA"
    varied = set.intersection(*(set(arm["changes"]) for arm in plan["arms"].values()))  # by every arm, as a search does
    sizes = ", ".join(f"{name} {distill[name]:g}" for name in ("lr_img", "lr_lr", "lr_teacher") if name not in varied)
    trained = "the learned step size" if distill["lr_net"] is None else f"step size {distill['lr_net']:g}"
    return (
        f"{state} IPC {distill['ipc']}, {distill['syn_steps']} student steps, {distill['iterations']} iterations; "
        f"{experts['num_experts']} experts of {experts['train_epochs']} epochs, ConvNet {experts['depth']} x "
        f"{experts['width']}{', ZCA' if experts['zca'] else ''}; {sizes}; {distill['num_eval']} networks an evaluation, "
        f"{distill['epoch_eval_train']} epochs each with {trained}. An arm's own settings stand in its row. "
        f"Command: `python -m bench.study {plan['name']} --out OUT{data}`. Made on: {'; '.join(made) or 'nothing yet'}."
    )


def _place(place: Mapping[str, Any], device: str) -> str:
    """Machine, versions, commit, dates."""
    machine, first, last = place["machine"], place["first"][:10], place["last"][:10]
    commit = f"commit `{(place['commit'] or 'unknown')[:12]}`{' with changes' if place['dirty'] else ''}"
    chip = machine["cpu"] if device == "cpu" else f"{machine['gpu']}, {machine['cpu']}"
    return (
        f"{chip}, {machine['cores']} cores, {machine['threads']} threads, torch {place['versions']['torch']}, "
        f"{commit}, {first if first == last else f'{first} to {last}'}, {duration(place['seconds'])} of one process"
    )


def _rows(results: Mapping[str, Any], wanted: set[str]) -> Iterator[tuple[str, ...]]:
    for arm in results["plan"]["arms"]:
        runs = [run for run in results["runs"] if run["arm"] == arm and run["curve"]]
        if arm not in wanted or not runs:
            continue
        picked = [point for run in runs if (point := chosen(run)) is not None]
        every = [accuracy for point in picked for accuracy in point["test"]]
        means = [fmean(point["test"]) for point in picked]
        last = [accuracy for run in runs for accuracy in run["curve"][-1]["test"]]
        pace = [run["seconds_an_iteration"] for run in runs if run["seconds_an_iteration"] is not None]
        least, most = min(run["iterations"] for run in runs), max(run["iterations"] for run in runs)
        yield (
            f"`{arm}`: {results['says'][arm]}; {_window(results['plan'], arm)}",
            str(len(runs)),
            str(most) if least == most else f"{least} to {most}",
            str(len(every)),
            f"{100 * fmean(score for point in picked for score in point['val']):.1f}",
            _percent(every),
            f"{100 * (max(means) - min(means)):.1f}" if len(means) > 1 else "",
            _percent(last),
            f"{min(pace):.3g}" if pace else "",
        )


def _random(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    random = results["random"]
    if random is not None:
        count, shown = str(len(random["scores"])), _percent(random["scores"])
        yield "as many random real images, drawn anew for each network", "", "", count, "", shown, "", "", ""


def _window(plan: Mapping[str, Any], arm: str) -> str:
    """Which segments an arm matches."""
    settings = {**plan["distill"], **plan["arms"][arm]["changes"]}
    first, last = settings["min_start_epoch"], settings["max_start_epoch"]
    starts = f"{first:g} to {last - 1:g}, whole" if settings["sampling"] == "integer" else f"{first:g} to {last:g}"
    return f"{settings['expert_epochs']:g} epochs from {starts}"


def _published(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for who, percent in results["published"].items():
        yield f"*published*: {who}", "", "", "", "", f"{percent:g}", "", "", ""


def _race(results: Mapping[str, Any]) -> str | None:
    """When MCT reaches what MTT ends with."""
    if not set(METHODS) <= set(results["plan"]["arms"]):
        return None
    both = _of_both(results)
    mtt, mct = mean_curve(both, "mtt"), mean_curve(both, "mct")
    if not mtt or not mct or mtt[-1][0] == 0:
        return None
    at, goal = mtt[-1]
    first, seeds = reached(both, "mct", goal), len(both["runs"]) // 2
    answer = (
        f"MCT, evaluated up to iteration {mct[-1][0]}, has not reached it"
        if first is None
        else f"MCT first has at least that at iteration {first}"
    )
    mean = "" if seeds == 1 else f", mean of {seeds} runs"
    return f"At iteration {at} MTT has {100 * goal:.1f} % test accuracy{mean}; {answer}."


def _of_both(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """``results`` with the runs of those seeds alone that both methods have begun: others would be compared unequally."""
    begun = {(run["arm"], run["seed"]) for run in results["runs"] if run["curve"]}
    seeds = {seed for _, seed in begun if all((arm, seed) in begun for arm in METHODS)}
    runs = [run for run in results["runs"] if run["arm"] in METHODS and run["seed"] in seeds]
    return {**results, "runs": runs}


def _storage(results: Mapping[str, Any]) -> str | None:
    found = results["storage"]
    if found is None:
        return None
    sizes = found["bytes_an_expert"]
    listed = ", ".join(f"{key.replace('_', ' ')} {size(value)}" for key, value in sizes.items())
    return f"Bytes an expert ({found['parameters']:,} parameters): {listed}."


def _experts(results: Mapping[str, Any]) -> str | None:
    found = results["experts"]
    if found is None:
        return None
    accuracies = found["accuracies"]
    return f"Experts: {_percent(accuracies)} % validation accuracy (n = {len(accuracies)})."


def _step_sizes(found: Mapping[str, Any]) -> str:
    """A table: the same images, evaluated with parts of their learned step size."""
    head = ("images of the first seed, evaluated with", *(f"{factor:g} x" for factor in found["factors"]))
    rows = [(f"`{arm}`", *(_percent(one["scores"]) for one in row)) for arm, row in found["arms"].items()]
    return "The learned step size, or a part of it:\n\n" + _table(head, rows)


def _percent(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f} ± {100 * pstdev(values):.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _plots(results: Mapping[str, Any], stem: Path) -> None:
    if not set(METHODS) & set(results["plan"]["arms"]):
        return  # a search: its table says it all
    arms = [arm for arm in results["plan"]["arms"] if len(mean_curve(results, arm)) > 1]
    if arms:
        figure = Figure(figsize=(12, 4.2), facecolor="white")
        FigureCanvasAgg(figure)
        by_iteration, by_time = figure.subplots(1, 2, sharey=True)
        for arm, colour in zip(arms, _COLOURS * 3, strict=False):
            _draw(by_iteration, by_time, results, arm, colour)
        by_iteration.set(xlabel="iterations", ylabel="test accuracy, %")
        by_time.set(xlabel="seconds of distilling, undisturbed")
        by_iteration.legend(fontsize=8, frameon=False)
        _save(figure, stem.with_name(f"{stem.name}-curves.png"))
    paths = results["paths"]
    if paths is not None:
        figure = Figure(figsize=(6, 4.2), facecolor="white")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for kind, says, colour in (("sgd", "SGD's checkpoints", _COLOURS[1]), ("convex", "convex path", _COLOURS[0])):
            means, stds = ([100 * v for v in paths[kind][key]] for key in ("mean", "std"))
            axis.errorbar(paths[kind]["epochs"], means, stds, label=says, color=colour, capsize=2, marker="o", ms=3)
        axis.set(xlabel="epoch", ylabel="test accuracy, %")
        axis.legend(fontsize=8, frameon=False)
        _save(figure, stem.with_name(f"{stem.name}-paths.png"))


def _draw(by_iteration: Any, by_time: Any, results: Mapping[str, Any], arm: str, colour: str) -> None:
    runs = [run for run in results["runs"] if run["arm"] == arm and run["curve"]]
    pace = min((r["seconds_an_iteration"] for r in runs if r["seconds_an_iteration"] is not None), default=None)
    iterations, means = zip(*mean_curve(results, arm), strict=True)
    percents = [100 * mean for mean in means]
    by_iteration.plot(iterations, percents, color=colour, label=arm, marker="o", ms=3)
    if pace is not None:
        by_time.plot([i * pace for i in iterations], percents, color=colour, marker="o", ms=3)
    for run in runs:  # each seed, faintly
        points = [(point["iteration"], 100 * fmean(point["test"])) for point in run["curve"]]
        by_iteration.plot(*zip(*points, strict=True), color=colour, alpha=0.3, linewidth=0.8)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=100, metadata={"Software": None}))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
