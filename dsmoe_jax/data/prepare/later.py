"""Queries of a log that came after a store was written: what its known users clicked next.

Owns the reading of a store's histories back into events. The rules of queries and of what came
before are those of `histories.py`.

    X  rows of the store     E  events     K  keys of sequences     Q  queries
"""

from collections.abc import Mapping

import numpy as np

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import histories


class LaterStore(store_lib.Store):
    """A store whose only queries are those of a later log."""

    def __init__(self, store: store_lib.Store, table: store_lib.QueryTable):
        """Shares the arrays of `store`."""
        vars(self).update(vars(store))
        self._table = table

    def queries(self, split: str) -> store_lib.QueryTable:
        """The queries, whatever the split is called."""
        del split
        return self._table


def add_queries(store: store_lib.Store, positives: Mapping[str, np.ndarray]) -> LaterStore:
    """The store with the queries of later positives.

    A history holds what the store knows from before the first of them; what was clicked then is not
    to be found again, unless the store was prepared with `data.repeats`.

    Positives are `user`, `item` and `scenario` as text and `time_s`; those whose user, item or
    scenario the store does not know are left out.

    Raises:
      ValueError: When no query is left.
    """
    user_P = _row_of(positives["user"], store.users_raw_id)
    item_P = _row_of(positives["item"], store.items_raw_id)
    scenario_P = _row_of(positives["scenario"], np.array(["", *store.spec.scenarios])) - 1
    known_P = (user_P > 0) & (item_P > 0) & (scenario_P >= 0)
    if not known_P.any():
        raise ValueError(
            f"log: expected a positive of a known user, item and scenario, got none among "
            f"{len(known_P):,} positives"
        )
    user_P, item_P, scenario_P = user_P[known_P], item_P[known_P], scenario_P[known_P]
    start_s = int(positives["time_s"][known_P].min())
    history = read_sequence(store, store_lib.Windows("history"))
    user_E, before_E = history.key_E, history.time_E < start_s
    no_P, trained_N = np.zeros(len(user_P), bool), store.train_NC[:, store.columns["user"]]
    found = histories.make_queries(
        np.concatenate([user_E, user_P]),
        # The scenario of what came before has no say.
        np.concatenate([np.zeros_like(user_E), scenario_P]),
        np.concatenate([history.item_E, item_P]),
        in_split_E=np.concatenate([np.zeros_like(before_E), ~no_P]),
        before_E=np.concatenate([before_E, no_P]),
        in_train_E=np.concatenate([np.isin(user_E, trained_N), no_P]),
        num_items=store.spec.num_items,
        repeats=store.repeats,
    )
    if not len(found.user_Q):
        raise ValueError("log: expected a positive that its user had not clicked before, got none")
    rows_QC = np.zeros((len(found.user_Q), len(store.columns)), np.int64)
    rows_QC[:, store.columns["user"]] = found.user_Q
    rows_QC[:, store.columns["scenario"]] = found.scenario_Q
    rows_QC[:, store.columns["time_s"]] = start_s
    no_Q = np.zeros_like(found.user_Q)
    start_Q = np.full_like(no_Q, start_s)
    rows = histories.Rows(found.user_Q, found.scenario_Q, no_Q, start_Q, start_Q, day_X=no_Q)
    by_scenario = store_lib.Windows("scenario_history", store.spec.num_scenarios)
    shown = [store_lib.Windows(name) for name in store.sequences if name == features.EXPOSURES]
    for of in (store_lib.Windows("history"), by_scenario, *shown):
        first = store.columns[of.columns[0]]
        finder = histories.WindowFinder(read_sequence(store, of))
        finder.fill(rows, slice(None), rows_QC[:, first : first + len(of.columns)])
    table = store_lib.QueryTable(rows_QC, found.relevant, found.seen, found.cold_Q)
    return LaterStore(store, table)


def read_sequence(store: store_lib.Store, of: store_lib.Windows) -> histories.ClickSequence:
    """The events of a sequence, whose keys the rows of the store tell; their days do not count.

    Those of users without a row, who have none but from before the log, are left out.
    """
    user_U, rows_UC = store.first_rows()
    start_UK, _ = of.read(rows_UC, store.columns)
    ids_EF, time_E = store.sequences[of.sequence]
    K = start_UK.shape[1]
    key_UK = user_U[:, None] * K + np.arange(K)
    key_E = np.repeat(key_UK.ravel(), np.diff(np.append(start_UK.ravel(), len(time_E))))
    first = len(time_E) - len(key_E)
    item_E, time_E = (np.asarray(part_E[first:], np.int64) for part_E in (ids_EF[:, 0], time_E))
    # Who has a row has a timed event in every sequence with untimed ones, which come before it: an
    # untimed one after it is of the next user, without a row.
    latest_E = np.maximum.accumulate(key_E << 32 | time_E)
    own_E = (time_E > 0) | (latest_E == key_E << 32)
    key_E, item_E, time_E = key_E[own_E], item_E[own_E], time_E[own_E]
    return histories.ClickSequence(K, key_E, item_E, time_E, day_E=np.zeros_like(key_E))


def _row_of(values: np.ndarray, raw_id: np.ndarray) -> np.ndarray:
    """Row of each value among raw ids, of which row 0 stands for none; 0 where there is none."""
    rows = {value: row for row, value in enumerate(raw_id.tolist()) if row}
    return np.array([rows.get(value, 0) for value in values.tolist()], np.int64)
