"""Union of interests and removal from lists, against Python sets and literal lists."""

import numpy as np

from dsmoe_jax.retrieval import index as index_lib


def test_union_keeps_the_best_score_of_an_item_once():
    score_QMT = np.array([[[0.9, 0.5, 0.1], [0.8, 0.7, 0.2]]], np.float32)
    item_QMT = np.array([[[4, 2, 7], [2, 4, 9]]], np.int32)
    score_QT, item_QT = index_lib.merge_interests(score_QMT, item_QMT, 3)
    assert item_QT.tolist() == [[4, 2, 9]]
    np.testing.assert_allclose(score_QT, [[0.9, 0.8, 0.2]])


def test_union_smaller_than_k_ends_in_padding():
    score_QMT = np.array([[[0.9, -np.inf], [0.8, -np.inf]]], np.float32)
    item_QMT = np.array([[[4, 0], [4, 0]]], np.int32)
    score_QT, item_QT = index_lib.merge_interests(score_QMT, item_QMT, 2)
    assert item_QT.tolist() == [[4, 0]]
    assert score_QT[0, 1] == -np.inf


def test_one_interest_passes_through():
    score_QMT = np.array([[[0.9, 0.5]]], np.float32)
    item_QMT = np.array([[[4, 2]]], np.int32)
    score_QT, item_QT = index_lib.merge_interests(score_QMT, item_QMT, 2)
    assert item_QT.tolist() == [[4, 2]]
    np.testing.assert_array_equal(score_QT, score_QMT[:, 0])


def test_dropping_keeps_order_and_fills_short_lists():
    score_QT = np.array([[5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0]], np.float32)
    item_QT = np.array([[1, 2, 3, 4], [9, 8, 7, 6]], np.int32)
    dropped_QT = np.array([[True, False, True, False], [True, True, True, False]])
    score_Qk, item_Qk = index_lib.drop(score_QT, item_QT, dropped_QT, 2)
    assert item_Qk.tolist() == [[2, 4], [6, 0]]
    assert score_Qk.tolist() == [[4.0, 2.0], [2.0, -np.inf]]
    assert item_Qk.dtype == np.int32
