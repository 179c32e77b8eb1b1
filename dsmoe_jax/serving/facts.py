"""What a bundle says of itself, of its items and of the users that it knows, as JSON can hold it.

Owns the way back from ids to raw values. It is what the page shows; no list depends on it.

Letters: N items, U users, E events, Q test queries.
"""

from typing import Any

import numpy as np

from dsmoe_jax import features
from dsmoe_jax.serving import retriever as retriever_lib
from dsmoe_jax.serving import wire

# Values of a feature that are named, and events of a user.
_MOST_VALUES, _MOST_EVENTS = 10, 30
_QUERIES, _RELEVANT = "test_queries", "test_relevant"


def describe(retriever: retriever_lib.Retriever, limits: wire.Limits) -> dict[str, Any]:
    """Method, data, scenarios, results, and what a query may name."""
    manifest = retriever.bundle.manifest
    kept = ("method", "dataset", "variant", "date", "known_until_s", "gates", "results")
    return {
        **{name: manifest[name] for name in kept if name in manifest},
        "digest": retriever.bundle.digest,
        "scenarios": list(retriever.scenarios),
        "items": retriever.searcher(retriever.scenarios[0]).num_candidates,
        "users": len(retriever.encoder.users),
        "request_fields": list(retriever.encoder.fields),
        "filters": _list_filters(retriever),
        "default_exclude": retriever.usual_exclude or None,
        "knows_test_clicks": retriever.bundle.has(_QUERIES),
        "limits": {"k": limits.k, "users": limits.users, "events": limits.events},
    }


def describe_items(retriever: retriever_lib.Retriever, raw_ids: list[Any]) -> list[dict[str, Any]]:
    """Features of the items among these that are known, in raw values; of removed ones too.

    What an upserted item was given no number for is None; items of the export have the mean there.
    """
    bundle, encoder, found = retriever.bundle, retriever.encoder, retriever.catalogue
    spec = found.spec
    row_N = found.rows(raw_ids, "items")
    row_N = row_N[row_N > 0]
    names: dict[str, list[Any]] = {
        "item_id": found.raw_id_V[row_N].tolist(),
        "removed": np.isin(row_N, list(found.removed)).tolist(),
    }
    sparse_NF, dense_NF = found.sparse_VF[row_N], found.dense_VF[row_N]
    for n, feature in enumerate(spec.item_sparse):
        if feature.name in encoder.vocabularies:
            names[feature.name] = encoder.vocabularies[feature.name].decode(sparse_NF[:, n])
    for n, number in enumerate(spec.item_dense):
        moments = bundle.manifest["dense"][number.name]
        value_N = dense_NF[:, n].astype(np.float64) * moments["std"] + moments["mean"]
        value_N = np.expm1(value_N) if moments["transform"] == "log1p" else value_N
        names[number.name] = [
            None if np.isnan(value) else float(f"{value:.6g}") for value in value_N.tolist()
        ]
    for bag in spec.item_bags:
        if bag.name in encoder.vocabularies:
            values = encoder.vocabularies[bag.name]
            ids_NP = found.bags[bag.name][row_N]
            names[bag.name] = [values.decode(ids_P[ids_P > 0]) for ids_P in ids_NP]
    return [dict(zip(names, row, strict=True)) for row in zip(*names.values(), strict=True)]


def sample_users(retriever: retriever_lib.Retriever, count: int) -> list[dict[str, Any]]:
    """Known users, spread over those with test queries or else with events."""
    bundle, encoder = retriever.bundle, retriever.encoder
    if bundle.has(_QUERIES):
        user_X = np.unique(bundle.load(_QUERIES)[:, 0])
    else:
        rows_UC, columns = bundle.load("user_rows"), encoder.columns
        start, stop = (columns.get(f"{features.HISTORY}_{end}", 0) for end in ("start", "stop"))
        user_X = np.flatnonzero(rows_UC[:, stop] > rows_UC[:, start])
    user_X = user_X[user_X > 0]
    if not len(user_X):
        user_X = np.arange(1, len(encoder.users) + 1)
    if not len(user_X):
        return []
    chosen = np.unique(np.linspace(0, len(user_X) - 1, count).astype(int))
    return [describe_user(retriever, int(user)) for user in user_X[chosen]]


def find_user(retriever: retriever_lib.Retriever, raw_id: Any) -> int:
    """The row of a user, 0 where the bundle does not know it."""
    return int(retriever.encoder.users.encode([raw_id], "user_id")[0])


def describe_user(retriever: retriever_lib.Retriever, user: int) -> dict[str, Any]:
    """A known user's last events, latest first, and what was clicked afterwards, by scenario."""
    bundle, encoder = retriever.bundle, retriever.encoder
    encoded = encoder.encode({"user_id": encoder.users.decode(np.array([user]))})
    event_E = encoded.seen(0)
    clicked: dict[str, list[Any]] = {}
    if bundle.has(_QUERIES):
        query_Q2 = bundle.load(_QUERIES)
        indptr, relevant = bundle.load(f"{_RELEVANT}_indptr"), bundle.load(_RELEVANT)
        for q in np.flatnonzero(query_Q2[:, 0] == user).tolist():
            name = retriever.scenarios[query_Q2[q, 1]]
            clicked[name] = encoder.items.decode(relevant[indptr[q] : indptr[q + 1]])
    return {
        "user_id": encoder.users.decode(np.array([user]))[0],
        "events": len(event_E),
        "history": encoder.items.decode(event_E[::-1][:_MOST_EVENTS]),
        "clicked": clicked,
    }


def _list_filters(retriever: retriever_lib.Retriever) -> dict[str, list[Any]]:
    """Item features that a filter may name, with their most frequent values."""
    bundle, encoder, spec = retriever.bundle, retriever.encoder, retriever.bundle.raw_spec
    found = {}
    columns = {f.name: bundle.load("items_sparse")[1:, n] for n, f in enumerate(spec.item_sparse)}
    columns |= {bag.name: bundle.load(f"items_bag_{bag.name}")[1:] for bag in spec.item_bags}
    for name, ids in columns.items():
        if name == "item_id" or name not in encoder.vocabularies:
            continue
        count_X = np.bincount(ids.ravel())
        count_X[:1] = 0
        order_X = np.argsort(-count_X, kind="stable")[:_MOST_VALUES]
        found[name] = encoder.vocabularies[name].decode(order_X[count_X[order_X] > 0])
    return found
