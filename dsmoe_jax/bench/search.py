"""Full-corpus search: our exact index, FAISS flat and PyTorch's product with top-k, in turns.

Owns the contestants. All search the same random vectors on the host's cores, and before anything is
timed each shows that its lists hold the items that ours hold, ties within rounding aside.

Letters: Q queries, D vector width, V rows of the corpus, T retrieved list length.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from dsmoe_jax import optional
from dsmoe_jax.bench import pairs

OURS = "dsmoe_jax exact"
# Queries on which lists are compared.
CHECKED = 64
# Scores closer than this, relative to the best, are ties.
_TOLERANCE = 1e-5
# Scores of PyTorch held at once.
_TORCH_BYTES = 1 << 28

# Scores and item ids [Q, T] of queries [Q, D].
Search = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000, help="in a turn")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--rounds", type=int, default=5)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times every contestant at every list length.

    Raises:
      ValueError: When a contestant finds other items or cannot be built.
    """
    optional.require("faiss", "torch", extra="cpu,bench")
    sizes = {"items": options.items, "queries": options.queries, "dim": options.dim}
    found: dict[str, Any] = {**sizes, "k": {}}
    for k in options.k:
        with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_") as name:
            expected = pathlib.Path(name) / "expected.npz"
            # The others get the allocator as it comes: keeping what it frees, PyTorch's heap
            # grows to many times what is in use.
            contestants = {
                title: pairs.Contestant(
                    build, (title, *sizes.values(), k, expected), keeps_freed=title == OURS
                )
                for title in _MAKERS
            }
            timings = pairs.take_turns(contestants, rounds=options.rounds, repetitions=1, warmup=1)
        found["k"][str(k)] = {
            title: {
                "queries_per_s": options.queries / timing.median,
                "ratio": pairs.ratio(timing, timings[OURS]),
                **timing.notes,
            }
            for title, timing in timings.items()
        }
    return found


def describe(found: dict[str, Any]) -> list[str]:
    """The result as console lines."""
    lines = [
        f"search: {found['items']:,} items, {found['dim']} wide, "
        f"{found['queries']:,} queries a turn"
    ]
    for k, entries in found["k"].items():
        lines.append(f"  k = {k}")
        for title, entry in entries.items():
            lines.append(
                f"    {title:<18} {entry['queries_per_s']:8,.0f} queries/s, "
                f"{entry['peak_bytes'] / 2**20:6,.0f} MiB above the vectors, time "
                + pairs.show_ratio(entry["ratio"], "ours")
            )
    return lines


def build(
    title: str, items: int, queries: int, dim: int, k: int, expected: pathlib.Path
) -> tuple[pairs.Turn, dict[str, Any]]:
    """One contestant, after it has shown that it finds what ours finds.

    Ours comes first and leaves its lists at `expected`.

    Raises:
      ValueError: When the library is missing or other items are found.
    """
    rng = np.random.default_rng(0)
    # A first search of next to nothing: what the library itself takes is not counted.
    few_VD = np.ones((k + 2, dim), np.float32)
    _MAKERS[title](few_VD, k)(few_VD[:1])
    base_bytes = pairs.read_memory("VmRSS")
    item_VD = rng.standard_normal((items + 1, dim), dtype=np.float32)
    query_QD = rng.standard_normal((queries, dim), dtype=np.float32)
    vector_bytes = item_VD.nbytes + query_QD.nbytes
    search = _MAKERS[title](item_VD, k)
    del item_VD  # the contestant has its own copy, or holds this one
    # The kernel forgets the peak of this process; see proc(5).
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    score_QT, item_QT = search(query_QD)
    # Memory that the index took to build and did not give back counts as well.
    notes = {"peak_bytes": pairs.read_memory("VmHWM") - base_bytes - vector_bytes}
    score_QT, item_QT = score_QT[:CHECKED], item_QT[:CHECKED]
    if title == OURS:
        np.savez(expected, score=score_QT, item=item_QT)
    else:
        with np.load(expected) as ours:
            compare(title, score_QT, item_QT, ours["score"], ours["item"])

    def turn(repetitions: int) -> None:
        for _ in range(repetitions):
            search(query_QD)

    return turn, notes


def compare(
    title: str,
    score_QT: np.ndarray,
    item_QT: np.ndarray,
    our_score_QT: np.ndarray,
    our_item_QT: np.ndarray,
) -> None:
    """Raises ValueError unless lists hold the same items but for ties at their end."""
    margin_Q1 = _TOLERANCE * np.abs(our_score_QT).max(axis=1, keepdims=True)
    if not (np.abs(score_QT - our_score_QT) <= margin_Q1).all():
        raise ValueError(f"{title}: expected our scores, got others")
    for row, (items, our_items) in enumerate(zip(item_QT, our_item_QT, strict=True)):
        last = our_score_QT[row, -1] + margin_Q1[row, 0]
        for scores, listed, other in (
            (score_QT[row], items, our_items),
            (our_score_QT[row], our_items, items),
        ):
            alone = ~np.isin(listed, other) & (scores > last)
            if alone.any():
                raise ValueError(f"{title}: query {row}: expected our items, got another list")


def _make_ours(item_VD: np.ndarray, k: int) -> Search:
    from dsmoe_jax.retrieval import exact

    return _search_in(exact.ExactIndex(item_VD), k)


def _make_faiss(item_VD: np.ndarray, k: int) -> Search:
    from dsmoe_jax.retrieval import faiss_index

    return _search_in(faiss_index.FaissIndex(item_VD), k)


def _search_in(index: Any, k: int) -> Search:
    def search(query_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score_QT, item_QT = index.search(query_QD[:, None], k)
        return np.asarray(score_QT), np.asarray(item_QT)

    return search


def _make_torch(item_VD: np.ndarray, k: int) -> Search:
    import torch

    item_DX = torch.from_numpy(item_VD)[1:].T
    rows = max(1, _TORCH_BYTES // (4 * item_DX.shape[1]))

    # Scores of all blocks share one buffer: blocks of their own would scatter the freed memory.
    score_BX = torch.empty(rows, item_DX.shape[1])

    def search(query_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = torch.empty(len(query_QD), k)
        positions = torch.empty(len(query_QD), k, dtype=torch.int64)
        for start in range(0, len(query_QD), rows):
            block = slice(start, min(start + rows, len(query_QD)))
            query_BD = torch.from_numpy(query_QD[block])
            found = torch.matmul(query_BD, item_DX, out=score_BX[: len(query_BD)])
            torch.topk(found, k, out=(scores[block], positions[block]))
        return scores.numpy(), positions.numpy() + 1

    return search


_MAKERS: dict[str, Callable[[np.ndarray, int], Search]] = {
    OURS: _make_ours,
    "FAISS flat": _make_faiss,
    "PyTorch": _make_torch,
}
