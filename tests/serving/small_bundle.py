"""Small bundles of random arrays, and services of them: nothing is trained nor exported.

Letters: V rows of the corpus (row 0 is padding), U rows of the user table, S scenarios, E events, C
columns, D a vector.
"""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np

from dsmoe_jax import features
from dsmoe_jax.serving import bundle, live, service, wire

NUM_USERS, NUM_ITEMS, EVENTS = 30, 40, 6
SCENARIOS = ("feed", "search", "deals")
AGES, BRANDS, COLOURS = ("20s", "30s", "40s"), ("b0", "b1", "b2", "b3"), ("blue", "green", "red")
TOKEN = "secret"
BEARER = {"authorization": f"Bearer {TOKEN}"}
E, D, HIDDEN = 4, 6, 8


def make_spec() -> features.FeatureSpec:
    """Users with an id, an age and a number; items with a brand, a price and colours."""
    item = features.SparseFeature("item_id", NUM_ITEMS + 1)
    return features.FeatureSpec(
        scenarios=SCENARIOS,
        user_sparse=(
            features.SparseFeature("user_id", NUM_USERS + 1),
            features.SparseFeature("age", len(AGES) + 1),
        ),
        user_dense=(features.DenseFeature("orders"),),
        user_bags=(),
        item_sparse=(item, features.SparseFeature("brand", len(BRANDS) + 1)),
        item_dense=(features.DenseFeature("price"),),
        item_bags=(features.BagFeature("colours", len(COLOURS) + 1, 2),),
        sequences=(
            features.SequenceFeature("history", ("item_id",), EVENTS),
            features.SequenceFeature("scenario_history", ("item_id",), EVENTS),
        ),
        embedding_dim=E,
    )


def make_arrays(first_item: int, seed: int) -> dict[str, np.ndarray]:
    """All arrays of a bundle; every user has EVENTS events, the n-th in scenario n mod S."""
    rng = np.random.default_rng(seed)
    S, V, U = len(SCENARIOS), NUM_ITEMS + 1, NUM_USERS + 1
    event_UL = rng.integers(1, V, (U, EVENTS))
    place_UL = np.arange(U * EVENTS).reshape(U, EVENTS)
    by_scenario_L = np.argsort(np.arange(EVENTS) % S, kind="stable")
    each = EVENTS // S
    windows = [place_UL[:, :1], place_UL[:, -1:] + 1]
    for s in range(S):
        windows += [place_UL[:, :1] + s * each, place_UL[:, :1] + (s + 1) * each]
    who_U = np.arange(U)[:, None]
    rows_UC = np.concatenate([who_U, 0 * who_U, 0 * who_U, 0 * who_U + 10_000, *windows], axis=1)
    rows_UC[0, 4:] = 0

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "item_vectors": draw(S, V, D),
        "items_raw_id": np.concatenate([[-1], first_item + np.arange(NUM_ITEMS)]),
        "items_sparse": np.stack([np.arange(V), np.arange(V) % 4 + 1], axis=1).astype(np.int32),
        "items_dense": draw(V, 1),
        "items_bag_colours": rng.integers(0, len(COLOURS) + 1, (V, 2)).astype(np.int32),
        "users_raw_id": np.arange(-1, NUM_USERS) + (np.arange(U) > 0),
        "users_sparse": np.stack([np.arange(U), np.arange(U) % 3 + 1], axis=1).astype(np.int32),
        "users_dense": draw(U, 1),
        "vocabulary_age": np.array(["", *AGES]),
        "vocabulary_brand": np.array(["", *BRANDS]),
        "vocabulary_colours": np.array(["", *COLOURS]),
        "user_rows": rows_UC,
        "sequence_history": event_UL.reshape(-1, 1).astype(np.int32),
        "sequence_history_time": np.tile(np.arange(1, EVENTS + 1), U).astype(np.int32),
        "sequence_scenario_history": event_UL[:, by_scenario_L].reshape(-1, 1).astype(np.int32),
        "sequence_scenario_history_time": np.tile(by_scenario_L + 1, U).astype(np.int32),
        "log_prior": draw(S, V),
        "user_table_age": draw(len(AGES) + 1, E),
        "user_table_item_id": draw(V, E),
        "user_dense": draw(1, E),
        "user_first": draw(S, 3 * E, HIDDEN),
        "user_first_bias": draw(S, HIDDEN),
        "user_slope": np.full(HIDDEN, 0.25, np.float32),
        "user_second": draw(S, HIDDEN, D),
        "user_second_bias": draw(S, D),
        "item_table_brand": draw(len(BRANDS) + 1, E),
        "item_dense": draw(1, E),
        "item_first": draw(S, 2 * E, HIDDEN),
        "item_first_bias": draw(S, HIDDEN),
        "item_slope": np.full(HIDDEN, 0.25, np.float32),
        "item_second": draw(S, HIDDEN, D),
        "item_second_bias": draw(S, D),
    }


