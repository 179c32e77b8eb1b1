"""Bags: cells of several values, joined by a separator or written as lists.

Owns how a column of such cells becomes lists of texts. Parts are stripped, and empty ones are no
values. Does not own ids (`entities.py`).
"""

import pathlib
from collections.abc import Sequence

import polars as pl

from dsmoe_jax.data.prepare import columns

_QUOTED = r"""'[^'\\]*'|"[^"\\]*\""""
_INSIDE = rf"""(?:{_QUOTED}|[^'"\[\](){{}}\\])*"""
# Lists as Python, NumPy, JSON and PostgreSQL write them.
_LIST = rf"(?s)^\s*(?:\[{_INSIDE}\]|\({_INSIDE}\)|\{{{_INSIDE}\}})\s*$"
# As NumPy shows one in a list or frame.
_ARRAY = r"(?s)^\s*(?:np\.|numpy\.)?array\(\s*(\[[^\[\]]*\])\s*(?:,\s*dtype=[^()\[\]]*)?\)\s*$"
# What looks like a list among cells that are none.
_LISTLIKE = (
    r"""^\s*[\[({](?s:.*[,'"].*|[\s\d.+-]*)[\])}]\s*$|"""
    r"^\s*[A-Za-z_][\w.]*\(\s*[\[({](?s:.*)[\])}](?s:[^()]*)\)\s*$"
)
# A dictionary's colon follows a key in quotes, or a blank follows it.
_DICT = r'(?s)^\s*\{.*("\s*:|:\s)'
_VALUE = r"""'[^']*'|"[^"]*"|[^,'"]+"""
_NOTHING = ("None", "nan", "NaN", "null", "NULL")
# Stands for the separator, which may be several characters.
_MARK = "\x1f"


def split(
    path: pathlib.Path,
    table: pl.DataFrame,
    name: str,
    separator: str,
    limit: int,
    null_values: Sequence[str] = (),
) -> pl.Series:
    """The column as lists of texts, at most the first `limit` of a cell unless that is 0.

    A column of lists stays one. A column of text holds parts joined by the separator, or in every
    cell that is not empty a list in brackets, of values joined by the separator or else by commas.
    Values that are `null_values` are none.

    Raises:
      ValueError: When some cells are lists and others are not, or one is nested or a dictionary.
    """
    cells = table[name]
    if cells.dtype != pl.List:
        cells = cells.str.replace(_ARRAY, "$1")
        is_list = cells.str.contains(_LIST)
        is_dict = cells.str.replace_all(_QUOTED, '"').str.contains(_DICT) & is_list
        expected, todo = "a flat list, no dictionary", "write a list of its values"
        columns.check(path, table, is_dict, name, expected, todo)
        if is_list.all() and is_list.any():
            cells = _read_lists(cells, separator)
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
    cells = cells.list.eval(value.filter(~value.is_in(["", *null_values])))
    return cells.list.head(limit) if limit else cells


def _read_lists(cells: pl.Series, separator: str) -> pl.Series:
    inside = pl.col("inside")
    # NumPy joins numbers by blanks.
    numbers = inside.str.replace_all(r"\s+", ",")
    is_array = inside.str.contains(r"^[\d\s.+eE-]+$")
    value = pl.element().str.strip_chars()
    plain = pl.when(~value.is_in(_NOTHING)).then(
        value.str.replace(r"""(?s)^(['"])(.*)['"]$""", "$2")
    )
    by_comma = inside.str.extract_all(_VALUE).list.eval(plain.drop_nulls())
    # A separator in quotes is text; blanks may stand beside a comma.
    is_joined = pl.lit(False)
    if separator.strip() not in ("", ","):
        outside = inside.str.replace_all(_QUOTED, "")
        is_joined = outside.str.contains(separator, literal=True)
    back = plain.str.replace_all(_MARK, separator, literal=True)
    by_separator = (
        inside.str.replace_all(separator, _MARK, literal=True)
        .str.extract_all(_VALUE.replace(",", _MARK))
        .list.eval(back.drop_nulls())
    )
    return (
        cells.str.strip_chars().str.slice(1).str.head(-1).str.strip_chars().to_frame("inside")
        .select(pl.when(is_array).then(numbers).otherwise(inside))
        .select(pl.when(is_joined).then(by_separator).otherwise(by_comma))
        .to_series()
    )  # fmt: skip
