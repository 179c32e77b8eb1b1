"""Built-in baselines: popularity and linear collaborative filtering.

Owns which there are (`evaluate_baselines`) and the choice of their settings on validation queries;
how each is fitted and scores is in `linear.py`. They are evaluated by the protocol that models
are. Everything is fitted on the training period; a query's own history window, which reaches up to
the split's first day, is folded in when it is scored.

    random                       a fixed random order per query
    popularity                   training clicks of the item
    popularity in scenario       training clicks of the item in the query's scenario
    own most recent              the user's own items, the last clicked first, then popularity
    own most frequent            the same, the most often clicked first
    scenario prior               log P(item | scenario) alone, where the store holds exposures
    SVD                          truncated SVD of who clicked what; popularity without a history
    SVD + scenario prior         w * (score, standardised per query) + log P(item | scenario)
    EASE + scenario prior        the same on top of EASE (Steck, "Embarrassingly Shallow
                                 Autoencoders for Sparse Data", WWW 2019)
    item-kNN + scenario prior    in its place where the corpus is too large for EASE's inverse

The two of own items are there where repeats are relevant (`Store.repeats`).
Where the store holds exposures, EASE learns from them too, as events of another weight, and the
prior counts them, up to the day before the split.

Letters: B queries of a batch, Q queries, P (query, relevant item) pairs, S scenarios, V rows of the
corpus (row 0 is padding), X combinations of prior settings, Y of them that differ in the prior.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dsmoe_jax import features
from dsmoe_jax.baselines import linear, own_items
from dsmoe_jax.config import schema
from dsmoe_jax.data import store as store_lib
from dsmoe_jax.evaluation import evaluators, metrics, protocol

# Largest pool for which EASE's V x V inverse is made: 3.6 GB in float32.
MAX_EASE_ITEMS = 30_000
SVD_WIDTH = 48
# Scores of a row on a split, at most: a minute of two cores. A larger product of queries and items
# is sampled by queries.
MAX_SCORES = 1 << 30
NUM_NEIGHBOURS = 200

# What validation chooses from.
EASE_L2 = (300.0, 1000.0)
EASE_EXPOSURE_WEIGHTS = (0.3, 1.0, 3.0)
WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
HALF_LIVES_DAYS = (None, 4.0, 2.0)
PRIOR_CLICKS = (3.0, 10.0, 30.0)
# The same where the store holds exposures, which make the prior sharper.
KNOWN_WEIGHTS = (0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
EXPOSURE_WEIGHTS = (1.0, 3.0, 6.0)

Settings = dict[str, Any]
# Recall on validation queries, the settings and the scorer that has it.
Scored = tuple[float, Settings, linear.Scorer]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A baseline and how it did.

    Attributes:
      name: As in the table above.
      settings: What validation chose; empty where there is nothing to choose. Without a half-life
        all training days weigh alike.
      validation: On all validation queries.
      test: On the test queries, all or a sample; see `evaluate_baselines`.
    """

    name: str
    settings: Settings
    validation: protocol.Evaluation
    test: protocol.Evaluation

    def summarise(self) -> dict[str, Any]:
        """As results.json holds it."""
        validation = self.validation.summarise()
        return {**self.test.summarise(), "validation": validation, "settings": self.settings}


def best(found: Iterable[Scored | None]) -> Scored | None:
    """What validation prefers of what there is; the earliest where several are equal."""
    return max(filter(None, found), key=operator.itemgetter(0), default=None)


