"""Typed columns of raw tables, and the one-line errors about their cells.

Owns what a cell may hold and how a wrong one is reported: file, row, column, expected, got, what to
do. Does not own reading files (`read.py`).

A data set names its columns and checks what only it can know:

    COLUMNS = (
        columns.Column("user", "int", low=0),
        columns.Column("price", "float", nullable=True, low=0),
    )
    for frame in read.iterate(path, COLUMNS):
        columns.check_known(path, frame, "user", users["userid"], "user_profile.csv")
        columns.check(path, frame, pl.col("price") > 1e9, "price", "at most 1e9")
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl

from dsmoe_jax import terminal

# What names of added columns begin with, and those of a file that is asked for do not.
OWN = "\0"
# Name of the extra column with the row number in the file (int64).
ROW = f"{OWN}row"
CORRECT = "correct or remove the row"
UNKNOWN = "leave the cell empty where the number is unknown, or name it in data.null_values"
_INTEGER = re.compile(r"\s*-?\d+\s*")

# From here on numbers mean "unknown" in some libraries, and the models' numbers have no such sizes.
_MOST = float(np.finfo(np.float32).max)

Kind = Literal["int", "code", "float", "str", "yyyymmdd", "list", "label", "time", "clock"]
# What a text file is parsed as, and what it may be where that fails.
RAW_TYPE: dict[str, Any] = {
    "int": pl.Int64,
    "code": pl.Float64,
    "float": pl.Float64,
    "str": pl.String,
    "yyyymmdd": pl.Int64,
    "list": pl.String,
    "label": pl.String,
    "time": pl.Int64,
    "clock": pl.String,
}
TEXT_TYPE: dict[str, Any] = {**RAW_TYPE, "time": pl.String}
_NOUN = {
    "int": "an integer",
    "code": "a whole number",
    "float": "a finite number",
    "str": "text",
    "yyyymmdd": "a date as YYYYMMDD",
    "list": "text or a list of texts",
    "label": "text or a number",
    "time": "a time",
    "clock": "a time",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column to read; columns of the file that are not asked for are ignored.

    Attributes:
      name: Header name; spaces around a header name in the file do not count.
      kind: "int" (int64); "code" (int64 from a whole number that may be written `1.0`, as a
        column with nulls often is); "float" (float64, finite, of float32's range); "str";
        "yyyymmdd" (`pl.Date` from an integer); "list" (text, or lists of text where the file has
        lists); "label" (text, or numbers where the file has them typed); "time" (text, numbers or
        dates, whatever the file has, of text int64 where all cells are) and "clock" (the same,
        always text of a text file).
      nullable: Whether an empty cell is allowed; it becomes null.
      low, high: Allowed range, inclusive, of "int", "code" and "float".
      null: Text that means null beside the empty cell, e.g. "NULL"; text files only.
    """

    name: str
    kind: Kind
    nullable: bool = False
    low: int | float | None = None
    high: int | float | None = None
    null: str = ""

    @property
    def expected(self) -> str:
        """What a cell should hold, in words."""
        text = _NOUN[self.kind]
        if self.low is not None and self.high is not None:
            text += f" from {self.low} to {self.high}"
        elif self.low is not None:
            text += f" >= {self.low}"
        elif self.high is not None:
            text += f" <= {self.high}"
        return text + (" or nothing" if self.nullable else "")


def check_name(where: str, name: str) -> None:
    """Refuses what cannot be the name of a column that is read.

    Raises:
      ValueError: On names of added columns, and those that are patterns to polars.
    """
    if name.startswith(OWN) or name == "*" or re.fullmatch(r"(?s)\^.*\$", name):
        raise ValueError(
            f"{where}: expected another name of a column than '*', '^...$' or one with a zero "
            f"character, got {name!r}; rename the column"
        )


def error(
    path: pathlib.Path, row: int, column: str, expected: str, got: str, todo: str = CORRECT
) -> ValueError:
    """The one-line error every finding about a cell is reported with."""
    return ValueError(
        f"{path}: row {row}, column {column!r}: expected {expected}, got {got}; {todo}"
    )


