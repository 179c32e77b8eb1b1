"""Train, validation and test splits: by day and leave-one-out.

Owns the two rules and what follows from either: training rows, queries, counts and the refusal of a
split that leaves nothing to train on or to evaluate.

X  rows (training examples or queries)     E  events or positives
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dsmoe_jax import terminal
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import clocks, histories

RULES = ("days", "leave_one_out")

_EPOCH = datetime.date(1970, 1, 1)
# Of a user's positives: one to learn from, one to validate and one to test.
_FEWEST = 3


@dataclasses.dataclass(frozen=True)
class ByDay:
    """The last days test, those before them validate, all earlier ones train.

    A query's past is every day before its split.

    Attributes:
      train, validation, test: Calendar days of each split, as days since 1970-01-01, whether they
        have rows or not.
      with_rows: The days of all three that have.
      clock: Whose midnight begins the days.
    """

    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]
    with_rows: Set[int]
    clock: clocks.Clock = clocks.UTC

    @property
    def last_day(self) -> int:
        """Days since 1970-01-01; positives after it are left out."""
        return self.test[-1]

    def order(self, positives: histories.Positives) -> histories.Positives:
        """The positives with the days that decide what came before what."""
        return positives

    def members(self, positives: histories.Positives, split: str) -> np.ndarray:
        """Bool [E]: which positives belong to `split`: "train", "validation" or "test"."""
        wanted = getattr(self, split)
        return np.asarray((positives.day_E >= wanted[0]) & (positives.day_E <= wanted[-1]))

    def before(self, positives: histories.Positives, split: str) -> np.ndarray:
        """Bool [E]: which positives are known to the queries of `split`."""
        return np.asarray(positives.day_E < getattr(self, split)[0])

    def train_rows(self, positives: histories.Positives) -> histories.Rows:
        """One row per training positive; its past ends strictly before it."""
        user, scenario, item, time, day = _take(positives, self.members(positives, "train"))
        return histories.Rows(user, scenario, item, time_X=time, before_X=time, day_X=day)

    def query_rows(
        self, positives: histories.Positives, query: histories.QuerySet, split: str
    ) -> histories.Rows:
        """One row per query of `split`."""
        first_day = getattr(self, split)[0]
        [time_s] = self.clock.day_starts(np.array([first_day]))
        columns = (0, time_s, histories.END_OF_DAY, first_day - 1)
        filled = (np.full(len(query.user_Q), value, np.int64) for value in columns)
        return histories.Rows(query.user_Q, query.scenario_Q, *filled)


def by_day(days: Sequence[datetime.date], section: schema.DataConfig, clock: clocks.Clock) -> ByDay:
    """The split by calendar days of a log whose rows have `days`.

    Raises:
      ValueError: When no day is left to train on.
    """
    with_rows = {(day - _EPOCH).days for day in days}
    last = max(with_rows, default=0) - section.drop_last_days
    with_rows = {day for day in with_rows if day <= last}
    first, held_out = min(with_rows, default=last), section.validation_days + section.test_days
    number = last - first + 1 if with_rows else 0
    span = f" ({_iso(first)} to {_iso(last)})" if with_rows else ""
    if section.validation_days < 1 or section.test_days < 1 or number <= held_out:
        raise ValueError(
            f"data.validation_days, data.test_days: expected at least 1 each and fewer than the "
            f"{number} days that the log has{span} after data.drop_last_days="
            f"{section.drop_last_days}, got {section.validation_days} + {section.test_days}; "
            "add log files or hold out fewer days"
        )
    test, validation = last - section.test_days + 1, last - held_out + 1
    return ByDay(
        train=range(first, validation),
        validation=range(validation, test),
        test=range(test, last + 1),
        with_rows=frozenset(with_rows),
        clock=clock,
    )


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Of every user the last positive tests, the one before it validates, all earlier ones train.

    What came before follows the order of a user's positives: by day, time and row of the item
    table, where several share a second. A query knows the second of its request, which is that of
    the positive held out. Users with fewer than three positives only train.

    Attributes:
      clock: On which their first and last days are.
    """

    clock: clocks.Clock = clocks.UTC

    last_day: ClassVar[int] = int(np.iinfo(np.int64).max)

    def order(self, positives: histories.Positives) -> histories.Positives:
        """Every positive's number among its user's, from 1, in place of its day."""
        first_E = np.searchsorted(positives.user_E, positives.user_E)
        return positives._replace(day_E=np.arange(len(first_E)) - first_E + 1)

    def members(self, positives: histories.Positives, split: str) -> np.ndarray:
        """As `ByDay.members`."""
        user_E, number_E = positives.user_E, positives.day_E
        first_E = np.searchsorted(user_E, user_E)
        count_E = np.searchsorted(user_E, user_E, side="right") - first_E
        # 0 for the last positive, 1 for the one before it.
        from_end_E = np.where(count_E >= _FEWEST, count_E - number_E, _FEWEST)
        if split == "train":
            return np.asarray(from_end_E >= 2)
        return np.asarray(from_end_E == ("test", "validation").index(split))

    def before(self, positives: histories.Positives, split: str) -> np.ndarray:
        """As `ByDay.before`."""
        known = self.members(positives, "train")
        return known if split == "validation" else known | self.members(positives, "validation")

    def train_rows(self, positives: histories.Positives) -> histories.Rows:
        """One row per training positive; its past is all of its user's that come before it."""
        return self._rows(positives, self.members(positives, "train"))

    def query_rows(
        self, positives: histories.Positives, query: histories.QuerySet, split: str
    ) -> histories.Rows:
        """As `ByDay.query_rows`."""
        held = np.flatnonzero(self.members(positives, split))
        rows = self._rows(positives, held[np.searchsorted(positives.user_E[held], query.user_Q)])
        return rows._replace(item_X=np.zeros_like(rows.item_X))

    def _rows(self, positives: histories.Positives, chosen: np.ndarray) -> histories.Rows:
        user, scenario, item, time, number = _take(positives, chosen)
        before = np.full(len(user), histories.END_OF_DAY, np.int64)
        return histories.Rows(user, scenario, item, time_X=time, before_X=before, day_X=number - 1)


