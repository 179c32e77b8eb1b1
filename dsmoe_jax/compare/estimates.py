"""Statistics of recall: means, errors over seeds and over queries, paired intervals.

Owns the statistics of the comparison. Two sources of noise are told apart: seeds (the standard
deviation between trainings) and queries (the standard error of a mean over test queries). Two
systems are compared on the same queries, each query's recall averaged over seeds first, with a
bootstrap that resamples queries within their scenario; queries of several choices of test days are
pooled, so that small scenarios carry weight.

Letters: Q queries, S scenarios, N seeds.
"""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax.compare.report import finished
from dsmoe_jax.evaluation import metrics

MACRO = "macro"


class Estimate(NamedTuple):
    """Recall of one system in one scenario, as fractions; NaN where there is too little.

    Attributes:
      mean: Over queries and seeds.
      spread: Standard deviation over the seeds that were asked all queries.
      seeds: Their number.
      error: Standard error over queries.
    """

    mean: float
    spread: float
    seeds: int
    error: float


class Pooled(NamedTuple):
    """A system on all queries that it was asked.

    Attributes:
      key_Q: Identity of each query: its days and its row there.
      recall_Q: Its recall, the mean over the seeds that were asked it.
      recall_NQ: The same of every seed that was asked all queries.
    """

    key_Q: Int[np.ndarray, "Q"]
    scenario_Q: Int[np.ndarray, "Q"]
    recall_Q: Float[np.ndarray, "Q"]
    recall_NQ: Float[np.ndarray, "N Q"]


def pool(system: finished.System, k: int) -> Pooled:
    """Joins a system's entries: seeds side by side, days one after the other."""
    by_day = {
        day: {seed: entry.queries() for seed, entry in by_seed.items()}
        for day, by_seed in system.by_day.items()
    }
    everywhere = sorted(set.intersection(*map(set, by_day.values())))
    parts = []
    for day, by_seed in sorted(by_day.items()):
        query_Q, scenario_Q, *_ = next(iter(by_seed.values()))
        recall_Q = np.mean([queries.recall(k) for queries in by_seed.values()], axis=0)
        each = [by_seed[seed].recall(k) for seed in everywhere]
        recall_NQ = np.reshape(each, (len(each), len(query_Q)))
        parts.append(Pooled(query_Q + (day << 40), scenario_Q, recall_Q, recall_NQ))
    return Pooled(*(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True)))


def estimate(pooled: Pooled, scenarios: Sequence[str]) -> dict[str, Estimate]:
    """Recall by scenario, and macro: the unweighted mean over scenarios with queries."""
    over_queries, over_seeds = {}, {}
    for number, name in enumerate(scenarios):
        mine_Q = pooled.scenario_Q == number
        over_queries[name] = metrics.estimate(pooled.recall_Q[mine_Q])
        if mine_Q.any():
            over_seeds[name] = pooled.recall_NQ[:, mine_Q].mean(axis=1)
    over_queries[MACRO] = metrics.macro(list(over_queries.values()))
    over_seeds[MACRO] = np.mean([*over_seeds.values()], axis=0)
    seeds, nothing = len(pooled.recall_NQ), np.empty(0)
    return {
        name: Estimate(mean, _spread(over_seeds.get(name, nothing)), seeds, error)
        for name, (mean, error) in over_queries.items()
    }


def compare(first: Pooled, second: Pooled, scenarios: Sequence[str]) -> dict[str, metrics.Interval]:
    """`first` minus `second` by scenario and macro, on the queries that both were asked.

    Raises:
      ValueError: When they share none.
    """
    _, own, other = np.intersect1d(first.key_Q, second.key_Q, return_indices=True)
    if not len(own):
        raise ValueError("comparison: expected systems that share test queries, got none shared")
    difference_Q = first.recall_Q[own] - second.recall_Q[other]
    scenario_Q = first.scenario_Q[own].astype(np.int64)
    found = _bootstrap(difference_Q.tobytes(), scenario_Q.tobytes(), len(scenarios))
    return dict(zip((*scenarios, MACRO), found, strict=True))


@functools.lru_cache(maxsize=512)
def _bootstrap(
    difference_Q: bytes, scenario_Q: bytes, num_scenarios: int
) -> list[metrics.Interval]:
    """The bootstrap of float64 differences, once for all tables and sentences that ask for it."""
    return metrics.paired_bootstrap(
        np.frombuffer(difference_Q), np.frombuffer(scenario_Q, np.int64), num_scenarios
    )


def _spread(values_N: Float[np.ndarray, "N"]) -> float:
    return statistics.stdev(values_N.tolist()) if len(values_N) > 1 else math.nan
