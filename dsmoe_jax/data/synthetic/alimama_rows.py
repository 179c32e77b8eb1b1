"""A synthetic twin of Alimama's display-advertising logs: the official files, at any size.

Owns: the four CSV files, with the official columns, shares, nulls and quirks; who clicks what, and
what the columns of ads and profiles tell, follows `data/synthetic/tastes.py`. Users are generated
in blocks, each with all of its behaviours and impressions, so memory does not grow with the 723
million behaviours of the official log. Reading the files is `alimama.py`'s.
"""

import dataclasses
import itertools
import pathlib
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl

from dsmoe_jax import runlog
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import alimama
from dsmoe_jax.data.synthetic import files, tastes

OFFICIAL_USERS = 1_141_729
OFFICIAL_ADS = 846_811
OFFICIAL_IMPRESSIONS = 26_557_961
OFFICIAL_BEHAVIORS = 723_268_134

# City levels 1..4 and the share of users in each; hidden for the share below.
_LEVEL_SHARE = np.array([0.10, 0.45, 0.25, 0.20])
_LEVEL_NULL_SHARE = 0.3249
_PVALUE_NULL_SHARE = 0.5424
_USERS_WITHOUT_PROFILE = OFFICIAL_USERS - 1_061_768
_BRAND_NULL_SHARE = 0.29
_CLICK_RATE = 1_366_056 / OFFICIAL_IMPRESSIONS
_DUPLICATE_SHARE = 0.0706
_IMPOSSIBLE_TIMES = 26_278
_TAGS = ["pv", "cart", "fav", "buy"]
_TAG_SHARE = np.array([638.6, 15.9, 9.3, 8.4])
_PIDS = ["430548_1007", "430539_1007"]

_RECENT = 10
_INTERESTS = 8
_BLOCK_BEHAVIORS = 1_500_000


@dataclasses.dataclass
class SyntheticAlimamaConfig(files.Generated, alimama.AlimamaConfig):
    """A generated twin of Alimama's logs, read by the same loader.

    `raw_dir` is where the files are generated; empty means beside the store. Files in place are
    reused when these settings are unchanged. The official size is num_users=1141729,
    num_items=846811, num_impressions=26557961, num_behaviors=723268134 (24 GB of files).

    Attributes:
      num_users: Users of raw_sample.csv. Seven per cent have no profile.
      num_items: Rows of ad_feature.csv.
      num_impressions: Rows of raw_sample.csv, at least one per user.
      num_behaviors: Rows of behavior_log.csv.
      generator_seed: Decides every byte of the files.
    """

    num_users: int = 25_000
    num_items: int = 18_000
    num_impressions: int = 600_000
    num_behaviors: int = 1_500_000
    generator_seed: int = 0

    TITLE: ClassVar[str] = "Alimama's display-advertising logs"
    NOTE: ClassVar[str] = (
        "Simulated: users' and ads' taste; a taste shift per city level of rank 4; ad popularity "
        "per city level; and an ad is clicked more if its brand is among the brands of the user's "
        "last 10 behaviours. Numbers of distinct values, shares, nulls and quirks imitate the "
        "official files: the trailing space of `new_user_class_level `, brands that are NULL or "
        "empty, users of raw_sample without a profile, impossible timestamps, repeated behaviour "
        "rows, and behaviours in categories and brands that no ad has."
    )

    def write(self, folder: pathlib.Path) -> None:
        """Writes the four CSV files into `folder`.

        Raises:
          ValueError: If a size is too small for the tables' distinct values.
        """
        rows = self.num_users
        files.check_least(
            self, num_users=400, num_items=400, num_impressions=rows, num_behaviors=rows
        )
        preferences = tastes.make_preferences(
            self.generator_seed,
            share_S=_LEVEL_SHARE,
            num_users=self.num_users,
            creator_V=_draw_brands(self.generator_seed, self.num_items),
        )
        rng = files.random_stream(self.generator_seed, "levels")
        level_U = files.deal(rng, _LEVEL_SHARE, self.num_users)
        user_id_U = 1 + rng.permutation(self.num_users)
        frame, ads = _make_ads(self.generator_seed, preferences)
        frame.write_csv(folder / alimama.ADS_FILE)
        profiles = _make_profiles(self.generator_seed, preferences, level_U, user_id_U)
        profiles.write_csv(folder / alimama.PROFILES_FILE)
        exposures = tastes.Exposures(preferences, follow_share=0.2)
        _write_logs(folder, self, _World(exposures, level_U, user_id_U, ads))


