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
    columns = {column.name: column.to_numpy() for column in frame.get_columns()}
    return sys.modules["pandas"].DataFrame(columns)


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
    elif isinstance(users, pl.Series) or is_pandas(users):
        users = users.to_list()
    if not isinstance(users, Sequence | np.ndarray):
        raise ValueError(
            f"{what}: expected raw ids, mappings or a polars or pandas frame, got "
            f"{type(users).__name__}"
        )
    if isinstance(users, np.ndarray):
        users = users.tolist()
    are_mappings = [isinstance(user, Mapping) for user in users]
    if not any(are_mappings):
        return {key: list(users)}
    if not all(are_mappings):
        raise ValueError(f"{what}: expected ids or mappings, got both")
    names = dict.fromkeys(name for user in users for name in user)
    # A request without any field is a cold user.
    columns: dict[str, values_lib.Values] = {key: [user.get(key) for user in users]}
    return columns | {name: [user.get(name) for user in users] for name in names}


def name_users(columns: values_lib.Columns, count: int) -> values_lib.Values:
    """The ids of requests, as they were given; None where there is none."""
    return columns.get(requests.USER, [None] * count)


def _read_series(column: pl.Series) -> values_lib.Values:
    """Values of a column; None where null."""
    whole = column.null_count() == 0 and len(column) > 0
    values: Any = column.to_list()
    if whole and column.dtype.is_integer():
        values = column.cast(pl.Int64).to_numpy()
    elif whole and column.dtype == pl.String:
        values = np.array(values, np.str_)
    checked: values_lib.Values = values
    return checked


def _read_pandas(column: Any) -> values_lib.Values:
    if column.dtype.kind in "iu":
        values: values_lib.Values = column.to_numpy().astype(np.int64)
        return values
    return [None if isinstance(v, float) and v != v else v for v in column.tolist()]
