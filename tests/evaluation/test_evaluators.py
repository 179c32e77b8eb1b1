"""Matchers, rankers and scorers against scores computed directly, on one device and on eight."""

import dataclasses
import gc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.evaluation import evaluators, protocol
from dsmoe_jax.models.matching import dsmoe, two_tower
from dsmoe_jax.models.ranking import ranker as ranker_lib
from dsmoe_jax.training import optimizer, sharding, train_state
from tests import tiny

CONFIG = schema.EvalConfig(k=(2, 5), query_batch=16, item_batch=12)
S, U, V, D = len(tiny.SCENARIOS), tiny.NUM_USERS + 1, tiny.NUM_ITEMS + 1, 6


class TableMatcher(two_tower.Matcher):
    """Looks vectors up: users by id, items by scenario and id."""

    interests: int = 1
    uses_scenario: bool = True

    def setup(self):
        draw = nn.initializers.normal(1.0)
        self.user_UMD = self.param("user", draw, (U, self.interests, D))
        self.item_SVD = self.param("item", draw, (S, V, D))

    @property
    def item_uses_scenario(self):
        return self.uses_scenario

    def embed_user(self, users, scenario_B, *, train):
        return self.user_UMD[users.sparse_BF[:, 0]], {}

    def embed_item(self, items, scenario_B, *, train):
        row_B = scenario_B if self.uses_scenario else jnp.zeros_like(scenario_B)
        return self.item_SVD[row_B, items.sparse_VF[:, 0]], {}


class TableRanker(ranker_lib.Ranker):
    """The same inner product, as a ranker."""

    def setup(self):
        draw = nn.initializers.normal(1.0)
        self.user_UMD = self.param("user", draw, (U, 1, D))
        self.item_SVD = self.param("item", draw, (S, V, D))

    def encode_user(self, users, scenario_B, *, train):
        return {"user": self.user_UMD[users.sparse_BF[:, 0], 0]}

    def score(self, encoded, items, scenario_B, *, train):
        id_BG = jnp.broadcast_to(
            items.sparse_VF[:, :, 0], (len(scenario_B), items.sparse_VF.shape[1])
        )
        item_BGD = self.item_SVD[scenario_B[:, None], id_BG]
        return jnp.einsum("bd,bgd->bg", encoded["user"], item_BGD)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("evaluate") / "store")


@pytest.fixture(scope="module")
def spec(store):
    return features.select(store.spec, exclude=(), history_length=4, scenario_history_length=3)


def make_mesh(devices):
    return sharding.make_mesh(jax.devices()[:devices])


def make_tables(mesh, interests=1):
    """Parameters of a TableMatcher or, for one interest, of a TableRanker."""
    rng = np.random.default_rng(2)
    user_UMD = rng.normal(size=(U, interests, D)).astype(np.float32)
    item_SVD = rng.normal(size=(S, V, D)).astype(np.float32)
    tables = {"user": user_UMD, "item": item_SVD}
    return train_state.Frozen(sharding.put_replicated(mesh, tables), {})


def put_corpus(store, spec, mesh):
    return sharding.put_replicated(mesh, pipeline.read_corpus(store, spec))


def evaluate_matcher(store, spec, matcher, devices=1, split="test", query_Q=None, **changes):
    mesh = make_mesh(devices)
    config = dataclasses.replace(CONFIG, **changes)
    evaluator = evaluators.MatcherEvaluator(
        store, spec, put_corpus(store, spec, mesh), matcher, config, mesh
    )
    query_Q = np.arange(len(store.queries(split).rows_QC)) if query_Q is None else query_Q
    return evaluator(make_tables(mesh, matcher.interests), split, query_Q)


def table_scores(store, frozen, split, uses_scenario=True):
    """score_QV of a TableMatcher, straight from its tables."""
    rows_QC = store.queries(split).rows_QC
    user_UMD = np.asarray(frozen.params["user"]).reshape(U, -1, D)
    item_SVD = np.asarray(frozen.params["item"])
    scenario_Q = rows_QC[:, store.columns["scenario"]] * uses_scenario
    item_QVD = item_SVD[scenario_Q]
    user_QMD = user_UMD[rows_QC[:, store.columns["user"]]]
    return np.einsum("qmd,qvd->qmv", user_QMD, item_QVD).max(axis=1)


