"""Rows of an own log: which are positives, of which scenario, when; checks of those that count.

Owns the way from blocks of a log to positives and exposures. Rows that become neither are not
checked. Does not own files (`own_files.py`) nor how a time is written (`times.py`).
"""

import collections
import dataclasses
import datetime
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import polars as pl

from dsmoe_jax import runlog, terminal
from dsmoe_jax.data.prepare import columns, expressions, own_config, own_files, read, times

# The one scenario of a log without, and that of rare ones.
EVERYWHERE, OTHER = "everywhere", "other"
# Values of a column that a message shows, and characters of each.
_SHOWN_VALUES, _SHOWN = 5, 40
# Columns that are added, of names that no column of a log has.
_SCENARIO, _TIME, _DAY, _POSITIVE, _NEEDED = (
    columns.OWN + name for name in ("scenario", "time_s", "day", "positive", "needed")
)

# Its positives would have day 0, which is before the log.
_FIRST_DAY = datetime.date(1970, 1, 1)


class Place(NamedTuple):
    """A cell of a file."""

    path: pathlib.Path
    row: int
    column: str


@dataclasses.dataclass
class Tally:
    """What is known of rows beside those that count.

    Attributes:
      num_rows: All of them.
      num_positives: Those that count.
      days: The days of all rows that have a time.
      needed: The days of positives, and where the first row of each was found.
      counts: Positives by what was unknown or missing about them.
      labels, scenarios: Some values of their columns.
      twice: Positives at a time that the clock shows twice.
    """

    num_rows: int = 0
    num_positives: int = 0
    days: set[datetime.date] = dataclasses.field(default_factory=set)
    needed: dict[datetime.date, Place] = dataclasses.field(default_factory=dict)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    scenarios: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    twice: int = 0

    def add(self, later: "Tally") -> None:
        """Adds what is known of files that come later."""
        self.num_rows += later.num_rows
        self.num_positives += later.num_positives
        self.days |= later.days
        self.needed = {**later.needed, **self.needed}
        self.counts.update(later.counts)
        self.labels.update(later.labels)
        self.scenarios.update(later.scenarios)
        self.twice += later.twice

    def finish(self, section: own_config.LogConfig, num_files: int) -> None:
        """Says how many positives were of unknown users or items, once there is no more.

        Raises:
          ValueError: When there is no row or no positive, with values that the columns have.
        """
        if not self.num_rows:
            raise ValueError(
                f"data.log_files: expected at least one row in the {num_files} files, found none"
            )
        for what, number in self.counts.items():
            if number:
                runlog.say(f"log: {number:,} positives {what}")
        if self.twice:
            runlog.say(times.say_twice(self.twice, "positives", section.clock))
        if not self.num_positives:
            raise ValueError(f"positives: expected at least one {self._why_none(section)}")

    def _why_none(self, section: own_config.LogConfig) -> str:
        parts, condition = [], expressions.parse_condition(section.positive)
        if condition is not None:
            parts.append(
                f"with data.positive={section.positive!r}, where column "
                f"{condition.column!r} holds {_list(self.labels)}"
            )
        if section.scenarios:
            parts.append(
                f"in data.scenarios={tuple(section.scenarios)!r}, where column "
                f"{section.scenario!r} holds {_list(self.scenarios)}"
            )
        return f"{' and '.join(parts) or 'that is in a scenario'}, got none"


class Block(NamedTuple):
    """Rows of a file that count.

    Attributes:
      positives, exposures: Columns user, item and scenario (texts), time_s and day; the scenario of
        an exposure may be null. Exposures are empty unless they are asked for.
    """

    positives: pl.DataFrame
    exposures: pl.DataFrame


class Rows(NamedTuple):
    """A log's rows that count, as in `Block`, and what is known of all."""

    positives: pl.DataFrame
    exposures: pl.DataFrame
    tally: Tally


def read_logs(
    section: own_config.LogConfig,
    logs: list[own_files.Log],
    paths: Mapping[str, pathlib.Path],
    tables: Mapping[str, pl.DataFrame],
) -> Rows:
    """Reads the log's files.

    Raises:
      ValueError: In one line, on the first row of a positive that is not valid, or when there is no
        positive.
    """
    tally = Tally()
    blocks = [
        block
        for log in logs
        for block in iterate(section, log, paths, tables, tally, may_be_empty=len(logs) > 1)
    ]
    tally.finish(section, len(logs))
    return Rows(
        pl.concat([block.positives for block in blocks]),
        pl.concat([block.exposures for block in blocks]),
        tally,
    )


