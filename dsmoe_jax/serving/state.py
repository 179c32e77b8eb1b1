"""What a bundle knows of users: features, and what each did and was shown before the test days.

Owns the cut of a store's sequences at the time up to which a bundle knows. Evaluation on test days
asks with exactly this.

Letters: U rows of the user table (row 0 is the unknown user), C columns, E events, W windows of a
row.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import later

# Later than every event.
_NEVER = 2**31 - 1


class Known(NamedTuple):
    """Where each user's events are.

    Attributes:
      rows_UC: One row per user, columns as the store's; scenario and item are 0.
      sequences: The events before the rows' times, by name.
      until_s: Unix seconds of the last time that counts, or 0 where it differs between users.
    """

    rows_UC: Int[np.ndarray, "U C"]
    sequences: dict[str, tuple[np.ndarray, np.ndarray]]
    until_s: int


def windows(store_spec: features.FeatureSpec) -> list[store_lib.Windows]:
    """The windows of a row, of every sequence."""
    S = store_spec.num_scenarios
    return [
        store_lib.Windows(s.name, S if s.name == "scenario_history" else 0)
        for s in store_spec.sequences
    ]


def read_known(store: store_lib.Store) -> Known:
    """What was known of every user when the test queries were asked.

    Users with a test query have its windows; of the others all events before the same moment count,
    or with leave-one-out, where no two users share one, all events.
    """
    columns, U = store.columns, len(store.users_sparse)
    rows_QC = np.asarray(store.queries("test").rows_QC)
    user_Q, first_Q = np.unique(rows_QC[:, columns["user"]], return_index=True)
    asked_QC = rows_QC[first_Q]
    time_Q = asked_QC[:, columns["time_s"]]
    until_s = int(time_Q[0]) if np.ptp(time_Q) == 0 else 0
    rows_UC = np.zeros((U, len(columns)), np.int64)
    rows_UC[:, columns["user"]] = np.arange(U)
    rows_UC[:, columns["time_s"]] = until_s or _NEVER
    rows_UC[user_Q, columns["time_s"]] = time_Q
    sequences = {}
    for of in windows(store.spec):
        start_UW, stop_UW = _find(store, of, rows_UC)
        asked_start_QW, asked_stop_QW = of.read(asked_QC, columns)
        start_UW[user_Q], stop_UW[user_Q] = asked_start_QW, asked_stop_QW
        ids_EF, time_E = store.sequences[of.sequence]
        length_X = (stop_UW - start_UW).ravel()
        last_X = np.cumsum(length_X)
        event_E = np.arange(last_X[-1]) + np.repeat(
            start_UW.ravel() - (last_X - length_X), length_X
        )
        sequences[of.sequence] = np.asarray(ids_EF[event_E]), np.asarray(time_E[event_E])
        into_start_UW, into_stop_UW = of.read(rows_UC, columns)  # views
        into_stop_UW[:] = last_X.reshape(stop_UW.shape)
        into_start_UW[:] = into_stop_UW - length_X.reshape(stop_UW.shape)
    return Known(rows_UC, sequences, until_s)


def _find(
    store: store_lib.Store, of: store_lib.Windows, rows_UC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops [U, W] of the events before each user's time, in the store's sequence."""
    sequence, U = later.read_sequence(store, of), len(rows_UC)
    K = sequence.num_scenarios
    before_E = sequence.time_E < rows_UC[sequence.key_E // K, store.columns["time_s"]]
    count_X = np.bincount(sequence.key_E[before_E], minlength=U * K)
    # Where a user's events begin, the user's rows say.
    user_X, rows_XC = store.first_rows()
    start_UK = np.zeros((U, K), np.int64)
    start_UK[user_X], _ = of.read(rows_XC, store.columns)
    return start_UK, start_UK + count_X.reshape(U, K)
