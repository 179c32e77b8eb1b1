"""Exact maximum inner product search in NumPy, for serving on a host: no JAX, no FAISS.

Owns `Searcher`, the protocol of everything that serving searches.

A matrix product only finds who is near the front. Scores that are returned, and their order, come
from one inner product per row, whose digits do not depend on where the row lies or what else is
searched. So a query has one list: alone or in a batch, filtered or not, from a memory map or an
approximate index that re-scores; and equal rows tie, in ascending order of id.

Letters: Q queries, M interests, N vectors searched at once (M per query), D tower output,
T retrieved list length, V rows of the corpus, C rows of a chunk, X rows picked out of it.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from dsmoe_jax.retrieval import checks

# Rows scored at once, and the bytes of their scores, which bound the queries scored at once.
_CHUNK = 1 << 16
_SCORE_BYTES = 1 << 24
# Copying a row out of the corpus costs about as much as scoring it against so many vectors: decides
# whether the rows that a filter keeps are copied and scored, or all are scored.
_COPY_COST = 4
# What a filter does to a score: the smaller of both counts.
_LIMIT = np.array([-np.inf, np.inf], np.float32)


@runtime_checkable
class Searcher(Protocol):
    """Maximum inner product search with filters; row 0 is padding and never returned."""

    @property
    def num_rows(self) -> int:
        """V, which masks cover."""
        ...

    @property
    def num_candidates(self) -> int:
        """Items that a search without filters can return."""
        ...

    def search(
        self,
        query_QMD: Float[np.ndarray, "Q M D"],
        k: int,
        *,
        allowed_V: Bool[np.ndarray, "V"] | None = None,
        removed: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q T"], Int32[np.ndarray, "Q T"]]:
        """The k best items of each query by the largest inner product over its interests.

        Args:
          query_QMD: One vector per interest.
          k: Length T of the lists, at least 1; may exceed the number of matches.
          allowed_V: Items that may be returned, for all queries; without it all.
          removed: Per query, ids that it must not get back; 0 and repeated ids are ignored.

        Returns:
          Scores and item ids, best first, equal scores in ascending order of id. Where fewer than
          k items match, the tail of a list holds score -inf and item 0.

        Raises:
          ValueError: On queries of another width or that are not finite, k below 1, a mask or ids
            that do not fit the corpus.
        """
        ...


class Ranking(NamedTuple):
    """Items found for one query, best first."""

    score_X: Float32[np.ndarray, "X"]
    item_X: Int[np.ndarray, "X"]


class HostIndex:
    """Chunked matrix products and a partial sort; implements `Searcher`."""

    def __init__(self, item_VD: Float[np.ndarray, "V D"]):
        """Takes the corpus, row = item id.

        Args:
          item_VD: Item vectors. Contiguous float32, a memory map too, is searched where it lies;
            anything else is copied. Must not change afterwards, and have passed
            `checks.check_vectors`, which reads all of it.
        """
        if not len(item_VD):
            raise ValueError("item vectors: expected at least the padding row, got no rows")
        self._item_VD = np.ascontiguousarray(item_VD, np.float32)

    @property
    def num_rows(self) -> int:
        """V."""
        return len(self._item_VD)

    @property
    def num_candidates(self) -> int:
        """V - 1."""
        return len(self._item_VD) - 1

    def search(
        self,
        query_QMD: Float[np.ndarray, "Q M D"],
        k: int,
        *,
        allowed_V: Bool[np.ndarray, "V"] | None = None,
        removed: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q T"], Int32[np.ndarray, "Q T"]]:
        """See `Searcher.search`. Memory is one chunk of scores whatever the corpus."""
        query_QMD = checks.check_queries(query_QMD, self._item_VD.shape[1], k)
        Q, M, _ = query_QMD.shape
        removed_ids = checks.check_filters(Q, self.num_rows, allowed_V, removed)
        block = max(1, _SCORE_BYTES // (4 * M * min(_CHUNK, self.num_rows)))
        rankings: list[Ranking] = []
        for start in range(0, Q, block):
            part = slice(start, start + block)
            rankings += self._search_block(
                query_QMD[part], k, allowed_V, removed_ids and removed_ids[part]
            )
        return stack(rankings, k)

    def _search_block(
        self,
        query_QMD: np.ndarray,
        k: int,
        allowed_V: np.ndarray | None,
        removed: list[np.ndarray] | None,
    ) -> list[Ranking]:
        Q, M, D = query_QMD.shape
        query_ND = query_QMD.reshape(Q * M, D)
        norm_Q = np.sqrt(np.vecdot(query_ND, query_ND)).reshape(Q, M).max(axis=1)
        slack_Q = (self._slack * norm_Q).tolist()
        rankings = [EMPTY] * Q
        for row_C, item_CD, limit_C in self._chunks(len(query_ND), allowed_V):
            score_QC = query_ND @ item_CD.T
            if M > 1:
                score_QC = score_QC.reshape(Q, M, -1).max(axis=1)
            if limit_C is not None:
                np.minimum(score_QC, limit_C, out=score_QC)
            for q, score_C in enumerate(score_QC):
                if removed is not None:
                    score_C[find(row_C, removed[q])] = -np.inf
                front_X = _find_front(score_C, rankings[q], k, slack_Q[q])
                exact_X = score_rows(query_QMD[q], item_CD[front_X])
                item_X = front_X + row_C.start if isinstance(row_C, range) else row_C[front_X]
                rankings[q] = best(rankings[q], Ranking(exact_X, item_X), k)
        return rankings

    def _chunks(
        self, num_vectors: int, allowed_V: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray | range, np.ndarray, np.ndarray | None]]:
        """Ids in ascending order, their vectors, and what their scores are limited to."""
        if allowed_V is not None:
            share = np.count_nonzero(allowed_V) / self.num_rows
            if share * (num_vectors + _COPY_COST) < num_vectors:
                row_X = np.flatnonzero(allowed_V[1:]) + 1
                for start in range(0, len(row_X), _CHUNK):
                    row_C = row_X[start : start + _CHUNK]
                    yield row_C, self._item_VD[row_C], None
                return
        for start in range(1, self.num_rows, _CHUNK):
            stop = min(start + _CHUNK, self.num_rows)
            limit_C = None
            if allowed_V is not None:
                limit_C = _LIMIT.take(allowed_V[start:stop].view(np.uint8))
            yield range(start, stop), self._item_VD[start:stop], limit_C

    @functools.cached_property
    def _slack(self) -> float:
        """How far the matrix product may misjudge a gap, for a query of norm 1.

        Each way of summing D products errs by at most half of D * epsilon times both norms, and a
        gap is between two items, each scored both ways.
        """
        largest = 0.0
        for _, item_CD, _ in self._chunks(1, None):
            squared = float(np.vecdot(item_CD, item_CD).max())
            if not math.isfinite(squared):
                checks.check_vectors(self._item_VD)
            largest = max(largest, squared)
        dim: int = self._item_VD.shape[1]
        return 2 * dim * float(np.finfo(np.float32).eps) * math.sqrt(largest)


EMPTY = Ranking(np.empty(0, np.float32), np.empty(0, np.int64))


def score_rows(
    query_MD: Float32[np.ndarray, "M D"], item_XD: Float32[np.ndarray, "X D"]
) -> Float32[np.ndarray, "X"]:
    """The scores that are returned: the largest inner product, each row by itself."""
    score_MX = np.vecdot(item_XD, query_MD[:, None])
    score_X: np.ndarray = score_MX[0] if len(query_MD) == 1 else score_MX.max(axis=0)
    return score_X


def score_rows_together(
    query_QMD: Float32[np.ndarray, "Q M D"], item_QXD: Float32[np.ndarray, "Q X D"]
) -> Float32[np.ndarray, "Q X"]:
    """`score_rows` of many queries, each with as many rows of its own; the same digits."""
    score_QX: np.ndarray = np.vecdot(item_QXD, query_QMD[:, :1])
    for m in range(1, query_QMD.shape[1]):
        np.maximum(score_QX, np.vecdot(item_QXD, query_QMD[:, m : m + 1]), out=score_QX)
    return score_QX


def best(one: Ranking, other: Ranking, k: int) -> Ranking:
    """The k best of both, which share no item.

    Among equal scores those of `one` come first, then those of `other`, in the order given.
    """
    score_X, item_X = other
    if len(one.item_X):
        score_X = np.concatenate([one.score_X, score_X])
        item_X = np.concatenate([one.item_X, item_X])
    order_X = np.argsort(-score_X, kind="stable")[:k]
    return Ranking(score_X[order_X], item_X[order_X])


def stack(
    rankings: Sequence[Ranking], k: int
) -> tuple[Float32[np.ndarray, "Q k"], Int32[np.ndarray, "Q k"]]:
    """Rankings as arrays; short ones end in score -inf and item 0."""
    score_QT = np.full((len(rankings), k), -np.inf, np.float32)
    item_QT = np.zeros((len(rankings), k), np.int32)
    for q, (score_X, item_X) in enumerate(rankings):
        score_QT[q, : len(score_X)] = score_X
        item_QT[q, : len(item_X)] = item_X
    return score_QT, item_QT


def find(
    row_C: Int[np.ndarray, "C"] | range, wanted_X: Int[np.ndarray, "_"]
) -> Int[np.ndarray, "_"]:
    """Positions in ascending rows of those wanted ids that are there."""
    if not len(row_C):
        return wanted_X[:0]
    wanted_X = wanted_X[(wanted_X >= row_C[0]) & (wanted_X <= row_C[-1])]
    if isinstance(row_C, range):
        found_X: np.ndarray = wanted_X - row_C.start
    else:
        position_X = row_C.searchsorted(wanted_X)
        found_X = position_X[row_C[position_X] == wanted_X]
    return found_X


def _find_front(score_C: np.ndarray, ranking: Ranking, k: int, slack: float) -> np.ndarray:
    """Positions of all that may be among the k best, given what earlier chunks had."""
    if len(ranking.score_X) >= k:
        front_X = np.flatnonzero(score_C >= ranking.score_X[-1] - slack)
        if len(front_X) <= k:
            return front_X
    if len(score_C) > k:
        # Of the negated scores, since NumPy is slow where most are the smallest, as -inf is.
        negated_C = -score_C
        negated_C.partition(k - 1)
        floor = -negated_C[k - 1]
        if floor > -np.inf:
            return np.flatnonzero(score_C >= floor - slack)
    return np.flatnonzero(score_C > -np.inf)
