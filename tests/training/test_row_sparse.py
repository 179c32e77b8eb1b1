import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax import features
from dsmoe_jax.capacity import cases
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline, statistics
from dsmoe_jax.models.matching import dsmoe, dsmoe_plus, fism, m5
from dsmoe_jax.models.ranking import fused, mmoe_din, sap_ranker
from dsmoe_jax.nn import tables
from dsmoe_jax.training import (
    large_tables,
    optimizer,
    row_sparse,
    sharding,
    train_state,
    train_step,
)
from tests import tiny

RATE, DECAY = 1e-2, 1e-3


class Setup:
    """A two-tower model on the tiny store, whose id tables count as large."""

    def __init__(self, store, devices=None, batch_size=64, exclude=()):
        self.mesh = sharding.make_mesh(devices)
        self.spec = features.select(
            store.spec, exclude=exclude, history_length=6, scenario_history_length=4
        )
        self.corpus = sharding.put_replicated(self.mesh, pipeline.read_corpus(store, self.spec))
        source = pipeline.BatchSource(store, self.spec, seed=0, batch_size=batch_size, max_epochs=1)
        self.batches = [sharding.put_batch(self.mesh, source[i]) for i in range(4)]
        self.model = dsmoe.DSMOEConfig(num_experts=2, hidden_dim=8, output_dim=4).make(self.spec)
        self.constants = {}
        self.dense = optimizer.Dense(optimizer.make_optimizer(RATE, DECAY))
        self.sparse = row_sparse.RowSparse(self.spec, RATE, DECAY, min_rows=1)

        self.started = {}

    def start(self, updater, decay):
        """The initial state and the step of an updater, which its runs share."""
        key = id(updater), decay
        if key not in self.started:
            state = train_state.init_state(
                self.model,
                updater,
                key=jax.random.key(0),
                mesh=self.mesh,
                constants=self.constants,
                averaged=decay > 0,
            )
            step = jax.jit(
                train_step.make_train_step(
                    self.model,
                    updater,
                    num_items=self.spec.num_items,
                    num_negatives=3,
                    average_decay=decay,
                )
            )
            # The updater is kept, so that no other one has its identity.
            self.started[key] = state, step, updater
        return self.started[key][:2]

    def run(self, updater, steps, decay=0.0):
        state, step = self.start(updater, decay)
        curve = []
        for i in range(steps):
            batch = self.batches[i % len(self.batches)]
            state, metrics = step(
                state, None, self.corpus, batch, jnp.float32(0), jax.random.key(3)
            )
            curve.append(float(metrics["loss"]))
        return state, curve


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("rows") / "store")


@pytest.fixture(scope="module")
def one(store):
    return Setup(store, tiny.one_device())


def table_rows(params, spec, name):
    return np.asarray(large_tables.split(params, [name])[0][name])


def test_the_first_step_equals_dense_on_touched_rows_and_leaves_the_others(one):
    before, _ = one.run(one.sparse, 0)
    dense, dense_curve = one.run(one.dense, 1)
    sparse, curve = one.run(one.sparse, 1)
    assert curve == pytest.approx(dense_curve, rel=1e-6)
    name = "user_tables/user_id"
    old, want, got = (table_rows(s.params, one.spec, name) for s in (before, dense, sparse))
    touched = np.unique(np.asarray(one.batches[0].users.sparse_BF[:, 0]))
    touched = touched[touched > 0]
    assert 0 < len(touched) < tiny.NUM_USERS
    np.testing.assert_allclose(got[touched], want[touched], rtol=1e-5, atol=1e-7)
    rest = np.setdiff1d(np.arange(len(old)), touched)
    np.testing.assert_array_equal(got[rest], old[rest])
    assert not np.allclose(want[rest][1:], old[rest][1:])


def test_several_steps_equal_dense_where_every_row_is_touched(store):
    # Without user ids the items' table is the only large one, and a batch draws every item.
    setup = Setup(store, tiny.one_device(), batch_size=100, exclude=("user_id",))
    assert setup.sparse.names == ["item_tables/item_id"]
    rate, beta_2 = optimizer.make_schedule(RATE, 3), 0.5
    updater = optimizer.Dense(optimizer.make_optimizer(rate, DECAY, beta_2))
    dense, dense_curve = setup.run(updater, 4)
    sparse = dataclasses.replace(setup.sparse, beta_2=beta_2, learning_rate=rate)
    sparse, curve = setup.run(sparse, 4)
    np.testing.assert_allclose(curve, dense_curve, rtol=1e-5)
    got, want = (table_rows(s.params, setup.spec, "item_tables/item_id") for s in (sparse, dense))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_constants_are_looked_up_by_the_items_ids(store):
    setup = Setup(store, tiny.one_device())
    setup.model = mmoe_din.MMoEDINConfig(
        num_experts=2,
        expert_dims=(6,),
        tower_dims=(),
        attention_hidden=(3,),
        use_log_prior=True,
        collaborative=True,
        collaborative_dim=3,
        dropout=0.0,
    ).make(setup.spec)
    setup.constants = statistics.make_constants(store, setup.model.constant_shapes)
    dense, dense_curve = setup.run(setup.dense, 1)
    sparse, curve = setup.run(setup.sparse, 1)
    assert curve == pytest.approx(dense_curve, rel=1e-6)
    for name, value in dense.model_state["constants"].items():
        np.testing.assert_array_equal(sparse.model_state["constants"][name], value)


