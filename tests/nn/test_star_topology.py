import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax.nn import scenario, star_topology

B, G, S, I, O = 8, 3, 4, 5, 2  # noqa: E741
RNG = np.random.default_rng(0)
SCENARIO_B = jnp.arange(B, dtype=jnp.int32) % S
ONE_HOT_BS = scenario.one_hot(SCENARIO_B, S)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def make(layer, *inputs, **options):
    shapes = jax.eval_shape(lambda key: layer.init(key, *inputs, **options), jax.random.key(0))
    return tiny_features.randomise(shapes)


def test_weights_are_products_and_biases_are_sums():
    layer = star_topology.StarLinear(S, (I,), O)
    x_BGI = draw(B, G, I)
    variables = make(layer, x_BGI, ONE_HOT_BS)
    params = variables["params"]
    got = layer.apply(variables, x_BGI, ONE_HOT_BS)
    for b in range(B):
        s = int(SCENARIO_B[b])
        bias = params["bias"] + params["scenario_bias"][s]
        expected = x_BGI[b] @ (params["kernel"] * params["scenario_kernel"][s]) + bias[None]
        np.testing.assert_allclose(got[b], expected, atol=1e-5)


def test_pieces_sum_to_the_product_of_the_normalised_whole():
    layer, norm = star_topology.StarLinear(S, (2, 3), O), star_topology.PartitionedNorm(S, I, 0.1)
    user_B1I, item_1GI = draw(B, 1, 2), draw(1, G, 3)
    whole_BGI = jnp.concatenate(
        [jnp.broadcast_to(user_B1I, (B, G, 2)), jnp.broadcast_to(item_1GI, (B, G, 3))], axis=-1
    )
    variables = make(layer, user_B1I, ONE_HOT_BS)
    of_norm = make(norm, whole_BGI, ONE_HOT_BS, train=False)
    gain_SI, shift_SI = norm.apply(of_norm, whole_BGI, ONE_HOT_BS, train=False)
    parts = [
        layer.apply(variables, part, ONE_HOT_BS, n, (gain_SI[:, cut], shift_SI[:, cut]))
        for n, (part, cut) in enumerate(((user_B1I, slice(0, 2)), (item_1GI, slice(2, 5))))
    ]
    normal_BGI = whole_BGI * gain_SI[SCENARIO_B][:, None] + shift_SI[SCENARIO_B][:, None]
    joint = star_topology.StarLinear(S, (I,), O).apply(variables, normal_BGI, ONE_HOT_BS)
    np.testing.assert_allclose(parts[0] + parts[1], joint, atol=1e-4)


def test_starts_as_the_shared_layer():
    params = star_topology.StarLinear(S, (I,), O).init(jax.random.key(0), draw(B, I), ONE_HOT_BS)[
        "params"
    ]
    np.testing.assert_array_equal(params["scenario_kernel"], np.ones((S, I, O)))
    np.testing.assert_array_equal(params["scenario_bias"], np.zeros((S, O)))
    assert np.std(params["kernel"]) > 0.1


def test_partitioned_norm_has_shared_and_own_gains_and_shifts():
    norm = star_topology.PartitionedNorm(S, I, 0.25)
    x_BGI = draw(B, G, I)
    variables = make(norm, x_BGI, ONE_HOT_BS, train=False)
    params, stats = (
        jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats")
    )
    running = norm.apply(variables, x_BGI, ONE_HOT_BS, train=False)
    batch, updated = norm.apply(variables, x_BGI, ONE_HOT_BS, train=True, mutable=["batch_stats"])
    before, running, batch = jax.tree.map(np.asarray, (stats["own"], running, batch))
    for s in range(S):
        rows = np.asarray(x_BGI)[np.asarray(SCENARIO_B) == s].reshape(-1, I)
        for (gain_SI, shift_SI), mean, var in (
            (running, before["mean"][s], before["var"][s]),
            (batch, rows.mean(axis=0), rows.var(axis=0)),
        ):
            normal = (rows - mean) / np.sqrt(var + 1e-5)
            expected = params["scale"] * params["own"]["scale"][s] * normal
            expected = expected + params["bias"] + params["own"]["bias"][s]
            np.testing.assert_allclose(rows * gain_SI[s] + shift_SI[s], expected, atol=1e-4)
        moved = 0.75 * before["mean"][s] + 0.25 * rows.mean(axis=0)
        np.testing.assert_allclose(updated["batch_stats"]["own"]["mean"][s], moved, atol=1e-5)
