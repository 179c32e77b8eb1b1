import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax import losses
from dsmoe_jax.models.matching import dsmoe

B, G = 12, 3
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


def make(**changes):
    fields = {"hidden_dim": 8, "output_dim": 5, "rank": 2, "num_experts": 3}
    model = dsmoe.DSMOEConfig(**{**fields, **changes}).make(SPEC)
    return model, model.init(jax.random.key(0), USERS, ITEMS, SCENARIO_B, train=False)


def flatten_items(items):
    return jax.tree.map(lambda leaf: leaf.reshape(B * G, *leaf.shape[2:]), items)


def test_every_leaf_is_strong_float32():
    _, variables = make()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert leaf.dtype == jnp.float32 and not leaf.weak_type, jax.tree_util.keystr(path)


def test_logit_is_the_inner_product_of_the_towers():
    model, variables = make()
    variables = tiny_features.randomise(variables)
    logit_BG, aux = model.apply(variables, USERS, ITEMS, SCENARIO_B, train=False)
    user_BMD, _ = model.apply(variables, USERS, SCENARIO_B, train=False, method="embed_user")
    item_ND, _ = model.apply(
        variables, flatten_items(ITEMS), jnp.repeat(SCENARIO_B, G), train=False, method="embed_item"
    )
    assert user_BMD.shape == (B, 1, 5) and item_ND.shape == (B * G, 5) and aux == {}
    expected = np.einsum("bd,bgd->bg", user_BMD[:, 0], item_ND.reshape(B, G, 5))
    np.testing.assert_allclose(logit_BG, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient_once_up_left_zero():
    model, variables = make(input_includes_scenario=True)
    variables = tiny_features.randomise(variables)

    def loss(params):
        (logit_BG, _), _ = model.apply(
            {**variables, "params": params},
            USERS,
            ITEMS,
            SCENARIO_B,
            train=True,
            mutable=["batch_stats"],
        )
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        return losses.bce_with_logits(logit_BG, label_BG).mean()

    gradient = jax.grad(loss)(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sap": False},
        {"norm": "bn"},
        {"norm": "none"},
        {"gate_input": "scenario_and_features"},
        {"input_includes_scenario": True},
        {"item_scenario": "shared"},
        {"input_dropout": 0.5},
        {"num_experts": 1},
    ],
)
def test_each_choice_trains_and_evaluates(changes):
    model, variables = make(**changes)
    (logit_BG, _), updated = model.apply(
        variables, USERS, ITEMS, SCENARIO_B, train=True,
        mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
    )  # fmt: skip
    assert logit_BG.shape == (B, G) and np.isfinite(logit_BG).all()
    before = variables.get("batch_stats", {})
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updated.get("batch_stats", {}), before)
    assert all(jax.tree.leaves(moved))
    logit_BG, _ = model.apply(variables, USERS, ITEMS, SCENARIO_B, train=False)
    assert np.isfinite(logit_BG).all()


def test_shared_item_tower_ignores_the_scenario():
    model, variables = make(item_scenario="shared")
    items = flatten_items(ITEMS)

    def embed(scenario):
        scenarios = jnp.full(B * G, scenario, jnp.int32)
        return model.apply(variables, items, scenarios, train=False, method="embed_item")[0]

    assert not model.item_uses_scenario
    np.testing.assert_array_equal(embed(0), embed(3))
    model, variables = make()
    variables = tiny_features.randomise(variables)
    assert model.item_uses_scenario
    assert float(jnp.abs(embed(0) - embed(3)).max()) > 1e-3