def iterate(
    section: own_config.LogConfig,
    log: own_files.Log,
    paths: Mapping[str, pathlib.Path],
    tables: Mapping[str, pl.DataFrame],
    tally: Tally,
    *,
    may_be_empty: bool,
) -> Iterator[Block]:
    """Reads one file in blocks, and adds to the tally.

    Args:
      section: The configuration.
      log: The file.
      paths: The users' and the items' tables, by "user" and "item".
      tables: Their ids, and the users' scenarios where they have them.
      tally: Of this file and those before it.
      may_be_empty: Whether there are other files.

    Raises:
      ValueError: In one line, on the first row of a positive that is not valid.
    """
    reader = _Reader(section, paths, tables, tally)
    blocks = read.iterate(
        log.path,
        reader.columns,
        form=section.form("log"),
        constants=log.constants,
        may_be_empty=may_be_empty,
    )
    for frame in blocks:
        yield reader.add(log.path, frame)


class _Reader:
    """Tells positives and exposures block by block."""

    def __init__(
        self,
        section: own_config.LogConfig,
        paths: Mapping[str, pathlib.Path],
        tables: Mapping[str, pl.DataFrame],
        tally: Tally,
    ):
        self._section, self._paths, self._tables = section, paths, tables
        self._condition = expressions.parse_condition(section.positive)
        self._tally = tally

    @property
    def columns(self) -> list[columns.Column]:
        """The columns to read; any cell may be empty, until it is known whether its row counts."""
        section = self._section
        wanted = {n: columns.Column(n, "str", True) for n in (section.user_id, section.item_id)}
        kind: columns.Kind = "clock" if section.time_unit == "iso" else "time"
        wanted[section.time] = columns.Column(section.time, kind, True)
        if section.scenario and not section.scenario_in_users:
            wanted[section.scenario] = columns.Column(section.scenario, "str", True)
        if self._condition is not None:
            label = self._condition.column
            wanted[label] = columns.Column(label, "label", True)
        return list(wanted.values())

    def add(self, path: pathlib.Path, frame: pl.DataFrame) -> Block:
        """The rows that count of a block of a file.

        Raises:
          ValueError: On the first row of a positive that is not valid.
        """
        section, tally = self._section, self._tally
        tally.num_rows += frame.height
        time_s = times.to_seconds(frame[section.time], section.time_unit, section.clock)
        date = section.clock.shown(pl.col(_TIME)).dt.date()
        frame = frame.with_columns(time_s.alias(_TIME)).with_columns(date.alias(_DAY))
        tally.days.update(frame[_DAY].drop_nulls().unique().to_list())
        frame = self._with_scenario(frame)
        frame = self._with_labels(path, frame)
        chosen = pl.col(_POSITIVE) & pl.col(_NEEDED)
        positives = self._check(path, frame.filter(chosen))
        for day, row in _first_rows(positives).items():
            tally.needed.setdefault(day, Place(path, row, section.time))
        tally.num_positives += positives.height
        of_cells = (positives[section.time], positives[_TIME], section.time_unit)
        tally.twice += times.count_twice(*of_cells, section.clock)
        exposures = frame.clear()
        if section.exposures:
            whole = [pl.col(n).is_not_null() for n in (section.user_id, section.item_id, _TIME)]
            exposures = frame.filter(~pl.col(_POSITIVE), *whole)
        return Block(self._select(positives), self._select(exposures))

    def _with_scenario(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds each row's scenario, and whether it is one that is kept, or not known yet."""
        section = self._section
        if not section.scenario:
            return frame.with_columns(
                pl.lit(EVERYWHERE).alias(_SCENARIO), pl.lit(True).alias(_NEEDED)
            )
        scenario, unknown = pl.col(section.scenario).alias(_SCENARIO), pl.lit(False)
        if section.scenario_in_users:
            users, key = self._tables["user"], section.key_of("user")
            of_user = users.select(pl.col(key).alias(section.user_id), scenario)
            frame = frame.join(of_user, on=section.user_id, how="left", maintain_order="left")
            known = pl.col(section.user_id).is_in(users[key].implode()).fill_null(False)
            scenario, unknown = pl.col(_SCENARIO), ~known
        frame = frame.with_columns(scenario)
        self._tally.scenarios.update(frame[_SCENARIO].drop_nulls().unique().head(50).to_list())
        kept = pl.col(_SCENARIO).is_not_null()
        if section.scenarios:
            kept = pl.col(_SCENARIO).is_in(list(section.scenarios)).fill_null(False)
        return frame.with_columns((kept | unknown).alias(_NEEDED))

    def _with_labels(self, path: pathlib.Path, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds whether each row is a positive."""
        if self._condition is None:
            return frame.with_columns(pl.lit(True).alias(_POSITIVE))
        cells = frame[self._condition.column]
        bad = self._condition.is_bad(cells) & frame[_NEEDED]
        if bad.any():
            columns.check(
                path, frame, bad, cells.name, "a finite number or nothing", columns.UNKNOWN
            )
        if len(self._tally.labels) < _SHOWN_VALUES:
            self._tally.labels.update(
                cells.drop_nulls().unique().head(50).cast(pl.String).to_list()
            )
        return frame.with_columns(self._condition.holds(cells).alias(_POSITIVE))

    def _check(self, path: pathlib.Path, rows: pl.DataFrame) -> pl.DataFrame:
        """The positives that count."""
        section = self._section
        for side in own_config.SIDES:
            name, policy = getattr(section, f"{side}_id"), getattr(section, f"unknown_{side}s")
            missing = pl.col(name).is_null()
            if policy == "drop":
                rows = self._drop(rows, missing, f"that have no {side}")
            todo = f"correct or remove the row, or set data.unknown_{side}s='drop'"
            columns.check(path, rows, missing, name, "text", todo)
            if side not in self._tables:
                continue
            known, source = self._tables[side][section.key_of(side)], self._paths[side].name
            unknown = ~pl.col(name).is_in(known.implode())
            if policy == "drop":
                rows = self._drop(rows, unknown, f"whose {side} is not in {source}")
            elif policy == "keep":
                self._count(
                    rows, unknown, f"whose {side} is not in {source}, kept without features"
                )
            else:
                todo = f"add it to {source}, or set data.unknown_{side}s to 'drop' or 'keep'"
                columns.check(path, rows, unknown, name, f"an id that is in {source}", todo)
        late = rows[_TIME].is_null()
        if late.any():
            cell = rows.filter(late).sort(columns.ROW)[section.time][0]
            todo = times.mend(cell, section.time_unit, section.clock, columns.CORRECT)
            if section.log_columns and rows.filter(late)[columns.ROW].min() == 1:
                todo += "; if row 1 is a header, leave data.log_columns empty"
            columns.check(path, rows, late, section.time, times.expected(section.time_unit), todo)
        early = rows[_DAY] <= _FIRST_DAY
        if early.any():
            todo = (
                "if the times count from another moment than 1970, add that moment to them; "
                "another unit is set by data.time_unit"
            )
            columns.check(path, rows, early, section.time, "a time after 1970-01-01", todo)
        # A user that is kept without features has no scenario of the users' table.
        return rows.drop_nulls(_SCENARIO) if section.scenario_in_users else rows

    def _drop(self, rows: pl.DataFrame, which: pl.Expr, what: str) -> pl.DataFrame:
        self._count(rows, which, f"{what}, dropped")
        return rows.filter(~which)

    def _count(self, rows: pl.DataFrame, which: pl.Expr, what: str) -> None:
        self._tally.counts[what] += rows.select(which.sum()).item()

    def _select(self, rows: pl.DataFrame) -> pl.DataFrame:
        section = self._section
        return rows.select(
            user=section.user_id, item=section.item_id, scenario=_SCENARIO, time_s=_TIME, day=_DAY
        )


def _first_rows(rows: pl.DataFrame) -> dict[datetime.date, int]:
    return dict(rows.group_by(_DAY).agg(pl.col(columns.ROW).min()).iter_rows())


def _list(values: Iterable[str]) -> str:
    """A few values as a message shows them."""
    ordered = sorted(values)
    shown = [repr(terminal.shorten(value, _SHOWN)) for value in ordered[:_SHOWN_VALUES]]
    more = ", ..." if len(ordered) > _SHOWN_VALUES else ""
    return f"{', '.join(shown) or 'nothing'}{more}"


def choose_scenarios(
    section: own_config.LogConfig, counts: Mapping[str, int], source: str
) -> tuple[dict[str, int], list[str]]:
    """The scenario id of each text that positives have and that is kept, and the ids' names.

    Args:
      section: The configuration.
      counts: Positives by the text of their scenario.
      source: The file that has the texts.

    Raises:
      ValueError: When none has enough positives, or one has the name of the mean.
    """
    values = list(section.scenarios) or by_count(counts)
    if own_config.MEAN in values:
        raise ValueError(
            f"{source}: column {section.scenario!r}: expected no scenario {own_config.MEAN!r}, "
            "which results call the mean over scenarios; rename it in the log, or leave it out of "
            "data.scenarios"
        )
    rare = [name for name in values if counts.get(name, 0) < section.least_positives]
    values = [name for name in values if name not in rare]
    shown = terminal.some(
        [f"{terminal.shorten(name, _SHOWN)} {counts.get(name, 0):,}" for name in rare]
    )
    merged: list[str] = []
    if rare and section.rare_scenarios == "merge":
        if OTHER in values:
            raise ValueError(
                f"data.rare_scenarios: expected no scenario of the name {OTHER!r} to merge into, "
                "got one in the log; rename it or set 'leave_out'"
            )
        merged, values = rare, [*values, OTHER]
        runlog.say(f"scenarios merged into {OTHER!r}, with too few positives: {shown}")
    elif rare:
        runlog.say(f"scenarios left out, with too few positives: {shown}")
    if not values:
        raise ValueError(
            "data.least_positives: expected a scenario with "
            f"{section.least_positives:,} positives, got {shown}"
        )
    ids = {name: i for i, name in enumerate(values)}
    return {**dict.fromkeys(merged, len(values) - 1), **ids}, values


def by_count(counts: Mapping[str, int]) -> list[str]:
    """The names, most frequent first; ties in alphabetical order."""
    return sorted(counts, key=lambda name: (-counts[name], name))
