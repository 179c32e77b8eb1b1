import functools

import jax
import jax.numpy as jnp
import numpy as np
import planted_clicks
import pytest
import tiny_features

from dsmoe_jax.models.matching import mmoe
from dsmoe_jax.nn import scenario

B, G, S, E, K, D = 12, 3, 4, 4, 3, 5
WIDTHS = (8, 6)
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
# Widths of the inputs: fields, dense features, bags, histories.
USER_DIM, ITEM_DIM = (3 + 2 + 1 + 4) * E, (3 + 1 + 1) * E


@functools.cache
def make(**changes):
    fields = {"num_experts": K, "expert_dims": WIDTHS, "output_dim": D}
    model = mmoe.MMoEConfig(**{**fields, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)[0]


def embed(model, variables, side, rows):
    def read(module, rows):
        return getattr(module.embedder, side)(rows).input_BI

    return np.asarray(model.apply(variables, rows, method=read))


def run_tower(variables, side, x, s):
    """A tower on one row: every expert on its own, then the scenario's gate and output layer."""
    params, stats = (
        jax.tree.map(np.asarray, variables[part][f"{side}_tower"])
        for part in ("params", "batch_stats")
    )
    first = x @ params["first"]["kernel"] + params["first"]["bias"]
    gate = first[K * WIDTHS[0] :].reshape(S, K)[s]
    weight_K = np.exp(gate) / np.exp(gate).sum()
    mixed = 0
    for k in range(K):
        hidden = first[k * WIDTHS[0] : (k + 1) * WIDTHS[0]]
        for n, width in enumerate(WIDTHS):
            own = slice(k * width, (k + 1) * width)
            if n:
                layer = params[f"layers_{n - 1}"]
                hidden = hidden @ layer["kernel"][k] + layer["bias"][own]
            norm, stat = params[f"blocks_{n}"]["norm"], stats[f"blocks_{n}"]["norm"]
            gain = norm["scale"][0, own] / np.sqrt(stat["var"][0, own] + 1e-5)
            hidden = np.maximum((hidden - stat["mean"][0, own]) * gain + norm["bias"][0, own], 0)
        mixed = mixed + weight_K[k] * hidden
    return mixed @ params["output"]["kernel"][s] + params["output"]["bias"][s]


@pytest.mark.parametrize("includes_scenario", [False, True])
def test_logit_is_the_inner_product_of_two_mixtures(includes_scenario):
    model, variables = make(input_includes_scenario=includes_scenario)
    logit_BG = run(model, variables, USERS, ITEMS, SCENARIO_B)
    user_BI = embed(model, variables, "users", USERS)
    item_BGI = embed(model, variables, "items", ITEMS)
    assert ("scenario_table" in variables["params"]["embedder"]) == includes_scenario
    for b in range(B):
        user, items = user_BI[b], item_BGI[b]
        if includes_scenario:
            e_C = np.asarray(variables["params"]["embedder"]["scenario_table"])[b % S]
            user = np.concatenate([user, e_C])
            items = np.concatenate([items, np.tile(e_C, (G, 1))], axis=1)
        user_D = run_tower(variables, "user", user, b % S)
        for g in range(G):
            expected = user_D @ run_tower(variables, "item", items[g], b % S)
            np.testing.assert_allclose(logit_BG[b, g], expected, rtol=1e-3, atol=1e-3)


def test_gate_rows_sum_to_one_and_depend_on_row_and_scenario():
    model, variables = make()

    @jax.jit
    def gates(scenario_B):
        def read(module, scenario_B):
            one_hot_BS = scenario.one_hot(scenario_B, S)
            user_BI = module.embedder.users(USERS).input_BI
            item_BGI = module.embedder.items(ITEMS).input_BI
            return (
                module.user_tower.gate_weights(user_BI, one_hot_BS),
                module.item_tower.gate_weights(item_BGI, one_hot_BS),
            )

        return model.apply(variables, scenario_B, method=read)

    of_user, of_item = gates(SCENARIO_B)
    assert of_user.shape == (B, K) and of_item.shape == (B, G, K)
    for here, there in zip((of_user, of_item), gates((SCENARIO_B + 1) % S), strict=True):
        np.testing.assert_allclose(here.sum(axis=-1), 1, rtol=1e-5)
        assert (np.asarray(here) > 0).all()
        assert np.abs(here - there).min() > 0
        # Unlike DSMOE's, the gate tells rows of one scenario apart.
        assert np.abs(here[0] - here[S]).max() > 1e-3


def test_gates_and_output_layers_learn_from_their_own_scenario_alone():
    model, variables = make()

    @jax.jit
    @jax.grad
    def gradient(params):
        (logit_BG, _), _ = model.apply(
            {**variables, "params": params}, USERS, ITEMS, SCENARIO_B, train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return (jnp.square(logit_BG).sum(axis=1) * (SCENARIO_B == 1)).sum()

    found = gradient(variables["params"])
    for side in ("user", "item"):
        tower = found[f"{side}_tower"]
        gates = tower["first"]["kernel"][:, K * WIDTHS[0] :].reshape(-1, S, K)
        assert (np.abs(gates).max(axis=(0, 2)) > 0).tolist() == [False, True, False, False]
        output = np.abs(tower["output"]["kernel"]).max(axis=(1, 2)) > 0
        assert output.tolist() == [False, True, False, False]
        experts = tower["first"]["kernel"][:, : K * WIDTHS[0]].reshape(-1, K, WIDTHS[0])
        assert (np.abs(experts).max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("changes", "statistics"),
    [({"norm": "dsbn"}, 8), ({"norm": "none"}, 0), ({"input_dropout": 0.5}, 8)],
)
def test_each_choice_trains_and_moves_every_statistic(changes, statistics):
    model, variables = make(**changes)

    @jax.jit
    def train(variables, key):
        return model.apply(
            variables, USERS, ITEMS, SCENARIO_B, train=True,
            mutable=["batch_stats"], rngs={"dropout": key},
        )  # fmt: skip

    (first_BG, _), updated = train(variables, jax.random.key(1))
    (other_BG, _), _ = train(variables, jax.random.key(2))
    assert np.isfinite(first_BG).all()
    assert bool(np.abs(first_BG - other_BG).max() > 0) == ("input_dropout" in changes)
    before, after = variables.get("batch_stats", {}), updated.get("batch_stats", {})
    moved = jax.tree.map(lambda a, b: bool((a != b).any(axis=1).all()), before, after)
    assert jax.tree.leaves(moved) == [True] * statistics


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_number_of_parameters():
    _, variables = make()
    params = variables["params"]
    H0, H1 = WIDTHS
    per_tower = K * (H0 * H1 + H1) + 2 * K * (H0 + H1) + S * (H1 * D + D)
    inputs = USER_DIM + 1 + ITEM_DIM + 1
    expected = inputs * (K * H0 + S * K) + 2 * per_tower
    assert count(params["user_tower"]) + count(params["item_tower"]) == expected


def test_scenarios_of_opposite_taste_are_told_apart_by_gates_and_output_layers():
    spec = planted_clicks.make_spec(2, 0)
    model = mmoe.MMoEConfig(num_experts=2, expert_dims=(32,), output_dim=8).make(spec)
    assert planted_clicks.fit_opposite_taste(model) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, r"model.num_experts: expected a number >= 1, got 0"),
        ({"expert_dims": ()}, r"model.expert_dims: expected at least one width, got none"),
        ({"expert_dims": (0,)}, r"model.expert_dims: expected widths >= 1, got \(0,\)"),
        ({"output_dim": 0}, r"model.output_dim: expected a number >= 1, got 0"),
        ({"input_dropout": -0.1}, r"model.input_dropout: expected a rate in \[0, 1\), got -0.1"),
        ({"norm": "ln"}, r"model.norm: expected one of .*, got 'ln'"),
        ({"bn_momentum": 1.5}, r"model.bn_momentum: expected a number in \(0, 1\], got 1.5"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mmoe.MMoEConfig(**changes).make(SPEC)
