"""Files of tables, CSV and Parquet, to pandas frames."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import itertools
import lzma
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mct_fast.run.errors import InputError
from mct_fast.settings import TableSpec

if TYPE_CHECKING:
    import pandas as pd


_PLAIN = TableSpec()


def read_frame(path: Path, argument: str, spec: TableSpec = _PLAIN) -> pd.DataFrame:
    """A CSV (.csv, .tsv, packed or not) or Parquet (.parquet, .pq) file as a frame.

    Args:
        path: the file.
        argument: how the message of an error calls it.
        spec: how a CSV file is written: separator, decimal mark, encoding.

    Raises:
        InputError: no such file, an unknown kind, pyarrow is missing, two columns of one name, or no rows.
    """
    import pandas as pd  # imported here: slow to load, and only tables need it

    if not path.is_file():
        raise InputError(f"{argument}: {path} is no file; give a .csv or .parquet file")
    kinds = [suffix.lower() for suffix in path.suffixes]
    try:
        if kinds[-1:] and kinds[-1] in (".parquet", ".pq"):
            frame = _read_parquet(path, argument)
        elif ".csv" in kinds or ".tsv" in kinds:
            frame = _read_csv(path, argument, spec, spec.separator() or ("\t" if ".tsv" in kinds else ","))
        else:
            raise InputError(f"{argument}: {path.name} is neither .csv, .tsv nor .parquet; convert it to one of them")
    except InputError:
        raise
    except pd.errors.ParserWarning as warning:
        raise InputError(
            f"{argument}: {path} has rows with more cells than its first line has names; name every column"
        ) from warning
    except UnicodeError as error:
        raise InputError(
            f"{argument}: {path} is not {spec.csv_encoding}; say its encoding, e.g. csv_encoding='cp1252'"
        ) from error
    except Exception as error:  # a damaged file can fail in every layer of the reader, the unpacking among them
        raise InputError(f"{argument}: {path} cannot be read ({_line(error)}); repair the file") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    check_names(list(frame.columns), path, argument)
    if not len(frame):
        raise InputError(f"{argument}: {path} has no rows; give a table with rows")
    return frame


def _read_csv(path: Path, argument: str, spec: TableSpec, separator: str) -> pd.DataFrame:
    import pandas as pd

    skipped = _comment_lines(path, spec.csv_encoding)
    options: dict[str, Any] = {"sep": separator, "skiprows": skipped, "encoding": spec.csv_encoding}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
    names = [str(name).strip() for name in header.iloc[0]]
    check_names(names, path, argument)
    other = next((mark for mark in ";\t,|" if mark in names[0]), None)
    if len(names) == 1 and other is not None:
        mark = "tab" if other == "\t" else other
        raise InputError(
            f"{argument}: {path} has one column, {names[0]!r}; say what parts its cells, e.g. csv_separator={mark!r}"
        )
    # index_col: else a first cell too many, of every row, becomes its name, and the others move by one.
    options |= {"skipinitialspace": True, "low_memory": False, "index_col": False, "decimal": spec.csv_decimal}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(path, **options, **exact_floats())


def refuse_csv_options(spec: TableSpec, why: str) -> None:
    """Refuse options of CSV files where none is read."""
    for option in dataclasses.fields(spec):
        if option.name.startswith("csv_") and getattr(spec, option.name) != option.default:
            raise InputError(f"{option.name}: is for CSV files, {why}; leave it out")


def exact_floats() -> dict[str, Any]:
    """What has pandas read a number from a CSV file as the nearest double, so that every version reads the same bits."""
    import pandas as pd

    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}  # since 3.1 the default, and deprecated


def _comment_lines(path: Path, encoding: str) -> int:
    """How many lines at the beginning start with #: those that distilled tables carry."""
    open_text = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    with open_text(path, "rt", encoding=encoding, errors="replace") as file:
        return sum(1 for _ in itertools.takewhile(lambda line: line.lstrip("\ufeff").startswith("#"), file))


def _read_parquet(path: Path, argument: str) -> pd.DataFrame:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"{argument}: {path.name} needs pyarrow to be read; run: pip install pyarrow") from error
    try:
        names = parquet.read_schema(path).names
        check_names(names, path, argument)
        return parquet.read_table(path, page_checksum_verification=True).to_pandas()
    except ArrowException as error:
        raise InputError(f"{argument}: {path} cannot be read ({_line(error)}); repair the file") from error


def check_names(names: Sequence[str], where: Path | str, argument: str) -> None:
    """Refuse columns of one name."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"{argument}: {where} has the column {twice[0]!r} twice; rename or remove one")


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