# A rule that splits positives.
Split = ByDay | LeaveOneOut


def split_queries(
    positives: histories.Positives,
    rule: Split,
    split: str,
    num_items: int,
    *,
    repeats: bool = False,
) -> histories.QuerySet:
    """The queries of `split`; see `histories.make_queries`."""
    return histories.make_queries(
        positives.user_E,
        positives.scenario_E,
        positives.item_E,
        in_split_E=rule.members(positives, split),
        before_E=rule.before(positives, split),
        in_train_E=rule.members(positives, "train"),
        num_items=num_items,
        repeats=repeats,
    )


def count(
    positives: histories.Positives,
    rule: Split,
    queries: dict[str, histories.QuerySet],
    scenarios: tuple[str, ...],
) -> dict[str, dict[str, int]]:
    """Training positives, queries and held-out positives by scenario.

    Held-out positives are those of the log; a query's relevant items may be fewer.
    """
    columns = {"train": positives.scenario_E[rule.members(positives, "train")]}
    for split, query in queries.items():
        columns[f"{split}_queries"] = query.scenario_Q
        columns[f"{split}_positives"] = positives.scenario_E[rule.members(positives, split)]
    S = len(scenarios)
    return {
        name: dict(zip(scenarios, np.bincount(scenario_X, minlength=S).tolist(), strict=True))
        for name, scenario_X in columns.items()
    }


