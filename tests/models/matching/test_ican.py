import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.models.matching import ican
from dsmoe_jax.training import losses

B, G, D, E, S, L = 12, 3, 5, 4, 4, 3
HISTORIES = features.SequenceFeature(
    features.SCENARIO_HISTORIES, ("item_id",), S * L, per_scenario=True
)
SPEC = tiny_features.make_spec(sequences=(*tiny_features.make_spec().sequences, HISTORIES))
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
SMALL = {"attention_dims": (6, 3), "num_heads": 2, "hidden_dims": (8, 7), "output_dim": D}


@functools.cache
def make(spec=SPEC, **changes):
    model = ican.ICANConfig(**{**SMALL, **changes}).make(spec)
    users = tiny_features.make_users(spec, B)
    variables = tiny_features.make_variables(model, users, ITEMS, SCENARIO_B)

    def enlarge(path, leaf):
        # Attention among small vectors is all but uniform.
        names = {part.key for part in path}
        return leaf * 3 if names & {"item_id", "internal", "contextual"} else leaf

    return model, jax.tree_util.tree_map_with_path(enlarge, variables)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)


def embed_user(model, variables, users=USERS, scenario_B=SCENARIO_B):
    return np.asarray(run(model, variables, users, scenario_B, method="embed_user")[0])[:, 0]


def with_histories(ids_BSL, users=USERS):
    ids_BLF = jnp.asarray(ids_BSL, jnp.int32).reshape(B, S * L, 1)
    sequence = batch_lib.Sequence(ids_BLF, jnp.zeros((B, S * L), jnp.int32))
    return users._replace(sequences={**users.sequences, features.SCENARIO_HISTORIES: sequence})


def histories(users=USERS):
    return np.array(users.sequences[features.SCENARIO_HISTORIES].ids_BLF).reshape(B, S, L)


def dense(params, x):
    return x @ np.asarray(params["kernel"]) + np.asarray(params.get("bias", 0))


