"""Frames of polars and pandas, and CSV and Parquet files, as tables of typed columns.

Owns that reading. Does not own what the columns are taken for (`own_log.py`).
"""

import os
import pathlib
from collections.abc import Set
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax.data.prepare import forms, read, streams

# A polars or pandas frame, or a path of a CSV or Parquet file.
Frame = Any

# Separators are guessed.
_FORM = forms.Form(separator="")
# Cells that are codes although they are digits.
_CODE = r"^-?0\d"


def to_polars(frame: Frame, name: str, texts: Set[str | None]) -> pl.DataFrame:
    """The table of a frame or of a file; `texts` are columns that a text file's cells are kept of.

    Raises:
      ValueError: When it is neither, or the file cannot be read.
    """
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, str | os.PathLike):
        path = pathlib.Path(frame).expanduser()
        try:
            streams.check_file(path)
            if streams.is_parquet(path):
                return pl.read_parquet(path, glob=False, hive_partitioning=False)
            return _typed(read.read_texts(path, _FORM), texts)
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            # Messages of a library have more lines, those of this package line ends in names.
            own = isinstance(error, ValueError)
            reason = str(error) if own else str(error).splitlines()[0]
            raise ValueError(
                f"{name}: expected a CSV or Parquet file, got {path}: {reason}"
            ) from error
    if hasattr(frame, "columns") and hasattr(frame, "iloc"):
        if not frame.columns.is_unique:
            repeated = str(frame.columns[frame.columns.duplicated()][0])
            raise ValueError(f"{name}: expected each column once, got {repeated!r} twice")
        return pl.DataFrame([_from_pandas(str(column), frame[column]) for column in frame.columns])
    raise ValueError(
        f"{name}: expected a polars or pandas frame or a path, got {type(frame).__name__}"
    )


def _typed(table: pl.DataFrame, texts: Set[str | None]) -> pl.DataFrame:
    """The table with numbers and truth values where a column holds nothing else."""
    found = []
    for column in table.get_columns():
        known = column.drop_nulls().str.strip_chars()
        if column.name not in texts and len(known):
            if known.is_in(["true", "false"]).all():
                column = column.str.strip_chars() == "true"
            elif not known.str.contains(_CODE).any():
                for kind in (pl.Int64, pl.Float64):
                    if not known.cast(kind, strict=False).null_count():
                        column = column.str.strip_chars().cast(kind)
                        break
        found.append(column)
    return pl.DataFrame(found)


def _from_pandas(name: str, values: Any) -> pl.Series:
    """A column of pandas, without the library that polars wants for it."""
    if values.dtype.kind == "M":
        times_of = pl.Series(name, values.to_numpy(dtype="datetime64[us]"))
        has_zone = getattr(values.dtype, "tz", None) is not None
        return times_of.dt.replace_time_zone("UTC") if has_zone else times_of
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iufb":
        column = pl.Series(name, values.to_numpy())
        return column.fill_nan(None) if column.dtype.is_float() else column
    cells = zip(values, values.isna(), strict=True)
    return pl.Series(name, [None if null else value for value, null in cells], strict=False)
