import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.data.prepare import entities, histories

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
    return histories.number_positives(frame, USERS, ITEMS, num_scenarios=2, last_day=last_day)


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
    history = histories.make_history(number(ROWS), earlier, USERS, ITEMS)
    np.testing.assert_array_equal(history.key_E, [1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(history.item_E, [3, 2, 3, 1, 3, 1, 2, 1])
    np.testing.assert_array_equal(history.time_E, [0, 90, 90, 80, 0, 0, 300, 500])


def test_scenario_histories_are_kept_apart():
    history = histories.make_scenario_history(number(ROWS), num_scenarios=2)
    np.testing.assert_array_equal(history.key_E, [2, 2, 3, 4, 5])
    np.testing.assert_array_equal(history.item_E, [2, 1, 3, 1, 2])


def columns(rows, width):
    return [np.array(column, np.int64) for column in zip(*rows, strict=True)] or [
        np.zeros(0, np.int64)
    ] * width


def past_by_definition(events, key, day, time):
    """The longest prefix of the key's events that all lie before both limits, one by one."""
    past = []
    for event in [e for e in events if e[0] == key]:
        if not (event[2] < time and event[1] <= day):
            break
        past.append(event)
    return past


def test_literal_windows():
    #                key day time
    events = columns([(1, 0, 0), (1, 5, 50), (1, 6, 61), (1, 6, 63), (4, 5, 52)], 3)
    rows = columns([(1, 6, 61), (1, 6, 62), (1, 5, 99), (4, 5, 52), (4, 5, 53), (2, 9, 9)], 3)
    start, stop = histories.find_windows(*events, *rows)
    np.testing.assert_array_equal(start, [0, 0, 0, 4, 4, 4])
    np.testing.assert_array_equal(stop, [2, 3, 2, 4, 5, 4])


def test_a_clock_ahead_of_its_day_hides_what_follows():
    # The event of day 5 carries a later time than that of day 6, which comes after it.
    events = columns([(1, 5, 600), (1, 6, 590)], 3)
    _, stop = histories.find_windows(*events, *columns([(1, 6, 595), (1, 6, 601), (1, 5, 601)], 3))
    np.testing.assert_array_equal(stop, [0, 2, 1])


def test_the_end_of_a_day_takes_everything_up_to_it():
    events = columns([(1, 5, 600), (1, 6, 590), (1, 7, 710)], 3)
    rows = columns([(1, 6, histories.END_OF_DAY), (1, 4, histories.END_OF_DAY)], 3)
    _, stop = histories.find_windows(*events, *rows)
    np.testing.assert_array_equal(stop, [2, 0])


def test_no_events_give_empty_windows():
    start, stop = histories.find_windows(*columns([], 3), *columns([(1, 2, 3)], 3))
    assert (start[0], stop[0]) == (0, 0)


ROW = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9))


@settings(max_examples=200, deadline=None)
@given(st.lists(ROW, max_size=30), st.lists(ROW, min_size=1, max_size=10))
def test_windows_equal_their_definition(events, rows):
    events.sort()
    start, stop = histories.find_windows(*columns(events, 3), *columns(rows, 3))
    for (key, day, time), low, high in zip(rows, start, stop, strict=True):
        assert events[low:high] == past_by_definition(events, key, day, time)


def ragged(rows, q):
    return rows.items[rows.indptr[q] : rows.indptr[q + 1]].tolist()


def test_literal_queries():
    #        user scenario item split before train
    rows = [
        (1, 0, 5, False, True, True),
        (1, 1, 7, False, True, True),
        (1, 0, 7, True, False, False),  # clicked before, in another scenario: not relevant
        (1, 0, 9, True, False, False),
        (1, 0, 8, True, False, False),
        (1, 0, 8, True, False, False),  # twice
        (2, 1, 5, True, False, False),  # never clicked before
        (3, 1, 6, False, True, False),  # before, but in validation: cold, and seen
        (3, 1, 4, True, False, False),
        (4, 0, 3, False, True, True),
        (4, 0, 3, True, False, False),  # nothing relevant left: no query
    ]
    user, scenario, item, split, before, train = (np.array(c) for c in zip(*rows, strict=True))
    queries = histories.make_queries(user, scenario, item, split, before, train, num_items=10)
    np.testing.assert_array_equal(queries.user_Q, [1, 2, 3])
    np.testing.assert_array_equal(queries.scenario_Q, [0, 1, 1])
    assert [ragged(queries.relevant, q) for q in range(3)] == [[8, 9], [5], [4]]
    assert [ragged(queries.seen, q) for q in range(3)] == [[5, 7], [], [6]]
    np.testing.assert_array_equal(queries.cold_Q, [False, True, True])
    assert queries.relevant.items.dtype == np.int32
    assert queries.relevant.indptr.dtype == np.int64


def test_with_repeats_what_was_seen_is_relevant_again():
    user, scenario = np.array([1, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 0])
    item, split = np.array([5, 5, 7, 3, 3]), np.array([False, True, True, False, True])
    queries = histories.make_queries(
        user, scenario, item, split, ~split, ~split, num_items=10, repeats=True
    )
    np.testing.assert_array_equal(queries.user_Q, [1, 1, 2])
    assert [ragged(queries.relevant, q) for q in range(3)] == [[5], [7], [3]]
    # What was seen stays what it is.
    assert [ragged(queries.seen, q) for q in range(3)] == [[5], [5], [3]]


POSITIVE = st.tuples(
    st.integers(1, 4), st.integers(0, 2), st.integers(1, 6), st.integers(0, 3)
)  # user, scenario, item, day: 0, 1 train, 2 validation, 3 test


@pytest.mark.parametrize("first_day", [2, 3])
@settings(max_examples=100, deadline=None)
@given(positives=st.lists(POSITIVE, min_size=1, max_size=40))
def test_queries_equal_their_definition(positives, first_day):
    user, scenario, item, day = (np.array(c, np.int64) for c in zip(*positives, strict=True))
    queries = histories.make_queries(
        user, scenario, item, day == first_day, day < first_day, day < 2, num_items=7
    )
    expected = {}
    for u, s, i, d in positives:
        seen = {item for user, _, item, day in positives if user == u and day < first_day}
        if d == first_day and i not in seen:
            relevant, _, _ = expected.setdefault((u, s), (set(), seen, None))
            relevant.add(i)
    found = {}
    for q in range(len(queries.user_Q)):
        pair = (int(queries.user_Q[q]), int(queries.scenario_Q[q]))
        relevant, seen = ragged(queries.relevant, q), ragged(queries.seen, q)
        assert relevant == sorted(set(relevant)) and seen == sorted(set(seen))
        found[pair] = (set(relevant), set(seen), None)
        trained = any(u == pair[0] and d < 2 for u, _, _, d in positives)
        assert queries.cold_Q[q] == (not trained)
    assert found == expected
    assert list(found) == sorted(found)
