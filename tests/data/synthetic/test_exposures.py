import numpy as np
import pytest

from dsmoe_jax.data.synthetic import exposures as exposures_lib
from dsmoe_jax.data.synthetic import tastes

RNG = np.random.default_rng
NOBODY = -1


@pytest.fixture(scope="module")
def preferences():
    return tastes.make_preferences(
        3, share_S=np.array([3.0, 1.0]), num_users=50, creator_V=np.arange(300) % 100
    )


def draw(preferences, rows, follow_share=0.0, recent=None, seed=0):
    user_B, scenario_B = RNG(seed).integers(0, 50, rows), RNG(seed + 1).integers(0, 2, rows)
    recent_BL = np.full((rows, 3), NOBODY) if recent is None else np.tile(recent, (rows, 1))
    exposures = exposures_lib.Exposures(preferences, follow_share)
    return (user_B, scenario_B, *exposures.draw(RNG(9), user_B, scenario_B, recent_BL))


def test_popular_items_are_shown_more_and_taste_picks_among_them(preferences):
    user_B, scenario_B, item_B, utility_B = draw(preferences, 40_000)
    for scenario in (0, 1):
        count = np.bincount(item_B[scenario_B == scenario], minlength=300)
        assert np.corrcoef(count, np.exp(preferences.log_popularity_SV[scenario]))[0, 1] > 0.9
    random_item_B = RNG(5).integers(0, 300, len(user_B))
    vector_BD = tastes.user_vectors(preferences, user_B, scenario_B)
    at_random = (vector_BD * preferences.item_VD[random_item_B]).sum(1)
    assert utility_B.mean() > at_random.mean() + 0.5


def test_utility_is_taste_and_shift_of_the_item_shown(preferences):
    user_B, scenario_B, item_B, utility_B = draw(preferences, 500)
    scores = (
        tastes.true_scores(preferences, user_B, scenario_B, np.full((500, 0), 0))
        - preferences.log_popularity_SV[scenario_B]
    )
    np.testing.assert_allclose(utility_B, scores[np.arange(500), item_B], atol=1e-4)


def test_followers_are_shown_items_of_recent_creators(preferences):
    _, _, item_B, _ = draw(preferences, 10_000, follow_share=0.3, recent=[7, 8, 9])
    followed = np.isin(preferences.creator_V[item_B], [7, 8, 9]).mean()
    _, _, item_B, _ = draw(preferences, 10_000, follow_share=0.0, recent=[7, 8, 9])
    by_chance = np.isin(preferences.creator_V[item_B], [7, 8, 9]).mean()
    assert followed == pytest.approx(0.3 + 0.7 * by_chance, abs=0.02)


def test_a_match_adds_its_weight(preferences):
    _, _, item_B, utility_B = draw(preferences, 2_000, recent=[7, 8, 9])
    plain = preferences._replace(match_weight=0.0)
    _, _, same_item_B, plain_B = draw(plain, 2_000, recent=[7, 8, 9])
    np.testing.assert_array_equal(item_B, same_item_B)
    matched_B = np.isin(preferences.creator_V[item_B], [7, 8, 9])
    np.testing.assert_allclose(utility_B - plain_B, 3.0 * matched_B, atol=1e-5)


def test_items_without_a_creator_match_nothing():
    matched = exposures_lib.is_match(np.array([-1, 4, 4]), np.array([[-1, 4], [4, -1], [5, 6]]))
    assert matched.tolist() == [False, True, False]


def test_clicks_have_the_asked_rate_per_scenario_and_follow_the_utility():
    utility_B = RNG(0).standard_normal(60_000).astype(np.float32)
    scenario_B = RNG(1).integers(0, 3, 60_000)
    rate_S = np.array([0.05, 0.5, 0.9])
    click_B = exposures_lib.draw_clicks(RNG(2), utility_B, scenario_B, rate_S)
    for scenario, rate in enumerate(rate_S):
        of = scenario_B == scenario
        # Four standard errors of 20,000 rows.
        assert click_B[of].mean() == pytest.approx(rate, abs=4 * 0.0036)
        assert utility_B[of & click_B].mean() > utility_B[of & ~click_B].mean() + 0.5


def test_recent_creators_are_the_last_clicks_oldest_first():
    recent_UL = np.array([[-1, 1, 2], [3, 4, 5], [-1, -1, -1], [6, 7, 8]])
    user_B = np.array([3, 0, 1, 3, 3, 3, 1])
    creator_B = np.array([10, 11, 12, 13, 14, 15, 16])
    updated = exposures_lib.update_recent(recent_UL, user_B, creator_B)
    assert updated.tolist() == [[1, 2, 11], [5, 12, 16], [-1, -1, -1], [13, 14, 15]]


def test_recent_creators_equal_appending_one_by_one():
    rng = RNG(4)
    recent = [[-1] * 4 for _ in range(20)]
    updated = np.array(recent)
    for _ in range(5):
        user_B, creator_B = rng.integers(0, 20, 30), rng.integers(0, 90, 30)
        updated = exposures_lib.update_recent(updated, user_B, creator_B)
        for user, creator in zip(user_B, creator_B, strict=True):
            recent[user] = [*recent[user][1:], creator]
    assert updated.tolist() == recent
