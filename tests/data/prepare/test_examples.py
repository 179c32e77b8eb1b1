import numpy as np
import polars as pl

from dsmoe_jax.data.prepare import entities, examples

USERS = entities.encode_table(entities.Table(pl.DataFrame({"id": [10, 20]}), "id"), "user_id", {})
ITEMS = entities.encode_table(entities.Table(pl.DataFrame({"id": [1, 2, 3]}), "id"), "item_id", {})


def number(rows, last_day=4):
    frame = pl.DataFrame(
        rows,
        schema={
            "user": pl.Int64,
            "item": pl.Int64,
            "scenario": pl.Int64,
            "time_s": pl.Int64,
            "day": pl.Int32,
        },
        orient="row",
    ).with_columns(pl.col("day").cast(pl.Date))
    return examples.number_positives(frame, USERS, ITEMS, num_scenarios=2, last_day=last_day)


ROWS = [
    (20, 1, 0, 500, 4),
    (10, 3, 1, 90, 1),
    (10, 1, 0, 80, 2),  # later by its day, though its clock is behind
    (20, 2, 1, 300, 3),
    (10, 3, 1, 90, 1),  # a repetition
    (10, 2, 0, 90, 1),
]


def test_positives_are_numbered_distinct_and_in_order():
    positives = number(ROWS)
    np.testing.assert_array_equal(positives.user_E, [1, 1, 1, 2, 2])
    np.testing.assert_array_equal(positives.item_E, [2, 3, 1, 2, 1])
    np.testing.assert_array_equal(positives.scenario_E, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(positives.time_E, [90, 90, 80, 300, 500])
    np.testing.assert_array_equal(positives.day_E, [1, 1, 2, 3, 4])


def test_positives_after_the_last_day_are_left_out():
    np.testing.assert_array_equal(number(ROWS, last_day=2).day_E, [1, 1, 2])


def test_earlier_clicks_open_the_history_in_their_order():
    earlier = pl.DataFrame({"user": [20, 10, 20], "item": [3, 3, 1]})
    history = examples.make_history(number(ROWS), earlier, USERS, ITEMS)
    np.testing.assert_array_equal(history.key_E, [1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(history.item_E, [3, 2, 3, 1, 3, 1, 2, 1])
    np.testing.assert_array_equal(history.time_E, [0, 90, 90, 80, 0, 0, 300, 500])


def test_scenario_histories_are_kept_apart():
    history = examples.make_scenario_history(number(ROWS), num_scenarios=2)
    np.testing.assert_array_equal(history.key_E, [2, 2, 3, 4, 5])
    np.testing.assert_array_equal(history.item_E, [2, 1, 3, 1, 2])
