"""Time series: arrays, long tables resampled to a grid, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mct_fast.data import Column, Dataset, TableSpec, TableTransform, TimeGrid, load_dataset, load_noted
from mct_fast.run.errors import InputError
from mct_fast.tabular.series import Resampler, resample

SPEC = TableSpec(target=("died",))
GRID = TimeGrid(id="stay", time="hours", steps=6)
N, T = 40, 6


def stays(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A long table with odd times, empty cells and rows beyond the window, and a row for each stay with its outcome."""
    rng = np.random.default_rng(seed)
    rows, outcomes = [], []
    for stay in range(100, 100 + N):
        times = np.sort(np.concatenate([[0.0], rng.uniform(0, 9, 7), rng.integers(0, 9, 2)]))
        for time in times:
            heart = rng.normal(80, 10) if rng.random() < 0.7 else np.nan
            rhythm = rng.choice(["sinus", "paced"]) if rng.random() < 0.4 else None
            rows.append((stay, time, heart, rhythm))
        outcomes.append((stay, int(stay % 3 == 0), f"p{stay // 2}"))
    table = pd.DataFrame(rows, columns=["stay", "hours", "heart_rate", "rhythm"])
    return table.sample(frac=1, random_state=0), pd.DataFrame(outcomes, columns=["stay", "died", "patient"])


def loaded(folder: Path, spec: TableSpec = SPEC, grid: TimeGrid = GRID, **options: Any) -> Dataset:
    table, labels = stays()
    table.to_csv(folder / "rows.csv", index=False)
    labels.to_csv(folder / "labels.csv", index=False)
    grid = replace(grid, labels_path=str(folder / "labels.csv"))
    return load_dataset("series", data_path=folder / "rows.csv", table=spec, grid=grid, **options)


def oracle(rows: pd.DataFrame, steps: int) -> np.ndarray:
    """The benchmark's rule in plain Python: the bin of t is int(t - 1e-6), and the last value of a bin counts."""
    grid = np.full((steps, 2), np.nan)
    for _, row in rows.sort_values("hours", kind="stable").iterrows():
        if row["hours"] > steps + 1e-6:
            continue
        step = min(int(row["hours"] - 1e-6), steps - 1)
        if not math.isnan(row["heart_rate"]):
            grid[step, 0] = row["heart_rate"]
        if isinstance(row["rhythm"], str):
            grid[step, 1] = ["paced", "sinus"].index(row["rhythm"])
    return grid


def test_a_long_table_is_resampled_as_the_benchmark_does(tmp_path: Path) -> None:
    dataset = loaded(tmp_path)
    assert (dataset.kind, dataset.task, dataset.image_shape) == ("series", "binary", (T, 6))
    assert dataset.transform.feature_names == (  # pyright: ignore
        "heart_rate", "rhythm=paced", "rhythm=sinus", "rhythm=(missing)", "heart_rate observed", "rhythm observed"
    )  # fmt: skip
    table, _ = stays()
    expected = {int(str(stay)): oracle(rows, T) for stay, rows in table.groupby("stay")}
    splits = (dataset.train, dataset.val, dataset.test)
    found = torch.cat([dataset.transform.inverse(split.images.double()) for split in splits])
    for grid, label in zip(found.numpy(), torch.cat([split.labels for split in splits]), strict=True):
        stay = next(stay for stay, own in expected.items() if np.allclose(own, grid, atol=1e-4, equal_nan=True))
        expected.pop(stay)
        assert int(label) == int(stay % 3 == 0)
    assert not expected, "each stay is found once"


def test_values_are_carried_forward_then_filled_in() -> None:
    nan = torch.nan
    raw = torch.tensor(
        [[[nan, 1.0], [2.0, nan], [nan, nan]], [[4.0, nan], [nan, 0.0], [8.0, 0.0]]], dtype=torch.float64
    )
    columns = (Column("rate"), Column("rhythm", ("a", "b")))
    transform = TableTransform.fit(raw, columns, mask=True)
    filled = torch.tensor([[4.0, 2.0, 2.0], [4.0, 4.0, 8.0]], dtype=torch.float64)  # 4 is the median of what was seen
    x = transform.forward(raw)
    assert torch.allclose(x[..., 0], (filled - filled.mean()) / filled.std(correction=0))
    assert x[..., 1:4].tolist() == [[[0, 1, 0]] * 3, [[0, 0, 1], [1, 0, 0], [1, 0, 0]]]
    assert torch.equal(x[..., 4:].bool(), ~raw.isnan())
    assert torch.allclose(transform.inverse(x).nan_to_num(-1), raw.nan_to_num(-1))
    normal = TableTransform.fit(raw, columns, mask=True, normal={"rate": 7.0, "rhythm": 1.0})
    assert normal.forward(raw)[0, 0, 1:3].tolist() == [0, 1] and normal.num_features == 5
    filled = torch.tensor([[7.0, 2.0, 2.0], [4.0, 4.0, 8.0]], dtype=torch.float64)
    assert torch.allclose(normal.forward(raw)[..., 0], (filled - filled.mean()) / filled.std(correction=0))


