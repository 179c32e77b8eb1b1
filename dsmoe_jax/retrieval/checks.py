"""Checks of what retrieval is given: vectors, queries, filters. NumPy alone.

Letters: Q queries, M interests, D tower output, V rows of the corpus (row 0 is padding), C rows of
a chunk, X rows in question.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped

# Rows checked at once.
_CHUNK = 1 << 16
# Rows named in a refusal.
_MOST_NAMED = 3


def check_search(shape: tuple[int, ...], dim: int, k: int) -> None:
    """Raises ValueError in one line if queries of this shape or this k cannot be searched."""
    if len(shape) != 3 or shape[2] != dim:
        raise ValueError(
            f"queries: expected shape [queries, interests, {dim}] like the index's items, "
            f"got {list(shape)}"
        )
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")


def check_queries(
    query_QMD: Float[np.ndarray, "Q M D"], dim: int, k: int
) -> Float32[np.ndarray, "Q M D"]:
    """Contiguous queries that can be searched.

    Raises:
      ValueError: On another shape, numbers that are not finite, or this k.
    """
    check_search(query_QMD.shape, dim, k)
    query_QMD = np.ascontiguousarray(query_QMD, np.float32)
    if not np.isfinite(query_QMD).all():
        wrong_Q = ~np.isfinite(query_QMD).all(axis=(1, 2))
        raise ValueError(
            f"queries: expected finite numbers, got nan or inf in query {_list(wrong_Q, None)}"
        )
    return query_QMD


def check_filters(
    num_queries: int,
    num_rows: int,
    allowed_V: Bool[np.ndarray, "V"] | None,
    removed: Sequence[Int[np.ndarray, "_"]] | None,
) -> list[Int64[np.ndarray, "_"]] | None:
    """The ids to remove, or None.

    Raises:
      ValueError: On a mask of another kind or length, another number of lists, ids that no row has.
    """
    if allowed_V is not None and (allowed_V.dtype != np.bool_ or allowed_V.shape != (num_rows,)):
        raise ValueError(
            f"allowed: expected {num_rows} booleans, one per row, got {list(allowed_V.shape)} of "
            f"{allowed_V.dtype}"
        )
    if removed is None:
        return None
    if len(removed) != num_queries:
        raise ValueError(f"removed: expected {num_queries} lists of ids, got {len(removed)}")
    for q, removed_X in enumerate(removed):
        if len(removed_X) and not 0 <= removed_X.min() <= removed_X.max() < num_rows:
            raise ValueError(
                f"removed: expected ids in [0, {num_rows}), got {removed_X.min()} to "
                f"{removed_X.max()} for query {q}"
            )
    return [removed_X.astype(np.int64, copy=False) for removed_X in removed]


def check_vectors(
    item_VD: Float[np.ndarray, "V D"],
    raw_id_V: Shaped[np.ndarray, "V"] | None = None,
    *,
    name: str = "item vectors",
) -> None:
    """Refuses vectors that cannot be searched; row 0, padding, may hold anything.

    Reads the corpus once, by chunks: for who builds an index, not for who opens one.

    Args:
      item_VD: Item vectors, row = item id.
      raw_id_V: The raw id of every row, by which a refusal names items.
      name: What the vectors are called.

    Raises:
      ValueError: On nan or inf, vectors of norm 0, repeated raw ids.
    """
    wrong_V, zero_V = np.zeros((2, len(item_VD)), bool)
    for start in range(1, len(item_VD), _CHUNK):
        item_CD = item_VD[start : start + _CHUNK]
        wrong_V[start : start + _CHUNK] = ~np.isfinite(item_CD).all(axis=1)
        zero_V[start : start + _CHUNK] = ~item_CD.any(axis=1)
    for found_V, expected, got in (
        (wrong_V, "finite numbers", "nan or inf"),
        (zero_V, "a norm above 0", "0"),
    ):
        if found_V.any():
            rows = _list(found_V, raw_id_V)
            raise ValueError(f"{name}: expected {expected}, got {got} in row {rows}")
    if raw_id_V is not None:
        check_raw_ids(raw_id_V, len(item_VD), name=name)


def check_raw_ids(raw_id_V: Shaped[np.ndarray, "_"], num_rows: int, *, name: str) -> None:
    """Refuses raw ids that repeat, or not one per row; that of row 0, padding, is ignored."""
    if len(raw_id_V) != num_rows:
        raise ValueError(f"{name}: expected {num_rows} raw ids, got {len(raw_id_V)}")
    order_X = np.argsort(raw_id_V[1:], kind="stable") + 1
    repeated_X = np.flatnonzero(raw_id_V[order_X[1:]] == raw_id_V[order_X[:-1]])
    if len(repeated_X):
        first, second = order_X[repeated_X[0]], order_X[repeated_X[0] + 1]
        more = f", and {len(repeated_X) - 1} more" if len(repeated_X) > 1 else ""
        raise ValueError(
            f"{name}: expected one row per raw id, got {raw_id_V[first]} in rows {first} and "
            f"{second}{more}"
        )


def _list(wrong_X: np.ndarray, name_X: np.ndarray | None) -> str:
    """The first of the marked rows, by number and name, and how many more there are."""
    rows = np.flatnonzero(wrong_X)
    named = [f"{row}" if name_X is None else f"{row} ({name_X[row]})" for row in rows[:_MOST_NAMED]]
    more = f" and {len(rows) - _MOST_NAMED} more" if len(rows) > _MOST_NAMED else ""
    return ", ".join(named) + more
