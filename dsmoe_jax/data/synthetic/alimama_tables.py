"""Ads and user profiles in the layout of Alimama's files: columns, values, shares, nulls.

Owns `ad_feature.csv` and `user_profile.csv`; their columns follow the simulated preferences, so
that features tell something. The logs are `data/synthetic/alimama_rows.py`'s.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

from dsmoe_jax.data.synthetic import folders, official_columns, tastes

OFFICIAL_USERS = 1_141_729
OFFICIAL_ADS = 846_811
# City levels 1..4 and the share of users in each; hidden for the share below.
LEVEL_SHARE = np.array([0.10, 0.45, 0.25, 0.20])
_LEVEL_NULL_SHARE = 0.3249
_PVALUE_NULL_SHARE = 0.5424
_USERS_WITHOUT_PROFILE = OFFICIAL_USERS - 1_061_768
_BRAND_NULL_SHARE = 0.29


class Ads(NamedTuple):
    """Ads, by row: ids as the files hold them."""

    adgroup_id_V: np.ndarray
    category_id_V: np.ndarray
    # The brand a behaviour on this ad shows; an ad without a brand shows one that no ad has.
    brand_id_V: np.ndarray
    other_category_ids: np.ndarray


def draw_brands(seed: int, num_ads: int) -> np.ndarray:
    """Brand code of every ad, int64 [V]; -1 for the 29 % of ads that have none."""
    rng = folders.random_stream(seed, "brands")
    num_brands = folders.scaled(99_814, OFFICIAL_ADS, num_ads)
    branded_V = ~folders.exact_mask(rng, num_ads, round(_BRAND_NULL_SHARE * num_ads))
    brand_V = np.full(num_ads, -1)
    brand_V[branded_V] = folders.covering_codes(rng, int(branded_V.sum()), num_brands, 0.7)
    return brand_V


def make_ads(seed: int, preferences: tastes.Preferences) -> tuple[pl.DataFrame, Ads]:
    """The rows of ad_feature.csv: 6 columns, one row per ad, and the ads for the logs.

    The creators of the preferences are the brands (`draw_brands`).
    """
    rng = folders.random_stream(seed, "ads")
    num_ads, brand_V = len(preferences.item_VD), preferences.creator_V
    # Fewer ads do not come in proportionally fewer categories.
    num_categories = round(6_769 * min(1.0, num_ads / OFFICIAL_ADS) ** 0.5)
    share = folders.zipf_shares(num_categories)
    category_V = official_columns.by_score(rng, preferences.item_VD[:, 0], share)
    num_brands = int(brand_V.max()) + 1
    # The behaviour log knows about twice the categories and five times the brands.
    category_ids = 1 + rng.permutation(2 * num_categories)
    brand_ids = 1 + rng.permutation(5 * num_brands)
    other_V = num_brands + rng.integers(0, 4 * num_brands, num_ads)
    brand_id_V = brand_ids[np.where(brand_V >= 0, brand_V, other_V)]
    price_V = np.exp(rng.normal(5.3, 1.6, num_ads)).clip(0.01, 99_999_999.0).round(2)
    price_V[rng.choice(num_ads, 2, replace=False)] = [0.01, 99_999_999.0]
    literal = pl.when(pl.Series(rng.random(num_ads) < 0.5)).then(pl.lit("NULL"))
    brand = pl.when(pl.Series(brand_V >= 0)).then(pl.Series(brand_id_V).cast(pl.String))
    adgroup_id_V = 1 + rng.permutation(num_ads)
    campaign_V, customer_V = (
        folders.covering_codes(rng, num_ads, folders.scaled(distinct, OFFICIAL_ADS, num_ads), 0.5)
        for distinct in (423_436, 255_876)
    )
    frame = pl.DataFrame(
        {
            "adgroup_id": adgroup_id_V,
            "cate_id": category_ids[category_V],
            "campaign_id": 1 + campaign_V,
            "customer": 1 + customer_V,
            "brand": pl.select(brand.otherwise(literal)).to_series(),
            "price": price_V,
        }
    )
    other_ids = category_ids[num_categories:]
    return frame, Ads(adgroup_id_V, category_ids[category_V], brand_id_V, other_ids)


def make_profiles(
    seed: int, preferences: tastes.Preferences, level_U: np.ndarray, user_id_U: np.ndarray
) -> pl.DataFrame:
    """The rows of user_profile.csv: 9 columns, one row for each user who has a profile.

    Codes follow the users' taste. `level_U` is every user's city level less 1, also where the file
    hides it.
    """
    rng = folders.random_stream(seed, "profiles")
    num_users = len(user_id_U)
    missing = folders.scaled(_USERS_WITHOUT_PROFILE, OFFICIAL_USERS, num_users)
    user = np.flatnonzero(~folders.exact_mask(rng, num_users, missing))
    taste_UD = preferences.user_UD[user]

    def codes(dim: int, count: int, exponent: float = 0.5) -> np.ndarray:
        share = folders.zipf_shares(count, exponent)
        return official_columns.by_score(rng, taste_UD[:, dim], share)

    def hide(values: np.ndarray, share: float) -> pl.Series:
        mask = folders.exact_mask(rng, len(user), round(share * len(user)))
        return official_columns.with_nulls(values, mask)

    frame = pl.DataFrame(
        {
            "userid": user_id_U[user],
            "cms_segid": codes(0, 97),
            "cms_group_id": codes(1, 13),
            "final_gender_code": 1 + codes(2, 2),
            "age_level": codes(3, 7),
            "pvalue_level": hide(1 + codes(4, 3), _PVALUE_NULL_SHARE),
            "shopping_level": 1 + codes(5, 3, 1.5),
            "occupation": codes(6, 2, 3.0),
            "new_user_class_level ": hide(1 + level_U[user], _LEVEL_NULL_SHARE),
        }
    )
    return frame.sort("userid")