def test_later_values_never_reach_back() -> None:
    raw = torch.randn(3, 5, 1, dtype=torch.float64)
    raw[:, 2] = torch.nan
    transform = TableTransform.fit(raw, (Column("rate"),))
    later = raw.clone()
    later[:, 3:] = 9.0
    assert torch.equal(transform.forward(raw)[:, :3], transform.forward(later)[:, :3])
    assert torch.equal(transform.forward(raw)[:, 2], transform.forward(raw)[:, 1])


def test_steps_of_an_hour_given_in_minutes() -> None:
    ids, times = pd.Series([1, 1, 1, 1]), pd.Series([-5, 0, 60, 61], name="offset")
    values = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    series = resample(ids, times, values, [1], TimeGrid(step=60.0, steps=2))
    assert series.flatten().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("cuts", [1, 3, 50])
def test_rows_may_come_in_pieces_and_in_any_order(cuts: int) -> None:
    table, labels = stays()
    table = table.drop_duplicates(["stay", "hours"])  # of two rows at one time the one given last counts
    values = torch.tensor(table[["heart_rate"]].to_numpy(np.float64))
    whole = resample(table["stay"], table["hours"], values, labels["stay"], GRID)
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(table))
        resampler = Resampler(labels["stay"], 1, GRID)
        for rows in np.array_split(order, cuts):
            resampler.add(table["stay"].iloc[rows], table["hours"].iloc[rows], values.numpy()[rows])
        assert torch.equal(resampler.finish().nan_to_num(-1), whole.nan_to_num(-1))
    expected = np.stack([oracle(table[table["stay"] == stay], T)[:, :1] for stay in labels["stay"]])
    assert np.array_equal(whole.numpy(), expected, equal_nan=True)


def test_patients_stay_together_and_the_window_moves(tmp_path: Path) -> None:
    dataset = loaded(tmp_path, replace(SPEC, group="patient"))
    again = load_noted(dataset.source)
    assert again.fingerprint == dataset.fingerprint
    longer = loaded(tmp_path, replace(SPEC, group="patient", missing_mask=False), replace(GRID, steps=9))
    assert longer.image_shape[0] == 9 and longer.fingerprint != dataset.fingerprint


def test_outcomes_in_the_long_table_itself(tmp_path: Path) -> None:
    table, labels = stays()
    table.merge(labels, on="stay").to_csv(tmp_path / "whole.csv", index=False)
    spec = replace(SPEC, drop=("patient",))
    whole = load_dataset("series", data_path=tmp_path / "whole.csv", table=spec, grid=GRID)
    assert whole.image_shape == (T, 6) and whole.train.labels.ndim == 1
    broken = table.merge(labels, on="stay")
    broken.loc[3, "died"] = 1 - broken.loc[3, "died"]
    broken.to_csv(tmp_path / "whole.csv", index=False)
    with pytest.raises(InputError, match="'died' has two values within 'stay' .*; a series needs one"):
        load_dataset("series", data_path=tmp_path / "whole.csv", table=spec, grid=GRID)


def arrays(**changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, T, 3))
    x[rng.random(x.shape) < 0.2] = np.nan
    return {"x": x, "y": np.arange(N) % 2, **changed}


