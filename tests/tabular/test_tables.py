"""Tables: what their columns become, how rows are split, and what is refused."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mct_fast.data import (
    Dataset,
    TableSpec,
    TableTransform,
    load_dataset,
    load_noted,
    table_dataset,
    transform_from_state,
)
from mct_fast.run.errors import InputError
from mct_fast.tabular.frames import read_frame

SPEC = TableSpec(target=("died",))


def patients(count: int = 120, seed: int = 0) -> pd.DataFrame:
    """Ages are whole, lactate lacks values, ward is text that lacks some, smoker is a number that means a category."""
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 95, count)
    lactate = rng.gamma(2.0, 1.5, count)
    died = (rng.random(count) < 1 / (1 + np.exp(-(age - 70) / 10 - lactate / 3 + 1))).astype(int)
    ward = rng.choice(["north", "south", "west"], count).astype(object)
    ward[rng.random(count) < 0.1] = None
    lactate[rng.random(count) < 0.2] = np.nan
    return pd.DataFrame(
        {"age": age, "lactate": lactate, "ward": ward, "smoker": rng.integers(0, 3, count), "died": died}
    )


def raw_rows(dataset: Dataset, split: str = "train") -> torch.Tensor:
    return dataset.transform.inverse(getattr(dataset, split).images.double())


def refused(frame: pd.DataFrame, spec: TableSpec = SPEC, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        table_dataset(frame, spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Features


@pytest.mark.parametrize("impute", ["median", "mean"])
def test_features_are_those_of_scikit_learn(impute: str) -> None:
    """The oracle: SimpleImputer, StandardScaler, OneHotEncoder and MissingIndicator fitted on the same training rows."""
    frame = patients()
    spec = replace(SPEC, categorical=("smoker",), impute=impute, missing_mask=True)
    dataset = table_dataset(frame.assign(row=range(len(frame))), replace(spec, features=("row", *frame.columns[:-1])))
    rows = {part: raw_rows(dataset, part)[:, -1].round().long().numpy() for part in ("train", "val", "test")}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(frame)))
    texts = frame.assign(ward=frame["ward"].fillna("(missing)").astype(str), smoker=frame["smoker"].astype(str))
    oracle = ColumnTransformer(
        [
            ("age", StandardScaler(), ["age"]),
            ("lactate", make_pipeline(SimpleImputer(strategy=impute), StandardScaler()), ["lactate"]),
            (
                "ward",
                OneHotEncoder(categories=[["north", "south", "west", "(missing)"]], sparse_output=False),
                ["ward"],
            ),
            ("smoker", OneHotEncoder(categories=[["0", "1", "2"]], sparse_output=False), ["smoker"]),
            ("mask", MissingIndicator(), ["lactate"]),
        ]
    ).fit(texts.iloc[rows["train"]])
    names = dataset.transform.feature_names  # pyright: ignore
    kept = [i for i, name in enumerate(names) if name not in ("row", "smoker=(missing)")]
    for part, own in rows.items():
        expected = oracle.transform(texts.iloc[own])
        expected[:, -1] = 1 - expected[:, -1]  # 1 means observed here
        assert np.allclose(getattr(dataset, part).images[:, kept].numpy(), expected, atol=1e-6), part
    assert names[1:4] == ("lactate", "ward=north", "ward=south") and names[-1] == "lactate observed"
    assert not dataset.train.images[:, names.index("smoker=(missing)")].any()


def test_original_units_and_categories_come_back() -> None:
    frame = patients()
    dataset = table_dataset(frame, replace(SPEC, missing_mask=True))
    for part in ("train", "val", "test"):
        raw = raw_rows(dataset, part)
        split = getattr(dataset, part)
        again = dataset.transform.forward(raw)
        assert torch.allclose(again, split.images.double(), atol=1e-6)
        matches = [
            ((frame["age"] == round(float(age))) & (np.isclose(frame["lactate"], float(lactate), atol=1e-5)))
            | ((frame["age"] == round(float(age))) & frame["lactate"].isna() & bool(lactate.isnan()))
            for age, lactate in raw[:, :2]
        ]
        assert all(match.any() for match in matches), "each row is one of the frame's"
    columns = dataset.transform.columns  # pyright: ignore
    assert columns[2].levels == ("north", "south", "west") and columns[0].whole and not columns[1].whole


def test_a_category_never_seen_in_training_is_missing() -> None:
    frame = patients().assign(split=["train"] * 80 + ["val"] * 20 + ["test"] * 20)
    frame.loc[frame.index[110], "ward"] = "east"
    dataset = table_dataset(frame, replace(SPEC, split_column="split"))
    names = dataset.transform.feature_names  # pyright: ignore
    assert "ward=east" not in names
    assert dataset.test.images[10, names.index("ward=(missing)")] == 1
    other = table_dataset(frame, replace(SPEC, split_column="split", impute_categories="most_frequent"))
    names = other.transform.feature_names  # pyright: ignore
    common = frame["ward"][:80].value_counts().index[0]
    assert "ward=(missing)" not in names and other.test.images[10, names.index(f"ward={common}")] == 1


def test_missing_is_no_answer_where_nothing_was_missing() -> None:
    dataset = table_dataset(patients(), replace(SPEC, categorical=("smoker",)))
    x = torch.zeros(1, dataset.image_shape[0])
    names = dataset.transform.feature_names  # pyright: ignore
    x[0, names.index("smoker=(missing)")], x[0, names.index("ward=(missing)")] = 5, 5
    raw = dataset.transform.inverse(x)[0]
    assert not raw[3].isnan() and raw[2].isnan()


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "mask"])
def test_the_transform_is_saved_whole(mask: bool) -> None:
    dataset = table_dataset(patients(), replace(SPEC, missing_mask=mask))
    tensors, meta = dataset.transform.state()
    again = transform_from_state(tensors, meta)
    assert isinstance(again, TableTransform) and again.state()[1] == meta
    ours, theirs = (t.inverse(dataset.test.images).nan_to_num(-9) for t in (again, dataset.transform))
    assert torch.equal(ours, theirs)
    del tensors["fill"]
    with pytest.raises(InputError, match="table.*incomplete"):
        transform_from_state(tensors, meta)


# Targets


def test_binary_multiclass_and_multilabel_targets() -> None:
    frame = patients()
    binary = table_dataset(frame, SPEC)
    assert (binary.task, binary.kind, binary.class_names) == ("binary", "table", ("0", "1"))
    assert binary.train.labels.dtype == torch.int64 and binary.train.labels.ndim == 1
    classes = table_dataset(frame, TableSpec(target=("smoker",), drop=("ward",)))
    assert (classes.task, classes.class_names, classes.num_classes) == ("classification", ("0", "1", "2"), 3)
    several = table_dataset(frame.assign(shock=frame["lactate"].gt(3).astype(int)), TableSpec(target=("died", "shock")))
    assert (several.task, several.class_names) == ("multilabel", ("died", "shock"))
    assert several.train.labels.shape == (len(several.train), 2) and several.train.labels.dtype == torch.float32
    assert set(several.train.labels.unique().tolist()) == {0.0, 1.0}


def test_which_value_is_positive() -> None:
    frame = patients()
    words = frame.assign(died=frame["died"].map({0: "alive", 1: "dead"}))
    dataset = table_dataset(words, replace(SPEC, positive="dead"))
    assert dataset.class_names == ("alive", "dead")
    assert torch.equal(dataset.train.labels, table_dataset(frame, SPEC).train.labels)
    assert "say which is positive, e.g. positive='dead'" in refused(words)
    assert "not 'gone'; name one of them" in refused(words, replace(SPEC, positive="gone"))
    truth = table_dataset(frame.assign(died=frame["died"] == 1), SPEC)
    assert torch.equal(truth.train.labels, dataset.train.labels) and truth.class_names == ("False", "True")


# Splits


def test_splits_are_stratified_and_drawn_by_the_seed() -> None:
    frame = patients(400)
    first, again, other = (table_dataset(frame, SPEC, split_seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.test.sha256 == other.test.sha256 and first.val.sha256 != other.val.sha256
    share = frame["died"].mean()
    for part in (first.train, first.val, first.test):
        assert abs(float(part.labels.double().mean()) - share) < 0.5 / len(part) + 0.01
    assert [len(part) for part in (first.train, first.val, first.test)] == [288, 32, 80]


@pytest.mark.parametrize("rare", [False, True], ids=["even", "rare"])
def test_no_group_lies_in_two_splits(rare: bool) -> None:
    rng = np.random.default_rng(3)
    frame = patients(600).assign(patient=rng.integers(0, 150, 600))
    if rare:
        frame["died"] = (frame["patient"] % 50 == 0).astype(int)
    dataset = table_dataset(frame.assign(key=frame["patient"]), replace(SPEC, group="patient"))
    seen = [set(raw_rows(dataset, part)[:, -1].round().long().tolist()) for part in ("train", "val", "test")]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert sum(map(len, seen)) == frame["patient"].nunique()
    assert 0.1 < len(dataset.test) / 600 < 0.3
    assert all(part.labels.any() for part in (dataset.train, dataset.val, dataset.test))
    assert "patient" not in dataset.transform.feature_names  # pyright: ignore


def test_multilabel_splits_have_every_label() -> None:
    frame = patients(200)
    frame["rare"] = 0
    frame.loc[frame.index[[3, 50, 70, 90, 120]], "rare"] = 1
    dataset = table_dataset(frame, TableSpec(target=("died", "rare")))
    assert all(float(part.labels[:, 1].sum()) >= 1 for part in (dataset.train, dataset.val, dataset.test))


def test_a_test_file_a_split_column_and_one_site(tmp_path: Path) -> None:
    frame = patients(200).assign(site=["A"] * 150 + ["B"] * 50)
    frame.iloc[:150].to_csv(tmp_path / "train.csv", index=False)
    frame.iloc[150:].to_csv(tmp_path / "test.csv", index=False)
    frame.to_csv(tmp_path / "all.csv", index=False)
    spec = replace(SPEC, drop=("site",))
    own = load_dataset(
        "table", data_path=tmp_path / "train.csv", table=replace(spec, test_path=str(tmp_path / "test.csv"))
    )
    where = load_dataset("table", data_path=tmp_path / "all.csv", table=replace(SPEC, test_where="site=B"))
    named = frame.assign(part=["train"] * 150 + ["test"] * 50)
    column = table_dataset(named, replace(spec, split_column="part"))
    assert own.fingerprint == where.fingerprint == column.fingerprint
    assert len(own.test) == 50 and len(own.val) == 15
    assert load_noted(own.source).fingerprint == own.fingerprint
    assert "keep its rows in one" in refused(
        frame.assign(key=np.arange(200) % 20), replace(SPEC, test_where="site=B", group="key")
    )


def test_parquet_is_read_as_csv_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = patients()
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    assert (
        load_dataset("table", data_path=tmp_path / "t.csv.gz", table=SPEC).fingerprint
        == load_dataset("table", data_path=tmp_path / "t.parquet", table=SPEC).fingerprint
    )
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        load_dataset("table", data_path=tmp_path / "t.parquet", table=SPEC)


def test_numbers_are_read_to_the_nearest_double(tmp_path: Path) -> None:
    values = [0.1 + i * 1e-3 + i**5 * 1e-13 for i in range(500)]
    (tmp_path / "t.csv").write_text("x,died\n" + "".join(f"{x!r},{i % 2}\n" for i, x in enumerate(values)))
    assert read_frame(tmp_path / "t.csv", "data_path")["x"].tolist() == values


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what pandas writes, what the options say
    "semicolon": ({"sep": ";"}, {"csv_separator": ";"}),
    "comma": ({"sep": ";", "decimal": ","}, {"csv_decimal": ","}),
    "quoted": ({"decimal": ",", "quoting": csv.QUOTE_ALL}, {"csv_separator": ",", "csv_decimal": ","}),
    "bar": ({"sep": "|", "decimal": ","}, {"csv_separator": "|", "csv_decimal": ","}),
    "tab": ({"sep": "\t", "decimal": ","}, {"csv_separator": "tab", "csv_decimal": ","}),
    "cp1252": ({"encoding": "cp1252"}, {"csv_encoding": "cp1252"}),
    "utf-16": ({"encoding": "utf-16", "sep": ";", "decimal": ","}, {"csv_encoding": "utf-16", "csv_decimal": ","}),
    "mark": ({"encoding": "utf-8-sig"}, {}),
}


@pytest.fixture(scope="module")
def wards() -> pd.DataFrame:
    frame = patients().rename(columns={"ward": "Größe"})
    return frame.assign(Größe=frame["Größe"].replace("south", "süd, 2; links"), tiny=frame["lactate"] * 1e-200)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("form", FORMS)
def test_csv_files_of_every_form_give_the_same_bits(
    tmp_path: Path, wards: pd.DataFrame, form: str, packed: bool
) -> None:
    writing, said = FORMS[form]
    suffix = ".csv.gz" if packed else ".csv"
    path, test = (tmp_path / f"{name}{suffix}" for name in ("rows", "held"))
    wards[:90].to_csv(path, index=False, **writing)
    wards[90:].to_csv(test, index=False, **writing)
    spec = TableSpec(target=("died",), test_path=str(test), **said)
    dataset = load_dataset("table", data_path=path, table=spec)
    wanted = table_dataset(wards[:90], SPEC, test=wards[90:])
    assert dataset.fingerprint == wanted.fingerprint
    assert load_noted(dataset.source).fingerprint == wanted.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_comments_above_a_csv_file_are_passed_over_in_every_form(
    tmp_path: Path, wards: pd.DataFrame, form: str
) -> None:
    writing, said = FORMS[form]
    text = "# synthetic; ä, rows\n#\n" + wards.to_csv(index=False, **{**writing, "encoding": None})
    (tmp_path / "rows.csv").write_bytes(text.encode(writing.get("encoding", "utf-8")))
    frame = read_frame(tmp_path / "rows.csv", "data_path", TableSpec(**said))
    pd.testing.assert_frame_equal(frame, wards.replace({None: np.nan}), check_exact=True)


def test_what_a_csv_file_is_not_is_said_in_one_line(tmp_path: Path, wards: pd.DataFrame) -> None:
    path = tmp_path / "rows.csv"
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"sep": ";"}, {}, "has one column, 'age;.*; say what parts its cells, e.g. csv_separator=';'"),
        ({"sep": "\t"}, {}, "e.g. csv_separator='tab'"),
        ({}, {"csv_decimal": ","}, "e.g. csv_separator=','"),
        ({"encoding": "cp1252"}, {}, "is not utf-8; say its encoding, e.g. csv_encoding='cp1252'"),
        ({"encoding": "utf-16"}, {}, "is not utf-8; say its encoding"),
        ({}, {"csv_encoding": "utf-16"}, "is not utf-16; say its encoding"),
    ]
    for writing, said, message in cases:
        wards.to_csv(path, index=False, **writing)
        with pytest.raises(InputError, match=message) as caught:
            load_dataset("table", data_path=path, table=TableSpec(target=("died",), **said))
        assert "\n" not in str(caught.value) and "data_path: " in str(caught.value)


@pytest.mark.parametrize("said", [
    {"csv_separator": ";;"}, {"csv_separator": ""}, {"csv_separator": "a"}, {"csv_separator": "\""},
    {"csv_separator": "."}, {"csv_separator": "#"}, {"csv_separator": "\n"}, {"csv_decimal": ";"},
    {"csv_encoding": "klingon"}, {"csv_encoding": "hex"}, {"csv_encoding": "a\0b"}, {"csv_encoding": ""},
], ids=str)  # fmt: skip
def test_forms_that_no_csv_file_has_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^csv_\w+: .*; (give|choose)") as caught:
        TableSpec(**said)
    assert "\n" not in str(caught.value)


def test_the_form_of_csv_files_is_refused_where_none_is_read(tmp_path: Path) -> None:
    said = TableSpec(target=("died",), csv_separator=";")
    assert "csv_separator: is for CSV files" in refused(patients(), said)
    np.savez(tmp_path / "stays.npz", x=np.zeros((4, 2, 1)), y=np.arange(4) % 2)
    for name, path in (("breast_cancer", None), ("eicu-mortality", tmp_path), ("series", tmp_path / "stays.npz")):
        with pytest.raises(InputError, match="csv_separator: is for CSV files, .*; leave it out"):
            load_dataset(name, data_path=path, table=TableSpec(csv_separator=";"))


def test_one_positive_in_a_hundred() -> None:
    frame = patients(3000)
    plain = table_dataset(frame, SPEC)
    rare = table_dataset(frame, replace(SPEC, subsample_positive=0.01))
    positives = int(rare.train.labels.sum())
    assert positives / len(rare.train) == pytest.approx(0.01, abs=0.5 / len(rare.train))
    assert int((rare.train.labels == 0).sum()) == int((plain.train.labels == 0).sum())
    assert rare.test.sha256 == plain.test.sha256 and rare.val.sha256 == plain.val.sha256
    assert "only" in refused(frame, replace(SPEC, subsample_positive=0.9))
    for name in ("subsample_positive", "test_fraction"):
        for value in (0.0, 1.0, 1.5, float("nan")):
            with pytest.raises(InputError, match=rf"^{name}: got .*; give a finite number above 0, below 1"):
                replace(SPEC, **{name: value})


# What is refused


def _with(**columns: Any) -> pd.DataFrame:
    return patients().assign(**columns)


BAD: dict[str, tuple[pd.DataFrame, TableSpec, str]] = {
    "no target": (patients(), TableSpec(), r"target: missing; name the column"),
    "missing target": (patients(), TableSpec(target=("dead",)), r"no column 'dead'; the table has age, lactate"),
    "nan in target": (_with(died=[None, *patients()["died"][1:]]), SPEC, r"'died' has no value in 1 of 120 rows; fill"),
    "one value": (_with(died=1), SPEC, r"'died' has only the value '1'; it needs rows of both"),
    "number as target": (_with(died=range(120)), SPEC, r"'died' has 120 different values; .* cut it"),
    "three values of several": (patients(), TableSpec(target=("died", "smoker")), r"'smoker' has 3 different values"),
    "constant": (_with(ph=7.4), SPEC, r"'ph' is constant in the training split; leave it out with drop"),
    "constant word": (_with(unit="icu"), SPEC, r"'unit' is constant in the training split; leave it out with drop"),
    "empty": (_with(ph=np.nan), SPEC, r"'ph' has no value in the training split; leave it out with drop"),
    "infinite": (_with(ph=[np.inf, *range(119)]), SPEC, r"'ph' holds an infinite number; repair it"),
    "free text": (
        _with(note=[f"n{i}" for i in range(120)]),
        SPEC,
        r"'note' has 120 categories, .*leave it out with drop",
    ),
    "not numeric": (patients(), replace(SPEC, numeric=("ward",)), r"'ward' holds '\w+', which is no number; repair"),
    "dates": (_with(day=pd.date_range("2020", periods=120)), SPEC, r"'day' holds dates; turn it into a number"),
    "two parts": (patients(), replace(SPEC, features=("died", "age")), r"'died' has another part to play; remove it"),
    "both kinds": (patients(), replace(SPEC, numeric=("age",), categorical=("age",)), r"'age' is also in categorical"),
    "one group": (_with(site="A"), replace(SPEC, group="site"), r"split is empty with 1 groups in column 'site'; give"),
    "no group": (_with(site=None), replace(SPEC, group="site"), r"'site' has no value in 120 rows; fill it in"),
    "one positive": (_with(died=[1] + [0] * 119), SPEC, r"'died' has no positive \('1'\) row in the val split; raise"),
    "bad split": (
        _with(part="dev"),
        replace(SPEC, split_column="part"),
        r"'part' holds 'dev'; use train, val and test",
    ),
    "bad where": (_with(site="A"), replace(SPEC, test_where="site"), r"'site' is not COLUMN=VALUE; give e.g."),
    "where nothing": (_with(site="A"), replace(SPEC, test_where="site=B"), r"no row has 'site' 'B'; name a value"),
    "impute": (patients(), replace(SPEC, impute="zero"), r"impute: unknown 'zero'; choose median or mean"),
    "positive of three": (patients(), TableSpec(target=("smoker",), positive="1"), r"'smoker' has 3 classes; leave"),
    "twice": (patients()[["age", "age", "died"]], SPEC, r"has the column 'age' twice; rename or remove one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_one_line(case: str) -> None:
    frame, spec, message = BAD[case]
    assert re.search(message, refused(frame, spec)), refused(frame, spec)


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("age,age,died\n1,2,0\n3,4,1\n")
    (tmp_path / "empty.csv").write_text("age,died\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("age,died\n1,0\n1,0,1,2\n")
    (tmp_path / "unnamed.csv").write_text("age,died\n" + "1,50,0\n2,60,1\n" * 20)
    (tmp_path / "table.xlsx").write_text("?")
    (tmp_path / "broken.parquet").write_text("?")
    patients().to_csv(tmp_path / "index.csv")
    cases = {
        "twice.csv": "has the column 'age' twice; rename or remove one",
        "empty.csv": "has no rows; give a table with rows",
        "nothing.csv": "cannot be read",
        "ragged.csv": "cannot be read .*; repair the file",
        "unnamed.csv": "rows with more cells than its first line has names; name every column",
        "table.xlsx": "neither .csv, .tsv nor .parquet; convert it",
        "broken.parquet": "cannot be read .*; repair the file",
        "none.csv": "is no file; give a .csv or .parquet file",
        "index.csv": "a column has no name .*; name it, or leave it out with drop",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message) as caught:
            load_dataset("table", data_path=tmp_path / name, table=SPEC)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="zca: is for images"):
        load_dataset("breast_cancer", zca=True)
    with pytest.raises(InputError, match="data_path is missing: table needs"):
        load_dataset("table", table=SPEC)
    with pytest.raises(InputError, match="holds images; leave out the options of tables"):
        load_dataset("digits", table=SPEC)


def test_a_parquet_file_that_has_checksums_is_held_to_them(tmp_path: Path) -> None:
    file = tmp_path / "patients.parquet"
    frame = pd.DataFrame({"age": np.arange(40) * 1.5, "died": ["no", "yes"] * 20})
    frame.to_parquet(file, compression="none", use_dictionary=False, write_page_checksum=True)
    whole = file.read_bytes()
    at = whole.index(np.float64(30.0).tobytes())
    file.write_bytes(whole[: at + 6] + b"\x00" + whole[at + 7 :])
    with pytest.raises(InputError, match=r"^data_path: .*patients.parquet cannot be read \(.*(CRC|checksum)"):
        read_frame(file, "data_path")


# Packaged sets


@pytest.mark.parametrize(
    ("name", "task", "rows", "features", "positives"),
    [
        ("breast_cancer", "binary", 569, 30, [212]),
        ("whas500", "binary", 500, 14, [215]),
        ("whas500-complications", "multilabel", 500, 9, [22, 155, 11, 78]),
        ("diabetes", "binary", 768, 8, [268]),
    ],
)
def test_packaged_sets(name: str, task: str, rows: int, features: int, positives: list[int]) -> None:
    dataset = load_dataset(name)
    splits = (dataset.train, dataset.val, dataset.test)
    assert dataset.task == task and sum(map(len, splits)) == rows
    assert len(dataset.transform.columns) == features  # pyright: ignore
    assert torch.cat([split.labels.reshape(len(split), -1) for split in splits]).sum(0).tolist() == positives
    assert all(bool(torch.isfinite(split.images).all()) for split in splits)
    assert load_noted(dataset.source).fingerprint == dataset.fingerprint
