"""A bundle of a million generated items: opened, indexed, and asked for a million lists.

Owns the contestants: our searches of given vectors beside a loop in NumPy and loops over FAISS, in
processes of their own that take turns. Bulk does what loops do not: it reads users, runs the tower,
leaves out what was seen and writes Parquet. Its process may hold no more than the bundle's files,
which are mapped, and an allowance that no number of queries changes.

Letters: Q queries, M interests, D a vector, V rows of the corpus, T retrieved list length.
"""

import argparse
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from dsmoe_jax import optional
from dsmoe_jax.bench import pairs, search, synthetic_bundle
from dsmoe_jax.retrieval import host
from dsmoe_jax.serving import bulk, indexing
from dsmoe_jax.serving import retriever as retriever_lib

EXACT, NUMPY, FLAT = "dsmoe_jax exact", "NumPy loop", "FAISS flat loop"
CHOSEN, FAISS = "dsmoe_jax chosen", "FAISS loop, same index"
# Beside the bundle's files: the interpreter, its libraries, and one block of users and lists.
ALLOWANCE_BYTES = 1 << 30
# Queries of one call in a loop; lists that show whether contestants agree.
_BLOCK, _CHECKED = 64, 256
_ROUNDS = 3
_FILE = "vectors.npy"

# Item ids [Q, T] of queries [Q, D].
Search = Callable[[np.ndarray], np.ndarray]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds this measurement's flags."""
    parser.add_argument("--items", type=int, default=1_000_000, help="generated items")
    parser.add_argument(
        "--users", type=int, default=250_000, help="generated users, each in four scenarios"
    )
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--min_recall", type=float, default=0.99, help="of the index")
    parser.add_argument("--held_out", type=int, default=512, help="queries that show its recall")
    parser.add_argument("--exact_queries", type=int, default=2048, help="of exact contestants")
    parser.add_argument("--near_queries", type=int, default=8192, help="of those with an index")
    parser.add_argument("--folder", type=pathlib.Path, help="where files lie meanwhile")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Generates the bundle and measures it.

    Raises:
      ValueError: When an exact contestant finds other items, or bulk holds too much memory.
    """
    optional.require("faiss", extra="cpu")
    with tempfile.TemporaryDirectory(prefix="dsmoe_jax_bench_", dir=options.folder) as name:
        return _run(options, pathlib.Path(name))


def describe(found: dict[str, Any]) -> list[str]:
    """Lines for a console."""
    load, index, k = found["load_s"], found["index"], found["k"]
    parameters = ", ".join(f"{name} {value}" for name, value in index["parameters"].items())
    lines = [
        f"million: {found['items']:,} items and {found['users']:,} users, synthetic (generated, "
        f"nothing trained), {found['bundle_bytes'] / 1e9:.2f} GB",
        f"  opened memory-mapped in {load['mapped']:.2f} s, with every hash checked in "
        f"{load['verified']:.2f} s",
        f"  dsmoe index, recall {index['min_recall']} promised: {index['name']}"
        f" ({parameters or '-'}) in {index['seconds']:.0f} s; alone {index['cpu_ms']:.2f} ms of CPU"
        f" a query, exact {index['exact_cpu_ms']:.2f} ms",
        f"  recall@{k} of {index['held_out']:,} held-out queries: {index['recall']:.4f}, seen "
        f"items left out {index['recall_removed']:.4f}",
        f"  searching given vectors, {_BLOCK} at once, nothing left out",
    ]
    for title, entry in found["search"].items():
        lines.append(
            f"    {title:<24} {entry['ms']:7.2f} ms/query, {entry['lists_per_s']:7,.0f} lists/s, "
            f"{entry['lists_per_s'] * k:11,.0f} rows/s, recall {entry['recall']:.4f}"
        )
    lines.append("  bulk: reads users, runs the tower, leaves out seen items, writes Parquet")
    for title, entry in found["bulk"].items():
        lines.append(
            f"    {title:<24} {entry['queries']:,} queries in {entry['seconds']:,.0f} s, "
            f"{entry['queries'] / entry['seconds']:,.0f} lists/s, "
            f"{entry['rows'] / entry['seconds']:,.0f} rows/s; peak {entry['peak_bytes'] / 1e9:.2f} "
            f"GB of memory, at most {entry['bound_bytes'] / 1e9:.2f} allowed"
        )
    return lines


def _run(options: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    path, k = folder / "bundle", options.k
    asked = synthetic_bundle.write(path, items=options.items, users=options.users)
    with pairs.new_process() as process:
        load_s = pairs.call("load", process, time_loads, path)
    vector_QD = _write_vectors(path, folder, asked, options)
    scenarios = len(synthetic_bundle.SCENARIOS)
    few = max(1, options.exact_queries // scenarios)
    lists = {"exact": bulk_lists(path, folder, few, k)}
    start_s = time.perf_counter()
    indexing.make_index(path, min_recall=options.min_recall, k=k)
    index = {"seconds": time.perf_counter() - start_s}
    index |= _measure_index(path, asked, vector_QD, options)
    lists["chosen"] = bulk_lists(path, folder, options.users, k)
    return {
        "items": options.items,
        "users": options.users,
        "k": k,
        "bundle_bytes": _count_bytes(path),
        "load_s": load_s,
        "index": index,
        "search": _take_turns(path, folder, index, options),
        "bulk": lists,
    }


def time_loads(path: pathlib.Path) -> dict[str, float]:
    """Seconds until a bundle can be asked, mapped alone and with every hash checked.

    Its files lie in the system's cache. Called in a process of its own.
    """
    found = {}
    for name, verify in (("mapped", False), ("verified", True)):
        start_s = time.perf_counter()
        retriever_lib.Retriever.load(path, verify=verify)
        found[name] = time.perf_counter() - start_s
    return found


def bulk_lists(path: pathlib.Path, folder: pathlib.Path, users: int, k: int) -> dict[str, Any]:
    """Lists of the last users in all scenarios, in a process of its own.

    Raises:
      ValueError: When it held more memory than is allowed.
    """
    known = retriever_lib.Retriever.load(path, verify=False).encoder.known_users()
    table = folder / "users.parquet"
    pl.DataFrame({"user_id": known[-users:]}).write_parquet(table)
    with pairs.new_process() as process:
        found = pairs.call("bulk", process, time_bulk, path, table, folder / "lists.parquet", k)
    found |= {
        "queries": users * len(synthetic_bundle.SCENARIOS),
        "bound_bytes": _count_bytes(path) + ALLOWANCE_BYTES,
    }
    if found["peak_bytes"] > found["bound_bytes"]:
        raise ValueError(
            f"bulk: expected at most {found['bound_bytes']:,} bytes of memory, got "
            f"{found['peak_bytes']:,}"
        )
    return found


def time_bulk(
    path: pathlib.Path, users: pathlib.Path, out: pathlib.Path, k: int
) -> dict[str, float]:
    """Seconds, rows and peak memory of bulk; called in a process of its own."""
    start_s = time.perf_counter()
    retriever = retriever_lib.Retriever.load(path, verify=False)
    rows = bulk.recommend_file(retriever, users, out, k=k)
    seconds = time.perf_counter() - start_s
    return {"seconds": seconds, "rows": rows, "peak_bytes": pairs.read_memory("VmHWM")}


def _write_vectors(
    path: pathlib.Path, folder: pathlib.Path, asked: int, options: argparse.Namespace
) -> np.ndarray:
    """Vectors of users that the index is not chosen by, which contestants read."""
    retriever = retriever_lib.Retriever.load(path, verify=False)
    wanted = max(options.exact_queries, options.near_queries, options.held_out, _CHECKED)
    users = retriever.encoder.known_users()[asked:][:wanted]
    query_QMD = retriever.user_vectors(users, retriever.scenarios[0])
    vector_QD = np.ascontiguousarray(query_QMD[:, 0])
    np.save(folder / _FILE, vector_QD)
    return vector_QD


def _measure_index(
    path: pathlib.Path, asked: int, vector_QD: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """What was chosen, and its recall of queries that it was not chosen by."""
    retriever = retriever_lib.Retriever.load(path, verify=False)
    [chosen] = retriever.bundle.manifest["indexes"]
    exact, k = host.HostIndex(retriever.bundle.load("item_vectors")[0]), options.k
    near = retriever.searcher(retriever.scenarios[0])
    query_QMD = vector_QD[: options.held_out, None]
    users = retriever.encoder.known_users()[asked:][: options.held_out]
    encoded = retriever.encoder.encode({"user_id": users})
    seen = [encoded.seen(row) for row in range(len(users))]
    recalls = []
    for removed in (None, seen):
        _, truth_QT = exact.search(query_QMD, k, removed=removed)
        _, item_QT = near.search(query_QMD, k, removed=removed)
        recalls.append(_recall(item_QT, truth_QT))
    [cpu_ms] = [
        point["cpu_ms"]
        for point in chosen["curve"]
        if (point["name"], point["parameters"]) == (chosen["name"], chosen["parameters"])
    ]
    return {
        "name": chosen["name"],
        "parameters": chosen["parameters"],
        "min_recall": options.min_recall,
        "recall_on_probes": chosen["recall"],
        "held_out": len(users),
        "recall": recalls[0],
        "recall_removed": recalls[1],
        "cpu_ms": cpu_ms,
        "exact_cpu_ms": chosen["curve"][0]["cpu_ms"],
    }


def _take_turns(
    path: pathlib.Path, folder: pathlib.Path, index: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Times all contestants; those with an index are asked more."""
    vector_QD = np.load(folder / _FILE)
    groups: list[tuple[tuple[str, ...], int]] = [((EXACT, NUMPY, FLAT), options.exact_queries)]
    if index["parameters"]:
        groups.append(((CHOSEN, FAISS), options.near_queries))
    expected, found = folder / "expected.npz", {}
    for titles, queries in groups:
        queries = min(queries, len(vector_QD))
        contestants = {
            title: pairs.Contestant(build, (title, path, folder, queries, options.k))
            for title in titles
        }
        timings = pairs.take_turns(contestants, rounds=_ROUNDS, repetitions=1, warmup=0)
        for title, timing in timings.items():
            found[title] = {
                "queries": queries,
                "ms": 1e3 * timing.median / queries,
                "lists_per_s": queries / timing.median,
                **timing.notes,
            }
    expected.unlink()
    return found


