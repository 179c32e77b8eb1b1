import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax.nn import mlp, scenario

B, G, S, K = 5, 3, 4, 2
RNG = np.random.default_rng(0)
SCENARIO_B = jnp.arange(B, dtype=jnp.int32) % S
ONE_HOT_BS = scenario.one_hot(SCENARIO_B, S)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def make(layer, *inputs, **options):
    shapes = jax.eval_shape(lambda key: layer.init(key, *inputs, **options), jax.random.key(0))
    return tiny_features.randomise(shapes)


def test_pieces_sum_to_the_product_of_the_concatenated_input():
    layer = mlp.Split((2, 3), 4)
    user_BI, item_GI = draw(B, 2), draw(G, 3)
    variables = make(layer, 0, user_BI)
    first, second = (layer.apply(variables, n, x) for n, x in ((0, user_BI), (1, item_GI)))
    params = variables["params"]
    assert params["kernel"].shape == (5, 4)
    for b in range(B):
        for g in range(G):
            joint = jnp.concatenate([user_BI[b], item_GI[g]])
            expected = joint @ params["kernel"] + params["bias"]
            np.testing.assert_allclose(first[b] + second[g], expected, atol=1e-5)


def test_each_expert_multiplies_its_own_part():
    layer = mlp.ExpertLinear(K, 3, 4)
    x_BGI = draw(B, G, K * 3)
    variables = make(layer, x_BGI)
    params = variables["params"]
    expected = np.einsum("bgki,kio->bgko", x_BGI.reshape(B, G, K, 3), params["kernel"])
    got = layer.apply(variables, x_BGI)
    np.testing.assert_allclose(
        got, expected.reshape(B, G, K * 4) + params["bias"][None, None], atol=1e-5
    )


def test_each_example_uses_the_layer_of_its_scenario():
    layer = mlp.ScenarioLinear(S, 3, 2)
    x_BGI = draw(B, G, 3)
    variables = make(layer, x_BGI, ONE_HOT_BS)
    got = layer.apply(variables, x_BGI, ONE_HOT_BS)
    params = variables["params"]
    for b in range(B):
        s = int(SCENARIO_B[b])
        expected = x_BGI[b] @ params["kernel"][s] + params["bias"][s][None]
        np.testing.assert_allclose(got[b], expected, atol=1e-5)


def test_candidates_of_all_examples_are_spread_over_scenarios():
    joint_1GO = draw(1, G, S * 2)
    got = mlp.keep_own(joint_1GO, ONE_HOT_BS, 2)
    for b in range(B):
        s = int(SCENARIO_B[b])
        np.testing.assert_allclose(got[b], joint_1GO[0, :, 2 * s : 2 * s + 2], atol=1e-6)


def test_mixture_weighs_each_expert():
    hidden_BGO, weight_BGK = draw(B, G, K * 3), draw(B, G, K)
    expected = np.einsum("bgko,bgk->bgo", hidden_BGO.reshape(B, G, K, 3), weight_BGK)
    np.testing.assert_allclose(mlp.mix(hidden_BGO, weight_BGK), expected, atol=1e-5)
    of_example = mlp.mix(hidden_BGO, weight_BGK[:, :1])
    repeated = mlp.mix(hidden_BGO, jnp.repeat(weight_BGK[:, :1], G, axis=1))
    np.testing.assert_allclose(of_example, repeated, atol=1e-6)


def test_layer_normalisation_takes_each_expert_by_itself():
    block = mlp.NormBlock("ln", S, K * 6, 0.1, 0.0, K)
    x_BGO = draw(B, G, K * 6)
    variables = make(block, x_BGO, ONE_HOT_BS, train=False)
    assert set(variables) == {"params"}
    norm = variables["params"]["norm"]
    own = np.asarray(x_BGO).reshape(B, G, K, 6)
    own = (own - own.mean(-1, keepdims=True)) / np.sqrt(own.var(-1, keepdims=True) + 1e-5)
    expected = own.reshape(B, G, K * 6) * norm["scale"][None, None] + norm["bias"][None, None]
    got = block.apply(variables, x_BGO, ONE_HOT_BS, train=True)
    np.testing.assert_allclose(got, np.maximum(expected, 0), atol=1e-4)


def test_stack_of_experts_is_one_perceptron_each():
    stack = mlp.ExpertStack(K, (3, 4), "none", S, 0.1, 0.0)
    first_BGO = draw(B, G, K * 3)
    variables = make(stack, first_BGO, ONE_HOT_BS, train=False)
    layer = variables["params"]["expert_layers_0"]
    got = stack.apply(variables, first_BGO, ONE_HOT_BS, train=False)
    for k in range(K):
        hidden = np.maximum(first_BGO[..., 3 * k : 3 * k + 3], 0)
        own = slice(4 * k, 4 * k + 4)
        expected = hidden @ layer["kernel"][k] + layer["bias"][own][None, None]
        np.testing.assert_allclose(got[..., own], np.maximum(expected, 0), atol=1e-5)


def test_rectified_stack_leaves_its_ends_alone():
    stack = mlp.ReluStack(K, (3, 2))
    first_BGO = draw(B, G, K * 3)
    variables = make(stack, first_BGO)
    layer = variables["params"]["ExpertLinear_0"]
    hidden = np.maximum(first_BGO, 0).reshape(B, G, K, 3)
    expected = np.einsum("bgki,kio->bgko", hidden, layer["kernel"]).reshape(B, G, -1)
    expected = expected + layer["bias"][None, None]
    np.testing.assert_allclose(stack.apply(variables, first_BGO), expected, atol=1e-5)
    np.testing.assert_array_equal(mlp.ReluStack(K, (3,)).apply({}, first_BGO), first_BGO)


def test_tower_ends_in_a_logit_of_the_own_scenario():
    tower = mlp.ScenarioTower(S, 3, (2,), "none", 0.1)
    x_BGI = draw(B, G, 3)
    variables = make(tower, x_BGI, ONE_HOT_BS, train=False)
    first, last = (variables["params"][f"tower_layers_{n}"] for n in range(2))
    got = tower.apply(variables, x_BGI, ONE_HOT_BS, train=False)
    assert got.shape == (B, G)
    for b in range(B):
        s = int(SCENARIO_B[b])
        hidden = np.maximum(x_BGI[b] @ first["kernel"][s] + first["bias"][s][None], 0)
        expected = hidden @ last["kernel"][s] + last["bias"][s][None]
        np.testing.assert_allclose(got[b], expected[:, 0], atol=1e-5)


def test_experts_start_with_the_spread_of_their_own_width():
    layer = mlp.ExpertLinear(8, 100, 50)
    init = jax.jit(lambda key: layer.init(key, jnp.zeros((1, 800), jnp.float32)))
    kernel_KIO = init(jax.random.key(0))["params"]["kernel"]
    np.testing.assert_allclose(kernel_KIO.std(), 1 / np.sqrt(100), rtol=0.03)


def test_block_normalises_then_rectifies():
    block = mlp.NormBlock("dsbn", S, 6, 0.1, 0.0)
    x_BGO = draw(B, G, 6)
    variables = make(block, x_BGO, ONE_HOT_BS, train=False)
    got = block.apply(variables, x_BGO, ONE_HOT_BS, train=False)
    norm, stats = variables["params"]["norm"], variables["batch_stats"]["norm"]
    s = SCENARIO_B[:, None]
    normal = (x_BGO - stats["mean"][s]) / np.sqrt(stats["var"][s] + 1e-5)
    expected = np.maximum(normal * norm["scale"][s] + norm["bias"][s], 0)
    np.testing.assert_allclose(got, expected, atol=1e-4)