class _Ads(NamedTuple):
    """Ads, by row: ids as the files hold them."""

    adgroup_id_V: np.ndarray
    category_id_V: np.ndarray
    # The brand a behaviour on this ad shows; an ad without a brand shows one that no ad has.
    brand_id_V: np.ndarray
    other_category_ids: np.ndarray


class _World(NamedTuple):
    """Who is in the logs, and what they are shown; levels are the city levels less 1."""

    exposures: tastes.Exposures
    level_U: np.ndarray
    user_id_U: np.ndarray
    ads: _Ads


def _draw_brands(seed: int, num_ads: int) -> np.ndarray:
    """Brand code of every ad, int64 [V]; -1 for the 29 % of ads that have none."""
    rng = files.random_stream(seed, "brands")
    num_brands = files.scaled(99_814, OFFICIAL_ADS, num_ads)
    branded_V = ~files.exact_mask(rng, num_ads, round(_BRAND_NULL_SHARE * num_ads))
    brand_V = np.full(num_ads, -1)
    brand_V[branded_V] = files.covering_codes(rng, int(branded_V.sum()), num_brands, 0.7)
    return brand_V


def _make_ads(seed: int, preferences: tastes.Preferences) -> tuple[pl.DataFrame, _Ads]:
    """The rows of ad_feature.csv: 6 columns, one row per ad, and the ads for the logs.

    The creators of the preferences are the brands (`_draw_brands`).
    """
    rng = files.random_stream(seed, "ads")
    num_ads, brand_V = len(preferences.item_VD), preferences.creator_V
    # Fewer ads do not come in proportionally fewer categories.
    num_categories = round(6_769 * min(1.0, num_ads / OFFICIAL_ADS) ** 0.5)
    share = files.zipf_shares(num_categories)
    category_V = files.by_score(rng, preferences.item_VD[:, 0], share)
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
        files.covering_codes(rng, num_ads, files.scaled(distinct, OFFICIAL_ADS, num_ads), 0.5)
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
    return frame, _Ads(adgroup_id_V, category_ids[category_V], brand_id_V, other_ids)


def _make_profiles(
    seed: int, preferences: tastes.Preferences, level_U: np.ndarray, user_id_U: np.ndarray
) -> pl.DataFrame:
    """The rows of user_profile.csv: 9 columns, one row for each user who has a profile.

    Codes follow the users' taste. `level_U` is every user's city level less 1, also where the file
    hides it.
    """
    rng = files.random_stream(seed, "profiles")
    num_users = len(user_id_U)
    missing = files.scaled(_USERS_WITHOUT_PROFILE, OFFICIAL_USERS, num_users)
    user = np.flatnonzero(~files.exact_mask(rng, num_users, missing))
    taste_UD = preferences.user_UD[user]

    def codes(dim: int, count: int, exponent: float = 0.5) -> np.ndarray:
        share = files.zipf_shares(count, exponent)
        return files.by_score(rng, taste_UD[:, dim], share)

    def hide(values: np.ndarray, share: float) -> pl.Series:
        mask = files.exact_mask(rng, len(user), round(share * len(user)))
        return files.with_nulls(values, mask)

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


