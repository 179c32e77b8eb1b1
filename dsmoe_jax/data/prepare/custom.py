"""Own logs: the mapping of their columns to user, item, time, scenario and features.

Owns the mapping from a CSV or Parquet log, with optional tables of users and items, to the features
of a store. Every id, scenario and categorical value is text here, so `42` in a CSV file and the
integer 42 in a Parquet file are the same user. `configs/custom.py` is an example to start from.
"""

import dataclasses
import datetime
import pathlib
from typing import NamedTuple

import polars as pl

from dsmoe_jax.config import schema
from dsmoe_jax.data.prepare import assemble, columns, entities, expressions, read

_MAX_TIME_S = 2**31 - 2
# Columns that are added; a log may have columns of the plain names.
_SCENARIO, _TIME, _DAY = "__scenario__", "__time_s__", "__day__"
_UNITS_PER_S = {"s": 1, "ms": 1000}
_EXPECTED_TIME = {
    "s": "unix seconds from 1 to 2147483646",
    "ms": "unix milliseconds from 1000 to 2147483646999",
    "iso": "a time like 2024-05-01T12:30:00, from 1970 to 2037",
}


@dataclasses.dataclass
class CustomConfig(schema.DataConfig):
    """A data set of your own; files are `.csv`, `.csv.gz` or `.parquet` in `raw_dir`.

    Attributes:
      name: What results are labelled with.
      log_files: Names or patterns (`log_*.csv.gz`) of the log files: one row per event.
      users_file: Table with one row per user; empty where users have no features.
      items_file: Table with one row per item, all of which are candidates; empty where items have
        no features, and the candidates are the items of the positives.
      user_id: Column of the log and of the user table.
      item_id: Column of the log and of the item table.
      time: Column of the log.
      time_unit: "s" or "ms" (since 1970, UTC), or "iso" (`2024-05-01T12:30:00+02:00`; without a
        zone the clock is the one of `utc_offset_hours`; a date alone is its midnight).
      utc_offset_hours: Of the clock whose midnight begins the days that are split.
      positive: Which rows are positives: a column, one of == != >= <= > < and a value, such as
        `rating >= 4` or `event == click`; empty means every row. An empty cell is no positive.
      scenario: Column of the log, or of the user table if `scenario_in_users`; rows where it is
        empty are left out.
      scenario_in_users: Whether the scenario belongs to the user instead of the event.
      scenarios: The values to keep, in the order of scenario ids; empty keeps all values, the one
        with most positives first.
      user_sparse, item_sparse: Categorical columns.
      user_dense, item_dense: Numeric columns, standardised.
      user_log_dense, item_log_dense: Numeric columns >= 0, standardised after log(1 + x).
      user_bags, item_bags: Columns of several values joined by `bag_separator`.
      bag_separator: For instance "," or "|".
    """

    name: str = "custom"
    log_files: tuple[str, ...] = ("log.csv",)
    users_file: str = ""
    items_file: str = ""
    user_id: str = "user_id"
    item_id: str = "item_id"
    time: str = "time"
    time_unit: str = "s"
    utc_offset_hours: float = 0.0
    positive: str = ""
    scenario: str = "scenario"
    scenario_in_users: bool = False
    scenarios: tuple[str, ...] = ()
    user_sparse: tuple[str, ...] = ()
    user_dense: tuple[str, ...] = ()
    user_log_dense: tuple[str, ...] = ()
    user_bags: tuple[str, ...] = ()
    item_sparse: tuple[str, ...] = ()
    item_dense: tuple[str, ...] = ()
    item_log_dense: tuple[str, ...] = ()
    item_bags: tuple[str, ...] = ()
    bag_separator: str = ","

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        self._validate()
        files = _find_files(self)
        assemble.prepare(self, store_dir, files.all(), lambda: self._load(files))

    def _validate(self) -> None:
        if self.time_unit not in _EXPECTED_TIME:
            raise ValueError(f"data.time_unit: expected 's', 'ms' or 'iso', got {self.time_unit!r}")
        if not -24 < self.utc_offset_hours < 24:
            raise ValueError(
                f"data.utc_offset_hours: expected between -24 and 24, got {self.utc_offset_hours}"
            )
        if len(set(self.scenarios)) != len(self.scenarios):
            raise ValueError(f"data.scenarios: expected distinct values, got {self.scenarios}")
        if not self.bag_separator:
            raise ValueError("data.bag_separator: expected a separator, got nothing")
        condition = expressions.parse_condition(self.positive)
        if condition and condition.column in (self.user_id, self.item_id, self.time, self.scenario):
            raise ValueError(
                "data.positive: expected a column that is neither id, time nor scenario, got "
                f"{condition.column!r}"
            )
        for name in ("user", "item"):
            self._side(name).check()

    def _side(self, name: str) -> "_Side":
        roles = ("sparse", "dense", "log_dense", "bags")
        return _Side(
            name,
            file=getattr(self, f"{name}s_file"),
            key=getattr(self, f"{name}_id"),
            more=(self.scenario,) if self.scenario_in_users and name == "user" else (),
            roles={role: getattr(self, f"{name}_{role}") for role in roles},
        )

    def _load(self, files: "_Files") -> assemble.Dataset:
        users = self._side("user").read(files.users, self.bag_separator)
        items = self._side("item").read(files.items, self.bag_separator)
        positives, days = self._read_logs(files, users, items)
        values = self.scenarios or by_count(positives["scenario"])
        scenario = pl.col("scenario").replace_strict(
            values, list(range(len(values))), default=None, return_dtype=pl.Int64
        )
        positives = positives.with_columns(scenario).drop_nulls("scenario")
        return assemble.Dataset(
            name=self.name,
            scenarios=tuple(values),
            users=self._side("user").table(users, positives["user"]),
            items=self._side("item").table(items, positives["item"]),
            positives=positives,
            days=days,
            utc_offset_s=self._utc_offset_s,
        )

    @property
    def _utc_offset_s(self) -> int:
        return round(3600 * self.utc_offset_hours)

    def _read_logs(
        self, files: "_Files", users: pl.DataFrame | None, items: pl.DataFrame | None
    ) -> tuple[pl.DataFrame, list[datetime.date]]:
        """The positives, with the scenario as text, and all days of the logs."""
        condition = expressions.parse_condition(self.positive)
        found, days = [], set()
        for path in files.logs:
            for frame in read.iterate(path, self._log_columns(condition)):
                for table, source, name in (
                    (users, files.users, self.user_id),
                    (items, files.items, self.item_id),
                ):
                    if table is not None and source is not None:
                        columns.check_known(path, frame, name, table[name], source.name)
                frame = self._with_time(path, frame)
                days.update(frame[_DAY].unique().to_list())
                if condition is not None:
                    frame = frame.filter(condition.expression)
                scenario = pl.col(self.scenario)
                if self.scenario_in_users and users is not None:
                    of_user = users.select(self.user_id, scenario.alias(_SCENARIO))
                    frame = frame.join(of_user, on=self.user_id, maintain_order="left")
                    scenario = pl.col(_SCENARIO)
                kept = frame.select(
                    user=self.user_id, item=self.item_id, scenario=scenario, time_s=_TIME, day=_DAY
                )
                found.append(kept.drop_nulls("scenario"))
        return pl.concat(found), sorted(days)

    def _log_columns(self, condition: expressions.Condition | None) -> list[columns.Column]:
        wanted = {name: columns.Column(name, "str") for name in (self.user_id, self.item_id)}
        wanted[self.time] = columns.Column(self.time, "str" if self.time_unit == "iso" else "int")
        if not self.scenario_in_users:
            wanted[self.scenario] = columns.Column(self.scenario, "str", nullable=True)
        if condition is not None:
            kind: columns.Kind = "float" if condition.is_number else "str"
            wanted[condition.column] = columns.Column(condition.column, kind, nullable=True)
        return list(wanted.values())

    def _with_time(self, path: pathlib.Path, frame: pl.DataFrame) -> pl.DataFrame:
        """Adds the unix second and the day of every row."""
        if self.time_unit == "iso":
            time_s = expressions.parse_iso(pl.col(self.time), self._utc_offset_s)
        else:
            time_s = pl.col(self.time) // _UNITS_PER_S[self.time_unit]
        frame = frame.with_columns(time_s.alias(_TIME))
        bad = pl.col(_TIME).is_null() | ~pl.col(_TIME).is_between(1, _MAX_TIME_S)
        columns.check(path, frame, bad, self.time, _EXPECTED_TIME[self.time_unit])
        local = pl.from_epoch(pl.col(_TIME) + self._utc_offset_s, time_unit="s")
        return frame.with_columns(local.dt.date().alias(_DAY))


