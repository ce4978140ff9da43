"""Files of tables, CSV and Parquet, to pandas frames."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mct_fast.run.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def read_frame(path: Path, argument: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A CSV (.csv, .tsv, packed or not) or Parquet (.parquet, .pq) file as a frame.

    Raises:
        InputError: no such file, an unknown kind, pyarrow is missing, two columns of one name, or no rows.
    """
    import pandas as pd  # imported here: slow to load, and only tables need it

    if not path.is_file():
        raise InputError(f"{argument}: {path} is no file; give a .csv or .parquet file")
    kinds = [suffix.lower() for suffix in path.suffixes]
    try:
        if kinds[-1:] and kinds[-1] in (".parquet", ".pq"):
            frame = _read_parquet(path, argument, columns)
        elif ".csv" in kinds or ".tsv" in kinds:
            options: dict[str, Any] = {"sep": "\t" if ".tsv" in kinds else ",", "skiprows": _comment_lines(path)}
            header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
            check_names([str(name).strip() for name in header.iloc[0]], path, argument)
            # index_col: else a first cell too many, of every row, becomes its name, and the others move by one.
            options |= {"skipinitialspace": True, "low_memory": False, "index_col": False, **exact_floats()}
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                frame = pd.read_csv(path, usecols=columns, **options)
        else:
            raise InputError(f"{argument}: {path.name} is neither .csv, .tsv nor .parquet; convert it to one of them")
    except InputError:
        raise
    except pd.errors.ParserWarning as warning:
        raise InputError(
            f"{argument}: {path} has rows with more cells than its first line has names; name every column"
        ) from warning
    except Exception as error:  # a damaged file can fail in every layer of the reader, the unpacking among them
        raise InputError(f"{argument}: {path} cannot be read ({_line(error)}); repair the file") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    check_names(list(frame.columns), path, argument)
    if not len(frame):
        raise InputError(f"{argument}: {path} has no rows; give a table with rows")
    return frame


def exact_floats() -> dict[str, Any]:
    """What has pandas read a number from a CSV file as the nearest double, so that every version reads the same bits."""
    import pandas as pd

    version = tuple(int(part) for part in pd.__version__.split(".")[:2])
    return {} if version >= (3, 1) else {"float_precision": "round_trip"}  # since 3.1 the default, and deprecated


def _comment_lines(path: Path) -> int:
    """How many lines at the beginning start with #: those that distilled tables carry."""
    open_text = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    with open_text(path, "rt", encoding="utf-8", errors="replace") as file:
        return sum(1 for _ in itertools.takewhile(lambda line: line.startswith("#"), file))


def _read_parquet(path: Path, argument: str, columns: Sequence[str] | None) -> pd.DataFrame:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(f"{argument}: {path.name} needs pyarrow to be read; run: pip install pyarrow") from error
    try:
        names = parquet.read_schema(path).names
        check_names(names, path, argument)
        wanted = None if columns is None else list(columns)
        return parquet.read_table(path, columns=wanted, page_checksum_verification=True).to_pandas()
    except ArrowException as error:
        raise InputError(f"{argument}: {path} cannot be read ({_line(error)}); repair the file") from error


def check_names(names: Sequence[str], where: Path | str, argument: str) -> None:
    """Refuse columns of one name."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"{argument}: {where} has the column {twice[0]!r} twice; rename or remove one")


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
