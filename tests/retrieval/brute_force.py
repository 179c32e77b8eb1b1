"""Exact filtered search as plainly as it can be said, and corpora to search."""

import numpy as np

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0)


def search(item_VD, query_QMD, k, allowed_V=None, removed=None):
    """Scores all, hides what may not be returned, sorts all."""
    score_QT = np.full((len(query_QMD), k), -np.inf, np.float32)
    item_QT = np.zeros((len(query_QMD), k), np.int32)
    for q, query_MD in enumerate(query_QMD):
        score_V = np.stack([np.vecdot(item_VD, query_D) for query_D in query_MD]).max(axis=0)
        hidden_V = np.zeros(len(item_VD), bool) if allowed_V is None else ~allowed_V
        hidden_V[0] = True
        if removed is not None:
            hidden_V[removed[q]] = True
        ids = [v for v in np.lexsort((np.arange(len(item_VD)), -score_V)) if not hidden_V[v]][:k]
        score_QT[q, : len(ids)] = score_V[ids]
        item_QT[q, : len(ids)] = ids
    return score_QT, item_QT


def assert_same(lists, expected):
    np.testing.assert_array_equal(lists[1], expected[1])
    np.testing.assert_array_equal(lists[0], expected[0])
    assert [array.dtype for array in lists] == [np.float32, np.int32]


def make_clusters(num_rows, dim, num_queries, seed, num_clusters=50):
    """Items of unequal norm in clusters, and queries near them."""
    rng = np.random.default_rng(seed)
    centre_CD = rng.normal(size=(num_clusters, dim))
    item_VD = centre_CD[rng.integers(0, num_clusters, num_rows)]
    item_VD += 0.5 * rng.normal(size=item_VD.shape)
    item_VD *= rng.lognormal(0, 0.3, (num_rows, 1))
    query_QD = centre_CD[rng.integers(0, num_clusters, num_queries)]
    query_QD += 0.5 * rng.normal(size=query_QD.shape)
    return item_VD.astype(np.float32), query_QD[:, None].astype(np.float32)
