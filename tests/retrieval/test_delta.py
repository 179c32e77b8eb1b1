"""Changes over an index: the lists of a rebuilt one, all or nothing of a change."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe_jax.retrieval import ann, delta, host
from tests.retrieval import brute_force

ROWS, DIM = 40, 5


def make(num_rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    item_VD = rng.normal(size=(num_rows, DIM)).astype(np.float32)
    return item_VD, rng.normal(size=(3, 2, DIM)).astype(np.float32), rng


def test_literal_changes():
    item_VD = np.array([[0, 0], [1, 0], [2, 0], [3, 0]], np.float32)
    query_QMD = np.array([[[1, 0]]], np.float32)
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)
    index.upsert(np.array([4, 1]), np.array([[2, 0], [9, 0]], np.float32))
    index.remove(np.array([3]))
    assert (index.num_rows, index.num_candidates) == (5, 3)
    score_QT, item_QT = index.search(query_QMD, 4)
    assert item_QT.tolist() == [[1, 2, 4, 0]]  # 2 and 4 tie
    assert score_QT.tolist() == [[9, 2, 2, -np.inf]]
    assert index.vectors(np.array([0, 1, 2, 4])).tolist() == [[0, 0], [9, 0], [2, 0], [2, 0]]
    settled = index.settle()
    assert settled.search(query_QMD, 4)[1].tolist() == item_QT.tolist()
    assert (settled.num_rows, settled.num_candidates) == (5, 3)
    index.upsert(np.array([3]), np.array([[5, 0]], np.float32))
    assert index.search(query_QMD, 4)[1].tolist() == [[1, 3, 2, 4]]
    assert item_VD[1].tolist() == [1, 0]
    assert isinstance(index, host.Searcher)


def test_the_exact_side_of_an_index_has_its_changes():
    item_VD, query_QMD, _ = make()

    class Last(host.HostIndex):
        """Finds the last items alone."""

        def search(self, query_QMD, k, **filters):
            score_QT, item_QT = super().search(query_QMD, ROWS, **filters)
            return score_QT[:, -k:], item_QT[:, -k:]

    index = delta.DeltaIndex(Last(item_VD), item_VD)
    index.remove(np.array([3, 4]))
    index.upsert(np.array([5, ROWS]), -item_VD[5:7])
    exact, settled = index.exact(), index.settle()
    brute_force.assert_same(exact.search(query_QMD, 9), settled.search(query_QMD, 9))
    assert (index.search(query_QMD, 9)[1] != exact.search(query_QMD, 9)[1]).any()
    before = exact.search(query_QMD, ROWS)
    index.remove(np.array([6]))
    brute_force.assert_same(exact.search(query_QMD, ROWS), before)
    assert exact.is_exact and settled.is_exact and not index.is_exact


CHANGE = st.tuples(st.sampled_from(["upsert", "add", "remove"]), st.integers(0, 12))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    changes=st.lists(CHANGE, max_size=6),
    share=st.sampled_from([None, 0.8, 0.2, 0.0]),
    k=st.sampled_from([1, 6, 90]),
)
def test_lists_equal_those_of_a_rebuilt_index(seed, changes, share, k):
    item_VD, query_QMD, rng = make(seed=seed)
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)
    alive_V = np.ones(ROWS, bool)
    for kind, size in changes:
        V = len(item_VD)
        row_N = rng.choice(np.arange(1, V), size, replace=False)
        if kind == "remove":
            index.remove(row_N)
            alive_V[row_N] = False
            continue
        if kind == "add":
            row_N = np.concatenate([row_N[: size // 2], rng.permutation(np.arange(V, V + size))])
        # Copies of other rows make ties across base and changes.
        vector_ND = item_VD[rng.integers(1, V, len(row_N))]
        index.upsert(row_N, vector_ND)
        missing = max(0, int(row_N.max(initial=0)) + 1 - V)
        item_VD = np.concatenate([item_VD, np.zeros((missing, DIM), np.float32)])
        alive_V = np.concatenate([alive_V, np.zeros(missing, bool)])
        item_VD[row_N], alive_V[row_N] = vector_ND, True
    V = len(item_VD)
    allowed_V = None if share is None else rng.random(V) < share
    removed = [rng.integers(0, V, size) for size in (0, 3, 15)]
    live_V = alive_V if allowed_V is None else alive_V & allowed_V
    expected = host.HostIndex(item_VD).search(query_QMD, k, allowed_V=live_V, removed=removed)
    found = index.search(query_QMD, k, allowed_V=allowed_V, removed=removed)
    brute_force.assert_same(found, expected)
    assert (index.num_rows, index.num_candidates) == (V, alive_V.sum() - 1)

    settled = index.settle()
    brute_force.assert_same(
        settled.search(query_QMD, k, allowed_V=allowed_V, removed=removed), expected
    )
    assert (settled.num_rows, settled.num_candidates) == (V, alive_V.sum() - 1)
    np.testing.assert_array_equal(settled.vectors(np.flatnonzero(alive_V)), item_VD[alive_V])


def test_an_approximate_base_is_changed_alike():
    item_VD, query_QMD = brute_force.make_clusters(12_000, 8, 30, seed=2)
    base = ann.AnnIndex(item_VD, ann.make(item_VD, "HNSW32", seed=0), {"k": 10, "ef_search": 100})
    index = delta.DeltaIndex(base, item_VD)
    _, best_QT = host.HostIndex(item_VD).search(query_QMD, 10)
    gone_N = np.unique(best_QT[:, :3])
    moved_N = np.setdiff1d(best_QT[:, 3:6], gone_N)
    index.remove(gone_N)
    index.upsert(moved_N, -item_VD[moved_N])
    changed_VD = item_VD.copy()
    changed_VD[moved_N] *= -1
    live_V = np.ones(len(item_VD), bool)
    live_V[gone_N] = False
    _, item_QT = index.search(query_QMD, 10)
    _, expected_QT = host.HostIndex(changed_VD).search(query_QMD, 10, allowed_V=live_V)
    hits = [np.isin(*both).mean() for both in zip(expected_QT, item_QT, strict=True)]
    assert np.mean(hits) >= 0.95
    assert not np.isin(item_QT, gone_N).any()


def test_a_search_sees_all_of_a_change_or_nothing():
    item_VD = np.ones((200, DIM), np.float32)
    query_QMD = np.ones((1, 1, DIM), np.float32)
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)
    row_N = np.arange(1, 200)
    over = threading.Event()

    def change():
        for i in range(2, 150):
            index.upsert(row_N, np.full((199, DIM), i, np.float32))
        over.set()

    writer = threading.Thread(target=change)
    writer.start()
    try:
        while not over.is_set():
            score_QT, item_QT = index.search(query_QMD, 199)
            assert len(np.unique(score_QT)) == 1
            assert item_QT[0].tolist() == row_N.tolist()
    finally:
        writer.join()


def test_writers_lose_no_change_of_each_other():
    item_VD, query_QMD, _ = make(401)
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)

    def remove(first):
        for row in range(first, 401, 4):
            index.remove(np.array([row]))

    writers = [threading.Thread(target=remove, args=(first,)) for first in (1, 2, 3, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert index.num_candidates == 0
    assert (index.search(query_QMD, 3)[1] == 0).all()


@pytest.mark.parametrize(
    ("rows", "vector", "message"),
    [
        ([0], [1] * DIM, "upsert: expected rows from 1 on and new ones from 40 on without a gap, "),
        ([41], [1] * DIM, "got row 41"),
        ([40, 42], [1] * DIM, "got row 42"),
        ([-1], [1] * DIM, "got row -1"),
        ([3, 40, 3], [1] * DIM, "upsert: expected one row per raw id, got 3 in rows"),
        ([3], [np.nan] * DIM, r"upsert: expected finite numbers, got nan or inf in row 1 \(3\)"),
        ([3], [0] * DIM, r"upsert: expected a norm above 0, got 0 in row 1 \(3\)"),
        ([3], [1] * 4, r"upsert: expected vectors of shape \[1, 5\], got \[1, 4\]"),
    ],
)
def test_changes_that_do_not_fit_change_nothing(rows, vector, message):
    item_VD, query_QMD, _ = make()
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)
    before = index.search(query_QMD, 5)
    with pytest.raises(ValueError, match=message):
        index.upsert(np.array(rows), np.array([vector] * len(rows), np.float32))
    brute_force.assert_same(index.search(query_QMD, 5), before)
    assert index.num_rows == ROWS


@pytest.mark.parametrize("row", [0, -1, ROWS])
def test_removals_of_rows_that_do_not_exist_are_refused(row):
    item_VD, _, _ = make()
    index = delta.DeltaIndex(host.HostIndex(item_VD), item_VD)
    with pytest.raises(ValueError, match=rf"remove: expected rows in \[1, 40\), got {row}"):
        index.remove(np.array([3, row]))
    assert index.num_candidates == ROWS - 1


def test_vectors_of_another_corpus_are_refused():
    item_VD, _, _ = make()
    with pytest.raises(ValueError, match="expected the 40 rows of the base, got 39"):
        delta.DeltaIndex(host.HostIndex(item_VD), item_VD[1:])