def write_out(params, profile_I, groups, target_E):
    """The user tower for one user whose non-empty groups are `groups`: scenario -> vector."""
    score = {}
    for s, x in groups.items():
        hidden = np.concatenate([target_E, x, x - target_E, x * target_E])
        for n in range(3):
            hidden = np.tanh(dense(params["contextual"][f"Dense_{n}"], hidden))
        score[s] = np.exp(hidden[0])
    weighted = {s: score[s] / (sum(score.values()) + 1e-3) * x for s, x in groups.items()}
    joint = {
        s: dense(params["internal"]["query_key_value"], x).reshape(3, 2, E // 2)
        for s, x in weighted.items()
    }
    flat = []
    for s in range(S):
        if s not in groups:
            flat.append(np.zeros(E))
            continue
        heads = []
        for head in range(2):
            logit = np.array([joint[s][0, head] @ joint[o][1, head] for o in joint])
            weight = np.exp(logit) / np.exp(logit).sum()
            heads.append(weight @ np.stack([joint[o][2, head] for o in joint]))
        flat.append(dense(params["internal"]["output"], np.concatenate(heads)))
    hidden = np.concatenate([*flat, profile_I])
    for n in range(3):
        hidden = np.tanh(dense(params[f"user_layers_{n}"], hidden))
    return hidden


def test_user_vector_is_the_written_out_equations():
    model, variables = make()
    params = variables["params"]
    embedded = model.apply(variables, USERS, method=lambda m, users: m.embedder.users(users))
    table = np.array(params["embedder"]["item_tables"]["item_id"])
    ids_BSL = histories()
    expected = []
    for b in range(B):
        groups = {
            s: table[ids_BSL[b, s][ids_BSL[b, s] > 0]].mean(axis=0)
            for s in range(S)
            if ids_BSL[b, s].any()
        }
        target_E = np.asarray(params["embedder"]["scenario_table"])[SCENARIO_B[b]]
        expected.append(write_out(params, np.asarray(embedded.input_BI)[b], groups, target_E))
    assert not ids_BSL[0].any() and ((ids_BSL > 0).any(axis=2).sum(axis=1) > 2).any()
    np.testing.assert_allclose(embed_user(model, variables), expected, atol=2e-5)


def test_item_vector_is_a_linear_map_of_all_fields():
    model, variables = make()
    got, _ = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    embedded = model.apply(variables, ITEMS, method=lambda m, items: m.embedder.items(items))
    expected = dense(variables["params"]["item_layer"], np.asarray(embedded.input_BI))
    assert got.shape == (B, G, D)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_item_vector_can_be_the_embedding_of_its_id():
    model, variables = make(item_vector="id", output_dim=E)
    assert "item_layer" not in variables["params"]
    got, _ = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    table = variables["params"]["embedder"]["item_tables"]["item_id"]
    np.testing.assert_array_equal(got, table[ITEMS.sparse_VF[..., 0]])
    assert embed_user(model, variables).shape == (B, E)


def test_items_are_the_same_in_all_scenarios_and_users_are_not():
    model, variables = make()
    assert not model.item_uses_scenario and ican.ICANConfig.scenario_histories
    other_B = (SCENARIO_B + 1) % S
    first, _ = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    second, _ = run(model, variables, ITEMS, other_B, method="embed_item")
    np.testing.assert_array_equal(first, second)
    moved_B = np.abs(embed_user(model, variables) - embed_user(model, variables, USERS, other_B))
    groups_B = (histories() > 0).any(axis=2).sum(axis=1)
    # The scenario enters through the weights of groups and nowhere else.
    np.testing.assert_array_equal(moved_B[groups_B == 0], 0)
    assert moved_B[groups_B > 1].max(axis=1).min() > 1e-6


def test_contextual_weights_sum_to_one_but_for_the_epsilon_and_skip_empty_groups():
    unit = ican.ContextualAttention((6, 3))
    rng = np.random.default_rng(0)
    target_BE, group_BGE = rng.normal(size=(5, E)), rng.normal(size=(5, S, E))
    inputs = jnp.asarray(target_BE, jnp.float32), jnp.asarray(group_BGE, jnp.float32)
    mask_BG = (
        jnp.asarray([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]]) > 0
    )
    variables = tiny_features.randomise(unit.init(jax.random.key(0), *inputs, mask_BG))
    weight_BG = np.asarray(unit.apply(variables, *inputs, mask_BG))
    np.testing.assert_array_equal(weight_BG[~np.asarray(mask_BG)], 0)
    total_B = weight_BG.sum(axis=1)
    # exp(tanh) is at least 1/e, so that 0.001 takes less than 0.3 % of the sum.
    assert (total_B[[0, 1, 2, 4]] > 0.997).all() and (total_B < 1).all() and total_B[3] == 0
    # tanh bounds what one group can have over another.
    live = weight_BG[0]
    assert live.max() / live.min() < np.exp(2) and live.max() / live.min() > 1.01


def test_a_group_is_the_mean_of_its_events_whatever_their_order():
    model, variables = make()
    ids_BSL = histories()
    full = np.where(ids_BSL > 0, ids_BSL, 1)
    straight = embed_user(model, variables, with_histories(full))
    turned = embed_user(model, variables, with_histories(full[:, :, ::-1]))
    np.testing.assert_allclose(straight, turned, atol=1e-6)
    swapped = embed_user(model, variables, with_histories(full[:, [1, 0, 2, 3]]))
    assert np.median(np.abs(straight - swapped).max(axis=1)) > 1e-2


def test_without_any_event_the_profile_alone_remains():
    model, variables = make()
    empty = embed_user(model, variables, with_histories(np.zeros((B, S, L))))
    params = {
        **variables["params"],
        "contextual": jax.tree.map(lambda x: x + 1, variables["params"]["contextual"]),
        "internal": jax.tree.map(lambda x: x + 1, variables["params"]["internal"]),
    }
    users = with_histories(np.zeros((B, S, L)))
    assert np.isfinite(empty).all()
    np.testing.assert_array_equal(empty, embed_user(model, {"params": params}, users))


