"""Changes to a searched corpus without a rebuild: vectors put over it and tombstones.

Owns what changed since an index was built. Changed and new vectors lie in a small exact index; the
base is searched without them and without what was removed, and both lists are merged. The lists are
those of a `host.HostIndex` over the changed vectors (or of its approximation, on an approximate
base).

A change makes a new state and swaps one reference, so a search in another thread sees all of it or
nothing. It copies what changed so far: `settle` before that becomes large.

Letters: Q queries, M interests, D tower output, T retrieved list length, V rows of the corpus, new
ones included, W rows of the base, N rows of a change, X changed rows.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64

from dsmoe_jax.retrieval import checks, host


class _State(NamedTuple):
    """What changed: never written to, only replaced.

    Attributes:
      changed_XD: Vectors in place of the base's and behind it; row 0 is padding.
      row_X: Their rows, ascending; 0 for the padding.
      changed: Searches them.
      dead_V: Removed rows; the padding is none.
      base_W: Rows of the base that still hold, or None for all.
    """

    changed_XD: Float32[np.ndarray, "X D"]
    row_X: Int64[np.ndarray, "X"]
    changed: host.HostIndex
    dead_V: Bool[np.ndarray, "V"]
    base_W: Bool[np.ndarray, "W"] | None


class DeltaIndex:
    """A base index and what changed since; implements `host.Searcher`."""

    def __init__(self, base: host.Searcher, item_VD: Float[np.ndarray, "V D"]):
        """Starts without changes.

        Args:
          base: Searches `item_VD`; never changed.
          item_VD: The vectors of the base, row = item id.

        Raises:
          ValueError: When the base has another number of rows.
        """
        if base.num_rows != len(item_VD):
            raise ValueError(
                f"item vectors: expected the {base.num_rows} rows of the base, got {len(item_VD)}"
            )
        self._base = base
        self._item_WD = np.asarray(item_VD)
        self._changing = threading.Lock()
        padding_XD = np.zeros((1, item_VD.shape[1]), np.float32)
        self._state = self._make_state(
            padding_XD, np.zeros(1, np.int64), np.zeros(len(item_VD), bool)
        )

    @property
    def num_rows(self) -> int:
        """V, with new rows and removed ones: the next new row's number."""
        return len(self._state.dead_V)

    @property
    def num_candidates(self) -> int:
        """Items that were not removed."""
        dead_V = self._state.dead_V
        return len(dead_V) - 1 - int(np.count_nonzero(dead_V))

    @property
    def is_exact(self) -> bool:
        """Whether lists are those of an exact search."""
        return type(self._base) is host.HostIndex

    def search(
        self,
        query_QMD: Float[np.ndarray, "Q M D"],
        k: int,
        *,
        allowed_V: Bool[np.ndarray, "V"] | None = None,
        removed: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> tuple[Float32[np.ndarray, "Q T"], Int32[np.ndarray, "Q T"]]:
        """See `host.Searcher.search`. A mask covers new rows too."""
        state = self._state
        query_QMD = checks.check_queries(query_QMD, self._item_WD.shape[1], k)
        removed_ids = checks.check_filters(len(query_QMD), len(state.dead_V), allowed_V, removed)
        W = len(self._item_WD)
        base_W = state.base_W
        if allowed_V is not None:
            base_W = allowed_V[:W] if base_W is None else allowed_V[:W] & base_W
        score_QT, item_QT = self._base.search(
            query_QMD,
            k,
            allowed_V=base_W,
            removed=removed_ids and [removed_X[removed_X < W] for removed_X in removed_ids],
        )
        if len(state.row_X) == 1:
            return score_QT, item_QT
        changed_QT, position_QT = state.changed.search(
            query_QMD,
            k,
            allowed_V=None if allowed_V is None else allowed_V[state.row_X],
            removed=removed_ids
            and [host.find(state.row_X, removed_X) for removed_X in removed_ids],
        )
        return _merge(score_QT, item_QT, changed_QT, state.row_X[position_QT])

    def upsert(self, row_N: Int[np.ndarray, "N"], vector_ND: Float[np.ndarray, "N D"]) -> None:
        """Replaces vectors, also of removed rows, or adds rows.

        Args:
          row_N: Rows, each once. New ones are the next numbers from `num_rows` on, without a gap;
            their order does not matter.
          vector_ND: Their vectors; copied.

        Raises:
          ValueError: On rows that repeat, leave a gap or are the padding, or vectors that cannot be
            searched. Nothing is changed then.
        """
        row_N = row_N.astype(np.int64)
        vector_ND = np.asarray(vector_ND, np.float32)
        expected = (len(row_N), self._item_WD.shape[1])
        if vector_ND.shape != expected:
            raise ValueError(
                f"upsert: expected vectors of shape {list(expected)}, got {list(vector_ND.shape)}"
            )
        order_N = np.argsort(row_N)
        row_N, vector_ND = row_N[order_N], vector_ND[order_N]
        padded_XD = np.concatenate([np.zeros((1, expected[1]), np.float32), vector_ND])
        checks.check_vectors(padded_XD, np.concatenate([[0], row_N]), name="upsert")
        with self._changing:
            old = self._state
            first, num_new = len(old.dead_V), int((row_N >= len(old.dead_V)).sum())
            wrong_N = (row_N < 1) | (row_N >= first + num_new)
            if wrong_N.any():
                raise ValueError(
                    f"upsert: expected rows from 1 on and new ones from {first} on without a gap, "
                    f"got row {row_N[wrong_N][0]}"
                )
            kept_X = ~np.isin(old.row_X, row_N)
            row_X = np.concatenate([old.row_X[kept_X], row_N])
            changed_XD = np.concatenate([old.changed_XD[kept_X], vector_ND])
            order_X = np.argsort(row_X)
            dead_V = np.concatenate([old.dead_V, np.zeros(num_new, bool)])
            dead_V[row_N] = False
            self._state = self._make_state(changed_XD[order_X], row_X[order_X], dead_V)

    def remove(self, row_N: Int[np.ndarray, "N"]) -> None:
        """Lets no search return these rows; they keep their numbers. Twice is once.

        Raises:
          ValueError: On rows that do not exist, the padding among them. Nothing is changed then.
        """
        with self._changing:
            old = self._state
            wrong_N = (row_N < 1) | (row_N >= len(old.dead_V))
            if wrong_N.any():
                raise ValueError(
                    f"remove: expected rows in [1, {len(old.dead_V)}), got {row_N[wrong_N][0]}"
                )
            dead_V = old.dead_V.copy()
            dead_V[row_N] = True
            kept_X = ~dead_V[old.row_X]
            self._state = self._make_state(old.changed_XD[kept_X], old.row_X[kept_X], dead_V)

    def vectors(self, row_N: Int[np.ndarray, "N"]) -> Float32[np.ndarray, "N D"]:
        """Vectors as they are now; 0 of rows that were added and removed."""
        state, W = self._state, len(self._item_WD)
        vector_ND = np.zeros((len(row_N), self._item_WD.shape[1]), np.float32)
        of_base_N = row_N < W
        vector_ND[of_base_N] = self._item_WD[row_N[of_base_N]]
        place_N = np.minimum(state.row_X.searchsorted(row_N), len(state.row_X) - 1)
        changed_N = (state.row_X[place_N] == row_N) & (row_N > 0)
        vector_ND[changed_N] = state.changed_XD[place_N[changed_N]]
        return vector_ND

    def exact(self) -> "DeltaIndex":
        """The same vectors and tombstones over an exact search, as they are now; nothing is copied.

        To know what an approximate base misses. It does not follow later changes.
        """
        found = DeltaIndex(host.HostIndex(self._item_WD), self._item_WD)
        found._state = self._state
        return found

    def settle(self) -> "DeltaIndex":
        """An exact index of all rows as they are now, with nothing but tombstones over it.

        Rows keep their numbers. Changes made after the call are not in it: hold them back until the
        new index is in place.
        """
        dead_V = self._state.dead_V
        item_VD = self.vectors(np.arange(len(dead_V)))
        settled = DeltaIndex(host.HostIndex(item_VD), item_VD)
        settled.remove(np.flatnonzero(dead_V))
        return settled

    def _make_state(self, changed_XD: np.ndarray, row_X: np.ndarray, dead_V: np.ndarray) -> _State:
        W = len(self._item_WD)
        base_W = ~dead_V[:W]
        base_W[row_X[: row_X.searchsorted(W)]] = False
        base_W[0] = True
        whole = bool(base_W.all())
        return _State(
            changed_XD, row_X, host.HostIndex(changed_XD), dead_V, None if whole else base_W
        )


def _merge(
    one_QT: np.ndarray, item_QT: np.ndarray, other_QT: np.ndarray, changed_QT: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best of two lists per query, equal scores in ascending order of id."""
    k = one_QT.shape[1]
    score_QX = np.concatenate([one_QT, other_QT], axis=1)
    item_QX = np.concatenate([item_QT, changed_QT.astype(np.int32)], axis=1)
    order_QT = np.lexsort((item_QX, -score_QX), axis=1)[:, :k]
    return np.take_along_axis(score_QX, order_QT, axis=1), np.take_along_axis(
        item_QX, order_QT, axis=1
    )
