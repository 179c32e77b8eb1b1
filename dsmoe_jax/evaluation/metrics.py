"""Ranking metrics over retrieved lists, their standard errors and paired intervals.

Owns the arithmetic from a retrieved list to numbers per query and per scenario. Does not own
search, removal of seen items (`retrieval/index.py`) or which queries are asked
(`evaluation/evaluators.py`).

Everything is NumPy on the host and vectorised over queries: the lists are short and the sets of
relevant items are ragged.

Letters: Q queries, T retrieved list length (best first), N queries of a scenario, R resamples.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax.data import store as store_lib


def take_rows(ragged: store_lib.Ragged, row_Q: Int[np.ndarray, "Q"]) -> store_lib.Ragged:
    """The chosen rows of a ragged array, in the order of `row_Q`."""
    start_Q = np.asarray(ragged.indptr)[row_Q]
    count_Q = np.asarray(ragged.indptr)[row_Q + 1] - start_Q
    indptr = np.concatenate([[0], np.cumsum(count_Q)])
    position = np.repeat(start_Q - indptr[:-1], count_Q) + np.arange(indptr[-1])
    return store_lib.Ragged(indptr=indptr, items=np.asarray(ragged.items)[position])


def row_of(ragged: store_lib.Ragged) -> Int[np.ndarray, "N"]:
    """The row of every entry of a ragged array."""
    count_Q = np.diff(ragged.indptr)
    return np.repeat(np.arange(len(count_Q)), count_Q)


def find_members(
    item_QT: Int[np.ndarray, "Q T"], rows: store_lib.Ragged
) -> Bool[np.ndarray, "Q T"]:
    """Whether each listed item belongs to its query's ragged row (one row per query).

    Args:
      item_QT: Item ids >= 0; 0 fills lists that are too short and belongs to no row.
      rows: Q rows of item ids >= 1, in any order within a row.
    """
    if not len(rows.items) or not item_QT.size:
        return np.zeros(item_QT.shape, bool)
    # One sorted array of (query, item) pairs answers every membership by binary search, so cost
    # depends on neither the corpus nor the longest row.
    stride = np.int64(max(int(item_QT.max()), int(np.max(rows.items))) + 1)
    key = np.sort(row_of(rows) * stride + rows.items)
    wanted_QT = np.arange(len(item_QT))[:, None] * stride + item_QT
    found_QT = np.minimum(np.searchsorted(key, wanted_QT), len(key) - 1)
    return np.asarray(key[found_QT] == wanted_QT)


def hits_at_k(hit_QT: Bool[np.ndarray, "Q T"], k: int) -> Int[np.ndarray, "Q"]:
    """Relevant items among the top k of every query, from whether the item at each rank is one."""
    return np.asarray(hit_QT[:, :k].sum(axis=1))


def ndcg_at_k(
    hit_QT: Bool[np.ndarray, "Q T"], relevant_Q: Int[np.ndarray, "Q"], k: int
) -> Float[np.ndarray, "Q"]:
    """Normalised discounted cumulative gain with binary gains and discount 1 / log2(1 + rank).

    The ideal list holds min(k, relevant) relevant items first, so that a perfect list scores 1.

    Raises:
      ValueError: If a query has no relevant item: its recall is undefined too.
    """
    if len(relevant_Q) and relevant_Q.min() < 1:
        row = int(np.argmin(relevant_Q))
        raise ValueError(
            f"query {row}: expected at least 1 relevant item, got {int(relevant_Q[row])}; "
            "drop queries without relevant items before evaluating"
        )
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    gain_Q = hit_QT[:, :k] @ discount[: hit_QT.shape[1]]
    return np.asarray(gain_Q / np.cumsum(discount)[np.minimum(relevant_Q, k) - 1])


def reciprocal_rank(hit_QT: Bool[np.ndarray, "Q T"], depth: int) -> Float[np.ndarray, "Q"]:
    """1 / rank of the first relevant item; beyond `depth` it counts as rank `depth` + 1."""
    found_Q = hit_QT[:, :depth].any(axis=1)
    first_Q = hit_QT[:, :depth].argmax(axis=1) + 1 if hit_QT.shape[1] else np.zeros(len(hit_QT))
    return np.asarray(1.0 / np.where(found_Q, first_Q, depth + 1))


def log_loss(
    logit: Float[np.ndarray, "*shape"], label: Bool[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """-log sigmoid(logit) of positives and -log sigmoid(-logit) of negatives, in nats."""
    return np.asarray(np.logaddexp(0.0, np.where(label, -logit, logit)))


class Estimate(NamedTuple):
    """A mean and its standard error; NaN where there are too few values."""

    mean: float
    error: float


def estimate(value_Q: Float[np.ndarray, "Q"]) -> Estimate:
    """Mean over queries and its standard error (sample deviation over the root of Q).

    NaN for the mean of no queries and for the error of fewer than two.
    """
    if not len(value_Q):
        return Estimate(float("nan"), float("nan"))
    error = np.std(value_Q, ddof=1) / np.sqrt(len(value_Q)) if len(value_Q) > 1 else np.nan
    return Estimate(float(np.mean(value_Q)), float(error))


def macro(estimates: list[Estimate]) -> Estimate:
    """The unweighted mean over scenarios, and its error with scenarios taken as independent.

    Scenarios without a query (mean NaN) are left out: they have no recall.
    """
    known = [entry for entry in estimates if not np.isnan(entry.mean)]
    if not known:
        return Estimate(float("nan"), float("nan"))
    error = float(np.sqrt(sum(entry.error**2 for entry in known)) / len(known))
    return Estimate(float(np.mean([entry.mean for entry in known])), error)


class Interval(NamedTuple):
    """A paired difference, of one system minus another, and its 95 % interval, as fractions."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`above`, `below`, or `noise` where zero is within or the ends are NaN."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "noise"

    @property
    def points(self) -> str:
        """Text in points, with the ends."""
        difference, low, high = (100 * value for value in self)
        return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


# Gathered values held at once while resampling: bounds memory, not the result.
_BLOCK_VALUES = 1 << 22


def paired_bootstrap(
    difference_Q: Float[np.ndarray, "Q"],
    scenario_Q: Int[np.ndarray, "Q"],
    num_scenarios: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Interval]:
    """Percentile bootstrap of paired differences; queries are resampled within their scenario.

    A difference is the metric of one system minus the other's on the same query. The same arguments
    give the same intervals.

    Returns:
      The mean difference of every scenario, then that of the unweighted mean over scenarios with
      queries, with 95 % intervals; NaN without queries.
    """
    rng = np.random.default_rng(seed)
    found = [Interval(np.nan, np.nan, np.nan)] * num_scenarios
    means, resampled = [], []
    for scenario in range(num_scenarios):
        value_N = difference_Q[scenario_Q == scenario]
        if not len(value_N):
            continue
        mean_R, block = np.empty(resamples), max(1, _BLOCK_VALUES // len(value_N))
        for start in range(0, resamples, block):
            rows = min(block, resamples - start)
            drawn = rng.integers(0, len(value_N), (rows, len(value_N)))
            mean_R[start : start + rows] = value_N[drawn].mean(axis=1)
        means.append(value_N.mean())
        resampled.append(mean_R)
        found[scenario] = _interval(means[-1], mean_R)
    if not means:
        return [*found, Interval(np.nan, np.nan, np.nan)]
    return [*found, _interval(np.mean(means), np.mean(resampled, axis=0))]


def _interval(difference: float, resampled_R: Float[np.ndarray, "R"]) -> Interval:
    low, high = np.quantile(resampled_R, (0.025, 0.975))
    return Interval(float(difference), float(low), float(high))
