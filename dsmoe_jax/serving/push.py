"""Push: a bundle's items into a vector store, and the proof that the store finds the same lists.

Owns what is written: a row per item with its raw id, the features that filters may use and a vector
per scenario, or one vector where items do not see the scenario. The stores themselves are in
`vector_stores.py`.

Letters: V rows of the catalogue, X items, F features, P ids in a padded bag, M interests, D a
vector.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import polars as pl

from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import catalogue, parity, retriever
from dsmoe_jax.serving import values as values_lib

# Items written at once.
_ROWS = 20_000


class Layout(NamedTuple):
    """The columns of a bundle's items.

    Attributes:
      vectors: The name of each scenario's vector; the same for all where items have one.
      dim: Width of a vector.
      features: Names of categories and bags, which hold one raw value and a list of them.
    """

    vectors: tuple[str, ...]
    dim: int
    features: tuple[str, ...]


@runtime_checkable
class VectorStore(Protocol):
    """Where items are pushed; searched by the inner product, the largest first."""

    def write(self, layout: Layout, parts: Iterator[pl.DataFrame]) -> None:
        """Writes all items, in frames of `number` (of a row), item, features and vectors.

        Raises:
          ValueError: When something of that name is there already and may not be replaced.
        """
        ...

    def search(self, vector: str, query_D: np.ndarray, k: int) -> list[Any]:
        """Raw ids of the k items whose inner product with the query is largest, in that order."""
        ...


def push(
    served: retriever.Retriever, store: VectorStore, *, k: int, users: int = parity.NUM_USERS
) -> list[parity.Overlap]:
    """Writes a bundle's items to a store, then asks it for the lists of known users.

    Args:
      served: The bundle.
      store: The vector store.
      k: Length of the lists that are compared.
      users: How many users are asked for, in every scenario.

    Returns:
      The comparison with the exact lists of each scenario.

    Raises:
      ValueError: When the store refuses, or the bundle knows no user.
    """
    layout = describe(served)
    chosen = parity.choose_users(served.encoder.known_users(), users)
    store.write(layout, read_items(served, layout))
    found = []
    for name, vector in zip(served.scenarios, layout.vectors, strict=True):
        probes = parity.probe(served, chosen, name, k, removes=False)
        lists = [
            _search(served, store, vector, name, query_MD, k) for query_MD in probes.vector_QMD
        ]
        found.append(parity.compare(served, probes, lists))
    return found


def describe(served: retriever.Retriever) -> Layout:
    """The columns of a bundle's items."""
    found = served.catalogue
    names: Sequence[str] = ["vector"] * len(served.scenarios)
    if len(found.indexes) > 1:
        # Not every store takes every name.
        names = ["vector_" + re.sub(r"\W", "_", name) for name in served.scenarios]
        if len(set(names)) < len(names):
            names = [f"vector_{s}" for s in range(len(names))]
    sparse = [feature.name for feature in found.spec.item_sparse[1:]]
    _, D = found.indexes[0].vectors(np.zeros(1, np.int64)).shape
    return Layout(tuple(names), D, (*sparse, *found.bags))


def read_items(served: retriever.Retriever, layout: Layout) -> Iterator[pl.DataFrame]:
    """All items that can be retrieved, part by part, in columns of one type whatever a part has."""
    found, vocabularies = served.catalogue, served.encoder.vocabularies
    types = {name: _type(vocabularies[name]) for name in layout.features}
    types |= {name: pl.List(types[name]) for name in found.bags}
    names, live_X = dict.fromkeys(layout.vectors), found.live_rows()
    for start in range(0, len(live_X), _ROWS):
        row_X = live_X[start : start + _ROWS]
        columns: dict[str, Any] = {"number": row_X, catalogue.ITEM: found.raw_id_V[row_X]}
        for n, feature in enumerate(found.spec.item_sparse[1:], start=1):
            ids_X = found.sparse_VF[row_X, n]
            columns[feature.name] = vocabularies[feature.name].decode(ids_X)
        for name, ids_VP in found.bags.items():
            ids_XP = ids_VP[row_X]
            raw = vocabularies[name].decode(ids_XP.ravel())
            values = np.array(raw, object).reshape(ids_XP.shape).tolist()
            columns[name] = [[v for v in row if v is not None] for row in values]
        for name, index in zip(names, found.indexes, strict=True):
            columns[name] = pl.Series(name, index.vectors(row_X), pl.Array(pl.Float32, layout.dim))
        yield pl.DataFrame(columns, schema_overrides=types)


def _type(vocabulary: values_lib.Vocabulary) -> Any:
    return pl.Int64 if vocabulary.is_integer else pl.String


def _search(
    served: retriever.Retriever,
    store: VectorStore,
    vector: str,
    scenario: str,
    query_MD: np.ndarray,
    k: int,
) -> list[Any]:
    """The list of one user: the largest inner product over the interests decides."""
    raw = [item for query_D in query_MD for item in store.search(vector, query_D, k)]
    if len(query_MD) == 1:
        return raw
    # An item of the list is among the k best of the interest that decides.
    distinct = list(dict.fromkeys(raw))
    row_X = served.catalogue.rows(distinct, "items")
    vector_XD = served.catalogue.index(served.scenarios.index(scenario)).vectors(row_X)
    order_X = np.argsort(-host.score_rows(query_MD, vector_XD), kind="stable")[:k]
    return [distinct[n] for n in order_X.tolist()]
