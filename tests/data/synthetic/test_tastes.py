import numpy as np
import pytest

from dsmoe_jax.data.synthetic import tastes

U, V, S = 60, 200, 12
SHARE_S = 1.0 / np.arange(1, S + 1)


@pytest.fixture(scope="module")
def preferences():
    return tastes.make_preferences(
        3, share_S=SHARE_S, num_users=U, creator_V=np.arange(V) % 100, match_weight=4.0
    )


def shift_scores(preferences):
    """The scenario shift alone: of every user and item in each scenario."""
    user_SUR = [
        tastes.user_vectors(preferences, np.arange(U), np.full(U, s))[:, -4:] for s in range(S)
    ]
    return np.stack(user_SUR) @ preferences.item_VD[:, -4:].T


def test_scenario_shift_has_rank_four_over_all_scenarios(preferences):
    shift = np.concatenate(shift_scores(preferences))
    values = np.linalg.svd(shift.astype(np.float64), compute_uv=False)
    assert values[3] > 0.1 * values[0]
    assert values[4] < 1e-5 * values[0]


def test_scenario_shift_averages_to_nothing(preferences):
    shift = shift_scores(preferences)
    mean = np.average(shift, axis=0, weights=SHARE_S)
    np.testing.assert_allclose(mean, 0.0, atol=1e-5)
    assert np.abs(shift[0]).mean() > 0.1


def test_scores_are_taste_shift_popularity_and_match(preferences):
    p = preferences
    recent = np.array([[5, 7], [-1, 9]])
    score = tastes.true_scores(p, np.array([2, 8]), np.array([1, 4]), recent)
    for row, (user, scenario) in enumerate([(2, 1), (8, 4)]):
        for item in range(0, V, 7):
            expected = float(p.user_UD[user, :-4].astype(float) @ p.item_VD[item, :-4])
            expected += float(p.user_UD[user, -4:] @ p.mixing_SRR[scenario] @ p.item_VD[item, -4:])
            expected += float(p.log_popularity_SV[scenario, item])
            expected += 4.0 * (p.creator_V[item] in recent[row])
            assert score[row, item] == pytest.approx(expected, abs=1e-4)


def test_short_history_matches_no_item_without_a_creator(preferences):
    creator_V = preferences.creator_V.copy()
    creator_V[10] = -1
    changed = preferences._replace(creator_V=creator_V)
    nobody = np.full((1, 2), -1)
    args = (np.array([0]), np.array([0]))
    with_match = tastes.true_scores(changed, *args, nobody)
    without = tastes.true_scores(changed._replace(match_weight=0.0), *args, nobody)
    np.testing.assert_array_equal(with_match, without)


def test_match_has_as_many_directions_as_creators():
    # Each of 100 users follows another creator of 100: nothing of lower rank holds these scores.
    weights = tastes.make_preferences(
        0, share_S=np.ones(1), num_users=100, creator_V=np.arange(V) % 100, match_weight=1.0
    )
    users, zeros = np.arange(100), np.zeros(100, int)
    with_match = tastes.true_scores(weights, users, zeros, users[:, None])
    without = tastes.true_scores(weights, users, zeros, np.full((100, 1), -1))
    values = np.linalg.svd((with_match - without).astype(np.float64), compute_uv=False)
    assert values.min() > 0.9 * values.max()
    assert np.linalg.matrix_rank(without.astype(np.float64), tol=1e-3) <= 12 + 4 + 1


def test_popularity_sums_to_one_and_differs_between_scenarios(preferences):
    share = np.exp(preferences.log_popularity_SV.astype(np.float64))
    np.testing.assert_allclose(share.sum(1), 1.0, rtol=1e-4)
    correlation = np.corrcoef(preferences.log_popularity_SV)[np.triu_indices(S, 1)]
    assert 0.2 < correlation.mean() < 0.8


def test_preferences_repeat_by_seed_and_differ_between_seeds():
    def make(seed):
        return tastes.make_preferences(
            seed, share_S=np.ones(2), num_users=5, creator_V=np.arange(8)
        )

    np.testing.assert_array_equal(make(1).item_VD, make(1).item_VD)
    assert not np.array_equal(make(1).item_VD, make(2).item_VD)
