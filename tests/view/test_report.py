from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mct_fast.cli import main
from mct_fast.cli.arguments import DistillArguments
from mct_fast.cli.parsing import parse
from mct_fast.data import Normalize
from mct_fast.distill import distill
from mct_fast.distill.config import LATER
from mct_fast.distilled import DistilledDataset
from mct_fast.run.errors import InputError
from mct_fast.run.folder import Run
from mct_fast.view.classes import classes_of
from mct_fast.view.facts import Facts
from mct_fast.view.figures import write_curves
from mct_fast.view.report import _cell, remarks, write_comparison, write_report
from tests.conftest import TINY_DISTILL

VOID = {"img", "meta"}


def _iteration(number: int, **changes: float) -> dict:
    usual = dict(loss=0.5, syn_lr=0.01, grad_norm=1.0, start=0.0, seconds=0.1, skipped=0)
    return {"kind": "iter", "iteration": number, **usual, **changes}


def _evaluation(number: int, score: float) -> dict:
    return {"kind": "eval", "iteration": number, "mean": score, "std": 0.01, "split": "val", "seconds": 1.0}


def _final(number: int) -> dict:
    return {"kind": "final", "iteration": number, "num_eval": 2, "model": "ConvNet", "test_mean": 0.5, "test_std": 0.1}


class _Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())

    def pictures(self, kind: str) -> list[Image.Image]:
        found = []
        for tag, attributes in self.tags:
            if tag == "img" and attributes["class"] == kind:
                head, _, data = (attributes["src"] or "").partition(",")
                assert head == "data:image/png;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data))))
        return found


def page_of(run: Path) -> _Page:
    return _Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def set_of(per_class: int, names: tuple[str, ...], channels: int = 1) -> DistilledDataset:
    count = per_class * len(names)
    images = torch.linspace(-3, 3, count * channels * 16).reshape(count, channels, 4, 4)
    labels = torch.arange(len(names)).repeat_interleave(per_class)
    transform = Normalize(mean=(0.5,) * channels, std=(0.25,) * channels)
    return DistilledDataset(images, labels, 0.01, transform, names, {})


def test_page_needs_nothing_but_itself(run_copy: Path) -> None:
    html = write_report(run_copy).read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)
    for tag, attributes in _Page(html).tags:
        assert "href" not in attributes
        assert tag != "img" or (attributes["src"] or "").startswith("data:")


def test_page_says_what_the_run_found(run_copy: Path) -> None:
    final = next(r for r in Run.open(run_copy).metrics() if r["kind"] == "final")
    text = " | ".join(page_of(run_copy).text)
    assert f"{100 * final['test_mean']:.1f} ± {100 * final['test_std']:.1f} %" in text
    assert f"{100 * final['random_real_mean']:.1f} ± {100 * final['random_real_std']:.1f} %" in text
    facts = ("Storage of the experts", "bytes a parameter", "syn_steps", "fingerprint")
    for part in ("5 of 5", "none skipped", "What networks reach", "all training images", *facts):
        assert part in text, part


def test_page_of_a_run_without_a_baseline(run_copy: Path) -> None:
    metrics = run_copy / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    gone = ("random_real", "sum")  # written as an earlier release would have, without checksums
    kept = [{key: value for key, value in line.items() if not key.startswith(gone)} for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run_copy / "checkpoint.safetensors").unlink()
    text = " | ".join(page_of(run_copy).text)
    assert "Test accuracy" in text and "random real" not in text


def test_images_are_the_distilled_ones_with_the_transform_undone(run_copy: Path) -> None:
    distilled = DistilledDataset.load(run_copy / "distilled")
    pictures = page_of(run_copy).pictures("pixels")
    assert len(pictures) == len(distilled)
    for picture, pixels in zip(pictures, distilled.pixels(), strict=True):
        values = torch.from_numpy(np.array(picture)).float() / 255
        assert (values - pixels[0]).abs().max() < 1 / 255


def test_three_curves(run_copy: Path) -> None:
    assert len(page_of(run_copy).pictures("curve")) == 3


def test_the_same_run_gives_the_same_page(run_copy: Path) -> None:
    assert write_report(run_copy).read_bytes() == write_report(run_copy).read_bytes()


def test_names_from_outside_are_escaped(run_copy: Path) -> None:
    names = tuple(f"<b onload=\"x('{i}')\">&" for i in range(10))
    old = DistilledDataset.load(run_copy / "distilled")
    DistilledDataset(old.images, old.labels, old.syn_lr, old.transform, names, {"note": "</td><script>"}).save(
        run_copy / "distilled"
    )
    page = page_of(run_copy)
    assert not {"b", "script"} & {tag for tag, _ in page.tags}
    assert names[3] in page.text
    assert "</td><script>" in page.text


