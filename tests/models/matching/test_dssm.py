import functools

import jax
import jax.numpy as jnp
import numpy as np
import planted_clicks
import pytest
import tiny_features

from dsmoe_jax.models.matching import dssm
from dsmoe_jax.training import optimizer, row_sparse, sharding, train_state

B, G, S, E, D = 12, 3, 4, 4, 5
HIDDEN = (8, 6)
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
# Widths of the inputs: fields, dense features, bags, histories.
USER_DIM, ITEM_DIM = (3 + 2 + 1 + 4) * E, (3 + 1 + 1) * E


@functools.cache
def make(config=dssm.DSSMConfig, **changes):
    model = config(**{"hidden_dims": HIDDEN, "output_dim": D, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)[0]


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, users, items, scenario_B):
    (logit_BG, _), updated = model.apply(
        variables, users, items, scenario_B, train=True,
        mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
    )  # fmt: skip
    return logit_BG, updated


def normalise(x, params, stats, s):
    """Batch normalisation with running statistics, then ReLU."""
    gain = params["scale"][s] / np.sqrt(stats["var"][s] + 1e-5)
    return np.maximum((x - stats["mean"][s]) * gain + params["bias"][s], 0)


def run_tower(variables, side, x, s=None):
    """A tower on one row; `s` picks the scenario's layers where every scenario has its own."""
    params, stats = (
        jax.tree.map(np.asarray, variables[part][f"{side}_tower"])
        for part in ("params", "batch_stats")
    )
    for n in range(len(HIDDEN) + 1):
        kernel, bias = params[f"layers_{n}"]["kernel"], params[f"layers_{n}"]["bias"]
        x = x @ kernel + bias if s is None else x @ kernel[s] + bias[s]
        if n < len(HIDDEN):
            block = f"blocks_{n}"
            x = normalise(x, params[block]["norm"], stats[block]["norm"], s or 0)
    return x


@pytest.mark.parametrize("scenario_input", dssm.SCENARIO_INPUTS)
def test_mixed_logit_is_the_inner_product_of_two_perceptrons(scenario_input):
    model, variables = make(scenario_input=scenario_input)
    logit_BG = run(model, variables, USERS, ITEMS, SCENARIO_B)
    user_BI, item_BGI = (
        model.apply(
            variables, rows, method=lambda m, rows, side=side: getattr(m.embedder, side)(rows)
        )
        for side, rows in (("users", USERS), ("items", ITEMS))
    )
    for b in range(B):
        user, items = np.asarray(user_BI.input_BI[b]), np.asarray(item_BGI.input_BI[b])
        if scenario_input != "none":
            e_C = np.asarray(variables["params"]["embedder"]["scenario_table"])[b % S]
            user = np.concatenate([user, e_C])
        if scenario_input == "both":
            items = np.concatenate([items, np.tile(e_C, (G, 1))], axis=1)
        user_D = run_tower(variables, "user", user)
        for g in range(G):
            expected = user_D @ run_tower(variables, "item", items[g])
            np.testing.assert_allclose(logit_BG[b, g], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scenario_input": "both"}, True),
        ({"scenario_input": "user"}, False),
        ({"scenario_input": "user", "norm": "dsbn"}, False),
        ({"scenario_input": "none"}, False),
        ({"sharing": "per_scenario"}, True),
        ({"sharing": "per_scenario", "scenario_input": "none"}, True),
    ],
)
def test_items_differ_between_scenarios_exactly_where_there_is_an_index_for_each(fields, expected):
    model, variables = make(**fields)
    first, last = (
        run(model, variables, ITEMS, jnp.full(B, s, jnp.int32), method="embed_item") for s in (0, 3)
    )
    assert model.item_uses_scenario == expected
    assert bool(np.abs(first - last).max() > 1e-3) == expected


def test_embedding_of_the_scenario_exists_where_it_is_read():
    for scenario_input in dssm.SCENARIO_INPUTS:
        _, variables = make(scenario_input=scenario_input)
        exists = "scenario_table" in variables["params"]["embedder"]
        assert exists == (scenario_input != "none")


def take_rows(side, tables, s):
    """A scenario's rows of each of a side's tables: those of the unknown ids and its own."""
    num_ids = {
        feature.name: feature.num_ids
        for kind in ("sparse", "bags")
        for feature in getattr(SPEC, f"{side}_{kind}")
    }
    small = [n for name, n in num_ids.items() if name not in tables]
    found = {}
    for name, table in tables.items():
        rows, start = [], 0
        for n in [num_ids[name]] if name in num_ids else small:
            first = start + 1 + s * (n - 1)
            rows += [start, *range(first, first + n - 1)]
            start += 1 + S * (n - 1)
        found[name] = table[np.array(rows)]
    return found


def take_scenario(variables, s):
    """One scenario's model, as variables of a mixed model that reads no scenario."""
    params = dict(variables["params"])
    source = params.pop("scenario_embedder")
    embedder = {}
    for side in ("user", "item"):
        tables = source["embedder"][f"{side}_tables"]
        embedder[f"{side}_tables"] = take_rows(side, tables, s)
        embedder[f"{side}_dense"] = source[f"{side}_dense"][s]
    # A large table is padded to a multiple of 1,024 rows.
    city = embedder["user_tables"]["city"]
    embedder["user_tables"]["city"] = jnp.pad(city, ((0, 5120 - len(city)), (0, 0)))
    towers = jax.tree.map(lambda leaf: leaf[s], params)
    # Dense features come last here, and before the histories there.
    kernel = towers["user_tower"]["layers_0"]["kernel"]
    towers["user_tower"]["layers_0"]["kernel"] = jnp.concatenate(
        [kernel[: 4 * E], kernel[-2 * E :], kernel[4 * E : -2 * E]]
    )
    for tower in towers.values():
        for name, block in tower.items():
            if name.startswith("blocks"):
                block["norm"] = jax.tree.map(lambda leaf: leaf[None], block["norm"])
    stats = jax.tree.map(lambda leaf: leaf[s : s + 1], variables["batch_stats"])
    return {"params": {"embedder": embedder, **towers}, "batch_stats": stats}


