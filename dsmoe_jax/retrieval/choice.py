"""The choice of an index from a target recall, measured on a model's own vectors.

Owns the candidates, the measurement and its record. Vectors of items and queries decide what an
approximate index can do, so candidates are measured on probe queries, each searched alone on one
thread of FAISS as a service does.

Recall is measured twice: of the k best, and of the k behind them when as many are removed as a
query may bring, which is the worst that seen items come to. The lower one counts. A graph's recall
can end far below 1 there whatever the effort: by inner product it keeps few ways to items of small
norm.

Letters: Q probe queries, M interests, D tower output, V rows of the corpus, T retrieved length.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax.retrieval import ann, host

EXACT = "exact"
# Below so many rows few indexes can beat an exact search.
_SMALL_CORPUS = 20_000
_EF_SEARCH = (50, 100, 200, 400, 800)
_NPROBE = (4, 8, 16, 32, 64)
# Coarser codes need a wider list to score again.
_WIDEN, _WIDEN_COARSE = {"Flat": (1,), "SQ8": (2,)}, (4, 8)
# Probes whose time is taken, and how often; the fastest round counts.
_TIMED, _ROUNDS = 32, 3


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting on the curve.

    Attributes:
      name: "exact", or FAISS's name of the index.
      parameters: Of its searches; see `ann.AnnIndex`.
      recall: At k, mean over the probes.
      recall_removed: The same with each probe's `num_removed` best items removed.
      cpu_ms: CPU time of a query searched alone.
      build_s: Wall time of the build.
      index_bytes: Size of the index's file, beside the vectors.
    """

    name: str
    parameters: dict[str, int]
    recall: float
    recall_removed: float
    cpu_ms: float
    build_s: float
    index_bytes: int


