"""Recall of every single query, small enough to be committed: what paired comparisons are made of.

Owns the text form in which a record holds it. Recall is kept as two small integers, relevant items
and those of them among the top k, from which it is exact.

Letters: Q queries.
"""

import base64
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class PerQuery(NamedTuple):
    """One system on the test queries, ascending by query.

    Attributes:
      query_Q: Rows of the split's query table.
      scenario_Q: Scenario ids.
      relevant_Q: Number of relevant items, at least 1.
      hits: Relevant items among the top k, by k.
    """

    query_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    relevant_Q: Int[np.ndarray, "Q"]
    hits: dict[int, Int[np.ndarray, "Q"]]

    def recall(self, k: int) -> Float[np.ndarray, "Q"]:
        """Recall@k of every query."""
        return np.asarray(self.hits[k] / self.relevant_Q)


def from_arrays(arrays: Mapping[str, np.ndarray]) -> PerQuery:
    """Picks what is per query out of a run's arrays; see `results.query_arrays`."""
    hits = {
        int(name.partition("@")[2]): np.asarray(arrays[name])
        for name in arrays
        if name.startswith("hits@")
    }
    return PerQuery(arrays["query"], arrays["scenario"], arrays["relevant"], hits)


def encode(queries: PerQuery) -> dict[str, str]:
    """As JSON-ready text."""
    # Asked are nearly always all queries, so that their ids differ by one.
    first = np.diff(queries.query_Q, prepend=0)
    columns = {"query": first, "scenario": queries.scenario_Q, "relevant": queries.relevant_Q}
    columns |= {f"hits@{k}": hits_Q for k, hits_Q in queries.hits.items()}
    return {name: _pack(column) for name, column in columns.items()}


def decode(text: Mapping[str, str]) -> PerQuery:
    """Reads what `encode` wrote."""
    columns = {name: _unpack(entry) for name, entry in text.items()}
    columns["query"] = np.cumsum(columns["query"])
    return from_arrays(columns)


def _pack(column: np.ndarray) -> str:
    dtype = "u1" if not column.size or (column.min() >= 0 and column.max() < 256) else "<i4"
    packed = zlib.compress(np.ascontiguousarray(column, dtype).tobytes(), 9)
    return f"{dtype}:{base64.b64encode(packed).decode()}"


def _unpack(text: str) -> np.ndarray:
    dtype, _, packed = text.partition(":")
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype).astype(np.int64)