def test_a_method_that_looks_up_fields_of_the_corpus_is_refused(store):
    setup = Setup(store, tiny.one_device())
    spec = features.select(
        store.spec,
        exclude=(),
        history_length=6,
        scenario_history_length=4,
        scenario_histories=True,
    )
    setup.model = m5.M5Config(
        attention_dim=4, num_experts=2, expert_dims=(6, 5), output_dim=4, mask_negatives=5
    ).make(spec)
    setup.constants = statistics.make_constants(store, setup.model.constant_shapes)
    source = pipeline.BatchSource(store, spec, seed=0, batch_size=64, max_epochs=1)
    setup.batches = [source[0]]
    updater = row_sparse.RowSparse(spec, RATE, DECAY, min_rows=1)
    with pytest.raises(ValueError, match=r"optim.embedding: expected 'dense' for a method"):
        setup.run(updater, 1)


def test_eight_devices_equal_one(store, one):
    eight = Setup(store)
    _, curve = one.run(one.sparse, 4)
    _, curve8 = eight.run(eight.sparse, 4)
    np.testing.assert_allclose(curve8, curve, rtol=1e-5)


@pytest.mark.parametrize("method", ["dense", "row_sparse"])
@pytest.mark.parametrize("devices", [6, 8])
def test_split_tables_equal_whole_ones(devices, method):
    rows = sharding.MIN_SHARDED_ROWS
    spec = features.FeatureSpec(
        scenarios=("A", "B"),
        user_sparse=(features.SparseFeature("user_id", rows),),
        user_dense=(),
        user_bags=(),
        item_sparse=(features.SparseFeature("item_id", rows),),
        item_dense=(),
        item_bags=(),
        sequences=(features.SequenceFeature("history", ("item_id",), 3),),
        embedding_dim=2,
    )
    case = cases.make(spec, 3, shares=(0.5, 0.5), positives=48)
    model = dsmoe.DSMOEConfig(num_experts=1, rank=1, hidden_dim=4, output_dim=2).make(spec)
    states, curves = [], []
    optim = schema.OptimConfig(embedding=method)
    for number in (1, devices):
        mesh = sharding.make_mesh(jax.devices()[:number])
        updater = row_sparse.make_updater(optim, spec, mesh, RATE, DECAY)
        state = train_state.init_state(
            model, updater, key=jax.random.key(0), mesh=mesh, averaged=True
        )
        corpus = sharding.put_rows(
            mesh, lambda r: jax.tree.map(lambda leaf: leaf[r], case.corpus), rows
        )
        step = train_step.make_train_step(
            model, updater, num_items=rows, num_negatives=2, average_decay=0.5
        )
        step = jax.jit(step, out_shardings=(sharding.state_sharding(mesh, state), None))
        curve = []
        for batch in case.batches:
            batch = sharding.put_batch(mesh, batch)
            state, metrics = step(state, None, corpus, batch, jnp.float32(0), jax.random.key(3))
            curve.append(float(metrics["loss"]))
        states.append(state)
        curves.append(curve)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    whole, split = states
    share = -(-rows // devices)
    for name in large_tables.names(spec, rows):
        table = large_tables.split(split.params, [name])[0][name]
        assert table.sharding.shard_shape(table.shape)[0] == share
        np.testing.assert_array_equal(np.asarray(table)[rows:], 0.0)
        if method == "row_sparse":
            assert all(
                leaf.sharding.shard_shape(leaf.shape)[0] == share
                for leaf in jax.tree.leaves(split.opt_state.rows[name])
            )
    for part in ("params", "average"):
        for got, want in zip(
            jax.tree.leaves(getattr(split, part)),
            jax.tree.leaves(getattr(whole, part)),
            strict=True,
        ):
            got = np.asarray(got)[: want.shape[0]] if want.ndim else np.asarray(got)
            np.testing.assert_allclose(got, np.asarray(want), rtol=2e-3, atol=2e-5)


def test_padding_stays_zero(one):
    state, _ = one.run(one.sparse, 3)
    for name in one.sparse.names:
        np.testing.assert_array_equal(table_rows(state.params, one.spec, name)[0], 0.0)


def test_the_average_follows_touched_rows(one):
    before, _ = one.run(one.sparse, 0)
    state, _ = one.run(one.sparse, 1, decay=0.5)
    name = "user_tables/user_id"
    old, new = (table_rows(s.params, one.spec, name) for s in (before, state))
    got = table_rows(state.average.params, one.spec, name)
    np.testing.assert_allclose(got, old + (1 - 2 / 11) * (new - old), rtol=1e-5, atol=1e-7)


def test_row_wise_adagrad_by_hand(one):
    sparse = dataclasses.replace(one.sparse, method="adagrad", weight_decay=0.0)
    table = jnp.asarray([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]])
    state = row_sparse.RowState(
        mean_VE=jnp.zeros((3, 0)), square_VE=jnp.asarray([[0.0], [7.0], [0.0]]), slot_V=None
    )
    # Row 1 occurs twice; its gradient is with the first.
    touched = row_sparse.TouchedRows(
        id_T=jnp.asarray([0, 1, 1]),
        unique_T=jnp.asarray([True, True, False]),
    )
    gradient = jnp.asarray([[9.0, 9.0], [1.0, -1.0], [0.0, 0.0]])
    start = jnp.int32(0)
    new, _, square_VE = sparse._update_shard(
        start, (table, state.mean_VE, state.square_VE), touched, (gradient, start, start)
    )
    # Mean square of the gradient is 1: the accumulator becomes 8.
    move = RATE / np.sqrt(8.0)
    np.testing.assert_allclose(new, [[0, 0], [1 - move, 2 + move], [3, 4]], rtol=1e-6)
    np.testing.assert_allclose(square_VE, [[0.0], [8.0], [0.0]], rtol=1e-6)


