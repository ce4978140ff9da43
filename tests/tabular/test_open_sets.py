"""Open clinical sets, on small files of the form that they are published in; what a published file is, its SHA-256 says."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mct_fast.data import TableSpec, TimeGrid, load_dataset, load_noted
from mct_fast.run.errors import InputError
from mct_fast.tabular.open_sets import _DESCRIPTORS, _MEASURED, COMPLICATIONS, OPEN_SETS
from mct_fast.tabular.recipes import TABLES


def measured(rng: np.random.Generator, rows: int, names: tuple[str, ...]) -> pd.DataFrame:
    frame = pd.DataFrame({name: rng.normal(50, 9, rows) for name in names})
    return frame.mask(rng.random(frame.shape) < 0.2)


def physionet(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    known = {
        "Length_of_stay": 3,
        "Survival": -1,
        "SAPS-I": 15,
        "SOFA": 4,
        "In-hospital_death": np.arange(rows) % 7 == 0,
    }
    frame = pd.DataFrame({"recordid": np.arange(rows), **known}).astype(int)
    return frame.join(measured(rng, rows, ("Age", "GCS_first", "Lactate_last")))


def support(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    dropped = dict.fromkeys(OPEN_SETS["support2"].spec.drop, 1)
    words = {"sex": rng.choice(["male", "female"], rows), "dzgroup": rng.choice(["CHF", "COPD", "Coma"], rows)}
    frame = pd.DataFrame({**dropped, **words, "hospdead": (np.arange(rows) % 4 == 0).astype(int)}, index=range(rows))
    return frame.join(measured(rng, rows, ("age", "meanbp")))


def infarction(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    numbers = np.arange(rows)
    some = {name: (numbers % (5 + i) == 0).astype(int) for i, name in enumerate(COMPLICATIONS)}
    rare = (numbers == 3).astype(int)  # in one split alone: constant in the others
    dropped = dict.fromkeys(OPEN_SETS["myocardial-infarction"].spec.drop, 1)
    return pd.DataFrame({**dropped, "nr_07": rare, **some}, index=numbers).join(measured(rng, rows, ("AGE", "ROE")))


def covid(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    numbers = np.arange(rows)
    result = np.where(numbers // 2 % 9 == 0, "positive", "negative").astype(object)
    result[5] = "invalid"
    dropped = dict.fromkeys(OPEN_SETS["covid-testing"].spec.drop, "x")
    words = {"gender": rng.choice(["male", "female"], rows), "payor_group": rng.choice(["government", None], rows)}
    frame = pd.DataFrame({**dropped, **words, "subject_id": numbers // 2, "result": result}, index=numbers)
    return frame.assign(age=rng.integers(0, 90, rows))


MADE: dict[str, Callable[[np.random.Generator, int], pd.DataFrame]] = {
    "physionet2012": physionet,
    "support2": support,
    "myocardial-infarction": infarction,
    "covid-testing": covid,
}


def write(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, packed: bool = False, rows: int = 200) -> None:
    """Files of the set's form, of which its digests are from now on."""
    rng, digests = np.random.default_rng(1), {}
    for file in OPEN_SETS[name].files:
        text = MADE[name](rng, rows).to_csv(index=False).encode()
        digests[file] = hashlib.sha256(text).hexdigest()
        (folder / (f"{file}.gz" if packed else file)).write_bytes(gzip.compress(text) if packed else text)
    monkeypatch.setitem(TABLES, name, replace(OPEN_SETS[name], files=digests))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", MADE)
