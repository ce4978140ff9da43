"""What a run looks like: one HTML page that needs nothing but itself, and a page that sets several runs side by side.

Everything is read from the run's folder; a run that is still going, or was killed, gives a page too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from mct_fast import __version__
from mct_fast.data import TableTransform
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import PRIVACY, nearest_text, table_frame
from mct_fast.evaluate import baseline_text
from mct_fast.run.errors import InputError
from mct_fast.run.files import atomic_write, reading
from mct_fast.run.folder import Run, chosen_images
from mct_fast.tasks import format_metric, metric_label, metric_scale, metric_title
from mct_fast.view.advice import advice, status
from mct_fast.view.classes import classes_of
from mct_fast.view.facts import (
    Facts,
    all_settings,
    command,
    compared,
    differing,
    other_networks,
    provenance,
    storage,
    text_of,
    times,
)
from mct_fast.view.figures import data_uri, draw_loss, draw_score, draw_step_size, inline, inline_scores, write_curves

PAGE, CURVES, TABLE = "report.html", "curves.png", "distilled.csv"
_SHOWN_ROWS = 100  # rows of a table on the page
_SHOWN_A_CLASS = 50  # images of a class on the page; a distilled set can hold thousands


def write_report(path: str | Path) -> Path:
    """Writes ``report.html`` and ``curves.png`` into the run's folder ``path``; returns the page's path.

    Raises:
        InputError: ``path`` holds no run, or a part of it is damaged.
    """
    run = Run.open(path)
    with reading("run", run.path):
        facts = Facts.of(run)
        write_curves(run, run.path / CURVES)
        if facts.distilled is not None:
            facts.distilled.write_preview(run.path)
        page = _render("report.html", **_report(facts))
    return _written(page, run.path / PAGE)


def remarks(path: str | Path) -> list[tuple[str, str]]:
    """What the page of the run at ``path`` says above its numbers: how far it is if it is not finished, and what to do."""
    run = Run.open(path)
    with reading("run", run.path):
        facts = Facts.of(run)
        state = status(facts)
        return [*([] if state is None else [("state", state)]), *(("look at", sentence) for sentence in advice(facts))]


def write_comparison(paths: Sequence[str | Path], out: str | Path) -> Path:
    """Writes one page about the runs at ``paths`` to the file ``out``; returns its path.

    Raises:
        InputError: one of them is no run, or damaged, or one stands twice.
    """
    found = []
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise InputError("run: one stands twice; give each once")
    for path in paths:
        run = Run.open(path)
        with reading("run", run.path):
            found.append(Facts.of(run))
    return _written(_render("compare.html", **_comparison(found)), Path(out))


def _written(page: str, path: Path) -> Path:
    def write(temporary: Path) -> None:
        temporary.write_text(page, encoding="utf-8")

    atomic_write(path, write)
    return path


def _render(template: str, **context: Any) -> str:
    environment = Environment(
        loader=PackageLoader("mct_fast.view"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["text"] = text_of
    return environment.get_template(template).render(**context)


# A run


def _report(facts: Facts) -> dict[str, Any]:
    """What the template of a run's page is given."""
    config, distilled = facts.run.config, facts.distilled
    is_table = distilled is not None and isinstance(distilled.transform, TableTransform)
    preset, changed = differing(config)
    count = "" if distilled is None else f"{len(distilled)} "
    return {
        "title": facts.title,
        "subtitle": f"{count}{facts.noun} distilled from {facts.name} by mct_fast {__version__}",
        "status": status(facts),
        "advice": advice(facts),
        "tiles": _tiles(facts),
        "metric": metric_label(facts.metric),
        "compared": compared(facts),
        "classes": classes_of(facts),
        "noun": facts.noun,
        "shown": distilled is not None and (is_table or _shown(distilled, facts.first)),
        "single": distilled is not None and len(distilled) == distilled.num_classes,
        "table": _table(distilled) if distilled is not None and is_table else None,
        "curves": _curves(facts) if facts.records else [],
        "networks": other_networks(facts),
        "storage": storage(facts),
        "times": times(facts),
        "command": command(facts),
        "preset": preset,
        "changed": [*changed.items()],
        "settings": all_settings(config),
        "provenance": provenance(facts),
    }


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The numbers on top: what each is, the number, a note."""
    found = _final_tiles(facts) if facts.final is not None else _tiles_so_far(facts)
    if facts.distilled is not None:
        shape = "×".join(str(size) for size in facts.distilled.images.shape[1:])
        found.append((facts.noun.capitalize(), str(len(facts.distilled)), f"of {shape} values"))
        learned, own = facts.distilled.syn_lr, facts.distilled.lr_net
        note = f"saved with the {facts.noun}" if own == learned else f"networks are trained with {own:.4g}"
        found.append(("Learned step size", f"{learned:.4g}", note))
    iterations = facts.of_kind("iter")
    if iterations:
        skipped = iterations[-1].get("skipped", 0)
        note = "none skipped" if not skipped else f"{skipped} skipped (not finite or exploding)"
        wanted = facts.run.config.get("iterations", "?")
        found.append(("Iterations", f"{iterations[-1]['iteration']} of {wanted}", note))
    return found


def _final_tiles(facts: Facts) -> list[tuple[str, str, str]]:
    final, label = facts.final, metric_label(facts.metric)
    assert final is not None
    count = f"{final['num_eval']} networks ({final['model']}), test split"
    found = [(f"Test {label}", format_metric(facts.metric, final["test_mean"], final["test_std"]), count)]
    random = baseline_text(final)
    if random is not None and final["test_mean"] is not None:
        gain = final["test_mean"] - final["random_real_mean"]
        scale, unit = metric_scale(facts.metric)
        shown = f"{scale * abs(gain):.1f} points" if unit else f"{abs(gain):.3f}"
        note = f"the distilled ones are {shown} {'better' if gain >= 0 else 'worse'}"
        found.append((f"As many random real {facts.noun}", random, note))
    chosen = "validation" if final.get("select_on", "val") == "val" else "the test split (optimistic)"
    began = "" if final["iteration"] else f"; {chosen_images(final, facts.run.config).partition(',')[0]}"
    return [*found, ("Chosen iteration", str(final["iteration"]), f"by {label} on {chosen}{began}")]


def _tiles_so_far(facts: Facts) -> list[tuple[str, str, str]]:
    evaluations = facts.of_kind("eval")
    if not evaluations:
        return []
    best = max(evaluations, key=lambda r: (r["mean"] is not None, r["mean"]))
    shown = format_metric(facts.metric, best["mean"], best["std"])
    return [(f"Best {metric_label(facts.metric)} so far", shown, f"{best['split']}, iteration {best['iteration']}")]


def _shown(distilled: DistilledDataset, first: DistilledDataset | None) -> list[dict[str, Any]]:
    """Of each class its images, as they are and, the first of them, as it began."""
    pixels, began = distilled.pixels(), None if first is None else first.pixels()
    rows = []
    for number, name in enumerate(distilled.class_names):
        own = torch.nonzero(distilled.classes == number).flatten().tolist()
        if not own and len(distilled) == distilled.num_classes:
            continue
        labelled = len(own) == 1
        rows.append(
            {
                "name": name,
                "images": [
                    (_picture(pixels[i]), name if labelled else f"{name}, image {place}")
                    for place, i in enumerate(own[:_SHOWN_A_CLASS], 1)
                ],
                "left_out": len(own) - _SHOWN_A_CLASS,
                "first": _picture(began[own[0]]) if own and began is not None and len(began) == len(pixels) else None,
            }
        )
    return rows


def _picture(image: Tensor) -> str:
    buffer = io.BytesIO()
    shown = image if image.shape[0] in (1, 3) else image.mean(0, keepdim=True)
    to_pil_image(shown).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue())


def _table(distilled: DistilledDataset) -> dict[str, Any]:
    """A table's rows in original units and categories, and what they are not."""
    frame = table_frame(distilled)
    nearest = distilled.provenance.get("nearest_real")
    rows = [[_cell(value) for value in row] for row in frame.head(_SHOWN_ROWS).itertuples(index=False)]
    return {
        "notes": [PRIVACY, *([nearest_text(nearest)] if nearest else [])],
        "heads": [str(name) for name in frame.columns],
        "rows": rows,
        "left_out": len(frame) - len(rows),
        "file": TABLE,
    }