def check(
    path: pathlib.Path,
    frame: pl.DataFrame,
    violated: pl.Expr | pl.Series,
    column: str,
    expected: str,
    todo: str = CORRECT,
) -> None:
    """Refuses the first row (by `ROW`) of `frame` for which `violated` is true.

    A series is of the frame's length.

    Raises:
      ValueError: Naming the file, the row, `column`, what was expected and what it holds.
    """
    if isinstance(violated, pl.Series):
        violated = pl.lit(violated)
    if not frame.select(violated.fill_null(False).any()).item():
        return
    first = frame.filter(violated).sort(ROW).row(0, named=True)
    raise error(path, first[ROW], column, expected, _show(first[column]), todo)


def check_unique(path: pathlib.Path, frame: pl.DataFrame, key: str) -> None:
    """Refuses a table in which two rows share `key`.

    Raises:
      ValueError: Naming the second of them.
    """
    if frame.select(pl.col(key).n_unique()).item() == frame.height:
        return
    repeated = pl.col(key).cum_count().over(key) > 1
    second = frame.sort(ROW).filter(repeated).row(0, named=True)
    first = frame.filter(pl.col(key) == second[key]).select(pl.col(ROW).min()).item()
    got = f"{_show(second[key])} again (first in row {first})"
    raise error(path, second[ROW], key, "every id once", got, "remove one of the two rows")


def check_known(
    path: pathlib.Path, frame: pl.DataFrame, column: str, known: pl.Series, source: str
) -> None:
    """Refuses a row whose `column` is not among `known`, the ids of the file named `source`.

    Raises:
      ValueError: Naming the first such row.
    """
    unknown, todo = ~pl.col(column).is_in(known.implode()), f"add it to {source} or remove the row"
    check(path, frame, unknown, column, f"an id that is in {source}", todo)


def _show(value: object) -> str:
    if value is None or value == "":
        return "nothing"
    return terminal.shorten(repr(value))


def parses(cell: str, kind: Kind) -> bool:
    """Whether the text of a cell can be read as its column's raw type."""
    if TEXT_TYPE[kind] == pl.String:
        return True
    if RAW_TYPE[kind] == pl.Int64:
        return bool(_INTEGER.fullmatch(cell)) and abs(int(cell)) < 2**63
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def from_text(
    path: pathlib.Path, frame: pl.DataFrame, columns: Iterable[Column], null_values: Sequence[str]
) -> pl.DataFrame:
    """A frame of texts, numbers as their raw types; blanks around a number do not count.

    Raises:
      ValueError: Naming the first cell that is no number.
    """
    parsed, bad = [], {}
    for column in columns:
        if TEXT_TYPE[column.kind] == pl.String:
            continue
        text = pl.col(column.name).str.strip_chars()
        text = pl.when(~text.is_in(["", column.null, *null_values])).then(text)
        number = text.cast(RAW_TYPE[column.kind], strict=False)
        parsed.append(number)
        bad[column] = text.is_not_null() & number.is_null()
    rows = frame.select(pl.col(ROW).filter(rule).min().alias(c.name) for c, rule in bad.items())
    first = {column: rows[column.name][0] for column in bad}
    found = [column for column in bad if first[column] is not None]
    if found:
        column = min(found, key=lambda c: int(first[c]))
        got = frame.filter(pl.col(ROW) == first[column])[column.name][0]
        raise error(path, first[column], column.name, column.expected, _show(got))
    return frame.with_columns(parsed)


def check_constant(
    path: pathlib.Path, frame: pl.DataFrame, column: Column, constant: str | None
) -> None:
    """Refuses a row whose cell is not what the path says of all rows.

    Raises:
      ValueError: Naming the first such row.
    """
    value, dtype = pl.col(column.name), frame.schema[column.name]
    stated = pl.lit(constant, pl.String)
    if dtype.is_numeric():
        stated = stated.cast(dtype, strict=False)
    expected = f"{constant!r} as the path says" if constant is not None else "nothing, by the path"
    todo = "correct the row, or rename the column or the folder"
    check(path, frame, value.ne_missing(stated), column.name, expected, todo)


