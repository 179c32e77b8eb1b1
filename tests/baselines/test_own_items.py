"""Baselines of a user's own items, by literal values."""

import numpy as np
import pytest

from dsmoe_jax.baselines import builtin, own_items
from dsmoe_jax.config import schema
from tests import clicks

# (user, scenario, item, day); days 1 and 2 train, 3 validates, 4 tests.
CLICKS = [
    (1, 0, 2, 1), (1, 0, 3, 1), (2, 0, 5, 1), (1, 0, 2, 2), (1, 0, 4, 2), (2, 0, 5, 2),
    (1, 0, 3, 3), (2, 0, 5, 3), (3, 0, 6, 3), (1, 0, 2, 4), (2, 0, 5, 4), (3, 0, 1, 4),
]  # fmt: skip
# Clicks before the validation day: item 2 twice, 3 and 4 once, 5 twice.
OTHER = [0, 0, 2 / 3, 1 / 3, 1 / 3, 2 / 3, 0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("own_items") / "store"
    return clicks.write_store(path, CLICKS, users=3, items=6, scenarios=("A",), repeats=True)


def scores(make, store, split):
    """Of users 1, 2 and 3, who have a query each."""
    return make(store)(split, np.arange(3))


@pytest.mark.parametrize(
    ("make", "split", "expected"),
    [
        # User 1 clicked 2, 3, 2, 4, and on the validation day 3.
        (own_items.make_most_recent, "validation", {2: 2, 3: 1, 4: 3}),
        (own_items.make_most_recent, "test", {2: 1, 3: 3, 4: 2}),
        (own_items.make_most_frequent, "validation", {2: 3, 3: 1, 4: 2}),
        (own_items.make_most_frequent, "test", {2: 2, 3: 3, 4: 1}),
    ],
)
def test_own_items_come_first_and_others_by_popularity(store, make, split, expected):
    score_BV = scores(make, store, split)
    own = [expected.get(item, other) for item, other in enumerate(OTHER)]
    np.testing.assert_allclose(score_BV[0], np.array(own, np.float32))
    np.testing.assert_allclose(score_BV[1], np.array([*OTHER[:5], 1, 0], np.float32))


def test_without_a_history_popularity_decides(store):
    for make in (own_items.make_most_recent, own_items.make_most_frequent):
        np.testing.assert_allclose(scores(make, store, "validation")[2], np.float32(OTHER))
        np.testing.assert_allclose(scores(make, store, "test")[2, 6], 1)


def test_a_batch_scores_as_its_queries_do_alone(store):
    score = own_items.make_most_frequent(store)
    np.testing.assert_array_equal(
        score("test", np.array([2, 0])), score("test", np.arange(3))[[2, 0]]
    )


def test_ranks_of_many_rows_are_those_of_a_plain_count():
    rng = np.random.default_rng(0)
    row_E, item_E = np.sort(rng.integers(0, 40, 600)), rng.integers(1, 9, 600)
    for by_count in (False, True):
        expected = set()
        for row in range(40):
            window = item_E[row_E == row].tolist()
            last = {item: place for place, item in enumerate(window)}
            key = {i: (window.count(i) if by_count else 0, last[i]) for i in last}
            ranked = sorted(last, key=key.__getitem__)
            expected |= {(row, item, rank) for rank, item in enumerate(ranked, start=1)}
        found = own_items.rank_own(row_E, item_E, by_count=by_count)
        assert set(zip(*(values.tolist() for values in found), strict=True)) == expected


def test_they_are_printed_where_repeats_are_relevant_alone(store, tmp_path):
    config = schema.EvalConfig(k=(1,), query_batch=4, remove_seen="none")
    rows = {row.name: row for row in builtin.evaluate_baselines(store, config, seed=0)}
    # Of the last day users 1 and 2 bought again, 2 the item that she had bought last.
    assert rows["own most recent"].test.recall[1].tolist() == [0, 1, 0]
    assert rows["own most frequent"].test.recall[1].tolist() == [0, 1, 0]
    fresh = [(*click[:2], i % 6 + 1, click[3]) for i, click in enumerate(CLICKS)]
    plain = clicks.write_store(tmp_path / "store", fresh, users=3, items=6, scenarios=("A",))
    names = [row.name for row in builtin.evaluate_baselines(plain, config, seed=0)]
    assert not {"own most recent", "own most frequent"} & set(names)