def _write_logs(folder: pathlib.Path, size: SyntheticAlimamaConfig, world: _World) -> None:
    rng = files.random_stream(size.generator_seed, "activity")
    activity_U = np.exp(rng.standard_normal(size.num_users))
    impressions_U = 1 + files.spread_counts(activity_U, size.num_impressions - size.num_users)
    repeats = round(_DUPLICATE_SHARE * size.num_behaviors)
    # Who sees many ads does much else too, but not in proportion.
    activity_U = activity_U**0.5 * np.exp(0.8 * rng.standard_normal(size.num_users))
    behaviors_U = files.spread_counts(activity_U, size.num_behaviors - repeats)
    edges = _block_edges(behaviors_U + impressions_U)
    kept_N = np.diff(np.concatenate([[0], np.cumsum(behaviors_U)])[edges])
    repeats_N = files.spread_counts(kept_N, repeats)
    impossible = files.scaled(_IMPOSSIBLE_TIMES, OFFICIAL_BEHAVIORS, size.num_behaviors, 3)
    impossible_N = files.spread_counts(kept_N, impossible)
    with (
        (folder / alimama.SAMPLES_FILE).open("wb") as samples,
        (folder / alimama.BEHAVIORS_FILE).open("wb") as behaviors,
        runlog.bar(total=size.num_behaviors, desc="generate", delay=2) as bar,
    ):
        for block, (low, high) in enumerate(itertools.pairwise(edges)):
            rng = files.random_stream(size.generator_seed, "block", block)
            user_B = np.arange(low, high)
            log = _draw_behaviors(rng, world, user_B, behaviors_U[low:high])
            counts = int(repeats_N[block]), int(impossible_N[block])
            frame = _behavior_frame(rng, world, log, *counts)
            files.append_csv(behaviors, frame)
            bar.update(frame.height)
            user_B = np.repeat(user_B, impressions_U[low:high])
            files.append_csv(samples, _sample_frame(rng, world, log, user_B))


def _block_edges(rows_U: np.ndarray) -> np.ndarray:
    """Users at which blocks of at most about `_BLOCK_BEHAVIORS` rows begin, and the end."""
    stop_U = np.cumsum(rows_U)
    cuts = np.searchsorted(stop_U, np.arange(_BLOCK_BEHAVIORS, stop_U[-1], _BLOCK_BEHAVIORS))
    return np.unique(np.concatenate([[0], cuts, [len(rows_U)]]))


class _Behaviors(NamedTuple):
    """Behaviours of a block of users, user-major and chronological."""

    user_E: np.ndarray
    time_E: np.ndarray
    item_E: np.ndarray
    # Not a brand that an ad has: -1.
    brand_code_E: np.ndarray
    is_elsewhere_E: np.ndarray


def _draw_behaviors(
    rng: np.random.Generator, world: _World, user_B: np.ndarray, count_B: np.ndarray
) -> _Behaviors:
    """Behaviours on what a user likes: a few interests, and at times something popular."""
    recent_BL = np.zeros((len(user_B) * _INTERESTS, 0), np.int64)
    owner = np.repeat(user_B, _INTERESTS)
    interest, _ = world.exposures.draw(rng, owner, world.level_U[owner], recent_BL)
    rows = int(count_B.sum())
    place_E = np.repeat(np.arange(len(user_B)), count_B)
    pick_E = files.draw_shares(rng, files.zipf_shares(_INTERESTS), rows)
    item_E = interest[place_E * _INTERESTS + pick_E]
    # Every tenth behaviour is on what somebody else likes.
    stray_E = rng.random(rows) < 0.1
    item_E[stray_E] = interest[rng.integers(0, len(interest), int(stray_E.sum()))]
    is_elsewhere_E = rng.random(rows) < 0.05
    brand_code_E = world.exposures.preferences.creator_V[item_E]
    brand_code_E[is_elsewhere_E] = -1
    time_E = _draw_times(rng, rows, alimama.BEHAVIORS_START_S, alimama.BEHAVIORS_DAYS)
    # All else is independent of time, so sorting times within users sorts the rows.
    time_E = np.sort((place_E << 32) + time_E) & (2**32 - 1)
    return _Behaviors(user_B[place_E], time_E, item_E, brand_code_E, is_elsewhere_E)


