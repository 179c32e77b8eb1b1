"""Popularity and linear collaborative filtering: how each is fitted and scores a query.

Owns how each is fitted on the training period and how it scores a query. A query's own history
window, which reaches up to its split's first day, is folded in when it is scored. Which settings
are good, and how they are evaluated, is in `baselines/builtin.py`.

Letters: B queries of a batch, S scenarios, V rows of the corpus (row 0 is padding), U rows of the
user table, C width of a collaborative vector.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int

from dsmoe_jax import features
from dsmoe_jax.data import statistics
from dsmoe_jax.data import store as store_lib

# Scores [B, V] of a split's queries, by split and query ids.
Scorer = Callable[[str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Clicks:
    """What collaborative scorers are fitted on and asked with.

    Attributes:
      training_UV: Binary, see `statistics.read_interactions`.
      windows: By split, binary rows of its queries, see `statistics.read_windows`.
      exposures_UV: Binary, see `statistics.read_exposures`.
      shown: As `windows`, of exposures.
    """

    training_UV: scipy.sparse.csr_matrix
    windows: dict[str, scipy.sparse.csr_matrix]
    exposures_UV: scipy.sparse.csr_matrix
    shown: dict[str, scipy.sparse.csr_matrix]

    def count(self) -> Float[np.ndarray, "V"]:
        """Users who clicked each item."""
        return np.asarray(self.training_UV.sum(axis=0)).ravel()


def read_clicks(store: store_lib.Store) -> Clicks:
    """Reads them from a store."""
    rows = {split: store.queries(split).rows_QC for split in store_lib.SPLITS}
    windows, shown = (
        {
            split: statistics.read_windows(store, rows_QC, (sequence,))
            for split, rows_QC in rows.items()
        }
        for sequence in (features.HISTORY, features.EXPOSURES)
    )
    return Clicks(
        statistics.read_interactions(store), windows, statistics.read_exposures(store), shown
    )


def read_column(store: store_lib.Store, name: str) -> Callable[[str, np.ndarray], np.ndarray]:
    """A column of a split's queries, such as "user" or "scenario", by split and query ids."""
    column = store.columns[name]
    values = {split: store.queries(split).rows_QC[:, column] for split in store_lib.SPLITS}
    return lambda split, query_B: values[split][query_B]


