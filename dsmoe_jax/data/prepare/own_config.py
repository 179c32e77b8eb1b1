"""Own logs: which column is what, how files are written, and what is refused before any is read.

Owns the fields of that configuration. Does not own what is done with them (`custom.py`).
"""

import dataclasses

from dsmoe_jax.config import fields, schema
from dsmoe_jax.data.prepare import clocks, columns, expressions, forms, splits, times

SIDES = ("user", "item")
# What results call the mean over scenarios.
MEAN = "macro"
_UNKNOWN = ("refuse", "drop", "keep")


@dataclasses.dataclass
class LogConfig(schema.DataConfig):
    """A data set of your own: separated text, also in gzip, zip, zstd, bzip2 or xz, or Parquet.

    Rows that `positive` or `scenarios` leave out need not be valid. `raw_dir` is a folder or an
    address in an object store, `s3://bucket/folder`, `gs://...` or `az://...`.

    Attributes:
      name: What results are labelled with.
      log_files: Names or patterns (`log_*.csv.gz`) below `raw_dir` of the log files: one row per
        event. Of a folder all files count, and `dt=2024-05-01` in their path is a column `dt`.
      users_file: Table with one row per user; empty where users have no features.
      items_file: Table with one row per item, all of which are candidates; empty where items have
        no features, and the candidates are the items of the positives.
      user_id: Column of the log and of the user table.
      item_id: Column of the log and of the item table.
      time: Column of the log.
      time_unit: "s", "ms", "us" or "ns" (since 1970, UTC), or "iso" (`2024-05-01T12:30:00+02:00`,
        `2024-05-01 12:30:00 UTC`; without a zone the clock is the one of `time_zone` or
        `utc_offset_hours`; a date alone is its midnight). Typed times of a Parquet file are read
        whatever it is.
      utc_offset_hours: Of the clock whose midnight begins the days that are split.
      time_zone: That clock by its IANA name, such as "Europe/Berlin", with daylight saving time;
        empty takes the offset. A time without a zone that it shows twice is the earlier one, and
        one that it never shows is refused.
      positive: Which rows are positives: a column, one of == != >= <= > < and a value, such as
        `rating >= 4` or `event == click`; empty means every row. An empty cell is no positive. All
        other rows are exposures. Equal is what is written so, or the same number: 4 is 4.0, and
        007 is not 7.
      scenario: Column of the log, or of the user table if `scenario_in_users`; rows where it is
        empty are left out. Empty where there is one scenario, `everywhere`.
      scenario_in_users: Whether the scenario belongs to the user instead of the event.
      scenarios: The values to keep, in the order of scenario ids; empty keeps all values, the one
        with most positives first.
      user_sparse, item_sparse: Categorical columns.
      user_dense, item_dense: Numeric columns, standardised.
      user_log_dense, item_log_dense: Numeric columns >= 0, standardised after log(1 + x).
      user_bags, item_bags: Columns of several values joined by `bag_separator`.
      bag_separator: For instance "," or "|". Blanks around a value and empty values do not count;
        a column whose cells are all lists in brackets, `[27, 9]`, `[27|9]` or `['a', 'b']`, is read
        as such, split by the separator where it stands outside quotes and else by commas.
      bag_limit: The first values of a cell that are kept; 0 keeps all.
      separator: One character between cells; empty takes the comma, tab, semicolon or bar by which
        the header has the columns.
      encoding: Of the text files, such as "latin-1" or "cp1252".
      null_values: Texts that mean an empty cell or value of a list, such as ("NULL", "-999"), in
        every column that is read, and the same numbers in Parquet files.
      log_columns, users_columns, items_columns: Names of all columns of text files that have no
        header, in their order; empty where the first line has them.
      users_key, items_key: Column of the ids in the users' and the items' table where it is called
        another name than in the log.
      unknown_users, unknown_items: What becomes of positives whose user or item is not in its
        table: "refuse" the log, "drop" them, or "keep" them with an id and no features; the output
        counts them.
      least_positives: Of a scenario; those with fewer are left out or merged.
      rare_scenarios: "leave_out", or "merge" into one scenario, `other`.
      split: "days", or "leave_one_out": every user's last positive tests and the one before it
        validates, whatever the numbers of days say.
      engine: What prepares the store, the same bytes by either: "polars", in memory, or "daft" (the
        extra `daft`), with the log's events on disk, on this machine or a Ray cluster.
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
    time_zone: str = fields.field("", added_later=True)
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
    bag_limit: int = fields.field(0, at_least=0, added_later=True)
    separator: str = fields.field("", added_later=True)
    encoding: str = fields.field("utf-8", added_later=True)
    null_values: tuple[str, ...] = fields.field((), added_later=True)
    log_columns: tuple[str, ...] = fields.field((), added_later=True)
    users_columns: tuple[str, ...] = fields.field((), added_later=True)
    items_columns: tuple[str, ...] = fields.field((), added_later=True)
    users_key: str = fields.field("", added_later=True)
    items_key: str = fields.field("", added_later=True)
    unknown_users: str = fields.field("refuse", choices=_UNKNOWN, added_later=True)
    unknown_items: str = fields.field("refuse", choices=_UNKNOWN, added_later=True)
    least_positives: int = fields.field(0, at_least=0, added_later=True)
    rare_scenarios: str = fields.field(
        "leave_out", choices=("leave_out", "merge"), added_later=True
    )
    split: str = fields.field("days", choices=splits.RULES, added_later=True)
    engine: str = fields.field("polars", choices=("polars", "daft"), resumable=True, unhashed=True)

    def validate(self) -> None:
        """Refuses what makes no sense, before a file is looked for.

        Raises:
          ValueError: Naming the field, what was expected and what it holds.
        """
        fields.validate(self, "data")
        if self.time_unit not in times.UNITS:
            raise ValueError(
                f"data.time_unit: expected 's', 'ms', 'us', 'ns' or 'iso', got {self.time_unit!r}"
            )
        if not -24 < self.utc_offset_hours < 24:
            raise ValueError(
                f"data.utc_offset_hours: expected between -24 and 24, got {self.utc_offset_hours}"
            )
        if self.time_zone:
            clocks.check_zone(self.time_zone)
            if self.utc_offset_hours:
                raise ValueError(
                    f"data.time_zone: expected nothing beside data.utc_offset_hours="
                    f"{self.utc_offset_hours:g}, got {self.time_zone!r}; a clock has one of the "
                    "two: set data.utc_offset_hours=0, or data.time_zone=''"
                )
        if len(set(self.scenarios)) != len(self.scenarios):
            raise ValueError(f"data.scenarios: expected distinct values, got {self.scenarios}")
        if not self.bag_separator:
            raise ValueError("data.bag_separator: expected a separator, got nothing")
        if self.separator and (len(self.separator) > 1 or self.separator in '"\r\n'):
            raise ValueError(
                f"data.separator: expected one character such as ';', or nothing for a guess from "
                f"the header, got {self.separator!r}"
            )
        if not self.separator.isascii():
            raise ValueError(f"data.separator: expected a character of ASCII, got {self.separator}")
        try:
            "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                "data.encoding: expected the name of a text encoding such as 'utf-8' or 'latin-1', "
                f"got {self.encoding!r}"
            ) from None
        for table in ("log", *(f"{side}s" for side in SIDES)):
            names = getattr(self, f"{table}_columns")
            if not all(names) or len(set(names)) != len(names):
                raise ValueError(
                    f"data.{table}_columns: expected the distinct names of all columns, got "
                    f"{', '.join(map(repr, names))}"
                )
        if self.scenario_in_users and not self.scenario:
            raise ValueError(
                "data.scenario: expected a column of the users' table with data.scenario_in_users, "
                "got nothing"
            )
        if MEAN in self.scenarios:
            raise ValueError(
                f"data.scenarios: expected another name than {MEAN!r}, which results call the "
                "mean over scenarios; rename it in the log"
            )
        condition = expressions.parse_condition(self.positive)
        self._validate_names([condition.column] if condition else [])
        if self.exposures and condition is None:
            raise ValueError(
                "data.exposures: expected False without data.positive, which makes every row a "
                "positive, got True; say which rows are, such as 'event == click'"
            )
        roles = {self.user_id, self.item_id, self.time, self.scenario} - {""}
        if condition and condition.column in roles:
            raise ValueError(
                "data.positive: expected a column that is neither id, time nor scenario, got "
                f"{condition.column!r}"
            )
        if self.scenario_in_users and self.unknown_users == "keep":
            raise ValueError(
                "data.unknown_users: expected 'refuse' or 'drop' with data.scenario_in_users, as "
                "users that are not in the table have no scenario, got 'keep'"
            )
        for side in SIDES:
            self._validate_side(side)

    def _validate_names(self, more: list[str]) -> None:
        """Refuses names of columns that the preparation has for its own, or that mean several."""
        named = [name for side in SIDES for names in self.roles(side).values() for name in names]
        named += [self.key_of(side) for side in SIDES] + more
        for name in (self.user_id, self.item_id, self.time, self.scenario, *named):
            columns.check_name("data", name)

    def _validate_side(self, side: str) -> None:
        """Refuses columns without a file, and a column with two roles."""
        named = [name for names in self.roles(side).values() for name in names]
        wanted = [*named, self.scenario] if self.scenario_in_users and side == "user" else named
        if wanted and not getattr(self, f"{side}s_file"):
            raise ValueError(
                f"data.{side}s_file: expected a file with the columns {', '.join(wanted)}, got "
                "none; name the file or no columns"
            )
        key = self.key_of(side)
        repeated = [name for name in named if named.count(name) > 1 or name == key]
        if repeated:
            raise ValueError(
                f"data.{side}_sparse, _dense, _log_dense, _bags: expected each column once "
                f"and not the id, which is a feature by itself, got {repeated[0]!r}"
            )

    def roles(self, side: str) -> dict[str, tuple[str, ...]]:
        """The features' columns of the users' or the items' table, by role."""
        roles = ("sparse", "dense", "log_dense", "bags")
        return {role: getattr(self, f"{side}_{role}") for role in roles}

    @property
    def clock(self) -> clocks.Clock:
        """The clock of the days, and of times without a zone."""
        return clocks.Clock(round(3600 * self.utc_offset_hours), self.time_zone)

    def form(self, table: str) -> forms.Form:
        """How the text files of "log", "users" or "items" are written."""
        setting = f"{table}_columns"
        names = tuple(getattr(self, setting))
        nulls = tuple(self.null_values)
        return forms.Form(self.separator, self.encoding, nulls, names, f"data.{setting}")

    def key_of(self, side: str) -> str:
        """The column of ids in the users' or the items' table."""
        return str(getattr(self, f"{side}s_key") or getattr(self, f"{side}_id"))
