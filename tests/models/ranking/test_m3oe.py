import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.ranking import m3oe
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

K, S = 3, cases.S
SMALL = {
    "star_dim": 6, "representation_dim": 5, "num_experts": K, "expert_dims": (4, 3),
    "tower_dims": (2,), **cases.INPUTS,
}  # fmt: skip


@functools.cache
def make(**changes):
    return cases.make(m3oe.M3oEConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("norm", ["ln", "dsbn", "none"])
def test_forward_is_that_of_shared_and_scenario_experts_in_proportion(norm):
    model, variables = make(norm=norm)
    ref = reference.Reference(model, variables)
    share, own = (reference.sigmoid(ref.get(f"{name}_logit")) for name in ("share", "own"))
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        star = ref.dense("star_layer", ref.star("first", joint[b], s))
        x = reference.relu(ref.norm("star_block/norm", star, s))
        x += reference.relu(ref.norm("skip_block/norm", ref.dense("skip_first", joint[b]), s))
        hidden = ref.stack("experts", ref.dense("expert_first", x), s, K + S, (4, 3))
        experts = hidden.reshape(cases.G, K + S, 3)
        gate = reference.softmax(ref.scenario("gate", x, s))
        mixed = (gate[..., None] * experts[:, :K]).sum(axis=1)
        of_scenarios = experts[:, K:]
        others = (of_scenarios.sum(axis=1) - of_scenarios[:, s]) / (S - 1)
        mixed += share * (own * of_scenarios[:, s] + (1 - own) * others)
        expected[b] += ref.tower("tower", mixed, s, (2,))
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_gate_sends_no_gradient_back():
    model, variables = make(norm="none", dropout=0.0)
    params = dict(variables["params"])
    # Experts that differ but are constants: the input moves the logit through the gate alone.
    for name in ("expert_first", "experts"):
        params[name] = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * 0 if path[-1].key == "kernel" else jnp.abs(leaf), params[name]
        )
    found = cases.gradient(model, {**variables, "params": params}, jnp.ones((cases.B, cases.G)))
    assert float(jnp.abs(found["gate"]["kernel"]).max()) > 0
    for name in ("first", "skip_first", "star_layer"):
        for leaf in jax.tree.leaves(found[name]):
            np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))


def test_starts_from_halves_and_from_the_shared_star_layer():
    model, _ = make()
    params = cases.initialise(model)["params"]
    assert params["share_logit"].tolist() == [0.0] and params["own_logit"].tolist() == [0.0]
    first = params["first"]
    np.testing.assert_array_equal(first["scenario_kernel"], np.ones((S, *first["kernel"].shape)))


def test_single_scenario_has_no_others():
    spec = tiny_features.make_spec(scenarios=("A",))
    model = m3oe.M3oEConfig(star_dim=4, representation_dim=4, expert_dims=(4,)).make(spec)
    scenario_B = tiny_features.make_scenarios(spec, cases.B)
    variables = tiny_features.make_variables(model, cases.USERS, cases.ITEMS, scenario_B)
    assert np.isfinite(cases.evaluate(model, variables, scenario_B=scenario_B)).all()


def test_number_of_parameters():
    model, variables = make()
    inputs = variables["params"]["first"]["kernel"].shape[0]
    star, skip = (S + 1) * (inputs + 1) * 6, (inputs + 1) * 5
    representation = (6 + 1) * 5 + 2 * 2 * 5
    experts = (5 + 1) * (K + S) * 4 + (K + S) * (4 + 1) * 3 + 2 * (K + S) * (4 + 3)
    gate, tower = S * (5 + 1) * K, S * ((3 + 1) * 2 + (2 + 1)) + 2 * 2
    expected = star + skip + representation + experts + gate + 2 + tower
    assert cases.count(variables) == expected + cases.count_input(model, variables)


def test_learns_tastes_that_differ_by_scenario():
    config = m3oe.M3oEConfig(
        star_dim=16, representation_dim=8, num_experts=2, expert_dims=(8,), tower_dims=(8,),
        dropout=0.0,
    )  # fmt: skip
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"star_dim": 0}, "teacher.model.star_dim: expected a number >= 1, got 0"),
        ({"norm": "rms"}, r"teacher.model.norm: expected one of .*'ln'\), got 'rms'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        m3oe.M3oEConfig(**changes).make(cases.SPEC)
