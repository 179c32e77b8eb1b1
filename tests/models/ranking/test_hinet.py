import functools

import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.ranking import hinet
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

K, T, S = 2, 3, cases.S
SMALL = {
    "sub_experts": K, "expert_dims": (6, 5), "task_experts": T, "task_dims": (4,),
    "tower_dims": (3,), **cases.INPUTS,
}  # fmt: skip


@functools.cache
def make(**changes):
    return cases.make(hinet.HiNetConfig(**{**SMALL, **changes}))


def test_forward_is_that_of_the_shared_own_and_attended_mixtures():
    model, variables = make()
    ref = reference.Reference(model, variables)
    attention = ref.get("embedder/scenario_table") @ ref.get("scenario_attention")
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        hidden, gate = np.split(
            joint[b] @ ref.get("first/kernel") + ref.get("first/bias"), [(S + 1) * K * 6], axis=-1
        )
        hidden = ref.stack("experts", hidden, s, (S + 1) * K, (6, 5))
        *own, shared = (
            reference.mix(h, reference.softmax(g))
            for h, g in zip(np.split(hidden, S + 1, -1), np.split(gate, S + 1, -1), strict=True)
        )
        others = [m for m in range(S) if m != s]
        weight = reference.softmax(attention[s, others])
        attended = sum(w * own[m] for w, m in zip(weight, others, strict=True))
        task = ref.dense("task_first", np.concatenate([shared, own[s], attended], axis=-1))
        hidden, gate = np.split(task, [T * 4], axis=-1)
        hidden = ref.stack("task_layer", hidden, s, T, (4,))
        mixed = ref.dense("tower_first", reference.mix(hidden, reference.softmax(gate)))
        expected[b] += ref.relu_stack("tower", mixed, 1, (3, 1))[:, 0]
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_attention_over_scenarios_leaves_the_own_out():
    model, variables = make()
    weight_SS = np.asarray(model.apply(variables, method="_attend_scenarios"))
    np.testing.assert_allclose(weight_SS.sum(axis=1), np.ones(S), atol=1e-6)
    np.testing.assert_array_equal(np.diag(weight_SS), np.zeros(S))
    assert (weight_SS[~np.eye(S, dtype=bool)] > 0).all()


def test_single_scenario_attends_to_nothing():
    spec = tiny_features.make_spec(scenarios=("A",))
    model = hinet.HiNetConfig(expert_dims=(4,), task_dims=(4,)).make(spec)
    scenario_B = tiny_features.make_scenarios(spec, cases.B)
    variables = tiny_features.make_variables(model, cases.USERS, cases.ITEMS, scenario_B)
    assert model.apply(variables, method="_attend_scenarios").tolist() == [[0.0]]
    logit_BG = cases.evaluate(model, variables, scenario_B=scenario_B)
    assert np.isfinite(logit_BG).all()


def test_number_of_parameters():
    model, variables = make()
    inputs, sub_experts = variables["params"]["first"]["kernel"].shape[0], (S + 1) * K
    scenario_layer = (inputs + 1) * sub_experts * (6 + 1) + sub_experts * (6 + 1) * 5
    scenario_layer += 2 * S * sub_experts * (6 + 5) + S * model.spec.embedding_dim
    task_layer = (3 * 5 + 1) * T * (4 + 1) + 2 * S * T * 4
    tower = (4 + 1) * 3 + (3 + 1)
    expected = scenario_layer + task_layer + tower + cases.count_input(model, variables)
    assert cases.count(variables) == expected


def test_learns_tastes_that_differ_by_scenario():
    config = hinet.HiNetConfig(
        expert_dims=(16, 8), task_dims=(8,), tower_dims=(8,), dropout=0.0
    )  # fmt: skip
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sub_experts": 0}, "teacher.model.sub_experts: expected a number >= 1, got 0"),
        ({"task_dims": ()}, "teacher.model.task_dims: expected at least one width, got none"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        hinet.HiNetConfig(**changes).make(cases.SPEC)
