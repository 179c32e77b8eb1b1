"""Streaming top-k: the k best scores of many queries at once, without sorting the stream.

Sorting is what top-k costs. Here every query keeps a floor, a score that k of its candidates
reach; of each chunk of scores only those above the floor are copied into the query's reservoir, and
where reservoirs are full all are cut back and the floors rise. Both are passes over arrays whose
last axis is the query, so they run at the speed of vectors, and only the final k are sorted.

Chunks arrive in ascending order of item id and a reservoir keeps the order of arrival, so equal
scores come out in ascending order of id.

Letters: N queries, C scores of a chunk, L rows of a reservoir, X 32-bit words of a mask, R ranks,
T retrieved list length.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt32

# Scores moved at once: as many as a late chunk has above the floor for the busiest query.
_STRIDE = 16
# The least room for arrivals; a small one would be cut back every other chunk.
_LEAST_ROOM = 256
_WORD = 32


class Reservoir(NamedTuple):
    """Candidates for the k best of every query."""

    score_LN: Float[jax.Array, "L N"]  # Their scores; -inf where there is none
    item_LN: Int[jax.Array, "L N"]  # Their ids, ascending among equal scores
    # Rows in use, the same for every query; what lies behind them means nothing.
    filled: Int[jax.Array, ""]
    # k candidates with smaller ids than all to come reach it; -inf before that.
    floor_N: Float[jax.Array, "N"]


def make(k: int, num_queries: int) -> Reservoir:
    """An empty reservoir for lists of k."""
    shape = (_kept(k) + _room(k), num_queries)
    return Reservoir(
        score_LN=jnp.full(shape, -jnp.inf, jnp.float32),
        item_LN=jnp.zeros(shape, jnp.int32),
        filled=jnp.int32(0),
        floor_N=jnp.full(num_queries, -jnp.inf, jnp.float32),
    )


def add(
    reservoir: Reservoir,
    score_CN: Float[jax.Array, "C N"],
    candidate_C: Bool[jax.Array, "C"],
    first: Int[jax.Array, ""],
    k: int,
) -> Reservoir:
    """Adds the candidates of a chunk, whose row r is item `first + r`.

    -inf and NaN are no candidates. Multiples of 32 rows are added fastest.
    """
    (L, N), C = reservoir.score_LN.shape, len(score_CN)

    def pack_above(key_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        word_XN = _pack((score_CN > _unorder(key_N)[None]) & candidate_C[:, None])
        return word_XN, _count_up(word_XN)

    def look_ahead(key_N: jax.Array) -> tuple[jax.Array, jax.Array]:
        ahead_N = _reached_by(jnp.where(candidate_C[:, None], score_CN, -jnp.inf), k)
        return pack_above(jnp.maximum(key_N, ahead_N))

    key_N = _order(reservoir.floor_N)
    word_XN, upto_XN = pack_above(key_N)
    if k < C:
        # The first chunk, or one that is better than all before: most would be cut again.
        word_XN, upto_XN = jax.lax.cond(
            upto_XN[-1].max() > L, look_ahead, lambda _: (word_XN, upto_XN), key_N
        )
    most = upto_XN[-1].max()

    def move(state: tuple[Reservoir, jax.Array]) -> tuple[Reservoir, jax.Array]:
        reservoir, moved = state
        full = reservoir.filled + _STRIDE > L
        reservoir = jax.lax.cond(full, lambda r: _cut_back(r, k), lambda r: r, reservoir)
        rank_R1 = moved + jnp.arange(_STRIDE, dtype=jnp.int32)[:, None]
        row_RN = _find(word_XN, upto_XN, jnp.broadcast_to(rank_R1, (_STRIDE, N)))
        return _append(reservoir, score_CN, first, row_RN), moved + _STRIDE

    return jax.lax.while_loop(lambda state: state[1] < most, move, (reservoir, jnp.int32(0)))[0]


def finish(reservoir: Reservoir, k: int) -> tuple[Float[jax.Array, "N k"], Int[jax.Array, "N k"]]:
    """Scores and ids, best first; the tail of a short list holds -inf and 0."""
    best = _cut_back(reservoir, k)
    kept = _kept(k)
    score_NT, row_NT = jax.lax.top_k(best.score_LN[:kept].T, k)
    item_NT = jnp.take_along_axis(best.item_LN[:kept].T, row_NT, axis=1)
    return score_NT, jnp.where(jnp.isneginf(score_NT), 0, item_NT)


def _append(
    reservoir: Reservoir, score_CN: jax.Array, first: jax.Array, row_RN: jax.Array
) -> Reservoir:
    """Copies the given rows of a chunk; -1 is none."""
    none_RN = row_RN < 0
    score_RN = jnp.where(none_RN, -jnp.inf, _take(score_CN, jnp.maximum(row_RN, 0)))
    # Zeros of either sign are equal, also as integers.
    score_RN = jnp.where(score_RN == 0, jnp.float32(0), score_RN)
    item_RN = jnp.where(none_RN, 0, first + row_RN)
    at = (reservoir.filled, jnp.int32(0))
    return reservoir._replace(
        score_LN=jax.lax.dynamic_update_slice(reservoir.score_LN, score_RN, at),
        item_LN=jax.lax.dynamic_update_slice(reservoir.item_LN, item_RN, at),
        filled=reservoir.filled + len(row_RN),
    )


def _cut_back(reservoir: Reservoir, k: int) -> Reservoir:
    """Keeps k to `_kept(k)` candidates of every query, the best, and raises the floors to match."""
    kept, (L, N) = _kept(k), reservoir.score_LN.shape
    row_L1 = jnp.arange(L, dtype=jnp.int32)[:, None]
    score_LN = jnp.where(row_L1 < reservoir.filled, reservoir.score_LN, -jnp.inf)
    key_LN = _order(score_LN)
    key_N = _raise_floor(_order(reservoir.floor_N), key_LN, k, kept)
    above_LN, equal_LN = key_LN > key_N[None], key_LN == key_N[None]
    # More are equal than there is room for: the first to arrive stay.
    room_N = kept - above_LN.sum(axis=0, dtype=jnp.int32)
    word_XN = _pack(equal_LN)
    last_1N = _find(word_XN, _count_up(word_XN), room_N[None] - 1)
    stays_LN = above_LN | (equal_LN & ((row_L1 <= last_1N) | (last_1N < 0)))
    word_XN = _pack(stays_LN)
    rank_RN = jnp.broadcast_to(jnp.arange(kept, dtype=jnp.int32)[:, None], (kept, N))
    row_RN = _find(word_XN, _count_up(word_XN), rank_RN)
    empty = reservoir._replace(filled=jnp.int32(0))
    shorter = _append(empty, score_LN, jnp.int32(0), row_RN)
    item_RN = _take(reservoir.item_LN, jnp.maximum(row_RN, 0))
    return shorter._replace(
        item_LN=reservoir.item_LN.at[:kept].set(item_RN), floor_N=_unorder(key_N)
    )


def _reached_by(score_CN: Float[jax.Array, "C N"], k: int) -> Int[jax.Array, "N"]:
    """A key just below a score that at least k of these reach, and not many more than k."""
    # The best of groups are k scores as well, and there are fewer of them to count.
    size = max(1, len(score_CN) // (2 * k))
    groups = len(score_CN) // size
    group_XN = score_CN[: groups * size].reshape(size, groups, -1)
    # NaN is beaten by everything.
    key_XN = _order(jnp.where(group_XN > -jnp.inf, group_XN, -jnp.inf).max(axis=0))
    least_N = jnp.full(key_XN.shape[1], _order(jnp.float32(-jnp.inf)))
    return jnp.maximum(_raise_floor(least_N, key_XN, k, _kept(k)) - 1, least_N)


def _raise_floor(
    floor_N: Int[jax.Array, "N"], key_LN: Int[jax.Array, "L N"], k: int, kept: int
) -> Int[jax.Array, "N"]:
    """A key that at least k reach and, unless more are equal, at most `kept`.

    It is found by bisection from a floor that k are known to reach.
    """

    def is_open(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        low_N, high_N, reach_N = state
        return (reach_N > kept) & (_middle(low_N, high_N) > low_N)

    def halve(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        low_N, high_N, reach_N = state
        middle_N = _middle(low_N, high_N)
        count_N = (key_LN >= middle_N[None]).sum(axis=0, dtype=jnp.int32)
        # Queries that are done stay where they are.
        up_N = (count_N >= k) & is_open(state)
        down_N = (count_N < k) & is_open(state)
        return (
            jnp.where(up_N, middle_N, low_N),
            jnp.where(down_N, middle_N, high_N),
            jnp.where(up_N, count_N, reach_N),
        )

    start = (floor_N, key_LN.max(axis=0) + 1, jnp.full_like(floor_N, len(key_LN)))
    return jax.lax.while_loop(lambda state: is_open(state).any(), halve, start)[0]


def _middle(low: jax.Array, high: jax.Array) -> jax.Array:
    """Half way, rounded down, without overflow."""
    return (low & high) + ((low ^ high) >> 1)


def _order(score: Float[jax.Array, "..."]) -> Int[jax.Array, "..."]:
    """Integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    key: jax.Array = bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))
    return key


