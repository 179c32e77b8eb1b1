"""Index protocol, and what every index does to retrieved lists.

Owns the protocol, the union of several interests and the removal of items from retrieved lists.
The exact index (`exact.py`) is the reference for every other.

A list is sorted by score, best first. Where fewer than T candidates exist, the tail holds score
-inf and item 0, the padding row, which is never a candidate.

Letters: Q queries, M interests, D tower output, T retrieved list length, V rows of the corpus.
"""

import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray


@runtime_checkable
class Index(Protocol):
    """Maximum inner product search over the rows 1..V-1 of a corpus."""

    @property
    def num_candidates(self) -> int:
        """V - 1."""
        ...

    def search(
        self, query_QMD: Float[Array, "Q M D"], k: int
    ) -> tuple[Float[Array, "Q T"], Int[Array, "Q T"]]:
        """The k best items of each query by the largest inner product over its interests.

        Args:
          query_QMD: One vector per interest; M = 1 for most models.
          k: Length T of the lists, at least 1; may exceed the number of candidates.

        Returns:
          Scores and item ids, best first; each item at most once per query.
        """
        ...


@functools.partial(jax.jit, static_argnames="k")
def merge_interests(
    score_QMT: Float[Array, "Q M T"], item_QMT: Int[Array, "Q M T"], k: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Union of the lists of several interests: each item once, with its best score.

    The k best of the union are exactly the k best by maximum over interests as long as every list
    holds at least k: an item that misses the list of its best interest is beaten there k times.
    """
    score_QMT, item_QMT = jnp.asarray(score_QMT), jnp.asarray(item_QMT)
    Q, M, T = score_QMT.shape
    if M == 1:
        return score_QMT[:, 0, :k], item_QMT[:, 0, :k]
    # Sorting by (item, -score) puts the best copy of an item first; later copies are dropped.
    item_QN, negated_QN = jax.lax.sort(
        (item_QMT.reshape(Q, M * T), -score_QMT.reshape(Q, M * T)), dimension=1, num_keys=2
    )
    repeated_QN = jnp.pad(item_QN[:, 1:] == item_QN[:, :-1], ((0, 0), (1, 0)))
    score_QN = jnp.where(repeated_QN, -jnp.inf, -negated_QN)
    score_QT, position_QT = jax.lax.top_k(score_QN, min(k, M * T))
    item_QT = jnp.take_along_axis(item_QN, position_QT, axis=1)
    return score_QT, jnp.where(jnp.isneginf(score_QT), 0, item_QT)


def drop(
    score_QT: Float[np.ndarray, "Q T"],
    item_QT: Int[np.ndarray, "Q T"],
    dropped_QT: Bool[np.ndarray, "Q T"],
    k: int,
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    """The first k entries of each list that are not dropped, in their order.

    Where fewer than k entries remain (more than T - k of a row are dropped), the tail of the row
    is -inf and 0.
    """
    # A stable sort of booleans moves the kept entries to the front and keeps their order.
    order_Qk = np.argsort(dropped_QT, axis=1, kind="stable")[:, :k]
    gone_Qk = np.take_along_axis(dropped_QT, order_Qk, axis=1)
    score_Qk = np.where(gone_Qk, -np.inf, np.take_along_axis(score_QT, order_Qk, axis=1))
    item_Qk = np.where(gone_Qk, 0, np.take_along_axis(item_QT, order_Qk, axis=1))
    return score_Qk.astype(score_QT.dtype), item_Qk.astype(item_QT.dtype)
