import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.nn import mixture, scenario

B, S, C, K, R, WIDTH, HIDDEN, OUT = 10, 3, 4, 3, 2, 6, 5, 4
RNG = np.random.default_rng(0)
X_BI = jnp.asarray(RNG.normal(size=(B, WIDTH)), jnp.float32)
SCENARIO_SC = jnp.asarray(RNG.normal(size=(S, C)), jnp.float32)
SCENARIO_B = jnp.arange(B, dtype=jnp.int32) % S
ONE_HOT_BS = scenario.one_hot(SCENARIO_B, S)


@functools.cache
def make(**changes):
    tower = mixture.ScenarioMixture(
        **{
            "in_dim": WIDTH, "hidden_dim": HIDDEN, "output_dim": OUT, "scenario_dim": C,
            "num_scenarios": S, "num_experts": K, "rank": R, **changes,
        }
    )  # fmt: skip
    init = functools.partial(tower.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), (X_BI,), SCENARIO_SC, ONE_HOT_BS)
    return tower, tiny_features.randomise(shapes)


def sap_loop(params, x_I, e_C, experts):
    """Outputs [K, O] of a SAP layer for one row, each expert's matrix built as printed."""
    b_KR = (e_C @ params["coef_kernel"] + params["coef_bias"]).reshape(experts, R)
    width = x_I.shape[-1]
    shared = params["shared"].reshape(width, experts, -1)
    down = params["down"].reshape(width, experts, R)
    bias = params["bias"].reshape(experts, -1)
    matrices = [
        shared[:, k] + down[:, k] @ np.diag(b_KR[k]) @ params["up"][k] for k in range(experts)
    ]
    x_KI = x_I if x_I.ndim == 2 else np.broadcast_to(x_I, (experts, width))
    return np.stack([x_KI[k] @ matrices[k] + bias[k] for k in range(experts)])


def tower_loop(variables):
    """The tower row by row in NumPy, at inference."""
    p = jax.tree.map(np.asarray, variables["params"])
    stats = jax.tree.map(np.asarray, variables["batch_stats"])["norms"]
    rows = []
    for b in range(B):
        s, e_C = b % S, np.asarray(SCENARIO_SC)[b % S]
        h_KH = sap_loop(p["experts"], np.asarray(X_BI)[b], e_C, K)
        h_KH = np.where(h_KH >= 0, h_KH, p["prelu_slope"][:, None] * h_KH)
        mean, var, scale, bias = (
            table[s].reshape(K, HIDDEN)
            for table in (stats["mean"], stats["var"], p["norms"]["scale"], p["norms"]["bias"])
        )
        h_KH = (h_KH - mean) / np.sqrt(var + 1e-5) * scale + bias
        gate_K = np.exp(e_C @ p["gate_kernel"] + p["gate_bias"])
        mixed_H = (gate_K / gate_K.sum()) @ h_KH
        rows.append(sap_loop(p["forward"], mixed_H, e_C, 1)[0])
    return np.stack(rows)


def test_tower_equals_the_equations_row_by_row():
    tower, variables = make()
    got_BD = tower.apply(variables, (X_BI,), SCENARIO_SC, ONE_HOT_BS, train=False)
    np.testing.assert_allclose(got_BD, tower_loop(variables), rtol=1e-4, atol=1e-4)


def test_gate_rows_sum_to_one_and_follow_the_scenario_alone():
    tower, variables = make()
    gate_SK = tower.apply(variables, SCENARIO_SC, method="gate_weights")
    params = variables["params"]
    logit_SK = SCENARIO_SC @ params["gate_kernel"] + params["gate_bias"][None]
    np.testing.assert_allclose(gate_SK, jax.nn.softmax(logit_SK), rtol=1e-5)
    np.testing.assert_allclose(gate_SK.sum(axis=1), 1, rtol=1e-6)


def test_gate_that_reads_features_differs_within_a_scenario():
    tower, variables = make(gate_input="scenario_and_features")
    gate_BK = tower.apply(variables, (X_BI,), SCENARIO_SC, ONE_HOT_BS, 2, method="_feature_gate")
    np.testing.assert_allclose(gate_BK.sum(axis=1), 1, rtol=1e-6)
    assert np.abs(gate_BK[0] - gate_BK[S]).max() > 1e-2
    joint = jnp.concatenate([SCENARIO_SC[SCENARIO_B], X_BI], axis=1)
    params = variables["params"]
    expected = jax.nn.softmax(joint @ params["gate_kernel"] + params["gate_bias"][None])
    np.testing.assert_allclose(gate_BK, expected, rtol=1e-4, atol=1e-6)


def test_without_sap_the_coefficients_are_none():
    tower, variables = make(use_sap=False)
    assert tower.apply(variables, SCENARIO_SC, method="coefficients") == {}
    assert set(variables["params"]["experts"]) == {"shared", "bias"}
    assert set(variables["params"]["forward"]) == {"shared", "bias"}


@pytest.mark.parametrize("train", [False, True])
def test_input_with_candidates_equals_flat_rows(train):
    tower, variables = make()
    x_BGI = jnp.asarray(RNG.normal(size=(B, 4, WIDTH)), jnp.float32)
    run = functools.partial(tower.apply, variables, train=train, mutable=["batch_stats"])
    got, stats = run((x_BGI,), SCENARIO_SC, ONE_HOT_BS)
    flat, flat_stats = run(
        (x_BGI.reshape(B * 4, WIDTH),), SCENARIO_SC, jnp.repeat(ONE_HOT_BS, 4, axis=0)
    )
    np.testing.assert_allclose(got.reshape(B * 4, OUT), flat, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, flat_stats)
