"""What can be said of recall: means, errors over seeds and over queries, paired intervals.

Owns the statistics of the comparison. Two sources of noise are told apart: seeds (the standard
deviation between trainings) and queries (the standard error of a mean over test queries). Two
systems are compared on the same queries, each query's recall averaged over seeds first, with a
bootstrap that resamples queries within their scenario; queries of several choices of test days are
pooled, so that small scenarios carry weight.

Letters: Q queries, S scenarios, N seeds.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import metrics
from dsmoe_jax.suite import finished

MACRO = "macro"


class Estimate(NamedTuple):
    """Recall of one system in one scenario, as fractions; NaN where there is too little.

    Attributes:
      mean: Over seeds.
      spread: Standard deviation over seeds.
      seeds: Their number.
      error: Standard error over queries.
    """

    mean: float
    spread: float
    seeds: int
    error: float


class Interval(NamedTuple):
    """A paired difference, this system minus DSMOE, and its 95 % interval, as fractions."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`above`, `below`, or `noise` where zero is within."""
        if math.isnan(self.low):
            return "noise"
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "noise"


class Pooled(NamedTuple):
    """A system on all queries that it was asked, one column per seed.

    Attributes:
      key_Q: Identity of each query: its days and its row there.
      scenario_Q: Its scenario.
      recall_NQ: Recall of every seed.
    """

    key_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    recall_NQ: Float[np.ndarray, "N Q"]


def pool(system: finished.System, k: int) -> Pooled:
    """Joins a system's entries: seeds side by side, days one after the other.

    Seeds that some days lack are left out where others have them all.
    """
    days = sorted({entry.dropped_days for entry in system.entries})
    by_day = {
        day: {entry.seed: entry for entry in system.entries if entry.dropped_days == day}
        for day in days
    }
    seeds = sorted(set.intersection(*(set(entries) for entries in by_day.values())))
    keys, scenarios, recalls = [], [], []
    for day, entries in by_day.items():
        asked = [entries[seed].queries() for seed in seeds]
        keys.append(asked[0].query_Q + (day << 40))
        scenarios.append(asked[0].scenario_Q)
        recalls.append(np.stack([queries.recall(k) for queries in asked]))
    return Pooled(np.concatenate(keys), np.concatenate(scenarios), np.concatenate(recalls, axis=1))


def estimate(pooled: Pooled, scenarios: Sequence[str]) -> dict[str, Estimate]:
    """Recall by scenario, and macro: the unweighted mean over scenarios with queries."""
    found = {}
    per_seed, errors = [], []
    for number, name in enumerate(scenarios):
        mine_NQ = pooled.recall_NQ[:, pooled.scenario_Q == number]
        if not mine_NQ.size:
            found[name] = Estimate(math.nan, math.nan, len(mine_NQ), math.nan)
            continue
        values = mine_NQ.mean(axis=1)
        error = metrics.estimate(mine_NQ.mean(axis=0)).error
        found[name] = _over_seeds(values, error)
        per_seed.append(values)
        errors.append(error)
    macro_error = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    found[MACRO] = _over_seeds(np.mean(per_seed, axis=0), macro_error)
    return found


def compare(first: Pooled, second: Pooled, scenarios: Sequence[str]) -> dict[str, Interval]:
    """`first` minus `second` by scenario and macro, on the queries that both were asked.

    Raises:
      ValueError: When they share none.
    """
    _, own, other = np.intersect1d(first.key_Q, second.key_Q, return_indices=True)
    if not len(own):
        raise ValueError("comparison: expected systems that share test queries, got none shared")
    difference_Q = first.recall_NQ.mean(axis=0)[own] - second.recall_NQ.mean(axis=0)[other]
    result = metrics.paired_bootstrap(difference_Q, first.scenario_Q[own], len(scenarios))
    columns = zip(result.difference_S, result.low_S, result.high_S, strict=True)
    found = {
        name: Interval(*map(float, column)) for name, column in zip(scenarios, columns, strict=True)
    }
    return {**found, MACRO: Interval(*result.macro)}


def _over_seeds(values: np.ndarray, error: float) -> Estimate:
    spread = statistics.stdev(values.tolist()) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), spread, len(values), error)
