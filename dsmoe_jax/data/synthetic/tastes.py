"""Simulated preferences of synthetic rows: who likes what, is shown it, and clicks on it.

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
    D = C + R   S  scenarios   U, V  users and items    M  slate

Owns: drawing these vectors, and utilities; choosing items for impressions, turning utilities into
clicks of a given rate, and the recent creators that clicks leave behind. Does not own: the files.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from dsmoe_jax.data.synthetic import files

SHIFT_RANK = 4
# Rows handled at once: small enough that a slate's vectors stay in the cache.
_CHUNK_ROWS = 1 << 16


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
    rng = files.random_stream(seed, "preferences")
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


def is_match(
    creator_B: Int[np.ndarray, "B"], recent_BL: Int[np.ndarray, "B L"]
) -> Bool[np.ndarray, "B"]:
    """Whether each row's creator is among its recent ones; creator -1 matches nothing."""
    return np.asarray((creator_B[:, None] == recent_BL).any(1) & (creator_B >= 0))


class Exposures:
    """Draws the item that a user is shown: popular in the scenario and, mildly, to the taste.

    A slate of items is drawn from the scenario's popularity and the user's taste picks one of it;
    a part of the rows instead shows an item of one of the user's recent creators, without which a
    match would be too rare to be seen in a log.

    Attributes:
      follow_share: Share of rows that show an item of a recent creator, where there is one.
    """

    SLATE = 4

    def __init__(self, preferences: Preferences, follow_share: float) -> None:
        """Prepares the tables to draw from."""
        self.preferences = preferences
        self.follow_share = follow_share
        self._edge_SV = np.cumsum(np.exp(preferences.log_popularity_SV), axis=1, dtype=np.float64)
        creator_V = preferences.creator_V
        # Items ordered by creator; -1 (no creator) sorts first and is never asked for.
        self._by_creator_V = np.argsort(creator_V, kind="stable")
        ids = np.arange(creator_V.max() + 2)
        self._start_C = np.searchsorted(creator_V[self._by_creator_V], ids)

    def draw(
        self,
        rng: np.random.Generator,
        user_B: Int[np.ndarray, "B"],
        scenario_B: Int[np.ndarray, "B"],
        recent_BL: Int[np.ndarray, "B L"],
    ) -> tuple[Int[np.ndarray, "B"], Float32[np.ndarray, "B"]]:
        """Draws items and the utilities that decide clicks (popularity is not part of these).

        `recent_BL` holds the recent creators of each row's user, -1 where there are none.
        """
        preferences, rows = self.preferences, len(user_B)
        if rows > _CHUNK_ROWS:
            parts = []
            for start in range(0, rows, _CHUNK_ROWS):
                part = slice(start, start + _CHUNK_ROWS)
                parts.append(self.draw(rng, user_B[part], scenario_B[part], recent_BL[part]))
            item_B, utility_B = (np.concatenate(column) for column in zip(*parts, strict=True))
            return item_B, utility_B
        vector_BD = user_vectors(preferences, user_B, scenario_B)
        slate_BM = self._draw_popular(rng, scenario_B)
        logit_BM = np.einsum("bd,bmd->bm", vector_BD, preferences.item_VD[slate_BM])
        noise_BM = rng.standard_exponential((rows, self.SLATE), np.float32)
        # Adding Gumbel noise before the argmax draws from the softmax of the logits.
        pick_B = np.argmax(logit_BM - np.log(np.maximum(noise_BM, 1e-30)), axis=1)
        item_B = slate_BM[np.arange(rows), pick_B]
        self._follow(rng, item_B, recent_BL)
        utility_B = np.einsum("bd,bd->b", vector_BD, preferences.item_VD[item_B])
        match_B = is_match(preferences.creator_V[item_B], recent_BL)
        return item_B, utility_B + np.float32(preferences.match_weight) * match_B

    def _draw_popular(
        self, rng: np.random.Generator, scenario_B: Int[np.ndarray, "B"]
    ) -> Int[np.ndarray, "B M"]:
        position_BM = rng.random((len(scenario_B), self.SLATE))
        slate_BM = np.empty(position_BM.shape, np.int64)
        for scenario, edge_V in enumerate(self._edge_SV):
            row = np.flatnonzero(scenario_B == scenario)
            slate_BM[row] = np.searchsorted(edge_V, position_BM[row] * edge_V[-1], side="right")
        return np.asarray(np.minimum(slate_BM, self._edge_SV.shape[1] - 1))

    def _follow(
        self,
        rng: np.random.Generator,
        item_B: Int[np.ndarray, "B"],
        recent_BL: Int[np.ndarray, "B L"],
    ) -> None:
        """Replaces the items of the rows that follow a creator, in place."""
        rows, length = recent_BL.shape
        if not length:
            return
        creator_B = recent_BL[np.arange(rows), rng.integers(0, length, rows)]
        follows_B = (rng.random(rows) < self.follow_share) & (creator_B >= 0)
        position_B = rng.random(len(item_B))
        row = np.flatnonzero(follows_B)
        creator = creator_B[row]
        start, stop = self._start_C[creator], self._start_C[creator + 1]
        # A creator of whom nothing is on offer keeps the row's own item.
        offered = stop > start
        row, start, stop = row[offered], start[offered], stop[offered]
        offset = (position_B[row] * (stop - start)).astype(np.int64)
        item_B[row] = self._by_creator_V[start + offset]


