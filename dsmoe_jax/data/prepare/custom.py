"""Own logs: the mapping of their columns to user, item, time, scenario and features.

Owns the mapping from a CSV or Parquet log, with optional tables of users and items, to the features
of a store. Every id, scenario and categorical value is text here, so `42` in a CSV file and the
integer 42 in a Parquet file are the same user. `configs/custom.py` is an example to start from.
"""

import dataclasses
import datetime
import pathlib

import polars as pl

from dsmoe_jax.config import schema
from dsmoe_jax.data.prepare import assemble, columns, entities, expressions, read

_MAX_TIME_S = 2**31 - 2
# Columns that are added; a log may have columns of the plain names.
_SCENARIO, _TIME, _DAY, _POSITIVE = "__scenario__", "__time_s__", "__day__", "__positive__"
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
        `rating >= 4` or `event == click`; empty means every row. An empty cell is no positive. All
        other rows are exposures.
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
        logs, tables = self._find_files()
        inputs = [*logs, *tables.values()]
        assemble.prepare(self, store_dir, inputs, lambda: self._load(logs, tables))

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
        if self.exposures and condition is None:
            raise ValueError(
                "data.exposures: expected False without data.positive, which makes every row a "
                "positive, got True; say which rows are, such as 'event == click'"
            )
        if condition and condition.column in (self.user_id, self.item_id, self.time, self.scenario):
            raise ValueError(
                "data.positive: expected a column that is neither id, time nor scenario, got "
                f"{condition.column!r}"
            )
        for side in ("user", "item"):
            self._validate_side(side)

    def _validate_side(self, side: str) -> None:
        """Refuses columns without a file, and a column with two roles."""
        named = [name for names in self._roles(side).values() for name in names]
        wanted = [*named, self.scenario] if self.scenario_in_users and side == "user" else named
        if wanted and not getattr(self, f"{side}s_file"):
            raise ValueError(
                f"data.{side}s_file: expected a file with the columns {', '.join(wanted)}, got "
                "none; name the file or no columns"
            )
        key = getattr(self, f"{side}_id")
        repeated = [name for name in named if named.count(name) > 1 or name == key]
        if repeated:
            raise ValueError(
                f"data.{side}_sparse, _dense, _log_dense, _bags: expected each column once "
                f"and not the id, which is a feature by itself, got {repeated[0]!r}"
            )

    def _roles(self, side: str) -> dict[str, tuple[str, ...]]:
        """The features' columns of the users' or the items' table, by role."""
        roles = ("sparse", "dense", "log_dense", "bags")
        return {role: getattr(self, f"{side}_{role}") for role in roles}

    def _find_files(self) -> tuple[list[pathlib.Path], dict[str, pathlib.Path]]:
        """The logs, and the tables that are named, by "user" and "item"."""
        folder = pathlib.Path(self.raw_dir)
        if not self.raw_dir or not folder.is_dir():
            raise ValueError(
                f"data.raw_dir: expected a folder with {', '.join(self.log_files)}, "
                f"got {self.raw_dir!r}"
            )
        if not self.log_files:
            raise ValueError("data.log_files: expected at least one name or pattern, got none")
        logs: list[pathlib.Path] = []
        for pattern in self.log_files:
            found = sorted(path for path in folder.glob(pattern) if path not in logs)
            if not found:
                raise ValueError(
                    f"data.log_files: expected {folder / pattern} to exist, found no file"
                )
            logs += found
        named = {"user": self.users_file, "item": self.items_file}
        tables = {side: folder / name for side, name in named.items() if name}
        for side, path in tables.items():
            if not path.is_file():
                raise ValueError(f"data.{side}s_file: expected {path} to exist, found no file")
        return logs, tables

    def _load(self, logs: list[pathlib.Path], paths: dict[str, pathlib.Path]) -> assemble.Dataset:
        tables = {side: self._read_table(side, path) for side, path in paths.items()}
        rows, days = self._read_logs(logs, paths, tables)
        positives = rows.filter("is_positive").drop_nulls("scenario")
        values = self.scenarios or by_count(positives["scenario"])
        scenario = pl.col("scenario").replace_strict(
            values, list(range(len(values))), default=None, return_dtype=pl.Int64
        )
        positives = positives.with_columns(scenario).drop_nulls("scenario")
        exposures = rows.filter(~pl.col("is_positive")).with_columns(scenario)
        return assemble.Dataset(
            name=self.name,
            scenarios=tuple(values),
            users=self._describe("user", tables, positives),
            items=self._describe("item", tables, positives),
            positives=positives,
            days=days,
            utc_offset_s=self._utc_offset_s,
            exposures=exposures if self.exposures else None,
            raw_forms={
                name: {"separator": self.bag_separator}
                for name in (*self.user_bags, *self.item_bags)
            },
        )

    def _read_table(self, side: str, path: pathlib.Path) -> pl.DataFrame:
        """The users' or the items' table, bags as lists."""
        key, roles = getattr(self, f"{side}_id"), self._roles(side)
        more = {self.scenario} if self.scenario_in_users and side == "user" else set()
        texts = sorted({*roles["sparse"], *roles["bags"], *more} - {key})
        wanted = (
            columns.Column(key, "str"),
            *(columns.Column(name, "str", nullable=True) for name in texts),
            *(columns.Column(name, "float", nullable=True) for name in roles["dense"]),
            *(columns.Column(name, "float", low=0, nullable=True) for name in roles["log_dense"]),
        )
        table = read.read(path, wanted)
        columns.check_unique(path, table, key)
        return table.with_columns(pl.col(n).str.split(self.bag_separator) for n in roles["bags"])

    def _describe(
        self, side: str, tables: dict[str, pl.DataFrame], positives: pl.DataFrame
    ) -> entities.Table:
        """The features for the store; without a file, the ids that occur."""
        key = getattr(self, f"{side}_id")
        if side not in tables:
            return entities.Table(pl.DataFrame({key: positives[side].unique()}), key)
        return entities.Table(tables[side], key, **self._roles(side))

    @property
    def _utc_offset_s(self) -> int:
        return round(3600 * self.utc_offset_hours)

    def _read_logs(
        self,
        logs: list[pathlib.Path],
        paths: dict[str, pathlib.Path],
        tables: dict[str, pl.DataFrame],
    ) -> tuple[pl.DataFrame, list[datetime.date]]:
        """The positives, and exposures if asked for, and all days of the logs.

        Scenarios are texts, null where there is none; `is_positive` tells the two apart.
        """
        condition = expressions.parse_condition(self.positive)
        found, days = [], set()
        for path in logs:
            for frame in read.iterate(path, self._log_columns(condition)):
                for side, table in tables.items():
                    key = getattr(self, f"{side}_id")
                    columns.check_known(path, frame, key, table[key], paths[side].name)
                frame = self._with_time(path, frame)
                days.update(frame[_DAY].unique().to_list())
                positive = pl.lit(True) if condition is None else condition.expression
                frame = frame.with_columns(positive.alias(_POSITIVE))
                if not self.exposures:
                    frame = frame.filter(_POSITIVE)
                scenario = pl.col(self.scenario)
                if self.scenario_in_users:
                    of_user = tables["user"].select(self.user_id, scenario.alias(_SCENARIO))
                    frame = frame.join(of_user, on=self.user_id, maintain_order="left")
                    scenario = pl.col(_SCENARIO)
                found.append(
                    frame.select(
                        user=self.user_id,
                        item=self.item_id,
                        scenario=scenario,
                        time_s=_TIME,
                        day=_DAY,
                        is_positive=_POSITIVE,
                    )
                )
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


def by_count(values: pl.Series) -> list[str]:
    """The distinct values, most frequent first; ties in alphabetical order."""
    counts = pl.DataFrame({"value": values}).group_by("value").len()
    return counts.sort(["len", "value"], descending=[True, False])["value"].to_list()