def _cell(value: Any) -> str:
    if value is None or str(value) in ("nan", "NaT", "<NA>"):  # <NA> says nothing to a comparison, not even of itself
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(facts: Facts) -> list[tuple[str, str]]:
    spread = "the band is one standard deviation"
    score = f"{metric_title(facts.metric)} of fresh networks trained on the {facts.noun}; {spread}"
    drawn = [
        (score, draw_score),
        ("Matching loss at each iteration", draw_loss),
        ("The learned step size at each iteration", draw_step_size),
    ]
    return [(text, inline(draw, facts.records)) for text, draw in drawn]


# Several runs


def _comparison(runs: Sequence[Facts]) -> dict[str, Any]:
    """What the template of the page about several runs is given."""
    names = [str(facts.run.path) for facts in runs]
    configs = [facts.run.config for facts in runs]
    differ = [
        key
        for key in dict.fromkeys(key for config in configs for key in config)
        if len({text_of(config.get(key)) for config in configs}) > 1
    ]
    return {
        "title": f"{len(runs)} runs",
        "summary": [_summary(name, facts) for name, facts in zip(names, runs, strict=True)],
        "differ": [[key, *(text_of(config.get(key)) for config in configs)] for key in differ],
        "names": names,
        "scores": inline_scores([(name, facts.records) for name, facts in zip(names, runs, strict=True)]),
        "images": [
            (name, _picture_of(facts.distilled))
            for name, facts in zip(names, runs, strict=True)
            if facts.distilled is not None and facts.noun == "images"
        ],
    }


def _summary(name: str, facts: Facts) -> tuple[str, ...]:
    final, iterations = facts.final, facts.of_kind("iter")
    if final is not None:
        score = format_metric(facts.metric, final["test_mean"], final["test_std"])
    else:
        score = next((f"{value} ({note})" for _, value, note in _tiles_so_far(facts)), "–")
    done = iterations[-1]["iteration"] if iterations else 0
    spent = ", ".join(f"{value.partition(',')[0]} for {key}" for key, value in times(facts))
    random = "–" if final is None else baseline_text(final) or "–"
    return name, facts.title, metric_label(facts.metric), score, random, f"{done}", spent or "–"


def _picture_of(distilled: DistilledDataset) -> str:
    buffer = io.BytesIO()
    distilled.picture().save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue())
