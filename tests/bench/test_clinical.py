"""The clinical table: every cell is the mean of what was kept, and an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import clinical, document

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
