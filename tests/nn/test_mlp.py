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
