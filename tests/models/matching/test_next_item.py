"""What every sequential matcher has in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.models.matching import fuxi, hstu
from dsmoe_jax.nn import causal, fuxi_encoder, hstu_encoder

B, G, D = 6, 4, 8
SPEC = tiny_features.make_spec()
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SMALL = {"output_dim": D, "input_dropout": 0.0, "dropout": 0.0}
CONFIGS = {
    "hstu": hstu.HSTUConfig(**SMALL),
    "fuxi": fuxi.FuxiConfig(**SMALL),
    "fuxi_mme": fuxi.FuxiMMEConfig(num_experts=3, **SMALL),
}
ENCODERS = {
    "HSTU": hstu_encoder.Encoder(D, max_len=6),
    "Fuxi": fuxi_encoder.Encoder(D, max_len=6),
    "FuxiMME": fuxi_encoder.Encoder(
        D, num_subspaces=2, num_experts=3, experts_per_token=2, max_len=6
    ),
}


def make_users(B=B, seed=0):
    """Random users with times; the first has no history."""
    users = tiny_features.make_users(SPEC, B, seed)
    rng = np.random.default_rng(seed)
    history = users.sequences["history"]
    time_BL = np.sort(rng.integers(1, 10**5, history.time_BL.shape), axis=1)
    time_BL = jnp.asarray(time_BL * (history.ids_BLF[..., 0] > 0), jnp.int32)
    sequences = {**users.sequences, "history": history._replace(time_BL=time_BL)}
    return users._replace(sequences=sequences, time_B=jnp.full(B, 10**5 + 5, jnp.int32))


USERS = make_users()


@functools.cache
def make(name, **changes):
    config = type(CONFIGS[name])(**{**vars(CONFIGS[name]), **changes})
    model = config.make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def run(model, variables, *inputs, method=None, train=False):
    return model.apply(
        variables, *inputs, train=train, method=method, rngs={"dropout": jax.random.key(0)}
    )


def encode(model, variables, users=USERS):
    """The encoder's output and the item table, through the encoder alone."""
    table_VD = variables["params"]["embedder"]["item_tables"]["item_id"]
    table_VD = np.asarray(table_VD).copy()
    table_VD[0] = 0
    history = users.sequences["history"]
    ids_BL = np.asarray(history.ids_BLF[..., 0])
    timeline = causal.make_timeline(jnp.asarray(ids_BL > 0), history.time_BL, users.time_B)
    state_BLD, _ = ENCODERS[type(model).__name__].apply(
        {"params": variables["params"]["encoder"]},
        jnp.asarray(table_VD[ids_BL]),
        timeline,
        train=False,
    )
    return np.asarray(state_BLD), table_VD, ids_BL


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_logit_is_the_cosine_of_last_state_and_embedding_over_the_temperature(name):
    model, variables = make(name, temperature=0.1)
    logit_BG, aux = run(model, variables, USERS, ITEMS, SCENARIO_B)
    assert aux == {}
    state_BLD, table_VD, ids_BL = encode(model, variables)
    length_B = (ids_BL > 0).sum(axis=1)
    assert length_B[0] == 0 and len(set(length_B)) > 2
    last_BD = state_BLD[np.arange(B), np.maximum(length_B - 1, 0)]
    item_BGD = table_VD[np.asarray(ITEMS.sparse_VF[..., 0])]
    expected_BG = np.einsum("bd,bgd->bg", unit(last_BD), unit(item_BGD)) / 0.1
    np.testing.assert_allclose(logit_BG, expected_BG, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_is_the_mean_over_all_positions_of_the_batch(name):
    model, variables = make(name)
    loss_B1, _ = run(model, variables, USERS, ITEMS, SCENARIO_B, method="next_item_loss")
    state_BLD, table_VD, ids_BL = encode(model, variables)
    item_BG = np.asarray(ITEMS.sparse_VF[..., 0])
    losses = []
    for b in range(B):
        events = [i for i in ids_BL[b] if i]
        for position, target in enumerate([*events[1:], item_BG[b, 0]]):
            query_D = unit(state_BLD[b, position]) / 0.05
            kept = [i for i in item_BG[b, 1:] if i != target]
            logits = unit(table_VD[[target, *kept]]) @ query_D
            losses.append(np.log(np.exp(logits - logits[0]).sum()))
    assert len(losses) == np.maximum((ids_BL > 0).sum(axis=1), 1).sum() > B
    np.testing.assert_allclose(loss_B1.mean(), np.mean(losses), rtol=1e-4)
    assert loss_B1.shape == (B, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_neither_tower_sees_the_other_side_or_other_features(name):
    model, variables = make(name)
    other = tiny_features.make_users(SPEC, B, seed=9)
    changed = USERS._replace(
        sparse_BF=other.sparse_BF,
        dense_BF=other.dense_BF,
        bags=other.bags,
        sequences={**other.sequences, "history": USERS.sequences["history"]},
    )
    first, second = (
        run(model, variables, users, SCENARIO_B, method="embed_user")[0]
        for users in (USERS, changed)
    )
    np.testing.assert_array_equal(first, second)
    moved = USERS._replace(time_B=USERS.time_B + 10**7)
    later, _ = run(model, variables, moved, SCENARIO_B, method="embed_user")
    assert np.abs(later - first)[2:].max() > 1e-3
    item_BGD, _ = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    id_alone = ITEMS._replace(
        sparse_VF=ITEMS.sparse_VF.at[..., 1:].set(0), dense_VF=ITEMS.dense_VF * 0
    )
    alone_BGD, _ = run(model, variables, id_alone, SCENARIO_B, method="embed_item")
    np.testing.assert_array_equal(item_BGD, alone_BGD)


@pytest.mark.parametrize("name", CONFIGS)
def test_scenario_reaches_the_user_through_its_token_alone(name):
    others_B = (SCENARIO_B + 1) % 4
    for scenario_token in (False, True):
        model, variables = make(name, scenario_token=scenario_token)
        assert not model.item_uses_scenario
        first, second = (
            run(model, variables, USERS, scenario_B, method="embed_user")[0]
            for scenario_B in (SCENARIO_B, others_B)
        )
        assert bool(np.abs(first - second).min(axis=-1).max() > 1e-3) == scenario_token
        assert ("scenario_token" in variables["params"]) == scenario_token


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_gets_a_gradient_of_the_objective(name):
    model, variables = make(name, scenario_token=True)

    def objective(params):
        loss_B1, aux = run(
            model, {"params": params}, USERS, ITEMS, SCENARIO_B,
            method="next_item_loss", train=True,
        )  # fmt: skip
        return loss_B1.mean() + sum(aux.values())

    gradient = jax.grad(objective)(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


SUCCESSOR_SPEC = features.FeatureSpec(
    scenarios=("all",),
    user_sparse=(features.SparseFeature("user_id", 2),),
    user_dense=(),
    user_bags=(),
    item_sparse=(features.SparseFeature("item_id", 31),),
    item_dense=(),
    item_bags=(),
    sequences=(features.SequenceFeature("history", ("item_id",), 5),),
)


def make_successors(rng, B):
    """Item i is followed by i + 1 within a minute and by i + 7 after a day, around a ring of 30.

    A pooled history knows neither the order nor the gap.
    """
    length_B = rng.integers(2, 6, B)
    gap_BL = rng.choice([30, 100_000], (B, 6))
    step_BL = np.where(gap_BL == 30, 1, 7)
    item_BL = (rng.integers(0, 30, (B, 1)) + np.cumsum(step_BL, axis=1)) % 30 + 1
    time_BL = 10**6 + np.cumsum(gap_BL, axis=1)
    mask_BL = np.arange(5)[None] < length_B[:, None]
    rows = np.arange(B)
    as_int = functools.partial(jnp.asarray, dtype=jnp.int32)
    history = batch_lib.Sequence(
        as_int((item_BL[:, :5] * mask_BL)[..., None]), as_int(time_BL[:, :5] * mask_BL)
    )
    users = batch_lib.Users(
        sparse_BF=jnp.zeros((B, 1), jnp.int32),
        dense_BF=jnp.zeros((B, 0)),
        bags={},
        sequences={"history": history},
        time_B=as_int(time_BL[rows, length_B]),
    )
    positive_B = item_BL[rows, length_B]
    negative_BN = rng.integers(1, 30, (B, 8))
    negative_BN += negative_BN >= positive_B[:, None]
    id_BG = np.concatenate([positive_B[:, None], negative_BN], axis=1)
    return users, as_int(id_BG)


def as_items(ids):
    return batch_lib.Items(ids[..., None], jnp.zeros((*ids.shape, 0)), {})


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_what_follows_what_and_when(name):
    model = type(CONFIGS[name])(**{**vars(CONFIGS[name]), "output_dim": 16}).make(SUCCESSOR_SPEC)
    rng = np.random.default_rng(0)
    optimizer = optax.adam(1e-2)
    scenario_B = jnp.zeros(64, jnp.int32)
    users, id_BG = make_successors(rng, 64)
    init = jax.jit(functools.partial(model.init, train=False))
    params = init(jax.random.key(0), users, as_items(id_BG), scenario_B)["params"]

    @jax.jit
    def step(params, opt_state, users, id_BG):
        def objective(params):
            loss_B1, aux = model.apply(
                {"params": params}, users, as_items(id_BG), scenario_B,
                train=True, method="next_item_loss",
            )  # fmt: skip
            return loss_B1.mean() + sum(aux.values())

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    def share_found(params):
        users, id_BG = make_successors(np.random.default_rng(1), 64)
        everything = jnp.tile(jnp.arange(1, 31, dtype=jnp.int32)[None], (64, 1))
        logit_BV, _ = run(model, {"params": params}, users, as_items(everything), scenario_B)
        return np.mean(1 + np.argmax(logit_BV, axis=1) == id_BG[:, 0])

    assert share_found(params) < 0.2
    opt_state = optimizer.init(params)
    for _ in range(300):
        params, opt_state, _ = step(params, opt_state, *make_successors(rng, 64))
    assert share_found(params) > 0.9


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hstu", {"output_dim": 0}, "model.output_dim: expected a number >= 1, got 0"),
        ("hstu", {"num_blocks": 0}, "model.num_blocks: expected a number >= 1, got 0"),
        ("fuxi", {"dropout": 1.0}, r"model.dropout: expected a rate in \[0, 1\), got 1.0"),
        ("fuxi", {"temperature": 0.0}, r"model.temperature: expected a number in \(0, 1\], got"),
        (
            "hstu",
            {"num_heads": 3},
            "model.num_heads: expected a divisor of model.output_dim=8, got 3",
        ),
        (
            "fuxi",
            {"num_heads": 3},
            "model.num_heads: expected a divisor of model.output_dim=8, got 3",
        ),
        ("fuxi", {"ffn_multiple": 0}, "model.ffn_multiple: expected a number >= 1, got 0"),
        (
            "fuxi_mme",
            {"num_subspaces": 3},
            "model.num_subspaces: expected a divisor of model.output_dim=8, got 3",
        ),
        (
            "fuxi_mme",
            {"num_heads": 8},
            "model.num_heads: expected a divisor of a sub-space's width 4, got 8",
        ),
        (
            "fuxi_mme",
            {"experts_per_token": 4},
            "model.experts_per_token: expected at most model.num_experts=3, got 4",
        ),
        (
            "fuxi_mme",
            {"balance_weight": -1.0},
            "model.balance_weight: expected a number >= 0, got -1.0",
        ),
    ],
)
def test_field_out_of_range_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        make(name, **changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_asks_for_the_history_and_the_item_id_alone(name):
    spec = make(name)[0].spec
    assert spec.sequences == SPEC.sequences[:1] and spec.item_sparse == SPEC.item_sparse[:1]
    others = (spec.user_sparse, spec.user_dense, spec.user_bags, spec.item_dense, spec.item_bags)
    assert not any(others) and spec.scenarios == SPEC.scenarios


def test_the_main_stage_minimises_the_method_of_the_model():
    for name, config in CONFIGS.items():
        objective = config.objective()
        assert hasattr(make(name)[0], objective.loss_method) and objective.last_only


@pytest.mark.parametrize("name", CONFIGS)
def test_a_teacher_is_refused(name):
    experiment = schema.Experiment("", schema.DataConfig(), CONFIGS[name], schema.TeacherConfig())
    with pytest.raises(ValueError, match=r"loss.distill_weight: expected 0 with .*Config, whose"):
        experiment.validate()
    experiment.loss.distill_weight = 0.0
    experiment.validate()


@pytest.mark.parametrize("name", CONFIGS)
def test_another_encoder_of_the_history_is_refused(name):
    spec = tiny_features.make_spec(history_encoder="fuxi")
    with pytest.raises(ValueError, match=r"features.history_encoder: expected 'mean' with .*, whi"):
        CONFIGS[name].make(spec)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_without_a_history_are_refused(name):
    spec = tiny_features.make_spec(sequences=SPEC.sequences[1:])
    with pytest.raises(ValueError, match="expected features with the sequence 'history' of item"):
        CONFIGS[name].make(spec)