def assert_same(first, second):
    np.testing.assert_array_equal(first.query_Q, second.query_Q)
    for name in ("recall", "hit_rate", "ndcg"):
        for k in CONFIG.k:
            np.testing.assert_allclose(
                getattr(first, name)[k], getattr(second, name)[k], err_msg=f"{name}@{k}"
            )


@pytest.mark.parametrize("interests", [1, 3])
@pytest.mark.parametrize("uses_scenario", [True, False])
@pytest.mark.parametrize("remove_seen", ["positives", "none"])
def test_matcher_equals_its_full_score_matrix(store, spec, interests, uses_scenario, remove_seen):
    matcher = TableMatcher(spec, interests=interests, uses_scenario=uses_scenario)
    found = evaluate_matcher(store, spec, matcher, remove_seen=remove_seen)
    score_QV = table_scores(store, make_tables(make_mesh(1), interests), "test", uses_scenario)
    expected = evaluators.evaluate_scores(
        store,
        dataclasses.replace(CONFIG, remove_seen=remove_seen),
        "test",
        found.query_Q,
        lambda ids: score_QV[ids],
    )
    assert_same(found, expected)
    assert 0 < found.recall[5].mean() < 1


def test_faiss_backend_equals_the_exact_one(store, spec):
    matcher = TableMatcher(spec, interests=2)
    exact = evaluate_matcher(store, spec, matcher)
    assert_same(evaluate_matcher(store, spec, matcher, backend="faiss"), exact)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_batch_sizes_change_nothing(store, spec, batch_size):
    matcher = TableMatcher(spec)
    other = evaluate_matcher(store, spec, matcher, query_batch=batch_size, item_batch=batch_size)
    assert_same(other, evaluate_matcher(store, spec, matcher))


def test_a_subset_of_queries_gets_the_values_it_has_in_the_whole(store, spec):
    matcher = TableMatcher(spec)
    whole = evaluate_matcher(store, spec, matcher)
    some = np.array([9, 2, 17])
    assert_same(evaluate_matcher(store, spec, matcher, query_Q=some), whole.restrict(some))


@pytest.mark.parametrize("interests", [1, 2])
def test_matcher_on_eight_devices_equals_one(store, spec, interests):
    matcher = TableMatcher(spec, interests=interests)
    one = evaluate_matcher(store, spec, matcher, devices=1)
    assert_same(evaluate_matcher(store, spec, matcher, devices=8), one)


def test_item_vectors_do_not_depend_on_devices_or_chunks(store, spec):
    matcher = dsmoe.DSMOEConfig(hidden_dim=8, output_dim=4).make(spec)
    state = train_state.init_state(
        matcher, optimizer.Dense(optax.identity()), key=jax.random.key(0), mesh=make_mesh(1)
    )
    frozen = jax.device_get(train_state.freeze(state))
    vectors = []
    for devices, item_batch in ((1, 64), (1, 5), (8, 12), (8, 64)):
        mesh = make_mesh(devices)
        evaluator = evaluators.MatcherEvaluator(
            store,
            spec,
            put_corpus(store, spec, mesh),
            matcher,
            dataclasses.replace(CONFIG, item_batch=item_batch),
            mesh,
        )
        vectors.append(
            np.asarray(evaluator.embed_corpus(sharding.put_replicated(mesh, frozen), 1))[:V]
        )
    for vector in vectors[1:]:
        np.testing.assert_allclose(vectors[0], vector, atol=1e-6)


@pytest.mark.parametrize("item_batch", [16, 24, 64])
def test_a_corpus_split_by_rows_gives_the_same_vectors(store, spec, item_batch, monkeypatch):
    matcher = dsmoe.DSMOEConfig(hidden_dim=8, output_dim=4).make(spec)
    mesh = make_mesh(8)
    state = train_state.init_state(
        matcher, optimizer.Dense(optax.identity()), key=jax.random.key(0), mesh=mesh
    )
    frozen = train_state.freeze(state)
    config = dataclasses.replace(CONFIG, item_batch=item_batch)
    vectors = []
    for rows in (V + 1, V):
        monkeypatch.setattr(sharding, "MIN_SHARDED_ROWS", rows)
        corpus = sharding.put_rows(mesh, lambda r: pipeline.read_corpus(store, spec, r), V)
        assert corpus.sparse_VF.sharding.is_fully_replicated == (rows > V)
        evaluator = evaluators.MatcherEvaluator(store, spec, corpus, matcher, config, mesh)
        vectors.append(np.asarray(evaluator.embed_corpus(frozen, 1))[:V])
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