def test_several_images_a_class_make_a_row_a_class(run_copy: Path) -> None:
    old = DistilledDataset.load(run_copy / "distilled")
    set_of(3, old.class_names).save(run_copy / "distilled")
    page = page_of(run_copy)
    assert len(page.pictures("pixels")) == 30
    assert sum(tag == "td" and attributes.get("class") == "strip" for tag, attributes in page.tags) == 10


def test_a_run_that_has_not_begun_gives_a_page(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"dataset": "digits", "ipc": 1, "iterations": 10})
    text = " ".join(page_of(run.path).text)
    assert "Nothing has been measured yet" in text


def test_a_run_without_a_final_record_shows_the_best_so_far(run_copy: Path) -> None:
    kept = [line for line in (run_copy / "metrics.jsonl").read_text().splitlines(True) if '"final"' not in line]
    (run_copy / "metrics.jsonl").write_text("".join(kept) + '{"kind": "it')
    (run_copy / "checkpoint.safetensors").unlink()  # that of the end, which knows of the final record
    assert "Best accuracy so far" in page_of(run_copy).text


def test_skipped_iterations_are_counted(run_copy: Path) -> None:
    Run.open(run_copy).log(
        kind="iter", iteration=6, loss=None, syn_lr=0.01, grad_norm=None, start=0.0, seconds=0.1, skipped=3
    )
    assert any(text.startswith("3 skipped") for text in page_of(run_copy).text)


def test_other_networks_stand_in_a_table(run_copy: Path) -> None:
    Run.open(run_copy).add_evaluation(
        {"model": "AlexNet", "split": "test", "mean": 0.5, "std": 0.01, "scores": [0.49, 0.51], "lr": 0.01}
    )
    text = page_of(run_copy).text
    assert "Other networks" in text
    assert "AlexNet" in text
    assert "50.0 ± 1.0 %" in text


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)


@pytest.mark.parametrize("per_class", [1, 3], ids=lambda n: f"ipc{n}")
@pytest.mark.parametrize("channels", [1, 3], ids=lambda n: f"{n}channels")
def test_images_png(tmp_path: Path, per_class: int, channels: int) -> None:
    path = set_of(per_class, ("ant", "bee", "cat"), channels).to_png(tmp_path / "images.png")
    colours = Image.open(path).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 10


def test_every_class_begins_a_row() -> None:
    gray = set_of(12, ("ant", "bee"))
    made = replace(gray, images=torch.zeros_like(gray.images), labels=torch.tensor([0] * 13 + [1] * 11))
    with_ink = np.array(made.picture().convert("L")) < 255
    bands = [18, 0, 18, 0]  # a name above the first row of a class
    assert with_ink.shape == (4 + 4 * 68 + sum(bands), 4 + 10 * 68)  # 4 pixels, enlarged to 64, and gaps
    top, lengths = 4, []
    for band in bands:
        top += band
        lengths.append(sum(with_ink[top : top + 64, 4 + 68 * n : 4 + 68 * n + 64].any() for n in range(10)))
        top += 68
    assert lengths == [10, 3, 10, 1]


def test_drawing_touches_no_global_state(run_copy: Path) -> None:
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    write_curves(Run.open(run_copy), run_copy / "c.png")
    assert matplotlib.get_backend() == backend
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("name", ["$$", "$\\frac{$", "a_b^c", "\\alpha", "n" * 100_000, "", "<b>"])
def test_any_class_name_can_be_shown(name: str, run_copy: Path) -> None:
    distilled = DistilledDataset.load(run_copy / "distilled")
    names = (name, *distilled.class_names[1:])
    replace(distilled, class_names=names).save(run_copy / "distilled")
    write_report(run_copy)
    with Image.open(run_copy / "images.png") as picture:
        assert picture.width < 3000 and picture.height < 3000


def test_a_cell_without_a_value_is_empty() -> None:
    for value in (None, float("nan"), pd.NA, pd.NaT):
        assert _cell(value) == ""
    assert [_cell(value) for value in (0, 1.5, "NA", True)] == ["0", "1.5", "NA", "True"]


def test_the_command_repeats_the_run(run_copy: Path) -> None:
    (line,) = [text for text in page_of(run_copy).text if text.startswith("mct-fast distill")]
    given = parse("distill", DistillArguments, line.split()[2:], None)
    config = Run.open(run_copy).config
    again = {name: list(value) if isinstance(value, tuple) else value for name, value in given.config.flat().items()}
    assert str(given.trajectories) == config["trajectories"]
    assert {**again, "device": config["device"]} == {name: config.get(name, LATER.get(name)) for name in again}


