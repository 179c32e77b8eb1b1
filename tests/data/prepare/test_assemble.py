import dataclasses
import datetime
import shutil

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import assemble, clocks, entities, events

DAY_0 = datetime.date(2022, 4, 25)
OFFSET_S = 8 * 3600
NAMES = ("A", "B", "C")
SECTION = schema.DataConfig(validation_days=1, test_days=2)


def seconds(day, second=0):
    """Unix seconds of a local midnight, `second` later."""
    return (day - datetime.date(1970, 1, 1)).days * 86_400 - OFFSET_S + second


def make_random_rows(seed):
    """Positives, behaviour and earlier clicks as lists of tuples; few values, so much coincides."""
    rng = np.random.default_rng(seed)
    positives = []
    for _ in range(240):
        day = DAY_0 + datetime.timedelta(days=int(rng.integers(0, 7)))
        # The clock of one row in four is off by up to a day.
        second = int(rng.integers(0, 6)) * 14_400 + int(rng.random() < 0.25) * 50_000
        positives.append(
            (
                int(rng.integers(0, 9)) * 7,
                int(rng.integers(0, 40)) * 3,
                int(rng.integers(0, len(NAMES))),
                seconds(day, second),
                day,
            )
        )
    behavior = [
        (
            int(rng.integers(0, 12)) * 7,  # some users of the log are not in the user table
            seconds(DAY_0, int(rng.integers(0, 40)) * 14_400),
            [None, 1, 2, 5, 99][int(rng.integers(0, 5))],
            [None, "x", "y"][int(rng.integers(0, 3))],
        )
        for _ in range(150)
    ]
    earlier = [(int(rng.integers(0, 9)) * 7, int(rng.integers(0, 40)) * 3) for _ in range(30)]
    return positives, behavior, earlier


def make_dataset(positives, behavior=None, earlier=None, block_rows=40):
    def blocks():
        for i in range(0, len(behavior), block_rows):
            yield pl.DataFrame(
                behavior[i : i + block_rows],
                schema={
                    "user": pl.Int64,
                    "time_s": pl.Int64,
                    "category": pl.Int64,
                    "brand": pl.String,
                },
                orient="row",
            )

    return assemble.Dataset(
        name="random rows",
        scenarios=NAMES,
        users=entities.Table(pl.DataFrame({"id": [u * 7 for u in range(9)]}), "id"),
        items=entities.Table(
            pl.DataFrame(
                {
                    "id": [i * 3 for i in range(40)],
                    "category": [i % 3 for i in range(40)],
                    "brand": ["x"] * 40,
                }
            ),
            "id",
            sparse=("category", "brand"),
        ),
        positives=pl.DataFrame(
            positives,
            schema={
                "user": pl.Int64,
                "item": pl.Int64,
                "scenario": pl.Int64,
                "time_s": pl.Int64,
                "day": pl.Date,
            },
            orient="row",
        ),
        days=[row[4] for row in positives],
        clock=clocks.Clock(OFFSET_S),
        pre_history=None
        if earlier is None
        else pl.DataFrame(earlier, schema={"user": pl.Int64, "item": pl.Int64}, orient="row"),
        behavior=None
        if behavior is None
        else events.BehaviorLog("behavior", ("category", "brand"), blocks),
        extra_values={"category": pl.Series([5, 2]), "brand": pl.Series(["y"])},
    )


def past(log, day, time_s):
    """The longest beginning of `log`, (day, time, what) in order, that lies before both."""
    found = []
    for event_day, event_time, what in log:
        if not (event_time < time_s and event_day <= day):
            break
        found.append((what, event_time))
    return found