def _unorder(key: Int[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """The numbers that `_order` was given."""
    bits = key ^ ((key >> 31) & jnp.int32(0x7FFFFFFF))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _pack(mask_CN: Bool[jax.Array, "C N"]) -> UInt32[jax.Array, "X N"]:
    """A mask as words: bit b of word x is row 32 x + b."""
    C, N = mask_CN.shape
    mask_CN = jnp.pad(mask_CN, ((0, -C % _WORD), (0, 0)))
    bit_W = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
    bit_XWN = jnp.where(mask_CN.reshape(-1, _WORD, N), bit_W[None, :, None], jnp.uint32(0))
    # Fused into the sums that count words, XLA would pack once per term.
    word_XN: jax.Array = jax.lax.optimization_barrier(bit_XWN.sum(axis=1, dtype=jnp.uint32))
    return word_XN


def _count_up(word_XN: UInt32[jax.Array, "X N"]) -> Int[jax.Array, "X N"]:
    """Set bits up to and including each word."""
    return jnp.cumsum(jax.lax.population_count(word_XN).astype(jnp.int32), axis=0)


def _find(
    word_XN: UInt32[jax.Array, "X N"],
    upto_XN: Int[jax.Array, "X N"],
    rank_RN: Int[jax.Array, "R N"],
) -> Int[jax.Array, "R N"]:
    """Rows of the set bits with these ranks, the first being 0; -1 where there are fewer."""
    X = len(word_XN)
    # The last word up to which at most `rank` bits are set, by bisection; the bit is in the next.
    steps = X.bit_length()

    def advance(step: jax.Array, full_RN: jax.Array) -> jax.Array:
        next_RN = full_RN + (jnp.int32(1) << (steps - 1 - step))
        inside_RN = jnp.minimum(next_RN, X - 1)
        passed_RN = (next_RN < X) & (_take(upto_XN, inside_RN) <= rank_RN)
        return jnp.where(passed_RN, next_RN, full_RN)

    full_RN = jax.lax.fori_loop(0, steps, advance, jnp.full_like(rank_RN, -1))
    index_RN = jnp.minimum(full_RN + 1, X - 1)
    rest_RN = _take(word_XN, index_RN)
    rank_RN = rank_RN - _take(upto_XN, index_RN) + _population(rest_RN)
    bit_RN = jnp.zeros_like(rank_RN)
    for width in (16, 8, 4, 2, 1):
        low_RN = _population(rest_RN & jnp.uint32((1 << width) - 1))
        upper_RN = rank_RN >= low_RN
        rank_RN = jnp.where(upper_RN, rank_RN - low_RN, rank_RN)
        rest_RN = jnp.where(upper_RN, rest_RN >> width, rest_RN)
        bit_RN = jnp.where(upper_RN, bit_RN + width, bit_RN)
    return jnp.where(full_RN + 1 < X, _WORD * index_RN + bit_RN, -1)


def _population(word: jax.Array) -> jax.Array:
    return jax.lax.population_count(word).astype(jnp.int32)


def _take(value_CN: jax.Array, row_RN: jax.Array) -> jax.Array:
    return jnp.take_along_axis(value_CN, row_RN, axis=0, mode="promise_in_bounds")


def _kept(k: int) -> int:
    # A little more than k, so that bisection need not tell neighbours apart.
    return _WORD * math.ceil((k + max(_WORD, k // 8)) / _WORD)


def _room(k: int) -> int:
    return _WORD * math.ceil(max(_LEAST_ROOM, 2 * k) / _WORD)
