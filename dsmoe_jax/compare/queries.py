"""What was known of the users who ask the test queries, by which recall is told apart.

Owns the file `queries-drop<N>.npz` beside the records, one for each choice of test days. It is of
the data: every system that was asked these queries is told apart by it.

Letters: Q queries.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib


class Known(NamedTuple):
    """The users of all test queries, by the query's row.

    Attributes:
      data_hash: Of the store that has the queries.
      events_Q: The user's positives before the split's first day, also those from before the log.
      trained_Q: The user's positives that are training examples.
    """

    data_hash: str
    events_Q: Int[np.ndarray, "Q"]
    trained_Q: Int[np.ndarray, "Q"]


def read(store: store_lib.Store) -> Known:
    """Counts the positives that a store knows of."""
    columns, rows_QC = store.columns, np.asarray(store.queries("test").rows_QC)
    start_Q1, stop_Q1 = store_lib.Windows(features.HISTORY).read(rows_QC, columns)
    of_user = np.bincount(store.train_NC[:, columns["user"]], minlength=len(store.users_sparse))
    return Known(
        store.data_hash,
        (stop_Q1 - start_Q1)[:, 0].astype(np.int32),
        of_user[rows_QC[:, columns["user"]]].astype(np.int32),
    )


def keep(folder: pathlib.Path, dropped_days: int, store: store_lib.Store) -> None:
    """Writes the file of these test days, unless it is there and of this store."""
    found = load(folder, dropped_days)
    if found is not None and found.data_hash == store.data_hash:
        return
    path = _path(folder, dropped_days)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **read(store)._asdict())
    os.replace(partial, path)


def load(folder: pathlib.Path, dropped_days: int) -> Known | None:
    """The file of these test days; None where there is none."""
    path = _path(folder, dropped_days)
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return Known(str(arrays["data_hash"]), arrays["events_Q"], arrays["trained_Q"])


def _path(folder: pathlib.Path, dropped_days: int) -> pathlib.Path:
    return folder / f"queries-drop{dropped_days}.npz"
