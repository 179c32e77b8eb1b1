"""Exact maximum inner product search in JAX, the reference for every other index.

Items and queries are taken in chunks and the best so far are kept, so memory is bounded by one
chunk of scores whatever the corpus. How they are kept depends on the device: on a CPU in a
reservoir (`reservoir.py`), whose passes run at the speed of vectors; on an accelerator every
chunk's best are found in two stages (`two_stage.py`) and joined with the best before them. A corpus
sharded by rows over a mesh is searched where it lies: each device finds its own best, and only
those lists travel.

Equal scores are returned in ascending order of item id, with any chunk size and device count.

Letters: Q queries, M interests, D tower output, T retrieved list length, V rows of the corpus,
W rows of one device's shard, N vectors searched at once, Z devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from dsmoe_jax.retrieval import checks, reservoir, two_stage
from dsmoe_jax.retrieval import index as index_lib

Array = jax.Array | np.ndarray

KEEPERS = ("reservoir", "two_stage")
# Bytes of a chunk of scores: what the last-level cache of a CPU holds, and on accelerators enough
# work for one launch.
_CPU_SCORE_BYTES = 1 << 24
_SCORE_BYTES = 1 << 30
_CPU_MOST_ROWS = 1 << 16
_MOST_ROWS = 1 << 20
# Queries searched at once: on accelerators enough for the corpus to be read seldom.
_CPU_QUERIES = 512
_QUERIES = 4096


class ExactIndex:
    """Chunked top-k; implements `index.Index`."""

    def __init__(
        self,
        item_VD: Float[Array, "V D"],
        *,
        num_rows: int | None = None,
        mesh: Mesh | None = None,
        item_chunk: int | None = None,
        query_chunk: int | None = None,
        keeper: str | None = None,
    ):
        """Places the corpus on the devices.

        Args:
          item_VD: Item vectors, row = item id; row 0 is padding and never returned.
          num_rows: V; rows from here on are padding. All rows of `item_VD` by default.
          mesh: Devices over which the rows are sharded; without one they stay where they are.
          item_chunk: Rows of a device scored at once; by default what suits the device.
          query_chunk: Queries searched at once; by default what suits the device.
          keeper: How the best so far are kept, one of `KEEPERS`; by default what suits the device.
            The lists are the same.
        """
        is_cpu = jax.default_backend() == "cpu"
        rows = item_VD.shape[0]
        self._dim: int = item_VD.shape[1]
        self._num_rows = rows if num_rows is None else num_rows
        self._mesh = mesh if mesh is not None and mesh.size > 1 else None
        self._item_chunk = item_chunk
        self._query_chunk = query_chunk or (_CPU_QUERIES if is_cpu else _QUERIES)
        self._keeper = keeper or ("reservoir" if is_cpu else "two_stage")
        if self._mesh is None:
            self._item_VD = jnp.asarray(item_VD)
        else:
            if rows % self._mesh.size:
                item_VD = jnp.pad(item_VD, ((0, -rows % self._mesh.size), (0, 0)))
            sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
            self._item_VD = jax.device_put(item_VD, sharding)

    @property
    def num_candidates(self) -> int:
        """V - 1."""
        return self._num_rows - 1

    def search(
        self, query_QMD: Float[Array, "Q M D"], k: int
    ) -> tuple[Float[jax.Array, "Q T"], Int[jax.Array, "Q T"]]:
        """See `index.Index.search`. Compiles once per number of queries and k."""
        checks.check_search(query_QMD.shape, self._dim, k)
        Q = len(query_QMD)
        if self._query_chunk >= Q:
            return self._search(query_QMD, k)
        lists = []
        for start in range(0, Q, self._query_chunk):
            block = query_QMD[start : start + self._query_chunk]
            missing = self._query_chunk - len(block)
            if missing:  # one shape, one compilation
                block = jnp.pad(block, ((0, missing), (0, 0), (0, 0)))
            lists.append(self._search(block, k))
        score_QT, item_QT = (jnp.concatenate(parts)[:Q] for parts in zip(*lists, strict=True))
        return score_QT, item_QT

    def _search(self, query_QMD: Array, k: int) -> tuple[jax.Array, jax.Array]:
        chunk = self._item_chunk or _fit_rows(query_QMD.shape[0] * query_QMD.shape[1])
        lists: tuple[jax.Array, jax.Array] = _search(
            query_QMD,
            self._item_VD,
            self._num_rows,
            k=k,
            chunk=chunk,
            mesh=self._mesh,
            keeper=self._keeper,
        )
        return lists


def _fit_rows(num_vectors: int) -> int:
    """Rows scored at once against so many vectors: a multiple of 32, as reservoirs like it."""
    size, most = (
        (_CPU_SCORE_BYTES, _CPU_MOST_ROWS)
        if jax.default_backend() == "cpu"
        else (_SCORE_BYTES, _MOST_ROWS)
    )
    return min(most, max(1024, size // (4 * num_vectors) // 32 * 32))


@functools.partial(jax.jit, static_argnames="k")
def top_k(
    score_QV: Float[Array, "Q V"], k: int
) -> tuple[Float[jax.Array, "Q T"], Int[jax.Array, "Q T"]]:
    """The k best of given scores, column = item id; column 0 and -inf are never returned."""
    score_QV = jnp.asarray(score_QV).at[:, 0].set(-jnp.inf)
    score_QT, item_QT = jax.lax.top_k(score_QV, min(k, score_QV.shape[1]))
    return score_QT, jnp.where(jnp.isneginf(score_QT), 0, item_QT)


@functools.partial(jax.jit, static_argnames=("k", "chunk", "mesh", "keeper"))
def _search(
    query_QMD: Float[Array, "Q M D"],
    item_VD: Float[Array, "V D"],
    num_rows: int | Int[Array, ""],
    *,
    k: int,
    chunk: int,
    mesh: Mesh | None,
    keeper: str,
) -> tuple[Float[jax.Array, "Q k"], Int[jax.Array, "Q k"]]:
    Q, M, D = query_QMD.shape
    query_ND = jnp.asarray(query_QMD).reshape(Q * M, D)
    if mesh is None:
        score_NT, item_NT = _scan(query_ND, item_VD, jnp.int32(0), num_rows, k, chunk, keeper)
    else:
        score_NT, item_NT = _search_shards(query_ND, item_VD, num_rows, k, chunk, mesh, keeper)
    score_QT, item_QT = index_lib.merge_interests(
        score_NT.reshape(Q, M, k), item_NT.reshape(Q, M, k).astype(jnp.int32), k
    )
    if mesh is not None:
        # Every process reads the lists of its queries from a device of its own.
        whole = NamedSharding(mesh, PartitionSpec())
        score_QT, item_QT = jax.lax.with_sharding_constraint((score_QT, item_QT), whole)
    return score_QT, item_QT


def _search_shards(
    query_ND: Array,
    item_VD: Array,
    num_rows: int | Array,
    k: int,
    chunk: int,
    mesh: Mesh,
    keeper: str,
) -> tuple[jax.Array, jax.Array]:
    """Best k of each shard, then the best k of those lists."""
    axes = mesh.axis_names

    def search_shard(
        query_ND: Array, item_WD: Array, num_rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        first = jax.lax.axis_index(axes) * item_WD.shape[0]
        score_NT, item_NT = _scan(query_ND, item_WD, first, num_rows, k, chunk, keeper)
        return score_NT[None], item_NT[None]

    score_ZNT, item_ZNT = jax.shard_map(
        search_shard,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=(PartitionSpec(axes), PartitionSpec(axes)),
        check_vma=False,
    )(query_ND, item_VD, jnp.asarray(num_rows, jnp.int32))
    N = query_ND.shape[0]
    # Shards side by side in the order of their rows, so that ties still go to the smaller id.
    score_NX = score_ZNT.swapaxes(0, 1).reshape(N, -1)
    item_NX = item_ZNT.swapaxes(0, 1).reshape(N, -1)
    score_NT, position_NT = jax.lax.top_k(score_NX, k)
    return score_NT, jnp.take_along_axis(item_NX, position_NT, axis=1)


def _scan(
    query_ND: Array,
    item_WD: Array,
    first: jax.Array,
    num_rows: int | Array,
    k: int,
    chunk: int,
    keeper: str,
) -> tuple[jax.Array, jax.Array]:
    """The k best of a shard, chunk by chunk; `first` is the item id of row 0."""
    N, W = len(query_ND), len(item_WD)
    chunk, T = min(chunk, W), min(k, W)
    query_DN = query_ND.T

    def take_chunk(fresh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Item id of the chunk's first row, its rows that are candidates, and its items."""
        # The last chunk reaches back to stay inside the shard (padding would copy the corpus);
        # rows below `fresh` were scored before.
        start = jnp.minimum(fresh, W - chunk)
        row_C = start + jnp.arange(chunk, dtype=jnp.int32)
        id_C = first + row_C
        candidate_C = (row_C >= fresh) & (id_C > 0) & (id_C < num_rows)
        item_CD = jax.lax.dynamic_slice_in_dim(item_WD, start, chunk)
        return first + start, candidate_C, item_CD

    def add_chunk(best: reservoir.Reservoir, fresh: jax.Array) -> tuple[reservoir.Reservoir, None]:
        first_item, candidate_C, item_CD = take_chunk(fresh)
        return reservoir.add(best, _multiply(item_CD, query_DN), candidate_C, first_item, T), None

    def join_chunk(
        best: tuple[jax.Array, jax.Array], fresh: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        first_item, candidate_C, item_CD = take_chunk(fresh)
        score_NC = jnp.where(candidate_C[None], _multiply(query_ND, item_CD.T), -jnp.inf)
        score_NT, place_NT = two_stage.top_k(score_NC, T)
        # The best before come first, so that ties go to the smaller id.
        score_NX = jnp.concatenate([best[0], score_NT], axis=1)
        item_NX = jnp.concatenate([best[1], first_item + place_NT], axis=1)
        score_NT, place_NT = jax.lax.top_k(score_NX, T)
        return (score_NT, jnp.take_along_axis(item_NX, place_NT, axis=1)), None

    starts = jnp.arange(0, W, chunk, dtype=jnp.int32)
    if keeper == "reservoir":
        kept, _ = jax.lax.scan(add_chunk, reservoir.make(T, N), starts)
        score_NT, item_NT = reservoir.finish(kept, T)
    else:
        none = (jnp.full((N, T), -jnp.inf, jnp.float32), jnp.zeros((N, T), jnp.int32))
        (score_NT, item_NT), _ = jax.lax.scan(join_chunk, none, starts)
        item_NT = jnp.where(jnp.isneginf(score_NT), 0, item_NT)
    missing = ((0, 0), (0, k - T))
    return jnp.pad(score_NT, missing, constant_values=-jnp.inf), jnp.pad(item_NT, missing)


def _multiply(first: Array, second: Array) -> jax.Array:
    # Accelerators multiply float32 in lower precision by default; the reference must not.
    return jnp.matmul(
        first,
        second,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
