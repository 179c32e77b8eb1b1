import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.training import losses

B, G, D = 12, 3, 5
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@functools.cache
def make(**changes):
    fields = {"hidden_dim": 8, "output_dim": D, "rank": 2, "num_experts": 3}
    model = dsmoe.DSMOEConfig(**{**fields, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, users, items, scenario_B):
    return model.apply(
        variables, users, items, scenario_B, train=True,
        mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
    )  # fmt: skip


def flatten_items(items):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), items)


def test_initial_parameters_are_strong_float32_under_stable_names():
    model = dsmoe.DSMOEConfig(hidden_dim=8, output_dim=D).make(SPEC)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), USERS, ITEMS, SCENARIO_B)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert leaf.dtype == jnp.float32 and not leaf.weak_type, jax.tree_util.keystr(path)
    params = variables["params"]
    assert set(params) == {"embedder", "user_tower", "item_tower"}
    assert set(params["user_tower"]) == {
        "experts", "forward", "norms", "gate_kernel", "gate_bias", "prelu_slope"
    }  # fmt: skip
    np.testing.assert_array_equal(params["user_tower"]["prelu_slope"], np.full(3, 0.25, "f"))
    np.testing.assert_array_equal(params["user_tower"]["experts"]["up"], np.zeros((3, 4, 8)))
    np.testing.assert_array_equal(params["user_tower"]["experts"]["coef_bias"], np.ones(12))
    assert np.abs(params["embedder"]["user_tables"]["small_fields"]).max() < 0.05
    assert 0.5 < np.std(params["embedder"]["scenario_table"]) < 2


def test_logit_is_the_inner_product_of_the_towers():
    model, variables = make()
    logit_BG, aux = run(model, variables, USERS, ITEMS, SCENARIO_B)
    user_BMD, _ = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    item_ND, _ = run(
        model, variables, flatten_items(ITEMS), jnp.repeat(SCENARIO_B, G), method="embed_item"
    )
    assert user_BMD.shape == (B, 1, D) and item_ND.shape == (B * G, D) and aux == {}
    expected = np.einsum("bd,bgd->bg", user_BMD[:, 0], item_ND.reshape(B, G, D))
    np.testing.assert_allclose(logit_BG, expected, rtol=1e-4, atol=1e-4)


def test_score_matrix_of_precomputed_vectors_equals_the_pairwise_model():
    model, variables = make()
    corpus = tiny_features.make_items(SPEC, (7,))
    everything = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], B, axis=0), corpus)
    pairwise_BV, _ = run(model, variables, USERS, everything, SCENARIO_B)
    user_BMD, _ = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    for s in range(4):
        scenario_V = jnp.full(7, s, jnp.int32)
        item_VD, _ = run(model, variables, corpus, scenario_V, method="embed_item")
        rows = np.asarray(SCENARIO_B) == s
        score_BV = np.asarray(user_BMD)[rows, 0] @ np.asarray(item_VD).T
        np.testing.assert_allclose(score_BV, pairwise_BV[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_neither_tower_sees_the_other_side(training):
    model, variables = make()

    def towers(user_dense_BF, item_dense_VF):
        users = USERS._replace(dense_BF=user_dense_BF)
        items = flatten_items(ITEMS)._replace(dense_VF=item_dense_VF)
        apply = functools.partial(model.apply, variables, train=training, mutable=["batch_stats"])
        (user_BMD, _), _ = apply(users, SCENARIO_B, method="embed_user")
        (item_ND, _), _ = apply(items, jnp.repeat(SCENARIO_B, G), method="embed_item")
        return jnp.square(user_BMD).sum(), jnp.square(item_ND).sum()

    inputs = USERS.dense_BF, flatten_items(ITEMS).dense_VF
    of_user, of_item = jax.jit(jax.jacrev(towers, argnums=(0, 1)))(*inputs)
    np.testing.assert_array_equal(of_user[1], np.zeros(of_user[1].shape))
    np.testing.assert_array_equal(of_item[0], np.zeros(of_item[0].shape))
    assert np.abs(of_user[0]).max() > 0 and np.abs(of_item[1]).max() > 0


def gradient_of(model, variables):
    @jax.jit
    @jax.grad
    def gradient(params):
        (logit_BG, _), _ = train(model, {**variables, "params": params}, USERS, ITEMS, SCENARIO_B)
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        return losses.bce_with_logits(logit_BG, label_BG).mean()

    return gradient(variables["params"])


@pytest.mark.parametrize("item_scenario", ["conditioned", "shared"])
def test_every_parameter_gets_a_gradient(item_scenario):
    model, variables = make(input_includes_scenario=True, item_scenario=item_scenario)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient_of(model, variables)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_only_the_other_factors_of_the_correction_get_none_while_up_is_zero():
    model, variables = make()
    start = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if path[-1].key == "up" else leaf, variables["params"]
    )
    gradient = gradient_of(model, {**variables, "params": start})
    silent = {
        path[-1].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max()
    }
    assert silent == {"down", "coef_kernel", "coef_bias"}


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sap": False},
        {"norm": "bn"},
        {"norm": "none"},
        {"gate_input": "scenario_and_features"},
        {"num_experts": 1},
        {"input_dropout": 0.5},
    ],
)
def test_each_choice_trains_and_moves_every_statistic(changes):
    model, variables = make(**changes)
    (logit_BG, _), updated = train(model, variables, USERS, ITEMS, SCENARIO_B)
    assert logit_BG.shape == (B, G) and np.isfinite(logit_BG).all()
    before, after = variables.get("batch_stats", {}), updated.get("batch_stats", {})
    assert bool(before) == (changes.get("norm") != "none")
    moved = jax.tree.map(lambda a, b: bool((a != b).any(axis=1).all()), before, after)
    assert all(jax.tree.leaves(moved))


