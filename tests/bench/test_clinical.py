"""The clinical table: every cell is the mean of what was kept, and an interrupted run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench import baselines, clinical, document
from bench.baselines import Measured
from bench.machine import ROOT
from mct_fast.data import Dataset, TableSpec, load_dataset, table_dataset
from mct_fast.tasks import MultiLabel

RARE = "breast_cancer, 1 % positive"


def test_the_smallest_case_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- clinical table -->\n<!-- end clinical table -->\nafter\n")
    words = ["--only", RARE, "--seeds", "1", "--iterations", "2", "--work", str(tmp_path / "work")]
    assert clinical.main([*words, "--json", str(tmp_path / "r.json"), "--docs", str(page)]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    assert [row["trained_on"] for row in rows] == ["all rows", "MTT", "MCT", "Bézier", "random rows"]
    assert all(row["metric"] == "auroc" and len(row["scores"]) == 5 and row["split"] == "test" for row in rows)
    assert {row["rows"] for row in rows[1:]} == {4}
    table = document.section(page.read_text(), clinical.SECTION)
    assert f"| {RARE} | AUROC | 4 |" in table and page.read_text().endswith("after\n")
    notes = capsys.readouterr().err
    assert f"{RARE}, seed 0: 2-MCT" in notes
    assert clinical.main(words) == 0
    assert "2-MCT" not in capsys.readouterr().err


def test_what_is_downloaded_stands_beside_controls_and_boosting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a packaged set in the place of one that is downloaded."""
    own = clinical.Case("own", "breast_cancer", (2,), downloaded=True, distill={"keep_prior": True})
    several = clinical.Case("several", "several", (1,), downloaded=True)
    few = replace(clinical.EXPERTS, num_experts=2, train_epochs=6)
    quick = replace(clinical.DISTILL, num_eval=1, epoch_eval_train=2, syn_steps=2)
    for name, value in {
        "CASES": (own, several),
        "EXPERTS": few,
        "DISTILL": quick,
        "ALL_DOWNLOADED": ((1, 1.0), (1, 0.0)),
    }.items():
        monkeypatch.setattr(clinical, name, value)
    monkeypatch.setattr(clinical, "load_for", lambda config: dataset_of(config.dataset))
    monkeypatch.setattr(baselines, "GRID", {"max_iter": (1, 5), "max_leaf_nodes": (3,)})
    words = ["--data-path", str(tmp_path), "--seeds", "1", "--iterations", "2", "--work", str(tmp_path / "work")]
    assert clinical.main([*words, "--json", str(tmp_path / "r.json")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    names = {
        "random rows",
        "k-means rows",
        "herding rows",
        "MTT",
        "MCT",
        "Bézier",
        "unrolled",
        "all rows",
        "gradient boosting",
    }
    assert {row["trained_on"] for row in rows} == names and len(rows) == 2 * len(names)
    assert all(
        {"brier", "ece", "brier_calibrated", "ece_calibrated"} <= set(row["metrics"]) and row["split"] == "test"
        for row in rows
    )
    text = clinical.page(rows)
    assert (
        "| own | AUROC | 4 |" in text
        and "| several | macro AUROC | 2 |" in text
        and "| own | Brier score, calibrated | 4 |" in text
    )


def dataset_of(name: str) -> Dataset:
    if name == "breast_cancer":
        return load_dataset(name)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=list("abc"))
    frame = frame.assign(died=(frame["a"] > 0).astype(int), shock=(frame["b"] > 0.5).astype(int))
    return table_dataset(frame, TableSpec(target=("died", "shock")), val_fraction=0.2)


def test_probabilities_are_calibrated_on_validation_data() -> None:
    """Log odds that are twice too large and moved by one come back to those that the labels were drawn by."""
    stream = torch.Generator().manual_seed(0)
    odds = torch.randn(20000, 2, generator=stream, dtype=torch.float64)
    labels = (torch.rand(20000, 2, generator=stream) < odds.sigmoid()).float()
    task, far = Measured(MultiLabel()), 2 * odds + 1
    for part in (slice(0, 10000), slice(10000, None)):  # one network on validation, then on test
        measured = task.metrics(far[part], labels[part])
    found, wanted = task.calibrated(1), MultiLabel().metrics(odds[10000:], labels[10000:])
    assert measured["ece"] > 0.1 > 0.02 > found["ece_calibrated"]
    assert found["brier_calibrated"] == pytest.approx(wanted["brier"], abs=1e-3) and measured["brier"] > 0.2
    assert task.num_outputs(2) == 2 and task.score(far, labels) == MultiLabel().score(far, labels)


@pytest.mark.parametrize("where", [("bench/results", "docs/clinical.md"), ("docs/results", "docs/results.md")])
def test_the_pages_tables_are_those_of_the_results(where: tuple[str, str]) -> None:
    rows = json.loads((ROOT / where[0] / "clinical.json").read_text(encoding="utf-8"))["results"]
    page = (ROOT / where[1]).read_text(encoding="utf-8")
    assert document.section(page, clinical.SECTION) == clinical.page(rows)


def test_cells_are_means_over_seeds_of_means_over_networks() -> None:
    def row(name: str, seed: int, mean: float, ipc: int | None) -> dict[str, object]:
        return {"case": "c", "metric": "auroc", "ipc": ipc, "rows": 20, "trained_on": name, "seed": seed, "mean": mean}

    rows = [row("all rows", s, 0.9, None) for s in (0, 1)]
    rows += [row("MCT", 0, 0.7, 10), row("MCT", 1, 0.9, 10), row("random rows", 0, 0.5, 10)]
    (line,) = clinical.summary(rows)
    assert line == ["c", "AUROC", "20", "0.500 ± 0.000", "-", "0.800 ± 0.100", "-", "0.900 ± 0.000", "2"]


@pytest.mark.parametrize(
    ("words", "complaint"), [(["--only", "moon"], "no case 'moon'"), (["--seeds", "0"], "give at least 1")]
)
def test_wrong_words(words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert clinical.main(words) == 2
    assert complaint in capsys.readouterr().err
