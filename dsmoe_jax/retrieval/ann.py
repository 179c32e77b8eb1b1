"""Approximate maximum inner product search on a host, by FAISS: HNSW and IVF.

Owns one built index and the planner that decides when to leave it for an exact search. `choice.py`
builds candidates and chooses. Whatever FAISS finds is scored again by `host.score_rows`, so scores
and their order are those of the exact search, and an item is either missed or in its place.

Filters are what approximate indexes are bad at. A filter that keeps at most half of the items is
searched exactly. Under one that keeps more, and for items to remove, more neighbours are fetched
and dropped again, with effort in proportion: what lies behind a user's favourites is harder to
find. A query whose list ends up short is searched exactly.

Letters: Q queries, M interests, N vectors searched at once (M per query), D tower output,
T retrieved list length, V rows of the corpus, W neighbours fetched, X items found.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from dsmoe_jax.retrieval import checks, host

# Parameters of a search by kind of index; `k` is the list length that the others suit.
HNSW = ("k", "ef_search")
IVF = ("k", "nprobe", "widen")
# A filter that keeps no more is searched exactly.
_EXACT_SHARE = 0.5
# Neighbours fetched beyond what a filter that ignores the scores would leave.
_SPARE = 1.2
# Rows that an exact search scores in the time in which HNSW spends one unit of ef_search.
_ROWS_PER_EF = 64
# Share of the lists from which on IVF is no faster than an exact search.
_MOST_LISTS = 0.5
# Rows to train on: so many per list, and at least so many in all, which scale the codes.
_TRAIN_PER_LIST, _TRAIN_LEAST = 64, 20_000
_CHUNK = 1 << 16
# Bytes of the vectors that are scored again at once.
_ROW_BYTES = 1 << 22


class AnnIndex:
    """A FAISS index with the exact vectors beside it; implements `host.Searcher`."""

    def __init__(
        self, item_VD: Float[np.ndarray, "V D"], index: Any, parameters: Mapping[str, int]
    ):
        """Joins an index and its vectors.

        Args:
          item_VD: Item vectors, row = item id, as of `host.HostIndex`.
          index: An index of FAISS over rows 1..V-1 by inner product, HNSW or IVF.
          parameters: For HNSW `k` and `ef_search`; for IVF `k`, `nprobe` and `widen`, the
            neighbours fetched per item wanted.

        Raises:
          ValueError: On an index of another kind, metric, width or number of rows; on parameters
            that are not the kind's.
        """
        self._exact = host.HostIndex(item_VD)
        self._item_VD = np.ascontiguousarray(item_VD, np.float32)
        self._index = index
        self._is_graph = isinstance(index, faiss.IndexHNSW)
        self._parameters = dict(parameters)
        _check_index(index, self._item_VD)
        names = HNSW if self._is_graph else IVF
        if set(parameters) != set(names) or min(parameters.values()) < 1:
            raise ValueError(
                f"index parameters: expected {', '.join(names)}, at least 1 each, got "
                f"{dict(parameters)}"
            )
        self._least_effort = self._parameters["ef_search" if self._is_graph else "nprobe"]

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        item_VD: Float[np.ndarray, "V D"],
        parameters: Mapping[str, int],
    ) -> "AnnIndex":
        """Opens a file that `write` wrote, memory-mapped.

        FAISS trusts what it reads: compare the file's hash before where others could change it.

        Raises:
          ValueError: On what is no whole file of an index, or an index that does not fit; see
            `AnnIndex`.
        """
        if not pathlib.Path(path).is_file():
            raise ValueError(f"{path}: expected a file of FAISS, found none")
        # Each kind of index has its own way to stay on disk.
        flag = faiss.IO_FLAG_MMAP_IFC if "ef_search" in parameters else faiss.IO_FLAG_MMAP
        try:
            index = faiss.read_index(os.fspath(path), flag)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(
                f"{path}: expected a whole index of FAISS, got one that it cannot read "
                f"({_reason(error)})"
            ) from None
        if isinstance(index, faiss.IndexIVF):
            lists = faiss.downcast_InvertedLists(index.invlists)
            if isinstance(lists, faiss.OnDiskInvertedLists):
                # Else every search starts threads that read ahead, which take longer than itself.
                lists.prefetch_nthread = 0
        try:
            return cls(item_VD, index, parameters)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def num_rows(self) -> int:
        """V."""
        return self._exact.num_rows

    @property
    def num_candidates(self) -> int:
        """V - 1."""
        return self._exact.num_candidates

    def search(
        self,
        query_QMD: Float[np.ndarray, "Q M D"],
        k: int,
        *,
        allowed_V: Bool[np.ndarray, "V"] | None = None,
        removed: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q T"], Int32[np.ndarray, "Q T"]]:
        """See `host.Searcher.search`: the lists are as long as those of an exact search."""
        query_QMD = checks.check_queries(query_QMD, self._item_VD.shape[1], k)
        removed_ids = checks.check_filters(len(query_QMD), self.num_rows, allowed_V, removed)
        matches = self._count_matches(allowed_V)
        few = matches <= _EXACT_SHARE * self.num_candidates
        if few or self._costs_more(self._count_wanted(k, matches, removed_ids)):
            return self._exact.search(query_QMD, k, allowed_V=allowed_V, removed=removed_ids)
        score_QT, item_QT = self.search_near(query_QMD, k, allowed_V=allowed_V, removed=removed_ids)
        short_X = np.flatnonzero((item_QT > 0).sum(axis=1) < min(k, matches))
        if len(short_X):
            score_QT[short_X], item_QT[short_X] = self._exact.search(
                query_QMD[short_X],
                k,
                allowed_V=allowed_V,
                removed=removed_ids and [removed_ids[q] for q in short_X],
            )
        return score_QT, item_QT

    def search_near(
        self,
        query_QMD: Float[np.ndarray, "Q M D"],
        k: int,
        *,
        allowed_V: Bool[np.ndarray, "V"] | None = None,
        removed: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q T"], Int32[np.ndarray, "Q T"]]:
        """What FAISS finds, without the planner: any part of a list may be missing."""
        query_QMD = checks.check_queries(query_QMD, self._item_VD.shape[1], k)
        removed_ids = checks.check_filters(len(query_QMD), self.num_rows, allowed_V, removed)
        Q, M, D = query_QMD.shape
        wanted = self._count_wanted(k, self._count_matches(allowed_V), removed_ids)
        effort = self._effort(wanted)
        if self._is_graph:
            settings = faiss.SearchParametersHNSW(efSearch=effort)
        else:
            settings = faiss.SearchParametersIVF(nprobe=effort)
            wanted *= self._parameters["widen"]
        W = min(wanted, self.num_candidates)
        _, position_NW = self._index.search(query_QMD.reshape(Q * M, D), W, params=settings)
        # FAISS's position p is item p + 1, and it fills short lists with -1.
        item_QX = position_NW.reshape(Q, M * W) + 1
        item_QX.sort(axis=1)
        block = max(1, _ROW_BYTES // (4 * M * max(1, W) * D))
        score_QT = np.full((Q, k), -np.inf, np.float32)
        item_QT = np.zeros((Q, k), np.int32)
        for start in range(0, Q, block):
            part = slice(start, start + block)
            score_BT, item_BT = self._score_again(
                query_QMD[part], item_QX[part], k, allowed_V, removed_ids and removed_ids[part]
            )
            score_QT[part, : score_BT.shape[1]] = score_BT
            item_QT[part, : score_BT.shape[1]] = item_BT
        return score_QT, item_QT

    def _score_again(
        self,
        query_QMD: np.ndarray,
        item_QX: np.ndarray,
        k: int,
        allowed_V: np.ndarray | None,
        removed: list[np.ndarray] | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the items found, ascending ids per query, 0 for none; at most X of them."""
        score_QX = host.score_rows_together(query_QMD, self._item_VD[item_QX])
        is_out_QX = item_QX == 0
        if query_QMD.shape[1] > 1:
            # An item comes once per interest at most.
            is_out_QX[:, 1:] |= item_QX[:, 1:] == item_QX[:, :-1]
        if allowed_V is not None:
            is_out_QX |= ~allowed_V[item_QX]
        if removed is not None:
            for q, removed_X in enumerate(removed):
                is_out_QX[q, host.find(item_QX[q], removed_X)] = True
        score_QX[is_out_QX] = -np.inf
        order_QT = np.argsort(-score_QX, axis=1, kind="stable")[:, :k]
        score_QT = np.take_along_axis(score_QX, order_QT, axis=1)
        item_QT = np.take_along_axis(item_QX, order_QT, axis=1)
        item_QT[score_QT == -np.inf] = 0
        return score_QT, item_QT

    def _count_matches(self, allowed_V: np.ndarray | None) -> int:
        if allowed_V is None:
            return self.num_candidates
        return int(np.count_nonzero(allowed_V[1:]))

    def _count_wanted(self, k: int, matches: int, removed: list[np.ndarray] | None) -> int:
        """Neighbours to fetch, of which k should be left."""
        wanted = k + max(map(len, removed or ()), default=0)
        if matches < self.num_candidates:
            wanted = math.ceil(_SPARE * wanted * self.num_candidates / max(1, matches))
        return wanted

    def _effort(self, wanted: int) -> int:
        """ef_search or nprobe for so many neighbours."""
        return math.ceil(self._least_effort * max(1.0, wanted / self._parameters["k"]))

    def _costs_more(self, wanted: int) -> bool:
        """Whether fetching so many is dearer than an exact search.

        The effort that the parameters name never is: it was chosen for being cheaper.
        """
        effort = self._effort(wanted)
        if effort <= self._least_effort:
            return False
        if self._is_graph:
            return effort * _ROWS_PER_EF > self.num_rows
        return bool(effort > _MOST_LISTS * self._index.nlist)