def test_only_what_differs_is_shown_and_all_is_folded_away(run_copy: Path) -> None:
    html = write_report(run_copy).read_text(encoding="utf-8")
    before, folded = html.split("<summary>All settings</summary>")
    assert '<th scope="row">syn_steps</th>' in before and '<th scope="row">mom_img</th>' not in before
    assert '<th scope="row">mom_img</th>' in folded


def test_first_images_stand_beside_the_last(run_copy: Path) -> None:
    first = DistilledDataset.load(run_copy / "first")
    pictures = page_of(run_copy).pictures("first")
    assert len(pictures) == len(first) == 10
    values = torch.from_numpy(np.array(pictures[3])).float() / 255
    assert (values - first.pixels()[3, 0]).abs().max() < 1 / 255
    shutil.rmtree(run_copy / "first")
    assert page_of(run_copy).pictures("first") == []


def _many(count: int, **changes: float) -> list[dict]:
    """Records of iterations whose loss falls."""
    return [_iteration(n, **{"loss": 0.9 - 0.5 * n / count, **changes}) for n in range(1, count + 1)]


def _scored(*scores: float) -> list[dict]:
    return [_evaluation(2 * i, score) for i, score in enumerate(scores)]


WRONG: dict[str, tuple[list[dict], str | None]] = {
    "skipped": ([_iteration(100, skipped=40)], "40 of 100 iterations were skipped: lower lr_teacher"),
    "few-skipped": ([_iteration(100, skipped=10)], None),
    "loss": ([{**r, "loss": 2 + r["loss"]} for r in _many(120)], "The matching loss is above 1"),
    "no-number": (
        [_iteration(8), _iteration(9, loss=None), _iteration(10)],
        "Loss or gradient was no finite number in 1 of 3 iterations, the last time in iteration 9",
    ),
    "no-gradient": ([_iteration(1, grad_norm=None)], "Loss or gradient was no finite number in 1 of 1 iterations"),
    "standing-still": (_many(30, grad_norm=0.0), "The gradient was 0 in the last 20 iterations"),
    "moved-lately": ([*_many(30, grad_norm=0.0), _iteration(31)], None),
    "flat": (
        _many(100, loss=0.7),
        "The loss does not fall: its median was 0.7 in the first tenth of the iterations and is 0.7 in the last",
    ),
    "flat-but-short": (_many(99, loss=0.7), None),
    "step-size": ([_iteration(10, syn_lr=0.5)], "The step size went from 0.01 to 0.5: lower lr_lr"),
    "bound": (
        [_iteration(10, syn_lr=1e-5)],
        "The step size is at its lower bound, 1e-05, a thousandth of where it began",
    ),
    "step-size-near": ([_iteration(10, syn_lr=0.05)], None),
    "rising": (_scored(0.1, 0.2, 0.4), "The score still rises"),
    "not-rising": (_scored(0.1, 0.4, 0.4), None),
    "worse-than-at-first": (
        _scored(0.5, 0.4, 0.45, 0.3),
        "No later images were better so far: those that the run began with reach accuracy 50.0 ± 1.0 %, the best later ones "
        "45.0 ± 1.0 % (iteration 4)",
    ),
    "no-better": ([_final(0)], "No later images were better than those"),
    "random": (
        [{**_final(4), "random_real_mean": 0.9, "random_real_std": 0.1}],
        "As many random real images do better: train more experts",
    ),
    "within-chance": (
        [{**_final(4), "random_real_mean": 0.45, "random_real_std": 0.02}],
        "The images are better than as many random real ones by less than the standard deviation",
    ),
    "better-than-random": ([{**_final(4), "random_real_mean": 0.3, "random_real_std": 0.02}], None),
    "well": ([*_many(200), *_scored(0.3, 0.5, 0.5)], None),
    "nothing": ([], None),
}


def _made_up(case: str, path: Path) -> tuple[Path, str | None]:
    """A run with the records of ``case``, and what is to be said of it."""
    records, said = WRONG[case]
    run = Run.create(path, {"dataset": "digits", "ipc": 1, "iterations": 200, "lr_teacher": 0.01})
    for record in records:
        run.log(**record)
    return run.path, said


@pytest.mark.parametrize("case", WRONG)
def test_what_looks_wrong_is_said_with_what_to_do(case: str, tmp_path: Path) -> None:
    run, said = _made_up(case, tmp_path / "run")
    found = [text for what, text in remarks(run) if what == "look at"]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