def test_number_of_parameters():
    spec = tiny_features.make_spec(
        sequences=(features.SequenceFeature(HISTORIES.name, ("item_id",), S * L, True),),
        embedding_dim=16,
    )
    model = ican.ICANConfig().make(spec)
    users = tiny_features.make_users(spec, B)
    items = tiny_features.make_items(spec, (B, G))
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), users, items, SCENARIO_B
    )
    params = {name: leaf for name, leaf in shapes["params"].items() if name != "embedder"}
    user, item, w = 6 * 16, 5 * 16, 16
    expected = (4 * w + 1) * 64 + 65 * 32 + 33
    expected += 4 * w * w
    expected += (S * w + user + 1) * 128 + 129 * 64 + 65 * 64
    expected += (item + 1) * 64
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def plant(key, examples):
    """Users whose taste in a scenario shows in their history of the other one.

    Two scenarios, four categories of five items. Returns users, scenarios, and per example an item
    that is liked in its scenario and one that is liked in the other.
    """
    taste_key, item_key, scenario_key = jax.random.split(key, 3)
    taste_BS = jax.random.randint(taste_key, (examples, 2), 0, 4)
    taste_BS = taste_BS.at[:, 1].set((taste_BS[:, 0] + 1 + taste_BS[:, 1] % 3) % 4)
    within = jax.random.randint(item_key, (examples, 2, L + 1), 1, 6)
    item_BSL = taste_BS[..., None] * 5 + within
    scenario_B = jax.random.randint(scenario_key, (examples,), 0, 2)
    rows_B = jnp.arange(examples)
    liked_B = item_BSL[rows_B, 1 - scenario_B, L]
    other_B = item_BSL[rows_B, scenario_B, L]
    ids_BLF = item_BSL[:, :, :L].reshape(examples, 2 * L, 1)
    none_B = jnp.zeros(examples, jnp.int32)
    users = batch_lib.Users(
        none_B[:, None],
        jnp.zeros((examples, 0), jnp.float32),
        {},
        {HISTORIES.name: batch_lib.Sequence(ids_BLF, jnp.zeros((examples, 2 * L), jnp.int32))},
        none_B,
    )
    return users, scenario_B, jnp.stack([liked_B, other_B], axis=1)


def take(item_BG):
    return batch_lib.Items(item_BG[..., None], jnp.zeros((*item_BG.shape, 0), jnp.float32), {})


def test_learns_which_scenarios_history_tells_the_target_scenarios_taste():
    spec = features.FeatureSpec(
        scenarios=("A", "B"),
        user_sparse=(features.SparseFeature("user_id", 2),),
        user_dense=(), user_bags=(),
        item_sparse=(features.SparseFeature("item_id", 21),),
        item_dense=(), item_bags=(),
        sequences=(features.SequenceFeature(HISTORIES.name, ("item_id",), 2 * L, True),),
        embedding_dim=8,
    )  # fmt: skip
    model = ican.ICANConfig(
        attention_dims=(16, 8), num_heads=2, hidden_dims=(32,), output_dim=16
    ).make(spec)
    users, scenario_B, item_BG = plant(jax.random.key(0), 64)
    params = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(1), users, take(item_BG), scenario_B
    )["params"]
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        params, opt_state = carry
        users, scenario_B, item_BG = plant(key, 64)
        negative_BN = jax.random.randint(jax.random.fold_in(key, 1), (64, 3), 1, 21)
        candidate_BG = jnp.concatenate([item_BG, negative_BN], axis=1)
        label_BG = jnp.zeros((64, 5)).at[:, 0].set(1)

        def loss(params):
            inputs = users, take(candidate_BG), scenario_B
            logit_BG, _ = model.apply({"params": params}, *inputs, train=True)
            return losses.bce_with_logits(logit_BG, label_BG).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def fit(params):
        keys = jax.random.split(jax.random.key(3), 600)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    # Embeddings start at unit size: while they are small all groups come out of the attention
    # equal, and how long that lasts is not the matter here.
    item_tables = {"item_id": 50 * params["embedder"]["item_tables"]["item_id"]}
    params = fit({**params, "embedder": {**params["embedder"], "item_tables": item_tables}})
    users, scenario_B, item_BG = plant(jax.random.key(2), 500)
    logit_BG, _ = run(model, {"params": params}, users, take(item_BG), scenario_B)
    # A user vector blind to the scenario would be right for half of them.
    assert np.mean(logit_BG[:, 0] > logit_BG[:, 1]) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, r"model.num_heads: expected a divisor of .*, 4, got 3"),
        ({"attention_dims": (0,)}, r"model.attention_dims: expected widths >= 1, got \(0,\)"),
        ({"hidden_dims": (0,)}, r"model.hidden_dims: expected widths >= 1, got \(0,\)"),
        ({"output_dim": 0}, "model.output_dim: expected a number >= 1, got 0"),
        ({"item_vector": "tower"}, "model.item_vector: expected one of .*, got 'tower'"),
        ({"item_vector": "id"}, r"model.output_dim: with item_vector 'id' expected .*, 4, got 5"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ican.ICANConfig(**{**SMALL, **changes}).make(SPEC)
