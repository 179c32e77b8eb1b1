"""Queries of a log that came after the store was written."""

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import histories, later
from tests import clicks

# (user, scenario, item, day); the last day tests, the one before validates.
CLICKS = [
    (1, 0, 1, 1),
    (1, 1, 2, 2),
    (1, 0, 3, 5),
    (2, 0, 2, 1),
    (2, 1, 4, 3),
    (2, 1, 1, 4),
    (3, 0, 4, 4),
    (3, 1, 5, 5),
]


@pytest.fixture
def store(tmp_path):
    return clicks.write_store(tmp_path / "store", CLICKS, users=4, items=6)


def positives(*rows, day=6):
    """(user, scenario, item), seconds after the beginning of a day."""
    user, scenario, item = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "user": user,
        "item": item,
        "scenario": scenario,
        "time_s": day * clicks.DAY_S + np.arange(len(rows)),
    }


def found(store, name, query):
    """The items of a query's history."""
    table = store.queries("later")
    row = table.rows_QC[query]
    start, stop = (row[store.columns[name.format(bound)]] for bound in ("start", "stop"))
    return store.sequences[name.partition("_{}")[0]][0][start:stop, 0].tolist()


def test_queries_are_users_in_scenarios_with_what_they_had_not_clicked(store):
    view = later.add_queries(store, positives((1, "A", 4), (1, "A", 1), (2, "B", 5), (1, "B", 6)))
    table = view.queries("later")
    columns = [store.columns[name] for name in ("user", "scenario", "item")]
    assert table.rows_QC[:, columns].tolist() == [[1, 0, 0], [1, 1, 0], [2, 1, 0]]
    assert np.split(table.relevant.items, table.relevant.indptr[1:-1])[0].tolist() == [4]
    seen = [part.tolist() for part in np.split(table.seen.items, table.seen.indptr[1:-1])]
    assert seen == [[1, 2, 3], [1, 2, 3], [1, 2, 4]]
    assert table.cold_Q.tolist() == [False, False, False]
    # The store's own queries stay.
    assert len(store.queries("test").rows_QC) == 2


def test_a_store_with_repeats_finds_them_in_a_later_log(tmp_path):
    store = clicks.write_store(tmp_path / "again", CLICKS, users=4, items=6, repeats=True)
    view = later.add_queries(store, positives((1, "A", 4), (1, "A", 1)))
    assert view.queries("later").relevant.items.tolist() == [1, 4]


def test_histories_hold_the_whole_store_before_the_log(store):
    view = later.add_queries(store, positives((1, "A", 4), (3, "B", 1), (2, "A", 5)))
    assert [found(view, "history_{}", q) for q in range(3)] == [[1, 2, 3], [2, 4, 1], [4, 5]]
    assert [found(view, "scenario_history_{}_0", q) for q in range(3)] == [[1, 3], [2], [4]]
    assert [found(view, "scenario_history_{}_1", q) for q in range(3)] == [[2], [4, 1], [5]]
    assert view.queries("later").cold_Q.tolist() == [False, False, True]


def test_nothing_from_after_the_first_of_them_is_history_or_seen(store):
    view = later.add_queries(store, positives((1, "A", 3), (2, "A", 5), day=3))
    assert [found(view, "history_{}", q) for q in range(2)] == [[1, 2], [2]]
    assert view.queries("later").relevant.items.tolist() == [3, 5]


def test_unknown_users_items_and_scenarios_are_left_out(store):
    rows = [(9, "A", 4), (1, "C", 4), (1, "A", 99), (1, "A", 4)]
    assert len(later.add_queries(store, positives(*rows)).queries("later").rows_QC) == 1
    with pytest.raises(ValueError, match="known user, item and scenario, got none among 3"):
        later.add_queries(store, positives(*rows[:3]))


def test_a_log_of_what_was_seen_has_nothing_to_find(store):
    with pytest.raises(ValueError, match="had not clicked before, got none"):
        later.add_queries(store, positives((1, "A", 1)))


def test_the_stores_own_windows_are_found_again(store):
    rows_QC = store.queries("test").rows_QC
    start_s = int(rows_QC[0, store.columns["time_s"]])
    sequence = later.read_sequence(store, store_lib.Windows("history"))
    no_Q = np.zeros(len(rows_QC), np.int64)
    [(start_Q, stop_Q)] = sequence.find(
        [
            histories.Rows(
                rows_QC[:, store.columns["user"]], no_Q, no_Q, no_Q, no_Q + start_s, day_X=no_Q
            )
        ]
    )
    assert start_Q.tolist() == rows_QC[:, store.columns["history_start"]].tolist()
    assert stop_Q.tolist() == rows_QC[:, store.columns["history_stop"]].tolist()
