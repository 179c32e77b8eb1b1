"""Own logs as data frames: roles of columns, time and split inferred, files for `custom.py`.

Owns these rules. Text and truth values are categories, numbers and dates are dense, lists are bags.
A time is a date, ISO 8601 text, or seconds to nanoseconds since 1970 by its magnitude. The last
days test and as many before them validate: a tenth of all, 1 to 7, and more where a scenario would
have no query. Does not own the reading of frames (`frames.py`).
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax import runlog, terminal
from dsmoe_jax.config import load
from dsmoe_jax.data.prepare import clocks, custom, expressions, frames, own_days, own_rows, times
from dsmoe_jax.data.prepare import columns as columns_lib

_LOG = "log.parquet"
# Of requests to what serves the model; a character that texts rarely hold.
_SEPARATOR = "\x1f"
# Whole numbers up to which each real one stands for one alone.
_MOST_WHOLE = 2**53
# The least number of each unit of a time that is taken for it: 1973 in milliseconds.
_LEAST = {"ns": 10**17, "us": 10**14, "ms": 10**11, "s": 0}
_SPLIT_SHARE, _MOST_DAYS = 10, 7


@dataclasses.dataclass(frozen=True)
class Roles:
    """Which column of a log is what.

    Attributes:
      user: The user's id, in the table of users too.
      item: The item's id, in the table of items too.
      time: When the event happened.
      scenario: Of the log or the table of users; None where there is one scenario.
      positive: `rating >= 4`, `event == click` or the name of a column of truth values; None where
        every event is a positive.
    """

    user: str
    item: str
    time: str
    scenario: str | None
    positive: str | None

    @classmethod
    def of(cls, section: custom.CustomConfig) -> "Roles":
        """The roles that a configuration names."""
        is_one = section.scenario in ("", own_rows.EVERYWHERE)
        scenario = None if is_one else section.scenario
        return cls(
            section.user_id, section.item_id, section.time, scenario, section.positive or None
        )


@dataclasses.dataclass(frozen=True)
class Found:
    """What was inferred.

    Attributes:
      data: The configuration of the written files.
      num_positives: Positives of the log.
      num_items: Items that compete.
      notes: What was chosen, as lines.
    """

    data: custom.CustomConfig
    num_positives: int
    num_items: int
    notes: tuple[str, ...]


@terminal.errors_in_one_line()
def infer(
    folder: pathlib.Path,
    log: frames.Frame,
    users: frames.Frame | None,
    items: frames.Frame | None,
    roles: Roles,
    base: custom.CustomConfig,
) -> Found:
    """Writes the frames as files of a folder and says which column is what.

    Days, and times without a zone, are on the clock of `base`; with its `repeats` the days held out
    need no positive that is new to its user. What it has beside is kept.

    Raises:
      ValueError: In one line, when a column is missing or its type has no role.
    """
    base.validate()
    folder.mkdir(parents=True, exist_ok=True)
    section = dataclasses.replace(
        base,
        name="own log",
        raw_dir=str(folder),
        log_files=(_LOG,),
        bag_separator=_SEPARATOR,
    )
    tables = {}
    for side, frame, key in (("user", users, roles.user), ("item", items, roles.item)):
        if frame is not None:
            table = frames.to_polars(frame, f"{side}s", {key, roles.scenario})
            for name in table.columns:
                columns_lib.check_name(f"{side}s", name)
            _check_columns(table, (key,), f"{side}s")
            left_out = {key, roles.scenario if side == "user" else None}
            tables[side] = table = _write_table(table, key, left_out, section, side)
            table.write_parquet(folder / f"{side}s.parquet")
            setattr(section, f"{side}s_file", f"{side}s.parquet")
    events = frames.to_polars(log, "log", _texts(roles))
    section.scenario_in_users = (
        roles.scenario not in (None, *events.columns)
        and "user" in tables
        and roles.scenario in tables["user"].columns
    )
    events, section = _normalise(events, roles, section)
    events = own_days.without_far_times(events, _is_needed(events, section), section)
    events.write_parquet(folder / _LOG)
    positives = _positives(events, section, tables.get("user"))
    notes = _choose_split(positives, events, section)
    for side in ("user", "item"):
        kinds = {"categories": "sparse", "numbers": "dense", "lists": "bags"}
        named = {word: getattr(section, f"{side}_{kind}") for word, kind in kinds.items()}
        notes += [f"{side}s: {w} {', '.join(names)}" for w, names in named.items() if names]
    num_items = tables["item"].height if "item" in tables else positives["item"].n_unique()
    return Found(section, positives.height, num_items, tuple(notes))


@terminal.errors_in_one_line()
def read_positives(log: frames.Frame, section: custom.CustomConfig) -> dict[str, np.ndarray]:
    """The positives of another log in the columns that a configuration names.

    Returns:
      `user`, `item` and `scenario` as text, and `time_s`.

    Raises:
      ValueError: In one line, when a column is missing or a time is none.
    """
    events, section = _normalise(log, Roles.of(section), section)
    users = None
    if section.scenario_in_users:
        path = pathlib.Path(section.raw_dir, section.users_file)
        users = frames.to_polars(path, "users", set()).with_columns(
            pl.col(section.user_id).cast(pl.String)
        )
    positives = _positives(events, section, users)
    return {name: positives[name].to_numpy() for name in ("user", "item", "scenario", "time_s")}


def _normalise(
    log: frames.Frame, roles: Roles, section: custom.CustomConfig
) -> tuple[pl.DataFrame, custom.CustomConfig]:
    """The log with ids as text and times in seconds, and the configuration that reads it."""
    events = frames.to_polars(log, "log", _texts(roles))
    positive, truth = roles.positive or "", []
    if positive in events.columns:
        truth, positive = [pl.col(positive).cast(pl.Float64, strict=False)], f"{positive} == 1"
    condition = expressions.parse_condition(positive)
    scenario = roles.scenario or own_rows.EVERYWHERE
    in_log = [] if section.scenario_in_users else [scenario]
    ids = list(dict.fromkeys((roles.user, roles.item, *in_log)))
    others = [roles.time, *([condition.column] if condition else [])]
    _check_roles([roles.user, roles.item, *in_log], others)
    if roles.scenario is None:
        events = events.with_columns(pl.lit(scenario).alias(scenario))
    wanted = list(dict.fromkeys((roles.user, roles.item, roles.time, *in_log, *others)))
    _check_columns(events, wanted, "log")
    for name in wanted:
        columns_lib.check_name("log", name)
    if not events.height:
        raise ValueError("log: expected at least one row, got none")
    texts = [_as_id(events, name, "log") for name in ids]
    events = events.select(wanted).with_columns(*texts, *truth)
    section = dataclasses.replace(
        section,
        user_id=roles.user,
        item_id=roles.item,
        time=roles.time,
        time_unit="s",
        scenario=scenario,
        positive=positive,
    )
    needed = _is_needed(events, section)
    return events.with_columns(_seconds(events[roles.time], section.clock, needed)), section


def _is_needed(events: pl.DataFrame, section: custom.CustomConfig) -> pl.Series:
    """Of each row, whether it is a positive of a scenario, so that its time has to be one."""
    condition = expressions.parse_condition(section.positive)
    needed = pl.Series([True]).new_from_index(0, events.height)
    if condition:
        needed = condition.holds(events[condition.column])
    return needed if section.scenario_in_users else needed & events[section.scenario].is_not_null()


def _check_roles(ids: list[str], others: list[str]) -> None:
    """Refuses a column that is an id or scenario and something else, or the scenario of none."""
    for name in others:
        if name in ids or others.count(name) > 1:
            raise ValueError(f"log: expected column {name!r} in one role, got it in two")
    if own_rows.EVERYWHERE in ids[:2]:
        name = own_rows.EVERYWHERE
        raise ValueError(f"log: expected another name than {name!r} for a column of ids; rename it")


def _texts(roles: Roles) -> set[str | None]:
    """The columns of a log whose cells count as they are written: 007 is not 7."""
    condition = expressions.parse_condition(roles.positive or "") if _is_condition(roles) else None
    return {roles.user, roles.item, roles.scenario, condition.column if condition else None}


def _is_condition(roles: Roles) -> bool:
    return any(symbol in (roles.positive or "") for symbol in "=<>")


def _check_columns(frame: pl.DataFrame, wanted: Any, name: str) -> None:
    for column in wanted:
        if column not in frame.columns:
            raise ValueError(
                f"{name}: expected a column {column!r}, got {', '.join(frame.columns)}"
                f"{load.nearest(column, frame.columns)}; name it, e.g. user=..., time=..."
            )


def _as_id(frame: pl.DataFrame, column: str, name: str) -> pl.Expr:
    """Text; whole numbers that missing cells made real ones are written as they were.

    Raises:
      ValueError: On fractions, real numbers beyond 2**53, which stand for several whole ones, and
        types without one text for each value.
    """
    value, cells = pl.col(column), frame[column]
    if cells.dtype.is_float():
        known = cells.fill_nan(None)
        wrong = ((known != known.floor()) | (known.abs() > _MOST_WHOLE)).arg_true()
        if len(wrong):
            raise ValueError(
                f"{name}: row {wrong[0] + 1}, column {column!r}: expected a whole number up to "
                f"2**53 or text as an id, got {cells[wrong[0]]!r}; write integers or texts"
            )
        value = value.cast(pl.Int64, strict=False)
    elif not columns_lib.fits(cells.dtype, columns_lib.Column(column, "str")):
        raise ValueError(
            f"{name}: column {column!r}: expected whole numbers or text as ids, got {cells.dtype}; "
            "write integers or texts"
        )
    return value.cast(pl.String)


def _seconds(cells: pl.Series, clock: clocks.Clock, needed: pl.Series) -> pl.Series:
    """Unix seconds of a column of the log; text without a zone is on the clock.

    Rows that are not needed may have none.
    """
    unit = "iso"
    if cells.dtype.is_numeric():
        # One wrong time does not decide the unit of all others.
        usual = cells.cast(pl.Float64).fill_nan(None).median()
        usual = usual if isinstance(usual, float) else 0.0
        unit = next(name for name, least in _LEAST.items() if usual >= least)
    fits = cells.dtype.is_numeric() or cells.dtype in (pl.String, pl.Date, pl.Datetime)
    bad = 0
    if fits:
        seconds = times.to_seconds(cells, unit, clock)
        wrong = (seconds.is_null() & needed).arg_true()
        if not len(wrong):
            if twice := times.count_twice(cells, seconds, unit, clock):
                runlog.say(times.say_twice(twice, "rows", clock))
            return seconds.alias(cells.name)
        bad = int(wrong[0])
    todo = times.mend(cells[bad], unit, clock, "")
    raise ValueError(
        f"log: row {bad + 1}, column {cells.name!r}: expected a date, text like "
        f"2024-05-01T12:30:00 or a number since 1970, got {cells[bad]!r}"
        + (f"; {todo}" if todo else "")
    )


def _write_table(
    table: pl.DataFrame,
    key: str,
    left_out: set[str | None],
    section: custom.CustomConfig,
    side: str,
) -> pl.DataFrame:
    """The table as `custom` reads it; its roles are set in the section."""
    found: dict[str, list[str]] = {"sparse": [], "dense": [], "bags": []}
    columns = [_as_id(table, name, f"{side}s") for name in table.columns if name in left_out]
    for name, dtype in table.schema.items():
        value = pl.col(name)
        if name in left_out:
            continue
        if isinstance(dtype, pl.List | pl.Array) and not dtype.inner.is_nested():
            lists = value.arr.to_list() if isinstance(dtype, pl.Array) else value
            role, value = "bags", lists.cast(pl.List(pl.String))
        elif dtype.is_numeric():
            role, value = "dense", value.cast(pl.Float64).fill_nan(None)
        elif dtype in (pl.Date, pl.Datetime):
            role, value = "dense", value.cast(pl.Datetime("us")).dt.epoch("s").cast(pl.Float64)
        elif dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean):
            role, value = "sparse", value.cast(pl.String)
        else:
            raise ValueError(
                f"{side}s: column {name!r}: expected text, numbers, dates or lists, got {dtype}; "
                "leave it out"
            )
        found[role].append(name)
        columns.append(value)
    for role, names in found.items():
        setattr(section, f"{side}_{role}", tuple(names))
    return table.select(columns)


def _positives(
    events: pl.DataFrame, section: custom.CustomConfig, users: pl.DataFrame | None
) -> pl.DataFrame:
    """Columns user, item, scenario, time_s and day of the positives."""
    condition = expressions.parse_condition(section.positive)
    if condition:
        events = events.filter(condition.holds(events[condition.column]))
    if section.scenario_in_users and users is not None:
        events = events.join(users.select(section.user_id, section.scenario), on=section.user_id)
    return events.select(
        user=section.user_id,
        item=section.item_id,
        scenario=section.scenario,
        time_s=section.time,
        day=_day(section),
    ).drop_nulls("scenario")


def _day(section: custom.CustomConfig) -> pl.Expr:
    """Calendar days of unix seconds, since 1970-01-01."""
    return section.clock.shown(pl.col(section.time)).dt.date().to_physical().cast(pl.Int64)


def _choose_split(
    positives: pl.DataFrame, events: pl.DataFrame, section: custom.CustomConfig
) -> list[str]:
    """Sets the days that validate and test, and the scenarios; returns what to say of it.

    Raises:
      ValueError: When the log has fewer than three days.
    """
    day = events.select(_day(section)).to_series().drop_nulls()
    if not len(day):
        raise ValueError(f"log: expected a row with a time in column {section.time!r}, got none")
    first, last = int(str(day.min())), int(str(day.max()))
    if (number := last - first + 1) < 3:
        raise ValueError(
            f"log: expected at least 3 days, one each to train, validate and test, got {number}"
        )
    first_day = pl.col("day")
    if not section.repeats:
        first_day = first_day.min().over("user", "item")
    clicks = positives.with_columns(first_day.alias("first"))
    all_scenarios = positives["scenario"].unique()
    fewest = min(_MOST_DAYS, max(1, number // _SPLIT_SHARE))
    evaluable: dict[int, pl.Series] = {}
    for held_out in range(fewest, max(fewest, number // 3) + 1):
        test = last - held_out + 1
        evaluable[held_out] = _evaluable_scenarios(clicks, test - held_out, test)
        if len(evaluable[held_out]) == len(all_scenarios):
            break
    chosen = max(evaluable, key=lambda held_out: (len(evaluable[held_out]), -held_out))
    section.validation_days = section.test_days = chosen
    notes = [
        f"log: {events.height:,} rows, {positives.height:,} positives, {number:,} days, "
        f"{day.n_unique():,} with rows; the "
        f"last {chosen} test, the {chosen} before them validate"
    ]
    without = sorted(set(all_scenarios) - set(evaluable[chosen]))
    if without and len(evaluable[chosen]):
        kept = positives.filter(pl.col("scenario").is_in(evaluable[chosen].implode()))
        counts = dict(kept.group_by("scenario").len().iter_rows())
        section.scenarios = tuple(own_rows.by_count(counts))
        notes.append(f"scenarios left out, with too few positives: {terminal.some(without)}")
    return notes


def _evaluable_scenarios(clicks: pl.DataFrame, validation: int, test: int) -> pl.Series:
    """Scenarios that have training positives, and queries in both splits."""
    day, first = pl.col("day"), pl.col("first")
    return (
        clicks.group_by("scenario")
        .agg(
            has=(day < validation).any()
            & ((day >= validation) & (day < test) & (first >= validation)).any()
            & ((day >= test) & (first >= test)).any()
        )
        .filter("has")["scenario"]
    )