def _draw_times(rng: np.random.Generator, rows: int, start_s: int, days: int) -> np.ndarray:
    day_B = rng.integers(0, days, rows)
    second_B = files.draw_time_of_day_ms(rng, rows) // 1000
    return np.asarray(start_s + day_B * store_lib.DAY_S + second_B)


def _behavior_frame(
    rng: np.random.Generator, world: _World, log: _Behaviors, repeats: int, impossible: int
) -> pl.DataFrame:
    """The rows of behavior_log.csv, shuffled, some of them twice, few with absurd times."""
    rows, ads = len(log.user_E), world.ads
    tag_E = files.draw_shares(rng, _TAG_SHARE, rows)
    category_E = ads.category_id_V[log.item_E]
    elsewhere = np.flatnonzero(log.is_elsewhere_E)
    other = rng.integers(0, len(ads.other_category_ids), len(elsewhere))
    category_E[elsewhere] = ads.other_category_ids[other]
    time_E = log.time_E.copy()
    absurd = rng.choice(rows, min(impossible, rows), replace=False)
    # Before the epoch, at it, years before the log and years after it.
    values = np.array([-2_114_566_861, 0, 978_307_200, 2_088_422_400])
    time_E[absurd] = values[rng.integers(0, len(values), len(absurd))]
    source = np.concatenate([np.arange(rows), rng.choice(rows, min(repeats, rows), replace=False)])
    source = rng.permutation(source)
    return pl.DataFrame(
        {
            "user": world.user_id_U[log.user_E[source]],
            "time_stamp": time_E[source],
            "btag": files.take(_TAGS, tag_E[source]),
            "cate": category_E[source],
            "brand": ads.brand_id_V[log.item_E[source]],
        }
    )


def _sample_frame(
    rng: np.random.Generator, world: _World, log: _Behaviors, user_B: np.ndarray
) -> pl.DataFrame:
    """The rows of raw_sample.csv, shuffled, one for each of `user_B` (which ascends)."""
    time_B = _draw_times(rng, len(user_B), alimama.SAMPLES_START_S, alimama.SAMPLES_DAYS)
    recent_BL = _recent_brands(log, user_B, time_B)
    level_B = world.level_U[user_B]
    item_B, utility_B = world.exposures.draw(rng, user_B, level_B, recent_BL)
    rate_S = np.full(len(_LEVEL_SHARE), _CLICK_RATE)
    click_B = tastes.draw_clicks(rng, utility_B, level_B, rate_S)
    order = rng.permutation(len(user_B))
    click_B = click_B[order].astype(np.int64)
    return pl.DataFrame(
        {
            "user": world.user_id_U[user_B[order]],
            "time_stamp": time_B[order],
            "adgroup_id": world.ads.adgroup_id_V[item_B[order]],
            "pid": files.take(_PIDS, (rng.random(len(order)) < 0.4).astype(np.int64)),
            "nonclk": 1 - click_B,
            "clk": click_B,
        }
    )


def _recent_brands(log: _Behaviors, user_B: np.ndarray, time_B: np.ndarray) -> np.ndarray:
    """Brand codes [B, L] of each user's last behaviours before the time; -1 where none."""
    key_E = (log.user_E << 32) + log.time_E
    start_B = np.searchsorted(key_E, user_B << 32)
    stop_B = np.searchsorted(key_E, (user_B << 32) + time_B)
    index_BL = stop_B[:, None] - 1 - np.arange(_RECENT)[None]
    inside_BL = index_BL >= start_B[:, None]
    # The index is only looked at where it is inside.
    return np.asarray(np.where(inside_BL, log.brand_code_E[np.maximum(index_BL, 0)], -1))
