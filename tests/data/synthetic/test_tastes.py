import numpy as np
import pytest

from dsmoe_jax.data.synthetic import tastes

RNG = np.random.default_rng
NOBODY = -1
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


@pytest.fixture(scope="module")
def two_scenarios():
    return tastes.make_preferences(
        3, share_S=np.array([3.0, 1.0]), num_users=50, creator_V=np.arange(300) % 100
    )


def draw(two_scenarios, rows, follow_share=0.0, recent=None, seed=0):
    user_B, scenario_B = RNG(seed).integers(0, 50, rows), RNG(seed + 1).integers(0, 2, rows)
    recent_BL = np.full((rows, 3), NOBODY) if recent is None else np.tile(recent, (rows, 1))
    drawn = tastes.Exposures(two_scenarios, follow_share).draw(
        RNG(9), user_B, scenario_B, recent_BL
    )
    return (user_B, scenario_B, *drawn)


def test_popular_items_are_shown_more_and_taste_picks_among_them(two_scenarios):
    user_B, scenario_B, item_B, utility_B = draw(two_scenarios, 40_000)
    for scenario in (0, 1):
        count = np.bincount(item_B[scenario_B == scenario], minlength=300)
        assert np.corrcoef(count, np.exp(two_scenarios.log_popularity_SV[scenario]))[0, 1] > 0.9
    random_item_B = RNG(5).integers(0, 300, len(user_B))
    vector_BD = tastes.user_vectors(two_scenarios, user_B, scenario_B)
    at_random = (vector_BD * two_scenarios.item_VD[random_item_B]).sum(1)
    assert utility_B.mean() > at_random.mean() + 0.5


def test_utility_is_taste_and_shift_of_the_item_shown(two_scenarios):
    user_B, scenario_B, item_B, utility_B = draw(two_scenarios, 500)
    scores = (
        tastes.true_scores(two_scenarios, user_B, scenario_B, np.full((500, 0), 0))
        - two_scenarios.log_popularity_SV[scenario_B]
    )
    np.testing.assert_allclose(utility_B, scores[np.arange(500), item_B], atol=1e-4)


def test_followers_are_shown_items_of_recent_creators(two_scenarios):
    _, _, item_B, _ = draw(two_scenarios, 10_000, follow_share=0.3, recent=[7, 8, 9])
    followed = np.isin(two_scenarios.creator_V[item_B], [7, 8, 9]).mean()
    _, _, item_B, _ = draw(two_scenarios, 10_000, follow_share=0.0, recent=[7, 8, 9])
    by_chance = np.isin(two_scenarios.creator_V[item_B], [7, 8, 9]).mean()
    assert followed == pytest.approx(0.3 + 0.7 * by_chance, abs=0.02)


def test_a_match_adds_its_weight(two_scenarios):
    _, _, item_B, utility_B = draw(two_scenarios, 2_000, recent=[7, 8, 9])
    plain = two_scenarios._replace(match_weight=0.0)
    _, _, same_item_B, plain_B = draw(plain, 2_000, recent=[7, 8, 9])
    np.testing.assert_array_equal(item_B, same_item_B)
    matched_B = np.isin(two_scenarios.creator_V[item_B], [7, 8, 9])
    np.testing.assert_allclose(utility_B - plain_B, 3.0 * matched_B, atol=1e-5)


def test_items_without_a_creator_match_nothing():
    matched = tastes.is_match(np.array([-1, 4, 4]), np.array([[-1, 4], [4, -1], [5, 6]]))
    assert matched.tolist() == [False, True, False]


def test_clicks_have_the_asked_rate_per_scenario_and_follow_the_utility():
    utility_B = RNG(0).standard_normal(60_000).astype(np.float32)
    scenario_B = RNG(1).integers(0, 3, 60_000)
    rate_S = np.array([0.05, 0.5, 0.9])
    click_B = tastes.draw_clicks(RNG(2), utility_B, scenario_B, rate_S)
    for scenario, rate in enumerate(rate_S):
        of = scenario_B == scenario
        # Four standard errors of 20,000 rows.
        assert click_B[of].mean() == pytest.approx(rate, abs=4 * 0.0036)
        assert utility_B[of & click_B].mean() > utility_B[of & ~click_B].mean() + 0.5


def test_recent_creators_are_the_last_clicks_oldest_first():
    recent_UL = np.array([[-1, 1, 2], [3, 4, 5], [-1, -1, -1], [6, 7, 8]])
    user_B = np.array([3, 0, 1, 3, 3, 3, 1])
    creator_B = np.array([10, 11, 12, 13, 14, 15, 16])
    updated = tastes.update_recent(recent_UL, user_B, creator_B)
    assert updated.tolist() == [[1, 2, 11], [5, 12, 16], [-1, -1, -1], [13, 14, 15]]


def test_recent_creators_equal_appending_one_by_one():
    rng = RNG(4)
    recent = [[-1] * 4 for _ in range(20)]
    updated = np.array(recent)
    for _ in range(5):
        user_B, creator_B = rng.integers(0, 20, 30), rng.integers(0, 90, 30)
        updated = tastes.update_recent(updated, user_B, creator_B)
        for user, creator in zip(user_B, creator_B, strict=True):
            recent[user] = [*recent[user][1:], creator]
    assert updated.tolist() == recent