def build(
    title: str, path: pathlib.Path, folder: pathlib.Path, queries: int, k: int
) -> tuple[pairs.Turn, dict[str, Any]]:
    """One contestant, and the recall of its first lists; ours comes first and leaves them.

    Raises:
      ValueError: When an exact one finds other items.
    """
    query_QD = np.load(folder / _FILE)[:queries]
    retriever = retriever_lib.Retriever.load(path, verify=False)
    item_VD = retriever.bundle.load("item_vectors")[0]
    find = _MAKERS[title](retriever, item_VD, k)
    item_QT, expected = _search_all(find, query_QD[:_CHECKED]), folder / "expected.npz"
    score_QT = np.take_along_axis(query_QD[: len(item_QT)] @ item_VD.T, item_QT, axis=1)
    if title == EXACT:
        np.savez(expected, score=score_QT, item=item_QT)
    with np.load(expected) as ours:
        if title in (NUMPY, FLAT):
            search.compare(title, score_QT, item_QT, ours["score"], ours["item"])
        recall = _recall(item_QT, ours["item"][: len(item_QT)])

    def turn(repetitions: int) -> None:
        for _ in range(repetitions):
            _search_all(find, query_QD)

    return turn, {"recall": recall}


def _search_all(find: Search, query_QD: np.ndarray) -> np.ndarray:
    starts = range(0, len(query_QD), _BLOCK)
    return np.concatenate([find(query_QD[start : start + _BLOCK]) for start in starts])


