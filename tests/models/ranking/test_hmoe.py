import functools

import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.ranking import hmoe
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

K, S = 3, cases.S
SMALL = {
    "num_experts": K, "expert_dims": (6, 5), "gate_dims": (4,), "tower_dims": (3,),
    "weight_dims": (7,), **cases.INPUTS,
}  # fmt: skip


@functools.cache
def make(**changes):
    return cases.make(hmoe.HMoEConfig(**{**SMALL, **changes}))


def gradient_of_scenario(s, **changes):
    """The gradient of one scenario's loss."""
    model, variables = make(norm="bn", dropout=0.0, **changes)
    weight_BG = jnp.broadcast_to((s == cases.SCENARIO_B)[:, None], (cases.B, cases.G))
    return cases.gradient(model, variables, weight_BG.astype(jnp.float32))


@pytest.mark.parametrize("hidden", [True, False])
def test_forward_is_that_of_scores_weighed_by_the_own_scenario(hidden):
    dims = {} if hidden else {"gate_dims": (), "tower_dims": (), "weight_dims": ()}
    model, variables = make(**dims)
    gate_dims, tower_dims, weight_dims = ((4, K), (3, 1), (7, S)) if hidden else ((K,), (1,), (S,))
    ref = reference.Reference(model, variables)
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        experts, gates, weights = np.split(
            joint[b] @ ref.get("first/kernel") + ref.get("first/bias"),
            [K * 6, K * 6 + S * gate_dims[0]],
            axis=-1,
        )
        experts = ref.stack("experts", experts, s, K, (6, 5))
        gates = np.split(ref.relu_stack("gates", gates, S, gate_dims), S, axis=-1)
        mixed = [reference.mix(experts, reference.softmax(gate)) for gate in gates]
        score = ref.experts("tower_first", np.concatenate(mixed, axis=-1), S)
        score = ref.relu_stack("towers", score, S, tower_dims)
        weight = np.split(ref.relu_stack("weights", weights, S, weight_dims), S, axis=-1)[s]
        expected[b] += (reference.softmax(weight) * score).sum(axis=-1)
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_loss_of_a_scenario_leaves_towers_of_others_alone():
    for s in range(S):
        found = gradient_of_scenario(s)
        others = [j for j in range(S) if j != s]
        for layer in (found["tower_first"], found["towers"]["ExpertLinear_0"]):
            for leaf in (layer["kernel"], layer["bias"].reshape(S, -1)):
                of_tower = np.abs(leaf).reshape(S, -1).max(axis=1)
                assert of_tower[s] > 0 and (of_tower[others] == 0).all()
        gate = np.abs(found["gates"]["ExpertLinear_0"]["kernel"]).max(axis=(1, 2))
        assert gate[s] > 0 and (gate[others] == 0).all()


def test_loss_of_a_scenario_trains_its_weight_of_every_tower():
    kernel_SIO = gradient_of_scenario(2)["weights"]["ExpertLinear_0"]["kernel"]
    assert (np.abs(kernel_SIO[2]).max(axis=0) > 0).all()
    assert (np.asarray(kernel_SIO)[[0, 1, 3]] == 0).all()


def test_scores_of_other_towers_are_used():
    model, variables = make(norm="bn")
    params = variables["params"]
    tower = params["towers"]["ExpertLinear_0"]
    moved = {**tower, "bias": tower["bias"].at[3].add(1.0)}
    params = {**params, "towers": {"ExpertLinear_0": moved}}
    changed = cases.evaluate(model, {**variables, "params": params})
    assert (np.abs(changed - cases.evaluate(model, variables)) > 1e-4).all()


def test_number_of_parameters():
    model, variables = make()
    first = (variables["params"]["first"]["kernel"].shape[0] + 1) * (K * 6 + S * (4 + 7))
    experts = K * (6 + 1) * 5 + 2 * S * K * (6 + 5)
    gates, weights = S * (4 + 1) * K, S * (7 + 1) * S
    towers = S * ((5 + 1) * 3 + (3 + 1))
    expected = first + experts + gates + weights + towers
    assert cases.count(variables) == expected + cases.count_input(model, variables)


def test_learns_tastes_that_differ_by_scenario():
    config = hmoe.HMoEConfig(
        num_experts=2, expert_dims=(16, 8), gate_dims=(), tower_dims=(8,), weight_dims=(),
        dropout=0.0,
    )  # fmt: skip
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "teacher.model.num_experts: expected a number >= 1, got 0"),
        ({"gate_dims": (0,)}, r"teacher.model.gate_dims: expected widths >= 1, got \(0,\)"),
        ({"norm": "ln"}, r"teacher.model.norm: expected one of .*, got 'ln'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hmoe.HMoEConfig(**changes).make(cases.SPEC)
