import datetime
import importlib.util
import pathlib

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom

EXAMPLE = pathlib.Path(__file__).parents[3] / "configs" / "custom.py"
PAGES = ("home", "search", "cart")
# 2024-05-01 00:00 UTC, and on a clock two hours ahead of it.
START_UTC_S = 1_714_521_600
START_S = START_UTC_S - 2 * 3600
DAY_S = 86_400


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_custom", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_log(num_users=30, num_items=20, rows=900, days=20):
    """Events of 20 days as text cells, in the layout of the example."""
    rng = np.random.default_rng(0)
    second = np.sort(rng.integers(0, days * DAY_S, rows))
    epoch = datetime.datetime(2024, 5, 1)
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, num_users, rows)],
            "item": [f"i{i}" for i in rng.integers(0, num_items, rows)],
            "time": [(epoch + datetime.timedelta(seconds=int(s))).isoformat() for s in second],
            "page": rng.choice([*PAGES, "help"], rows, p=[0.5, 0.25, 0.2, 0.05]).tolist(),
            "action": rng.choice(["buy", "view"], rows).tolist(),
            "second": second,
        }
    )


def make_users(num_users=30):
    return pl.DataFrame(
        {
            "user": [f"u{i}" for i in range(num_users)],
            "country": [("DE", "FR", None)[i % 3] for i in range(num_users)],
            "age": [None if i == 4 else 20.0 + i for i in range(num_users)],
            "interests": [("music|travel", "food", None)[i % 3] for i in range(num_users)],
        }
    )


def make_items(num_items=20):
    return pl.DataFrame(
        {
            "item": [f"i{i}" for i in range(num_items)],
            "brand": [f"b{i % 4}" for i in range(num_items)],
            "price": [1.0 + i for i in range(num_items)],
            "tags": [("shoes|sale", "sale", "hats|shoes|sale")[i % 3] for i in range(num_items)],
        }
    )


def write(folder, log=None, users=None, items=None, suffix="csv"):
    folder.mkdir(exist_ok=True)
    tables = {"log": log, "users": users, "items": items}
    made = {"log": make_log, "users": make_users, "items": make_items}
    for name, table in tables.items():
        frame = made[name]() if table is None else table
        if suffix == "csv":
            frame.write_csv(folder / f"{name}.csv")
        else:
            frame.write_parquet(folder / f"{name}.parquet")
    return folder


def prepare(section, tmp_path, name="store"):
    section.raw_dir = str(tmp_path / "raw")
    section.prepare(str(tmp_path / name))
    return store_lib.Store.open(tmp_path / name, verify=True)


def pairs(store):
    """(user, item, scenario, second) of every training example, in raw ids."""
    c = store.columns
    rows = store.train_NC
    return sorted(
        zip(
            store.users_raw_id[rows[:, c["user"]]].tolist(),
            store.items_raw_id[rows[:, c["item"]]].tolist(),
            rows[:, c["scenario"]].tolist(),
            rows[:, c["time_s"]].tolist(),
            strict=True,
        )
    )


def test_the_example_reads_its_csv_files(example, tmp_path):
    write(tmp_path / "raw")
    store = prepare(example.data_config(), tmp_path)
    assert store.manifest["dataset"] == "my shop"
    assert store.manifest["scenarios"] == list(PAGES)
    # Twenty days: six train, seven validate, seven test.
    assert store.manifest["split"]["train"]["days"][-1] == "2024-05-06"
    assert store.manifest["split"]["test"]["days"][0] == "2024-05-14"
    log = make_log().filter(
        (pl.col("action") == "buy") & pl.col("page").is_in(PAGES) & (pl.col("second") < 6 * DAY_S)
    )
    expected = sorted(
        (user, item, PAGES.index(page), START_UTC_S + second)
        for user, item, page, second in log.select("user", "item", "page", "second").iter_rows()
    )
    assert pairs(store) == expected


