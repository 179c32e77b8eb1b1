"""Scorers against their definitions, by brute force on a small store."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse

from dsmoe_jax.baselines import linear
from dsmoe_jax.data import statistics
from tests import clicks, tiny


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("scorers") / "store")


@pytest.fixture(scope="module")
def read(store):
    return linear.read_clicks(store)


def windows(store, split):
    return statistics.read_windows(store, store.queries(split).rows_QC).toarray()


def test_random_scores_depend_on_query_and_item_not_on_batching():
    score = linear.make_random(50, seed=3)
    whole = score("test", np.arange(40))
    np.testing.assert_array_equal(score("test", np.array([7, 21])), whole[[7, 21]])
    assert (whole != score("validation", np.arange(40))).mean() > 0.99
    assert (whole != linear.make_random(50, seed=4)("test", np.arange(40))).mean() > 0.99
    # Ranks of an item are uniform over queries.
    many = linear.make_random(50, seed=0)("test", np.arange(4000))
    rank = np.argsort(np.argsort(many, axis=1), axis=1)
    np.testing.assert_allclose(rank.mean(axis=0), 24.5, atol=1.2)  # five standard errors


def test_popularity_counts_training_clicks(store):
    train_NC, columns = store.train_NC, store.columns
    expected_SV = np.zeros((len(tiny.SCENARIOS), tiny.NUM_ITEMS + 1))
    for row in train_NC:
        expected_SV[row[columns["scenario"]], row[columns["item"]]] += 1
    query_B = np.array([0, 5, 9])
    scenario_B = store.queries("test").rows_QC[query_B, columns["scenario"]]
    overall = linear.make_popularity(store)("test", query_B)
    np.testing.assert_array_equal(overall, np.tile(expected_SV.sum(axis=0), (3, 1)))
    own = linear.make_scenario_popularity(store)("test", query_B)
    np.testing.assert_array_equal(np.floor(own), expected_SV[scenario_B])


def test_ties_in_a_scenario_go_to_what_is_popular_elsewhere(tmp_path):
    rows = [(1, 0, 1, 1), (1, 0, 2, 1), (1, 1, 2, 1), (2, 1, 2, 1)]
    held_out = [
        (user, s, item, day) for day, item in ((2, 3), (3, 4)) for user in (1, 2) for s in (0, 1)
    ]
    store = clicks.write_store(tmp_path / "store", rows + held_out, users=2, items=4)
    score_V = linear.make_scenario_popularity(store)("test", np.array([0]))[0]
    assert score_V[2] > score_V[1] > score_V[3]


def test_svd_of_full_rank_gives_a_training_users_clicks_back(store, read):
    # Projecting on every right singular vector is the identity on rows of the matrix.
    svd = linear.make_svd(read, min(read.training_UV.shape) - 1)
    window_QV = windows(store, "validation")
    score_QV = svd("validation", np.arange(len(window_QV)))
    clicked = read.count() > 0
    scale = score_QV[window_QV > 0].mean()
    np.testing.assert_allclose(score_QV[:, clicked] / scale, window_QV[:, clicked], atol=0.05)


def test_svd_equals_the_projection_it_is_named_after(store, read):
    window_QV = windows(store, "test")
    root_V = np.sqrt(np.maximum(read.count(), 1))
    _, _, right_VV = np.linalg.svd(read.training_UV.toarray() / root_V[None])
    expected_QV = (window_QV / root_V[None]) @ right_VV[:5].T @ right_VV[:5] * root_V[None]
    score_QV = linear.make_svd(read, 5)("test", np.arange(len(window_QV)))
    scale = np.sum(score_QV * expected_QV) / np.sum(expected_QV**2)
    np.testing.assert_allclose(score_QV, scale * expected_QV, atol=1e-3 * np.abs(score_QV).max())


def test_ease_minimises_squared_error_under_a_zero_diagonal(read):
    dense_UV = read.training_UV.toarray().astype(np.float64)
    weight_VV = linear.solve_ease(read.training_UV, 5.0)
    assert not np.diag(weight_VV).any()
    # At the optimum the gradient of ||R - RB||^2 + l2 ||B||^2 vanishes off the diagonal.
    gradient_VV = dense_UV.T @ (dense_UV @ weight_VV - dense_UV) + 5.0 * weight_VV
    np.fill_diagonal(gradient_VV, 0.0)
    np.testing.assert_allclose(gradient_VV, 0.0, atol=1e-3)


def test_an_exposure_counts_as_so_many_clicks_of_ease(store, read):
    rng = np.random.default_rng(0)
    shown = {
        split: scipy.sparse.csr_matrix(rng.random(window.shape) < 0.2, dtype=np.float32)
        for split, window in read.windows.items()
    }
    exposures_UV = scipy.sparse.csr_matrix(
        rng.random(read.training_UV.shape) < 0.2, dtype=np.float32
    )
    both = dataclasses.replace(read, exposures_UV=exposures_UV, shown=shown)
    score = linear.make_ease(both, 5.0, clicks_of_exposure=0.3)("test", np.array([3, 0]))
    weight_VV = linear.solve_ease((read.training_UV + 0.3 * exposures_UV).tocsr(), 5.0)
    expected = (windows(store, "test") + 0.3 * shown["test"].toarray())[[3, 0]] @ weight_VV
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)
    plain = linear.make_ease(read, 5.0)("test", np.array([3, 0]))
    np.testing.assert_array_equal(linear.make_ease(both, 5.0)("test", np.array([3, 0])), plain)
    assert np.abs(score - plain).max() > 0.1


def test_ease_scores_are_the_windows_times_the_weights(store, read):
    score = linear.make_ease(read, 5.0)("test", np.array([3, 0]))
    expected = windows(store, "test")[[3, 0]] @ linear.solve_ease(read.training_UV, 5.0)
    np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_mirroring_blocks_equals_mirroring_a_matrix():
    lower = np.tril(np.random.default_rng(0).normal(size=(13, 13)))
    garbage = lower + np.triu(np.full((13, 13), 9.0), 1)
    linear._mirror(garbage, block=5)
    np.testing.assert_array_equal(garbage, lower + np.tril(lower, -1).T)


@pytest.mark.parametrize("block", [2048, 7])
def test_neighbours_are_the_most_similar_other_items(read, block):
    dense_UV = read.training_UV.toarray()
    norm_V = np.sqrt(np.maximum(dense_UV.sum(axis=0), 1))
    similar_VV = dense_UV.T @ dense_UV / norm_V[:, None] / norm_V[None]
    np.fill_diagonal(similar_VV, 0.0)
    near_VV = linear.find_neighbours(read.training_UV, 4, block=block).toarray()
    for item in range(len(norm_V)):
        best = np.sort(similar_VV[item])[::-1][:4]
        np.testing.assert_allclose(np.sort(near_VV[item])[::-1][:4], best, rtol=1e-5)
        chosen = near_VV[item] > 0
        assert chosen.sum() <= 4
        np.testing.assert_allclose(near_VV[item][chosen], similar_VV[item][chosen], rtol=1e-5)


def test_item_knn_sums_similarities_to_the_items_neighbours(store, read):
    near_VV = linear.find_neighbours(read.training_UV, 4).toarray()
    score = linear.make_item_knn(read, 4)("test", np.array([1, 2]))
    window = windows(store, "test")[[1, 2]]
    expected = [[near_VV[item] @ row for item in range(len(near_VV))] for row in window]
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_standardised_scores_have_mean_zero_and_deviation_one_over_candidates():
    score_BV = np.random.default_rng(0).normal(3.0, 9.0, (4, 30)).astype(np.float32)
    score_BV[2] = 5.0
    standard_BV = linear.standardise(score_BV)
    np.testing.assert_allclose(standard_BV[[0, 1, 3], 1:].mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(standard_BV[[0, 1, 3], 1:].std(axis=1), 1.0, rtol=1e-5)
    assert not standard_BV[2].any()


def test_the_prior_of_the_querys_scenario_is_added(store, read):
    svd = linear.make_svd(read, 5)
    combined = linear.add_prior(svd, store, weight=0.4, half_life_days=2.0, prior_clicks=10.0)
    query_B = np.array([0, 4, 8])
    scenario_B = store.queries("test").rows_QC[query_B, store.columns["scenario"]]
    log_SV = statistics.log_prior(store, half_life_days=2.0, prior_clicks=10.0)
    raw = svd("test", query_B)[:, 1:]
    z = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    expected = 0.4 * z + log_SV[scenario_B][:, 1:]
    np.testing.assert_allclose(combined("test", query_B)[:, 1:], expected, rtol=1e-4, atol=1e-4)


def test_queries_without_history_fall_back_on_popularity(tmp_path):
    rows = [(1, 0, 1, 1), (1, 1, 2, 1), (2, 0, 2, 1), (2, 1, 3, 1)]
    held_out = [(user, s, 4, day) for day, user in ((2, 3), (3, 4)) for s in (0, 1)]
    known = [(1, 0, 3, 3)]
    store = clicks.write_store(tmp_path / "store", rows + held_out + known, users=4, items=4)
    read = linear.read_clicks(store)
    svd = linear.make_svd(read, 2)
    score_QV = linear.fall_back(svd, store, read)("test", np.arange(3))
    user_Q = store.queries("test").rows_QC[:, store.columns["user"]]
    assert user_Q.tolist() == [1, 4, 4]
    # The same batch: a product of one row may be summed in another order than one of three.
    np.testing.assert_array_equal(score_QV[0], svd("test", np.arange(3))[0])
    np.testing.assert_array_equal(score_QV[1], [0, 1, 2, 1, 0])
