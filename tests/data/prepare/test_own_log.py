"""What is inferred from frames of a log, users and items."""

import datetime
import os

import numpy as np
import pandas as pd
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom, own_log

ROLES = own_log.Roles("user_id", "item_id", "timestamp", "page", None)
BASE = custom.CustomConfig()
DAY_S = 86_400
START_S = 1_700_006_400  # midnight


def log_of(days=20, users=6):
    """Every user clicks an item of its own every day, on two pages in turn."""
    rows = [(u, f"i{u}_{d}", START_S + d * DAY_S + u, "ab"[d % 2]) for d in range(days)
            for u in range(users)]  # fmt: skip
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "page"], orient="row")


def infer(tmp_path, log, users=None, items=None, **roles):
    names = {**vars(ROLES), **roles}
    return own_log.infer(tmp_path / "raw", log, users, items, own_log.Roles(**names), BASE)


def prepared(tmp_path, found):
    found.data.prepare(str(tmp_path / "store"))
    return store_lib.Store.open(tmp_path / "store")


def test_the_log_is_prepared_as_it_is(tmp_path):
    found = infer(tmp_path, log_of())
    store = prepared(tmp_path, found)
    assert (found.num_positives, found.num_items) == (120, 120)
    assert sorted(store.spec.scenarios) == ["a", "b"]
    assert store.manifest["counts"]["users"] == 6
    assert set(store.users_raw_id.tolist()[1:]) == set("012345")


_CLOCK = pl.from_epoch("timestamp")
TIMES = {
    "seconds": pl.col("timestamp"),
    "milliseconds": pl.col("timestamp") * 1000 + 7,
    "microseconds": pl.col("timestamp") * 10**6,
    "nanoseconds": pl.col("timestamp") * 10**9,
    "real seconds": pl.col("timestamp").cast(pl.Float64) + 0.25,
    "datetime": _CLOCK,
    "zoned": _CLOCK.dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
    "text": _CLOCK.dt.to_string("%Y-%m-%dT%H:%M:%S"),
}


@pytest.mark.parametrize("unit", TIMES)
def test_the_unit_of_time_is_told_by_type_and_magnitude(tmp_path, unit):
    found = infer(tmp_path, log_of().with_columns(TIMES[unit].alias("timestamp")))
    written = pl.read_parquet(tmp_path / "raw" / "log.parquet")
    assert found.data.time_unit == "s"
    assert written["timestamp"].to_list() == log_of()["timestamp"].to_list()


def test_dates_alone_are_midnights(tmp_path):
    infer(tmp_path, log_of().with_columns(pl.from_epoch("timestamp").dt.date()))
    written = pl.read_parquet(tmp_path / "raw" / "log.parquet")
    assert written["timestamp"][0] == START_S


def test_text_is_a_category_numbers_are_dense_and_lists_are_bags(tmp_path):
    users = pl.DataFrame(
        {
            "user_id": range(6),
            "country": ["DE", "FR", None, "DE", "FR", "DE"],
            "age": [30, 40, None, 20, 50, 60],
            "member": [True, False] * 3,
            "since": [datetime.date(2020, 1, 1 + i) for i in range(6)],
            "interests": [["a", "b"], [], ["a"], None, ["c"], ["a"]],
        }
    )
    found = infer(tmp_path, log_of(), users)
    section = found.data
    assert section.user_sparse == ("country", "member")
    assert section.user_dense == ("age", "since")
    assert section.user_bags == ("interests",)
    spec = prepared(tmp_path, found).spec
    assert [bag.name for bag in spec.user_bags] == ["interests"]
    assert any("users: categories country, member" in note for note in found.notes)


def test_pandas_frames_and_files_say_the_same_as_polars_frames(tmp_path):
    log = log_of()
    pandas_log = pd.DataFrame(log.to_dict(as_series=False))
    pandas_log["timestamp"] = pd.to_datetime(pandas_log["timestamp"], unit="s", utc=True)
    items = pd.DataFrame({"item_id": log["item_id"].to_list(), "price": 1.5, "tags": [["x"]] * 120})
    log.write_csv(tmp_path / "log.csv")
    log.write_parquet(tmp_path / "own.parquet")
    frames = [log, log.lazy(), pandas_log, tmp_path / "log.csv", str(tmp_path / "own.parquet")]
    written = []
    for i, frame in enumerate(frames):
        found = infer(tmp_path / str(i), frame, items=items)
        written.append(pl.read_parquet(tmp_path / str(i) / "raw" / "log.parquet"))
        assert (found.data.item_dense, found.data.item_bags) == (("price",), ("tags",))
    assert all(frame.equals(written[0]) for frame in written)