def to_types(path: pathlib.Path, frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """Checks parsed cells against their columns and gives them their final types.

    Raises:
      ValueError: Naming the first cell that is null, not finite, out of range or no date.
    """
    violations = {column.name: _violated(column, frame.schema[column.name]) for column in columns}
    either = {c.name: violations[c.name] | _is_unknown(c) for c in columns}
    found = frame.select(rule.fill_null(False).any().alias(n) for n, rule in either.items())
    for column in columns:
        if found[column.name].item():
            check(path, frame, _is_unknown(column), column.name, column.expected, UNKNOWN)
            check(path, frame, violations[column.name], column.name, column.expected)
    final = []
    for column in columns:
        value = pl.col(column.name)
        if column.kind == "code":
            value = value.cast(pl.Int64)
        elif column.kind == "yyyymmdd":
            value = _to_date(value)
        elif frame.schema[column.name] == pl.String:
            value = pl.when(value != "").then(value)
        final.append(value.alias(column.name))
    return frame.select(*final, ROW)


def _is_unknown(column: Column) -> pl.Expr:
    """Where a number is infinite or none, or so large that it stands for something else."""
    value = pl.col(column.name)
    if column.kind == "float":
        return ~value.is_finite() | (value.abs() >= _MOST)
    return ~value.is_finite() if column.kind == "code" else pl.lit(False)


def _violated(column: Column, dtype: Any) -> pl.Expr:
    value = pl.col(column.name)
    rules = []
    if not column.nullable:
        rules.append(value.is_null() if dtype != pl.String else value.fill_null("") == "")
    if column.kind == "code":
        rules.append(value != value.floor())
    if column.kind == "yyyymmdd":
        rules.append(value.is_not_null() & _to_date(value).is_null())
    if column.low is not None:
        rules.append(value < column.low)
    if column.high is not None:
        rules.append(value > column.high)
    return pl.any_horizontal([rule.fill_null(False) for rule in rules] or [pl.lit(False)])


def _to_date(value: pl.Expr) -> pl.Expr:
    return value.cast(pl.String).str.to_date("%Y%m%d", strict=False)


def drop_values(frame: pl.DataFrame, null_values: Sequence[str]) -> pl.DataFrame:
    """The frame with null in place of those texts, and of the numbers that they are."""
    if not null_values:
        return frame
    changed = []
    for name, dtype in frame.schema.items():
        known: list[Any] = []
        if dtype == pl.String:
            known = list(null_values)
        elif dtype.is_integer() and name != ROW:
            known = [int(text) for text in null_values if parses(text, "int")]
        elif dtype.is_float():
            known = [float(text) for text in null_values if parses(text, "float")]
        if known:
            value = pl.col(name)
            changed.append(pl.when(~value.is_in(known)).then(value).alias(name))
    return frame.with_columns(changed)


def _is_whole(dtype: Any) -> bool:
    return bool(dtype.is_integer() or (dtype.is_decimal() and dtype.scale == 0))


def fits(dtype: Any, column: Column) -> bool:
    """Whether a typed column (of a Parquet file) can serve as `column`."""
    kind = column.kind
    if dtype == pl.Null:
        return True
    # Ids, categories and times all have one text each; real numbers have several.
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
    is_text = bool(dtype in texts or _is_whole(dtype) or dtype.is_temporal())
    if kind == "str":
        return is_text
    if kind == "list":
        inner = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
        return bool(inner == pl.Null or inner in texts or _is_whole(inner))
    if kind == "label":
        return bool(is_text or dtype.is_numeric())
    if kind in ("time", "clock"):
        return bool(dtype == pl.String or dtype.is_numeric() or dtype in (pl.Date, pl.Datetime))
    if RAW_TYPE[kind] == pl.Int64:
        return _is_whole(dtype) or bool(dtype == pl.Boolean)
    return bool(dtype.is_numeric())


def hint(dtype: Any, column: Column) -> str:
    """What to do about a typed column that does not fit."""
    if dtype.is_float() and column.kind in ("str", "list"):
        return "write whole numbers as integers or texts"
    return "write the column with another type"


def from_typed(dtype: Any, column: Column) -> pl.Expr:
    """A column of a Parquet file, which fits, as parsed text would be; see `Column.kind`."""
    value, kind = pl.col(column.name), column.kind
    if kind == "list":
        if isinstance(dtype, pl.Array):
            value = value.arr.to_list()
        return value.cast(pl.List(pl.String) if dtype.is_nested() else pl.String)
    if kind == "label" and dtype.is_numeric():
        return value
    if kind in ("time", "clock") and (dtype.is_numeric() or dtype.is_temporal()):
        return value.cast(pl.Float64 if dtype.is_decimal() else dtype)
    if RAW_TYPE[kind] == pl.String or kind == "time":
        if dtype == pl.Datetime and dtype.time_zone is not None:
            value = value.dt.convert_time_zone("UTC").dt.to_string("%Y-%m-%dT%H:%M:%S%.fZ")
        return value.cast(pl.String)
    return value.cast(RAW_TYPE[kind])
