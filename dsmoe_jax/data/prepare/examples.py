"""Positives in row numbers: splits, training examples, queries and click histories.

X  rows (training examples or queries)     E  events or positives
"""

import dataclasses
import datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import tables, windows

_EPOCH = datetime.date(1970, 1, 1)
_DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class Days:
    """Ascending days of each split, as days since 1970-01-01."""

    train: list[int]
    validation: list[int]
    test: list[int]


class Positives(NamedTuple):
    """Every positive of every scenario, user-major and chronological; all int64."""

    user_E: np.ndarray
    scenario_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray
    day_E: np.ndarray


class ClickSequence(NamedTuple):
    """Events that are items, key-major and chronological; all int64.

    Attributes:
      key_E: The user, or user * num_scenarios + scenario.
      item_E: Row in the item table.
      time_E: Unix seconds, 0 unknown.
      day_E: Days since 1970-01-01, 0 before the log.
      num_scenarios: S where the key holds the scenario, else 0.
    """

    key_E: np.ndarray
    item_E: np.ndarray
    time_E: np.ndarray
    day_E: np.ndarray
    num_scenarios: int

    def find(
        self, rows: list[windows.Rows], scenario: int | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The windows `(start_X, stop_X)` of each of `rows`, into `scenario`'s events if given."""
        found = []
        for row in rows:
            key_X = row.user_X
            if scenario is not None:
                key_X = key_X * self.num_scenarios + scenario
            found.append(
                windows.find_windows(
                    self.key_E, self.day_E, self.time_E, key_X, row.day_X, row.before_X
                )
            )
        return found


def number_positives(
    frame: pl.DataFrame,
    users: tables.EncodedTable,
    items: tables.EncodedTable,
    num_scenarios: int,
    last_day: int,
) -> Positives:
    """Positives in row numbers, up to and including `last_day`, without repetitions.

    Args:
      frame: See `assemble.Dataset.positives`.
      users: The user table.
      items: The item table.
      num_scenarios: S.
      last_day: Days since 1970-01-01.

    Raises:
      ValueError: On an unknown user or item, a scenario outside [0, S), a time out of range.
    """
    numbered = pl.DataFrame(
        {
            "user": users.rows(frame["user"]),
            "scenario": frame["scenario"].cast(pl.Int64),
            "item": items.rows(frame["item"]),
            "time": frame["time_s"].cast(pl.Int64),
            "day": frame["day"].cast(pl.Date).to_physical().cast(pl.Int64),
        }
    )
    for name, low, high, expected in (
        ("user", 1, None, "users of the user table"),
        ("item", 1, None, "items of the item table"),
        ("scenario", 0, num_scenarios - 1, f"scenario ids below {num_scenarios}"),
        ("time", 1, windows.END_OF_DAY - 1, "unix seconds from 1 to 2**31 - 2"),
        ("day", 1, None, "days after 1970-01-01"),
    ):
        wrong = ~pl.col(name).is_between(low, high if high is not None else 2**62)
        position = numbered.select(wrong.fill_null(True).arg_true().first()).item()
        if position is not None:
            raw = {"time": "time_s"}.get(name, name)
            raise ValueError(
                f"positives: expected {expected}, got {raw} {frame[raw][position]!r}; "
                "complete the table or remove the row"
            )
    order = ["user", "day", "time", "item", "scenario"]
    numbered = numbered.filter(pl.col("day") <= last_day).unique().sort(order)
    return Positives(
        *(numbered[name].to_numpy() for name in ("user", "scenario", "item", "time", "day"))
    )


def check_splits(positives: Positives, days: Days, scenarios: tuple[str, ...]) -> None:
    """Refuses a split without positives and a scenario without training positives.

    Raises:
      ValueError: Naming the split or the scenario.
    """
    if not len(positives.user_E):
        raise ValueError("positives: expected at least one in the kept scenarios, got none")
    for split in ("train", *store_lib.SPLITS):
        if not in_split(positives, days, split).any():
            raise ValueError(
                f"split {split!r} ({describe_days(getattr(days, split))}): expected at least one "
                "positive, got none; add log files or change data.validation_days, data.test_days"
            )
    train = np.bincount(
        positives.scenario_E[in_split(positives, days, "train")], minlength=len(scenarios)
    )
    for name, count in zip(scenarios, train, strict=True):
        if not count:
            raise ValueError(
                f"scenario {name!r}: expected at least one training positive "
                f"({describe_days(days.train)}), got none; add log files or leave the scenario out"
            )


def check_queries(queries: dict[str, windows.QuerySet], scenarios: tuple[str, ...]) -> None:
    """Refuses a scenario that has no query to be judged on.

    Raises:
      ValueError: Naming split and scenario.
    """
    for split, query in queries.items():
        count_S = np.bincount(query.scenario_Q, minlength=len(scenarios))
        for name, count in zip(scenarios, count_S, strict=True):
            if not count:
                raise ValueError(
                    f"scenario {name!r}: expected at least one {split} query (a user with a "
                    f"positive not clicked before), got none; hold out more days "
                    f"(data.{split}_days) or leave the scenario out"
                )


def in_split(positives: Positives, days: Days, split: str) -> np.ndarray:
    """Bool [E]: which positives belong to `split`."""
    wanted = getattr(days, split)
    return (positives.day_E >= wanted[0]) & (positives.day_E <= wanted[-1])


def split_queries(positives: Positives, days: Days, split: str, num_items: int) -> windows.QuerySet:
    """The queries of `split`; see `windows.make_queries`."""
    return windows.make_queries(
        positives.user_E,
        positives.scenario_E,
        positives.item_E,
        in_split_E=in_split(positives, days, split),
        before_E=positives.day_E < getattr(days, split)[0],
        in_train_E=in_split(positives, days, "train"),
        num_items=num_items,
    )


def count(
    positives: Positives,
    days: Days,
    queries: dict[str, windows.QuerySet],
    scenarios: tuple[str, ...],
) -> dict[str, Any]:
    """Training positives, queries and held-out positives by scenario.

    Held-out positives are those of the log; a query's relevant items may be fewer.
    """

    def by_scenario(scenario_X: np.ndarray) -> dict[str, int]:
        count_S = np.bincount(scenario_X, minlength=len(scenarios))
        return {name: int(n) for name, n in zip(scenarios, count_S, strict=True)}

    counts = {"train": by_scenario(positives.scenario_E[in_split(positives, days, "train")])}
    for split, query in queries.items():
        counts[f"{split}_queries"] = by_scenario(query.scenario_Q)
        counts[f"{split}_positives"] = by_scenario(
            positives.scenario_E[in_split(positives, days, split)]
        )
    return counts


def describe_splits(positives: Positives, days: Days) -> dict[str, dict[str, Any]]:
    """Days (ISO dates) and number of positives of each split."""
    return {
        split: {
            "days": [_iso(day) for day in getattr(days, split)],
            "examples": int(in_split(positives, days, split).sum()),
        }
        for split in ("train", *store_lib.SPLITS)
    }


def describe_days(days: list[int]) -> str:
    """First and last of `days`, as ISO dates."""
    return f"{_iso(days[0])} to {_iso(days[-1])}"


def _iso(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()


def train_rows(positives: Positives, days: Days) -> windows.Rows:
    """One row per training positive; its past ends strictly before it."""
    kept = in_split(positives, days, "train")
    user, scenario, item, time, day = (values[kept] for values in positives)
    return windows.Rows(user, scenario, item, time_X=time, before_X=time, day_X=day)


def query_rows(query: windows.QuerySet, first_day: int, utc_offset_s: int) -> windows.Rows:
    """One row per query; its past is every day before `first_day`, the split's first."""

    def filled(value: int) -> np.ndarray:
        return np.full(len(query.user_Q), value, np.int64)

    return windows.Rows(
        query.user_Q,
        query.scenario_Q,
        item_X=filled(0),
        time_X=filled(first_day * _DAY_S - utc_offset_s),
        before_X=filled(windows.END_OF_DAY),
        day_X=filled(first_day - 1),
    )


def make_history(
    positives: Positives,
    pre_history: pl.DataFrame | None,
    users: tables.EncodedTable,
    items: tables.EncodedTable,
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
    key_E = np.concatenate([user_P, positives.user_E])
    # Both parts are chronological within a user and times before the log come first, so a stable
    # sort by user alone puts everything in order.
    order = np.argsort(key_E, kind="stable")
    return ClickSequence(
        key_E[order],
        np.concatenate([item_P, positives.item_E])[order],
        np.concatenate([zeros, positives.time_E])[order],
        np.concatenate([zeros, positives.day_E])[order],
        num_scenarios=0,
    )


def make_scenario_history(positives: Positives, num_scenarios: int) -> ClickSequence:
    """The timed clicks of each user in each scenario."""
    key_E = positives.user_E * num_scenarios + positives.scenario_E
    order = np.argsort(key_E, kind="stable")
    return ClickSequence(
        key_E[order],
        positives.item_E[order],
        positives.time_E[order],
        positives.day_E[order],
        num_scenarios,
    )