def evaluate_baselines(
    store: store_lib.Store, config: schema.EvalConfig, *, seed: int
) -> list[Baseline]:
    """Fits, chooses and evaluates every built-in baseline.

    Every item is scored for every query, so that with many of both only as many queries of each
    scenario are asked as make `MAX_SCORES` scores in all. Macro recall at the smallest cut-off
    chooses settings, on at most `validation_queries` queries per scenario; the seed is that of the
    random baseline and of those queries.
    """
    clicks = linear.read_clicks(store)
    chooser = make_chooser(store, config, seed=seed)
    svd, nothing = linear.make_svd(clicks, SVD_WIDTH), linear.make_constant(store.spec.num_items)
    is_known = features.EXPOSURES in store.sequences
    candidates: Iterable[tuple[Settings, linear.Scorer]]
    if store.spec.num_items - 1 <= MAX_EASE_ITEMS:
        name = "EASE"
        grid: list[Settings] = [{"l2": l2} for l2 in EASE_L2]
        if is_known:
            weights = EASE_EXPOSURE_WEIGHTS
            grid = [{**one, "clicks_of_exposure": weight} for one in grid for weight in weights]
        # Made one at a time: each holds a V x V matrix.
        candidates = ((one, linear.make_ease(clicks, **one)) for one in grid)
    else:
        name = "item-kNN"
        candidates = [({}, linear.make_item_knn(clicks, NUM_NEIGHBOURS))]
    rows: list[tuple[str, Settings, linear.Scorer]] = [
        ("random", {}, linear.make_random(store.spec.num_items, seed)),
        ("popularity", {}, linear.make_popularity(store)),
        ("popularity in scenario", {}, linear.make_scenario_popularity(store)),
        *(_own_items(store) if store.repeats else []),
        *([("scenario prior", *chooser.choose([({}, nothing)]))] if is_known else []),
        ("SVD", {}, linear.fall_back(svd, store, clicks)),
        ("SVD + scenario prior", *chooser.choose([({}, svd)])),
        (f"{name} + scenario prior", *chooser.choose(candidates)),
    ]
    return evaluate_rows(store, config, rows, seed=seed)


def _own_items(store: store_lib.Store) -> list[tuple[str, Settings, linear.Scorer]]:
    return [
        ("own most recent", {}, own_items.make_most_recent(store)),
        ("own most frequent", {}, own_items.make_most_frequent(store)),
    ]


def make_chooser(store: store_lib.Store, config: schema.EvalConfig, *, seed: int) -> "PriorChooser":
    """The chooser of `evaluate_baselines`, by the same arguments."""
    per_scenario = min(_max_queries(store), config.validation_queries)
    query_Q = protocol.sample_queries(store, "validation", per_scenario, seed)
    return PriorChooser(store, query_Q, config.k[0], remove_seen=config.remove_seen)


def evaluate_rows(
    store: store_lib.Store,
    config: schema.EvalConfig,
    rows: Iterable[tuple[str, Settings, linear.Scorer]],
    *,
    seed: int,
) -> list[Baseline]:
    """Evaluates rows whose settings are chosen, on the queries of `evaluate_baselines`."""
    query_Q = {
        split: protocol.sample_queries(store, split, _max_queries(store), seed)
        for split in store_lib.SPLITS
    }

    def evaluate(scorer: linear.Scorer, split: str) -> protocol.Evaluation:
        return evaluators.evaluate_scores(
            store, config, split, query_Q[split], functools.partial(scorer, split)
        )

    return [
        Baseline(name, settings, evaluate(scorer, "validation"), evaluate(scorer, "test"))
        for name, settings, scorer in rows
    ]


