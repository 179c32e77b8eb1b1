"""Model selection of the baselines from other libraries: trials, validation, two rows each.

A baseline's own file owns its library, its settings and how it scores; a trial is one of its
settings, fitted on the training period. Every baseline has two rows: its best trial as the library
scores it, and the trial and the prior that are best together.
"""

import functools
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import runlog
from dsmoe_jax.baselines import builtin, linear
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators

# Settings of a baseline that are tried.
NUM_TRIALS = 12
# Settings and the scorer that was fitted with them.
Trial = tuple[builtin.Settings, linear.Scorer]


def evaluate_trials(
    name: str,
    trials: Iterable[Trial],
    store: store_lib.Store,
    config: schema.EvalConfig,
    *,
    seed: int,
) -> list[builtin.Baseline]:
    """Chooses among the trials of a baseline and evaluates its two rows as built-in ones are.

    At most `NUM_TRIALS` trials are fitted, one after the other, so that only the best are held. For
    config and seed see `builtin.evaluate_baselines`.

    Raises:
      ValueError: Without a trial.
    """
    chooser = builtin.make_chooser(store, config, seed=seed)
    metric = f"recall@{config.k[0]}"
    plain: builtin.Scored | None = None
    with_prior: builtin.Scored | None = None
    for number, (settings, scorer) in enumerate(itertools.islice(trials, NUM_TRIALS), start=1):
        ranked = rank_by_popularity_if_constant(scorer, store)
        found = evaluators.evaluate_scores(
            store, config, "validation", chooser.query_Q, functools.partial(ranked, "validation")
        )
        recall = found.summarise()["macro"][metric]
        plain = builtin.best((plain, (recall, settings, ranked)))
        combined = chooser.add_prior(settings, scorer)
        with_prior = builtin.best((with_prior, combined))
        runlog.say(
            f"{name}, trial {number} of {NUM_TRIALS}: validation macro {metric} "
            f"{100 * recall:.1f} %, with the prior {100 * combined[0]:.1f} %, {settings}"
        )
    if plain is None or with_prior is None:
        raise ValueError(f"{name}: expected at least one trial to choose from, got none")
    rows = [(name, *plain[1:]), (f"{name} + scenario prior", *with_prior[1:])]
    return builtin.evaluate_rows(store, config, rows, seed=seed)


def rank_by_popularity_if_constant(scorer: linear.Scorer, store: store_lib.Store) -> linear.Scorer:
    """`scorer`, with popularity for queries whose candidates it cannot tell apart."""
    popularity = linear.make_popularity(store)

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        score_BV = scorer(split, query_B)
        is_constant_B1 = np.ptp(score_BV[:, 1:], axis=1, keepdims=True) == 0
        return np.where(is_constant_B1, popularity(split, query_B), score_BV)

    return score