def test_arrays(tmp_path: Path) -> None:
    given = arrays(y=np.stack([np.arange(N) % 2, np.arange(N) % 4 == 0], 1), feature_names=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "data.npz", **given, group=np.arange(N) // 2)
    dataset = load_dataset("series", data_path=tmp_path / "data.npz", table=TableSpec(target=("shock", "death")))
    assert (dataset.task, dataset.class_names, dataset.image_shape) == ("multilabel", ("shock", "death"), (T, 6))
    assert sum(len(part) for part in (dataset.train, dataset.val, dataset.test)) == N
    np.save(tmp_path / "x.npy", given["x"])
    np.save(tmp_path / "y.npy", np.arange(N) % 2)
    grid = TimeGrid(labels_path=str(tmp_path / "y.npy"))
    plain = load_dataset("series", data_path=tmp_path / "x.npy", grid=grid, table=TableSpec(missing_mask=False))
    assert plain.task == "binary" and plain.image_shape == (T, 3)
    np.savez(tmp_path / "own.npz", **arrays(), x_test=given["x"][:8], y_test=np.arange(8) % 2)
    own = load_dataset("series", data_path=tmp_path / "own.npz")
    assert len(own.test) == 8 and len(own.train) + len(own.val) == N


def ragged() -> np.ndarray:
    series = np.empty(N, dtype=object)
    series[:] = [np.zeros((1 + i % 3, 2)) for i in range(N)]
    return series


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "ragged": (arrays(x=ragged()), r"data.npz holds ragged series or objects, .*; pad the series to one length"),
    "no labels": ({"x": arrays()["x"]}, r"has no array 'y'; save x \(n, time, features\) and y"),
    "flat": (arrays(x=np.zeros((N, 4))), r"x: got float64 of shape \(40, 4\); give numbers \(n, time, features\)"),
    "words": (arrays(x=np.full((N, T, 2), "a")), r"x: got <U1 of shape .*; give numbers"),
    "infinite": (arrays(x=np.full((N, T, 2), np.inf)), r"x: holds infinite numbers; repair them"),
    "label count": (arrays(y=np.zeros(3)), r"y: shape is \(3,\) for 40 series; give \(n,\) or \(n, k\)"),
    "nan label": (
        arrays(y=np.where(np.arange(N) == 5, np.nan, np.arange(N) % 2)),
        r"target 'y' has no value in 1 of 40",
    ),
    "names": (arrays(feature_names=np.array(["a", "a", "b"])), r"feature_names: 2 different names for 3 features"),
    "test alone": (arrays(x_test=np.zeros((2, T, 3))), r"has x_test but no y_test; save both"),
    "constant": (arrays(x=np.ones((N, T, 1))), r"'feature 0' is constant in the training split; leave it out"),
    "test shape": (arrays(x_test=np.zeros((2, 9, 3)), y_test=np.arange(2)), r"x_test: series are \(9, 3\), those of x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    given, message = BAD[case]
    np.savez(tmp_path / "data.npz", **given)
    with pytest.raises(InputError, match=message) as caught:
        load_dataset("series", data_path=tmp_path / "data.npz")
    assert "\n" not in str(caught.value)


def test_bad_long_tables_are_refused_in_one_line(tmp_path: Path) -> None:
    table, labels = stays()

    def refused(table: pd.DataFrame, labels: pd.DataFrame, grid: TimeGrid = GRID, spec: TableSpec = SPEC) -> str:
        table.to_csv(tmp_path / "rows.csv", index=False)
        labels.to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(InputError) as caught:
            load_dataset(
                "series",
                data_path=tmp_path / "rows.csv",
                table=spec,
                grid=replace(grid, labels_path=str(tmp_path / "labels.csv")),
            )
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "id: missing; name the column" in refused(table, labels, replace(GRID, id=None))
    assert "no column 'visit' in the long table" in refused(table, labels, replace(GRID, id="visit"))
    with pytest.raises(InputError, match="steps: got 0; give a whole number of at least 1"):
        replace(GRID, steps=0)
    assert "no column 'dead'" in refused(table, labels, spec=TableSpec(target=("dead",)))
    assert "'stay' 100 has two rows; keep one" in refused(table, pd.concat([labels, labels[:1]]))
    lost = refused(table[table["stay"] != 103], labels)
    assert "1 of 40 series, first 103, have no row within 6 steps of 1; remove them" in lost
    late = table.assign(hours=table["hours"].astype(object))
    late.iloc[4, 1] = "noon"
    assert "'hours' holds 'noon', which is no number" in refused(late, labels)
    assert "has no column 'stay'" in refused(table, labels.rename(columns={"stay": "visit"}))
    assert "no column 'pulse'" in refused(table, labels, spec=replace(SPEC, features=("pulse",)))
    (tmp_path / "x.npy").write_bytes(b"?")
    with pytest.raises(InputError, match="save it with numpy.savez"):
        load_dataset("series", data_path=tmp_path / "x.npy", grid=TimeGrid(labels_path=str(tmp_path / "x.npy")))
    np.save(tmp_path / "x.npy", arrays()["x"])
    with pytest.raises(InputError, match="labels_path: missing; an .npy file holds no labels"):
        load_dataset("series", data_path=tmp_path / "x.npy")
