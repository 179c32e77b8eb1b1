import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.matching import sass
from dsmoe_jax.nn import scenario

B, G, S, C, IN, D = 9, 2, 3, 4, 5, 3
RNG = np.random.default_rng(0)
X_BGI = jnp.asarray(RNG.normal(size=(B, G, IN)), jnp.float32)
SCENARIO_SC = jnp.asarray(RNG.normal(size=(S, C)), jnp.float32)
SCENARIO_B = jnp.arange(B, dtype=jnp.int32) % S
ONE_HOT_BS = scenario.one_hot(SCENARIO_B, S)


@functools.cache
def make(norm="bn", hidden_dims=(6, 4)):
    spec = tiny_features.make_spec(scenarios=("A", "B", "C"), embedding_dim=C)
    cfg = sass.SASSConfig(hidden_dims=hidden_dims, output_dim=D, bias_dim=7, norm=norm)
    tower = sass.AdaptiveTower(IN, spec, cfg)
    init = functools.partial(tower.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), X_BGI, SCENARIO_SC, ONE_HOT_BS)
    return tower, tiny_features.randomise(shapes)


def run(tower, variables, x=X_BGI, one_hot_BS=ONE_HOT_BS):
    return tower.apply(variables, x, SCENARIO_SC, one_hot_BS, train=False)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive(variables, x, s, layers, norm):
    """One row through the equations of the docstring, in NumPy."""
    params = jax.tree.map(np.asarray, variables["params"])
    stats = jax.tree.map(np.asarray, variables.get("batch_stats", {}))
    e_s = np.asarray(SCENARIO_SC)[s]

    def block(name, value):
        if norm != "none":
            row = s if norm == "dsbn" else 0
            affine, moments = params[name]["norm"], stats[name]["norm"]
            value = (value - moments["mean"][row]) / np.sqrt(moments["var"][row] + 1e-5)
            value = affine["scale"][row] * value + affine["bias"][row]
        return np.maximum(value, 0)

    g = own = x
    for n in range(layers):
        g = block(f"global_blocks_{n}", dense(params[f"global_layers_{n}"], g))
        special = jax.tree.map(lambda leaf: leaf[s], params[f"scenario_layers_{n}"])
        q = block(f"scenario_blocks_{n}", dense(special, own))
        gate = sigmoid(dense(params[f"gates_{n}"], np.concatenate([g, q, e_s])))
        r, z = gate[: len(g)], gate[len(g) :]
        c = np.tanh(dense(params[f"transfers_{n}"], np.concatenate([r * g, q])))
        own = (1 - z) * q + z * c
    bias = dense(params["bias_output"], np.maximum(dense(params["bias_hidden"], e_s), 0))
    return dense(params["output"], own) + bias


@pytest.mark.parametrize("norm", ["bn", "dsbn", "none"])
@pytest.mark.parametrize("hidden_dims", [(6,), (6, 4), (5, 6, 4)])
def test_tower_is_its_equations(norm, hidden_dims):
    tower, variables = make(norm, hidden_dims)
    got_BGD = run(tower, variables)
    for b in range(B):
        for g in range(G):
            x = np.asarray(X_BGI)[b, g]
            expected = naive(variables, x, int(SCENARIO_B[b]), len(hidden_dims), norm)
            np.testing.assert_allclose(got_BGD[b, g], expected, rtol=1e-4, atol=1e-5)


def test_no_update_leaves_the_scenario_path_alone():
    """With z = 0 the global path has no say; with z = 1 it has."""
    tower, variables = make()
    params = variables["params"]

    def force(update, global_scale):
        changed = dict(params)
        for n, width in enumerate((6, 4)):
            gate = params[f"gates_{n}"]
            bias = jnp.concatenate([gate["bias"][:width], jnp.full(width, update, jnp.float32)])
            kernel = gate["kernel"].at[:, width:].set(0)
            changed[f"gates_{n}"] = {"kernel": kernel, "bias": bias}
        first = params["global_layers_0"]
        changed["global_layers_0"] = jax.tree.map(lambda leaf: global_scale * leaf, first)
        return run(tower, {**variables, "params": changed})

    np.testing.assert_array_equal(force(-200.0, 1.0), force(-200.0, 3.0))
    assert np.abs(force(200.0, 1.0) - force(200.0, 3.0)).max() > 1e-2


def test_a_scenario_trains_no_other_scenarios_layers():
    tower, variables = make("none")

    def loss(params):
        return run(tower, {"params": params}, one_hot_BS=jnp.eye(S)[jnp.ones(B, jnp.int32)]).sum()

    gradient = jax.grad(loss)(variables["params"])
    for n in range(2):
        for leaf in gradient[f"scenario_layers_{n}"].values():
            assert not np.asarray(leaf)[[0, 2]].any() and np.abs(leaf[1]).max() > 0
