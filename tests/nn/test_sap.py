import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.nn import sap, scenario

B, S, C, K, R, WIDTH, OUT = 9, 4, 5, 3, 2, 7, 6


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    x_BI = jnp.asarray(rng.normal(size=(B, WIDTH)), jnp.float32)
    scenario_SC = jnp.asarray(rng.normal(size=(S, C)), jnp.float32)
    return x_BI, scenario_SC, scenario.one_hot(jnp.arange(B) % S, S)


def make(inputs, **changes):
    x_BI, scenario_SC, one_hot_BS = inputs
    layer = sap.SAP(
        **{
            **{"in_dim": WIDTH, "out_dim": OUT, "scenario_dim": C, "rank": R, "num_experts": K},
            **changes,
        }
    )
    return layer, layer.init(jax.random.key(0), (x_BI,), scenario_SC, one_hot_BS)


def materialise(params, embedding_C, k):
    """W + A diag(b_s) B of one expert in one scenario, as the paper prints it."""
    b_KR = (embedding_C @ params["coef_kernel"] + params["coef_bias"]).reshape(K, R)
    down_IR = params["down"].reshape(WIDTH, K, R)[:, k]
    delta_IO = down_IR @ np.diag(b_KR[k]) @ params["up"][k]
    return params["shared"].reshape(WIDTH, K, OUT)[:, k], delta_IO


def test_initial_layer_is_linear(inputs):
    x_BI, *_ = inputs
    layer, variables = make(inputs)
    params = variables["params"]
    got = layer.apply(variables, (x_BI,), *inputs[1:])
    np.testing.assert_allclose(got, x_BI @ params["shared"] + params["bias"][None], atol=1e-6)


def test_initial_layer_equals_its_ablation(inputs):
    layer, variables = make(inputs)
    ablated, ablated_variables = make(inputs, use_sap=False)
    assert set(ablated_variables["params"]) == {"shared", "bias"}
    params = {name: variables["params"][name] for name in ("shared", "bias")}
    np.testing.assert_array_equal(
        layer.apply(variables, (inputs[0],), *inputs[1:]),
        ablated.apply({"params": params}, (inputs[0],), *inputs[1:]),
    )


def test_factored_equals_the_materialised_matrix_of_each_scenario(inputs):
    x_BI, scenario_SC, one_hot_BS = inputs
    layer, variables = make(inputs)
    variables = tiny_features.randomise(variables)
    params = jax.tree.map(np.asarray, variables["params"])
    got_BKO = np.asarray(layer.apply(variables, (x_BI,), scenario_SC, one_hot_BS)).reshape(
        B, K, OUT
    )
    for row in range(B):
        for k in range(K):
            shared_IO, delta_IO = materialise(params, np.asarray(scenario_SC)[row % S], k)
            expected = x_BI[row] @ (shared_IO + delta_IO) + params["bias"].reshape(K, OUT)[k]
            np.testing.assert_allclose(got_BKO[row, k], expected, rtol=1e-4, atol=1e-4)


def test_correction_has_at_most_the_stated_rank(inputs):
    _, variables = make(inputs)
    params = jax.tree.map(np.asarray, tiny_features.randomise(variables)["params"])
    for s in range(S):
        _, delta_IO = materialise(params, np.asarray(inputs[1])[s], 1)
        assert np.linalg.matrix_rank(delta_IO, tol=1e-4) == R


def test_coefficients_are_linear_in_the_scenario_embedding(inputs):
    layer, variables = make(inputs)
    params = variables["params"]
    got_SKR = layer.apply(variables, inputs[1], method="coefficients")
    expected = inputs[1] @ params["coef_kernel"] + 1
    np.testing.assert_allclose(got_SKR.reshape(S, K * R), expected, atol=1e-6)


def test_gradient_reaches_the_coefficients_only_after_up_left_zero(inputs):
    layer, variables = make(inputs)

    def total(params):
        return jnp.square(layer.apply({"params": params}, (inputs[0],), *inputs[1:])).sum()

    first = jax.grad(total)(variables["params"])
    assert float(jnp.abs(first["up"]).max()) > 0
    for name in ("coef_kernel", "coef_bias", "down"):
        np.testing.assert_array_equal(first[name], np.zeros(first[name].shape))
    moved = jax.grad(total)(tiny_features.randomise(variables)["params"])
    for name, gradient in moved.items():
        assert float(jnp.abs(gradient).min()) > 0, name


def test_input_in_pieces_equals_the_concatenated_input(inputs):
    x_BI, scenario_SC, one_hot_BS = inputs
    layer, variables = make(inputs)
    variables = tiny_features.randomise(variables)
    item_1GI = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 3)), jnp.float32)
    user_B1I = x_BI[:, None, : WIDTH - 3]
    joint_BGI = jnp.concatenate(
        [jnp.broadcast_to(user_B1I, (B, 5, WIDTH - 3)), jnp.broadcast_to(item_1GI, (B, 5, 3))],
        axis=-1,
    )
    np.testing.assert_allclose(
        layer.apply(variables, (user_B1I, item_1GI), scenario_SC, one_hot_BS),
        layer.apply(variables, (joint_BGI,), scenario_SC, one_hot_BS),
        atol=1e-5,
    )
