"""Which positives train, validate and test, and what each row may have seen.

Owns the two rules, by day and leave-one-out, and what follows from either: training rows, queries,
counts and the refusal of a split that leaves nothing to learn from or to judge.

X  rows (training examples or queries)     E  events or positives
"""

import dataclasses
import datetime
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import examples, windows

RULES = ("days", "leave_one_out")

_EPOCH = datetime.date(1970, 1, 1)
_DAY_S = 86_400
# Of a user's positives: one to learn from, one to validate and one to test.
_FEWEST = 3


@runtime_checkable
class Split(Protocol):
    """A rule that splits positives."""

    @property
    def last_day(self) -> int:
        """Days since 1970-01-01; positives after it are left out."""

    def order(self, positives: examples.Positives) -> examples.Positives:
        """The positives with the days that decide what came before what."""

    def members(self, positives: examples.Positives, split: str) -> np.ndarray:
        """Bool [E]: which positives belong to `split`: "train", "validation" or "test"."""

    def before(self, positives: examples.Positives, split: str) -> np.ndarray:
        """Bool [E]: which positives are known to the queries of `split`."""

    def train_rows(self, positives: examples.Positives) -> windows.Rows:
        """One row per training positive; its past ends strictly before it."""

    def query_rows(
        self, positives: examples.Positives, query: windows.QuerySet, split: str
    ) -> windows.Rows:
        """One row per query of `split`."""

    def days(self, positives: examples.Positives, split: str) -> list[str]:
        """ISO dates of `split`; at least its first and its last."""

    def span(self, split: str) -> str:
        """Where `split` lies, in parentheses and with a leading space, or nothing."""

    def more_positives(self) -> str:
        """What to do about a split without positives."""

    def more_queries(self, split: str) -> str:
        """What to do about a scenario without queries in `split`."""


