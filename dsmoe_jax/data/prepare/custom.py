"""Own logs: from CSV or Parquet files and the mapping of their columns to the features of a store.

Owns the tables of users and items, and what becomes of both and the log. Every id, scenario and
categorical value is text here, so `42` in a CSV file and the integer 42 in a Parquet file are the
same user. `configs/custom.py` is an example to start from.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import re

import polars as pl

from dsmoe_jax import optional, runlog, terminal
from dsmoe_jax.data import manifest
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import (
    assemble,
    columns,
    entities,
    objects,
    own_config,
    own_days,
    own_events,
    own_files,
    own_rows,
    read,
    tags,
)

# Bytes of a feature's name, which names of files contain.
_LONGEST_NAME = 150


@dataclasses.dataclass
class CustomConfig(own_config.LogConfig):
    """A data set of your own."""

    def prepare(self, store_dir: str) -> None:
        """Writes the store; see `schema.DataConfig.prepare`."""
        with terminal.errors_in_one_line():
            self._prepare(store_dir)

    def _prepare(self, store_dir: str) -> None:
        self.validate()
        section: own_config.LogConfig = self
        if objects.is_url(self.raw_dir):
            names = [("data.log_files", name) for name in self.log_files]
            tables = (("data.users_file", self.users_file), ("data.items_file", self.items_file))
            names += [(field, name) for field, name in tables if name]
            folder = objects.copy(self.raw_dir, names, pathlib.Path(store_dir))
            section = dataclasses.replace(self, raw_dir=str(folder))
        logs, paths = own_files.find(section)
        inputs = [*(log.path for log in logs), *paths.values()]
        # Before a large log is hashed. A store that fits it needs no engine; another is made anew.
        if not manifest.exists(store_dir):
            self._check_engine()
        with contextlib.ExitStack() as stack:
            place = (pathlib.Path(store_dir), stack)
            assemble.prepare(self, store_dir, inputs, lambda: self._load(logs, paths, *place))

    def _check_engine(self) -> None:
        if self.engine == "daft":
            optional.require("daft", extra="daft", what="data.engine=daft: ")

    def _load(
        self,
        logs: list[own_files.Log],
        paths: dict[str, pathlib.Path],
        root: pathlib.Path,
        stack: contextlib.ExitStack,
    ) -> assemble.Dataset:
        """What the store at `root` is made of; until `stack` ends files beside it may be a part."""
        tables = {side: self._read_table(side, path) for side, path in paths.items()}
        events: own_events.Events
        if self.engine == "daft":
            self._check_engine()
            from dsmoe_jax.data.prepare import own_daft

            beside = root.with_name(f"{root.name}.events")
            folder = stack.enter_context(store_lib.open_partial(beside, "preparing this store"))
            events = own_daft.Spooled(self, logs, paths, tables, folder)
        else:
            events = own_events.InMemory(self, logs, paths, tables)
        # Users and items without a table of their own are those of the log.
        log = str(logs[0].path) if len(logs) == 1 else "data.log_files"
        sources = {side: str(paths.get(side, log)) for side in own_config.SIDES}
        source = sources["user"] if self.scenario_in_users else log
        ids, values = own_rows.choose_scenarios(self, events.count_scenarios(), source)
        events.choose(ids, values)
        days = own_days.check(self, events.tally) if self.split == "days" else []
        renamed = self._new_names()
        return assemble.Dataset(
            name=self.name,
            scenarios=tuple(values),
            users=self._describe("user", tables, events.distinct("user"), renamed, sources["user"]),
            items=self._describe("item", tables, events.distinct("item"), renamed, sources["item"]),
            positives=events.positives,
            parts=events.parts,
            days=days,
            split=self.split,
            clock=self.clock,
            hint=own_days.explain(self, events.tally),
            exposures=events.exposures,
            raw_forms={
                renamed.get((side, name), name): {"separator": self.bag_separator}
                for side, names in (("user", self.user_bags), ("item", self.item_bags))
                for name in names
            },
        )

    def _read_table(self, side: str, path: pathlib.Path) -> pl.DataFrame:
        """The users' or the items' table, bags as lists."""
        key, roles = self.key_of(side), self.roles(side)
        more = {self.scenario} if self.scenario_in_users and side == "user" else set()
        texts = sorted({*roles["sparse"], *more} - {key, *roles["bags"]})
        wanted = (
            columns.Column(key, "str"),
            *(columns.Column(name, "str", nullable=True) for name in texts),
            *(columns.Column(name, "list", nullable=True) for name in sorted(roles["bags"])),
            *(columns.Column(name, "float", nullable=True) for name in roles["dense"]),
            *(columns.Column(name, "float", low=0, nullable=True) for name in roles["log_dense"]),
        )
        table = read.read(path, wanted, self.form(f"{side}s"))
        columns.check_unique(path, table, key)
        return table.with_columns(
            tags.split(
                path, table, name, self.bag_separator, self.bag_limit, self.null_values
            ).alias(name)
            for name in roles["bags"]
        )

    def _describe(
        self,
        side: str,
        tables: dict[str, pl.DataFrame],
        ids: pl.Series,
        renamed: dict[tuple[str, str], str],
        source: str,
    ) -> entities.Table:
        """The features for the store; without a file, the ids that occur, each once."""
        key = self.key_of(side)
        if side not in tables:
            name = getattr(self, f"{side}_id")
            return entities.Table(pl.DataFrame({name: ids}), name, source=source)
        table = tables[side]
        if getattr(self, f"unknown_{side}s") == "keep":
            unknown = ids.filter(~ids.is_in(table[key].implode())).sort()
            table = pl.concat([table, pl.DataFrame({key: unknown})], how="diagonal")
        names = {name: new for (of, name), new in renamed.items() if of == side}
        roles = {r: tuple(names.get(n, n) for n in found) for r, found in self.roles(side).items()}
        written = {new: name for name, new in names.items()}
        return entities.Table(table.rename(names), key, **roles, source=source, written=written)

    def _new_names(self) -> dict[tuple[str, str], str]:
        """By side and column, what features are called that have not their column's name.

        It is one that both sides have or an id has, or that is no name of a file. A new name that
        another column has is numbered.
        """
        named = {s: [n for r in self.roles(s).values() for n in r] for s in own_config.SIDES}
        wished: dict[tuple[str, str], str] = {}
        # No feature may be called as another one, nor as a column of its own table.
        taken = {"user_id", "item_id"}
        for side, other in (own_config.SIDES, own_config.SIDES[::-1]):
            ids = self.roles(side)
            in_files = {*ids["sparse"], *ids["bags"]}
            for name in named[side]:
                new = _as_file_name(name) if name in in_files else name
                if name in named[other] or name in ("user_id", "item_id"):
                    new = f"{side}_{new}"
                if new == name:
                    taken.add(name)
                else:
                    wished[side, name] = new
        found: dict[tuple[str, str], str] = {}
        for (side, name), new in wished.items():
            own = {self.key_of(side)}
            if self.scenario_in_users and side == "user":
                own.add(self.scenario)
            numbered = itertools.chain([new], (f"{new}_{i}" for i in itertools.count(2)))
            found[side, name] = new = next(n for n in numbered if n not in taken | own)
            taken.add(new)
            runlog.say(f"{side}s: column {name!r} is the feature {new!r}")
        return found


def _as_file_name(name: str) -> str:
    """A name of which a file may hold the vocabulary."""
    safe = re.sub(r"[\x00-\x1f\x7f/]", "_", name)
    if len(safe.encode()) <= _LONGEST_NAME:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return safe.encode()[:_LONGEST_NAME].decode(errors="ignore") + f"_{digest}"