def make_random(num_items: int, seed: int) -> Scorer:
    """Uniform scores that depend on (seed, query, item) alone, not on batching."""

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        # SplitMix64's finaliser, a published bijective mixer, over a counter of (query, item).
        counter = query_B.astype(np.uint64)[:, None] * np.uint64(num_items)
        value = counter + np.arange(num_items, dtype=np.uint64)[None]
        stream = 2 * seed + (split == "test") + 1
        value += np.uint64(0x9E3779B97F4A7C15 * stream % 2**64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((value ^ (value >> np.uint64(31))) >> np.uint64(40)).astype(np.float32)

    return score


def make_constant(num_items: int) -> Scorer:
    """Zero everywhere: what is added to it decides."""
    return lambda split, query_B: np.zeros((len(query_B), num_items), np.float32)


def make_popularity(store: store_lib.Store) -> Scorer:
    """Training clicks over all scenarios."""
    count_V = statistics.count_clicks(store).sum(axis=0).astype(np.float32)
    return lambda split, query_B: np.broadcast_to(count_V, (len(query_B), len(count_V)))


def make_scenario_popularity(store: store_lib.Store) -> Scorer:
    """Training clicks in the query's scenario; ties go to what is popular over all scenarios."""
    count_SV = statistics.count_clicks(store)
    overall_V = count_SV.sum(axis=0)
    score_SV = (count_SV + overall_V[None] / (2 * overall_V.max())).astype(np.float32)
    scenario_of = read_column(store, "scenario")
    return lambda split, query_B: score_SV[scenario_of(split, query_B)]


def make_svd(clicks: Clicks, width: int) -> Scorer:
    """The query's clicks projected on the leading singular vectors; see `item_vectors`.

    With R the interactions, c an item's clicks and V the right singular vectors of R / sqrt(c),
    a query's clicks x score x / sqrt(c) V V^T sqrt(c).
    """
    vector_VC = statistics.item_vectors(clicks.training_UV, width)
    output_CV = np.ascontiguousarray((vector_VC * clicks.count()[:, None]).T)
    windows = clicks.windows
    return lambda split, query_B: (windows[split][query_B] @ vector_VC) @ output_CV


def make_ease(clicks: Clicks, l2: float, *, clicks_of_exposure: float = 0.0) -> Scorer:
    """EASE: the linear item-item model with zero diagonal of least squared error, closed form.

    An exposure counts as so many clicks, in training and in the query.
    """

    def join(click_XV: scipy.sparse.csr_matrix, shown_XV: scipy.sparse.csr_matrix) -> Any:
        return (
            (click_XV + clicks_of_exposure * shown_XV).tocsr() if clicks_of_exposure else click_XV
        )

    weight_VV = solve_ease(join(clicks.training_UV, clicks.exposures_UV), l2)
    windows = {split: join(rows, clicks.shown[split]) for split, rows in clicks.windows.items()}
    return lambda split, query_B: windows[split][query_B] @ weight_VV


def solve_ease(training_UV: scipy.sparse.csr_matrix, l2: float) -> Float[np.ndarray, "V V"]:
    """B = I - P / diag(P) with P = (R^T R + l2 I)^-1, in float32 and in place.

    Raises:
      ValueError: If the regularised Gram matrix is not positive definite.
    """
    gram_VV = (training_UV.T @ training_UV).toarray().astype(np.float32, copy=False)
    gram_VV[np.diag_indices_from(gram_VV)] += np.float32(l2)
    # The matrix is symmetric, so its transpose is the same matrix in LAPACK's order, not a copy.
    factor_VV, failed = scipy.linalg.lapack.spotrf(gram_VV.T, lower=1, clean=0, overwrite_a=1)
    if failed:
        raise ValueError(f"l2: expected enough to make the Gram matrix definite, got {l2}")
    inverse_VV, _ = scipy.linalg.lapack.spotri(factor_VV, lower=1, overwrite_c=1)
    _mirror(inverse_VV)
    weight_VV: np.ndarray = inverse_VV.T  # row-major again
    weight_VV /= -np.diag(weight_VV).copy()[None]
    weight_VV[np.diag_indices_from(weight_VV)] = 0.0
    return weight_VV


def make_item_knn(clicks: Clicks, neighbours: int) -> Scorer:
    """Sum of cosine similarities between the query's clicks and an item's nearest neighbours."""
    weight_VV = find_neighbours(clicks.training_UV, neighbours).T.tocsr()
    return lambda split, query_B: (clicks.windows[split][query_B] @ weight_VV).toarray()


def find_neighbours(
    training_UV: scipy.sparse.csr_matrix, neighbours: int, block: int = 2048
) -> scipy.sparse.csr_matrix:
    """Sparse [V, V]: each item's `neighbours` most similar other items by cosine, row by row."""
    click_V = np.asarray(training_UV.sum(axis=0)).ravel()
    unit_UV = (training_UV @ scipy.sparse.diags(1 / np.sqrt(np.maximum(click_V, 1)))).tocsc()
    rows = []
    for start in range(0, unit_UV.shape[1], block):
        similar = (unit_UV[:, start : start + block].T @ unit_UV).tocoo()
        other = similar.row + start != similar.col
        row, column, value = similar.row[other], similar.col[other], similar.data[other]
        order = np.lexsort((column, -value, row))
        row, column, value = row[order], column[order], value[order]
        count = np.bincount(row, minlength=similar.shape[0])
        rank = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        near = rank < neighbours
        rows.append(
            scipy.sparse.csr_matrix((value[near], (row[near], column[near])), similar.shape)
        )
    return scipy.sparse.vstack(rows).tocsr().astype(np.float32)


def standardise(score_BV: Float[np.ndarray, "B V"]) -> Float[np.ndarray, "B V"]:
    """Each query's scores with mean 0 and deviation 1 over all candidates; constant ones become 0.

    So a query without a history leaves the prior alone.
    """
    mean_B1 = score_BV[:, 1:].mean(axis=1, keepdims=True)
    spread_B1 = score_BV[:, 1:].std(axis=1, keepdims=True)
    scale_B1 = np.where(spread_B1 > 0, 1.0 / np.maximum(spread_B1, np.float32(1e-30)), 0.0)
    return np.asarray((score_BV - mean_B1) * scale_B1, np.float32)


def make_prior(store: store_lib.Store, split: str, **prior: Any) -> Float[np.ndarray, "S V"]:
    """Log P(item | scenario), with the arguments of one of two.

    That of `statistics.known_log_prior` where the store holds exposures, else that of
    `statistics.log_prior`, which is the same for every split.
    """
    if features.EXPOSURES in store.sequences:
        return statistics.known_log_prior(store, split, **prior)
    return statistics.log_prior(store, **prior)


def add_prior(scorer: Scorer, store: store_lib.Store, *, weight: float, **prior: Any) -> Scorer:
    """`weight` * (score, standardised per query) + log P(item | scenario), see `make_prior`."""
    priors = {split: make_prior(store, split, **prior) for split in store_lib.SPLITS}
    scenario_of = read_column(store, "scenario")

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        standard_BV = np.float32(weight) * standardise(scorer(split, query_B))
        return np.asarray(standard_BV + priors[split][scenario_of(split, query_B)])

    return score


def fall_back(scorer: Scorer, store: store_lib.Store, clicks: Clicks) -> Scorer:
    """`scorer`, with popularity for queries without any history, which it cannot tell apart."""
    popularity = make_popularity(store)

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        is_empty_B = np.diff(clicks.windows[split].indptr)[query_B] == 0
        return np.where(is_empty_B[:, None], popularity(split, query_B), scorer(split, query_B))

    return score


def _mirror(lower_VV: np.ndarray, block: int = 1024) -> None:
    """Copies the lower triangle onto the upper one, in place, block by block."""
    V = len(lower_VV)
    for start in range(0, V, block):
        stop = min(start + block, V)
        corner = np.tril(lower_VV[start:stop, start:stop])
        lower_VV[start:stop, start:stop] = corner + np.tril(corner, -1).T
        lower_VV[start:stop, stop:] = lower_VV[stop:, start:stop].T
