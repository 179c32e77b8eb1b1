import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.ranking import star
from tests.models.ranking import joint_cases as cases
from tests.models.ranking import joint_reference as reference

S = cases.S
SMALL = {"hidden_dims": (6, 5), "aux_dims": (4, 3), **cases.INPUTS}


@functools.cache
def make(**changes):
    return cases.make(star.STARConfig(**{**SMALL, **changes}))


def without_scenario(ref, joint):
    """The joint input without the scenario's columns."""
    start = ref.model.bind(ref.variables).embedder.user_dim
    return np.delete(joint, np.arange(start, start + ref.model.spec.embedding_dim), axis=-1)


def partitioned(ref, joint, s):
    """gamma gamma_s (x - mean_s) / sqrt(var_s + eps) + beta + beta_s over all columns."""

    def read(name, collection="params"):
        path = "input_norms_{}/" + name
        return [ref.get(path.format(n), collection) for n in range(3)]

    def of_scenario(name, collection="params"):
        return np.concatenate([leaf[s] for leaf in read(f"own/{name}", collection)])

    scale, bias = (np.concatenate(read(name)) for name in ("scale", "bias"))
    normal = joint - of_scenario("mean", "batch_stats")
    normal /= np.sqrt(of_scenario("var", "batch_stats") + 1e-5)
    return scale * of_scenario("scale") * normal + bias + of_scenario("bias")


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "dsbn"}, {"partitioned_norm": False}], ids=["paper", "dsbn", "plain"]
)
def test_forward_is_that_of_products_of_weights_on_the_normalised_input(changes):
    model, variables = make(**changes)
    ref = reference.Reference(model, variables)
    joint, expected = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    main = without_scenario(ref, joint)
    for b, s in enumerate(np.asarray(cases.SCENARIO_B)):
        x = partitioned(ref, main[b], s) if model.cfg.partitioned_norm else main[b]
        x = ref.star("first", x, s)
        for n in range(2):
            x = reference.relu(ref.norm(f"blocks_{n}/norm", x, s))
            x = ref.star(f"layers_{n}", x, s)
        aux = ref.relu_stack("aux", ref.dense("aux_first", joint[b]), 1, (4, 3, 1))
        expected[b] += (x + aux)[:, 0]
    np.testing.assert_allclose(cases.evaluate(model, variables), expected, rtol=1e-3, atol=1e-3)


def test_initial_star_network_is_the_shared_one():
    model, _ = make(use_log_prior=False)
    variables = cases.initialise(model)
    params = dict(variables["params"])
    ref = reference.Reference(model, variables)
    main = without_scenario(ref, ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)[0])
    x = main / np.sqrt(1 + 1e-5)
    for name in ("first", "layers_0", "layers_1"):
        x = ref.dense(name, x if name == "first" else reference.relu(x))
    # Only the auxiliary network sees the scenario: without it all scenarios have one function.
    params["aux"] = jax.tree.map(jnp.zeros_like, params["aux"])
    params["collaborative_weight"] = jnp.zeros(1)
    for shift in range(2):
        got = cases.evaluate(
            model, {**variables, "params": params}, scenario_B=(cases.SCENARIO_B + shift) % S
        )
        np.testing.assert_allclose(got, x[..., 0], rtol=1e-4, atol=1e-6)


def test_training_normalises_every_part_over_the_rows_of_the_scenario():
    """Statistics of the parts are those of the joint rows."""
    model, variables = make(bn_momentum=1.0)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = train(
        variables, cases.USERS, cases.ITEMS, cases.SCENARIO_B, rngs={"dropout": jax.random.key(0)}
    )
    ref = reference.Reference(model, variables)
    joint, _ = ref.inputs(cases.USERS, cases.ITEMS, cases.SCENARIO_B)
    main = without_scenario(ref, joint)
    stats = updated["batch_stats"]
    users = stats["input_norms_0"]["own"]["mean"].shape[1]
    for s in range(S):
        rows = main[np.asarray(cases.SCENARIO_B) == s]
        mean = np.concatenate([stats[f"input_norms_{n}"]["own"]["mean"][s] for n in range(3)])
        np.testing.assert_allclose(mean, rows.mean(axis=(0, 1)), atol=1e-5)
        var = np.concatenate([stats[f"input_norms_{n}"]["own"]["var"][s] for n in range(3)])
        # A user's columns are the same in all its rows: unbiased over users, not over rows.
        expected = np.concatenate(
            [
                rows[:, 0, :users].var(axis=0, ddof=1),
                rows[..., users:].reshape(-1, rows.shape[-1] - users).var(axis=0, ddof=1),
            ]
        )
        np.testing.assert_allclose(var, expected, rtol=1e-4, atol=1e-6)


def test_rows_of_a_scenario_do_not_change_those_of_another_in_training():
    model, variables = make(dropout=0.0)

    @jax.jit
    def run(items):
        (logit_BG, _), _ = model.apply(
            variables, cases.USERS, items, cases.SCENARIO_B, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return logit_BG

    is_first = np.asarray(cases.SCENARIO_B) == 0
    dense = cases.ITEMS.dense_VF.at[is_first].add(1.0)
    before, after = run(cases.ITEMS), run(cases.ITEMS._replace(dense_VF=dense))
    np.testing.assert_allclose(after[~is_first], before[~is_first], atol=1e-5)
    assert np.abs(after - before)[is_first].max() > 1e-3


def test_number_of_parameters():
    model, variables = make()
    inputs = variables["params"]["aux_first"]["kernel"].shape[0]
    main = inputs - model.spec.embedding_dim
    stars = (S + 1) * ((main + 1) * 6 + (6 + 1) * 5 + (5 + 1))
    aux = (inputs + 1) * 4 + (4 + 1) * 3 + (3 + 1)
    expected = stars + aux + 2 * (S + 1) * main + cases.count_input(model, variables)
    assert cases.count(variables) == expected


def test_learns_tastes_that_differ_by_scenario():
    config = star.STARConfig(hidden_dims=(16, 8), aux_dims=(4,), dropout=0.0)
    assert cases.accuracy_on_scenario_tastes(config) > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dims": ()}, "teacher.model.hidden_dims: expected at least one width, got none"),
        ({"aux_dims": (0,)}, r"teacher.model.aux_dims: expected widths >= 1, got \(0,\)"),
        ({"bn_momentum": 0.0}, r"teacher.model.bn_momentum: expected a number in \(0, 1\], got 0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        star.STARConfig(**changes).make(cases.SPEC)
