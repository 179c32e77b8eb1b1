"""Statistics of the training period against literal counts."""

import math

import numpy as np
import pytest

from dsmoe_jax.data import statistics
from tests import clicks, tiny

# Days 1 and 2 train, day 3 validates, day 4 tests.
CLICKS = [
    (1, 0, 1, 1),
    (1, 0, 2, 1),
    (1, 1, 2, 2),
    (2, 0, 1, 2),
    (2, 1, 3, 2),
    (4, 0, 4, 3),  # user 4 is cold
    (1, 1, 4, 3),
    (1, 0, 3, 4),
    (2, 1, 4, 4),
]
EARLIER = [(1, 5), (1, 1), (4, 2), (3, 3)]  # user 3 never comes back


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "store"
    return clicks.write_store(path, CLICKS, earlier=EARLIER, users=4, items=5)


@pytest.fixture(scope="module")
def random_store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("statistics") / "random")


def test_interactions_are_earlier_clicks_and_training_positives_once_each(store):
    expected = np.zeros((5, 6))
    expected[1, [1, 2, 5]] = 1
    expected[2, [1, 3]] = 1
    expected[4, 2] = 1
    np.testing.assert_array_equal(statistics.read_interactions(store).toarray(), expected)


def test_windows_hold_everything_before_the_split_and_nothing_of_it(store):
    table = store.queries("test")
    user_Q = table.rows_QC[:, store.columns["user"]]
    window_QV = statistics.read_windows(store, table.rows_QC).toarray()
    seen = {int(user): np.flatnonzero(window_QV[q]).tolist() for q, user in enumerate(user_Q)}
    assert seen == {1: [1, 2, 4, 5], 2: [1, 3]}


def test_clicks_are_counted_per_scenario_in_training_only(store):
    expected = [[0, 2, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
    np.testing.assert_array_equal(statistics.count_clicks(store), expected)


def test_a_click_one_half_life_old_counts_half(store):
    count_SV = statistics.count_clicks(store, half_life_days=1.0)
    # Item 1 in scenario A: a click on day 1, about two days before day 3, and one on day 2.
    assert count_SV[0, 1] == pytest.approx(0.25 + 0.5, abs=1e-3)
    assert count_SV[1, 3] == pytest.approx(0.5, abs=1e-3)


def test_literal_log_prior(store):
    log_SV = statistics.log_prior(store, prior_clicks=5.0)
    # Clicks over both scenarios: items 1 and 2 twice, 3 once; plus one each over five items.
    overall_V = np.array([3, 3, 2, 1, 1]) / 10
    expected_A = (np.array([2, 1, 0, 0, 0]) + 5 * overall_V) / (3 + 5)
    np.testing.assert_allclose(np.exp(log_SV[0, 1:]), expected_A, rtol=1e-6)
    assert log_SV[0, 0] == log_SV[0].min() == pytest.approx(math.log(0.5 / 8))
    assert log_SV.dtype == np.float32


def test_probabilities_of_a_scenario_sum_to_one(random_store):
    log_SV = statistics.log_prior(random_store, half_life_days=3.0)
    np.testing.assert_allclose(np.exp(log_SV[:, 1:]).sum(axis=1), 1.0, rtol=1e-5)
    assert np.isfinite(log_SV).all()


def test_literal_log_share_among_what_users_did(store):
    # Users by item, of before the log and of training: 2, 2, 1, 0, 1; plus one each.
    log_V = statistics.sequence_log_prior(store)
    np.testing.assert_allclose(np.exp(log_V), np.array([1, 3, 3, 2, 1, 2]) / 11, rtol=1e-6)
    assert log_V.dtype == np.float32


def test_item_vectors_span_the_leading_singular_space(random_store):
    interactions_UV = statistics.read_interactions(random_store)
    vector_VC = statistics.item_vectors(interactions_UV, 7)
    dense_UV = interactions_UV.toarray().astype(np.float64)
    root_V = np.sqrt(np.maximum(dense_UV.sum(axis=0), 1))
    _, _, right_VV = np.linalg.svd(dense_UV / root_V[None], full_matrices=False)
    direction_VC = vector_VC * root_V[:, None]
    direction_VC /= np.linalg.norm(direction_VC, axis=0)[None]
    overlap_C = np.abs(np.sum(direction_VC * right_VV[:7].T, axis=0))
    np.testing.assert_allclose(overlap_C, 1.0, atol=1e-3)


def test_item_vectors_repeat_and_have_unit_mean_square(random_store):
    interactions_UV = statistics.read_interactions(random_store)
    vector_VC = statistics.item_vectors(interactions_UV, 7)
    np.testing.assert_array_equal(vector_VC, statistics.item_vectors(interactions_UV, 7))
    clicked_V = np.asarray(interactions_UV.sum(axis=0)).ravel() > 0
    assert np.mean(vector_VC[clicked_V] ** 2) == pytest.approx(1.0, rel=1e-5)
    assert not vector_VC[~clicked_V].any()
    assert not vector_VC[0].any()


def test_columns_past_the_rank_are_zero(store):
    vector_VC = statistics.item_vectors(statistics.read_interactions(store), 48)
    assert vector_VC.shape == (6, 48)
    assert not vector_VC[:, 5:].any()
    assert np.isfinite(vector_VC).all()


def test_items_with_training_clicks_in_a_scenario_are_marked(store):
    marked_SV = statistics.make_constants(store, {"clicked_SV": (2, 6)})["clicked_SV"]
    np.testing.assert_array_equal(marked_SV, [[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]])
    assert marked_SV.dtype == np.float32


def test_fields_of_the_items_are_those_of_the_corpus(random_store):
    V = random_store.spec.num_items
    shapes = {"sparse_author_V": (V,), "dense_duration_V": (V,), "bag_tag_VP": (V, 3)}
    constants = statistics.make_constants(random_store, shapes)
    np.testing.assert_array_equal(constants["sparse_author_V"], random_store.items_sparse[:, 1])
    np.testing.assert_array_equal(constants["dense_duration_V"], random_store.items_dense[:, 0])
    np.testing.assert_array_equal(constants["bag_tag_VP"], random_store.items_bags["tag"])
    types = {name: value.dtype for name, value in constants.items()}
    assert types == {
        "sparse_author_V": np.int32, "dense_duration_V": np.float32, "bag_tag_VP": np.int32
    }  # fmt: skip


def test_constants_have_the_declared_shapes(store):
    shapes = {
        "log_prior_SV": (2, 6), "sequence_log_prior_V": (6,), "item_vector_VC": (6, 3)
    }  # fmt: skip
    constants = statistics.make_constants(store, shapes)
    assert {name: value.shape for name, value in constants.items()} == shapes
    assert all(value.dtype == np.float32 for value in constants.values())
    assert statistics.make_constants(store, {}) == {}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"log_prior_SV": (3, 6)}, r"'log_prior_SV': expected shape \(2, 6\)"),
        ({"mood": (2,)}, "constant 'mood': expected 'log_prior_SV', .* or a feature of the items"),
        ({"sparse_mood_V": (2,)}, "constant 'sparse_mood_V': expected 'log_prior_SV'"),
    ],
)
def test_constants_that_cannot_be_computed_are_refused(store, shapes, message):
    with pytest.raises(ValueError, match=message):
        statistics.make_constants(store, shapes)
