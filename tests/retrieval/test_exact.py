"""Exact search against a NumPy sort, in chunks, over several interests and over eight devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dsmoe_jax.retrieval import exact

# Whatever suits the device of the tests: both ways give the lists of a sort.
keepers = pytest.mark.parametrize("keeper", exact.KEEPERS)


def sorted_lists(query_QMD, item_VD, k):
    """Scores and ids by a full stable sort; row 0 is no candidate."""
    score_QV = np.einsum("qmd,vd->qmv", query_QMD, item_VD).max(axis=1)[:, 1:]
    order_QT = np.argsort(-score_QV, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score_QV, order_QT, axis=1), order_QT + 1


def draw(queries, interests, items, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    query_QMD = rng.normal(size=(queries, interests, dim)).astype(np.float32)
    item_VD = rng.normal(size=(items, dim)).astype(np.float32)
    item_VD[0] = 100.0  # were row 0 a candidate, it would often win
    return query_QMD, item_VD


@keepers
@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize(("item_chunk", "query_chunk"), [(16384, 1024), (17, 8), (1, 1)])
def test_lists_equal_a_numpy_sort_whatever_the_chunks(interests, item_chunk, query_chunk, keeper):
    query_QMD, item_VD = draw(21, interests, 101)
    index = exact.ExactIndex(item_VD, item_chunk=item_chunk, query_chunk=query_chunk, keeper=keeper)
    score_QT, item_QT = index.search(query_QMD, 10)
    expected_score_QT, expected_item_QT = sorted_lists(query_QMD, item_VD, 10)
    np.testing.assert_array_equal(item_QT, expected_item_QT)
    np.testing.assert_allclose(score_QT, expected_score_QT, rtol=1e-5)
    assert index.num_candidates == 100


@keepers
@pytest.mark.parametrize("item_chunk", [4, 100])
def test_ties_go_to_the_smaller_id(item_chunk, keeper):
    index = exact.ExactIndex(np.ones((30, 2), np.float32), item_chunk=item_chunk, keeper=keeper)
    _, item_QT = index.search(np.ones((1, 1, 2), np.float32), 6)
    assert item_QT.tolist() == [[1, 2, 3, 4, 5, 6]]


@keepers
def test_lists_longer_than_the_corpus_end_in_padding(keeper):
    query_QMD, item_VD = draw(3, 2, 5)
    score_QT, item_QT = exact.ExactIndex(item_VD, item_chunk=2, keeper=keeper).search(query_QMD, 7)
    assert score_QT.shape == (3, 7)
    assert np.isneginf(score_QT[:, 4:]).all()
    assert (np.asarray(item_QT)[:, 4:] == 0).all()
    assert (np.sort(np.asarray(item_QT)[:, :4], axis=1) == [1, 2, 3, 4]).all()


@keepers
def test_rows_past_num_rows_are_no_candidates(keeper):
    query_QMD, item_VD = draw(4, 1, 40)
    index = exact.ExactIndex(item_VD, num_rows=11, keeper=keeper)
    _, item_QT = index.search(query_QMD, 10)
    assert index.num_candidates == 10
    assert (np.sort(np.asarray(item_QT), axis=1) == np.arange(1, 11)).all()


@keepers
@pytest.mark.parametrize("interests", [1, 2])
@pytest.mark.parametrize("items", [203, 9])
def test_eight_devices_equal_one(interests, items, keeper):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    query_QMD, item_VD = draw(13, interests, items)
    one = exact.ExactIndex(item_VD).search(query_QMD, 12)
    eight = exact.ExactIndex(item_VD, mesh=mesh, item_chunk=10, keeper=keeper).search(query_QMD, 12)
    np.testing.assert_array_equal(one[1], eight[1])
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-6, atol=1e-6)


@keepers
def test_eight_devices_break_ties_as_one_does(keeper):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    index = exact.ExactIndex(np.ones((50, 2), np.float32), mesh=mesh, keeper=keeper)
    _, item_QT = index.search(np.ones((2, 1, 2), np.float32), 20)
    assert item_QT.tolist() == [list(range(1, 21))] * 2


def test_top_k_of_scores_equals_a_sort_and_never_returns_row_0_or_removed_items():
    score_QV = np.random.default_rng(2).normal(size=(5, 12)).astype(np.float32)
    score_QV[:, 0] = 50.0
    score_QV[1, 3:] = -np.inf
    score_QT, item_QT = exact.top_k(score_QV, 4)
    for row, listed in enumerate(np.asarray(item_QT).tolist()):
        order = sorted(range(1, 12), key=lambda item, row=row: -score_QV[row, item])
        expected = [item if np.isfinite(score_QV[row, item]) else 0 for item in order[:4]]
        assert listed == expected
    assert np.isneginf(score_QT[1, 2:]).all()
