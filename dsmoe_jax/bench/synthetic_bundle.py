"""A generated bundle of any size: nothing is trained, and whoever shows it calls it synthetic.

Owns its vectors and events. Items lie in clusters and each user has events of a few, which is kind
to an index of lists: trained vectors may want more effort for the same recall. The towers are
FISM's, linear, without its prior, and one index serves all scenarios.

Letters: V rows of the corpus (row 0 is padding), U rows of the user table, S scenarios, E events a
user, Q test queries, D a vector, G clusters of a user.
"""

import pathlib
from typing import Any

import numpy as np

from dsmoe_jax import features
from dsmoe_jax.serving import bundle

DATASET = "synthetic: generated at random, nothing trained"
SCENARIOS = ("home", "search", "cart", "deals")
EVENTS = 40
_DIM, _BRANDS, _TASTES, _ITEMS_PER_CLUSTER = 64, 1000, 2, 500
# Deviations within a cluster: of a coordinate, where between clusters it is 1, and of ln(norm).
_SPREAD, _NORM_SPREAD = 0.4, 0.1
_KNOWN_UNTIL_S = 10_000
# Of the users, those whose queries the index is chosen by; of the rest it knows nothing.
_ASKED_SHARE, _MOST_ASKED = 0.1, 2000


def write(path: pathlib.Path, *, items: int, users: int, seed: int = 0) -> int:
    """Writes the bundle.

    Args:
      path: Its folder.
      items: Items, whose raw ids are multiples of 7.
      users: Users, whose raw ids count from 0.
      seed: Of everything.

    Returns:
      How many of the users, the first ones, have test queries.
    """
    V, U = items + 1, users + 1
    rng = np.random.default_rng(seed)
    arrays = _make_items(rng, V)
    asked = max(1, min(_MOST_ASKED, int(_ASKED_SHARE * users)))
    start_U = np.maximum(np.arange(U) - 1, 0) * EVENTS
    stop_U = np.arange(U) * EVENTS
    zero_U = np.zeros(U, np.int64)
    until_U = np.full(U, _KNOWN_UNTIL_S)
    event_E1 = _draw_events(rng, V, users).reshape(-1, 1)
    arrays |= {
        "users_raw_id": np.arange(-1, users),
        "users_sparse": np.arange(U, dtype=np.int32)[:, None],
        "users_dense": np.zeros((U, 0), np.float32),
        "user_rows": np.stack([np.arange(U), zero_U, zero_U, until_U, start_U, stop_U], axis=1),
        "sequence_history": event_E1,
        "sequence_history_time": np.ones(len(event_E1), np.int32),
        "test_queries": np.stack(
            [np.arange(1, asked + 1), np.arange(asked) % len(SCENARIOS)], axis=1
        ).astype(np.int32),
        "test_relevant": np.ones(asked, np.int32),
        "test_relevant_indptr": np.arange(asked + 1),
    }
    bundle.write(path, arrays, {}, _describe(V, U))
    return asked


def _make_items(rng: np.random.Generator, V: int) -> dict[str, np.ndarray]:
    """Tables of items by name, and what towers make of them."""
    S = len(SCENARIOS)
    centre_XD = rng.standard_normal((_count_clusters(V), _DIM), np.float32)
    cluster_V = np.arange(V) % len(centre_XD)

    def draw() -> np.ndarray:
        noise_VD = _SPREAD * rng.standard_normal((V, _DIM), np.float32)
        table_VD: np.ndarray = 0.1 * (centre_XD[cluster_V] + noise_VD)
        table_VD[0] = 0
        return table_VD

    history_VD, item_VD = draw(), draw()
    item_VD *= np.exp(_NORM_SPREAD * rng.standard_normal((V, 1), np.float32))
    popularity_SV = np.exp(rng.standard_normal((S, V), np.float32))
    bias_V, no_prior_SV = np.zeros(V, np.float32), np.zeros((S, V), np.float32)
    centred_VD = item_VD[1:] - item_VD[1:].mean(axis=0)
    covariance_DD = np.zeros((_DIM + 1, _DIM + 1), np.float32)
    covariance_DD[:_DIM, :_DIM] = centred_VD.T @ centred_VD / len(centred_VD)
    vector_VD = np.concatenate([item_VD, bias_V[:, None], no_prior_SV[0][:, None]], axis=1)
    brand_V = rng.integers(1, _BRANDS + 1, V)
    return {
        "item_vectors": vector_VD[None],
        "items_raw_id": np.arange(-1, V - 1) * 7,
        "items_sparse": np.stack([np.arange(V), brand_V], axis=1).astype(np.int32),
        "items_dense": np.zeros((V, 0), np.float32),
        "vocabulary_brand": np.arange(-1, _BRANDS),
        "log_prior": np.log(popularity_SV / popularity_SV.sum(axis=1, keepdims=True)),
        "linear_item": item_VD,
        "linear_history": history_VD,
        "linear_bias": bias_V,
        "linear_kind": 0.02 * rng.standard_normal((S, _DIM), np.float32),
        "linear_covariance": covariance_DD,
        "linear_scale": np.full(S, 1.5, np.float32),
        "linear_log_prior": no_prior_SV,
    }


def _draw_events(rng: np.random.Generator, V: int, users: int) -> np.ndarray:
    """Items [users, E] of the clusters that each user likes."""
    clusters = _count_clusters(V)
    taste_UG = rng.integers(0, clusters, (users, _TASTES))
    cluster_UE = np.take_along_axis(taste_UG, rng.integers(0, _TASTES, (users, EVENTS)), axis=1)
    place_UE = rng.integers(0, max(1, (V - 1) // clusters), (users, EVENTS))
    item_UE = cluster_UE + clusters * place_UE
    return np.where(item_UE == 0, clusters, item_UE).clip(1, V - 1).astype(np.int32)


def _count_clusters(V: int) -> int:
    return max(2, V // _ITEMS_PER_CLUSTER)


def _describe(V: int, U: int) -> dict[str, Any]:
    """The manifest, but for files and digest."""
    item, user = features.SparseFeature("item_id", V), features.SparseFeature("user_id", U)
    raw_spec = features.FeatureSpec(
        scenarios=SCENARIOS,
        user_sparse=(user,),
        user_dense=(),
        user_bags=(),
        item_sparse=(item, features.SparseFeature("brand", _BRANDS + 1)),
        item_dense=(),
        item_bags=(),
        sequences=(features.SequenceFeature(features.HISTORY, ("item_id",), EVENTS),),
        embedding_dim=_DIM,
    )
    bag = {
        "sequence": features.HISTORY,
        "table": "linear_history",
        "recency": 0.95,
        "floor": 0.2,
        "extra": 1.0,
    }
    return {
        "method": "FISM",
        "dataset": DATASET,
        "remove_seen": "positives",
        "results": {},
        "date": "",
        "scenarios": list(SCENARIOS),
        "item_uses_scenario": False,
        "known_until_s": _KNOWN_UNTIL_S,
        "spec": raw_spec.to_json(),
        "raw_spec": raw_spec.to_json(),
        "columns": ["user", "scenario", "item", "time_s", "history_start", "history_stop"],
        "dense": {},
        "raw_forms": {},
        "gates": {},
        "towers": {
            "kind": "arrays",
            "user": {"linear": {"bags": [bag], "least_variance": 1e-12}, "slots": []},
            "item": {"linear": None, "slots": []},
        },
    }
