"""Own logs larger than memory, by Daft: on this machine or on a Ray cluster.

Owns the plan. The log's files are read by the rules of `own_rows.py`, a file a task, and their
events are written to Parquet. Daft counts scenarios, users and items, joins the rows of users and
items and the scenarios' ids, and writes the events by ranges of users. A range fits in memory and
is a part of the store. Users, items and their tables are held in memory; the log's events are not.

Daft runs where its own settings say, on this machine or with `DAFT_RUNNER=ray` on a cluster, all
machines of which have to see the folder.
"""

import dataclasses
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import daft
import numpy as np
import polars as pl

from dsmoe_jax.data.prepare import entities, histories, own_config, own_files, own_rows
from dsmoe_jax.data.prepare import parts as parts_lib

# Events of a range of users, unless one user has more: about a GiB while they are written.
_PART_ROWS = 1 << 21
_COLUMNS = ("user", "item", "scenario", "time_s", "day")


class Spooled:
    """A log in a folder of Parquet files; see `own_events.Events`.

    Raises:
      ValueError: As `own_rows.read_logs`; where several files have a bad row, of any of them.
    """

    def __init__(
        self,
        section: own_config.LogConfig,
        logs: list[own_files.Log],
        paths: Mapping[str, pathlib.Path],
        tables: Mapping[str, pl.DataFrame],
        folder: pathlib.Path,
    ):
        types = (pl.String, pl.String, pl.Int64, pl.Int64, pl.Date)
        self.positives = pl.DataFrame(schema=dict(zip(_COLUMNS, types, strict=True)))
        self.exposures = self.positives if section.exposures else None
        self._folder = folder.absolute()
        self.tally = self._read(section, logs, paths, tables)
        self.tally.finish(section, len(logs))
        self._rows = daft.read_parquet(f"{self._folder}/rows/*.parquet")
        self._ids: dict[str, int] = {}
        self._values: list[str] = []

    def _read(
        self,
        section: own_config.LogConfig,
        logs: list[own_files.Log],
        paths: Mapping[str, pathlib.Path],
        tables: Mapping[str, pl.DataFrame],
    ) -> own_rows.Tally:
        (self._folder / "rows").mkdir()
        # Of the tables a task needs the ids and the users' scenarios alone.
        for side, table in tables.items():
            more = [section.scenario] if section.scenario_in_users and side == "user" else []
            kept = table.select(section.key_of(side), *more)
            kept.write_parquet(self._folder / f"known_{side}.parquet")
        numbers = daft.from_pydict({"number": list(range(len(logs)))})
        if daft.get_or_infer_runner_type() == "ray":
            # On one machine there is no division, and a warning that says so.
            numbers = numbers.into_partitions(len(logs))
            # Other machines start elsewhere; messages name files as they were given where they can.
            logs = [log._replace(path=log.path.absolute()) for log in logs]
        task = _ReadTask(section, logs, paths, self._folder)
        read_file = daft.func(task.run, return_dtype=daft.DataType.binary())
        done = numbers.select(daft.col("number"), read_file(daft.col("number")).alias("tally"))
        tally = own_rows.Tally()
        for _, pickled in sorted(zip(*done.to_pydict().values(), strict=True)):
            found = pickle.loads(pickled)
            if isinstance(found, str):
                raise ValueError(found)
            tally.add(found)
        return tally

    def count_scenarios(self) -> dict[str, int]:
        """See `Events`."""
        counts = _count(self._rows.where(daft.col("positive")), "scenario")
        return dict(counts.iter_rows())

    def choose(self, ids: Mapping[str, int], values: Sequence[str]) -> None:
        """See `Events`."""
        self._ids, self._values = dict(ids), list(values)

    def distinct(self, side: str) -> pl.Series:
        """See `Events`."""
        is_kept = daft.col("positive") & daft.col("scenario").is_in(list(self._ids))
        return _count(self._rows.where(is_kept), side)[side]

    def parts(
        self,
        users: entities.EncodedTable,
        items: entities.EncodedTable,
        num_scenarios: int,
        last_day: int,
    ) -> list[parts_lib.Part]:
        """Writes the events in numbers, by ranges of users; see `assemble.Dataset.parts`."""
        counts, user_rows = _count(self._rows, "user"), np.arange(1, len(users.raw_id))
        count_U = np.zeros(len(users.raw_id), np.int64)
        count_U[users.rows(counts["user"])] = counts["count"].to_numpy()
        # What row 0 counts are events of users that are not in the table.
        before_U = np.cumsum(count_U[1:]) - count_U[1:]
        part_U = before_U // _PART_ROWS
        by_user = {"user": users.raw_id[1:], "user_row": user_rows, "part": part_U}
        by_item = {"item": items.raw_id[1:], "item_row": np.arange(1, len(items.raw_id))}
        # Scenarios of exposures that are none of the store's have the number after the last.
        ids = [(name, True, i) for name, i in self._ids.items()]
        ids += [(name, False, i) for i, name in enumerate(self._values)]
        by_scenario = dict(
            zip(("scenario", "positive", "scenario_id"), zip(*ids, strict=True), strict=True)
        )
        scenario, number = daft.col("scenario_id"), daft.lit(num_scenarios)
        numbered = (
            self._rows.join(self._table("users", by_user), on="user")
            .join(self._table("items", by_item), on="item")
            .join(self._table("scenarios", by_scenario), on=["scenario", "positive"], how="left")
            .where(scenario.not_null() | ~daft.col("positive"))
            .select(
                daft.col("user_row").alias("user"),
                daft.col("item_row").alias("item"),
                scenario.fill_null(number).alias("scenario"),
                *(daft.col(name) for name in ("time_s", "day", "positive", "part")),
            )
        )
        folder = self._folder / "parts"
        numbered.write_parquet(str(folder), partition_cols=["part"])
        found = [folder / f"part={part}" for part in np.unique(part_U).tolist()]
        return [_Range(path, num_scenarios, last_day) for path in found if path.is_dir()]

    def _table(self, name: str, columns: Mapping[str, Any]) -> daft.DataFrame:
        path = self._folder / f"{name}.parquet"
        pl.DataFrame(columns).write_parquet(path)
        return daft.read_parquet(str(path))


