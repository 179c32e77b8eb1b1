"""Settings of own logs: unknown ids, rare scenarios, names, days, and what no array should hold."""

import datetime

import numpy as np
import polars as pl
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom, entities

SECOND, DAY_S = 1_714_521_600, 86_400
FIELDS = {"user_id": "user", "item_id": "item", "scenario": "page", "validation_days": 1}


def log_of(days=10, users=4, pages=("home", "search")):
    """Every user clicks a new item on every page every day."""
    rows = [
        (f"u{u}", f"i{(d * 7 + u * 3 + p * 5) % 40}_{d}", SECOND + d * DAY_S + u, page)
        for d in range(days)
        for u in range(users)
        for p, page in enumerate(pages)
    ]
    return pl.DataFrame(rows, ["user", "item", "time", "page"], orient="row")


def prepare(tmp_path, log=None, users=None, items=None, name="store", **fields):
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    tables = {"log": log_of() if log is None else log, "users": users, "items": items}
    for table, frame in tables.items():
        if frame is not None:
            frame.write_parquet(raw / f"{table}.parquet")
            fields.setdefault(f"{table}_file", f"{table}.parquet")
    fields.pop("log_file")
    section = custom.CustomConfig(
        raw_dir=str(raw), log_files=("log.parquet",), **({"test_days": 1} | FIELDS | fields)
    )
    section.prepare(str(tmp_path / name))
    return store_lib.Store.open(tmp_path / name)


def items_of(log):
    return pl.DataFrame({"item": log["item"].unique().sort()}).with_columns(
        price=pl.int_range(pl.len()), brand=pl.lit("b") + (pl.int_range(pl.len()) % 3).cast(str)
    )


@pytest.mark.parametrize(("policy", "positives"), [("drop", 79), ("keep", 80)])
def test_positives_of_unknown_items_are_refused_dropped_or_kept(
    policy, positives, tmp_path, capsys
):
    log = log_of()
    items = items_of(log)
    unknown = log["item"][5]
    items = items.filter(pl.col("item") != unknown)
    fields = {"item_sparse": ("brand",), "item_dense": ("price",)}
    with pytest.raises(ValueError, match=r"row 6, column 'item': .*data\.unknown_items to 'drop'"):
        prepare(tmp_path, log, items=items, **fields)
    store = prepare(tmp_path, log, items=items, unknown_items=policy, **fields)
    split = store.manifest["split"]
    assert sum(entry["examples"] for entry in split.values()) == positives
    known = store.items_raw_id.tolist()
    assert (unknown in known) == (policy == "keep")
    if policy == "keep":
        row = known.index(unknown)
        assert (store.items_sparse[row, 1], store.items_dense[row, 0]) == (0, 0)
    shown = {"drop": "dropped", "keep": "kept without features"}[policy]
    assert (
        f"log: 1 positives whose item is not in items.parquet, {shown}" in capsys.readouterr().out
    )


def test_a_table_may_call_its_ids_otherwise_and_share_names_with_the_other(tmp_path, capsys):
    log = log_of()
    items = items_of(log).rename({"item": "sku", "brand": "country"})
    users = pl.DataFrame({"id": [f"u{u}" for u in range(4)], "country": ["DE", "FR", "DE", "IT"]})
    store = prepare(
        tmp_path,
        log,
        users=users,
        items=items,
        users_key="id",
        items_key="sku",
        user_sparse=("country",),
        item_sparse=("country",),
    )
    assert [f.name for f in store.spec.user_sparse] == ["user_id", "user_country"]
    assert [f.name for f in store.spec.item_sparse] == ["item_id", "item_country"]
    assert store.load("vocabulary_user_country").tolist() == ["", "DE", "FR", "IT"]
    assert "users: column 'country' is the feature 'user_country'" in capsys.readouterr().out


def test_a_column_with_a_long_name_or_a_slash_is_a_feature(tmp_path):
    log = log_of()
    long = "x" * 250
    items = items_of(log).rename({"brand": long}).with_columns(tags=pl.lit("a,b"))
    items = items.rename({"tags": "tags/all"})
    store = prepare(tmp_path, log, items=items, item_sparse=(long,), item_bags=("tags/all",))
    assert [f.name for f in store.spec.item_bags] == ["tags_all"]
    assert store.spec.item_sparse[1].name.startswith("x" * 150 + "_")


RARE = pl.DataFrame(
    [("u0", "x1", SECOND, "rare"), ("u1", "x2", SECOND + 1, "odd")],
    ["user", "item", "time", "page"],
    orient="row",
)


def test_scenarios_that_cannot_be_evaluated_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match="scenarios 'odd', 'rare': expected at least one valida"):
        prepare(tmp_path, pl.concat([log_of(), RARE]))