def _make_exact(retriever: Any, item_VD: np.ndarray, k: int) -> Search:
    index = host.HostIndex(item_VD)
    return lambda query_QD: index.search(query_QD[:, None], k)[1]


def _make_numpy(retriever: Any, item_VD: np.ndarray, k: int) -> Search:
    def find(query_QD: np.ndarray) -> np.ndarray:
        score_QV = query_QD @ item_VD.T
        score_QV[:, 0] = -np.inf
        best_QT = np.argpartition(score_QV, -k, axis=1)[:, -k:]
        order_QT = np.argsort(-np.take_along_axis(score_QV, best_QT, axis=1), axis=1)
        return np.take_along_axis(best_QT, order_QT, axis=1)

    return find


def _make_flat(retriever: Any, item_VD: np.ndarray, k: int) -> Search:
    import faiss  # an optional extra

    index = faiss.IndexFlatIP(item_VD.shape[1])
    index.add(item_VD[1:])
    return lambda query_QD: index.search(query_QD, k)[1] + 1


def _make_chosen(retriever: Any, item_VD: np.ndarray, k: int) -> Search:
    near = retriever.searcher(retriever.scenarios[0])
    return lambda query_QD: near.search(query_QD[:, None], k)[1]


def _make_faiss(retriever: Any, item_VD: np.ndarray, k: int) -> Search:
    """FAISS with the same settings; its codes' scores decide, which ours only begin with."""
    import faiss  # an optional extra

    [chosen] = retriever.bundle.manifest["indexes"]
    [path] = retriever.bundle.root.glob("*.faiss")
    index, parameters = faiss.read_index(str(path)), chosen["parameters"]
    settings = (
        faiss.SearchParametersHNSW(efSearch=parameters["ef_search"])
        if "ef_search" in parameters
        else faiss.SearchParametersIVF(nprobe=parameters["nprobe"])
    )
    return lambda query_QD: index.search(query_QD, k, params=settings)[1] + 1


_MAKERS: dict[str, Callable[[Any, np.ndarray, int], Search]] = {
    EXACT: _make_exact,
    NUMPY: _make_numpy,
    FLAT: _make_flat,
    CHOSEN: _make_chosen,
    FAISS: _make_faiss,
}


def _recall(item_QT: np.ndarray, truth_QT: np.ndarray) -> float:
    """Mean share of the true items that lists hold."""
    pairs_of_lists = zip(item_QT, truth_QT, strict=True)
    return float(np.mean([np.isin(truth_T, item_T).mean() for item_T, truth_T in pairs_of_lists]))


def _count_bytes(path: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())