def draw_clicks(
    rng: np.random.Generator,
    utility_B: Float32[np.ndarray, "B"],
    scenario_B: Int[np.ndarray, "B"],
    rate_S: Float[np.ndarray, "S"],
) -> Bool[np.ndarray, "B"]:
    """Clicks with probability sigmoid(utility + a_s), a_s such that scenario s has its rate."""
    click_B = np.zeros(len(utility_B), bool)
    position_B = rng.random(len(utility_B))
    for scenario, rate in enumerate(rate_S):
        row = np.flatnonzero(scenario_B == scenario)
        if len(row):
            logit = utility_B[row].astype(np.float64)
            # A part of the rows is enough to place the intercept.
            intercept = _solve_intercept(logit[: 4 * _CHUNK_ROWS], float(rate))
            click_B[row] = position_B[row] < _sigmoid(logit + intercept)
    return click_B


def _sigmoid(logit_B: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-logit_B)))


def _solve_intercept(logit_B: np.ndarray, rate: float) -> float:
    """The intercept at which the mean click probability is `rate`, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        below = _sigmoid(logit_B + middle).mean() < rate
        low, high = (middle, high) if below else (low, middle)
    return 0.5 * (low + high)


def update_recent(
    recent_UL: Int[np.ndarray, "U L"],
    user_B: Int[np.ndarray, "B"],
    creator_B: Int[np.ndarray, "B"],
) -> Int[np.ndarray, "U L"]:
    """Appends clicks, in the order of their times, to the users' last L creators, oldest first.

    A user with fewer than L has -1 before them.
    """
    num_users, length = recent_UL.shape
    order = np.argsort(user_B, kind="stable")
    user_B, creator_B = user_B[order], creator_B[order]
    count_U = np.bincount(user_B, minlength=num_users)
    stop_U = np.cumsum(count_U)
    source_UL = np.arange(length)[None] + np.minimum(count_U, length)[:, None]
    padded = np.concatenate([recent_UL, np.full_like(recent_UL, -1)], axis=1)
    new_UL = np.take_along_axis(padded, source_UL, axis=1)
    from_end_B = stop_U[user_B] - 1 - np.arange(len(user_B))
    kept = from_end_B < length
    new_UL[user_B[kept], length - 1 - from_end_B[kept]] = creator_B[kept]
    return new_UL