class ByTheRules:
    """What the store has to hold, one row at a time in plain Python."""

    def __init__(self, positives, behavior=(), earlier=(), cut_days=2):
        self.positives = sorted(set(positives), key=lambda p: (p[0], p[4], p[3], p[1], p[2]))
        self.behavior = sorted(
            {b for b in behavior if b[0] <= 8 * 7 and b[2] in (0, 1, 2, 5)},
            key=lambda b: (b[0], b[1], b[2], b[3] or ""),
        )
        self.earlier = list(earlier)

    def windows(self, user, day, time_s):
        """Histories of all scenarios, of each scenario, and the behaviour, before a moment."""
        of_user = [p for p in self.positives if p[0] == user]
        before = datetime.date(1970, 1, 1)
        log = [(before, 0, item) for u, item in self.earlier if u == user]
        result = [past([*log, *((p[4], p[3], p[1]) for p in of_user)], day, time_s)]
        for s in range(len(NAMES)):
            result.append(past([(p[4], p[3], p[1]) for p in of_user if p[2] == s], day, time_s))
        behavior = [
            (before + datetime.timedelta(seconds=b[1] + OFFSET_S), b[1], (b[2], b[3]))
            for b in self.behavior
            if b[0] == user
        ]
        result.append(past(behavior, day, time_s))
        return result

    def train(self, last_day):
        return [
            ((p[0], p[2], p[1], p[3]), self.windows(p[0], p[4], p[3]))
            for p in self.positives
            if p[4] <= last_day
        ]

    def queries(self, first_day, last_day, last_train_day):
        result = []
        for user, s in sorted({(p[0], p[2]) for p in self.positives}):
            seen = {p[1] for p in self.positives if p[0] == user and p[4] < first_day}
            relevant = {
                p[1]
                for p in self.positives
                if p[0] == user and p[2] == s and first_day <= p[4] <= last_day
            } - seen
            if relevant:
                cold = not any(p[0] == user and p[4] <= last_train_day for p in self.positives)
                row = (user, s, None, seconds(first_day))
                cut = self.windows(user, first_day - datetime.timedelta(days=1), 2**40)
                result.append((row, cut, sorted(relevant), sorted(seen), cold))
        return result


def read_windows(store, row):
    """The windows of a stored row, in raw ids."""

    def read(sequence, suffix):
        ids_EF, time_E = store.sequences[sequence]
        start, stop = (row[store.columns[f"{sequence}_{bound}{suffix}"]] for bound in
                       ("start", "stop"))  # fmt: skip
        return ids_EF[start:stop], time_E[start:stop].tolist()

    result = []
    for sequence, suffix in [("history", ""), *(("scenario_history", f"_{s}") for s in range(3))]:
        ids_LF, time_L = read(sequence, suffix)
        result.append(list(zip(store.items_raw_id[ids_LF[:, 0]].tolist(), time_L, strict=True)))
    if "behavior" in store.sequences:
        ids_LF, time_L = read("behavior", "")
        category = store.load("vocabulary_category")[ids_LF[:, 0]].tolist()
        brand = [b or None for b in store.load("vocabulary_brand")[ids_LF[:, 1]].tolist()]
        result.append(list(zip(zip(category, brand, strict=True), time_L, strict=True)))
    return result


def read_row(store, row):
    user, scenario, item, time_s = (
        int(row[store.columns[n]]) for n in ("user", "scenario", "item", "time_s")
    )
    raw_item = int(store.items_raw_id[item]) if item else None
    return (int(store.users_raw_id[user]), scenario, raw_item, time_s)


def ragged(rows, q):
    return rows.items[rows.indptr[q] : rows.indptr[q + 1]]


