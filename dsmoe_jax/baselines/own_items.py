"""Baselines that list a user's own items again, where what was clicked before is relevant.

Owns how these score a query from its history window, which reaches up to its split's first day. An
own item is above every other; the others are in the order of popularity.

Letters: B queries of a batch, Q queries, E events of their windows, V rows of the corpus (row 0 is
padding).
"""

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from dsmoe_jax.baselines import linear
from dsmoe_jax.data import statistics
from dsmoe_jax.data import store as store_lib


def make_most_recent(store: store_lib.Store) -> linear.Scorer:
    """The item that was clicked last is first, then the one before it."""
    return _make(store, by_count=False)


def make_most_frequent(store: store_lib.Store) -> linear.Scorer:
    """The item that was clicked most often is first; of equal ones that clicked last."""
    return _make(store, by_count=True)


def rank_own(
    row_E: Int[np.ndarray, "E"], item_E: Int[np.ndarray, "E"], *, by_count: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's distinct items, and their ranks from 1, the highest for the most recent or most
    frequent.

    Events ascend by row and are chronological within one.
    """
    num_items = int(item_E.max(initial=0)) + 1
    # Of the reversed events the first of an item is its last.
    key_E = (row_E.astype(np.int64) * num_items + item_E)[::-1]
    key_X, first_X, count_X = np.unique(key_E, return_index=True, return_counts=True)
    row_X, last_X = key_X // num_items, len(key_E) - 1 - first_X
    order = np.lexsort((last_X, count_X if by_count else np.zeros_like(count_X), row_X))
    row_X, item_X = row_X[order], (key_X % num_items)[order]
    return row_X, item_X, np.arange(len(row_X)) - np.searchsorted(row_X, row_X) + 1


def _make(store: store_lib.Store, *, by_count: bool) -> linear.Scorer:
    V = store.spec.num_items
    count_V = statistics.count_clicks(store).sum(axis=0)
    # Below 1, which is the least rank.
    other_V = (count_V / (count_V.max() + 1)).astype(np.float32)
    rank_QV = {}
    for split in store_lib.SPLITS:
        rows_QC = store.queries(split).rows_QC
        row, item, rank = rank_own(*statistics.read_events(store, rows_QC), by_count=by_count)
        shape = (len(rows_QC), V)
        rank_QV[split] = scipy.sparse.csr_matrix((rank.astype(np.float32), (row, item)), shape)

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        rank_BV = rank_QV[split][query_B].toarray()
        return np.asarray(np.where(rank_BV > 0, rank_BV, other_V[None]))

    return score