@pytest.mark.parametrize("s", range(S))
def test_per_scenario_is_one_model_for_each_on_its_own_rows(s):
    model, variables = make(dssm.DSSMPerScenarioConfig)
    single, _ = make(scenario_input="none")
    inputs = (
        tiny_features.make_users(SPEC, 4 * B),
        tiny_features.make_items(SPEC, (4 * B, G)),
        tiny_features.make_scenarios(SPEC, 4 * B),
    )
    mine = jax.tree.map(lambda leaf: leaf[s::S], inputs)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    alone = take_scenario(variables, s)
    close(run(model, variables, *inputs)[s::S], run(single, alone, *mine))
    (logit_BG, updated), (expected_BG, expected) = (
        train(model, variables, *inputs), train(single, alone, *mine)
    )  # fmt: skip
    close(logit_BG[s::S], expected_BG)
    moved = jax.tree.map(lambda leaf: leaf[s : s + 1], updated["batch_stats"])
    jax.tree.map(close, moved, expected["batch_stats"])


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_no_scenario_reaches_anothers_parameters_or_statistics(norm):
    model, variables = make(dssm.DSSMPerScenarioConfig, norm=norm)

    @jax.jit
    @jax.grad
    def gradient(params):
        logit_BG, _ = train(model, {**variables, "params": params}, USERS, ITEMS, SCENARIO_B)
        # Rows of the others are in the batch, and count for nothing.
        return (jnp.square(logit_BG).sum(axis=1) * (SCENARIO_B == 2)).sum()

    found = gradient(variables["params"])
    found_tables = found["scenario_embedder"].pop("embedder")
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        reached_S = np.abs(leaf).reshape(S, -1).max(axis=1) > 0
        assert reached_S.tolist() == [False, False, True, False], jax.tree_util.keystr(path)
    for side in ("user", "item"):
        tables = found_tables[f"{side}_tables"]
        reached = [take_rows(side, tables, s) for s in range(S)]
        for name in tables:
            reached_S = [bool(np.abs(rows[name]).max() > 0) for rows in reached]
            assert reached_S == [False, False, True, False], name
    scenario_B = jnp.full(B, 2, jnp.int32)
    _, updated = train(model, variables, USERS, ITEMS, scenario_B)
    moved = jax.tree.map(
        lambda a, b: (a != b).any(axis=1).tolist() == [False, False, True, False],
        variables.get("batch_stats", {}), updated.get("batch_stats", {}),
    )  # fmt: skip
    assert len(jax.tree.leaves(moved)) == (8 if norm == "bn" else 0)
    assert all(jax.tree.leaves(moved))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_number_of_parameters():
    def towers(user_dim, item_dim):
        dims = sum(a * b + b for a, b in ((8, 6), (6, D))) + 2 * sum(HIDDEN)
        return 2 * dims + (user_dim + 1 + item_dim + 1) * 8

    _, variables = make()
    params = variables["params"]
    rows = 30 + 5 + 5120 + 6 + 20 + 7 + 3 + 9
    assert count(params.pop("embedder")) == (rows + 3 + S) * E
    assert count(params) == towers(USER_DIM + E, ITEM_DIM + E)
    _, variables = make(dssm.DSSMPerScenarioConfig)
    params = variables["params"]
    # One row for the unknown id; the large table is padded.
    ids = sum(n - 1 for n in (30, 5, 6, 20, 7, 3, 9))
    assert count(params.pop("scenario_embedder")) == (S * ids + 7 + 20_480 + S * 3) * E
    assert count(params) == S * towers(USER_DIM, ITEM_DIM)


@pytest.mark.parametrize(
    ("fields", "learns"),
    [
        ({"scenario_input": "both"}, True),
        ({"scenario_input": "none"}, False),
        ({"sharing": "per_scenario"}, True),
    ],
)
def test_scenarios_of_opposite_taste_need_a_model_that_tells_them_apart(fields, learns):
    spec = planted_clicks.make_spec(2, 0)
    model = dssm.DSSMConfig(hidden_dims=(32,), output_dim=8, **fields).make(spec)
    found = planted_clicks.fit_opposite_taste(model)
    assert found > 0.95 if learns else found < 0.75, found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing": "all"}, r"model.sharing: expected one of \('mixed', 'per_scenario'\), got"),
        ({"scenario_input": "item"}, r"model.scenario_input: expected one of .*, got 'item'"),
        ({"hidden_dims": (4, 0)}, r"model.hidden_dims: expected widths >= 1, got \(4, 0\)"),
        ({"output_dim": 0}, r"model.output_dim: expected a number >= 1, got 0"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"norm": "ln"}, r"model.norm: expected one of .*, got 'ln'"),
        ({"bn_momentum": 0.0}, r"model.bn_momentum: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dssm.DSSMConfig(**changes).make(SPEC)


def test_updates_of_single_rows_are_refused_where_tables_are_per_scenario():
    model, _ = make(dssm.DSSMPerScenarioConfig)
    updater = row_sparse.RowSparse(SPEC, 1e-3, 0.0, min_rows=1000)
    with pytest.raises(ValueError, match=r"optim.embedding: expected 'dense' for a model whose"):
        train_state.abstract_state(model, updater, mesh=sharding.abstract_mesh(1))
    train_state.abstract_state(
        model, optimizer.Dense(updater.dense), mesh=sharding.abstract_mesh(1)
    )