@dataclasses.dataclass(frozen=True)
class Choice:
    """The cheapest setting that reaches the target, the curve behind it, and its index.

    Attributes:
      point: The setting.
      curve: Every setting that was measured, in the order of measurement.
      k: List length that recall was measured at.
      num_removed: Items that were removed for the second recall.
      min_recall: The target.
      seed: Of the builds.
      index: FAISS's index; None where the exact search is chosen.
    """

    point: Point
    curve: tuple[Point, ...]
    k: int
    num_removed: int
    min_recall: float
    seed: int
    index: Any = dataclasses.field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All but the index, as what JSON can hold."""
        return {
            "name": self.point.name,
            "parameters": self.point.parameters,
            "k": self.k,
            "num_removed": self.num_removed,
            "min_recall": self.min_recall,
            "seed": self.seed,
            "recall": self.point.recall,
            "recall_removed": self.point.recall_removed,
            "curve": [dataclasses.asdict(point) for point in self.curve],
        }

    def make_searcher(self, item_VD: Float[np.ndarray, "V D"]) -> host.Searcher:
        """What searches the vectors that the choice was made for."""
        if self.index is None:
            return host.HostIndex(item_VD)
        return ann.AnnIndex(item_VD, self.index, self.point.parameters)

    def write_index(self, path: str | os.PathLike[str]) -> None:
        """Writes what `ann.AnnIndex.open` opens; the exact search needs no file.

        Raises:
          ValueError: Where the exact search is chosen, or FAISS cannot write.
        """
        if self.index is None:
            raise ValueError(f"{path}: expected an approximate index to write, got exact search")
        ann.write(self.index, path)


def choose(
    item_VD: Float[np.ndarray, "V D"],
    probe_QMD: Float[np.ndarray, "Q M D"],
    *,
    k: int,
    min_recall: float,
    seed: int,
    num_removed: int | None = None,
) -> Choice:
    """Builds and measures candidates, and takes the cheapest that reaches a recall.

    Args:
      item_VD: Item vectors, row = item id.
      probe_QMD: Queries like those to come, some hundred.
      k: List length to measure at.
      min_recall: Least recall at k, in (0, 1]; the exact search always reaches it.
      seed: Of the builds. The curve is that of the build at hand: FAISS builds a graph with several
        threads, which meet it in any order.
      num_removed: Items to remove that a query may bring, and the target still holds though they be
        its best; k by default.

    Raises:
      ValueError: On a target outside (0, 1], no probes, queries that do not fit.
    """
    if not 0 < min_recall <= 1:
        raise ValueError(f"min_recall: expected a number in (0, 1], got {min_recall}")
    if not len(probe_QMD):
        raise ValueError("probe queries: expected at least one, got none")
    exact = host.HostIndex(item_VD)
    depth = k if num_removed is None else num_removed
    _, truth_QT = exact.search(probe_QMD, k + depth)
    with _one_thread():
        cpu_ms = _measure_cpu_ms(exact, probe_QMD, k)
    chosen, chosen_index = Point(EXACT, {}, 1.0, 1.0, cpu_ms, 0.0, 0), None
    curve = [chosen]
    for factory in _list_factories(*item_VD.shape):
        start = time.perf_counter()
        index = ann.make(item_VD, factory, seed=seed)
        build_s = time.perf_counter() - start
        index_bytes = ann.count_bytes(index)
        for parameters in _list_parameters(factory, k):
            searcher = ann.AnnIndex(item_VD, index, parameters)
            with _one_thread():
                recalls = _measure_recalls(searcher, probe_QMD, truth_QT, k)
                cpu_ms = _measure_cpu_ms(searcher, probe_QMD, k)
            point = Point(factory, parameters, *recalls, cpu_ms, build_s, index_bytes)
            curve.append(point)
            if min(recalls) >= min_recall and point.cpu_ms < chosen.cpu_ms:
                chosen, chosen_index = point, index
    return Choice(chosen, tuple(curve), k, depth, min_recall, seed, chosen_index)


def _list_factories(num_rows: int, dim: int) -> list[str]:
    """Names of the indexes worth building."""
    if num_rows < _SMALL_CORPUS:
        return ["HNSW32"]
    # About the root of the number of rows, of which searching lists and their rows cost the same.
    num_lists = 1 << round(np.log2(num_rows) / 2)
    # Four bits for two dimensions: builds in a second what eight bits take minutes for.
    codes = ["Flat", "SQ8"] + ([f"PQ{dim // 2}x4fs"] if dim % 2 == 0 else [])
    return ["HNSW32"] + [f"IVF{num_lists},{code}" for code in codes]


def _list_parameters(factory: str, k: int) -> list[dict[str, int]]:
    """Settings to measure, by rising effort."""
    if factory.startswith("HNSW"):
        return [{"k": k, "ef_search": effort} for effort in _EF_SEARCH]
    code = factory.partition(",")[2]
    return [
        {"k": k, "nprobe": effort, "widen": widen}
        for widen in _WIDEN.get(code, _WIDEN_COARSE)
        for effort in _NPROBE
    ]


def _measure_recalls(
    searcher: ann.AnnIndex, probe_QMD: np.ndarray, truth_QT: Int[np.ndarray, "Q T"], k: int
) -> tuple[float, float]:
    """Recall of the k best, and of the last k when all before them are removed.

    Of the index alone: what is searched exactly in its place loses nothing.
    """
    before_QT, last_QT = truth_QT[:, :-k], truth_QT[:, -k:]
    _, first_QT = searcher.search_near(probe_QMD, k)
    _, behind_QT = searcher.search_near(probe_QMD, k, removed=list(before_QT))
    return _recall(first_QT, truth_QT[:, :k]), _recall(behind_QT, last_QT)


def _recall(item_QT: np.ndarray, truth_QT: np.ndarray) -> float:
    """Mean share of the true items that a list holds; 1 where there are none."""
    shares = [
        np.isin(truth_T[truth_T > 0], item_T).mean()
        for item_T, truth_T in zip(item_QT, truth_QT, strict=True)
        if truth_T.any()
    ]
    return float(np.mean(shares)) if shares else 1.0


def _measure_cpu_ms(searcher: host.Searcher, probe_QMD: np.ndarray, k: int) -> float:
    """CPU time of a query searched alone, in the fastest of some rounds."""
    timed_QMD = probe_QMD[:_TIMED]
    searcher.search(timed_QMD[:1], k)
    rounds_s = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        for q in range(len(timed_QMD)):
            searcher.search(timed_QMD[q : q + 1], k)
        rounds_s.append(time.process_time() - start)
    return 1e3 * min(rounds_s) / len(timed_QMD)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Lets FAISS use one thread of this process."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