def test_ids_that_missing_cells_made_real_numbers_are_whole_again(tmp_path):
    log = log_of().with_columns(pl.col("user_id").cast(pl.Float64))
    assert set(prepared(tmp_path, infer(tmp_path, log)).users_raw_id.tolist()[1:]) == set("012345")


@pytest.mark.parametrize(("positive", "share"), [("good", 0.5), ("stars >= 4", 0.5), (None, 1.0)])
def test_positives_are_told_by_truth_values_or_a_condition(tmp_path, positive, share):
    good = np.arange(120) // 12 % 2 == 0
    log = log_of().with_columns(good=pl.Series(good), stars=pl.Series(np.where(good, 5, 1)))
    for name, frame in (("polars", log), ("pandas", pd.DataFrame(log.to_dict(as_series=False)))):
        found = infer(tmp_path / name, frame, positive=positive)
        assert found.num_positives == 120 * share


def test_a_log_without_scenarios_has_one(tmp_path):
    found = infer(tmp_path, log_of().drop("page"), scenario=None)
    assert prepared(tmp_path, found).spec.scenarios == ("everywhere",)


def test_a_scenario_may_belong_to_the_user(tmp_path):
    users = pl.DataFrame({"user_id": range(6), "city": ["x", "y"] * 3, "age": range(6)})
    found = infer(tmp_path, log_of(), users, scenario="city")
    assert found.data.scenario_in_users
    assert found.data.user_dense == ("age",)
    assert sorted(prepared(tmp_path, found).spec.scenarios) == ["x", "y"]


@pytest.mark.parametrize(("days", "held_out"), [(3, 1), (20, 2), (100, 7)])
def test_a_tenth_of_the_days_is_held_out_twice(tmp_path, days, held_out):
    found = infer(tmp_path, log_of(days).drop("page"), scenario=None)
    assert (found.data.validation_days, found.data.test_days) == (held_out, held_out)
    assert f"the last {held_out} test" in found.notes[0]


def test_more_days_are_held_out_where_a_scenario_would_have_no_query(tmp_path):
    # Pages alternate by day, so one day each would leave a page out.
    assert infer(tmp_path, log_of(12)).data.test_days == 2


def test_with_repeats_a_scenario_of_repeats_alone_is_kept(tmp_path):
    # What is clicked on page "again" was clicked five days earlier.
    again = log_of(7).with_columns(page=pl.lit("again"), timestamp=pl.col("timestamp") + 5 * DAY_S)
    log, roles = pl.concat([log_of(12), again]), own_log.Roles(**vars(ROLES))
    found = own_log.infer(tmp_path / "new", log, None, None, roles, BASE)
    assert set(found.data.scenarios) == {"a", "b"}
    found = own_log.infer(
        tmp_path / "raw", log, None, None, roles, custom.CustomConfig(repeats=True)
    )
    assert found.data.repeats and found.data.scenarios == ()
    assert sorted(prepared(tmp_path, found).spec.scenarios) == ["a", "again", "b"]


