"""History windows into chronological sequences, and the evaluation queries.

Owns the rule that keeps the future out of a history. Works on row numbers and NumPy arrays only.

    X  rows (training examples or queries)     E  events of a sequence
"""

from typing import NamedTuple

import numpy as np

from dsmoe_jax.data import store as store_lib

# A cut that no time of day reaches: all events up to and including the cut's day.
END_OF_DAY = 2**31 - 1
_BASE = np.int64(2**32)


class Rows(NamedTuple):
    """Training examples, or the queries of a split, sorted by user; all int64.

    Attributes:
      user_X: Row in the user table.
      scenario_X: Scenario id.
      item_X: Row in the item table; 0 in queries.
      time_X: Unix seconds of the example, or of the split's start.
      before_X: Unix seconds; what happened then or later is not past.
      day_X: The last day of the past, in days since 1970-01-01 in the log's time zone, or what
        replaces days in the events. A log's day and its clock disagree around midnight, and both
        have to be before.
    """

    user_X: np.ndarray
    scenario_X: np.ndarray
    item_X: np.ndarray
    time_X: np.ndarray
    before_X: np.ndarray
    day_X: np.ndarray


def find_windows(
    key_E: np.ndarray,
    day_E: np.ndarray,
    time_E: np.ndarray,
    key_X: np.ndarray,
    day_X: np.ndarray,
    time_X: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The events of each row's key that came strictly before the row: `start_X`, `stop_X`.

    A window ends at the last prefix of the key's events all of whose times are below the row's and
    all of whose days are not above the row's, so it is chronological and never skips an event.
    Events ascend by key (>= 0), by day within a key, and by time, in [0, 2**31), within a day. Rows
    are in any order, their times at most `END_OF_DAY`. All are int64.
    """
    # Within a key the running maximum of time ascends like the day does, so the longest prefix
    # below both limits is the shorter of two binary searches. The key leads, so one pass over all
    # keys does it.
    latest_E = np.maximum.accumulate(key_E * _BASE + time_E)
    by_time_X = np.searchsorted(latest_E, key_X * _BASE + time_X, side="left")
    by_day_X = np.searchsorted(key_E * _BASE + day_E, key_X * _BASE + day_X, side="right")
    start_X = np.searchsorted(key_E, key_X, side="left")
    return start_X.astype(np.int64), np.minimum(by_time_X, by_day_X).astype(np.int64)


class QuerySet(NamedTuple):
    """The queries of one split, sorted by user and scenario; see `data.store.QueryTable`."""

    user_Q: np.ndarray
    scenario_Q: np.ndarray
    relevant: store_lib.Ragged
    seen: store_lib.Ragged
    cold_Q: np.ndarray


def make_queries(
    user_E: np.ndarray,
    scenario_E: np.ndarray,
    item_E: np.ndarray,
    in_split_E: np.ndarray,
    before_E: np.ndarray,
    in_train_E: np.ndarray,
    num_items: int,
) -> QuerySet:
    """Groups the positives of a split into (user, scenario) queries.

    Relevant is what was clicked in the split and scenario, less what was seen: clicked in any
    scenario before the split. A pair with nothing relevant left is no query. Of every positive
    `in_split_E` says whether it belongs to the split, `before_E` whether it is known to the split's
    queries, `in_train_E` whether it is a training example; `num_items` counts row 0.
    """
    num_scenarios = int(scenario_E.max(initial=0)) + 1
    pair_E = user_E * num_items + item_E
    seen_pair = np.unique(pair_E[before_E])
    fresh_E = in_split_E & ~np.isin(pair_E, seen_pair)
    query_E = user_E * num_scenarios + scenario_E
    hit = np.unique(query_E[fresh_E] * num_items + item_E[fresh_E])
    query_Q, first_Q = np.unique(hit // num_items, return_index=True)
    user_Q = query_Q // num_scenarios
    # The seen items of each query are a slice of `seen_pair`, which is sorted by user and item.
    start_Q = np.searchsorted(seen_pair, user_Q * num_items)
    count_Q = np.searchsorted(seen_pair, (user_Q + 1) * num_items) - start_Q
    indptr = np.concatenate([[0], np.cumsum(count_Q)]).astype(np.int64)
    position = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - start_Q, count_Q)
    return QuerySet(
        user_Q=user_Q,
        scenario_Q=query_Q % num_scenarios,
        relevant=store_lib.Ragged(
            np.append(first_Q, len(hit)).astype(np.int64), (hit % num_items).astype(np.int32)
        ),
        seen=store_lib.Ragged(indptr, (seen_pair[position] % num_items).astype(np.int32)),
        cold_Q=~np.isin(user_Q, user_E[in_train_E]),
    )
