"""Simulated world of known true scores: for experiments on what a method can learn.

Every user's events are drawn one after the other from the softmax of the true utilities of
`data/synthetic/tastes.py` (without repetition), so the ranking by these utilities is the best there
is, and its recall is the ceiling of every model's. Two questions come with a ceiling of their own:

- scenario shift: does a layer of low-rank scenario adaptation earn more than the same number of
  parameters elsewhere? (`match_weight=0`, many scenarios with Zipf shares)
- high-rank interaction: what does a two-tower model of width d lose where an item is liked because
  its creator is among the user's last ones? (`shift_std=0`; compare with `truncate`)

Owns: the generated log, user and item tables, which `custom.py` reads, and the true scores of a
store's queries.

    B, Q  rows     D  taste and context     L  recent creators     V  items, with the padding row
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import numpy as np
import polars as pl
import scipy.linalg
from jaxtyping import Float, Float32, Int

from dsmoe_jax import runlog
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import assemble, custom, events
from dsmoe_jax.data.synthetic import files, tastes

TRUTH_FILE = "truth.npz"
# 2024-01-01 00:00 UTC.
_START_S = 1_704_067_200
# A block of scores (times items, times four bytes) stays near the cache.
_BLOCK_USERS = 256


@dataclasses.dataclass
class SyntheticWorldConfig(files.Generated, schema.DataConfig):
    """A generated world.

    `raw_dir` is where its files are generated; empty means beside the store.

    Attributes:
      num_users, num_items, num_scenarios: U, V, S.
      num_creators: Groups that items belong to, in equal parts; at most `num_items`.
      events_per_user: Mean number of a user's events; each has from half to one and a half of it.
      num_days: Days that events are spread over.
      scenario_exponent: Shares of scenarios are proportional to rank^-exponent.
      recent: L, how many of the last creators count.
      taste_dim: Dimensions of the taste.
      taste_std, shift_std, tilt_std, match_weight: Strengths; see `tastes.make_preferences`.
      feature_noise: Standard deviation of what is added to taste and context (which have 1 on the
        user's side) before models see them as dense features.
      generator_seed: Decides every byte of the files.
    """

    num_users: int = 8_000
    num_items: int = 4_000
    num_scenarios: int = 12
    num_creators: int = 1_000
    events_per_user: int = 24
    num_days: int = 20
    scenario_exponent: float = 1.0
    recent: int = 10
    taste_dim: int = 8
    taste_std: float = 1.2
    shift_std: float = 1.2
    tilt_std: float = 0.8
    match_weight: float = 0.0
    feature_noise: float = 0.3
    generator_seed: int = 0

    TITLE: ClassVar[str] = "a plain log with user and item tables"
    NOTE: ClassVar[str] = (
        "Events are drawn from the softmax of known utilities: taste, a scenario shift of rank 4, "
        "popularity per scenario, recent creators. truth.npz holds what they are made of."
    )

    def prepare(self, store_dir: str) -> None:
        """Generates the files, then writes the store; see `schema.DataConfig.prepare`."""
        files.check_least(
            self,
            num_users=100,
            num_scenarios=1,
            num_creators=2,
            num_items=max(2 * self.events_per_user, self.num_creators),
            events_per_user=2,
            recent=1,
            taste_dim=1,
            num_days=self.validation_days + self.test_days + 1,
        )
        folder = self.generate(self.folder(store_dir))
        dims = self.taste_dim + tastes.SHIFT_RANK
        _SimulatedLogConfig(
            raw_dir=str(folder),
            validation_days=self.validation_days,
            test_days=self.test_days,
            drop_last_days=self.drop_last_days,
            name="planted world (synthetic)",
            log_files=("log.parquet",),
            users_file="users.parquet",
            items_file="items.parquet",
            scenarios=tuple(str(s) for s in range(self.num_scenarios)),
            user_dense=tuple(f"user_{d}" for d in range(dims)),
            item_dense=tuple(f"item_{d}" for d in range(dims)),
            item_sparse=("creator",),
        ).prepare(store_dir)

    def write(self, folder: pathlib.Path) -> None:
        """Writes the log, the tables of users and items, and what the true scores are made of."""
        seed = self.generator_seed
        rng = files.random_stream(seed, "world")
        share_S = files.zipf_shares(self.num_scenarios, self.scenario_exponent)
        preferences = tastes.make_preferences(
            seed,
            share_S=share_S,
            num_users=self.num_users,
            creator_V=rng.permutation(self.num_items) % self.num_creators,
            taste_dim=self.taste_dim,
            taste_std=self.taste_std,
            shift_std=self.shift_std,
            tilt_std=self.tilt_std,
            match_weight=self.match_weight,
        )
        np.savez(folder / TRUTH_FILE, **preferences._asdict(), recent=self.recent)
        user_BD = preferences.user_UD
        # Items are seen in the units of users, whatever the strengths.
        item_BD = preferences.item_VD / np.maximum(preferences.item_VD.std(0, keepdims=True), 1e-9)
        for side, vector_BD in (("user", user_BD), ("item", item_BD)):
            noise_BD = self.feature_noise * rng.standard_normal(vector_BD.shape)
            seen_BD = (vector_BD + noise_BD).astype(np.float32)
            table: dict[str, np.ndarray] = {f"{side}_id": np.arange(len(seen_BD))}
            table |= {f"{side}_{d}": seen_BD[:, d] for d in range(seen_BD.shape[1])}
            if side == "item":
                table["creator"] = preferences.creator_V
            pl.DataFrame(table).write_parquet(folder / f"{side}s.parquet")
        half = self.events_per_user // 2
        count_U = rng.integers(half, self.events_per_user + half + 1, self.num_users)
        blocks = range(0, self.num_users, _BLOCK_USERS)
        user_U = np.arange(self.num_users)
        frames = []
        for first in runlog.bar(blocks, desc="generate events", delay=2):
            part = slice(first, first + _BLOCK_USERS)
            frames.append(self._draw_block(preferences, share_S, user_U[part], count_U[part]))
        pl.concat(frames).sort("time", "user_id").write_parquet(folder / "log.parquet")

    def _draw_block(
        self, preferences: tastes.Preferences, share_S: np.ndarray, user_B: np.ndarray,
        count_B: np.ndarray,
    ) -> pl.DataFrame:  # fmt: skip
        """All events of some users, step by step: each depends on those before it."""
        rng = files.random_stream(self.generator_seed, "events", int(user_B[0]))
        steps = int(count_B.max())
        scenario_BT = files.draw_shares(rng, share_S, len(user_B) * steps)
        scenario_BT = scenario_BT.reshape(len(user_B), steps)
        # One event a second at most, so that "before" is never a tie.
        span_s = self.num_days * store_lib.DAY_S // steps
        time_BT = np.sort(rng.integers(0, steps * (span_s - 1), scenario_BT.shape), axis=1)
        time_BT += _START_S + np.arange(steps)[None]
        # The last `count` steps of each user count, so that the last days are as full as others.
        first_B = steps - count_B
        item_BT = np.full(scenario_BT.shape, -1)
        recent_BL = np.full((len(user_B), self.recent), -1)
        available_BV = np.zeros((len(user_B), len(preferences.item_VD)), np.float32)
        for t in range(steps):
            row = np.flatnonzero(t >= first_B)
            score_BV = tastes.true_scores(
                preferences, user_B[row], scenario_BT[row, t], recent_BL[row]
            )
            item_B = _draw_softmax(rng, score_BV + available_BV[row])
            item_BT[row, t] = item_B
            available_BV[row, item_B] = -np.inf
            recent_BL = tastes.update_recent(recent_BL, row, preferences.creator_V[item_B])
        kept_BT = item_BT >= 0
        return pl.DataFrame(
            {
                "user_id": np.broadcast_to(user_B[:, None], kept_BT.shape)[kept_BT],
                "item_id": item_BT[kept_BT],
                "time": time_BT[kept_BT],
                "scenario": scenario_BT[kept_BT],
            }
        )


class _SimulatedLogConfig(custom.CustomConfig):
    """The generated files, with what a user liked by its creators as well: `creator_history`."""

    def _load(self, *files: Any) -> assemble.Dataset:
        dataset = super()._load(*files)
        creators = dataset.items.frame.select(pl.col("item_id").alias("item"), "creator")
        liked = dataset.positives.join(creators, on="item").select("user", "time_s", "creator")
        log = events.BehaviorLog("creator_history", ("creator",), lambda: iter((liked,)))
        return dataclasses.replace(dataset, behavior=log)


def _draw_softmax(
    rng: np.random.Generator, score_BV: Float32[np.ndarray, "B V"]
) -> Int[np.ndarray, "B"]:
    """One item per row with probability softmax(score)."""
    weight_BV = np.exp(score_BV - score_BV.max(1, keepdims=True))
    edge_BV = np.cumsum(weight_BV, axis=1)
    position_B = rng.random((len(score_BV), 1), np.float32) * edge_BV[:, -1:]
    return np.asarray(np.minimum((edge_BV <= position_B).sum(1), score_BV.shape[1] - 1))


class TrueScores:
    """The true utilities of a prepared world's queries: the ceiling of every model's recall."""

    def __init__(self, folder: str | pathlib.Path, store: store_lib.Store):
        """Loads what the utilities are made of from `SyntheticWorldConfig.folder`.

        Raises:
          ValueError: If the folder holds no world.
        """
        path = pathlib.Path(folder) / TRUTH_FILE
        if not path.is_file():
            raise ValueError(f"{path}: expected the file of a generated world, found none")
        with np.load(path, allow_pickle=False) as truth:
            arrays = {name: truth[name] for name in truth.files}
        self._recent = int(arrays.pop("recent"))
        match_weight = float(arrays.pop("match_weight"))
        self.preferences = tastes.Preferences(**arrays, match_weight=match_weight)
        self._store = store
        # Rows of the store to rows of the world; row 0 is nobody.
        self._user_U = np.array([-1, *map(int, store.users_raw_id[1:])])
        self._item_V = np.array([-1, *map(int, store.items_raw_id[1:])])

    def scores(self, rows_QC: Int[np.ndarray, "Q C"]) -> Float32[np.ndarray, "Q V"]:
        """Utilities of the store's items at the cut of each row's history; -inf of the padding."""
        columns = self._store.columns
        stop_Q = rows_QC[:, columns["history_stop"]]
        index_QL = stop_Q[:, None] - self._recent + np.arange(self._recent)[None]
        inside_QL = index_QL >= rows_QC[:, columns["history_start"]][:, None]
        item_E = self._store.sequences["history"][0][:, 0]
        item_QL = self._item_V[item_E[np.where(inside_QL, index_QL, 0)]]
        recent_QL = np.where(inside_QL, self.preferences.creator_V[item_QL], -1)
        world_QV = tastes.true_scores(
            self.preferences,
            self._user_U[rows_QC[:, columns["user"]]],
            rows_QC[:, columns["scenario"]],
            recent_QL,
        )
        score_QV = np.full((len(rows_QC), len(self._item_V)), -np.inf, np.float32)
        score_QV[:, 1:] = world_QV[:, self._item_V[1:]]
        return score_QV


def truncate(
    score_QV: Float[np.ndarray, "Q V"], scenario_Q: Int[np.ndarray, "Q"], rank: int
) -> Float[np.ndarray, "Q V"]:
    """The best approximation of rank `rank` (least squares) of each scenario's score matrix.

    An inner product of width d is a matrix of rank d in each scenario whose items have vectors of
    their own, so this is what least squares would leave of the true scores. It bounds no recall: a
    model that ranks need not fit scores. Scores are finite: leave the padding row out.
    """
    out_QV = np.empty(score_QV.shape, score_QV.dtype)
    for scenario in np.unique(scenario_Q):
        row = np.flatnonzero(scenario_Q == scenario)
        score_BV = score_QV[row].astype(np.float64)
        # Singular vectors of the shorter side, from its Gram matrix.
        wide = len(row) <= score_BV.shape[1]
        gram = score_BV @ score_BV.T if wide else score_BV.T @ score_BV
        top = [max(0, len(gram) - rank), len(gram) - 1]
        _, vector = scipy.linalg.eigh(gram, subset_by_index=top)
        out_QV[row] = vector @ (vector.T @ score_BV) if wide else (score_BV @ vector) @ vector.T
    return out_QV
