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
from collections.abc import Sequence
from typing import Any, Literal

import polars as pl

# Name of the extra column with the row number in the file (int64).
ROW = "__row__"
CORRECT = "correct or remove the row"
_INTEGER = re.compile(r"\s*-?\d+\s*")

Kind = Literal["int", "code", "float", "str", "yyyymmdd"]
RAW_TYPE: dict[str, Any] = {
    "int": pl.Int64,
    "code": pl.Float64,
    "float": pl.Float64,
    "str": pl.String,
    "yyyymmdd": pl.Int64,
}
_NOUN = {
    "int": "an integer",
    "code": "a whole number",
    "float": "a finite number",
    "str": "text",
    "yyyymmdd": "a date as YYYYMMDD",
}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column to read; columns of the file that are not asked for are ignored.

    Attributes:
      name: Header name; spaces around a header name in the file do not count.
      kind: "int" (int64); "code" (int64 from a whole number that may be written `1.0`, as a
        column with nulls often is); "float" (float64, finite); "str"; "yyyymmdd" (`pl.Date` from
        an integer).
      nullable: Whether an empty cell is allowed; it becomes null.
      low, high: Allowed range, inclusive, of "int", "code" and "float".
      null: Text that means null beside the empty cell, e.g. "NULL"; CSV only.
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
    violated: pl.Expr,
    column: str,
    expected: str,
    todo: str = CORRECT,
) -> None:
    """Refuses the first row (by `ROW`) of `frame` for which `violated` is true.

    Raises:
      ValueError: Naming the file, the row, `column`, what was expected and what it holds.
    """
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
    return "nothing" if value is None or value == "" else repr(value)


def parses(cell: str, kind: Kind) -> bool:
    """Whether the text of a cell can be read as its column's raw type."""
    if kind == "str":
        return True
    if RAW_TYPE[kind] == pl.Int64:
        return bool(_INTEGER.fullmatch(cell)) and abs(int(cell)) < 2**63
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def to_types(path: pathlib.Path, frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """Checks parsed cells against their columns and gives them their final types.

    Raises:
      ValueError: Naming the first cell that is null, not finite, out of range or no date.
    """
    violations = {column.name: _violated(column) for column in columns}
    found = frame.select(rule.fill_null(False).any().alias(n) for n, rule in violations.items())
    for column in columns:
        if found[column.name].item():
            check(path, frame, violations[column.name], column.name, column.expected)
    final = []
    for column in columns:
        value = pl.col(column.name)
        if column.kind == "code":
            value = value.cast(pl.Int64)
        elif column.kind == "yyyymmdd":
            value = _to_date(value)
        elif column.kind == "str":
            value = pl.when(value != "").then(value)
        final.append(value.alias(column.name))
    return frame.select(*final, ROW)


def _violated(column: Column) -> pl.Expr:
    value = pl.col(column.name)
    rules = []
    if not column.nullable:
        rules.append(value.is_null() if column.kind != "str" else value.fill_null("") == "")
    if column.kind in ("code", "float"):
        rules.append(~value.is_finite())
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


def fits(dtype: Any, kind: Kind) -> bool:
    """Whether a typed column (of a Parquet file) can serve as `kind`."""
    if kind == "str":
        # Ids, categories and times all have one text each; real numbers have several.
        texts = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)
        return bool(dtype in texts or dtype.is_integer() or dtype.is_temporal())
    if RAW_TYPE[kind] == pl.Int64:
        return bool(dtype.is_integer() or dtype == pl.Boolean)
    return bool(dtype.is_numeric())