@pytest.mark.parametrize("case", ["bound", "well"])
def test_the_page_and_the_command_say_it(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, said = _made_up(case, tmp_path / "run")
    page = page_of(run)
    sentences = [attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "advice"]
    assert len(sentences) == (said is not None)
    assert said is None or any(text.startswith(said) for text in page.text)
    assert main(["report", str(run)]) == 0
    assert (said or "Not finished") in " ".join(capsys.readouterr().out.split())


def _status(path: Path) -> list[str]:
    return [text for text in page_of(path).text if text.startswith("Not finished")]


def test_a_run_that_goes_on_says_so(tiny_store: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", []

    class Watcher:
        def record(self, record: dict) -> None:
            if record["iteration"] == 3:
                assert _status(run) == [text for what, text in remarks(run) if what == "state"]
            seen.append((record["iteration"], [text for what, text in remarks(run) if what == "state"]))

        def images(self, iteration: int, picture: object) -> None:
            pass

    distill(TINY_DISTILL, tiny_store, out=run, watcher=Watcher())
    assert len(seen) == 10
    for iteration, said in seen[:-1]:
        assert len(said) == 1 and said[0].startswith(f"Not finished: {iteration} of 5 iterations")
        assert said[0].endswith("A process is at work; this page is of now.")
        assert ("left for them" in said[0]) == (0 < iteration < 5), said
    assert seen[-1][1] == [] and _status(run) == []


def test_a_run_that_stopped_gives_a_page_that_says_how_to_go_on(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill(TINY_DISTILL, tiny_store, out=tmp_path / "run", until=3)
    wanted = f"No process is at work; go on with: mct-fast distill --resume {tmp_path / 'run'}"
    assert len(_status(tmp_path / "run")) == 1 and _status(tmp_path / "run")[0].endswith(wanted)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Not finished: 3 of 5 iterations" in capsys.readouterr().out


def test_runs_side_by_side(run_copy: Path, tiny_run: Path, tmp_path: Path) -> None:
    other = Run.create(tmp_path / "other", {**Run.open(tiny_run).config, "ipc": 7, "lr_img": 3.0})
    html = write_comparison([run_copy, tiny_run, other.path], tmp_path / "compare.html").read_text(encoding="utf-8")
    page = _Page(html)
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)
    assert {str(run_copy), str(tiny_run), "3 runs"} <= set(page.text)
    assert [text for text in page.text if text in ("ipc", "lr_img", "syn_steps")] == ["ipc", "lr_img"]
    assert len(page.pictures("pixels")) == 2 and len(page.pictures("curve")) == 1
    with pytest.raises(InputError, match="stands twice"):
        write_comparison([run_copy, run_copy], tmp_path / "x.html")
    with pytest.raises(InputError, match="holds no run"):
        write_comparison([run_copy, tmp_path], tmp_path / "x.html")


def test_classes_and_what_they_are_taken_for(run_copy: Path) -> None:
    (final,) = (r for r in Run.open(run_copy).metrics() if r["kind"] == "final")
    counts = torch.tensor(final["test_confusion"])
    assert counts.shape == (10, 10)
    # Accuracy of all networks together is the mean of theirs: each saw the same images.
    assert float(counts.trace() / counts.sum()) == pytest.approx(final["test_mean"])
    assert "test_confusion" not in str(DistilledDataset.load(run_copy / "distilled").provenance)
    text = write_report(run_copy).read_text()
    shown = _Page(text)
    assert "Accuracy of each class" in text and len([t for t, a in shown.tags if t == "td" and "style" in a]) == 100
    shares = [str(round(100 * int(counts[i, i]) / int(counts[i].sum()), 1)) for i in range(10)]
    assert all(f"<td>{share} %</td>" in text for share in shares)


def test_a_run_of_an_earlier_release_says_nothing_of_classes(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"dataset": "digits"})
    run.log(**_iteration(1))
    run.log(**_final(1))
    assert "Accuracy of each class" not in write_report(run.path).read_text()


def test_many_classes_have_no_squares(tmp_path: Path) -> None:
    counts = (5 * torch.eye(30, dtype=torch.int64)).tolist()
    counts[3], counts[4] = [0] * 30, [0] * 7 + [3, 1] + [0] * 21
    run = Run.create(tmp_path / "run", {"dataset": "digits"})
    run.log(**_iteration(1))
    run.log(**_final(1), test_confusion=counts)
    found = classes_of(Facts.of(run))
    assert found is not None and found.squares == []
    assert found.rows[3:6] == [("3", "none in the split", ""), ("4", "0.0 %", "7, 75.0 %"), ("5", "100.0 %", "")]
    assert _Page(write_report(run.path).read_text()).tags