def test_a_scenario_that_cannot_be_evaluated_is_left_out_and_said_so(tmp_path):
    rare = log_of(1).with_columns(page=pl.lit("rare"), item_id=pl.lit("i0_1"))
    found = infer(tmp_path, pl.concat([log_of(12), rare]))
    assert set(found.data.scenarios) == {"a", "b"}
    assert "scenarios left out, with too few positives: rare" in found.notes
    prepared(tmp_path, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: log.rename({"timestamp": "timestmp"}), "log: expected a column 'timestamp', "
         "got user_id, item_id, timestmp, page; nearest: 'timestmp'; name it, e.g. user=..., "
         "time=..."),
        (lambda log: log.with_columns(timestamp=pl.lit("soon")), "log: row 1, column 'timestamp': "
         "expected a date, text like 2024-05-01T12:30:00 or a number since 1970, got 'soon'"),
        (lambda log: log.head(12), "log: expected at least 3 days, one each to train, validate and "
         "test, got 2"),
        (lambda log: log.clear(), "log: expected at least one row, got none"),
        (lambda log: log.with_columns(item_id=pl.col("user_id") + 0.5), "log: row 1, column "
         "'item_id': expected a whole number up to 2**53 or text as an id, got 0.5; write "),
        (lambda log: log.with_columns(user_id=pl.lit(2.0**60)), "log: row 1, column 'user_id': "
         "expected a whole number up to 2**53 or text as an id, got 1.1529"),
        (lambda log: log.with_columns(user_id=pl.concat_list("user_id")), "log: column 'user_id': "
         "expected whole numbers or text as ids, got List(Int64); write integers or texts"),
        (lambda log: pd.DataFrame([[1, 2]], columns=["a", "a"]), "log: expected each column once, "
         "got 'a' twice"),
        (lambda log: "no\nwhere.csv", "log: expected a CSV or Parquet file, got no\\nwhere.csv: "
         "no\\nwhere.csv: expected a file, found none"),
        (lambda log: log.to_dicts(), "log: expected a polars or pandas frame or a path, got list"),
        (lambda log: "nowhere.csv", "log: expected a CSV or Parquet file, got nowhere.csv: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path, change, message):
    with pytest.raises(ValueError) as raised:
        infer(tmp_path, change(log_of()))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_ids_and_labels_of_a_text_file_count_as_they_are_written(tmp_path):
    log = log_of().with_columns(
        user_id=pl.format("00{}", "user_id"),
        act=pl.Series((["7"] + ["007"] * 4) * 24),
        size=pl.lit("1.5"),
    )
    log.write_csv(tmp_path / "log.csv", separator=";")
    found = infer(tmp_path, tmp_path / "log.csv", positive="act == 007")
    assert found.num_positives == 96
    assert "000" in prepared(tmp_path, found).users_raw_id.tolist()


def test_one_wrong_time_does_not_decide_the_unit(tmp_path):
    log = log_of().with_row_index("n")
    wrong = pl.when(pl.col("n") == 5).then(pl.col("timestamp") * 1000)
    log = log.with_columns(timestamp=wrong.otherwise(pl.col("timestamp"))).drop("n")
    with pytest.raises(ValueError, match="log: row 6, column 'timestamp': expected a date"):
        infer(tmp_path, log)


def test_a_named_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="expected a file, got a named pipe"):
        infer(tmp_path, tmp_path / "log.csv")


LEFT_OUT = [(None, "i", None, "a"), ("u", None, "soon", None), ("u", "i", "", "b")]


@pytest.mark.parametrize("year", [1971, None, 2037])
def test_rows_that_are_no_positives_need_nothing_and_decide_no_day(tmp_path, capsys, year):
    log = log_of().with_columns(pl.col("timestamp", "user_id").cast(pl.String))
    stray = [("u", "i", str(int((year - 1970) * 365.25 * DAY_S)), "a")] if year else LEFT_OUT
    extra = pl.DataFrame(stray, log.columns, orient="row")
    log = pl.concat([log.with_columns(kind=pl.lit("buy")), extra.with_columns(kind=pl.lit("v"))])
    if year:
        log = log.with_columns(pl.col("timestamp").cast(pl.Int64))
    else:
        clock = pl.from_epoch(pl.col("timestamp").cast(pl.Int64, strict=False))
        text = clock.dt.to_string("%Y-%m-%d %H:%M:%S")
        log = log.with_columns(timestamp=pl.coalesce(text, "timestamp"))
    found = infer(tmp_path, log, positive="kind == buy")
    assert found.num_positives == 120 and " 20 days, 20 with rows" in found.notes[0]
    told = "log: 1 days " + ("up to 19" if year == 1971 else "from 2036-12-31 on")
    assert (told in capsys.readouterr().out) == (year is not None)
    split = prepared(tmp_path, found).manifest["split"]
    assert sum(entry["examples"] for entry in split.values()) == 120