def test_a_users_copy_is_read(name: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(name, tmp_path, monkeypatch, packed)
    dataset = load_dataset(name, data_path=tmp_path, val_fraction=0.2)
    splits = (dataset.train, dataset.val, dataset.test)
    wanted = {"physionet2012": 400, "covid-testing": 199}  # both sets; without the invalid test
    assert sum(map(len, splits)) == wanted.get(name, 200) and all(len(split) for split in splits)
    assert dataset.task == ("multilabel" if name == "myocardial-infarction" else "binary")
    names = {feature.partition("=")[0] for feature in dataset.transform.feature_names}  # pyright: ignore
    spec = OPEN_SETS[name].spec
    assert not names & {*spec.drop, *spec.target, spec.group}, "what is known only afterwards is no feature"
    assert all(bool(split.images.isfinite().all()) for split in splits)
    shares = [float(split.labels.double().mean()) for split in splits]
    assert max(shares) - min(shares) < 0.08, "stratified"
    other = load_dataset(name, data_path=tmp_path, val_fraction=0.2, split_seed=1)
    assert other.test.sha256 == dataset.test.sha256 and other.val.sha256 != dataset.val.sha256
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint


def test_set_b_tests_what_set_a_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("physionet2012", tmp_path, monkeypatch, rows=100)
    assert len(load_dataset("PhysioNet-2012", data_path=tmp_path).test) == 100


@pytest.mark.parametrize("name", MADE)
def test_another_file_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, source = next(iter(OPEN_SETS[name].files)), OPEN_SETS[name].source.split(" ")[0]

    def complaint() -> str:
        with pytest.raises(InputError) as caught:
            load_dataset(name, data_path=tmp_path)
        assert "\n" not in str(caught.value) and source in str(caught.value)
        return str(caught.value)

    with pytest.raises(InputError, match=f"data_path is missing: {name} needs .*{first}.*from {source}"):
        load_dataset(name)
    assert f"has no {first} or {first}.gz; download it from" in complaint()
    write(name, tmp_path, monkeypatch)
    (tmp_path / first).write_bytes((tmp_path / first).read_bytes() + b"\n")
    assert f"{first} is not the published file (SHA-256 " in complaint()
    (tmp_path / first).unlink()
    (tmp_path / f"{first}.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-9])
    assert f"{first}.gz cannot be read" in complaint()


# The challenge's own files


def write_stays(root: Path, rows: int = 30) -> None:
    rng = np.random.default_rng(2)
    for part, first in (("a", 100), ("b", 500)):
        (root / f"set-{part}").mkdir()
        for stay in range(first, first + rows):
            known = {
                "RecordID": stay,
                "Age": 40 + stay % 9,
                "Height": -1 if stay >= 500 else stay + 60,
                "Weight": stay - 40,
            }
            known |= {"Gender": -1 if stay == first else stay % 2, "ICUType": 1 + stay % 4}
            lines = ["Time,Parameter,Value", *(f"00:00,{name},{value}" for name, value in known.items())]
            lines += [f"{hour:02}:30,{name},{rng.normal(50, 9):.2f}" for hour in (0, 1, 40) for name in _MEASURED]
            (root / f"set-{part}" / f"{stay}.txt").write_text(
                "\n".join([*lines, "03:15,Temp,-17.8", "47:59,HR,88"]) + "\n"
            )
        stays = np.arange(first, first + rows)
        deaths = {"RecordID": stays, "SAPS-I": 3, "Survival": -1, "In-hospital_death": (stays % 5 == 0).astype(int)}
        pd.DataFrame(deaths).to_csv(root / f"Outcomes-{part}.txt", index=False)


def test_stays_of_the_challenge_are_hourly(tmp_path: Path) -> None:
    write_stays(tmp_path)
    dataset = load_dataset("physionet2012-series", data_path=tmp_path)
    columns, features = len(_DESCRIPTORS) + len(_MEASURED), len(_DESCRIPTORS) + len(_MEASURED) - 1 + 5
    assert dataset.image_shape == (48, features + columns) and len(dataset.test) == 30 and dataset.task == "binary"
    raw = dataset.transform.inverse(dataset.test.images.double())
    place = {column.name: i for i, column in enumerate(dataset.transform.columns)}  # pyright: ignore
    torch.testing.assert_close(
        raw[:, 0, place["Age"]], torch.tensor([40.0 + stay % 9 for stay in range(500, 530)]).double()
    )
    assert bool(raw[:, :, place["Height"]].isnan().all()), "-1 is missing"
    assert raw[0, 0, place["Gender"]].isnan() and raw[1, 0, place["Gender"]] == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(raw[:, 47, place["HR"]], torch.full((30,), 88.0).double())
    torch.testing.assert_close(
        raw[:, 3, place["Temp"]], torch.full((30,), -17.8).double()
    )  # a measurement, if a bad one
    assert len(load_dataset("physionet2012-series", data_path=tmp_path, grid=TimeGrid(steps=24)).train.images[0]) == 24
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint


def test_damaged_stays_are_named(tmp_path: Path) -> None:
    def complaint(match: str) -> None:
        with pytest.raises(InputError, match=match):
            load_dataset("physionet2012-series", data_path=tmp_path)

    complaint("has no Outcomes-a.txt; give the challenge's folder")
    write_stays(tmp_path)
    stay = tmp_path / "set-b" / "503.txt"
    text = stay.read_text()
    for damage, match in (
        (text.replace("Time,", "Hour,"), "503.txt does not begin with Time,Parameter,Value"),
        (text.replace("HR,88", "HR,fast"), "503.txt cannot be read"),
        (text.replace("ICUType,4", "ICUType,9"), "503.txt has the unit 9"),
        ("", "503.txt cannot be read"),
    ):
        stay.write_text(damage)
        complaint(match)
    stay.unlink()
    complaint("503.txt cannot be read")
    (tmp_path / "Outcomes-a.txt").write_text("RecordID,Survival\n100,3\n")
    complaint("Outcomes-a.txt cannot be read .*In-hospital_death")


def test_options_win_over_the_sets_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("support2", tmp_path, monkeypatch)
    own = load_dataset("support2", data_path=tmp_path, table=TableSpec(features=("age", "sex")))
    names = own.transform.feature_names  # pyright: ignore
    assert names[:1] == ("sex=female",) or names[0] == "age"
    assert {name.partition("=")[0] for name in names} <= {"age", "sex", "age observed"}