@dataclasses.dataclass(frozen=True)
class _ReadTask:
    """Reads files of a log, on whatever machine it runs."""

    section: own_config.LogConfig
    logs: list[own_files.Log]
    paths: Mapping[str, pathlib.Path]
    folder: pathlib.Path

    def run(self, number: int) -> bytes:
        """Writes the events of a file.

        Returns:
          What is known of its rows, or the message of the first bad one, pickled.
        """
        tally, failed = own_rows.Tally(), self.folder / "failed"
        tables = {
            side: pl.read_parquet(self.folder / f"known_{side}.parquet") for side in self.paths
        }
        blocks = own_rows.iterate(
            self.section,
            self.logs[number],
            self.paths,
            tables,
            tally,
            may_be_empty=len(self.logs) > 1,
        )
        try:
            for i, block in enumerate(blocks):
                # A log with a bad row is not read on for hours.
                if failed.exists():
                    break
                rows = pl.concat(
                    frame.with_columns(positive=pl.lit(kind))
                    for kind, frame in ((True, block.positives), (False, block.exposures))
                )
                rows.write_parquet(self.folder / "rows" / f"{number:06}-{i:06}.parquet")
        except ValueError as error:
            failed.touch()
            return pickle.dumps(str(error))
        return pickle.dumps(tally)


@dataclasses.dataclass(frozen=True)
class _Range:
    """The events of a range of users, in a folder; see `parts.Part`."""

    folder: pathlib.Path
    num_scenarios: int
    last_day: int

    def positives(self) -> histories.Positives:
        return self._order(self.num_scenarios, "positives")

    def exposures(self, positives: histories.Positives) -> histories.Positives:
        shown = self._order(self.num_scenarios + 1, "exposures")
        return histories.without_positives(shown, positives)

    def _order(self, num_scenarios: int, kind: str) -> histories.Positives:
        files = sorted(self.folder.glob("*.parquet"))
        found = pl.concat(
            pl.read_parquet(path, columns=[*_COLUMNS, "positive"], hive_partitioning=False)
            .filter(pl.col("positive") == (kind == "positives"))
            .select(
                *(pl.col(name).cast(pl.Int64) for name in ("user", "scenario", "item", "time_s")),
                pl.col("day").to_physical().cast(pl.Int64),
            )
            for path in files
        )
        return histories.order(found, found, num_scenarios, self.last_day, kind)


def _count(rows: daft.DataFrame, name: str) -> pl.DataFrame:
    """Rows by the value of a column."""
    counts = rows.groupby(name).agg(daft.col("time_s").count().alias("count"))
    return pl.DataFrame(counts.to_arrow())