@dataclasses.dataclass(frozen=True)
class _Side:
    """Users or items: the table's file, key and features, and columns it needs besides."""

    name: str
    file: str
    key: str
    roles: dict[str, tuple[str, ...]]
    more: tuple[str, ...]

    def check(self) -> None:
        """Refuses columns without a file, and a column with two roles."""
        named = [name for names in self.roles.values() for name in names]
        if (named or self.more) and not self.file:
            raise ValueError(
                f"data.{self.name}s_file: expected a file with the columns "
                f"{', '.join([*named, *self.more])}, got none; name the file or no columns"
            )
        repeated = [name for name in named if named.count(name) > 1 or name == self.key]
        if repeated:
            raise ValueError(
                f"data.{self.name}_sparse, _dense, _log_dense, _bags: expected each column once "
                f"and not the id, which is a feature by itself, got {repeated[0]!r}"
            )

    def read(self, path: pathlib.Path | None, bag_separator: str) -> pl.DataFrame | None:
        """The table, bags as lists; None without a file."""
        if path is None:
            return None
        sparse, dense, log_dense, bags = self.roles.values()
        texts = sorted({*sparse, *bags, *self.more} - {self.key})
        wanted = (
            columns.Column(self.key, "str"),
            *(columns.Column(name, "str", nullable=True) for name in texts),
            *(columns.Column(name, "float", nullable=True) for name in dense),
            *(columns.Column(name, "float", low=0, nullable=True) for name in log_dense),
        )
        table = read.read(path, wanted)
        columns.check_unique(path, table, self.key)
        return table.with_columns(pl.col(name).str.split(bag_separator) for name in bags)

    def table(self, table: pl.DataFrame | None, occurring: pl.Series) -> entities.Table:
        """The features for the store; without a file, the ids that occur."""
        if table is None:
            return entities.Table(pl.DataFrame({self.key: occurring.unique()}), self.key)
        return entities.Table(table, self.key, **self.roles)