def _max_queries(store: store_lib.Store) -> int:
    """Queries of each scenario that are asked at most."""
    return max(1, MAX_SCORES // (store.spec.num_items * store.spec.num_scenarios))


class PriorChooser:
    """Chooses a scorer and its prior by macro recall on validation queries.

    Recall is counted without lists: an item is in the top k when fewer than k candidates score
    higher. So one pass over the scores serves the whole grid.

    Attributes:
      query_Q: Ids of the validation queries that choose.
    """

    def __init__(
        self, store: store_lib.Store, query_Q: Int[np.ndarray, "Q"], k: int, *, remove_seen: str
    ):
        """Fixes the queries and the grid; what is removed is that of `schema.EvalConfig`."""
        self.query_Q = query_Q
        self._store, self._k = store, k
        self._block = evaluators.fit_rows(store.spec.num_items, at_most=512)
        self._table = store.queries("validation")
        self._removed = protocol.read_removed(store, self._table, remove_seen)
        scenario_Q = linear.read_column(store, "scenario")("validation", query_Q)
        scenarios = range(store.spec.num_scenarios)
        self._queries_by_scenario = [query_Q[scenario_Q == scenario] for scenario in scenarios]
        shape: dict[str, tuple[float | None, ...]] = {"half_life_days": HALF_LIVES_DAYS}
        self._weights: tuple[float, ...] = WEIGHTS
        if features.EXPOSURES in store.sequences:
            shape["exposure_weight"] = EXPOSURE_WEIGHTS
            self._weights = KNOWN_WEIGHTS
        else:
            shape["prior_clicks"] = PRIOR_CLICKS
        self._priors: list[Settings] = [
            dict(zip(shape, values, strict=True)) for values in itertools.product(*shape.values())
        ]
        self._grid: list[Settings] = [
            {"weight": weight, **prior} for prior in self._priors for weight in self._weights
        ]

    def choose(
        self, candidates: Iterable[tuple[Settings, linear.Scorer]]
    ) -> tuple[Settings, linear.Scorer]:
        """The best of all candidates with all priors: its settings and the combined scorer."""
        found = best(itertools.starmap(self.add_prior, candidates))
        if found is None:
            raise ValueError("candidates: expected at least one scorer to choose from, got none")
        return found[1:]

    def add_prior(self, settings: Settings, scorer: linear.Scorer) -> Scored:
        """A scorer with its best prior: macro recall@k, all settings, and the two combined."""
        recall_X = self.macro_recalls(scorer)
        prior = self._grid[int(recall_X.argmax())]
        combined = linear.add_prior(scorer, self._store, **prior)
        return float(recall_X.max()), {**settings, **prior}, combined

    def macro_recalls(self, scorer: linear.Scorer) -> Float[np.ndarray, "X"]:
        """Macro recall@k of every combination of prior settings, in the grid's order."""
        prior_YSV = np.stack(
            [linear.make_prior(self._store, "validation", **prior) for prior in self._priors]
        )
        scenarios = [
            self._recall_of_scenario(scorer, queries, prior_YSV[:, scenario])
            for scenario, queries in enumerate(self._queries_by_scenario)
            if len(queries)
        ]
        return np.asarray(np.mean(scenarios, axis=0))

    def _recall_of_scenario(
        self, scorer: linear.Scorer, query_Q: np.ndarray, prior_YV: np.ndarray
    ) -> Float[np.ndarray, "X"]:
        relevant = metrics.take_rows(self._table.relevant, query_Q)
        row_P = metrics.row_of(relevant)
        share_P = 1.0 / np.diff(relevant.indptr)[row_P]
        weights = jnp.asarray(self._weights, jnp.float32)
        total_X = np.zeros(len(self._grid))
        for start in range(0, len(row_P), self._block):
            part = slice(start, start + self._block)
            ids = query_Q[row_P[part]]
            standard_PV = linear.standardise(scorer("validation", ids))
            standard_PV[:, 0] = -np.inf
            removed = metrics.take_rows(self._removed, ids)
            standard_PV[metrics.row_of(removed), removed.items] = -np.inf
            padding = self._block - len(ids)  # one shape, one compilation
            hit_XP = np.asarray(
                _count_higher(
                    jnp.asarray(np.pad(standard_PV, ((0, padding), (0, 0)))),
                    jnp.asarray(np.pad(relevant.items[part], (0, padding))),
                    jnp.asarray(prior_YV),
                    weights,
                )
                < self._k
            ).reshape(len(self._grid), -1)
            total_X += hit_XP[:, : len(ids)] @ share_P[part]
        return total_X / len(query_Q)


@jax.jit
def _count_higher(
    standard_PV: jax.Array, item_P: jax.Array, prior_YV: jax.Array, weights: jax.Array
) -> jax.Array:
    """[prior, weight, P]: candidates that score higher than the pair's item."""
    own_P1 = jnp.take_along_axis(standard_PV, item_P[:, None], axis=1)

    def count(prior_V: jax.Array, weight: jax.Array) -> jax.Array:
        score_PV = weight * standard_PV + prior_V[None]
        own_score_P1 = weight * own_P1 + prior_V[item_P][:, None]
        return jnp.sum(score_PV > own_score_P1, axis=1)

    higher: jax.Array = jax.lax.map(
        lambda prior_V: jax.lax.map(lambda weight: count(prior_V, weight), weights), prior_YV
    )
    return higher
