import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.ranking import din
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

SMALL = {"hidden_dims": (6, 5), **cases.INPUTS}


@functools.cache
def make(**changes):
    return cases.make(din.DINConfig(**{**SMALL, **changes}))


@pytest.mark.parametrize("activation", din.ACTIVATIONS)
@pytest.mark.parametrize("norm", ["bn", "dsbn", "none"])
def test_forward_is_that_of_a_perceptron(activation, norm):
    model, variables = make(activation=activation, norm=norm)
    ref = reference.Reference(model, variables)
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        x = ref.dense("first", joint[b])
        for n in range(2):
            normal = ref.norm(f"activations_{n}/norm", x, s)
            slope = ref.get(f"activations_{n}/slope")
            if activation == "dice":
                share = reference.sigmoid(normal)
                x = share * x + (1 - share) * slope * x
            else:
                x = np.maximum(normal, 0) + slope * np.minimum(normal, 0)
            x = ref.dense(f"layers_{n}", x)
        expected[b] += x[:, 0]
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_scenario_is_a_feature_alone():
    model, variables = make(use_log_prior=False)
    params = dict(variables["params"])
    table = params["embedder"]["scenario_table"]
    params["embedder"] = {**params["embedder"], "scenario_table": jnp.ones_like(table)}
    same = {**variables, "params": params}
    other_B = (cases.SCENARIO_B + 1) % cases.S
    np.testing.assert_allclose(
        cases.evaluate(model, same, scenario_B=other_B), cases.evaluate(model, same), atol=1e-5
    )
    moved = cases.evaluate(model, variables, scenario_B=other_B)
    assert np.abs(moved - cases.evaluate(model, variables)).max() > 1e-3


def test_without_sequences_to_attend_to_there_is_no_attention():
    model, variables = make(attention_sequences=())
    assert not any(name.startswith("attention") for name in variables["params"])
    assert np.isfinite(cases.evaluate(model, variables)).all()


def test_attention_sees_whether_the_candidate_is_in_the_history():
    """The candidate's own event moves the attended history towards it."""
    model, variables = make(attention_sequences=("history",))
    ids_BLF = cases.USERS.sequences["history"].ids_BLF
    swapped = ids_BLF.at[:, 0, 0].set(jnp.where(ids_BLF[:, 0, 0] > 0, 7, 0))
    sequences = {**cases.USERS.sequences}
    sequences["history"] = sequences["history"]._replace(ids_BLF=swapped)
    moved = cases.evaluate(model, variables, users=cases.USERS._replace(sequences=sequences))
    is_same = np.asarray((swapped == ids_BLF).all(axis=(1, 2)))
    difference = np.abs(moved - cases.evaluate(model, variables)).max(axis=1)
    assert (difference[is_same] < 1e-5).all() and (difference[~is_same] > 1e-5).all()


def test_dice_starts_as_a_smooth_relu():
    model, _ = make()
    params = cases.initialise(model)["params"]
    np.testing.assert_array_equal(params["activations_0"]["slope"], np.zeros(6))


def test_dropout_is_off_at_evaluation_and_on_in_training():
    model, variables = make(dropout=0.5, norm="none")

    @jax.jit
    def run(seed):
        (logit_BG, _), _ = model.apply(
            variables, cases.USERS, cases.ITEMS, cases.SCENARIO_B, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)},
        )  # fmt: skip
        return logit_BG

    assert np.abs(run(0) - run(1)).max() > 1e-3
    np.testing.assert_array_equal(
        cases.evaluate(model, variables), cases.evaluate(model, variables)
    )


def test_number_of_parameters():
    model, variables = make()
    first = (variables["params"]["first"]["kernel"].shape[0] + 1) * 6
    expected = first + (6 + 1) * 5 + (5 + 1) + (1 + 2) * (6 + 5)
    assert cases.count(variables) == expected + cases.count_input(model, variables)


def test_learns_tastes_that_differ_by_scenario():
    config = din.DINConfig(hidden_dims=(32, 16), dropout=0.0)
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dims": ()}, "teacher.model.hidden_dims: expected at least one width, got none"),
        ({"activation": "relu"}, r"teacher.model.activation: expected one of .*, got 'relu'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        din.DINConfig(**changes).make(cases.SPEC)