def test_the_example_makes_typed_features(example, tmp_path):
    write(tmp_path / "raw")
    store = prepare(example.data_config(), tmp_path)
    spec = store.spec
    assert [f.name for f in spec.user_sparse] == ["user_id", "country"]
    assert [f.name for f in spec.user_dense] == ["age"]
    assert [f.name for f in spec.item_sparse] == ["item_id", "brand"]
    assert [f.name for f in spec.item_dense] == ["price"]
    assert [(f.name, f.num_ids, f.max_len) for f in spec.user_bags] == [("interests", 4, 2)]
    assert [(f.name, f.num_ids, f.max_len) for f in spec.item_bags] == [("tags", 4, 3)]
    country = store.load("vocabulary_country")
    row = store.users_raw_id.tolist().index("u1")
    assert country[store.users_sparse[row, 1]] == "FR"
    assert store.users_sparse[store.users_raw_id.tolist().index("u2"), 1] == 0
    # u4 has no age: the mean.
    assert store.users_dense[store.users_raw_id.tolist().index("u4"), 0] == 0
    tags, row = store.load("vocabulary_tags"), store.items_raw_id.tolist().index("i2")
    assert tags[store.items_bags["tags"][row]].tolist() == ["hats", "shoes", "sale"]
    price = np.log1p(1.0 + np.array([int(i[1:]) for i in store.items_raw_id[1:]]))
    np.testing.assert_allclose(
        store.items_dense[1:, 0], (price - price.mean()) / price.std(), atol=1e-5
    )


def test_the_example_is_a_whole_experiment(example):
    experiment = example.get_config("no_distill")
    experiment.validate()
    assert isinstance(experiment, schema.Experiment)
    assert experiment.loss.distill_weight == 0
    assert isinstance(experiment.data, custom.CustomConfig)


def test_parquet_files_give_the_same_examples_and_features(example, tmp_path):
    write(tmp_path / "raw")
    from_csv = prepare(example.data_config(), tmp_path, "from_csv")
    typed = make_log().with_columns(
        pl.col("time").str.to_datetime(), pl.col("page").cast(pl.Categorical)
    )
    write(tmp_path / "raw", log=typed, suffix="parquet")
    section = example.data_config()
    section.log_files = ("log.parquet",)
    section.users_file, section.items_file = "users.parquet", "items.parquet"
    from_parquet = prepare(section, tmp_path, "from_parquet")
    assert from_parquet.data_hash == from_csv.data_hash


def simple(**changes):
    values = {"user_id": "user", "item_id": "item", "scenario": "page", "time_unit": "iso"}
    return custom.CustomConfig(**(values | changes))


def test_integer_ids_of_parquet_are_the_texts_of_csv(tmp_path):
    log = make_log().with_columns(pl.col("user").str.slice(1), pl.col("item").str.slice(1))
    write(tmp_path / "raw", log=log)
    users = make_users().with_columns(pl.col("user").str.slice(1).cast(pl.Int32))
    users.write_parquet(tmp_path / "raw" / "users.parquet")
    section = simple(users_file="users.parquet", user_sparse=("country",), scenarios=PAGES)
    store = prepare(section, tmp_path)
    assert store.users_raw_id[1:].tolist() == sorted(str(i) for i in range(30))


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1000)])
def test_times_may_be_unix_seconds_or_milliseconds(unit, factor, tmp_path):
    log = make_log()
    write(tmp_path / "raw", log=log)
    by_text = prepare(simple(utc_offset_hours=2.0, scenarios=PAGES), tmp_path, "by_text")
    number = log.with_columns(time=(pl.col("second") + START_S) * factor + (factor > 1) * 999)
    write(tmp_path / "raw", log=number)
    section = simple(time_unit=unit, utc_offset_hours=2.0, scenarios=PAGES)
    by_number = prepare(section, tmp_path, "by_number")
    assert pairs(by_number) == pairs(by_text)
    assert by_number.manifest["split"] == by_text.manifest["split"]


