import functools

import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.ranking import ple
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

SMALL = {
    "scenario_experts": 2, "shared_experts": 3, "expert_dims": (6, 5), "tower_dims": (4,),
    **cases.INPUTS,
}  # fmt: skip


@functools.cache
def make(**changes):
    return cases.make(ple.PLEConfig(**{**SMALL, **changes}))


def level(ref, n, inputs, streams, shared, s):
    """The experts' outputs of a level and its gates, from a linear map of each stream."""
    S, M, N = cases.S, 2, 3
    if n == 0:
        first = inputs @ ref.get("first/kernel") + ref.get("first/bias")
        hidden, gates, shared_gate = np.split(
            first, [(S * M + N) * 6, (S * M + N) * 6 + S * (M + N)], axis=-1
        )
    else:
        own = ref.experts(f"scenario_layers_{n - 1}", streams, S)
        hidden = np.concatenate([own, ref.dense(f"shared_layers_{n - 1}", shared)], axis=-1)
        gates = ref.experts(f"scenario_gates_{n - 1}", streams, S)
        last = n + 1 == ref.model.cfg.num_levels
        shared_gate = None if last else ref.dense(f"shared_gates_{n - 1}", shared)
    return ref.stack(f"experts_{n}", hidden, s, S * M + N, (6, 5)), gates, shared_gate


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_forward_is_that_of_levels_written_out(num_levels):
    model, variables = make(num_levels=num_levels)
    ref = reference.Reference(model, variables)
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        streams = shared = None
        for n in range(num_levels):
            output, gates, shared_gate = level(ref, n, joint[b], streams, shared, s)
            experts = output.reshape(cases.G, -1, 5)
            own = []
            for i in range(cases.S):
                chosen = np.concatenate([experts[:, 2 * i : 2 * i + 2], experts[:, 8:]], axis=1)
                weight = reference.softmax(gates[:, 5 * i : 5 * i + 5])
                own.append((chosen * weight[..., None]).sum(axis=1))
            streams = np.concatenate(own, axis=-1)
            if n + 1 < num_levels:
                weight = reference.softmax(shared_gate)
                shared = (experts * weight[..., None]).sum(axis=1)
        expected[b] += ref.tower("tower", own[s], s, (4,))
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_last_level_of_a_row_reads_no_expert_of_another_scenario():
    # Without normalisation, through which the rows of a batch depend on one another.
    model, variables = make(norm="none")
    weight_BG = jnp.broadcast_to((cases.SCENARIO_B == 1)[:, None], (cases.B, cases.G))
    found = cases.gradient(model, variables, weight_BG.astype(jnp.float32))
    of_scenario = np.abs(found["scenario_layers_0"]["kernel"]).max(axis=(1, 2))
    assert of_scenario[1] > 0 and (of_scenario[[0, 2, 3]] == 0).all()
    # The shared stream of the first level reads all experts.
    first = np.abs(found["first"]["kernel"][:, : 11 * 6]).reshape(-1, 11, 6).max(axis=(0, 2))
    assert (first > 0).all()


def test_number_of_parameters():
    model, variables = make(num_levels=2)
    S, M, N, K = 4, 2, 3, 11
    I = variables["params"]["first"]["kernel"].shape[0]  # noqa: E741
    first = (I + 1) * (K * 6 + S * (M + N) + K)
    experts = 2 * (K * (6 * 5 + 5) + 2 * S * K * (6 + 5))
    second = S * (5 + 1) * M * 6 + (5 + 1) * N * 6
    gates = S * (5 + 1) * (M + N)
    tower = S * ((5 + 1) * 4 + 2 * 4 + (4 + 1))
    expected = first + experts + second + gates + tower + cases.count_input(model, variables)
    assert cases.count(variables) == expected


def test_learns_tastes_that_differ_by_scenario():
    config = ple.PLEConfig(expert_dims=(16, 8), tower_dims=(8,), dropout=0.0)
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_levels": 0}, "teacher.model.num_levels: expected a number >= 1, got 0"),
        ({"shared_experts": 0}, "teacher.model.shared_experts: expected a number >= 1, got 0"),
        ({"expert_dims": ()}, "teacher.model.expert_dims: expected at least one width, got none"),
        ({"tower_dims": (0,)}, r"teacher.model.tower_dims: expected widths >= 1, got \(0,\)"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ple.PLEConfig(**changes).make(cases.SPEC)
