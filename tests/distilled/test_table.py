"""Distilled tables in original units and categories, what their files say, and the way from a CSV file to one."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mct_fast import cli
from mct_fast.data import Dataset, Identity, TableSpec, TimeGrid, load_dataset, table_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.distilled import DistilledDataset
from mct_fast.distilled.table import PRIVACY, nearest_real, nearest_text, table_frame
from mct_fast.experts import ExpertConfig, train_experts
from mct_fast.run.errors import InputError
from mct_fast.tabular.series import long_table
from mct_fast.tasks import Binary, Classification, task_named

ROOT = Path(__file__).parents[2]
EXPERTS = ExpertConfig(model="MLP", depth=1, width=8, num_experts=2, train_epochs=3, lr_teacher=0.1)
DISTILL = DistillConfig(
    ipc=2, syn_steps=2, expert_epochs=1.0, max_start_epoch=1.0, lr_img=10.0, iterations=2, eval_it=1, num_eval=1,
    epoch_eval_train=2,
)  # fmt: skip


def patients(count: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    age = rng.integers(20, 95, count)
    ward = rng.choice(["north", "south"], count).astype(object)
    ward[rng.random(count) < 0.1] = None
    return pd.DataFrame(
        {"age": age, "lactate": rng.gamma(2.0, 1.5, count), "ward": ward, "died": (rng.random(count) < age / 150) * 1}
    )


def dataset_of(frame: pd.DataFrame | None = None, target: tuple[str, ...] = ("died",)) -> Dataset:
    return table_dataset(patients() if frame is None else frame, TableSpec(target=target))


def set_of(dataset: Dataset, rows: int = 4, **provenance: object) -> DistilledDataset:
    noted = {
        "dataset": dataset.name,
        "task": task_named(dataset.task).state(),
        "target": list(dataset.target),
        **provenance,
    }
    images, labels = dataset.train.images[:rows].clone(), dataset.train.labels[:rows].clone()
    return DistilledDataset(images, labels, 0.1, dataset.transform, dataset.class_names, noted)


def test_real_rows_come_back_as_they_were() -> None:
    frame, dataset = patients(), dataset_of()
    found = table_frame(set_of(dataset, rows=20))
    assert list(found.columns) == ["age", "lactate", "ward", "died"] and str(found["age"].dtype) == "Int64"
    for _, row in found.iterrows():
        same = frame[(frame["age"] == row["age"]) & np.isclose(frame["lactate"], row["lactate"], rtol=1e-5)]
        (match,) = [candidate for _, candidate in same.iterrows()]
        assert str(match["died"]) == row["died"]
        assert match["ward"] == row["ward"] or (pd.isna(match["ward"]) and pd.isna(row["ward"]))
    assert found["ward"].isna().any(), "the rows include a missing ward"


def test_rows_moved_by_distillation_keep_units() -> None:
    dataset = dataset_of()
    moved = set_of(dataset, 2)
    moved.images[0] = torch.tensor([1.0, -1.0, 0.2, 0.9, 0.1])
    row = table_frame(moved).iloc[0]
    frame = patients()
    assert row["ward"] == "south"
    assert abs(row["age"] - (frame["age"].mean() + frame["age"].std())) < 4
    assert abs(row["lactate"] - (frame["lactate"].mean() - frame["lactate"].std())) < 0.6


def test_several_targets_and_soft_labels() -> None:
    frame = patients().assign(shock=lambda rows: (rows["lactate"] > 4) * 1)
    several = set_of(dataset_of(frame, ("died", "shock")))
    several.labels[0] = torch.tensor([0.25, 1.0])
    cells = table_frame(several)
    assert list(cells.columns[-2:]) == ["died", "shock"] and cells["died"][0] == 0.25 and cells["shock"][0] == 1
    for task, labels in (
        (Classification(), [[0.8, 0.2], [0.3, 0.7]]),
        (Binary(), [0.2, 0.7]),
        (Binary(), [[0.2], [0.7]]),
    ):
        soft = replace(set_of(dataset_of(), 2, task=task.state()), labels=torch.tensor(labels))
        cells = table_frame(soft)
        assert cells["died"].tolist() == ["0", "1"]
        assert cells["died: weight of 1"].tolist() == pytest.approx([0.2, 0.7])


def test_series_give_a_row_a_step() -> None:
    rows = pd.DataFrame({"stay": np.repeat(range(30), 3), "hour": np.tile([1, 2, 3], 30), "rate": np.arange(90.0)})
    labels = pd.DataFrame({"stay": range(30), "died": np.arange(30) % 2})
    from mct_fast.data.dataset import of_table

    spec = TableSpec(target=("died",))
    raw = long_table(rows, labels, spec, TimeGrid(id="stay", time="hour", steps=3))
    dataset = of_table("stays", raw, spec, 0.1, 0, torch.device("cpu"), {})
    cells = table_frame(set_of(dataset, 2))
    assert list(cells.columns) == ["series", "step", "rate", "died"] and len(cells) == 6
    assert cells["step"].tolist() == [0, 1, 2] * 2 and cells["rate"].diff().tolist()[1:3] == [1, 1]
    assert nearest_real(dataset.train.images[:3], dataset)["copies"] == 3


# The files


def test_files_say_what_the_rows_are_not(tmp_path: Path) -> None:
    dataset = dataset_of()
    distilled = set_of(dataset, 6)
    path = distilled.to_csv(tmp_path / "deep" / "rows.csv", dataset)
    text = path.read_text()
    assert text.startswith("# 6 synthetic rows") and PRIVACY in text.splitlines()[1]
    assert "nearest real training row" in text.splitlines()[2]
    meta = json.loads((tmp_path / "deep" / "rows.json").read_text())
    assert meta["privacy"] == PRIVACY and "no privacy guarantee" in PRIVACY
    assert meta["nearest_real"]["copies"] == 6 and meta["task"] == "binary" and meta["target"] == ["died"]
    again = pd.read_csv(path, comment="#")
    assert again["age"].tolist() == table_frame(distilled)["age"].tolist()
    assert np.allclose(again["lactate"], table_frame(distilled)["lactate"], rtol=1e-5)
    unmeasured = json.loads((set_of(dataset).to_csv(tmp_path / "b.csv").parent / "b.json").read_text())
    assert unmeasured["nearest_real"] is None and "nearest" not in (tmp_path / "b.csv").read_text()
    with pytest.raises(InputError, match="ends in .csv"):
        distilled.to_csv(tmp_path / "rows.xlsx")


def test_a_distilled_file_is_a_table_again(tmp_path: Path) -> None:
    path = set_of(dataset_of(), 60).to_csv(tmp_path / "rows.csv")
    again = load_dataset("table", data_path=path, table=TableSpec(target=("died",)))
    assert again.transform.feature_names == dataset_of().transform.feature_names  # pyright: ignore
    assert len(again.train) + len(again.val) + len(again.test) == 60


def test_saved_sets_keep_the_table(tmp_path: Path) -> None:
    distilled = set_of(dataset_of())
    again = DistilledDataset.load(distilled.save(tmp_path))
    pd.testing.assert_frame_equal(table_frame(again), table_frame(distilled))
    with pytest.raises(InputError, match="rows of a table, not images; use to_csv"):
        again.to_png(tmp_path / "x.png")
    images = DistilledDataset(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), 0.1, Identity(), ("a", "b"))
    with pytest.raises(InputError, match="holds images, not rows of a table; use to_png"):
        images.to_csv(tmp_path / "x.csv")


def test_distances_are_those_of_brute_force() -> None:
    dataset = dataset_of()
    rows = dataset.test.images[:7] + 0.3
    found = nearest_real(rows, dataset)
    train = dataset.train.images.double().numpy()
    own = [float(np.sqrt(((train - row) ** 2).sum(1)).min()) for row in rows.double().numpy()]
    held_out = [float(np.sqrt(((train - row) ** 2).sum(1)).min()) for row in dataset.test.images.double().numpy()]
    assert found["distances"] == pytest.approx(own, rel=1e-5) and found["rows"] == 7 and found["copies"] == 0
    assert (found["min"], found["median"]) == pytest.approx((min(own), float(np.median(own))), rel=1e-5)
    yardstick = found["held_out"]
    assert (yardstick["min"], yardstick["median"]) == pytest.approx((min(held_out), np.median(held_out)), rel=1e-5)
    assert found["closer_than_held_out"] == pytest.approx(np.mean(np.array(own) < np.median(held_out)))
    assert "copies of a training row: 0" in nearest_text(found)


# End to end


def test_distilling_a_table_writes_it_out(tmp_path: Path) -> None:
    patients().to_csv(tmp_path / "patients.csv", index=False)
    config = replace(EXPERTS, dataset="table", data_path=str(tmp_path / "patients.csv"))
    store = train_experts(replace(config, table=TableSpec(target=("died",))), tmp_path / "experts")
    assert "dsa" not in store.manifest["recipe"], "rows are not augmented"
    distilled = distill(DISTILL, tmp_path / "experts", out=tmp_path / "run")
    assert distilled.provenance["task"] == {"name": "binary", "pos_weight": 1.0} and distilled.provenance["target"] == [
        "died"
    ]
    assert "data_path" not in distilled.provenance["data"]
    assert distilled.provenance["nearest_real"]["rows"] == 4
    assert len(pd.read_csv(tmp_path / "run" / "distilled.csv", comment="#")) == 4


def test_the_command_line_from_a_csv_file_to_a_csv_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patients().to_csv(tmp_path / "patients.csv", index=False)
    words = f"--dataset table --data-path {tmp_path / 'patients.csv'} --target died --model MLP --depth 1 --width 8"
    words += f" --num-experts 2 --train-epochs 3 --out {tmp_path / 'experts'}"
    assert cli.main(["experts", *words.split()]) == 0
    words = f"--trajectories {tmp_path / 'experts'} --out {tmp_path / 'run'} --ipc 2 --syn-steps 2 --iterations 2"
    words += " --max-start-epoch 1 --expert-epochs 1 --eval-it 1 --num-eval 1 --epoch-eval-train 2"
    assert cli.main(["distill", *words.split()]) == 0
    shown = capsys.readouterr().out
    assert "no privacy guarantee" in shown and "nearest real training row" in shown
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no privacy guarantee" in page and "<h2>Rows</h2>" in page and "lactate" in page
    evaluation = ["--num-eval", "1", "--epoch-eval-train", "2", "--no-random-real"]
    assert cli.main(["evaluate", str(tmp_path / "run"), *evaluation]) == 0
    # The set alone says how its table is read; only the file's place is given.
    shutil.move(tmp_path / "run" / "distilled", tmp_path / "alone")
    assert (
        cli.main(["evaluate", str(tmp_path / "alone"), "--data-path", str(tmp_path / "patients.csv"), *evaluation]) == 0
    )
    assert cli.main(["inspect", str(tmp_path / "alone")]) == 0
    assert "no privacy guarantee" in capsys.readouterr().out
    assert cli.main(["experts", "--dataset", "breast_cancer", "--out", str(tmp_path / "other")]) == 2
    assert "ConvNet takes images, the data are table; use MLP" in capsys.readouterr().err


def test_one_positive_in_a_hundred_end_to_end(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(4000, 3))
    frame = pd.DataFrame(signal, columns=["a", "b", "c"]).assign(ill=(signal[:, 0] + signal[:, 1] > 1.5) * 1)
    dataset = table_dataset(frame, TableSpec(target=("ill",), subsample_positive=0.01))
    assert float(dataset.train.labels.double().mean()) == pytest.approx(0.01, abs=1e-3)
    store = train_experts(EXPERTS, tmp_path / "experts", dataset)
    distilled = distill(DISTILL, store, dataset)
    assert distilled.images.shape == (4, 3) and bool(torch.isfinite(distilled.images).all())
    assert table_frame(distilled)["ill"].tolist() == ["0", "0", "1", "1"]


def test_the_example_goes_from_csv_to_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = ROOT / "examples" / "clinical.py"
    body = [
        line for line in example.read_text().splitlines() if line and not line.startswith(("import", "from", '"""'))
    ]
    assert len(body) <= 10
    patients().drop(columns="ward").to_csv(tmp_path / "patients.csv", index=False)
    out = tmp_path / "distilled.csv"
    monkeypatch.setattr(sys, "argv", ["clinical.py", str(tmp_path / "patients.csv"), "died", str(out)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(out)
    rows = pd.read_csv(out, comment="#")
    assert list(rows.columns) == ["age", "lactate", "died"] and rows["died"].value_counts().to_dict() == {0: 10, 1: 10}
    assert json.loads(out.with_suffix(".json").read_text())["nearest_real"]["rows"] == 20
