"""What is known when a split's queries are asked: the same for models and baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.baselines import builtin, linear
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.data.prepare import later
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models.matching import two_tower
from dsmoe_jax.training import sharding, train_state
from tests import clicks

CONFIG = schema.EvalConfig(k=(2, 5), query_batch=16, item_batch=12)
USERS, ITEMS, S = 30, 20, 2


class PriorMatcher(two_tower.Matcher):
    """Ranks by the prior alone."""

    item_uses_scenario = True

    @property
    def constant_shapes(self):
        return {statistics.KNOWN_PRIOR: (S, ITEMS + 1)}

    def setup(self):
        shape = self.constant_shapes[statistics.KNOWN_PRIOR]
        self.prior_SV = self.variable("constants", statistics.KNOWN_PRIOR, jnp.zeros, shape)

    def embed_user(self, users, scenario_B, *, train):
        return jnp.ones((len(scenario_B), 1, 1)), {}

    def embed_item(self, items, scenario_B, *, train):
        return self.prior_SV.value[scenario_B, items.sparse_VF[:, 0]][:, None], {}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Days 1 to 3 train, 4 validates and 5 tests; what is popular changes every day."""
    rng = np.random.default_rng(0)

    def draw(num, day):
        item = 1 + (rng.geometric(0.3, num) + 4 * day) % ITEMS
        return zip(rng.integers(1, USERS + 1, num), rng.integers(0, S, num), item, strict=True)

    events = [(*map(int, event), day) for day in range(1, 6) for event in draw(40, day)]
    shown = [(*map(int, event), day, 0) for day in range(1, 6) for event in draw(80, day)]
    path = tmp_path_factory.mktemp("known") / "store"
    return clicks.write_store(path, events, shown=shown, users=USERS, items=ITEMS)


@pytest.fixture(scope="module")
def evaluator(store):
    spec = features.select(store.spec, exclude=(), history_length=4, scenario_history_length=3)
    mesh = sharding.make_mesh(jax.devices()[:2])
    corpus = sharding.put_replicated(mesh, pipeline.read_corpus(store, spec))
    return evaluators.MatcherEvaluator(store, spec, corpus, PriorMatcher(spec=spec), CONFIG, mesh)


@pytest.mark.parametrize("split", ["validation", "test", "validation"])
def test_a_model_is_asked_with_the_prior_of_the_split(store, evaluator, split):
    trained = statistics.make_constants(store, {statistics.KNOWN_PRIOR: (S, ITEMS + 1)})
    frozen = train_state.Frozen({}, {"constants": trained})
    query_Q = np.arange(len(store.queries(split).rows_QC))
    found = evaluator(frozen, split, query_Q)
    other = linear.add_prior(lambda _, ids: np.zeros((len(ids), ITEMS + 1)), store, weight=1.0)
    expected = evaluators.evaluate_scores(
        store, CONFIG, split, query_Q, lambda ids: other(split, ids)
    )
    np.testing.assert_array_equal(found.recall[2], expected.recall[2])
    stale_SV = statistics.known_log_prior(store, "validation")
    scenario_of = linear.read_column(store, "scenario")
    stale = evaluators.evaluate_scores(
        store, CONFIG, split, query_Q, lambda ids: stale_SV[scenario_of(split, ids)]
    )
    assert np.array_equal(found.recall[2], stale.recall[2]) == (split == "validation")


def test_queries_of_a_later_log_know_the_days_before_the_test_days(store):
    positives = {
        "user": np.array([1, 2]),
        "item": np.array([5, 6]),
        "scenario": np.array(["A", "B"]),
        "time_s": np.array([9, 10]) * clicks.DAY_S,
    }
    view = later.add_queries(store, positives)
    np.testing.assert_array_equal(
        statistics.known_log_prior(view, "later log"), statistics.known_log_prior(store, "test")
    )


def test_the_grid_of_priors_from_exposures_equals_the_evaluators(store):
    query_Q = protocol.sample_queries(store, "validation", 9, seed=2)
    svd = linear.make_svd(linear.read_clicks(store), 5)
    chooser = builtin.PriorChooser(store, query_Q, 2, remove_seen="positives")
    recall_X = chooser.macro_recalls(svd)
    assert {tuple(entry) for entry in chooser._grid} == {
        ("weight", "half_life_days", "exposure_weight")
    }
    for x in range(0, len(recall_X), 7):
        scorer = linear.add_prior(svd, store, **chooser._grid[x])
        evaluation = evaluators.evaluate_scores(
            store,
            CONFIG,
            "validation",
            query_Q,
            lambda ids, scorer=scorer: scorer("validation", ids),
        )
        expected = evaluation.summarise()["macro"]["recall@2"]
        assert recall_X[x] == pytest.approx(expected, abs=1e-9)