def describe() -> dict[str, Any]:
    """The manifest, but for files and digest."""
    spec = make_spec().to_json()
    columns = ["user", "scenario", "item", "time_s", "history_start", "history_stop"]
    for s in range(len(SCENARIOS)):
        columns += [f"scenario_history_start_{s}", f"scenario_history_stop_{s}"]
    user, item = (
        [
            {"kind": kind, "name": name, "column": column, "table": table, "first_row": 0}
            for kind, name, column, table in slots
        ]
        for slots in (
            (
                ("sparse", "age", 1, "user_table_age"),
                ("dense", "orders", 0, "user_dense"),
                ("sequence", "history", 0, "user_table_item_id"),
            ),
            (("sparse", "brand", 1, "item_table_brand"), ("dense", "price", 0, "item_dense")),
        )
    )
    return {
        "method": "DSMOE",
        "dataset": "shop",
        "remove_seen": "positives",
        "results": {"macro": {"recall@10": 0.5}},
        "date": "2026-11-30",
        "scenarios": list(SCENARIOS),
        "item_uses_scenario": True,
        "known_until_s": 10_000,
        "spec": spec,
        "raw_spec": spec,
        "columns": columns,
        "dense": {
            "orders": {"transform": "log1p", "mean": 1.0, "std": 0.5},
            "price": {"transform": "none", "mean": 10.0, "std": 2.0},
        },
        "raw_forms": {"colours": {"separator": "|"}},
        "gates": {"user": [[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], "item": [[0.4, 0.6]]},
        "towers": {
            "kind": "arrays",
            "num_experts": 2,
            "user": {"linear": None, "slots": user},
            "item": {"linear": None, "slots": item},
        },
    }


def write_bundle(
    path: pathlib.Path,
    *,
    first_item: int = 1000,
    seed: int = 0,
    remove_seen: str = "positives",
    **more: np.ndarray,
) -> pathlib.Path:
    """A bundle of users 1 to NUM_USERS and of NUM_ITEMS items, whose ids begin with `first_item`.

    The items' own vectors are not the item tower's, which new items get. It knows of users 1 and 2
    what they clicked in the test days.
    """
    clicks = {
        "test_queries": np.array([[1, 0], [1, 2], [2, 1]], np.int32),
        "test_relevant": np.array([5, 6, 7, 8], np.int32),
        "test_relevant_indptr": np.array([0, 2, 3, 4]),
    }
    described = {**describe(), "remove_seen": remove_seen}
    bundle.write(path, {**make_arrays(first_item, seed), **clicks, **more}, {}, described)
    return path


def serve(
    path: pathlib.Path, *, token: str | None = TOKEN, recall_s: float = 0.0, **limits: Any
) -> service.Service:
    """The service of a bundle, which its caller closes."""
    return service.Service(
        live.open_warm(path), token=token, limits=wire.Limits(**limits), recall_s=recall_s
    )


def run(
    served: service.Service,
    work: Callable[[httpx.AsyncClient], Awaitable[Any]],
    *,
    anonymous: bool = False,
) -> Any:
    """What `work(client)` returns, a client of the service in an event loop."""

    async def inside() -> Any:
        transport = httpx.ASGITransport(served.app)
        headers = {} if anonymous else BEARER
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            return await work(client)

    return asyncio.run(inside())