@dataclasses.dataclass(frozen=True)
class ByDay:
    """The last days test, those before them validate, all earlier ones train.

    A query's past is every day before its split.

    Attributes:
      train, validation, test: Ascending days of each split, as days since 1970-01-01.
      utc_offset_s: Seconds that the days' midnight is ahead of UTC's.
    """

    train: list[int]
    validation: list[int]
    test: list[int]
    utc_offset_s: int = 0

    @property
    def last_day(self) -> int:
        """See `Split`."""
        return self.test[-1]

    def order(self, positives: examples.Positives) -> examples.Positives:
        """See `Split`."""
        return positives

    def members(self, positives: examples.Positives, split: str) -> np.ndarray:
        """See `Split`."""
        wanted = getattr(self, split)
        return (positives.day_E >= wanted[0]) & (positives.day_E <= wanted[-1])

    def before(self, positives: examples.Positives, split: str) -> np.ndarray:
        """See `Split`."""
        return np.asarray(positives.day_E < getattr(self, split)[0])

    def train_rows(self, positives: examples.Positives) -> windows.Rows:
        """See `Split`."""
        kept = self.members(positives, "train")
        user, scenario, item, time, day = (values[kept] for values in positives)
        return windows.Rows(user, scenario, item, time_X=time, before_X=time, day_X=day)

    def query_rows(
        self, positives: examples.Positives, query: windows.QuerySet, split: str
    ) -> windows.Rows:
        """See `Split`."""
        first_day = getattr(self, split)[0]
        size = len(query.user_Q)
        return windows.Rows(
            query.user_Q,
            query.scenario_Q,
            item_X=_filled(0, size),
            time_X=_filled(first_day * _DAY_S - self.utc_offset_s, size),
            before_X=_filled(windows.END_OF_DAY, size),
            day_X=_filled(first_day - 1, size),
        )

    def days(self, positives: examples.Positives, split: str) -> list[str]:
        """See `Split`."""
        return [_iso(day) for day in getattr(self, split)]

    def span(self, split: str) -> str:
        """See `Split`."""
        days = getattr(self, split)
        return f" ({_iso(days[0])} to {_iso(days[-1])})"

    def more_positives(self) -> str:
        """See `Split`."""
        return "add log files or change data.validation_days, data.test_days"

    def more_queries(self, split: str) -> str:
        """See `Split`."""
        return f"hold out more days (data.{split}_days)"


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Of every user the last positive tests, the one before it validates, all earlier ones train.

    What came before is told by the order of a user's positives: by day, time and row of the item
    table, where several share a second. A query knows the second of its request, which is that of
    the positive held out. Users with fewer than three positives only train.
    """

    @property
    def last_day(self) -> int:
        """All days: see `Split`."""
        return int(np.iinfo(np.int64).max)

    def order(self, positives: examples.Positives) -> examples.Positives:
        """Every positive's number among its user's, from 1, in place of its day."""
        first_E = np.searchsorted(positives.user_E, positives.user_E)
        return positives._replace(day_E=np.arange(len(first_E)) - first_E + 1)

    def members(self, positives: examples.Positives, split: str) -> np.ndarray:
        """See `Split`."""
        user_E, number_E = positives.user_E, positives.day_E
        first_E = np.searchsorted(user_E, user_E)
        count_E = np.searchsorted(user_E, user_E, side="right") - first_E
        # 0 for the last positive, 1 for the one before it.
        from_end_E = np.where(count_E >= _FEWEST, count_E - number_E, _FEWEST)
        if split == "train":
            return np.asarray(from_end_E >= 2)
        return np.asarray(from_end_E == ("test", "validation").index(split))

    def before(self, positives: examples.Positives, split: str) -> np.ndarray:
        """See `Split`."""
        known = self.members(positives, "train")
        return known if split == "validation" else known | self.members(positives, "validation")

    def train_rows(self, positives: examples.Positives) -> windows.Rows:
        """See `Split`."""
        return self._rows(positives, self.members(positives, "train"))

    def query_rows(
        self, positives: examples.Positives, query: windows.QuerySet, split: str
    ) -> windows.Rows:
        """See `Split`."""
        held = np.flatnonzero(self.members(positives, split))
        rows = self._rows(positives, held[np.searchsorted(positives.user_E[held], query.user_Q)])
        return rows._replace(item_X=np.zeros_like(rows.item_X))

    def days(self, positives: examples.Positives, split: str) -> list[str]:
        """See `Split`; by UTC's midnight."""
        time_E = positives.time_E[self.members(positives, split)]
        return [_iso(int(time // _DAY_S)) for time in (time_E.min(), time_E.max())]

    def span(self, split: str) -> str:
        """See `Split`."""
        return ""

    def more_positives(self) -> str:
        """See `Split`."""
        return f"add users with at least {_FEWEST} positives"

    def more_queries(self, split: str) -> str:
        """See `Split`."""
        return self.more_positives()

    def _rows(self, positives: examples.Positives, chosen: np.ndarray) -> windows.Rows:
        user, scenario, item, time, number = (values[chosen] for values in positives)
        return windows.Rows(
            user,
            scenario,
            item,
            time_X=time,
            before_X=_filled(windows.END_OF_DAY, len(user)),
            day_X=number - 1,
        )


def check_splits(positives: examples.Positives, rule: Split, scenarios: tuple[str, ...]) -> None:
    """Refuses a split without positives and a scenario without training positives.

    Raises:
      ValueError: Naming the split or the scenario.
    """
    if not len(positives.user_E):
        raise ValueError("positives: expected at least one in the kept scenarios, got none")
    for split in ("train", *store_lib.SPLITS):
        if not rule.members(positives, split).any():
            raise ValueError(
                f"split {split!r}{rule.span(split)}: expected at least one positive, got none; "
                f"{rule.more_positives()}"
            )
    train = np.bincount(
        positives.scenario_E[rule.members(positives, "train")], minlength=len(scenarios)
    )
    for name, count in zip(scenarios, train, strict=True):
        if not count:
            raise ValueError(
                f"scenario {name!r}: expected at least one training positive"
                f"{rule.span('train')}, got none; add log files or leave the scenario out"
            )


def check_queries(
    queries: dict[str, windows.QuerySet], rule: Split, scenarios: tuple[str, ...]
) -> None:
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
                    f"positive not clicked before), got none; {rule.more_queries(split)} or "
                    "leave the scenario out"
                )


def split_queries(
    positives: examples.Positives, rule: Split, split: str, num_items: int
) -> windows.QuerySet:
    """The queries of `split`; see `windows.make_queries`."""
    return windows.make_queries(
        positives.user_E,
        positives.scenario_E,
        positives.item_E,
        in_split_E=rule.members(positives, split),
        before_E=rule.before(positives, split),
        in_train_E=rule.members(positives, "train"),
        num_items=num_items,
    )


def count(
    positives: examples.Positives,
    rule: Split,
    queries: dict[str, windows.QuerySet],
    scenarios: tuple[str, ...],
) -> dict[str, Any]:
    """Training positives, queries and held-out positives by scenario.

    Held-out positives are those of the log; a query's relevant items may be fewer.
    """

    def by_scenario(scenario_X: np.ndarray) -> dict[str, int]:
        count_S = np.bincount(scenario_X, minlength=len(scenarios))
        return {name: int(n) for name, n in zip(scenarios, count_S, strict=True)}

    counts = {"train": by_scenario(positives.scenario_E[rule.members(positives, "train")])}
    for split, query in queries.items():
        counts[f"{split}_queries"] = by_scenario(query.scenario_Q)
        counts[f"{split}_positives"] = by_scenario(
            positives.scenario_E[rule.members(positives, split)]
        )
    return counts


def describe(positives: examples.Positives, rule: Split) -> dict[str, dict[str, Any]]:
    """Days (ISO dates) and number of positives of each split."""
    return {
        split: {
            "days": rule.days(positives, split),
            "examples": int(rule.members(positives, split).sum()),
        }
        for split in ("train", *store_lib.SPLITS)
    }


def _filled(value: int, size: int) -> np.ndarray:
    return np.full(size, value, np.int64)


def _iso(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()