@pytest.mark.parametrize(
    ("rule", "scenarios", "positives", "shown"),
    [
        ("leave_out", ["home", "search"], 80, "left out, with too few positives: odd 1, rare 1"),
        ("merge", ["home", "other"], 82, "merged into 'other', with too few positives: search 9"),
    ],
)
def test_rare_scenarios_are_left_out_or_merged(rule, scenarios, positives, shown, tmp_path, capsys):
    log = log_of()
    least = 5
    if rule == "merge":
        # Every day has one of "search", so that what it is merged into can be evaluated.
        home = pl.when((pl.col("page") == "home") | (pl.col("user") != "u0"))
        log = log.with_columns(page=home.then(pl.lit("home")).otherwise(pl.lit("search")))
        log = log.with_row_index("n").filter(pl.col("n") != 1).drop("n")
        least, positives = 20, 81
    store = prepare(tmp_path, pl.concat([log, RARE]), least_positives=least, rare_scenarios=rule)
    assert list(store.spec.scenarios) == scenarios
    split = store.manifest["split"]
    assert sum(entry["examples"] for entry in split.values()) == positives
    assert f"scenarios {shown}" in capsys.readouterr().out


def test_no_scenario_is_called_as_the_mean_is(tmp_path):
    log = log_of(pages=("home", "macro"))
    with pytest.raises(ValueError, match=r"log\.parquet: column 'page': expected no scenario 'ma"):
        prepare(tmp_path, log)
    with pytest.raises(ValueError, match=r"data\.scenarios: expected another name than 'macro'"):
        prepare(tmp_path, log, scenarios=("home", "macro"))
    assert list(prepare(tmp_path, log, scenarios=("home",)).spec.scenarios) == ["home"]


def test_the_last_positive_of_every_user_can_test(tmp_path):
    store = prepare(tmp_path, log_of(pages=("home",)), split="leave_one_out")
    assert len(store.queries("test").rows_QC) == 4
    assert store.manifest["split"]["test"]["examples"] == 4


def late(year):
    return int(datetime.datetime(year, 1, 5, tzinfo=datetime.UTC).timestamp())


def with_rows(*seconds):
    """The log, and further rows of one user with an item each."""
    rows = [("u0", f"x{i}", second, "home") for i, second in enumerate(seconds)]
    return pl.concat([log_of(), pl.DataFrame(rows, log_of().columns, orient="row")])


LATE = "2037-01-05, 4,623 days after 2024-05-10"


@pytest.mark.parametrize(
    ("seconds", "fields", "match"),
    [
        (
            [late(2037)],
            {},
            rf"expected a time near the others, got the day {LATE}; .*data\.test_days",
        ),
        (
            [late(2037)],
            {"drop_last_days": 1},
            f"expected a time near the others, got the day {LATE}",
        ),
        # More rows than one look like days, which hold no query of each scenario.
        ([late(2037), late(2037) + 5 * DAY_S], {}, f"is of {LATE}: correct it"),
        ([late(2037) + d * DAY_S for d in range(3)], {}, f"is of {LATE}: correct it"),
        ([SECOND + 60 * DAY_S], {}, "is of 2024-06-30, 51 days after 2024-05-10: correct it"),
    ],
)
def test_one_row_of_another_year_does_not_become_the_test_day(tmp_path, seconds, fields, match):
    with pytest.raises(ValueError, match=rf"log\.parquet: row 81, column 'time'.* {match}"):
        prepare(tmp_path, with_rows(*seconds), **fields)


def test_days_after_a_gap_may_be_dropped(tmp_path):
    store = prepare(tmp_path, with_rows(SECOND + 110 * DAY_S), drop_last_days=101)
    assert store.manifest["split"]["test"]["days"] == ["2024-05-10"]


def test_a_late_row_that_leave_one_out_tests_is_told_and_the_days_are_named(tmp_path, capsys):
    log = log_of(pages=("home",))
    late_row = with_rows(late(2037)).tail(1)
    prepare(tmp_path, pl.concat([log, late_row]), split="leave_one_out")
    shown = capsys.readouterr().out
    assert f"log.parquet: row 41, column 'time' is of {LATE}: correct it if it is wrong" in shown
    assert "leave one out, days of UTC+0 h: train 2024-05-01 to 2024-05-09, validation " in shown
    # Logs of few days far apart are no mistake.
    sparse = log.with_columns(time=SECOND + (pl.col("time") - SECOND) * 100)
    prepare(tmp_path, sparse, split="leave_one_out")
    assert "correct it" not in capsys.readouterr().out


