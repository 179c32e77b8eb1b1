"""Positives in row numbers, and the click histories made of them.

X  rows (training examples or queries)     E  events or positives
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from dsmoe_jax.data.prepare import entities, windows


class Positives(NamedTuple):
    """Every positive of every scenario, user-major and chronological; all int64.

    Attributes:
      user_E: Row in the user table.
      scenario_E: Scenario id.
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

    def find(
        self, rows: list[windows.Rows], scenario: int = 0
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The windows `(start_X, stop_X)` of each of `rows`, into a scenario's events."""
        found = []
        for row in rows:
            of_row = (row.user_X * self.num_scenarios + scenario, row.day_X, row.before_X)
            found.append(windows.find_windows(self.key_E, self.day_E, self.time_E, *of_row))
        return found


def number_positives(
    frame: pl.DataFrame,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
    num_scenarios: int,
    last_day: int,
) -> Positives:
    """`assemble.Dataset.positives` in row numbers, up to and with `last_day`, each once.

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
    for name, low, high, expected in (
        ("user", 1, 2**62, "users of the user table"),
        ("item", 1, 2**62, "items of the item table"),
        ("scenario", 0, num_scenarios - 1, f"scenario ids below {num_scenarios}"),
        ("time_s", 1, windows.END_OF_DAY - 1, "unix seconds from 1 to 2**31 - 2"),
        ("day", 1, 2**62, "days after 1970-01-01"),
    ):
        wrong = ~pl.col(name).is_between(low, high)
        position = numbered.select(wrong.fill_null(True).arg_true().first()).item()
        if position is not None:
            raise ValueError(
                f"positives: expected {expected}, got {name} {frame[name][position]!r}; "
                "complete the table or remove the row"
            )
    order = ["user", "day", "time_s", "item", "scenario"]
    numbered = numbered.filter(pl.col("day") <= last_day).unique().sort(order)
    return Positives(*(column.to_numpy() for column in numbered.get_columns()))


def make_history(
    positives: Positives,
    pre_history: pl.DataFrame | None,
    users: entities.EncodedTable,
    items: entities.EncodedTable,
) -> ClickSequence:
    """All clicks of each user: those from before the log first, then every positive.

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
