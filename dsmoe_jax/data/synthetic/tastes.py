"""Simulated preferences of synthetic rows: who likes what, where, and after what.

A user u in scenario s likes item v with utility

    x(u, v, s) = <taste_u, taste_v> + context_u M_s context_v + log P(v | s)
                 + match_weight * [creator of v is among the user's last L creators]

- taste: independent normal vectors, the part all scenarios share.
- scenario shift: a user's and an item's context are R-vectors (R = 4) that M_s, a free R x R matrix
  per scenario, connects; the shares' mean of M_s is zero. Stacked over scenarios the shift has rank
  R. It is no layer of ours: nothing here is diagonal, gated or normalised.
- popularity: a Zipf curve over items, tilted independently in every scenario.
- match: the indicator's score matrix has one independent direction per creator, so its rank is the
  number of creators (thousands), far above the width of any tower's output.

    B  rows     C  taste       L  recent creators       R  rank of the shift
    D = C + R   S  scenarios   U, V  users and items

Owns: drawing these vectors, and utilities. Does not own: who is shown and clicks what
(`data/synthetic/exposures.py`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from dsmoe_jax.data.synthetic import folders

SHIFT_RANK = 4


class Preferences(NamedTuple):
    """What decides who likes what. Utilities are in nats: a logit's unit.

    Attributes:
      user_UD: taste (C columns), then context (R columns).
      item_VD: the same columns on the item's side, scaled to the strengths asked for.
      mixing_SRR: M_s; the mean over scenarios, weighted by their shares, is zero.
      log_popularity_SV: log P(v | s); every row's exponentials sum to 1.
      creator_V: creator of each item, in [0, number of creators).
      match_weight: what a recent creator adds.
    """

    user_UD: Float32[np.ndarray, "U D"]
    item_VD: Float32[np.ndarray, "V D"]
    mixing_SRR: Float32[np.ndarray, "S R R"]
    log_popularity_SV: Float32[np.ndarray, "S V"]
    creator_V: Int[np.ndarray, "V"]
    match_weight: float


def make_preferences(
    seed: int,
    *,
    share_S: Float[np.ndarray, "S"],
    num_users: int,
    creator_V: Int[np.ndarray, "V"],
    taste_dim: int = 12,
    taste_std: float = 1.2,
    shift_std: float = 0.9,
    zipf_exponent: float = 0.8,
    tilt_std: float = 0.8,
    match_weight: float = 3.0,
) -> Preferences:
    """Draws a world's preferences.

    The shares of the scenarios need not sum to 1. `taste_std` is the standard deviation of the
    taste's utility over users and items, `shift_std` that of the scenario shift, over scenarios too
    (0: none), `zipf_exponent` is of the popularity curve that all scenarios share, `tilt_std` the
    standard deviation of a scenario's own log-popularity around it, and `match_weight` what a
    recent creator adds (0: no match).
    """
    rng = folders.random_stream(seed, "preferences")
    num_scenarios, num_items = len(share_S), len(creator_V)
    user_UD = rng.standard_normal((num_users, taste_dim + SHIFT_RANK), np.float32)
    item_VD = rng.standard_normal((num_items, taste_dim + SHIFT_RANK), np.float32)
    item_VD[:, :taste_dim] *= taste_std / taste_dim**0.5
    item_VD[:, taste_dim:] *= shift_std / SHIFT_RANK
    mixing_SRR = rng.standard_normal((num_scenarios, SHIFT_RANK, SHIFT_RANK))
    mixing_SRR -= np.average(mixing_SRR, axis=0, weights=share_S)[None]
    base_V = -zipf_exponent * np.log(1.0 + rng.permutation(num_items))
    score_SV = base_V[None] + tilt_std * rng.standard_normal((num_scenarios, num_items))
    score_SV -= np.log(np.exp(score_SV).sum(1, keepdims=True))
    return Preferences(
        user_UD=user_UD,
        item_VD=item_VD,
        mixing_SRR=mixing_SRR.astype(np.float32),
        log_popularity_SV=score_SV.astype(np.float32),
        creator_V=creator_V,
        match_weight=match_weight,
    )


def user_vectors(
    preferences: Preferences, user_B: Int[np.ndarray, "B"], scenario_B: Int[np.ndarray, "B"]
) -> Float32[np.ndarray, "B D"]:
    """The users' vectors in their scenarios: <user_vectors, item_VD> = taste + scenario shift."""
    vector_BD = preferences.user_UD[user_B]
    context_BR = vector_BD[:, -SHIFT_RANK:]
    vector_BD[:, -SHIFT_RANK:] = np.einsum(
        "br,bri->bi", context_BR, preferences.mixing_SRR[scenario_B]
    )
    return np.asarray(vector_BD)


def true_scores(
    preferences: Preferences,
    user_B: Int[np.ndarray, "B"],
    scenario_B: Int[np.ndarray, "B"],
    recent_BL: Int[np.ndarray, "B L"],
) -> Float32[np.ndarray, "B V"]:
    """The utility x of every item: the best ranking there is, given who, where and after what.

    `recent_BL` holds each user's last creators, -1 where there are fewer than L.
    """
    score_BV = user_vectors(preferences, user_B, scenario_B) @ preferences.item_VD.T
    score_BV += preferences.log_popularity_SV[scenario_B]
    if preferences.match_weight and recent_BL.shape[1]:
        num_creators = int(preferences.creator_V.max()) + 1
        # One column more, for the -1 of a short history.
        bonus_BC = np.zeros((len(user_B), num_creators + 1), np.float32)
        np.put_along_axis(bonus_BC, recent_BL, np.float32(preferences.match_weight), axis=1)
        bonus_BC[:, -1] = 0.0
        score_BV += bonus_BC[:, preferences.creator_V]
    return np.asarray(score_BV)