def write(dataset, path, section=SECTION):
    assemble.write(dataset, section, str(path), {}, {})
    return store_lib.Store.open(path, verify=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("complete", [True, False])
def test_the_store_holds_what_the_rules_say_row_by_row(tmp_path, seed, complete):
    positives, behavior, earlier = make_random_rows(seed)
    if not complete:
        behavior, earlier = None, None
    store = write(make_dataset(positives, behavior, earlier), tmp_path / "store")
    rules = ByTheRules(positives, behavior or (), earlier or ())
    days = sorted({p[4] for p in positives})
    depth = 5 if complete else 4

    expected = [(row, found[:depth]) for row, found in rules.train(days[-4])]
    stored = [(read_row(store, row), read_windows(store, row)) for row in store.train_NC]
    assert stored == expected
    assert len(stored) > 100

    for split, first, last in (("validation", -3, -3), ("test", -2, -1)):
        table = store.queries(split)
        found = []
        for q, row in enumerate(table.rows_QC):
            relevant = store.items_raw_id[ragged(table.relevant, q)].tolist()
            seen = store.items_raw_id[ragged(table.seen, q)].tolist()
            windows = read_windows(store, row)
            found.append((read_row(store, row), windows, relevant, seen, bool(table.cold_Q[q])))
        wanted = rules.queries(days[first], days[last], days[-4])
        assert found == [(row, cut[:depth], *rest) for row, cut, *rest in wanted]
        assert len(found) > 10


def test_leave_one_out_holds_all_that_came_before_row_by_row(tmp_path):
    rng = np.random.default_rng(0)
    # Few seconds, so that many positives share one; every pair of user and item once.
    pairs = rng.permutation(9 * 40)[:150]
    day_0 = datetime.date(1970, 1, 1)
    times = 86_400 * 10 + rng.integers(0, 6, 150) * 40_000
    positives = [
        (
            int(pair // 40) * 7,
            int(pair % 40) * 3,
            int(rng.integers(0, 3)),
            int(t),
            day_0 + datetime.timedelta(days=int(t // 86_400)),
        )
        for pair, t in zip(pairs, times, strict=True)
    ]
    earlier = [(7, 3), (14, 9), (7, 6)]
    dataset = dataclasses.replace(
        make_dataset(positives, None, earlier), split="leave_one_out", days=()
    )
    store = write(dataset, tmp_path / "store")
    train, held = [], {"validation": [], "test": []}
    for user in sorted({p[0] for p in positives}):
        mine = sorted((p for p in positives if p[0] == user), key=lambda p: (p[3], p[1]))
        log = [(item, 0) for u, item in earlier if u == user]
        for i, (_, item, scenario, time_s, _) in enumerate(mine):
            before = [(p[1], p[3]) for p in mine[:i]]
            windows = [[*log, *before]] + [
                [(p[1], p[3]) for p in mine[:i] if p[2] == s] for s in range(3)
            ]
            row = (user, scenario, item, time_s)
            if i < len(mine) - 2:
                train.append((row, windows))
            else:
                split = "validation" if i == len(mine) - 2 else "test"
                held[split].append((row, windows, [p[1] for p in mine[:i]]))
    assert [(read_row(store, r), read_windows(store, r)) for r in store.train_NC] == train
    for split, expected in held.items():
        table = store.queries(split)
        for q, (row, windows, seen) in enumerate(expected):
            user, scenario, item, time_s = row
            assert read_row(store, table.rows_QC[q]) == (user, scenario, None, time_s)
            assert read_windows(store, table.rows_QC[q]) == windows
            relevant = store.items_raw_id[ragged(table.relevant, q)]
            assert relevant.tolist() == [item]
            assert store.items_raw_id[ragged(table.seen, q)].tolist() == sorted(seen)
        assert len(table.rows_QC) == len(expected) == 9


def test_what_leave_one_out_cannot_split_is_refused(tmp_path):
    positives, behavior, _ = make_random_rows(0)
    dataset = dataclasses.replace(make_dataset(positives), split="leave_one_out")
    section = dataclasses.replace(SECTION, drop_last_days=1)
    refuse(dataset, tmp_path, "data.drop_last_days: expected 0 with the split leave", section)
    with_log = dataclasses.replace(make_dataset(positives, behavior), split="leave_one_out")
    refuse(with_log, tmp_path, "behavior: expected none with the split leave_one_out")
    shown = dataclasses.replace(dataset, exposures=dataset.positives)
    refuse(shown, tmp_path, "data.exposures: expected False with the split leave_one_out")
    unknown = dataclasses.replace(dataset, split="weeks")
    refuse(unknown, tmp_path, "split: expected one of .*, got 'weeks'")


def test_no_history_holds_the_future(tmp_path):
    store = write(make_dataset(*make_random_rows(5)), tmp_path / "store")
    for name, (_, time_E) in store.sequences.items():
        for column in store.columns:
            if column.startswith(f"{name}_stop"):
                stop = store.train_NC[:, store.columns[column]]
                start = store.train_NC[:, store.columns[column.replace("stop", "start")]]
                assert np.all(start <= stop) and np.all(stop <= len(time_E))
                filled = stop > start
                last = time_E[stop[filled] - 1]
                assert np.all(last < store.train_NC[filled, store.columns["time_s"]])


def test_dropping_the_last_days_is_having_fewer(tmp_path):
    positives, _, _ = make_random_rows(1)
    days = sorted({p[4] for p in positives})
    fewer = make_dataset([p for p in positives if p[4] <= days[-3]])
    section = dataclasses.replace(SECTION, drop_last_days=2, test_days=1)
    store = write(make_dataset(positives), tmp_path / "dropped", section)
    expected = write(fewer, tmp_path / "fewer", dataclasses.replace(SECTION, test_days=1))
    assert store.data_hash == expected.data_hash
    assert store.manifest["split"] == expected.manifest["split"]


def test_the_order_of_the_input_and_its_blocks_do_not_matter(tmp_path):
    positives, behavior, earlier = make_random_rows(2)
    one = write(make_dataset(positives, behavior, earlier), tmp_path / "one")
    other = write(make_dataset(positives[::-1] * 2, behavior[::-1], earlier, 7), tmp_path / "two")
    assert one.data_hash == other.data_hash


def test_counts_and_splits_are_recorded(tmp_path):
    positives, _, _ = make_random_rows(3)
    store = write(make_dataset(positives), tmp_path / "store")
    distinct = set(positives)
    days = sorted({p[4] for p in positives})
    counts, split = store.manifest["counts"], store.manifest["split"]
    assert (counts["users"], counts["items"]) == (9, 40)
    for s, name in enumerate(NAMES):
        in_scenario = [p for p in distinct if p[2] == s]
        assert counts["train"][name] == sum(p[4] <= days[3] for p in in_scenario)
        assert counts["validation_positives"][name] == sum(p[4] == days[4] for p in in_scenario)
        assert counts["test_positives"][name] == sum(p[4] >= days[5] for p in in_scenario)
        scenario_Q = store.queries("test").rows_QC[:, store.columns["scenario"]]
        assert counts["test_queries"][name] == np.sum(scenario_Q == s)
    assert split["train"] == {
        "days": ["2022-04-25", "2022-04-26", "2022-04-27", "2022-04-28"],
        "examples": sum(counts["train"].values()),
    }
    assert split["validation"]["days"] == ["2022-04-29"]
    assert split["test"]["days"] == ["2022-04-30", "2022-05-01"]
    assert store.manifest["dataset"] == "random rows"


def refuse(dataset, tmp_path, message, section=SECTION):
    with pytest.raises(ValueError, match=message) as caught:
        assemble.write(dataset, section, str(tmp_path / "store"), {}, {})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 5, "expected users of the user table, got user 5"),
        (1, 4, "expected items of the item table, got item 4"),
        (2, 3, "expected scenario ids below 3, got scenario 3"),
        (2, -1, "expected scenario ids below 3, got scenario -1"),
        (3, 0, "expected unix seconds from 1 to .*, got time_s 0"),
        (3, 2**31, "expected unix seconds from 1 to .*, got time_s 2147483648"),
        (3, None, "expected unix seconds from 1 to .*, got time_s None"),
    ],
)
def test_positives_out_of_range_are_refused(tmp_path, column, value, message):
    positives, _, _ = make_random_rows(0)
    bad = list(positives[100])
    bad[column] = value
    refuse(make_dataset([*positives, tuple(bad)]), tmp_path, message)


def test_earlier_clicks_on_unknown_items_are_refused(tmp_path):
    positives, _, _ = make_random_rows(0)
    refuse(make_dataset(positives, None, [(7, 3), (7, 4)]), tmp_path, "items of the item table.*4")


@pytest.mark.parametrize("time_s", [None, 0, 2**31 - 1])
def test_behavior_out_of_range_is_refused(tmp_path, time_s):
    positives, _, _ = make_random_rows(0)
    refuse(make_dataset(positives, [(7, time_s, 1, "x")]), tmp_path, "behavior: expected unix sec")


def test_a_scenario_without_training_positives_is_refused(tmp_path):
    positives, _, _ = make_random_rows(0)
    kept = [p for p in positives if p[2] != 1 or p[4] > DAY_0 + datetime.timedelta(days=4)]
    message = r"scenario 'B': expected at least one training positive \(2022-04-25 to 2022-04-28\)"
    refuse(make_dataset(kept), tmp_path, message)


def test_a_scenario_without_queries_is_refused(tmp_path):
    positives, _, _ = make_random_rows(0)
    kept = [p for p in positives if p[2] != 1 or p[4] < DAY_0 + datetime.timedelta(days=5)]
    refuse(make_dataset(kept), tmp_path, "scenario 'B': expected at least one test query")


def test_an_empty_split_is_refused(tmp_path):
    positives, _, _ = make_random_rows(0)
    day = DAY_0 + datetime.timedelta(days=4)
    dataset = make_dataset([p for p in positives if p[4] != day])
    dataset = dataclasses.replace(dataset, days=[*dataset.days, day])
    refuse(dataset, tmp_path, r"split 'validation' \(2022-04-29 to 2022-04-29\): .* got none")


@pytest.mark.parametrize(
    "changes", [{"test_days": 6}, {"drop_last_days": 4}, {"validation_days": 0}, {"test_days": 0}]
)
def test_too_few_days_are_refused(tmp_path, changes):
    positives, _, _ = make_random_rows(0)
    section = dataclasses.replace(SECTION, **changes)
    refuse(make_dataset(positives), tmp_path, "data.validation_days, data.test_days", section)


def test_users_and_items_must_not_share_a_feature_name(tmp_path):
    positives, _, _ = make_random_rows(0)
    users = entities.Table(
        pl.DataFrame({"id": [u * 7 for u in range(9)], "category": range(9)}),
        "id",
        sparse=("category",),
    )
    dataset = dataclasses.replace(make_dataset(positives), users=users)
    refuse(dataset, tmp_path, "feature 'category': expected each name once")


def prepare(path, raw, section=SECTION, load=None):
    positives, behavior, earlier = make_random_rows(0)
    assemble.prepare(
        section, str(path), [raw], load or (lambda: make_dataset(positives, behavior, earlier))
    )


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw.csv").write_text("rows")
    return tmp_path / "raw.csv"


def test_an_unchanged_preparation_is_reused(tmp_path, raw, capsys):
    prepare(tmp_path / "store", raw)
    assert "prepared in" in capsys.readouterr().out
    modified = (tmp_path / "store" / "train.npy").stat().st_mtime_ns

    def load():
        raise AssertionError("reads the files again")

    moved = dataclasses.replace(SECTION, raw_dir="elsewhere", store_dir="anywhere")
    prepare(tmp_path / "store", raw, moved, load)
    printed = capsys.readouterr().out
    assert printed.endswith("reused, inputs and settings are unchanged\n")
    assert printed.count("\n") == 1
    assert (tmp_path / "store" / "train.npy").stat().st_mtime_ns == modified


def test_changed_settings_or_inputs_prepare_again(tmp_path, raw, capsys):
    prepare(tmp_path / "store", raw)
    before = store_lib.Store.open(tmp_path / "store").data_hash
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, test_days=1))
    assert "prepared again, test_days 2 -> 1" in capsys.readouterr().out
    assert store_lib.Store.open(tmp_path / "store").data_hash != before
    raw.write_text("other rows")
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, test_days=1))
    assert "prepared again, input raw.csv changed" in capsys.readouterr().out


