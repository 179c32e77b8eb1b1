"""Bags: cells of several values, joined by a separator or written as lists.

Owns how a column of such cells becomes lists of texts. Parts are stripped, and empty ones are no
values. Does not own ids (`entities.py`).
"""

import pathlib

import polars as pl

from dsmoe_jax.data.prepare import columns

_INSIDE = r"""(?:'[^'\\]*'|"[^"\\]*"|[^'"\[\](){}\\])*"""
# Lists as Python, NumPy, JSON and PostgreSQL write them.
_LIST = rf"(?s)^\s*(?:\[{_INSIDE}\]|\({_INSIDE}\)|\{{{_INSIDE}\}})\s*$"
# What looks like a list among cells that are none.
_LISTLIKE = r"""^\s*[\[({](?s:.*[,'"].*|[\s\d.+-]*)[\])}]\s*$"""
_VALUE = r"""'[^']*'|"[^"]*"|[^,'"]+"""
_NOTHING = ("None", "nan", "NaN", "null", "NULL")


def split(
    path: pathlib.Path, table: pl.DataFrame, name: str, separator: str, limit: int
) -> pl.Series:
    """The column as lists of texts, at most the first `limit` of a cell unless that is 0.

    A column of lists stays one. A column of text holds parts joined by the separator, or in every
    cell that is not empty a list in brackets.

    Raises:
      ValueError: When some cells are lists and others are not, or one is nested.
    """
    cells = table[name]
    if cells.dtype != pl.List:
        is_list = cells.str.contains(_LIST)
        if is_list.all() and is_list.any():
            cells = _read_lists(cells)
        else:
            columns.check(
                path,
                table,
                pl.col(name).str.contains(_LISTLIKE),
                name,
                f"parts joined by {separator!r} in all cells, or a flat list in brackets in all",
                "write them alike, or set data.bag_separator",
            )
            cells = cells.str.split(separator)
    value = pl.element().str.strip_chars()
    cells = cells.list.eval(value.filter(value != ""))
    return cells.list.head(limit) if limit else cells


def _read_lists(cells: pl.Series) -> pl.Series:
    inside = pl.col("inside")
    # NumPy joins numbers by blanks.
    numbers = inside.str.replace_all(r"\s+", ",")
    is_array = inside.str.contains(r"^[\d\s.+eE-]+$")
    value = pl.element().str.strip_chars()
    plain = pl.when(~value.is_in(_NOTHING)).then(
        value.str.replace(r"""(?s)^(['"])(.*)['"]$""", "$2")
    )
    return (
        cells.str.strip_chars().str.slice(1).str.head(-1).str.strip_chars().to_frame("inside")
        .select(pl.when(is_array).then(numbers).otherwise(inside))
        .select(inside.str.extract_all(_VALUE).list.eval(plain.drop_nulls()))
        .to_series()
    )  # fmt: skip
