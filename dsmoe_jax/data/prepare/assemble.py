"""Assembly of the store from a data set in raw ids: the steps every data set shares.

Owns histories that hold only what came before, writing and reuse. Does not own reading raw files
(`read.py`, one file per data set) nor what is held out (`splits.py`).

A data set's configuration implements `prepare` with one call:

    def prepare(self, store_dir: str) -> None:
        files = [...]                                # pathlib.Path of every input file
        assemble.prepare(self, store_dir, files, lambda: self._load(files))

where `_load` reads the files (`read.read`, `read.iterate`), checks what only it can know
(`columns.check`), and returns

    assemble.Dataset(
        name="KuaiRand-Pure",
        scenarios=("K1", "K2"),
        users=entities.Table(users, key="user_id", sparse=("age",), log_dense=("fans",)),
        items=entities.Table(items, key="video_id", sparse=("author",), bags=("tag",)),
        positives=frame,      # columns user, item (raw ids), scenario (id), time_s, day
        days=days,            # every day of the log, so that a day without positives counts
        clock=clocks.Clock(8 * 3600),
    )

Everything is deterministic: equal inputs and settings give equal bytes.

    X  rows (training examples or queries)     E  events or positives     C  columns of the rows
"""

import concurrent.futures
import dataclasses
import datetime
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from dsmoe_jax import features, runlog, terminal
from dsmoe_jax.config import fields, schema
from dsmoe_jax.data import kept
from dsmoe_jax.data import manifest as manifest_lib
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import (
    clocks,
    entities,
    events,
    histories,
    row_tables,
    splits,
    standard,
)
from dsmoe_jax.data.prepare import parts as parts_lib