def test_an_ensemble_with_tables_of_each_member_is_refused(one):
    members = {
        name: sap_ranker.SAPRankerConfig(num_experts=2, hidden_dim=4, output_dim=4)
        for name in ("a", "b")
    }
    model = fused.FusedConfig(members=members).make(one.spec)
    with pytest.raises(ValueError, match=r"optim.embedding: expected 'dense' .*'row_sparse'"):
        train_state.abstract_state(model, one.sparse, mesh=one.mesh)


@pytest.mark.parametrize("config", [fism.FISMConfig(), dsmoe_plus.DSMOEPlusConfig()])
def test_a_method_with_tables_of_its_own_is_refused_where_rows_are_updated(one, config):
    model = config.make(one.spec)
    updater = dataclasses.replace(one.sparse, spec=model.spec)
    with pytest.raises(ValueError, match=r"optim\.embedding: expected 'dense' .*'row_sparse'"):
        train_state.abstract_state(model, updater, mesh=one.mesh)
    none = dataclasses.replace(updater, min_rows=10_000)
    assert none.names == []
    assert train_state.abstract_state(model, none, mesh=one.mesh).params["item_table"].ndim == 2


def test_small_tables_are_left_to_dense_adam(one):
    none = dataclasses.replace(one.sparse, min_rows=10_000)
    assert none.names == []
    dense, dense_curve = one.run(one.dense, 2)
    state, curve = one.run(none, 2)
    np.testing.assert_allclose(curve, dense_curve, rtol=1e-6)
    for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(dense.params), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-7)


def test_nothing_as_long_as_a_table_is_copied():
    case = cases.make_case("20000", 1)
    rows = tables.padded_rows(case.spec.num_items)
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = dsmoe.DSMOEConfig(num_experts=1, hidden_dim=4, output_dim=4).make(case.spec)
    updater = row_sparse.RowSparse(case.spec, RATE, DECAY, min_rows=1, mesh=mesh)
    state = train_state.init_state(model, updater, key=jax.random.key(0), mesh=mesh)
    step = train_step.make_train_step(
        model, updater, num_items=case.spec.num_items, num_negatives=1
    )
    arguments = (
        sharding.put_replicated(mesh, case.corpus),
        sharding.put_batch(mesh, case.batches[0]),
        jnp.float32(0),
        jax.random.key(3),
    )
    lowered = jax.jit(step, donate_argnums=0).lower(state, None, *arguments)
    text = lowered.compile().as_text()
    assert re.search(rf"\[{rows}\S* (fusion|scatter)\(", text), "the tables are in the program"
    assert not re.search(rf"\[{rows}\S* copy\(", text)
