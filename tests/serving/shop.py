"""A small shop's log in raw values, prepared, and its matchers exported without training."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.data.prepare import custom
from dsmoe_jax.evaluation import evaluators
from dsmoe_jax.serving import export
from dsmoe_jax.training import sharding, train_state

NUM_USERS, NUM_ITEMS, NUM_EVENTS, NUM_DAYS = 40, 30, 900, 9
SCENARIOS = ("feed", "search", "deals")
RUN = {"variant": "", "config_hash": "0", "remove_seen": "positives", "results": {}}
EVAL = schema.EvalConfig(k=(5, 10), query_batch=16, item_batch=16)


def write_tables(folder: pathlib.Path, seed: int = 0, prefix: str = "") -> None:
    """Log, users and items as CSV files; item ids begin with `prefix`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    user = rng.integers(0, NUM_USERS, NUM_EVENTS)
    taste = (user % 3) * 10 + rng.integers(0, 12, NUM_EVENTS)
    pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in user],
            "item_id": [f"{prefix}i{n % NUM_ITEMS}" for n in taste],
            "time": np.sort(rng.choice(NUM_DAYS * 86_400, NUM_EVENTS, replace=False)) + 86_400,
            "page": rng.choice(SCENARIOS, NUM_EVENTS, p=[0.5, 0.3, 0.2]),
            "action": rng.choice(["click", "view"], NUM_EVENTS, p=[0.6, 0.4]),
        }
    ).write_csv(folder / "log.csv")
    pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(NUM_USERS)],
            "age": [None if n % 9 == 0 else f"{20 + n % 4 * 10}s" for n in range(NUM_USERS)],
            "orders": [n * n for n in range(NUM_USERS)],
            "likes": [["", "red", "red|blue", "blue|green"][n % 4] for n in range(NUM_USERS)],
        }
    ).write_csv(folder / "users.csv")
    pl.DataFrame(
        {
            "item_id": [f"{prefix}i{n}" for n in range(NUM_ITEMS)],
            "brand": [f"b{n % 5}" for n in range(NUM_ITEMS)],
            "price": [None if n == 7 else 1.5 * n for n in range(NUM_ITEMS)],
            "colours": [["red", "blue|red", "", "green"][n % 4] for n in range(NUM_ITEMS)],
        }
    ).write_csv(folder / "items.csv")


def prepare(folder: pathlib.Path, *, exposures: bool = True, prefix: str = "") -> store_lib.Store:
    """The store of the shop's files, which are written first."""
    write_tables(folder / "raw", prefix=prefix)
    section = custom.CustomConfig(
        raw_dir=str(folder / "raw"),
        name="shop",
        users_file="users.csv",
        items_file="items.csv",
        scenario="page",
        scenarios=SCENARIOS,
        positive="action == click",
        exposures=exposures,
        validation_days=1,
        test_days=1,
        user_sparse=("age",),
        user_log_dense=("orders",),
        user_bags=("likes",),
        item_sparse=("brand",),
        item_dense=("price",),
        item_bags=("colours",),
        bag_separator="|",
    )
    section.prepare(str(folder / "store"))
    return store_lib.Store.open(folder / "store")


class Untrained:
    """A matcher on the shop's store with random parameters."""

    def __init__(self, store, config, *, history_encoder="mean", seed=0):
        self.store = store
        self.spec = features.select(
            store.spec,
            exclude=(),
            history_length=6,
            scenario_history_length=4,
            embedding_dim=4,
            scenario_histories=config.scenario_histories,
            history_encoder=history_encoder,
        )
        self.matcher = config.make(self.spec)
        self.corpus = pipeline.read_corpus(store, self.spec)
        rows_BC = np.asarray(store.train_NC[:4])
        users = pipeline.UserReader(store, self.spec).read(rows_BC)
        items = jax.tree.map(lambda leaf: leaf[1:9].reshape(4, 2, *leaf.shape[1:]), self.corpus)
        inputs = jax.tree.map(jnp.asarray, (users, items, rows_BC[:, 1].astype(np.int32)))
        init = jax.jit(lambda key, *inputs: self.matcher.init(key, *inputs, train=False))
        variables = dict(init(jax.random.key(seed), *inputs))
        if self.matcher.constant_shapes:
            constants = statistics.make_constants(store, self.matcher.constant_shapes)
            variables["constants"] = {**variables.get("constants", {}), **constants}
        params = jax.tree.map(_shake, variables.pop("params"))
        self.frozen = train_state.Frozen(params, variables)

    def export(self, path):
        return export.write_bundle(path, self.store, self.matcher, self.frozen, run=RUN)

    def evaluate(self, split="test", **changes):
        """The evaluation protocol's lists of all queries."""
        mesh = sharding.make_mesh(jax.devices()[:1])
        evaluator = evaluators.MatcherEvaluator(
            self.store,
            self.spec,
            sharding.put_replicated(mesh, self.corpus),
            self.matcher,
            dataclasses.replace(EVAL, **changes),
            mesh,
        )
        frozen = sharding.put_replicated(mesh, self.frozen)
        count = len(self.store.queries(split).cold_Q)
        return evaluator(train_state.Frozen(*frozen), split, np.arange(count))


def _shake(leaf):
    """Random values in the place of zeros, so that every part of a tower has a say."""
    rng = np.random.default_rng(leaf.size)
    return leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)
