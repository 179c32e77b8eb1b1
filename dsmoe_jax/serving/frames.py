"""Frames, mappings and lists of ids as columns of requests.

Owns what a caller may hand over as users. pandas is not needed: its frames are recognised by their
class.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax.serving import requests
from dsmoe_jax.serving import values as values_lib

Columns = dict[str, values_lib.Values]


def is_pandas(frame: Any) -> bool:
    """Whether it is a pandas frame."""
    return type(frame).__module__.partition(".")[0] == "pandas"


def to_pandas(frame: pl.DataFrame) -> Any:
    """The frame as pandas, which is loaded since somebody used it."""
    pandas = sys.modules["pandas"]
    columns = {}
    for column in frame.get_columns():
        columns[column.name] = column.to_numpy()
        if column.dtype.is_integer() and column.null_count():
            # NumPy would make real numbers of these, in which large ids are others.
            columns[column.name] = pandas.array(column.to_list(), str(column.dtype))
    return pandas.DataFrame(columns)


def read_users(users: Any, key: str = requests.USER, what: str = "users") -> Columns:
    """Columns of requests, all of one length.

    Args:
      users: One raw id or several, a mapping or several, or a polars or pandas frame.
      key: Field of the raw ids.
      what: What a message calls them.

    Raises:
      ValueError: When it is something else.
    """
    if isinstance(users, pl.DataFrame):
        return {column.name: _read_series(column) for column in users.get_columns()}
    if is_pandas(users) and hasattr(users, "columns"):
        return {str(name): _read_pandas(users[name]) for name in users.columns}
    if isinstance(users, Mapping | str | int | np.integer):
        users = [users]
    elif isinstance(users, pl.Series):
        return {key: _read_series(users)}
    elif is_pandas(users) and hasattr(users, "dtype"):
        return {key: _read_pandas(users)}
    if not isinstance(users, Sequence | np.ndarray):
        raise ValueError(
            f"{what}: expected raw ids, mappings or a polars or pandas frame, got "
            f"{type(users).__name__}"
        )
    if isinstance(users, np.ndarray):
        users = users.tolist()
    are_mappings = [isinstance(user, Mapping) for user in users]
    if not any(are_mappings):
        return {key: [_read(user) for user in users]}
    if not all(are_mappings):
        raise ValueError(f"{what}: expected ids or mappings, got both")
    names = dict.fromkeys(name for user in users for name in user)
    # A request without any field is a cold user.
    columns: dict[str, values_lib.Values] = {key: [_read(user.get(key)) for user in users]}
    return columns | {name: [_read(user.get(name)) for user in users] for name in names}


def name_users(users: Any, columns: values_lib.Columns, count: int, usual: Any) -> pl.Series:
    """The ids of requests, as they were given; null where there is none.

    Args:
      users: What was given.
      columns: It as columns.
      count: Requests.
      usual: Type of the series where nothing that was given has one.
    """
    if isinstance(users, pl.Series):
        named = users
    elif isinstance(users, pl.DataFrame) and requests.USER in users.columns:
        named = users[requests.USER]
    else:
        named = pl.Series(columns.get(requests.USER, [None] * count), strict=False)
    named = named.alias(requests.USER)
    return named.cast(usual) if named.dtype == pl.Null else named


def _read(value: Any) -> Any:
    return None if values_lib.is_missing(value) else value


def _read_series(column: pl.Series) -> values_lib.Values:
    """Values of a column; None where null or not a number."""
    if column.dtype.is_float():
        column = column.fill_nan(None)
    values: values_lib.Values = column.to_list()
    if not len(column) or column.null_count():
        return values
    if column.dtype.is_integer() and _fits(column):
        return column.cast(pl.Int64).to_numpy()
    return np.array(values, np.str_) if column.dtype == pl.String else values


def _read_pandas(column: Any) -> values_lib.Values:
    """Values of a column; None where pandas says that there is none."""
    is_missing = column.isna().to_numpy()
    if column.dtype.kind in "iu" and not is_missing.any() and _fits(column):
        values: values_lib.Values = column.to_numpy(np.int64)
        return values
    return [None if gone else v for v, gone in zip(column.tolist(), is_missing, strict=True)]


def _fits(column: Any) -> bool:
    """Whether integers have 64 bits with a sign; others are in no vocabulary."""
    return not len(column) or -(2**63) <= int(column.min()) <= int(column.max()) < 2**63
