import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax import features
from dsmoe_jax.models.matching import dssm

SPEC = tiny_features.make_spec()


def test_every_id_but_the_unknown_one_is_there_once_per_scenario():
    spread = dssm.spread(SPEC)
    assert [f.num_ids for f in spread.user_sparse] == [1 + 4 * 29, 1 + 4 * 4, 1 + 4 * 4999]
    assert [f.num_ids for f in spread.item_bags] == [1 + 4 * 8]
    assert spread.user_dense == SPEC.user_dense and spread.sequences == SPEC.sequences


def test_more_ids_than_int32_can_number_are_refused():
    wide = (*SPEC.user_sparse, features.SparseFeature("cookie", 600_000_000))
    with pytest.raises(ValueError, match=r"'cookie': expected at most .*; hash them into fewer"):
        dssm.spread(dataclasses.replace(SPEC, user_sparse=wide))


def test_an_example_reads_its_own_scenarios_rows():
    """Literally: two fields, one with a table of its own, a bag, a dense feature, a history."""
    spec = tiny_features.make_spec(
        scenarios=("A", "B"),
        user_sparse=(features.SparseFeature("age", 3),),
        user_dense=(features.DenseFeature("follows"),),
        user_bags=(features.BagFeature("interest", 3, 2),),
        item_sparse=(features.SparseFeature("item_id", 4),),
        item_dense=(),
        item_bags=(),
        sequences=(features.SequenceFeature("history", ("item_id",), 3),),
        embedding_dim=1,
    )
    module = dssm.ScenarioEmbedder(spec)
    rows = {
        # age: 0, then 1 and 2 in A, in B; interest likewise.
        "small_fields": jnp.asarray([[9], [1], [2], [3], [4], [9], [10], [20], [30], [40]], "f"),
    }
    items = jnp.asarray([[9], [1], [2], [3], [100], [200], [300]], "f")
    params = {
        "embedder": {"user_tables": rows, "item_tables": {"item_id": items}},
        "user_dense": jnp.asarray([[[0.5]], [[0.25]]], "f"),
    }
    users = tiny_features.make_users(spec, 2)._replace(
        sparse_BF=jnp.asarray([[2], [1]]),
        dense_BF=jnp.asarray([[8.0], [8.0]]),
        bags={"interest": jnp.asarray([[1, 2], [2, 0]])},
    )
    history = users.sequences["history"]._replace(
        ids_BLF=jnp.asarray([[[3], [1], [0]], [[3], [0], [0]]])
    )
    users = users._replace(sequences={"history": history})
    scenario_B = jnp.asarray([0, 1])
    found = module.apply({"params": params}, users, scenario_B, method="users")
    # age, mean interest, mean of the history, follows
    np.testing.assert_allclose(found, [[2, 15, 2, 4], [3, 40, 300, 2]])
    corpus = tiny_features.make_items(spec, (2, 3))._replace(
        sparse_VF=jnp.asarray([[[1], [0], [3]]] * 2), dense_VF=jnp.zeros((2, 3, 0))
    )
    found = module.apply({"params": params}, corpus, scenario_B, method="items")
    np.testing.assert_array_equal(found[..., 0], [[1, 0, 3], [100, 0, 300]])


def test_widths_are_those_of_the_inputs():
    module = dssm.ScenarioEmbedder(SPEC)
    users, items = tiny_features.make_users(SPEC, 3), tiny_features.make_items(SPEC, (3, 2))
    scenario_B = tiny_features.make_scenarios(SPEC, 3)

    def widths(module):
        user_BI, item_BGI = module.users(users, scenario_B), module.items(items, scenario_B)
        return user_BI, item_BGI, jnp.zeros((module.user_dim, module.item_dim))

    (user_BI, item_BGI, dims), _ = jax.eval_shape(
        lambda key: module.init_with_output(key, method=widths), jax.random.key(0)
    )
    assert (user_BI.shape, item_BGI.shape) == ((3, dims.shape[0]), (3, 2, dims.shape[1]))