def test_a_positive_without_a_time_is_named(tmp_path):
    log = log_of().with_columns(timestamp=pl.col("timestamp").replace(START_S + 3, None))
    with pytest.raises(ValueError, match="log: row 4, column 'timestamp': expected a date"):
        infer(tmp_path, log)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"time": "user_id"}, "log: expected column 'user_id' in one role, got it in two"),
        ({"positive": "page == a"}, "log: expected column 'page' in one role, got it in two"),
        ({"item": "everywhere", "scenario": None}, "log: expected another name than 'everywhere'"),
    ],
)
def test_a_column_has_one_role(tmp_path, roles, message):
    with pytest.raises(ValueError, match=message):
        infer(tmp_path, log_of().with_columns(everywhere="item_id"), **roles)


LISTS = {
    "texts": (pl.Series([["a\x1fb", "[1, 2]"], None, []] * 40), ["[1, 2]", "a\x1fb"]),
    "arrays": (pd.Series([np.array([27, 9]), np.array([3, 9])] * 60), ["27", "3", "9"]),
    "decimals": (pl.Series([[1, 2], [2]] * 60, dtype=pl.List(pl.Decimal(9, 0))), ["1", "2"]),
    "real": (pl.Series([[1.5, 2]] * 120, dtype=pl.Array(pl.Float32, 2)), ["1.5", "2.0"]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_any_kind_are_bags(tmp_path, kind):
    tags, expected = LISTS[kind]
    frame = (pd if kind == "arrays" else pl).DataFrame(
        {"item_id": log_of()["item_id"].to_list(), "tags": tags}
    )
    found = infer(tmp_path, log_of(), items=frame)
    assert found.data.item_bags == ("tags",)
    assert prepared(tmp_path, found).load("vocabulary_tags").tolist() == ["", *expected]


@pytest.mark.parametrize(
    "cells", [[{"x": 1}] * 6, [[[1]]] * 6, [datetime.timedelta(1)] * 6, [datetime.time(1)] * 6]
)
def test_a_type_without_a_role_is_named(tmp_path, cells):
    users = pl.DataFrame({"user_id": range(6), "place": cells})
    with pytest.raises(ValueError, match="users: column 'place': expected text, numbers, dates"):
        infer(tmp_path, log_of(), users)


def test_days_and_texts_without_a_zone_are_on_the_clock_of_the_base(tmp_path, capsys):
    # Half an hour before UTC's midnight the day has begun in Berlin.
    early = log_of(1, 1).with_columns(timestamp=pl.lit(START_S - 1800))
    log = pl.concat([early.cast(log_of().schema), log_of()])
    base = custom.CustomConfig(time_zone="Europe/Berlin")
    found = own_log.infer(tmp_path / "zone", log, None, None, ROLES, base)
    assert found.data.time_zone == "Europe/Berlin" and " 20 days, 20 with rows" in found.notes[0]
    assert " 21 days, 21 with rows" in infer(tmp_path, log).notes[0]
    text = log.with_columns(timestamp=pl.lit("2024-10-27 02:30:00"))
    assert own_log.read_positives(text, found.data)["time_s"][0] == 1_729_989_000
    assert "121 rows at a time that the clock of Europe/Berlin shows twice" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"got '2024-03-31 02:30:00'; the clock of Europe/Berlin"):
        own_log.read_positives(
            text.with_columns(timestamp=pl.lit("2024-03-31 02:30:00")), found.data
        )


def test_times_of_pandas_keep_their_zone(tmp_path):
    clock = pd.to_datetime(log_of()["timestamp"].to_list(), unit="s")
    base = custom.CustomConfig(utc_offset_hours=5.0)
    zoned = clock.tz_localize("UTC").tz_convert("Asia/Tokyo")
    for index, (times, hours) in enumerate(((zoned, 0), (clock, 5))):
        frame = pd.DataFrame(log_of().to_dicts()).assign(timestamp=times)
        own_log.infer(tmp_path / str(index), frame, None, None, ROLES, base)
        written = pl.read_parquet(tmp_path / str(index) / "log.parquet")
        assert written["timestamp"][0] == START_S - hours * 3600
