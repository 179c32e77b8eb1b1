import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import clocks, histories, splits
from tests.data.prepare import test_histories

number, ROWS = test_histories.number, test_histories.ROWS
BY_DAY = splits.ByDay([1, 2], [3], [4], with_rows={1, 2, 3, 4}, clock=clocks.Clock(3_600))
LEAVE_ONE_OUT = splits.LeaveOneOut()


def check(positives, rule, scenarios):
    queries = {
        split: splits.split_queries(positives, rule, split, num_items=6)
        for split in store_lib.SPLITS
    }
    splits.check(splits.count(positives, rule, queries, scenarios), rule)


def test_by_day_training_rows_end_before_themselves_and_queries_before_their_split():
    positives = number(ROWS)
    train = BY_DAY.train_rows(positives)
    np.testing.assert_array_equal(train.before_X, [90, 90, 80])
    np.testing.assert_array_equal(train.day_X, [1, 1, 2])
    query = splits.split_queries(positives, BY_DAY, "test", num_items=4)
    rows = BY_DAY.query_rows(positives, query, "test")
    np.testing.assert_array_equal(rows.user_X, [2])
    np.testing.assert_array_equal(rows.item_X, [0])
    np.testing.assert_array_equal(rows.time_X, [4 * 86_400 - 3_600])
    np.testing.assert_array_equal(rows.before_X, [histories.END_OF_DAY])
    np.testing.assert_array_equal(rows.day_X, [3])


def test_splits_by_day_are_described_with_iso_days():
    assert splits.describe(splits.spans(number(ROWS), BY_DAY), BY_DAY) == {
        "train": {"days": ["1970-01-02", "1970-01-03"], "examples": 3},
        "validation": {"days": ["1970-01-04"], "examples": 1},
        "test": {"days": ["1970-01-05"], "examples": 1},
    }


# User 1 has four positives, of which the second and third share a second; user 2 has two.
SEQUENCES = histories.Positives(
    user_E=np.array([1, 1, 1, 1, 2, 2]),
    scenario_E=np.array([0, 1, 0, 1, 0, 0]),
    item_E=np.array([3, 1, 2, 5, 4, 3]),
    time_E=np.array([100, 200, 200, 300, 50, 90_000]),
    day_E=np.array([1, 1, 1, 1, 1, 2]),
)


def test_the_last_positive_tests_and_the_one_before_validates():
    positives = LEAVE_ONE_OUT.order(SEQUENCES)
    np.testing.assert_array_equal(positives.day_E, [1, 2, 3, 4, 1, 2])
    expected = {
        "train": [1, 1, 0, 0, 1, 1],
        "validation": [0, 0, 1, 0, 0, 0],
        "test": [0, 0, 0, 1, 0, 0],
    }
    for split, members in expected.items():
        np.testing.assert_array_equal(LEAVE_ONE_OUT.members(positives, split), members)
    np.testing.assert_array_equal(LEAVE_ONE_OUT.before(positives, "validation"), [1, 1, 0, 0, 1, 1])
    np.testing.assert_array_equal(LEAVE_ONE_OUT.before(positives, "test"), [1, 1, 1, 0, 1, 1])


def test_a_query_is_asked_in_the_second_of_what_is_held_out_and_knows_all_before():
    positives = LEAVE_ONE_OUT.order(SEQUENCES)
    for split, time_s, known, relevant, seen, scenario in (
        ("validation", 200, 2, [2], [1, 3], 0),
        ("test", 300, 3, [5], [1, 2, 3], 1),
    ):
        query = splits.split_queries(positives, LEAVE_ONE_OUT, split, num_items=6)
        assert query.relevant.items.tolist() == relevant
        assert query.seen.items.tolist() == seen
        assert query.scenario_Q.tolist() == [scenario] and not query.cold_Q.any()
        rows = LEAVE_ONE_OUT.query_rows(positives, query, split)
        values = (rows.user_X, rows.item_X, rows.time_X, rows.before_X, rows.day_X)
        assert [int(v[0]) for v in values] == [1, 0, time_s, histories.END_OF_DAY, known]


def test_training_rows_know_what_came_before_in_the_same_second():
    positives = LEAVE_ONE_OUT.order(SEQUENCES)._replace(time_E=np.full(6, 7))
    rows = LEAVE_ONE_OUT.train_rows(positives)
    np.testing.assert_array_equal(rows.item_X, [3, 1, 4, 3])
    np.testing.assert_array_equal(rows.day_X, [0, 1, 0, 1])
    start, stop = histories.find_windows(
        positives.user_E, positives.day_E, positives.time_E, rows.user_X, rows.day_X, rows.before_X
    )
    np.testing.assert_array_equal(start, [0, 0, 4, 4])
    np.testing.assert_array_equal(stop, [0, 1, 4, 5])


def test_left_out_splits_are_described_with_their_first_and_last_day():
    found = splits.spans(LEAVE_ONE_OUT.order(SEQUENCES), LEAVE_ONE_OUT)
    assert splits.describe(found, LEAVE_ONE_OUT) == {
        "train": {"days": ["1970-01-01", "1970-01-02"], "examples": 4},
        "validation": {"days": ["1970-01-01", "1970-01-01"], "examples": 1},
        "test": {"days": ["1970-01-01", "1970-01-01"], "examples": 1},
    }


def test_users_with_too_few_positives_alone_are_refused():
    few = LEAVE_ONE_OUT.order(histories.Positives(*(values[4:] for values in SEQUENCES)))
    with pytest.raises(ValueError, match=r"split 'validation': .* add users with at least 3 pos"):
        check(few, LEAVE_ONE_OUT, ("A", "B"))


def test_a_held_out_repetition_is_no_query():
    positives = SEQUENCES._replace(
        item_E=np.array([3, 1, 2, 3, 4, 3]), scenario_E=np.zeros(6, np.int64)
    )
    positives = LEAVE_ONE_OUT.order(positives)
    query = splits.split_queries(positives, LEAVE_ONE_OUT, "test", num_items=6)
    assert not len(query.user_Q)
    with pytest.raises(ValueError, match=r"scenario 'A': .* one test query .* or leave"):
        check(positives, LEAVE_ONE_OUT, ("A",))


@pytest.mark.parametrize("rule", [BY_DAY, LEAVE_ONE_OUT])
def test_no_positive_at_all_is_refused(rule):
    with pytest.raises(ValueError, match="expected at least one in the kept scenarios, got none"):
        check(number([]), rule, ("A", "B"))


def test_left_out_splits_are_described_by_their_clock():
    # 90,000 s is 01:00 on 1970-01-02 in UTC and 20:00 on 1970-01-01 in New York.
    rule = splits.LeaveOneOut(clocks.Clock(zone="America/New_York"))
    found = splits.describe(splits.spans(rule.order(SEQUENCES), rule), rule)
    assert found["train"] == {
        "days": ["1969-12-31", "1970-01-01"], "examples": 4, "time_zone": "America/New_York",
    }  # fmt: skip