def make(item_VD: Float[np.ndarray, "V D"], factory: str, *, seed: int) -> Any:
    """Builds an index by inner product over rows 1..V-1, with as many threads as FAISS may use.

    Args:
      item_VD: Item vectors, row = item id; a memory map is read by chunks.
      factory: FAISS's name of the index, such as "HNSW32" or "IVF256,SQ8".
      seed: Of the rows and first centroids of the training, or the levels of the graph.
    """
    V, D = item_VD.shape
    # Its default metric is L2.
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.rng = faiss.RandomGenerator(seed)
    else:
        index.cp.seed = seed
        wanted = max(_TRAIN_PER_LIST * index.nlist, _TRAIN_LEAST)
        row_X = np.arange(1, V)
        if len(row_X) > wanted:
            row_X = np.sort(np.random.default_rng(seed).choice(row_X, wanted, replace=False))
        index.train(np.ascontiguousarray(item_VD[row_X], np.float32))
    for start in range(1, V, _CHUNK):
        index.add(np.ascontiguousarray(item_VD[start : start + _CHUNK], np.float32))
    return index


def write(index: Any, path: str | os.PathLike[str]) -> None:
    """Writes an index beside its place first.

    Raises:
      ValueError: When FAISS cannot write there.
    """
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        faiss.write_index(index, os.fspath(partial))
    except RuntimeError as error:
        raise ValueError(f"{path}: expected to write an index, got {_reason(error)}") from None
    partial.replace(path)


def count_bytes(index: Any) -> int:
    """The size of the file that `write` would make."""
    size = 0

    def count(block: bytes) -> None:
        nonlocal size
        size += len(block)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return size


def _check_index(index: Any, item_VD: np.ndarray) -> None:
    if not isinstance(index, faiss.IndexHNSW | faiss.IndexIVF):
        raise ValueError(f"index: expected HNSW or IVF, got {type(index).__name__}")
    V, D = item_VD.shape
    for what, expected, got in (
        ("a metric", "inner product", _METRICS.get(index.metric_type, "another one")),
        ("a width", D, index.d),
        ("a number of rows", V - 1, index.ntotal),
    ):
        if got != expected:
            raise ValueError(f"index: expected {what} of {expected}, got {got}")


_METRICS = {faiss.METRIC_INNER_PRODUCT: "inner product", faiss.METRIC_L2: "L2"}


def _reason(error: BaseException) -> str:
    """What FAISS says went wrong, on one line, without the place in its sources."""
    text = " ".join(str(error).split())
    return text.rpartition("Error: ")[2] or type(error).__name__
