"""How a peer is judged: several settings, the choice on validation queries, two rows.

Owns what all peers share. A peer's own file owns its library, its settings and how it scores; a
trial is one of its settings, fitted on the training period. Every peer has two rows: its best trial
as the library scores it, and the trial and the prior that are best together.
"""

import dataclasses
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

# Settings of a peer that are tried.
NUM_TRIALS = 12
# Settings and the scorer that was fitted with them.
Trial = tuple[builtin.Settings, linear.Scorer]


@dataclasses.dataclass
class _Best:
    """The best of what was offered so far."""

    recall: float = -1.0
    settings: builtin.Settings = dataclasses.field(default_factory=dict)
    scorer: linear.Scorer | None = None

    def offer(self, recall: float, settings: builtin.Settings, scorer: linear.Scorer) -> None:
        """Keeps what is better than all before."""
        if recall > self.recall:
            self.recall, self.settings, self.scorer = recall, settings, scorer


def evaluate_trials(
    name: str,
    trials: Iterable[Trial],
    store: store_lib.Store,
    config: schema.EvalConfig,
    *,
    seed: int,
) -> list[builtin.Reference]:
    """Chooses among the trials of a peer and judges its two rows as the reference rows are.

    Args:
      name: Of the peer; "+ scenario prior" is added for the second row.
      trials: Fitted one after the other, so that only the best are held; at most `NUM_TRIALS` are.
      store: The prepared data.
      config: Cut-offs and removal rule, see `builtin.evaluate_references`.
      seed: Of the validation queries that choose.

    Raises:
      ValueError: Without a trial.
    """
    chooser = builtin.make_chooser(store, config, seed=seed)
    metric = f"recall@{config.k[0]}"
    plain, with_prior = _Best(), _Best()
    for number, (settings, scorer) in enumerate(itertools.islice(trials, NUM_TRIALS), start=1):
        ranked = rank_by_popularity_if_constant(scorer, store)
        judged = evaluators.evaluate_scores(
            store, config, "validation", chooser.query_Q, functools.partial(ranked, "validation")
        )
        recall = judged.summarise()["macro"][metric]
        plain.offer(recall, settings, ranked)
        prior_recall, prior = chooser.best_prior(scorer)
        combined = linear.add_prior(scorer, store, **prior)
        with_prior.offer(prior_recall, {**settings, **prior}, combined)
        runlog.say(
            f"{name}, trial {number} of {NUM_TRIALS}: validation macro {metric} "
            f"{100 * recall:.1f} %, with the prior {100 * prior_recall:.1f} %, {settings}"
        )
    if plain.scorer is None or with_prior.scorer is None:
        raise ValueError(f"{name}: expected at least one trial to choose from, got none")
    rows = [
        (name, plain.settings, plain.scorer),
        (f"{name} + scenario prior", with_prior.settings, with_prior.scorer),
    ]
    return builtin.judge_rows(store, config, rows, seed=seed)


def rank_by_popularity_if_constant(scorer: linear.Scorer, store: store_lib.Store) -> linear.Scorer:
    """`scorer`, with popularity for queries whose candidates it cannot tell apart."""
    popularity = linear.make_popularity(store)

    def score(split: str, query_B: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B V"]:
        score_BV = scorer(split, query_B)
        is_constant_B1 = np.ptp(score_BV[:, 1:], axis=1, keepdims=True) == 0
        return np.where(is_constant_B1, popularity(split, query_B), score_BV)

    return score