class _Files(NamedTuple):
    """The files a configuration names."""

    logs: list[pathlib.Path]
    users: pathlib.Path | None
    items: pathlib.Path | None

    def all(self) -> list[pathlib.Path]:
        return [*self.logs, *(path for path in (self.users, self.items) if path)]


def _find_files(section: CustomConfig) -> _Files:
    folder = pathlib.Path(section.raw_dir)
    if not section.raw_dir or not folder.is_dir():
        raise ValueError(
            f"data.raw_dir: expected a folder with {', '.join(section.log_files)}, "
            f"got {section.raw_dir!r}"
        )
    if not section.log_files:
        raise ValueError("data.log_files: expected at least one name or pattern, got none")
    logs: list[pathlib.Path] = []
    for pattern in section.log_files:
        found = sorted(path for path in folder.glob(pattern) if path not in logs)
        if not found:
            raise ValueError(f"data.log_files: expected {folder / pattern} to exist, found no file")
        logs += found
    tables: list[pathlib.Path | None] = []
    for field, name in (("users", section.users_file), ("items", section.items_file)):
        if name and not (folder / name).is_file():
            raise ValueError(f"data.{field}_file: expected {folder / name} to exist, found no file")
        tables.append(folder / name if name else None)
    return _Files(logs, *tables)


def by_count(values: pl.Series) -> list[str]:
    """The distinct values, most frequent first; ties in alphabetical order."""
    counts = pl.DataFrame({"value": values}).group_by("value").len()
    return counts.sort(["len", "value"], descending=[True, False])["value"].to_list()
