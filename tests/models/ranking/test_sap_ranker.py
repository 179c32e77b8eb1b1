import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.ranking import sap_ranker

B, G = 8, 3
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@pytest.fixture(scope="module")
def teacher():
    model = sap_ranker.SAPRankerConfig(hidden_dim=6, output_dim=4, rank=2).make(SPEC)
    items = tiny_features.make_items(SPEC, (B, G))
    return model, tiny_features.make_variables(model, USERS, items, SCENARIO_B)


def test_shared_candidates_equal_repeated_ones(teacher):
    model, variables = teacher
    shared = tiny_features.make_items(SPEC, (1, 7))
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, B, axis=0), shared)
    got, expected = (
        jax.jit(functools.partial(model.apply, train=False))(variables, USERS, items, SCENARIO_B)[0]
        for items in (shared, repeated)
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_every_parameter_gets_a_gradient(teacher):
    model, variables = teacher
    items = tiny_features.make_items(SPEC, (B, G))

    @jax.jit
    @jax.grad
    def gradient(params):
        (logit_BG, _), _ = model.apply(
            {**variables, "params": params}, USERS, items, SCENARIO_B, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.square(logit_BG).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_field_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"teacher.model.rank: expected a number >= 1, got 0"):
        sap_ranker.SAPRankerConfig(rank=0).make(SPEC)
