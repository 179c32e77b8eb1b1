"""Parts of a log: the events of a range of users, which are written to the store one after another.

Owns what a part is and how parts follow each other in the store's arrays. A history, its windows
and its queries are of one user, so that a part needs nothing of another but how much came before.
Does not own how windows are found (`histories.py`) nor the tables' columns (`row_tables.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import polars as pl

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import entities, events, histories, row_tables, splits

_QUERY_TABLES = tuple(f"{split}_queries" for split in store_lib.SPLITS)


@runtime_checkable
class Part(Protocol):
    """The events of a range of users, all that each of them has."""

    def positives(self) -> histories.Positives:
        """As `histories.number_positives`.

        Raises:
          ValueError: On an event that no store can hold.
        """
        ...

    def exposures(self, positives: histories.Positives) -> histories.Positives:
        """As `histories.number_exposures`, without the part's positives.

        Raises:
          ValueError: On an event that no store can hold.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """All events of a log in memory, as one part.

    Attributes:
      positive_rows, exposure_rows: As `assemble.Dataset.positives` and `exposures`.
      users, items: The tables, encoded.
      num_scenarios: S.
      last_day: Days since 1970-01-01; what is later is left out.
    """

    positive_rows: pl.DataFrame
    exposure_rows: pl.DataFrame | None
    users: entities.EncodedTable
    items: entities.EncodedTable
    num_scenarios: int
    last_day: int

    def positives(self) -> histories.Positives:
        """See `Part`."""
        return histories.number_positives(
            self.positive_rows, self.users, self.items, self.num_scenarios, self.last_day
        )

    def exposures(self, positives: histories.Positives) -> histories.Positives:
        """See `Part`."""
        rows = self.exposure_rows
        rows = self.positive_rows.clear() if rows is None else rows
        tables = (self.users, self.items)
        return histories.number_exposures(
            rows, positives, *tables, self.num_scenarios, self.last_day
        )