def test_times_that_count_from_another_moment_are_named_with_their_row(tmp_path):
    log = log_of().with_columns(time=pl.col("time") - SECOND + 5)
    match = r"log\.parquet: row 1, column 'time': expected a time after 1970-01-01, got 5; .* 1970"
    with pytest.raises(ValueError, match=match):
        prepare(tmp_path, log)


def test_a_day_of_another_year_without_positives_is_left_out_and_said_so(tmp_path, capsys):
    one = pl.DataFrame([("u0", "x1", late(2037), "")], log_of().columns, orient="row")
    store = prepare(tmp_path, pl.concat([log_of(), one]))
    assert store.manifest["split"]["test"]["days"] == ["2024-05-10"]
    shown = capsys.readouterr().out
    assert "log: 1 days from 2037-01-05 on are left out: they have no positive" in shown
    assert "days of UTC+0 h: train 2024-05-01 to 2024-05-08 (8 days, 8 with rows)" in shown


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ([1e-200, 3e-200], 2e-200, 1e-200),
        ([-1e200, 1e200, 1e200, 3e200], 1e200, np.sqrt(2) * 1e200),
        ([1.0, 3.0], 2.0, 1.0),
    ],
)
def test_numbers_of_any_size_are_standardised(values, mean, std):
    frame = pl.DataFrame({"id": range(len(values)), "x": values})
    found = entities.encode_table(entities.Table(frame, "id", dense=("x",)), "item_id", {})
    moments = found.moments["x"]
    np.testing.assert_allclose([moments["mean"], moments["std"]], [mean, std], rtol=1e-12)
    expected = (np.array(values) / std) - mean / std
    np.testing.assert_allclose(found.dense_XF[1:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("values", [[1.0, 1.0 + 2**-52], [1e-310, 3e-310]])
def test_numbers_without_a_spread_that_can_be_told_are_refused(values):
    frame = pl.DataFrame({"id": range(len(values)), "x": values})
    with pytest.raises(ValueError, match="column 'x': expected numbers with a spread"):
        entities.encode_table(entities.Table(frame, "id", dense=("x",)), "item_id", {})


def test_a_few_long_cells_among_many_short_ones_are_refused(tmp_path):
    many = pl.DataFrame({"id": range(20_000)})
    long = many.with_columns(c=pl.when(pl.col("id") == 7).then(pl.lit("x" * 20_000)).otherwise(
        pl.format("c{}", "id")))  # fmt: skip
    match = "column 'c': expected cells of about the same length, got one of 20,000 characters"
    with pytest.raises(ValueError, match=match):
        found = entities.encode_table(entities.Table(long, "id", sparse=("c",)), "item_id", {})
        entities.as_array(found.vocabularies["c"], found.where["c"])
    tags = [["a"]] * 19_999 + [[f"t{i}" for i in range(10_000)]]
    bag = many.with_columns(c=pl.Series(tags))
    with pytest.raises(ValueError, match=r"got one of 10,000 values .*set data\.bag_limit"):
        entities.encode_table(entities.Table(bag, "id", bags=("c",)), "item_id", {})
    short = bag.head(100)
    entities.encode_table(entities.Table(short, "id", bags=("c",)), "item_id", {})


def test_ids_that_differ_in_zero_characters_alone_are_refused():
    frame = pl.DataFrame({"id": ["u1", "u1\0"]})
    with pytest.raises(ValueError, match="column 'id': expected text without zero characters"):
        entities.encode_table(entities.Table(frame, "id"), "user_id", {})


def test_a_number_that_dwarfs_all_others_is_asked_about(tmp_path, capsys):
    for few, shown in (
        ([2**63 - 1], "1 cells hold 9223372036854775807, and no other is above 28"),
        ([10**6], ""),
        ([1e30, 1e33, -1e33], "3 cells hold -1e+33 to 1e+33, and no other is above 28"),
    ):
        values = pl.Series(
            [*range(29), *few], dtype=None if isinstance(few[0], int) else pl.Float64
        )
        frame = pl.DataFrame({"id": range(len(values)), "x": values})
        table = entities.Table(frame, "id", dense=("x",), source="i.csv", written={"x": "p/q"})
        entities.encode_table(table, "item_id", {})
        out = capsys.readouterr().out
        assert out.startswith(f"i.csv: column 'p/q': {shown}") if shown else not out


@pytest.mark.parametrize("values", [[0, 1] * 9, [0] * 9 + [1e-3], [1e-17] + [5.0, 6.0] * 9])
def test_truth_values_zeros_and_one_small_number_are_not_asked_about(values, capsys):
    frame = pl.DataFrame({"id": range(len(values)), "x": values}, strict=False)
    entities.encode_table(entities.Table(frame, "id", dense=("x",)), "item_id", {})
    assert not capsys.readouterr().out