def test_dropout_acts_in_training_only():
    model, variables = make(input_dropout=0.5, norm="none")
    plain, _ = make(norm="none")
    evaluated, _ = run(model, variables, USERS, ITEMS, SCENARIO_B)
    np.testing.assert_array_equal(evaluated, run(plain, variables, USERS, ITEMS, SCENARIO_B)[0])
    (trained, _), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    assert np.abs(trained - evaluated).min() > 0


@pytest.mark.parametrize(("item_scenario", "differs"), [("conditioned", True), ("shared", False)])
def test_item_vectors_depend_on_the_scenario_unless_the_item_tower_is_shared(
    item_scenario, differs
):
    model, variables = make(item_scenario=item_scenario)
    items = flatten_items(ITEMS)
    first, last = (
        run(model, variables, items, jnp.full(B * G, s, jnp.int32), method="embed_item")[0]
        for s in (0, 3)
    )
    assert model.item_uses_scenario == differs
    assert bool(np.abs(first - last).max() > 1e-3) == differs


def test_scenario_reaches_the_logit_through_each_of_its_paths():
    # Without SAP, DSBN and its own input, the gate alone still tells scenarios apart.
    for changes in (
        {"use_sap": False, "norm": "bn"},
        {"norm": "bn", "num_experts": 1},
        {"use_sap": False, "num_experts": 1},
    ):
        model, variables = make(**changes)
        other_B = (SCENARIO_B + 1) % 4
        difference = (
            run(model, variables, USERS, SCENARIO_B, method="embed_user")[0]
            - run(model, variables, USERS, other_B, method="embed_user")[0]
        )
        assert np.abs(difference).max() > 1e-3, changes
    model, variables = make(use_sap=False, norm="bn", num_experts=1)
    np.testing.assert_array_equal(
        run(model, variables, USERS, SCENARIO_B, method="embed_user")[0],
        run(model, variables, USERS, other_B, method="embed_user")[0],
    )


def test_coefficients_and_gates_are_readable_per_scenario():
    model, variables = make()
    table = model.apply(variables, method="scenario_coefficients")
    assert set(table) == {
        f"{tower}/{layer}"
        for tower in ("user", "item")
        for layer in ("expert_0", "expert_1", "expert_2", "forward")
    }
    params = variables["params"]
    experts = params["user_tower"]["experts"]
    e_SC = params["embedder"]["scenario_table"]
    b_SR = e_SC @ experts["coef_kernel"][:, 2:4] + experts["coef_bias"][None, 2:4]
    np.testing.assert_allclose(table["user/expert_1"], b_SR, rtol=1e-5)
    gates = model.apply(variables, method="gate_weights")
    for gate_SK in gates.values():
        assert gate_SK.shape == (4, 3)
        np.testing.assert_allclose(gate_SK.sum(axis=1), 1, rtol=1e-5)
    model, variables = make(use_sap=False, item_scenario="shared")
    assert model.apply(variables, method="scenario_coefficients") == {}
    assert model.apply(variables, method="gate_weights")["item"].shape == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, r"model.num_experts: expected a number >= 1, got 0"),
        ({"rank": 0}, r"model.rank: expected a number >= 1, got 0"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"bn_momentum": 0.0}, r"model.bn_momentum: expected a number in \(0, 1\], got 0.0"),
        ({"norm": "ln"}, r"model.norm: expected one of \('dsbn', 'bn', 'none'\), got 'ln'"),
        ({"gate_input": "user"}, r"model.gate_input: expected one of .*, got 'user'"),
        ({"item_scenario": "none"}, r"model.item_scenario: expected one of .*, got 'none'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dsmoe.DSMOEConfig(**changes).make(SPEC)


@pytest.mark.parametrize("norm", ["dsbn", "bn"])
def test_eight_devices_equal_one(norm):
    model, variables = make(norm=norm)
    spec = SPEC
    users = tiny_features.make_users(spec, 32)
    items = tiny_features.make_items(spec, (32, G))
    scenario_B = jnp.asarray([0] * 20 + [1] * 8 + [2] * 3 + [3], jnp.int32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    (logit_BG, _), updated = train(model, variables, users, items, scenario_B)
    (sharded_BG, _), sharded = train(
        model, variables, *jax.device_put((users, items, scenario_B), rows)
    )
    assert len(sharded_BG.sharding.device_set) == 8
    np.testing.assert_allclose(sharded_BG, logit_BG, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), updated, sharded
    )
