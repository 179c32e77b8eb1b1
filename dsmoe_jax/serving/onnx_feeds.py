"""What a bundle's ONNX graph is fed: requests as raw values, in matrices.

Owns which fields the graph reads and how raw values are padded. Does not need `onnx`.

Letters: Q queries, L events, P values of a bag, X values.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from dsmoe_jax import features
from dsmoe_jax.serving import bundle as bundle_lib
from dsmoe_jax.serving import requests
from dsmoe_jax.serving import values as values_lib

_KINDS = ("sparse", "dense", "bag", "sequence")
# What is left out of a list, by the rule of the evaluation; see `retriever.py`.
_SEEN, _SHOWN = "positives", "shown"


class Reads(NamedTuple):
    """The features that folded user towers read."""

    sparse: tuple[features.SparseFeature, ...]
    dense: tuple[features.DenseFeature, ...]
    bags: tuple[features.BagFeature, ...]
    sequences: tuple[features.SequenceFeature, ...]


def list_reads(bundle: bundle_lib.Bundle) -> Reads:
    """What the user tower of a bundle of arrays reads."""
    form, spec = bundle.manifest["towers"]["user"], bundle.spec
    names = {kind: {s["name"] for s in form["slots"] if s["kind"] == kind} for kind in _KINDS}
    pooled = {bag["sequence"] for bag in (form["linear"] or {"bags": []})["bags"]}
    return Reads(
        tuple(f for f in spec.user_sparse if f.name in names["sparse"]),
        tuple(f for f in spec.user_dense if f.name in names["dense"]),
        tuple(f for f in spec.user_bags if f.name in names["bag"]),
        tuple(s for s in spec.sequences if s.name in names["sequence"] | pooled),
    )


def vocabulary(bundle: bundle_lib.Bundle, name: str) -> np.ndarray:
    """Raw values of a feature by id; row 0 is unknown."""
    if name == bundle.raw_spec.item_sparse[0].name:
        return bundle.load("items_raw_id")
    if name == bundle.raw_spec.user_sparse[0].name:
        return bundle.load("users_raw_id")
    return bundle.load(f"vocabulary_{name}")


def blank(raw_X: np.ndarray) -> Any:
    """What pads raw values and stands for none: no value of the vocabulary."""
    if raw_X.dtype.kind != "i":
        return ""
    return -1 if -1 not in raw_X[1:] else np.iinfo(np.int64).min


def name_of(sequence: features.SequenceFeature, field: str) -> str:
    """The graph's input of a field of a sequence, as requests call it."""
    name = requests.SHOWN if sequence.name == features.EXPOSURES else sequence.name
    return name if len(sequence.fields) == 1 else f"{name}.{field}"


def feeds(
    bundle: bundle_lib.Bundle,
    columns: values_lib.Columns,
    scenario: str | Sequence[str],
    *,
    encoder: requests.Encoder | None = None,
) -> dict[str, np.ndarray]:
    """Inputs of a bundle's graph: what requests give, and what is known of their users.

    Items are left out as the model was evaluated: `removed` holds what its lists must not.

    Args:
      bundle: The bundle of the graph.
      columns: Requests, see `requests.py`.
      scenario: The name for all requests, or one for each.
      encoder: The bundle's, where there is one already.

    Raises:
      ValueError: On an unknown field or scenario, or a bad value.
    """
    encoded = (encoder or requests.Encoder(bundle)).encode(columns)
    Q = len(encoded.rows_BC)
    names = [scenario] * Q if isinstance(scenario, str) else list(scenario)
    if len(names) != Q or not set(names) <= set(bundle.scenarios):
        raise ValueError(
            f"scenario: expected {Q} of {', '.join(bundle.scenarios)}, got {len(names)}: "
            f"{', '.join(map(str, dict.fromkeys(names)))}"
        )
    scenario_Q = np.array([bundle.scenarios.index(name) for name in names], np.int32)
    users = encoded.read(np.arange(Q), scenario_Q)
    spec, found = bundle.spec, {"scenario": np.array(names, np.str_)}
    reads = list_reads(bundle)
    for n, sparse in enumerate(spec.user_sparse):
        if sparse in reads.sparse:
            found[sparse.name] = _decode(vocabulary(bundle, sparse.name), users.sparse_BF[:, n])
    for n, dense in enumerate(spec.user_dense):
        if dense in reads.dense:
            found[dense.name] = _restore(bundle.manifest["dense"][dense.name], users.dense_BF[:, n])
    for bag in reads.bags:
        found[bag.name] = _decode(vocabulary(bundle, bag.name), users.bags[bag.name])
    for sequence in reads.sequences:
        ids_QLF = users.sequences[sequence.name].ids_BLF
        for n, field in enumerate(sequence.fields):
            raw_X = vocabulary(bundle, field)
            found[name_of(sequence, field)] = _decode(raw_X, ids_QLF[..., n])
    removed = list_removed(encoded, bundle.manifest["remove_seen"])
    found["removed"] = _decode(bundle.load("items_raw_id"), _stack(removed))
    return found


def list_removed(encoded: requests.Encoded, rule: str) -> list[np.ndarray]:
    """Item ids that each request's list leaves out by a rule of `schema.EvalConfig.remove_seen`."""
    count = len(encoded.rows_BC)
    found = {_SEEN: encoded.seen, _SHOWN: encoded.shown}.get(rule)
    return [found(row) for row in range(count)] if found else [np.zeros(0, np.int32)] * count


def _decode(raw_X: np.ndarray, ids: Int[np.ndarray, "..."]) -> np.ndarray:
    """Raw values of ids, the blank for 0."""
    raw: np.ndarray = raw_X[ids]
    raw[ids == 0] = blank(raw_X)
    return raw


def _restore(moments: dict[str, Any], value_Q: np.ndarray) -> np.ndarray:
    """Raw numbers of standardised ones."""
    number_Q = value_Q.astype(np.float64) * moments["std"] + moments["mean"]
    return np.asarray(np.expm1(number_Q) if moments["transform"] == "log1p" else number_Q)


def _stack(lists: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of ids as a matrix, 0 past the end of each."""
    length_Q = np.array([len(ids) for ids in lists], np.int64)
    matrix = np.zeros((len(lists), int(length_Q.max(initial=1))), np.int32)
    if len(lists):
        matrix[np.arange(matrix.shape[1]) < length_Q[:, None]] = np.concatenate(lists)
    return matrix