def join_counts(parts: Sequence[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """What `count` gives of a log, from what it gives of its parts."""
    return {
        name: {scenario: sum(part[name][scenario] for part in parts) for scenario in by_scenario}
        for name, by_scenario in parts[0].items()
    }


def check(counts: dict[str, dict[str, int]], rule: Split, hint: str = "") -> None:
    """Refuses a split without positives, and a scenario without training positives or a query.

    Messages end with `hint`.

    Raises:
      ValueError: Naming the split or the scenario.
    """
    if not any(sum(by_scenario.values()) for by_scenario in counts.values()):
        raise ValueError("positives: expected at least one in the kept scenarios, got none")
    for split in ("train", *store_lib.SPLITS):
        if not sum(counts["train" if split == "train" else f"{split}_positives"].values()):
            raise ValueError(
                f"split {split!r}{_span(rule, split)}: expected at least one positive, got none"
                f"{_have_rows(rule, split)}; "
                + _mend(rule, "add log files or change data.validation_days, data.test_days")
                + hint
            )
    named = counts["train"]
    if empty := [name for name, number in named.items() if not number]:
        raise ValueError(
            f"{_scenarios(empty)}: expected at least one training positive"
            f"{_span(rule, 'train')}, got none; add log files or leave {_them(empty)} out{hint}"
        )
    for split in store_lib.SPLITS:
        queries = counts[f"{split}_queries"]
        if empty := [name for name, number in queries.items() if not number]:
            mend = _mend(rule, f"hold out more days (data.{split}_days)")
            only = [name for name in empty if counts[f"{split}_positives"][name]]
            if only == empty:
                mend = (
                    "what a user had clicked before is no target, and all positives of those days "
                    "are such repeats; set data.repeats=True and eval.remove_seen='none', which "
                    f"make them targets, or {mend}"
                )
            raise ValueError(
                f"{_scenarios(empty)}: expected at least one {split} query (a user with a "
                f"positive not clicked before), got none; {mend} or leave {_them(empty)} out{hint}"
            )


class Span(NamedTuple):
    """Positives of a split: how many, and their first and last second; none without positives."""

    number: int
    first_s: int
    last_s: int


def spans(positives: histories.Positives, rule: Split) -> dict[str, Span]:
    """Of each split."""
    found = {}
    for split in ("train", *store_lib.SPLITS):
        time_E = positives.time_E[rule.members(positives, split)]
        first, last = time_E.min(initial=histories.END_OF_DAY), time_E.max(initial=0)
        found[split] = Span(len(time_E), int(first), int(last))
    return found


def join_spans(parts: Sequence[Mapping[str, Span]]) -> dict[str, Span]:
    """Of each split, over all parts of a log."""
    found = {}
    for split in parts[0]:
        number, first, last = zip(*(part[split] for part in parts), strict=True)
        found[split] = Span(sum(number), min(first), max(last))
    return found


def describe(found: Mapping[str, Span], rule: Split) -> dict[str, dict[str, Any]]:
    """Days (ISO dates) and number of positives of each split.

    By day they are all calendar days, and beside them the number of those with rows where some have
    none; else the first and the last. The clock's zone is beside them where it has a name.
    """
    described = {}
    for split, span in found.items():
        if isinstance(rule, ByDay):
            days = getattr(rule, split)
        else:
            days = rule.clock.days(np.array([span.first_s, span.last_s])).tolist()
        described[split] = {"days": [_iso(day) for day in days], "examples": span.number}
        if isinstance(rule, ByDay):
            with_rows = sum(day in rule.with_rows for day in days)
            if with_rows < len(days):
                described[split]["days_with_rows"] = with_rows
        if rule.clock.zone:
            described[split]["time_zone"] = rule.clock.zone
    return described


def name_days(described: dict[str, dict[str, Any]], rule: Split) -> str:
    """What `describe` found, as one line."""
    parts = []
    for split, entry in described.items():
        days, have = entry["days"], ""
        if isinstance(rule, ByDay):
            number = entry.get("days_with_rows", len(days))
            have = f" ({len(days):,} days, {number:,} with rows)"
        parts.append(f"{split} {days[0]} to {days[-1]}{have}")
    rule_name = "" if isinstance(rule, ByDay) else "leave one out, "
    return f"{rule_name}days of {rule.clock}: {', '.join(parts)}"


def _scenarios(names: list[str]) -> str:
    """Their names, as messages begin."""
    return f"scenario{'s' * (len(names) > 1)} {terminal.some([repr(name) for name in names])}"


def _them(names: list[str]) -> str:
    return "them" if len(names) > 1 else "the scenario"


def _take(positives: histories.Positives, chosen: np.ndarray) -> histories.Positives:
    return histories.Positives(*(values[chosen] for values in positives))


def _mend(rule: Split, by_day: str) -> str:
    return by_day if isinstance(rule, ByDay) else f"add users with at least {_FEWEST} positives"


def _span(rule: Split, split: str) -> str:
    if not isinstance(rule, ByDay):
        return ""
    days = getattr(rule, split)
    return f" ({_iso(days[0])} to {_iso(days[-1])})"


def _have_rows(rule: Split, split: str) -> str:
    if not isinstance(rule, ByDay):
        return ""
    days = getattr(rule, split)
    number = sum(day in rule.with_rows for day in days)
    return (
        f", in {len(days)} calendar days, {number} of them with rows" if len(days) > number else ""
    )


def _iso(day: int) -> str:
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()