def test_a_store_of_earlier_settings_is_kept_and_used_again(tmp_path, raw, capsys):
    prepare(tmp_path / "store", raw)
    before = store_lib.Store.open(tmp_path / "store").data_hash
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, test_days=1))
    assert (tmp_path / f"store-{before[:12]}" / "train.npy").exists()
    capsys.readouterr()

    def load():
        raise AssertionError("reads the files again")

    prepare(tmp_path / "store", raw, load=load)
    assert "used again, test_days 1 -> 2, as it was kept" in capsys.readouterr().out
    assert store_lib.Store.open(tmp_path / "store", verify=True).data_hash == before
    # Also where the folder was lost.
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, test_days=1), load)
    shutil.rmtree(tmp_path / "store")
    prepare(tmp_path / "store", raw, load=load)


def test_a_damaged_kept_store_is_passed_over(tmp_path, raw):
    prepare(tmp_path / "store", raw)
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, test_days=1))
    [kept] = tmp_path.glob("store-*")
    (kept / "manifest.json").write_text("{")
    prepare(tmp_path / "store", raw)
    assert store_lib.Store.open(tmp_path / "store", verify=True)


def test_a_store_from_before_a_field_was_added_is_reused(tmp_path, raw, capsys):
    prepare(tmp_path / "store", raw)
    assert "exposures" not in store_lib.Store.open(tmp_path / "store").manifest["settings"]
    prepare(tmp_path / "store", raw, dataclasses.replace(SECTION, exposures=True))
    assert "prepared again, exposures None -> True" in capsys.readouterr().out


def test_a_damaged_store_is_refused_not_reused(tmp_path, raw):
    prepare(tmp_path / "store", raw)
    path = tmp_path / "store" / "items_sparse.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"items_sparse\.npy: the store is damaged"):
        prepare(tmp_path / "store", raw)


def test_a_failing_preparation_keeps_the_store_and_leaves_nothing(tmp_path, raw):
    prepare(tmp_path / "store", raw)
    before = store_lib.Store.open(tmp_path / "store").data_hash

    def load():
        raise ValueError("row 7")

    raw.write_text("other rows")
    with pytest.raises(ValueError, match="row 7"):
        prepare(tmp_path / "store", raw, load=load)
    assert store_lib.Store.open(tmp_path / "store", verify=True).data_hash == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw.csv", "store"]


def test_two_preparations_are_equal_byte_for_byte(tmp_path, raw):
    prepare(tmp_path / "one", raw)
    prepare(tmp_path / "two", raw)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
