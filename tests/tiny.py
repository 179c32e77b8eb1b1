"""A small random store and small models, for tests that need something to train on."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import features
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.models.matching import two_tower

SCENARIOS = ("A", "B", "C")
NUM_USERS = 60
NUM_ITEMS = 41
NUM_EVENTS = 600


def make_spec(max_len: int = 0) -> features.FeatureSpec:
    """Users with an id, a category and a number; items with an id, a category and tags."""
    return features.FeatureSpec(
        scenarios=SCENARIOS,
        user_sparse=(
            features.SparseFeature("user_id", NUM_USERS + 1),
            features.SparseFeature("age", 5),
        ),
        user_dense=(features.DenseFeature("activity"),),
        user_bags=(),
        item_sparse=(
            features.SparseFeature("item_id", NUM_ITEMS + 1),
            features.SparseFeature("author", 9),
        ),
        item_dense=(features.DenseFeature("duration"),),
        item_bags=(features.BagFeature("tag", 6, 3),),
        sequences=(
            features.SequenceFeature("history", ("item_id",), max_len),
            features.SequenceFeature("scenario_history", ("item_id",), max_len),
        ),
    )


def write_store(path: pathlib.Path, seed: int = 0) -> store_lib.Store:
    """Random clicks over ten days; the last day tests, the day before validates.

    Users of the first half click items of the first half more often, so that there is something
    to learn.
    """
    rng = np.random.default_rng(seed)
    spec = make_spec()
    S = len(SCENARIOS)
    user_E = np.sort(rng.integers(1, NUM_USERS + 1, NUM_EVENTS))
    scenario_E = rng.choice(S, NUM_EVENTS, p=[0.6, 0.3, 0.1])
    half = NUM_ITEMS // 2
    likes_first_E = (user_E <= NUM_USERS // 2) ^ (rng.random(NUM_EVENTS) < 0.1)
    item_E = np.where(
        likes_first_E,
        rng.integers(1, half + 1, NUM_EVENTS),
        rng.integers(half + 1, NUM_ITEMS + 1, NUM_EVENTS),
    )
    time_E = np.empty(NUM_EVENTS, np.int64)
    for user in np.unique(user_E):
        mine = user_E == user
        time_E[mine] = np.sort(rng.choice(10 * 86_400, mine.sum(), replace=False)) + 1
    day_E = time_E // 86_400

    first_E = np.searchsorted(user_E, user_E)
    order_E = np.lexsort((time_E, scenario_E, user_E))
    key_E = (user_E * S + scenario_E)[order_E]
    time_by_scenario_E = time_E[order_E]
    columns = ["user", "scenario", "item", "time_s", "history_start", "history_stop"]
    for scenario in range(S):
        columns += [f"scenario_history_start_{scenario}", f"scenario_history_stop_{scenario}"]

    def rows(users, scenarios, items, times, starts, stops):
        parts = [users, scenarios, items, times, starts, stops]
        for scenario in range(S):
            start = np.searchsorted(key_E, users * S + scenario)
            end = np.searchsorted(key_E, users * S + scenario, side="right")
            before = [
                np.searchsorted(time_by_scenario_E[a:b], t)
                for a, b, t in zip(start, end, times, strict=True)
            ]
            parts += [start, start + np.array(before, np.int64)]
        return np.stack(parts, axis=1).astype(np.int64)

    with store_lib.StoreWriter(path) as writer:
        users_sparse = np.zeros((NUM_USERS + 1, 2), np.int32)
        users_sparse[1:, 0] = np.arange(1, NUM_USERS + 1)
        users_sparse[1:, 1] = rng.integers(1, 5, NUM_USERS)
        users_dense = np.zeros((NUM_USERS + 1, 1), np.float32)
        users_dense[1:] = rng.normal(size=(NUM_USERS, 1))
        items_sparse = np.zeros((NUM_ITEMS + 1, 2), np.int32)
        items_sparse[1:, 0] = np.arange(1, NUM_ITEMS + 1)
        items_sparse[1:, 1] = rng.integers(1, 9, NUM_ITEMS)
        items_dense = np.zeros((NUM_ITEMS + 1, 1), np.float32)
        items_dense[1:] = rng.normal(size=(NUM_ITEMS, 1))
        tags = np.zeros((NUM_ITEMS + 1, 3), np.int32)
        tags[1:, 0] = rng.integers(1, 6, NUM_ITEMS)
        writer.array("users_sparse", users_sparse)
        writer.array("users_dense", users_dense)
        writer.array("items_sparse", items_sparse)
        writer.array("items_dense", items_dense)
        writer.array("items_bag_tag", tags)
        writer.array("users_raw_id", np.arange(-1, NUM_USERS))
        writer.array("items_raw_id", np.arange(-1, NUM_ITEMS))
        writer.array("sequence_history", item_E[:, None].astype(np.int32))
        writer.array("sequence_history_time", time_E.astype(np.int32))
        writer.array("sequence_scenario_history", item_E[order_E][:, None].astype(np.int32))
        writer.array("sequence_scenario_history_time", time_by_scenario_E.astype(np.int32))
        train_E = np.flatnonzero(day_E < 8)
        writer.array(
            "train",
            rows(
                user_E[train_E],
                scenario_E[train_E],
                item_E[train_E],
                time_E[train_E],
                first_E[train_E],
                train_E,
            ),
        )
        counts = {"users": NUM_USERS, "items": NUM_ITEMS}
        split = {"train": {"days": [f"day {d}" for d in range(8)], "examples": len(train_E)}}
        counts["train"] = _per_scenario(scenario_E[train_E])
        for name, day in (("validation", 8), ("test", 9)):
            mine = np.flatnonzero(day_E == day)
            pairs = np.unique(user_E[mine] * S + scenario_E[mine])
            users, scenarios = pairs // S, pairs % S
            cut = day * 86_400
            starts = np.searchsorted(user_E, users)
            stops = np.array([np.sum((user_E == u) & (time_E < cut)) for u in users]) + starts
            relevant, seen, cold, keep = [], [], [], []
            for u, s in zip(users, scenarios, strict=True):
                before = np.unique(item_E[(user_E == u) & (day_E < day)])
                clicked = np.unique(item_E[mine][(user_E[mine] == u) & (scenario_E[mine] == s)])
                relevant.append(np.setdiff1d(clicked, before))
                seen.append(before)
                cold.append(not np.any((user_E == u) & (day_E < 8)))
                keep.append(len(relevant[-1]) > 0)
            keep_Q = np.flatnonzero(keep)
            table = rows(
                users, scenarios, np.zeros_like(users), np.full_like(users, cut), starts, stops
            )
            writer.array(f"{name}_queries", table[keep_Q])
            for kind, lists in (("relevant", relevant), ("seen", seen)):
                kept = [lists[q] for q in keep_Q]
                indptr = np.concatenate([[0], np.cumsum([len(part) for part in kept])])
                writer.array(f"{name}_{kind}_indptr", indptr.astype(np.int64))
                writer.array(f"{name}_{kind}", np.concatenate(kept).astype(np.int32))
            writer.array(f"{name}_cold", np.array(cold)[keep_Q])
            split[name] = {"days": [f"day {day}"], "examples": len(mine)}
            counts[f"{name}_queries"] = _per_scenario(scenarios[keep_Q])
            counts[f"{name}_positives"] = _per_scenario(scenario_E[mine])
        writer.manifest(
            dataset="tiny (synthetic)",
            spec=spec,
            columns={"examples": columns},
            counts=counts,
            split=split,
            settings={"seed": seed},
            inputs={},
        )
    return store_lib.Store.open(path)


def _per_scenario(scenario_E: np.ndarray) -> dict[str, int]:
    return {name: int(np.sum(scenario_E == s)) for s, name in enumerate(SCENARIOS)}


class TinyMatcher(two_tower.Matcher):
    """The least a matcher can be: pooled history against item vectors, with dropout and a norm.

    It compiles ten times faster than a real method, and has all that the loop must carry: a table,
    dropout, running statistics.
    """

    item_uses_scenario = False
    table_rows: int = 1024
    dim: int = 8

    def setup(self):
        self.item_table = self.param(
            "item_table", nn.initializers.normal(0.1), (self.table_rows, self.dim), jnp.float32
        )
        # The norm takes any bias away again: its gradient would be rounding, which Adam scales up.
        self.dense = nn.Dense(self.dim, use_bias=False)
        self.norm = nn.BatchNorm(momentum=0.9)
        self.dropout = nn.Dropout(0.2)

    def embed_user(self, users, scenario_B, *, train):
        ids_BL = users.sequences["history"].ids_BLF[:, :, 0]
        mean_BD = (self.item_table[ids_BL] * (ids_BL > 0)[:, :, None]).mean(axis=1)
        input_BI = jnp.concatenate([mean_BD, users.dense_BF], axis=1)
        input_BI = self.dropout(input_BI, deterministic=not train)
        return self.norm(self.dense(input_BI), use_running_average=not train)[:, None], {}

    def embed_item(self, items, scenario_B, *, train):
        return self.item_table[items.sparse_VF[..., 0]], {}


def make_matcher(spec: features.FeatureSpec) -> TinyMatcher:
    return TinyMatcher(spec)


def one_device() -> list[jax.Device]:
    return jax.devices()[:1]
