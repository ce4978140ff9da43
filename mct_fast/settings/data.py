"""Which data: the columns of a table, the grid of a series, how batches are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from mct_fast.run.errors import InputError
from mct_fast.run.settings import Bounds, Checked, Count, NonNegative, Positive
from mct_fast.settings.names import dsa_kinds

_NO_SEPARATORS = "\"'#\\.-+\n\r\0"


@dataclass(frozen=True)
class TableSpec(Checked):
    """Which columns of a table are what, and how its rows are split. What a recipe sets, these options override."""

    target: tuple[str, ...] = ()
    """Columns to predict: one with two values (binary) or a few (classes), or several of two values (multi-label)."""
    features: tuple[str, ...] = ()
    """Columns to predict from; left out: all that have no other part."""
    drop: tuple[str, ...] = ()
    """Columns to leave out, such as identifiers."""
    numeric: tuple[str, ...] = ()
    """Columns to read as numbers whatever they look like."""
    categorical: tuple[str, ...] = ()
    """Columns to read as categories whatever they look like; text is read so anyway."""
    positive: str | None = None
    """The value of the target that counts as positive, where its values are not 0 and 1."""
    group: str | None = None
    """Column that names the patient (or site): rows of one never lie in two splits. No feature."""
    impute: str | None = None
    """Missing numbers become the training split's 'median' (default) or 'mean'."""
    impute_categories: str | None = None
    """Missing categories become a 'level' of their own (default) or the 'most_frequent' one."""
    missing_mask: bool | None = None
    """Tell the network which numbers were observed, by one more feature each (default: no; series: yes)."""
    split_column: str | None = None
    """Column that says train, val or test for each row. No feature."""
    test_path: str | None = None
    """File with the test rows; left out, test_fraction of the rows are held out."""
    test_where: str | None = None
    """COLUMN=VALUE: the rows that make the test split, such as one hospital. The column is no feature."""
    test_fraction: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.2
    """Share of the rows (with --group: of the groups) held out as the test split, stratified by target."""
    subsample_positive: Annotated[float, Bounds(0, 1, above=True, below=True)] | None = None
    """Drop positives of the training split until they are this share of it, e.g. 0.01; other splits stay whole."""
    csv_separator: str | None = None
    """Character between the cells of CSV files, or tab (default: comma; semicolon if csv_decimal is a comma; .tsv: tab)."""
    csv_decimal: Literal[".", ","] = "."
    """Decimal mark of numbers in CSV files."""
    csv_encoding: str = "utf-8"
    """Encoding of CSV files, such as cp1252, latin-1 or utf-16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        mark = self.separator()
        if mark is not None and (len(mark) != 1 or mark.isalnum() or mark in _NO_SEPARATORS):
            raise InputError(
                f"csv_separator: {self.csv_separator!r} cannot part cells; give one character such as ';', or tab"
            )
        try:
            "".encode(self.csv_encoding)
        except (LookupError, ValueError) as error:
            raise InputError(
                f"csv_encoding: {self.csv_encoding!r} is unknown; give e.g. utf-8, cp1252 or utf-16"
            ) from error

    def separator(self) -> str | None:
        """The character between cells; None: what the file's name says."""
        if self.csv_separator is None:
            return ";" if self.csv_decimal == "," else None
        return "\t" if self.csv_separator in ("tab", "\\t") else self.csv_separator


@dataclass(frozen=True)
class TimeGrid(Checked):
    """How the rows of a long table become regular series."""

    id: str | None = None
    """Column that names the series (the stay) a row belongs to."""
    time: str | None = None
    """Column with the time since the start of the series, a number."""
    step: Positive = 1.0
    """Length of a step, in the unit of the time column: 1 for hourly steps of hours, 60 of minutes."""
    steps: Count = 48
    """Steps of a series; rows before its start or after its last step play no part."""
    labels_path: str | None = None
    """File with a row for each series: its id, target and group. Left out, they stand in the long table itself.
    For a .npy array: a .npy file with its labels."""


@dataclass(frozen=True)
class AugmentationConfig(Checked):
    """How batches are augmented, real and synthetic ones alike."""

    dsa: bool = True
    """Augment batches with DSA; tables and series are not augmented."""
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    """The augmentations to draw from, joined by underscores."""
    jitter: NonNegative = 0.0
    """Standard deviation of Gaussian noise on batches of tables and series, which are standardised; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        dsa_kinds(self.dsa_strategy)  # refuses unknown names