def test_one_index_lives_at_a_time(store, spec, monkeypatch):
    mesh = make_mesh(8)
    evaluator = evaluators.MatcherEvaluator(
        store, spec, put_corpus(store, spec, mesh), TableMatcher(spec), CONFIG, mesh
    )
    make_index, held = evaluator._make_index, []
    rows = 8 * sharding.shard_rows(V, 8)

    def count_and_make(frozen, scenario, share):
        gc.collect()
        held.append(sum(array.shape == (rows, D) for array in jax.live_arrays()))
        return make_index(frozen, scenario, share)

    monkeypatch.setattr(evaluator, "_make_index", count_and_make)
    evaluator(make_tables(mesh), "test", np.arange(len(store.queries("test").rows_QC)))
    assert held == [0] * S


def test_what_stands_in_for_users_that_cannot_be_read_has_their_types(store, spec):
    batch = next(pipeline.query_batches(store, spec, "test", np.arange(3), 4))
    zeros = evaluators._make_zeros(spec, 4)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (batch.users, batch.scenario_Q))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), zeros) == like
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def test_evaluating_again_compiles_nothing_anew(store, spec):
    matcher = TableMatcher(spec)
    mesh = make_mesh(1)
    evaluator = evaluators.MatcherEvaluator(
        store, spec, put_corpus(store, spec, mesh), matcher, CONFIG, mesh
    )
    frozen = make_tables(mesh)
    query_Q = np.arange(len(store.queries("test").rows_QC))
    first = evaluator(frozen, "test", query_Q)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, frozen)
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_s, **_: compilations.append(event) if "compile" in event else None
    )
    try:
        second = evaluator(doubled, "test", query_Q)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compilations
    assert_same(first, second)  # scaling all vectors changes no order


@pytest.mark.parametrize("devices", [1, 8])
def test_ranker_equals_its_full_score_matrix(store, spec, devices, monkeypatch):
    monkeypatch.setattr(evaluators, "_PAIRS_PER_CPU", 100)  # several chunks of the catalogue
    ranker = TableRanker(spec)
    mesh = make_mesh(devices)
    frozen = make_tables(mesh)
    evaluator = evaluators.RankerEvaluator(
        store, spec, put_corpus(store, spec, mesh), ranker, CONFIG, mesh, seed=4
    )
    query_Q = np.arange(len(store.queries("validation").rows_QC))
    found = evaluator(frozen, "validation", query_Q)
    score_QV = table_scores(store, frozen, "validation")
    expected = evaluators.evaluate_scores(
        store, CONFIG, "validation", query_Q, lambda ids: score_QV[ids], num_negatives=4, seed=4
    )
    assert_same(found, expected)
    np.testing.assert_allclose(found.log_loss_Q, expected.log_loss_Q, rtol=1e-4)
    assert found.summarise()["scenarios"]["A"]["log_loss"] > 0


def test_scorers_arrays_are_not_written_to(store):
    score_QV = np.random.default_rng(0).normal(size=(len(store.queries("test").rows_QC), V))
    kept = score_QV.copy()
    query_Q = np.arange(len(score_QV))
    evaluators.evaluate_scores(store, CONFIG, "test", query_Q, lambda ids: score_QV)
    np.testing.assert_array_equal(score_QV, kept)


def test_the_right_item_first_gives_full_recall_and_an_unknown_split_is_refused(store):
    table = store.queries("test")

    def oracle(ids):
        score_BV = np.zeros((len(ids), V), np.float32)
        for row, query in enumerate(ids):
            score_BV[
                row, table.relevant.items[slice(*table.relevant.indptr[query : query + 2])]
            ] = 1
        return score_BV

    query_Q = protocol.sample_queries(store, "test", None, seed=0)
    evaluation = evaluators.evaluate_scores(store, CONFIG, "test", query_Q, oracle)
    assert evaluation.summarise()["macro"]["ndcg@5"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="split"):
        evaluators.evaluate_scores(store, CONFIG, "train", query_Q, oracle)
