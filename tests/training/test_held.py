"""What item vectors are made of, and steps that leave it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.training import held, optimizer, sharding, train_state
from tests import tiny, tiny_features
from tests.models import small

ADAM = optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0))


def abstract(name, averaged=False):
    model = small.SMALL_MATCHERS[name].make(tiny_features.make_spec())
    mesh = sharding.make_mesh(tiny.one_device())
    return model, train_state.abstract_state(model, ADAM, mesh=mesh, averaged=averaged)


def test_items_read_their_tables_their_tower_and_what_towers_share():
    model, like = abstract("dsmoe")
    found = held.read_by_items(model, like)
    starts = {"/".join(path.split("/")[:3]) for path in found}
    assert "params/embedder/item_tables" in starts and "params/embedder/item_dense" in starts
    # The scenario's embedding is what both towers' experts are mixed by.
    assert "params/embedder/scenario_table" in starts
    assert any(path.startswith("model_state/batch_stats/item_tower") for path in found)
    assert not any("user" in path for path in found)


def test_an_average_is_held_with_its_parameters_and_new_rows_train():
    model, like = abstract("dssm", averaged=True)
    table = "embedder/item_tables/item_id"
    rows = like.params["embedder"]["item_tables"]["item_id"].shape[0]
    row_V = np.where(np.arange(rows) < 4, 0, -1).astype(np.int32)
    found = held.find(model, like, {table: {table: row_V}})
    for path in (f"params/{table}", f"average/params/{table}"):
        assert found[path].tolist() == [True] * 4 + [False] * (rows - 4)
    assert {p for p in found if p.startswith("average/")} == {
        f"average/{p}" for p in found if not p.startswith("average/")
    }


@pytest.mark.parametrize("name", ["fism", "dsmoe_plus"])
def test_a_method_whose_items_hold_popularity_is_refused(name):
    model, like = abstract(name)
    with pytest.raises(ValueError, match=r"train\.hold_items: .* \(known_log_prior_SV\), got True"):
        held.find(model, like, {})


def test_a_step_moves_what_is_not_held():
    def step(state, more):
        return jax.tree.map(lambda leaf: leaf + more, state), {"loss": more}

    params = {"table": jnp.zeros((3, 2)), "item": jnp.zeros(2), "user": jnp.zeros(2)}
    state = train_state.TrainState(jnp.int32(0), params, {}, ())
    known = {"params/table": np.array([True, False, True]), "params/item": None}
    moved, metrics = held.hold(step, known)(state, jnp.int32(5))
    assert moved.params["table"].tolist() == [[0, 0], [5, 5], [0, 0]]
    assert moved.params["item"].tolist() == [0, 0] and moved.params["user"].tolist() == [5, 5]
    assert moved.step == 5 and metrics == {"loss": 5}
