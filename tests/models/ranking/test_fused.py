import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.ranking import fused, mmoe_din, sap_ranker, star
from tests.models.ranking import joint_cases as cases


def make_members():
    return {
        "star": star.STARConfig(hidden_dims=(5,), aux_dims=(3,), **cases.INPUTS),
        "mmoe": mmoe_din.MMoEDINConfig(
            num_experts=2, expert_dims=(4,), tower_dims=(), **cases.INPUTS
        ),
        "sap": sap_ranker.SAPRankerConfig(num_experts=2, hidden_dim=4, output_dim=3),
    }


@functools.cache
def make():
    return cases.make(fused.FusedConfig(members=make_members()))


def of_member(variables, name):
    """A member's own variables; constants are common."""
    own = {
        collection: tree[f"members_{name}"]
        for collection, tree in variables.items()
        if collection != "constants" and f"members_{name}" in tree
    }
    return own if name == "sap" else {**own, "constants": variables["constants"]}


def test_logit_is_the_mean_of_the_members_logits():
    model, variables = make()
    own = [
        cases.evaluate(config.make(cases.SPEC), of_member(variables, name))
        for name, config in make_members().items()
    ]
    np.testing.assert_allclose(cases.evaluate(model, variables), np.mean(own, axis=0), atol=1e-5)


def test_members_share_constants_and_nothing_else():
    model, variables = make()
    assert set(variables["params"]) == {"members_star", "members_mmoe", "members_sap"}
    assert all("embedder" in member for member in variables["params"].values())
    shapes = {name: leaf.shape for name, leaf in variables["constants"].items()}
    assert shapes == model.constant_shapes == {"log_prior_SV": (4, 20), "item_vector_VC": (20, 3)}


def test_initial_tables_of_members_differ():
    params = cases.initialise(make()[0])["params"]
    tables = [member["embedder"]["item_tables"]["item_id"] for member in params.values()]
    assert np.abs(tables[0] - tables[1]).max() > 1e-3


def test_statistics_of_all_members_move_in_training():
    model, variables = make()
    _, updated = jax.jit(
        lambda variables: model.apply(
            variables, cases.USERS, cases.ITEMS, cases.SCENARIO_B, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
        )
    )(variables)  # fmt: skip
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), variables["batch_stats"], updated["batch_stats"]
    )
    assert set(moved) == set(variables["params"])
    assert all(value > 0 for value in jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "teacher.model.members: expected at least one ranker, got none"),
        ({"a": star.STARConfig(aux_dims=(0,))}, r"aux_dims: expected widths >= 1, got \(0,\)"),
        (
            {
                "a": star.STARConfig(collaborative=True, collaborative_dim=3),
                "b": star.STARConfig(collaborative=True, collaborative_dim=4),
            },
            r"teacher.model.members.b: expected item_vector_VC of the shape \(20, 3\) that "
            r"another member wants, got \(20, 4\)",
        ),
    ],
)
def test_members_that_cannot_be_fused_are_refused(members, message):
    with pytest.raises(ValueError, match=message):
        fused.FusedConfig(members=members).make(cases.SPEC)