def test_the_clock_decides_the_day(tmp_path):
    write(tmp_path / "raw", log=make_log().with_columns(pl.col("second") + START_S))
    days = {}
    for hours in (0.0, 2.0, -12.0):
        section = simple(time="second", time_unit="s", utc_offset_hours=hours, scenarios=PAGES)
        split = prepare(section, tmp_path, f"at{hours}").manifest["split"]
        days[hours] = (split["train"]["days"][0], split["test"]["days"][-1])
    assert days[2.0] == ("2024-05-01", "2024-05-20")
    assert days[0.0] == ("2024-04-30", "2024-05-20")
    assert days[-12.0] == ("2024-04-30", "2024-05-20")


def test_without_tables_users_and_items_are_those_that_occur(tmp_path):
    write(tmp_path / "raw")
    store = prepare(simple(positive="action == buy"), tmp_path)
    bought = make_log().filter(pl.col("action") == "buy")
    assert set(store.users_raw_id[1:].tolist()) == set(bought["user"])
    assert set(store.items_raw_id[1:].tolist()) == set(bought["item"])
    # All values are scenarios, the most frequent first.
    assert store.manifest["scenarios"] == ["home", "search", "cart", "help"]


def test_all_items_of_the_table_are_candidates(tmp_path):
    write(tmp_path / "raw", items=make_items(26))
    store = prepare(simple(items_file="items.csv", item_dense=("price",)), tmp_path)
    assert store.spec.num_items == 27


def test_every_row_is_a_positive_without_a_condition(tmp_path):
    write(tmp_path / "raw")
    store = prepare(simple(), tmp_path)
    assert sum(part["examples"] for part in store.manifest["split"].values()) == 900


def test_rows_that_are_no_positives_are_exposures_if_asked_for(tmp_path):
    log = make_log().with_columns(pl.when(pl.col("second") % 3 > 0).then(pl.col("action")))
    write(tmp_path / "raw", log=log)
    fields = {"positive": "action == buy", "scenarios": PAGES}
    plain = prepare(simple(**fields), tmp_path, "plain")
    store = prepare(simple(**fields, exposures=True), tmp_path, "shown")
    np.testing.assert_array_equal(store.train_NC[:, :-2], plain.train_NC)
    users, items = (ids[1:].tolist() for ids in (store.users_raw_id, store.items_raw_id))
    # An empty cell is no positive.
    shown = log.filter(
        pl.col("action").ne_missing("buy")
        & pl.col("user").is_in(users)
        & pl.col("item").is_in(items)
    )
    assert shown["action"].null_count() > 100
    assert store.manifest["counts"]["exposures"] == shown.height
    counted = shown.filter((pl.col("second") < 16 * DAY_S) & pl.col("page").is_in(PAGES))
    train_s = store.queries("validation").rows_QC[0, store.columns["time_s"]]
    daily_RF = store.load("daily")
    daily_RF = daily_RF[daily_RF[:, 0] < train_s]
    count_SV = np.zeros((len(PAGES), len(store.items_raw_id)))
    np.add.at(count_SV, (daily_RF[:, 1], daily_RF[:, 2]), daily_RF[:, 4])
    for s, page in enumerate(PAGES):
        for row, item in enumerate(store.items_raw_id[1:].tolist(), start=1):
            rows = counted.filter((pl.col("page") == page) & (pl.col("item") == item))
            assert count_SV[s, row] == rows.height


def test_the_scenario_may_belong_to_the_user(tmp_path):
    write(tmp_path / "raw")
    section = simple(
        scenario="country", scenario_in_users=True, users_file="users.csv", user_dense=("age",)
    )
    store = prepare(section, tmp_path)
    assert set(store.manifest["scenarios"]) == {"DE", "FR"}
    country = dict(make_users().select("user", "country").iter_rows())
    for user, _, scenario, _ in pairs(store):
        assert store.manifest["scenarios"][scenario] == country[user]
    assert len(pairs(store)) == make_log().filter(
        (pl.col("second") < 16 * DAY_S) & ~pl.col("user").str.slice(1).cast(int).mod(3).eq(2)
    ).height  # fmt: skip