# Raised when the same inputs and settings give another content than before, so that stores in place
# are prepared again; the package's own version is ignored.
STORE_VERSION = 1
_QUERIES = tuple(f"{split}_queries" for split in store_lib.SPLITS)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in raw ids.

    Attributes:
      name: What results are labelled with; synthetic rows say so here.
      scenarios: Scenario names; `positives.scenario` indexes them.
      users: Every user that occurs in `positives`, and maybe more.
      items: The candidate pool: every item that occurs in `positives`, and maybe more.
      positives: Columns `user`, `item` (raw ids), `scenario` (integer id), `time_s` (integer unix
        seconds, 1 to 2**31 - 2), `day` (`pl.Date`, the day that decides the split). Exact
        repetitions are dropped.
      days: All days of the log, in any order, repetitions allowed; read by the split by day alone.
      split: "days": `DataConfig` says how many days validate and test. "leave_one_out": every
        user's last positive tests and the one before it validates, whatever `DataConfig` says.
      clock: Whose midnight begins the days.
      pre_history: Columns `user`, `item` (raw ids) in chronological order: clicks from before the
        log, without time or scenario. They open the all-scenario history and count for nothing
        else.
      exposures: Columns as those of `positives`: what users were shown and what is no positive;
        the scenario is null where it is none of `scenarios`. Those of unknown users and items,
        those that are positives and exact repetitions are dropped.
      pre_exposures: As `pre_history`, of exposures; likewise dropped. With either of the two the
        store has the sequence `exposures`, of the users that have a positive.
      behavior: A further log of events, or None.
      parts: Gives the numbers of what `positives` and `exposures` hold, which then are empty, by
        ranges of users in ascending order; with it there is neither behaviour log nor anything from
        before the log. Its arguments are those of `parts.Whole` from `users` on.
      extra_values: By item sparse feature, raw values that need an id beside those of `items`,
        e.g. categories that occur in the behaviour log alone.
      hint: What a refusal of the split adds, of where the log may be wrong.
      raw_forms: How the raw files write a feature, for those that send requests: of a bag
        `{"separator": ","}`, of ranges of a number `{"column": NAME, "edges": [...]}`.
    """

    name: str
    scenarios: tuple[str, ...]
    users: entities.Table
    items: entities.Table
    positives: pl.DataFrame
    days: Sequence[datetime.date] = ()
    split: str = "days"
    clock: clocks.Clock = clocks.UTC
    pre_history: pl.DataFrame | None = None
    exposures: pl.DataFrame | None = None
    pre_exposures: pl.DataFrame | None = None
    behavior: events.BehaviorLog | None = None
    parts: Callable[..., Sequence[parts_lib.Part]] | None = None
    extra_values: Mapping[str, pl.Series] = dataclasses.field(default_factory=dict)
    raw_forms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    hint: str = ""

    @property
    def has_exposures(self) -> bool:
        """Whether the store has the sequence `exposures`."""
        return self.exposures is not None or self.pre_exposures is not None


def prepare(
    section: schema.DataConfig,
    store_dir: str,
    inputs: Sequence[pathlib.Path],
    load: Callable[[], Dataset],
) -> None:
    """Writes the store, or says that the one in place can be used as it is.

    All fields of the section but the folders, and `inputs`, the files that decide the content,
    decide whether a store in place is reused, or one that was kept from before; `load` is called
    only when one has to be written.

    Raises:
      ValueError: On bad input, or a damaged store in `store_dir`. Nothing half-written remains.
    """
    start_s = time.monotonic()
    settings = dataclasses.asdict(section)
    for name, declared, value in fields.walk(section):
        if declared.metadata.get("unhashed") or fields.is_usual(declared, value):
            del settings[name]
    settings |= {"class": type(section).__name__, "preparation": STORE_VERSION}
    if section.standard_file:
        settings["standard"] = standard.read(section.standard_file).digest
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Without a store to compare with, files are hashed while they are read.
        hashes, what = pool.submit(manifest_lib.fingerprint, inputs), ""
        if manifest_lib.exists(store_dir):
            changed = manifest_lib.differences(store_dir, settings, hashes.result())
            store_lib.Store.open(store_dir, verify=True)
            if not changed:
                runlog.say(f"store {store_dir}: reused, inputs and settings are unchanged")
                return
            what = f"again, {'; '.join(changed)}"
        if kept.bring_back(store_dir, settings, hashes.result):
            store_lib.Store.open(store_dir, verify=True)
            runlog.say(f"store {store_dir}: used {what}, as it was kept from before")
            return
        if what:
            runlog.say(f"store {store_dir}: prepared {what}")
        dataset = load()
        counts = write(dataset, section, store_dir, settings, hashes.result())
    runlog.say(
        f"store {store_dir}: {dataset.name} prepared in {time.monotonic() - start_s:.1f} s: "
        f"{counts['users']:,} users, {counts['items']:,} items, training positives "
        + _name_some(counts["train"])
    )


def _name_some(numbers: dict[str, int]) -> str:
    """The first of some named numbers."""
    return terminal.some([f"{terminal.shorten(name, 40)} {n:,}" for name, n in numbers.items()])


def make_split(dataset: Dataset, section: schema.DataConfig) -> splits.Split:
    """The data set's rule of what is held out.

    Raises:
      ValueError: On an unknown rule, too few days, or what leave-one-out cannot split.
    """
    if dataset.split not in splits.RULES:
        raise ValueError(f"split: expected one of {splits.RULES}, got {dataset.split!r}")
    if dataset.split == "days":
        return splits.by_day(dataset.days, section, dataset.clock)
    if section.drop_last_days:
        raise ValueError(
            f"data.drop_last_days: expected 0 with the split leave_one_out, got "
            f"{section.drop_last_days}"
        )
    if dataset.behavior:
        raise ValueError(
            f"behavior: expected none with the split leave_one_out, got {dataset.behavior.name!r}; "
            "its history windows are cut by days"
        )
    if dataset.has_exposures:
        raise ValueError(
            "data.exposures: expected False with the split leave_one_out, got True; the windows of "
            "exposures are cut by days"
        )
    return splits.LeaveOneOut(dataset.clock)


def write(
    dataset: Dataset,
    section: schema.DataConfig,
    store_dir: str,
    settings: dict[str, Any],
    inputs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Writes the store without asking whether one is in place; see `prepare`.

    Returns:
      The manifest's counts.
    """
    rule = make_split(dataset, section)
    kept = frozenset(dataset.behavior.fields) if dataset.behavior else frozenset()
    moments = standard.read(section.standard_file).moments
    users = entities.encode_table(dataset.users, "user_id", {}, moments=moments)
    items = entities.encode_table(
        dataset.items, "item_id", dataset.extra_values, kept, moments=moments
    )
    _check_names(users, items)
    if len(items.raw_id) < 3:
        raise ValueError(
            f"items: expected at least 2 candidates, got {len(items.raw_id) - 1}; with one there "
            "is nothing to rank: add log files, or a table of items (data.items_file)"
        )
    S = len(dataset.scenarios)
    parts = _make_parts(dataset, users, items, rule)

    def number(part: parts_lib.Part) -> tuple[histories.Positives, dict[str, histories.QuerySet]]:
        positives = rule.order(part.positives())
        return positives, {
            split: splits.split_queries(
                positives, rule, split, len(items.raw_id), repeats=section.repeats
            )
            for split in store_lib.SPLITS
        }

    # A log in memory is one part, which is not numbered twice.
    numbered, counted, spans = None, [], []
    for part in parts:
        positives, queries = numbered = number(part)
        counted.append(splits.count(positives, rule, queries, dataset.scenarios))
        spans.append(splits.spans(positives, rule))
    of_scenarios = splits.join_counts(counted)
    splits.check(of_scenarios, rule, dataset.hint)
    in_tables = {name: of_scenarios[name] for name in ("train", *_QUERIES)}
    row_tables.check_size(in_tables, S, sum(entry["bytes"] for entry in inputs.values()))
    described = splits.describe(splits.join_spans(spans), rule)
    runlog.say(splits.name_days(described, rule))
    counts = {"users": len(users.raw_id) - 1, "items": len(items.raw_id) - 1, **of_scenarios}
    with store_lib.StoreWriter(store_dir) as writer:
        _write_table(writer, users, "users")
        _write_table(writer, items, "items")
        rows = parts_lib.Writer(
            writer,
            users,
            items,
            rule,
            S,
            has_exposures=dataset.has_exposures,
            behavior=dataset.behavior,
            pre_history=dataset.pre_history,
            pre_exposures=dataset.pre_exposures,
        )
        for part in parts:
            positives, queries = numbered if numbered and len(parts) == 1 else number(part)
            rows.add(part, positives, queries)
        rows.finish()
        if dataset.has_exposures:
            counts["exposures"] = rows.num_exposures
        writer.manifest(
            dataset=dataset.name,
            spec=_make_spec(dataset, users, items),
            columns={"examples": rows.columns},
            counts=counts,
            split=described,
            settings=settings,
            inputs=inputs,
            vocabularies={n: len(v) for n, v in (users.vocabularies | items.vocabularies).items()},
            dense={**users.moments, **items.moments},
            raw_forms={name: dict(form) for name, form in dataset.raw_forms.items()},
        )
    return counts


