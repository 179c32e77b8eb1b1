"""Histories: positives in row numbers, the click sequences made of them, windows and queries.

Owns the rule that keeps the future out of a history.

    X  rows (training examples or queries)     E  events of a sequence, or positives
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import entities

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


class Searchable(NamedTuple):
    """Events, prepared for windows to be found in them; all int64.

    Attributes:
      key_E: The events' keys, ascending.
      by_time_E: Key, then the latest time of the key's events up to each.
      by_day_E: Key, then day.
    """

    key_E: np.ndarray
    by_time_E: np.ndarray
    by_day_E: np.ndarray

    @classmethod
    def of(cls, key_E: np.ndarray, day_E: np.ndarray, time_E: np.ndarray) -> "Searchable":
        """Events that ascend by key (>= 0), by day within a key, and by time within a day."""
        # Within a key the running maximum of time ascends like the day does, so the longest prefix
        # below both limits is the shorter of two binary searches. The key leads, so one pass over
        # all keys does it.
        latest_E = np.maximum.accumulate(key_E * _BASE + time_E)
        return cls(key_E, latest_E, key_E * _BASE + day_E)

    def find(
        self, key_X: np.ndarray, day_X: np.ndarray, time_X: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `find_windows`."""
        by_time_X = np.searchsorted(self.by_time_E, key_X * _BASE + time_X, side="left")
        by_day_X = np.searchsorted(self.by_day_E, key_X * _BASE + day_X, side="right")
        start_X = np.searchsorted(self.key_E, key_X, side="left")
        return start_X.astype(np.int64), np.minimum(by_time_X, by_day_X).astype(np.int64)


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
    return Searchable.of(key_E, day_E, time_E).find(key_X, day_X, time_X)


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
    *,
    repeats: bool = False,
) -> QuerySet:
    """Groups the positives of a split into (user, scenario) queries.

    Relevant is what was clicked in the split and scenario, less what was seen unless `repeats`:
    clicked in any scenario before the split. A pair with nothing relevant left is no query. Of
    every positive `in_split_E` says whether it belongs to the split, `before_E` whether it is known
    to the split's queries, `in_train_E` whether it is a training example; `num_items` counts row 0.
    """
    num_scenarios = int(scenario_E.max(initial=0)) + 1
    pair_E = user_E * num_items + item_E
    seen_pair = np.unique(pair_E[before_E])
    found_E = in_split_E if repeats else in_split_E & ~np.isin(pair_E, seen_pair)
    query_E = user_E * num_scenarios + scenario_E
    hit = np.unique(query_E[found_E] * num_items + item_E[found_E])
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


class Positives(NamedTuple):
    """Every positive of every scenario, or exposure, user-major and chronological; all int64.

    Attributes:
      user_E: Row in the user table.
      scenario_E: Scenario id; of an exposure in no kept scenario their number.
      item_E: Row in the item table.
      time_E: Unix seconds.
      day_E: Days since 1970-01-01, or what a split puts in their place to tell what came before;
        see `splits.Split.order`.
    """

    user_E: np.ndarray
    scenario_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray
    day_E: np.ndarray


