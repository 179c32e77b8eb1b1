"""Counts of multiplications against counts by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.compare import axes, macs
from dsmoe_jax.nn import mlp, scenario

B, S, F, H = 5, 4, 6, 3


def zeros(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


SCENARIO = zeros(B, dtype=jnp.int32)


def test_products_are_counted_through_calls_and_activations():
    def tower(x, w, v):
        return jax.jit(nn.relu)(x @ w) @ v + jax.checkpoint(jnp.sin)(x @ w) @ v

    # A product that is made twice is counted twice.
    expected = 2 * B * F * H + 2 * B * H * 2
    assert macs.count_macs(tower, zeros(B, F), zeros(F, H), zeros(H, 2)) == expected


def test_what_nobody_reads_is_not_counted():
    def tower(x, w):
        unread = x @ w
        return x.sum(), unread.shape

    assert macs.count_macs(lambda x, w: tower(x, w)[0], zeros(B, F), zeros(F, H)) == 0


def test_only_the_own_branch_of_a_layer_per_scenario_is_counted():
    layer = mlp.ScenarioLinear(S, F, H)

    def run(variables, x, scenario_B):
        return layer.apply(variables, x, scenario.one_hot(scenario_B, S))

    shapes = jax.eval_shape(
        lambda key: layer.init(key, jnp.zeros((B, F)), jnp.zeros((B, S))), jax.random.key(0)
    )
    assert macs.count_macs(run, shapes, zeros(B, F), SCENARIO) == B * F * H
    # With candidates between.
    assert macs.count_macs(run, shapes, zeros(B, 7, F), SCENARIO) == 7 * B * F * H


def test_branches_of_several_layers_are_followed_to_the_first():
    def tower(x, w, v, scenario_B):
        hidden_BSO = nn.relu(jnp.einsum("bi,sio->bso", x, w))
        out_BSP = jnp.einsum("bso,sop->bsp", hidden_BSO, v)
        return jnp.einsum("bsp,bs->bp", out_BSP, scenario.one_hot(scenario_B, S))

    counted = macs.count_macs(tower, zeros(B, F), zeros(S, F, H), zeros(S, H, 2), SCENARIO)
    assert counted == B * (F * H + H * 2)


def test_a_branch_that_another_scenario_reads_too_is_counted_as_a_whole():
    def tower(x, w, scenario_B):
        every_BSO = jnp.einsum("bi,sio->bso", x, w)
        own_BO = jnp.einsum("bso,bs->bo", every_BSO, scenario.one_hot(scenario_B, S))
        return own_BO + every_BSO.mean(axis=1)

    assert macs.count_macs(tower, zeros(B, F), zeros(S, F, H), SCENARIO) == S * B * F * H


def test_a_comparison_with_a_count_is_one_hot():
    def tower(x, w, scenario_B):
        own_BS = scenario_B[:, None] == jnp.arange(S)[None]
        every_BSH = jnp.einsum("bi,sio->bso", x, w)
        return jnp.where(own_BS[..., None], every_BSH, 0.0).sum(axis=1)

    assert macs.count_macs(tower, zeros(B, F), zeros(S, F, H), SCENARIO) == B * F * H


def test_what_is_not_known_to_be_one_hot_is_counted_as_a_whole():
    def tower(x, w, scenario_B):
        most_BS = scenario_B[:, None] >= jnp.arange(S)[None]
        return (jnp.einsum("bi,sio->bso", x, w) * most_BS[..., None]).sum(axis=1)

    assert macs.count_macs(tower, zeros(B, F), zeros(S, F, H), SCENARIO) == S * B * F * H


def test_a_lookup_is_no_multiplication_and_needs_the_whole_table():
    def tower(scenario_SC, w, scenario_B):
        return scenario.pick(scenario_SC @ w, scenario.one_hot(scenario_B, S))

    # All examples share the table, which is made once.
    assert macs.count_macs(tower, zeros(S, F), zeros(F, H), SCENARIO) == S * F * H


def test_a_loop_is_counted_as_often_as_it_runs():
    def tower(x, w, scenario_B):
        def body(carry, _):
            branches = jnp.einsum("bi,sij->bsj", carry, w)
            return jnp.einsum("bsj,bs->bj", branches, scenario.one_hot(scenario_B, S)), None

        return jax.lax.scan(body, x, length=7)[0]

    assert macs.count_macs(tower, zeros(B, F), zeros(S, F, F), SCENARIO) == 7 * B * F * F


def test_a_loop_of_unknown_length_is_refused():
    def tower(x):
        return jax.lax.while_loop(lambda y: y.sum() > 0, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="expected none of 'while'"):
        macs.count_macs(tower, zeros(F, F))


def test_the_count_is_the_compilers_without_scenarios():
    def tower(x, w, v):
        return (x @ w) @ v

    inputs = zeros(64, 32), zeros(32, 16), zeros(16, 8)
    compiled = jax.jit(tower).lower(*inputs).compile()
    flops = compiled.cost_analysis()["flops"]
    assert flops == 2 * macs.count_macs(tower, *inputs)


@pytest.mark.parametrize(
    ("shape", "new", "groups"),
    [
        ((5, 12), (5, 4, 3), [((0,), (0,)), ((1,), (1, 2))]),
        ((5, 4), (5, 1, 4, 1), [((0,), (0,)), ((1,), (2,))]),
        ((2, 3, 4), (6, 4), [((0, 1), (0,)), ((2,), (1,))]),
        ((6, 4), (4, 6), [((0, 1), (0, 1))]),
        ((1, 1), (), []),
    ],
)
def test_reshaped_axes_are_grouped(shape, new, groups):
    assert axes.group_axes(shape, new) == groups
    np.zeros(shape).reshape(new)