def test_rows_without_a_scenario_are_left_out(tmp_path):
    log = make_log().with_columns(
        pl.when(pl.col("page") != "help").then(pl.col("page")).alias("page")
    )
    write(tmp_path / "raw", log=log)
    store = prepare(simple(), tmp_path)
    assert store.manifest["scenarios"] == list(PAGES)
    assert (
        sum(part["examples"] for part in store.manifest["split"].values())
        == log.drop_nulls("page").height
    )


def test_a_pattern_takes_all_its_log_files(tmp_path):
    write(tmp_path / "raw")
    whole = prepare(simple(), tmp_path, "whole")
    log = make_log()
    (tmp_path / "raw" / "log.csv").unlink()
    log[:500].write_csv(tmp_path / "raw" / "part_1.csv")
    log[500:].write_parquet(tmp_path / "raw" / "part_2.parquet")
    parts = prepare(simple(log_files=("part_*",)), tmp_path, "parts")
    assert parts.data_hash == whole.data_hash


BAD_FILES = {
    "user unknown": (
        {"log": make_log().with_columns(pl.col("user").replace("u3", "u99"))},
        {"users_file": "users.csv"},
        r"log\.csv: row \d+, column 'user': expected an id that is in users\.csv, got 'u99'",
    ),
    "item unknown": (
        {"items": make_items(19)},
        {"items_file": "items.csv"},
        r"log\.csv: row \d+, column 'item': expected an id that is in items\.csv, got 'i19'",
    ),
    "user twice": (
        {"users": pl.concat([make_users(), make_users()[:1]])},
        {"users_file": "users.csv"},
        r"users\.csv: row 32, column 'user': expected every id once, got 'u0' again \(first in "
        r"row 2\)",
    ),
    "no time": (
        {"log": make_log().with_columns(time=pl.lit("soon"))},
        {},
        r"log\.csv: row 2, column 'time': expected a time like 2024-05-01T12:30:00, from 1970 to "
        r"2037, got 'soon'; correct or remove",
    ),
    "milliseconds as seconds": (
        {"log": make_log().with_columns(time=(pl.col("second") + START_S) * 1000)},
        {"time_unit": "s"},
        r"row 2, column 'time': expected unix seconds from 1 to 2147483646, got 1714\d+; "
        r"this looks like milliseconds: set data\.time_unit='ms'",
    ),
    "text as seconds": (
        {},
        {"time_unit": "s"},
        r"row 2, column 'time': expected unix seconds .*, got '2024-05-01T.*data\.time_unit='iso'",
    ),
    "column missing": (
        {},
        {"scenario": "tab"},
        r"log\.csv: row 1, column 'tab': expected it in the header",
    ),
    "number missing": (
        {"items": make_items().with_columns(price=pl.lit("cheap"))},
        {"items_file": "items.csv", "item_log_dense": ("price",)},
        r"items\.csv: row 2, column 'price': expected a finite number >= 0 or nothing, got 'cheap'",
    ),
    "negative log": (
        {"items": make_items().with_columns(price=-pl.col("price"))},
        {"items_file": "items.csv", "item_log_dense": ("price",)},
        r"items\.csv: row 2, column 'price': expected a finite number >= 0 or nothing, got -1\.0",
    ),
    "condition on text": (
        {},
        {"positive": "action >= 1"},
        r"row 2, column 'action': expected a finite number or nothing, got '(buy|view)'",
    ),
    "scenario nobody uses": (
        {},
        {"scenarios": ("home", "moon")},
        r"scenario 'moon': expected at least one training positive",
    ),
    "nothing positive": ({}, {"positive": "action == sell"}, r"positives: expected at least one"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_and_leave_nothing(case, tmp_path):
    tables, fields, match = BAD_FILES[case]
    write(tmp_path / "raw", **tables)
    with pytest.raises(ValueError, match=match) as caught:
        prepare(simple(**fields), tmp_path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("clock", "name", "days", "test_start_s"),
    [
        # The last row is half an hour before midnight in Berlin, whose clock was set back on 27th.
        ({"time_zone": "Europe/Berlin"}, "Europe/Berlin", ["2024-10-28", "2024-10-29"], 1730070000),
        ({"utc_offset_hours": 2.0}, "UTC+2 h", ["2024-10-29", "2024-10-30"], 1730152800),
    ],
)
def test_days_and_queries_follow_the_clock(tmp_path, clock, name, days, test_start_s, capsys):
    # From 2024-10-10 00:00 in Berlin on.
    log = make_log().with_columns(second=pl.col("second").cast(pl.Int64) + 1_728_511_200)
    late = log.tail(1).with_columns(
        second=pl.lit(1_730_239_200 + 1800, pl.Int64), action=pl.lit("buy")
    )
    write(tmp_path / "raw", log=pl.concat([log, late]))
    section = simple(
        time="second", time_unit="s", scenarios=PAGES, validation_days=2, test_days=2, **clock
    )
    store = prepare(section, tmp_path)
    test = store.manifest["split"]["test"]
    assert test["days"] == days
    assert test.get("time_zone") == clock.get("time_zone")
    assert f"days of {name}: train 2024-10-10 to " in capsys.readouterr().out
    time_Q = store.queries("test").rows_QC[:, store.columns["time_s"]]
    assert set(time_Q.tolist()) == {test_start_s}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"time_unit": "min"},
            r"data\.time_unit: expected 's', 'ms', 'us', 'ns' or 'iso', got 'min'",
        ),
        (
            {"time_zone": "Europe/Berlin", "utc_offset_hours": 2.0},
            r"data\.time_zone: expected nothing beside data\.utc_offset_hours=2, got 'Europe/B",
        ),
        ({"time_zone": "Berlin"}, r"data\.time_zone: .* got 'Berlin'; nearest: 'Europe/Berlin'$"),
        ({"utc_offset_hours": 30.0}, r"data\.utc_offset_hours: expected between -24 and 24"),
        ({"scenarios": ("a", "a")}, r"data\.scenarios: expected distinct values"),
        ({"positive": "stars"}, r"data\.positive: expected a column"),
        ({"exposures": True}, r"data\.exposures: expected False without data\.positive, which"),
        ({"positive": "page == home"}, r"data\.positive: expected a column that is neither id"),
        ({"bag_separator": ""}, r"data\.bag_separator: expected a separator"),
        ({"log_files": ()}, r"data\.log_files: expected at least one"),
        ({"log_files": ("none_*.csv",)}, r"data\.log_files: expected .*none_\*\.csv to exist"),
        ({"users_file": "people.csv"}, r"data\.users_file: expected .*people\.csv to exist"),
        ({"user_dense": ("age",)}, r"data\.users_file: expected a file with the columns age"),
        ({"scenario_in_users": True}, r"data\.users_file: expected a file with the columns page"),
        (
            {"items_file": "items.csv", "item_sparse": ("brand",), "item_bags": ("brand",)},
            r"data\.item_sparse, .*expected each column once .*got 'brand'",
        ),
        (
            {"items_file": "items.csv", "item_sparse": ("item",)},
            r"not the id, which is a feature by itself, got 'item'",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, match, tmp_path):
    write(tmp_path / "raw")
    with pytest.raises(ValueError, match=match) as caught:
        prepare(simple(**fields), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    for raw_dir in ("", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=r"data\.raw_dir: expected a folder with log\.csv"):
            simple(raw_dir=raw_dir).prepare(str(tmp_path / "store"))