class Writer:
    """Appends parts, in the order of their users, to a store's sequences, tables and queries.

    Events without time and the behaviour log are of all users at once: with them there may be one
    part alone.

    Attributes:
      num_exposures: Events written to the sequence `exposures`.
    """

    def __init__(
        self,
        writer: store_lib.StoreWriter,
        users: entities.EncodedTable,
        items: entities.EncodedTable,
        rule: splits.Split,
        num_scenarios: int,
        *,
        has_exposures: bool = False,
        behavior: events.BehaviorLog | None = None,
        pre_history: pl.DataFrame | None = None,
        pre_exposures: pl.DataFrame | None = None,
    ):
        self.num_exposures = 0
        self._writer, self._users, self._items = writer, users, items
        self._rule, self._num_scenarios = rule, num_scenarios
        self._has_exposures, self._behavior = has_exposures, behavior
        self._pre_history = pre_history
        if pre_exposures is not None:
            pre_exposures = histories.keep_known(pre_exposures, users, items)
        self._pre_exposures = pre_exposures
        names = ["history", "scenario_history", *([features.EXPOSURES] if has_exposures else [])]
        self._sequences = {name: _Sequence(writer, name) for name in names}
        order = [store_lib.Windows("history")]
        order.append(store_lib.Windows("scenario_history", num_scenarios))
        order += [store_lib.Windows(behavior.name)] if behavior else []
        order += [store_lib.Windows(features.EXPOSURES)] if has_exposures else []
        self._tables = row_tables.Tables(writer, ("train", *_QUERY_TABLES), order)
        self._queries = {split: _Queries(writer, split) for split in store_lib.SPLITS}
        self._daily = np.zeros((0, 5), np.int64)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the tables."""
        return self._tables.columns

    def add(
        self,
        part: Part,
        positives: histories.Positives,
        queries: Mapping[str, histories.QuerySet],
    ) -> None:
        """Appends a part, whose positives are in the rule's order.

        Raises:
          ValueError: On an exposure that no store can hold.
        """
        shown = self._add_exposures(part, positives) if self._has_exposures else None
        rows = {"train": self._rule.train_rows(positives)}
        for name, (split, query) in zip(_QUERY_TABLES, queries.items(), strict=True):
            rows[name] = self._rule.query_rows(positives, query, split)
        of_rows = list(rows.values())
        history = histories.make_history(positives, self._pre_history, self._users, self._items)
        first = self._sequences["history"].append(history)
        found = {store_lib.Windows("history"): _shift(history.find(of_rows), first)}
        by_scenario = histories.make_scenario_history(positives, self._num_scenarios)
        first_by_scenario = self._sequences["scenario_history"].append(by_scenario)
        if log := self._behavior:
            found[store_lib.Windows(log.name)] = events.write_behavior(
                self._writer, log, self._users, self._items, of_rows, self._rule.clock
            )
        if shown:
            first = self._sequences[features.EXPOSURES].append(shown)
            found[store_lib.Windows(features.EXPOSURES)] = _shift(shown.find(of_rows), first)
        self._tables.add(rows, found, by_scenario, first_by_scenario)
        for split, query in queries.items():
            self._queries[split].append(query)

    def finish(self) -> None:
        """Writes what is a sum over all parts."""
        if self._has_exposures:
            self._daily[:, 0] = self._rule.clock.day_starts(self._daily[:, 0])
            self._writer.array("daily", self._daily.astype(np.int32))

    def _add_exposures(self, part: Part, positives: histories.Positives) -> histories.ClickSequence:
        """The sequence; counts what days before the test days showed, by scenario and item."""
        shown = part.exposures(positives)
        sequence = histories.make_history(shown, self._pre_exposures, self._users, self._items)
        # Nobody else has a row, whose windows tell whose an event is.
        has_row_E = np.isin(sequence.key_E, positives.user_E)
        sequence = histories.ClickSequence(1, *(values_E[has_row_E] for values_E in sequence[1:]))
        known = (
            histories.Positives(*(values_E[self._rule.before(log, "test")] for values_E in log))
            for log in (positives, shown)
        )
        daily = histories.count_by_day(*known, num_scenarios=self._num_scenarios)
        self._daily = histories.sum_by_day(self._daily, daily)
        self.num_exposures += len(sequence.item_E)
        return sequence


class _Sequence:
    """A sequence's two arrays."""

    def __init__(self, writer: store_lib.StoreWriter, name: str):
        self._ids = writer.append_array(f"sequence_{name}", np.int32, 1)
        self._times = writer.append_array(f"sequence_{name}_time", np.int32)

    def append(self, sequence: histories.ClickSequence) -> int:
        """How many events came before."""
        before = self._ids.rows
        self._ids.append(sequence.item_E.astype(np.int32)[:, None])
        self._times.append(sequence.time_E.astype(np.int32))
        return before


class _Queries:
    """What queries of a split look for, and what they have seen."""

    def __init__(self, writer: store_lib.StoreWriter, split: str):
        self._ragged = []
        for name in ("relevant", "seen"):
            indptr = writer.append_array(f"{split}_{name}_indptr", np.int64)
            indptr.append(np.zeros(1, np.int64))
            self._ragged.append((indptr, writer.append_array(f"{split}_{name}", np.int32)))
        self._cold = writer.append_array(f"{split}_cold", np.bool_)

    def append(self, query: histories.QuerySet) -> None:
        for (indptr, items), rows in zip(self._ragged, (query.relevant, query.seen), strict=True):
            indptr.append(rows.indptr[1:] + items.rows)
            items.append(rows.items)
        self._cold.append(query.cold_Q)


def _shift(
    windows: Sequence[tuple[np.ndarray, np.ndarray]], first: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows into a part's events as windows into those of all parts."""
    return [(start_X + first, stop_X + first) for start_X, stop_X in windows]
