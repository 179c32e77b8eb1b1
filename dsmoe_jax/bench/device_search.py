"""Exact search on one accelerator: ours, XLA's top-k over all scores, FAISS and PyTorch.

Owns the jobs. All search the same vectors; ours and FAISS show that they find what XLA's top-k
found before they are timed. FAISS takes its queries from the host and gives its lists to it; the
others leave them on the device.

Letters: Q queries, D vector width, V rows of the corpus, T retrieved list length, X blocks, B
queries of a block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax import optional
from dsmoe_jax.bench import device_timing, device_twins, limited, search
from dsmoe_jax.retrieval import exact

# Scores held at once by XLA's top-k over whole rows of them.
_SCORE_BYTES = 1 << 30
_WHOLE, _FAISS = "lax.top_k", "FAISS flat"


def list_searches(sizes: device_timing.Sizes) -> device_timing.Listed:
    """One job a way, corpus and list length."""
    for items, queries, lengths in sizes.searches:
        for k in lengths:
            # Lists that the first way leaves for the others to be compared with.
            left: dict[str, Any] = {}
            for way in (_WHOLE, *exact.KEEPERS, _FAISS):
                name = f"{way}, {items:,} items, {queries:,} queries, k = {k:,}"
                yield name, functools.partial(_measure, sizes, way, items, queries, k, left)


def _measure(
    sizes: device_timing.Sizes, way: str, items: int, queries: int, k: int, left: dict[str, Any]
) -> dict[str, Any]:
    """Times one way, after it has shown that it finds what `lax.top_k` found.

    Raises:
      ValueError: When it finds other items, or is not installed.
    """
    if way == _FAISS:
        require_faiss()
    item_VD, query_QD = device_twins.make_vectors(items, queries)
    asked_QD = jnp.asarray(query_QD)
    run: Callable[[], Any]
    if way == _FAISS:
        from dsmoe_jax.retrieval import faiss_index  # an optional extra

        run = functools.partial(faiss_index.FaissIndex(item_VD).search, query_QD[:, None], k)
    elif way in exact.KEEPERS:
        run = functools.partial(exact.ExactIndex(item_VD, keeper=way).search, asked_QD[:, None], k)
    else:
        rows = max(1, _SCORE_BYTES // (4 * len(item_VD)))
        run = functools.partial(search_whole, asked_QD, jnp.asarray(item_VD), k=k, most=rows)
    found = device_timing.time_turns(device_timing.repeat(run), sizes)
    score_QT, item_QT = (np.asarray(part)[: search.CHECKED] for part in run())
    if way == _WHOLE:
        left["score"], left["item"] = score_QT, item_QT
    elif left:
        search.compare(way, score_QT, item_QT, left["score"], left["item"])
    flop = 2 * queries * item_VD.size
    return {**found, "flop": flop, "queries": queries, "peak": device_timing.HIGHEST}


def require_faiss() -> None:
    """Refuses a machine without FAISS for GPUs.

    Raises:
      ValueError: With what is there instead.
    """
    if optional.list_missing(["faiss"]):
        raise ValueError("FAISS for GPUs: not installed")
    from dsmoe_jax.retrieval import faiss_index  # an optional extra

    if not faiss_index.has_gpu_code():
        raise ValueError("FAISS for GPUs: not installed, FAISS here is for CPUs")
    if not faiss_index.sees_gpu():
        raise ValueError("FAISS for GPUs: installed, but sees no GPU")


@functools.partial(jax.jit, static_argnames=("k", "most"))
def search_whole(
    query_QD: jax.Array, item_VD: jax.Array, *, k: int, most: int
) -> tuple[jax.Array, jax.Array]:
    """Scores and ids [Q, T] by XLA's top-k over all scores of at most `most` queries at once."""
    Q, D = query_QD.shape
    blocks = -(-Q // most)
    rows = -(-Q // blocks)
    query_XBD = jnp.pad(query_QD, ((0, blocks * rows - Q), (0, 0))).reshape(blocks, rows, D)

    def take(query_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        score_BV = jnp.matmul(query_BD, item_VD.T, precision=jax.lax.Precision.HIGHEST)
        score_BT, item_BT = jax.lax.top_k(score_BV.at[:, 0].set(-jnp.inf), k)
        return score_BT, item_BT

    score_XBT, item_XBT = jax.lax.map(take, query_XBD)
    return jnp.reshape(score_XBT, (-1, k))[:Q], jnp.reshape(item_XBT, (-1, k))[:Q]


def list_twins(sizes: device_timing.Sizes, budget: device_timing.Budget) -> device_timing.Listed:
    """PyTorch's searches."""
    for items, queries, lengths in sizes.searches:
        for k in lengths:
            name = f"PyTorch topk, {items:,} items, {queries:,} queries, k = {k:,}"
            yield name, functools.partial(_measure_twin, sizes, budget, items, queries, k)


def _measure_twin(
    sizes: device_timing.Sizes, budget: device_timing.Budget, items: int, queries: int, k: int
) -> dict[str, Any]:
    device = device_twins.find_device()
    arguments = (device, items, queries, k, sizes)
    return limited.call("PyTorch", budget.left_s(), time_twin, *arguments)


def time_twin(
    device: str, items: int, queries: int, k: int, sizes: device_timing.Sizes
) -> dict[str, Any]:
    """The entry of PyTorch's search, in a process of its own."""
    turn = device_twins.build_search(device, items, queries, k)
    found = device_timing.time_turns(turn, sizes)
    return {**found, "queries": queries, "peak": device_timing.HIGHEST}
