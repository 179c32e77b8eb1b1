"""Metrics against literal values and against loops written from the definitions."""

import math

import numpy as np
import pytest

from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import metrics


def make_ragged(rows):
    return store_lib.Ragged(
        np.cumsum([0] + [len(row) for row in rows]),
        np.array([item for row in rows for item in row], np.int32),
    )


def draw_lists(seed, queries=40, length=12, items=60):
    rng = np.random.default_rng(seed)
    item_QT = np.stack(
        [rng.choice(np.arange(1, items), length, replace=False) for _ in range(queries)]
    ).astype(np.int32)
    rows = [
        rng.choice(np.arange(1, items), rng.integers(1, 9), replace=False) for _ in range(queries)
    ]
    return item_QT, rows


def test_members_are_found_per_query_and_not_across_queries():
    item_QT = np.array([[5, 2, 0], [2, 9, 5], [1, 2, 3]], np.int32)
    rows = make_ragged([[2, 7], [5], []])
    expected = [[False, True, False], [False, False, True], [False, False, False]]
    assert metrics.find_members(item_QT, rows).tolist() == expected


def test_members_of_no_rows_are_none():
    item_QT = np.array([[5, 2]], np.int32)
    assert not metrics.find_members(item_QT, make_ragged([[]])).any()


def test_take_rows_keeps_order_and_repeats():
    taken = metrics.take_rows(make_ragged([[1, 2], [], [3, 4, 5]]), np.array([2, 0, 1, 2]))
    assert taken.indptr.tolist() == [0, 3, 5, 5, 8]
    assert taken.items.tolist() == [3, 4, 5, 1, 2, 3, 4, 5]


def test_literal_hits_and_ndcg():
    hit_QT = np.array([[True, False, True, False], [False, False, False, True]])
    relevant_Q = np.array([3, 1])
    assert metrics.hits_at_k(hit_QT, 2).tolist() == [1, 0]
    assert metrics.hits_at_k(hit_QT, 4).tolist() == [2, 1]
    # Ranks 1 and 3 gain 1 and 1/2; the ideal list of three gains 1 + 1/log2(3) + 1/2.
    ideal = 1 + 1 / math.log2(3) + 0.5
    np.testing.assert_allclose(
        metrics.ndcg_at_k(hit_QT, relevant_Q, 4), [1.5 / ideal, 1 / math.log2(5)]
    )
    np.testing.assert_allclose(
        metrics.ndcg_at_k(hit_QT, relevant_Q, 2), [1 / (1 + 1 / math.log2(3)), 0.0]
    )


@pytest.mark.parametrize("k", [1, 3, 12, 50])
def test_metrics_equal_a_loop_over_the_definitions(k):
    item_QT, rows = draw_lists(seed=1)
    hit_QT = metrics.find_members(item_QT, make_ragged(rows))
    relevant_Q = np.array([len(row) for row in rows])
    hits, ndcg = [], []
    for listed, row in zip(item_QT.tolist(), rows, strict=True):
        relevant = set(row.tolist())
        top = listed[:k]
        hits.append(len(relevant & set(top)))
        gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(top) if item in relevant)
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
        ndcg.append(gain / ideal)
    assert metrics.hits_at_k(hit_QT, k).tolist() == hits
    np.testing.assert_allclose(metrics.ndcg_at_k(hit_QT, relevant_Q, k), ndcg)


def test_reciprocal_rank_is_of_the_first_hit_and_one_below_the_depth_without_one():
    hit_QT = np.array([[0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_allclose(metrics.reciprocal_rank(hit_QT, 4), [1 / 2, 1 / 4, 1 / 5, 1])
    np.testing.assert_allclose(metrics.reciprocal_rank(hit_QT, 3), [1 / 2, 1 / 4, 1 / 4, 1])
    np.testing.assert_allclose(metrics.reciprocal_rank(hit_QT[:, :0], 2500), [1 / 2501] * 4)


def test_a_perfect_list_scores_one_in_ndcg():
    assert metrics.ndcg_at_k(np.ones((1, 4), bool), np.array([9]), 4) == pytest.approx(1.0)


def test_a_query_without_relevant_items_is_refused():
    with pytest.raises(ValueError, match="query 1: expected at least 1 relevant item, got 0"):
        metrics.ndcg_at_k(np.zeros((2, 3), bool), np.array([1, 0]), 2)


def test_log_loss_literal_values_and_large_logits():
    loss = metrics.log_loss(np.array([0.0, 2.0, -800.0]), np.array([True, False, True]))
    np.testing.assert_allclose(loss, [math.log(2), math.log(1 + math.exp(2)), 800.0])


def test_estimate_literal_and_too_few_values():
    mean, error = metrics.estimate(np.array([0.0, 1.0, 1.0, 0.0]))
    assert mean == 0.5
    assert error == pytest.approx(math.sqrt(1 / 3) / 2)
    assert math.isnan(metrics.estimate(np.array([1.0])).error)
    assert math.isnan(metrics.estimate(np.array([])).mean)


def test_macro_is_unweighted_and_leaves_out_scenarios_without_queries():
    nan = float("nan")
    entries = [metrics.Estimate(0.2, 0.03), metrics.Estimate(0.4, 0.04), metrics.Estimate(nan, nan)]
    assert metrics.macro(entries) == pytest.approx((0.3, 0.025))


def test_bootstrap_of_equal_systems_is_exactly_zero():
    compared = metrics.paired_bootstrap(np.zeros(50), np.arange(50) % 2, 2)
    assert compared == [(0.0, 0.0, 0.0)] * 3


def test_bootstrap_interval_matches_the_normal_one_for_many_queries():
    difference_Q = np.random.default_rng(0).normal(0.02, 0.3, 4000)
    compared, _ = metrics.paired_bootstrap(difference_Q, np.zeros(4000, int), 1)
    mean, error = metrics.estimate(difference_Q)
    assert compared.difference == pytest.approx(mean)
    assert compared.low == pytest.approx(mean - 1.96 * error, abs=0.25 * error)
    assert compared.high == pytest.approx(mean + 1.96 * error, abs=0.25 * error)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        difference_Q = rng.normal(0.1, 1.0, 60)
        compared, _ = metrics.paired_bootstrap(
            difference_Q, np.zeros(60, int), 1, resamples=400, seed=trial
        )
        covered += compared.low <= 0.1 <= compared.high
    assert 180 <= covered <= 199


def test_bootstrap_repeats_with_its_seed_and_skips_empty_scenarios():
    difference_Q = np.random.default_rng(1).normal(size=30)
    scenario_Q = np.where(np.arange(30) < 20, 0, 2)
    first = metrics.paired_bootstrap(difference_Q, scenario_Q, 3, seed=5)
    again = metrics.paired_bootstrap(difference_Q, scenario_Q, 3, seed=5)
    other = metrics.paired_bootstrap(difference_Q, scenario_Q, 3, seed=6)
    np.testing.assert_array_equal(first, again)
    assert first[0].low != other[0].low
    *each, macro = first
    assert np.isnan([interval.difference for interval in each]).tolist() == [False, True, False]
    assert macro.difference == pytest.approx(np.nanmean([found.difference for found in each]))