class ClickSequence(NamedTuple):
    """Events that are items, key-major and chronological; all int64.

    Attributes:
      num_scenarios: S where the key holds the scenario, else 1.
      key_E: user * num_scenarios + scenario.
      item_E: Row in the item table.
      time_E: Unix seconds, 0 unknown.
      day_E: Days since 1970-01-01, 0 before the log.
    """

    num_scenarios: int
    key_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray
    day_E: np.ndarray

    def find(self, rows: list[Rows]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The windows `(start_X, stop_X)` of each of `rows`, into the events of all scenarios."""
        events = Searchable.of(self.key_E, self.day_E, self.time_E)
        return [events.find(row.user_X, row.day_X, row.before_X) for row in rows]


class WindowFinder:
    """Windows into the events of every scenario, made for some rows at a time.

    They are many times the size of the log where there are many scenarios.
    """

    def __init__(self, sequence: ClickSequence):
        self._num_scenarios = sequence.num_scenarios
        self._events = Searchable.of(sequence.key_E, sequence.day_E, sequence.time_E)

    def fill(self, row: Rows, rows: slice, out_XC: np.ndarray) -> None:
        """Writes start and stop of every scenario, in turn, of some of the rows.

        `out_XC` is int64 [rows, 2 S].
        """
        day_X, before_X = row.day_X[rows], row.before_X[rows]
        key_X = row.user_X[rows] * self._num_scenarios
        for scenario in range(self._num_scenarios):
            start_X, stop_X = self._events.find(key_X + scenario, day_X, before_X)
            out_XC[:, 2 * scenario], out_XC[:, 2 * scenario + 1] = start_X, stop_X


def number_positives(
    frame: pl.DataFrame,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
    num_scenarios: int,
    last_day: int,
    kind: str = "positives",
) -> Positives:
    """`assemble.Dataset.positives` in row numbers, up to and with `last_day`, each once.

    `kind` is what messages call them.

    Raises:
      ValueError: On an unknown user or item, a scenario outside [0, S), a time out of range.
    """
    numbered = pl.DataFrame(
        {
            "user": users.rows(frame["user"]),
            "scenario": frame["scenario"].cast(pl.Int64),
            "item": items.rows(frame["item"]),
            "time_s": frame["time_s"].cast(pl.Int64),
            "day": frame["day"].cast(pl.Date).to_physical().cast(pl.Int64),
        }
    )
    return order(numbered, frame, num_scenarios, last_day, kind)


def order(
    numbered: pl.DataFrame, raw: pl.DataFrame, num_scenarios: int, last_day: int, kind: str
) -> Positives:
    """Events in row numbers, up to and with `last_day`, each once and in their order.

    Args:
      numbered: int64 columns user, scenario, item, time_s and day.
      raw: Its rows as messages show them.
      num_scenarios: S.
      last_day: Days since 1970-01-01.
      kind: What messages call them.

    Raises:
      ValueError: On an unknown user or item, a scenario outside [0, S), a time out of range.
    """
    for name, low, high, expected in (
        ("user", 1, 2**62, "users of the user table"),
        ("item", 1, 2**62, "items of the item table"),
        ("scenario", 0, num_scenarios - 1, f"scenario ids below {num_scenarios}"),
        ("time_s", 1, END_OF_DAY - 1, "unix seconds from 1 to 2**31 - 2"),
        ("day", 1, 2**62, "days after 1970-01-01"),
    ):
        wrong = ~pl.col(name).is_between(low, high)
        position = numbered.select(wrong.fill_null(True).arg_true().first()).item()
        if position is not None:
            raise ValueError(
                f"{kind}: expected {expected}, got {name} {raw[name][position]!r}; "
                "complete the table or remove the row"
            )
    key = ["user", "day", "time_s", "item", "scenario"]
    numbered = numbered.filter(pl.col("day") <= last_day).unique().sort(key)
    return Positives(*(column.to_numpy() for column in numbered.get_columns()))


def number_exposures(
    frame: pl.DataFrame,
    positives: Positives,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
    num_scenarios: int,
    last_day: int,
) -> Positives:
    """`assemble.Dataset.exposures`, as `number_positives`, without those that are positives.

    Unknown users and items are left out.

    Raises:
      ValueError: On a scenario outside [0, S), a time out of range.
    """
    frame = keep_known(frame, users, items)
    frame = frame.with_columns(pl.col("scenario").fill_null(num_scenarios))
    S, kind = num_scenarios + 1, "exposures"
    shown = number_positives(frame, users, items, S, last_day, kind)
    return without_positives(shown, positives)


def without_positives(exposures: Positives, positives: Positives) -> Positives:
    """The exposures that are no positive of the same second."""
    key = ["user_E", "scenario_E", "item_E", "time_E"]
    left = pl.DataFrame(exposures._asdict()).join(
        pl.DataFrame(positives._asdict()), on=key, how="anti", maintain_order="left"
    )
    return Positives(*(column.to_numpy() for column in left.get_columns()))


def count_by_day(
    positives: Positives, exposures: Positives, *, num_scenarios: int
) -> Int[np.ndarray, "R 5"]:
    """How often a day's rows showed an item in a scenario, and how many of them were positives.

    Returns:
      Day, scenario, item, positives and exposures, ascending. Rows in no kept scenario are left
      out.
    """
    key = ["day_E", "scenario_E", "item_E"]
    rows = [
        pl.DataFrame(events._asdict()).select(
            *key, positive=pl.lit(kind), exposure=pl.lit(1 - kind)
        )
        for kind, events in ((1, positives), (0, exposures))
    ]
    kept = pl.concat(rows).filter(pl.col("scenario_E") < num_scenarios)
    counted = kept.group_by(key).sum().sort(key)
    return counted.to_numpy().astype(np.int64)


def sum_by_day(
    one: Int[np.ndarray, "R1 5"], other: Int[np.ndarray, "R2 5"]
) -> Int[np.ndarray, "R 5"]:
    """What `count_by_day` gives of both logs' rows, from what it gives of each."""
    key = ["day_E", "scenario_E", "item_E"]
    names = [*key, "positive", "exposure"]
    rows = pl.concat([pl.DataFrame(counted, names) for counted in (one, other)])
    return rows.group_by(key).sum().sort(key).to_numpy().astype(np.int64)


def keep_known(
    frame: pl.DataFrame, users: entities.EncodedTable, items: entities.EncodedTable
) -> pl.DataFrame:
    """The rows whose user and item are known."""
    known = (users.rows(frame["user"]) > 0) & (items.rows(frame["item"]) > 0)
    return frame.filter(pl.Series(known))


def make_history(
    positives: Positives,
    pre_history: pl.DataFrame | None,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
) -> ClickSequence:
    """All clicks, or exposures, of each user: those from before the log first, then the log's.

    Raises:
      ValueError: When `pre_history` holds an unknown user or item.
    """
    if pre_history is None:
        pre_history = pl.DataFrame({"user": users.raw_id[:0], "item": items.raw_id[:0]})
    user_P, item_P = users.rows(pre_history["user"]), items.rows(pre_history["item"])
    for name, row_P in (("user", user_P), ("item", item_P)):
        if not row_P.all():
            raw = pre_history[name][int(np.argmin(row_P))]
            raise ValueError(f"pre_history: expected {name}s of the {name} table, got {raw!r}")
    zeros = np.zeros_like(user_P)
    earlier = (user_P, item_P, zeros, zeros)
    logged = (positives.user_E, positives.item_E, positives.time_E, positives.day_E)
    values = [np.concatenate(both) for both in zip(earlier, logged, strict=True)]
    # Both parts are chronological within a user and times before the log come first, so a stable
    # sort by user alone puts everything in order.
    order = np.argsort(values[0], kind="stable")
    return ClickSequence(1, *(value_E[order] for value_E in values))


def make_scenario_history(positives: Positives, num_scenarios: int) -> ClickSequence:
    """The timed clicks of each user in each scenario."""
    key_E = positives.user_E * num_scenarios + positives.scenario_E
    order = np.argsort(key_E, kind="stable")
    values = (key_E, positives.item_E, positives.time_E, positives.day_E)
    return ClickSequence(num_scenarios, *(value_E[order] for value_E in values))
