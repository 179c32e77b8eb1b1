import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import dsbn, scenario

S, F = 4, 5


def make(kind="dsbn", num_scenarios=S, momentum=0.1):
    layer = dsbn.ScenarioNorm(kind, num_scenarios, F, momentum)
    rng = np.random.default_rng(3)
    rows = num_scenarios if kind == "dsbn" else 1

    def random(low):
        return jnp.asarray(rng.uniform(low, 2, (rows, F)), jnp.float32)

    return layer, {
        "params": {"scale": random(0.5), "bias": random(-2)},
        "batch_stats": {"mean": random(-2), "var": random(0.5)},
    }


def rows_of(*scenarios, seed=0):
    rng = np.random.default_rng(seed)
    x_BF = rng.normal(size=(len(scenarios), F)) * 3 + 7
    return jnp.asarray(x_BF, jnp.float32), scenario.one_hot(jnp.asarray(scenarios, jnp.int32), S)


def run(layer, variables, x, one_hot_BS):
    y, updated = layer.apply(variables, x, one_hot_BS, train=True, mutable=["batch_stats"])
    return np.asarray(y), updated["batch_stats"]


def loop(variables, x, scenarios, momentum):
    """Four torch-style BatchNorm layers, each on the rows of its scenario, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    x, scenarios = np.asarray(x, np.float64), np.asarray(scenarios)
    y, mean_SF, var_SF = np.empty_like(x), p["batch_stats"]["mean"], p["batch_stats"]["var"]
    for s in range(S):
        rows = x[scenarios == s]
        mean, var = mean_SF[s], var_SF[s]
        if len(rows) >= 2:
            mean, var = rows.mean(axis=0), rows.var(axis=0)
        normal = (rows - mean) / np.sqrt(var + 1e-5)
        y[scenarios == s] = normal * p["params"]["scale"][s] + p["params"]["bias"][s]
        if len(rows) >= 2:
            mean_SF[s] = (1 - momentum) * mean_SF[s] + momentum * mean
            var_SF[s] = (1 - momentum) * var_SF[s] + momentum * rows.var(axis=0, ddof=1)
    return y, mean_SF, var_SF


@pytest.mark.parametrize("momentum", [0.1, 1.0])
def test_training_equals_a_loop_over_scenarios(momentum):
    scenarios = [0, 1, 0, 2, 1, 0, 0, 1]  # one row of scenario 2, none of scenario 3
    x_BF, one_hot_BS = rows_of(*scenarios)
    layer, variables = make(momentum=momentum)
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    expected, mean_SF, var_SF = loop(variables, x_BF, scenarios, momentum)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(stats["mean"], mean_SF, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var_SF, rtol=1e-5)


def test_literal_values():
    layer = dsbn.ScenarioNorm("dsbn", 1, 1, 0.1)
    x_BF, one_hot_BS = jnp.array([[1.0], [3.0]], jnp.float32), jnp.ones((2, 1), jnp.float32)
    variables = layer.init(jax.random.key(0), x_BF, one_hot_BS, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [[0.0]])
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    np.testing.assert_allclose(y, [[-1.0], [1.0]], atol=1e-5)
    np.testing.assert_allclose(stats["mean"], [[0.2]], rtol=1e-6)  # 0.9 * 0 + 0.1 * 2
    np.testing.assert_allclose(stats["var"], [[1.1]], rtol=1e-6)  # 0.9 * 1 + 0.1 * 2


def test_each_scenario_has_mean_0_and_variance_1_before_its_affine_map():
    scenarios = [0] * 6 + [1] * 5 + [2] * 2 + [3] * 9
    x_BF, one_hot_BS = rows_of(*scenarios)
    layer, variables = make()
    params = {"scale": jnp.ones((S, F), jnp.float32), "bias": jnp.zeros((S, F), jnp.float32)}
    y, _ = run(layer, {**variables, "params": params}, x_BF, one_hot_BS)
    for s in range(S):
        rows = y[np.asarray(scenarios) == s]
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.var(axis=0), 1, atol=1e-4)


def test_permuting_rows_permutes_outputs():
    x_BF, one_hot_BS = rows_of(0, 1, 0, 2, 1, 0, 3, 3)
    order = np.random.default_rng(1).permutation(8)
    layer, variables = make()
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    permuted, permuted_stats = run(layer, variables, x_BF[order], one_hot_BS[order])
    np.testing.assert_allclose(permuted, y[order], atol=1e-5)
    np.testing.assert_allclose(permuted_stats["mean"], stats["mean"], rtol=1e-5)


def test_rows_of_one_scenario_never_change_rows_of_another():
    scenarios = np.array([0, 1, 0, 2, 1, 0, 2, 1])
    x_BF, one_hot_BS = rows_of(*scenarios)
    layer, variables = make()
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    other_BF = jnp.where(jnp.asarray(scenarios == 1)[:, None], x_BF * 5 - 3, x_BF)
    changed, changed_stats = run(layer, variables, other_BF, one_hot_BS)
    np.testing.assert_array_equal(changed[scenarios != 1], y[scenarios != 1])
    np.testing.assert_array_equal(changed_stats["mean"][0], stats["mean"][0])
    assert np.abs(changed_stats["mean"][1] - stats["mean"][1]).min() > 0

    def others(x_BF):
        y, _ = layer.apply(variables, x_BF, one_hot_BS, train=True, mutable=["batch_stats"])
        return jnp.square(y)[scenarios != 1].sum()

    np.testing.assert_array_equal(jax.grad(others)(x_BF)[scenarios == 1], np.zeros((3, F)))


def test_absent_scenario_keeps_its_statistics():
    x_BF, one_hot_BS = rows_of(0, 0, 1)
    layer, variables = make()
    _, stats = run(layer, variables, x_BF, one_hot_BS)
    for name in ("mean", "var"):
        np.testing.assert_array_equal(stats[name][1:], variables["batch_stats"][name][1:])


def test_single_row_is_normalised_with_running_statistics():
    x_BF, one_hot_BS = rows_of(0, 0, 0, 2)
    layer, variables = make()
    trained, _ = run(layer, variables, x_BF, one_hot_BS)
    evaluated = layer.apply(variables, x_BF, one_hot_BS, train=False)
    np.testing.assert_allclose(trained[3], evaluated[3], atol=1e-5)


def test_evaluation_ignores_the_batch():
    x_BF, one_hot_BS = rows_of(0, 1, 2, 3, 0)
    layer, variables = make()
    whole = layer.apply(variables, x_BF, one_hot_BS, train=False)
    alone = layer.apply(variables, x_BF[:1], one_hot_BS[:1], train=False)
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-6)
    p = jax.tree.map(np.asarray, variables)
    normal = (np.asarray(x_BF)[:4] - p["batch_stats"]["mean"]) / np.sqrt(
        p["batch_stats"]["var"] + 1e-5
    )
    expected = normal * p["params"]["scale"] + p["params"]["bias"]
    np.testing.assert_allclose(whole[:4], expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["dsbn", "bn"])
def test_one_scenario_equals_flax_batch_norm(kind):
    x_BF, _ = rows_of(*[0] * 12)
    one_hot_BS = jnp.ones((12, 1), jnp.float32)
    layer, variables = make(kind, num_scenarios=1)
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    flat = jax.tree.map(lambda leaf: leaf[0], variables)
    flax_norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_running_average=False)
    expected, updated = flax_norm.apply(flat, x_BF, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(stats["mean"][0], updated["batch_stats"]["mean"], rtol=1e-5)


def test_bn_shares_one_set_of_statistics():
    x_BF, one_hot_BS = rows_of(0, 1, 2, 3, 0, 0)
    layer, variables = make("bn")
    assert variables["params"]["scale"].shape == (1, F)
    y, stats = run(layer, variables, x_BF, one_hot_BS)
    again, _ = run(layer, variables, x_BF, one_hot_BS[::-1])
    np.testing.assert_array_equal(y, again)
    assert stats["mean"].shape == (1, F)


def test_none_returns_its_input():
    x_BF, one_hot_BS = rows_of(0, 1)
    layer = dsbn.ScenarioNorm("none", S, F)
    variables = layer.init(jax.random.key(0), x_BF, one_hot_BS, train=True)
    assert variables == {}
    np.testing.assert_array_equal(layer.apply(variables, x_BF, one_hot_BS, train=True), x_BF)


def test_candidates_share_the_scenario_of_their_example():
    scenarios = [0, 1, 0, 2]
    _, one_hot_BS = rows_of(*scenarios)
    x_BGF = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3, F)), jnp.float32)
    layer, variables = make()
    y, stats = run(layer, variables, x_BGF, one_hot_BS)
    flat, flat_stats = run(
        layer, variables, x_BGF.reshape(12, F), jnp.repeat(one_hot_BS, 3, axis=0)
    )
    np.testing.assert_allclose(y.reshape(12, F), flat, atol=1e-5)
    np.testing.assert_allclose(stats["var"], flat_stats["var"], rtol=1e-5)


def test_gradient_equals_that_of_the_textbook_formula():
    scenarios = [0, 1, 0, 2, 1, 0, 3, 3, 1, 3, 0, 3]
    x_BF, one_hot_BS = rows_of(*scenarios)
    x_BF = x_BF - 7
    weight_BF = jnp.asarray(np.random.default_rng(5).normal(size=x_BF.shape), jnp.float32)
    layer, variables = make()

    def ours(params, x_BF):
        y, _ = layer.apply(
            {**variables, "params": params},
            x_BF,
            one_hot_BS,
            train=True,
            mutable=["batch_stats"],
        )
        return (weight_BF * y).sum()

    def textbook(params, x_BF):
        total = 0.0
        for s in range(S):
            rows = np.flatnonzero(np.asarray(scenarios) == s)
            mean, var = x_BF[rows].mean(axis=0), x_BF[rows].var(axis=0)
            if len(rows) < 2:
                mean, var = (variables["batch_stats"][name][s] for name in ("mean", "var"))
            y = (x_BF[rows] - mean[None]) / jnp.sqrt(var + 1e-5)[None]
            y = y * params["scale"][s][None] + params["bias"][s][None]
            total += (weight_BF[rows] * y).sum()
        return total

    got = jax.jit(jax.grad(ours, argnums=(0, 1)))(variables["params"], x_BF)
    expected = jax.jit(jax.grad(textbook, argnums=(0, 1)))(variables["params"], x_BF)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), got, expected)


def test_unknown_kind_is_refused():
    layer = dsbn.ScenarioNorm("layer", S, F)
    with pytest.raises(ValueError, match=r"norm: expected one of .* got 'layer'"):
        layer.init(jax.random.key(0), *rows_of(0, 1), train=False)