def _make_parts(
    dataset: Dataset, users: entities.EncodedTable, items: entities.EncodedTable, rule: splits.Split
) -> Sequence[parts_lib.Part]:
    numbers = (users, items, len(dataset.scenarios), rule.last_day)
    if dataset.parts:
        return dataset.parts(*numbers)
    return [parts_lib.Whole(dataset.positives, dataset.exposures, *numbers)]


def _check_names(users: entities.EncodedTable, items: entities.EncodedTable) -> None:
    names = [*users.names, *items.names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"feature {repeated[0]!r}: expected each name once over users and items, got it twice; "
            "rename one of them"
        )


def _make_spec(
    dataset: Dataset, users: entities.EncodedTable, items: entities.EncodedTable
) -> features.FeatureSpec:
    item_id = ("item_id",)
    described: dict[str, tuple[str, ...]] = {"history": item_id, "scenario_history": item_id}
    if dataset.behavior:
        described[dataset.behavior.name] = dataset.behavior.fields
    if dataset.has_exposures:
        described[features.EXPOSURES] = item_id
    return features.FeatureSpec(
        scenarios=dataset.scenarios,
        user_sparse=users.sparse,
        user_dense=users.dense,
        user_bags=users.bag,
        item_sparse=items.sparse,
        item_dense=items.dense,
        item_bags=items.bag,
        sequences=tuple(features.SequenceFeature(name, of, 0) for name, of in described.items()),
    )


def _write_table(writer: store_lib.StoreWriter, table: entities.EncodedTable, side: str) -> None:
    writer.array(f"{side}_raw_id", table.raw_id)
    writer.array(f"{side}_sparse", table.sparse_XF)
    writer.array(f"{side}_dense", table.dense_XF)
    for name, ids_XP in table.bags.items():
        writer.array(f"{side}_bag_{name}", ids_XP)
    for name, vocabulary in table.vocabularies.items():
        writer.array(f"vocabulary_{name}", entities.as_array(vocabulary, table.where[name]))
