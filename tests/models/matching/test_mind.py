import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import planted_clicks
import pytest
import tiny
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax.config import schema
from dsmoe_jax.data import pipeline
from dsmoe_jax.evaluation import evaluators
from dsmoe_jax.models.matching import mind
from dsmoe_jax.training import checkpoint, optimizer, sharding, train_state

B, G, S, E, M, D = 12, 3, 4, 4, 3, 5
HIDDEN = (8, 6)
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
# Widths of the inputs: fields, dense features, bags; pooled histories and what is routed.
USER_DIM, ITEM_DIM = (3 + 2 + 1 + 4) * E, (3 + 1 + 1) * E
FIRST_POOLED = 6 * E
PLACE = {"history": (0, 1), "scenario_history": (1, 1), "behavior": (2, 2)}


@functools.cache
def make(**changes):
    fields = {"num_interests": M, "hidden_dims": HIDDEN, "output_dim": D}
    model = mind.MINDConfig(**{**fields, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)[0]


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, key):
    return model.apply(
        variables, USERS, SCENARIO_B, train=True, method="embed_user",
        mutable=["batch_stats"], rngs={"dropout": key},
    )  # fmt: skip


def perceptron(params, stats, x):
    """Linear -> normalisation -> ReLU until the last layer."""
    for n in range(sum(name.startswith("layers") for name in params)):
        x = x @ params[f"layers_{n}"]["kernel"] + params[f"layers_{n}"]["bias"]
        if f"blocks_{n}" in params:
            x = normalise(params[f"blocks_{n}"]["norm"], stats[f"blocks_{n}"]["norm"], x)
    return x


def normalise(params, stats, x):
    gain = params["scale"][0] / np.sqrt(stats["var"][0] + 1e-5)
    return np.maximum((x - stats["mean"][0]) * gain + params["bias"][0], 0)


def vectors_by_hand(variables, sequence):
    """User vectors from the embedded features, one user and interest at a time."""
    params, stats = (jax.tree.map(np.asarray, variables[k]) for k in ("params", "batch_stats"))
    model, _ = make(sequence=sequence)
    embedded = model.apply(variables, USERS, method=lambda m, users: m.embedder.users(users))
    events = jax.tree.map(np.asarray, embedded.events[sequence])
    place, fields = PLACE[sequence]
    start = FIRST_POOLED + place * E
    noise_LM = np.asarray(mind.routing_noise(events.event_BLE.shape[1], M))
    found = np.zeros((B, M, D))
    for b in range(B):
        profile = np.delete(np.asarray(embedded.input_BI[b]), np.s_[start : start + fields * E])
        profile = np.concatenate([profile, params["embedder"]["scenario_table"][b % S]])
        length = int(events.mask_BL[b].sum())
        active = 2 if length >= 3 else 1
        mapped = events.event_BLE[b, :length] @ params["routing"]["bilinear"]
        logit, interest = noise_LM[:length, :active], np.zeros((active, fields * E))
        for _ in range(3):
            weight = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
            z = weight.T @ mapped
            norm = np.linalg.norm(z, axis=1, keepdims=True)
            interest = norm / (1 + norm**2) * z
            logit = logit + mapped @ interest.T
        for m in range(M):
            x = np.concatenate([profile, interest[m if m < active else 0]])
            x = x @ params["first"]["kernel"] + params["first"]["bias"]
            x = normalise(params["first_block"]["norm"], stats["first_block"]["norm"], x)
            found[b, m] = perceptron(params["user_tower"], stats["user_tower"], x)
    return found


@pytest.mark.parametrize("sequence", ["history", "behavior"])
def test_vectors_equal_those_made_by_hand(sequence):
    model, variables = make(sequence=sequence)
    user_BMD = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    np.testing.assert_allclose(user_BMD, vectors_by_hand(variables, sequence), rtol=1e-3, atol=1e-3)
    item_BGD = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    input_BGI = model.apply(
        variables, ITEMS, method=lambda m, items: m.embedder.items(items).input_BI
    )
    params, stats = (
        jax.tree.map(np.asarray, variables[k]["item_tower"]) for k in ("params", "batch_stats")
    )
    expected = perceptron(params, stats, np.asarray(input_BGI))
    np.testing.assert_allclose(item_BGD, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_interests_that_a_history_does_not_support_repeat_the_first(training):
    model, variables = make(input_dropout=0.5, hidden_dims=(32,))
    if training:
        (user_BMD, _), _ = train(model, variables, jax.random.key(1))
    else:
        user_BMD = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    length_B = np.asarray(USERS.sequences["history"].ids_BLF[..., 0] > 0).sum(axis=1)
    assert {0, 1, 2, 3} & set(length_B.tolist()) and length_B.max() >= 3
    for b, length in enumerate(length_B):
        first = user_BMD[b, 0]
        np.testing.assert_array_equal(user_BMD[b, 2], first)
        assert bool((user_BMD[b, 1] == first).all()) == (length < 3)


def test_vectors_in_training_are_random_through_dropout_alone():
    model, variables = make(norm="none")
    (user_BMD, _), _ = train(model, variables, jax.random.key(1))
    evaluated = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    np.testing.assert_allclose(user_BMD, evaluated, rtol=1e-5, atol=1e-6)
    model, variables = make(norm="none", input_dropout=0.5)
    (other_BMD, _), _ = train(model, variables, jax.random.key(2))
    assert np.abs(other_BMD - user_BMD).min() > 0


def test_more_padding_changes_nothing():
    model, variables = make()
    longer = {
        name: jax.tree.map(
            lambda leaf: jnp.pad(leaf, ((0, 0), (0, 5), (0, 0))[: leaf.ndim]), sequence
        )
        for name, sequence in USERS.sequences.items()
    }
    np.testing.assert_allclose(
        run(model, variables, USERS._replace(sequences=longer), SCENARIO_B, method="embed_user"),
        run(model, variables, USERS, SCENARIO_B, method="embed_user"),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_scenario_moves_users_and_no_item():
    model, variables = make(hidden_dims=(32,))
    other_B = (SCENARIO_B + 1) % S
    difference = run(model, variables, USERS, SCENARIO_B, method="embed_user") - run(
        model, variables, USERS, other_B, method="embed_user"
    )
    assert (np.abs(difference).max(axis=(1, 2)) > 1e-3).all() and not model.item_uses_scenario
    items = [
        run(model, variables, ITEMS, here_B, method="embed_item")
        for here_B in (SCENARIO_B, other_B)
    ]
    np.testing.assert_array_equal(*items)


def test_number_of_parameters():
    _, variables = make()
    params = {name: tree for name, tree in variables["params"].items() if name != "embedder"}
    hidden = HIDDEN[0] * HIDDEN[1] + HIDDEN[1] + 2 * sum(HIDDEN) + HIDDEN[1] * D + D
    expected = E * E + (USER_DIM + E + 1) * HIDDEN[0] + (ITEM_DIM + 1) * HIDDEN[0] + 2 * hidden
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A random store, and a model with random parameters for it."""
    store = tiny.write_store(tmp_path_factory.mktemp("store") / "store")
    spec = tiny.make_spec(max_len=8)
    model = mind.MINDConfig(num_interests=M, hidden_dims=(6,), output_dim=4).make(spec)
    updater = optimizer.Dense(optimizer.make_optimizer(1e-3, 0.0))
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = train_state.init_state(model, updater, key=jax.random.key(0), mesh=mesh)
    state = state._replace(params=tiny_features.randomise(state.params))
    return store, spec, model, mesh, state


@pytest.mark.parametrize("backend", ["exact", "faiss"])
def test_retrieved_lists_are_those_of_the_largest_score_over_interests(trained, backend):
    store, spec, model, mesh, state = trained
    frozen = train_state.freeze(state)
    corpus = sharding.put_replicated(mesh, pipeline.read_corpus(store, spec))
    chosen = schema.EvalConfig(k=(2, 5), query_batch=16, item_batch=12, backend=backend)
    query_Q = np.arange(len(store.queries("test").rows_QC))
    found = evaluators.MatcherEvaluator(store, spec, corpus, model, chosen, mesh)(
        frozen, "test", query_Q
    )

    def scores(ids):
        queries = next(pipeline.query_batches(store, spec, "test", ids, len(ids)))
        everything = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[None], (len(ids), *leaf.shape)), corpus
        )
        variables = frozen.variables
        users = jax.tree.map(jnp.asarray, queries.users)
        return run(model, variables, users, everything, jnp.asarray(queries.scenario_Q))

    expected = evaluators.evaluate_scores(
        store, dataclasses.replace(chosen, backend="exact"), "test", query_Q, scores
    )
    for k in (2, 5):
        np.testing.assert_allclose(found.recall[k], expected.recall[k])
    assert 0 < found.recall[5].mean() < 1


def test_checkpoint_restores_the_same_vectors(trained, tmp_path):
    _, spec, model, mesh, state = trained
    users, _, scenario_B = train_state.example_inputs(spec)
    saved = checkpoint.StageCheckpoints(tmp_path, "student", {})
    saved.best.save(state, checkpoint.Progress(stage="student", step=1))
    saved.wait()
    restored, _ = saved.best.restore(state, mesh)
    saved.close()
    assert set(restored.model_state) == {"batch_stats"}
    before, after = (
        run(model, {"params": s.params, **s.model_state}, users, scenario_B, method="embed_user")
        for s in (state, restored)
    )
    np.testing.assert_array_equal(before, after)


def share_found(num_interests):
    """Of the items of two groups that a user likes, in three dimensions.

    Two groups are any two of eight: single vectors can point at every pair only in five dimensions
    or more.
    """
    spec = planted_clicks.make_spec(1, 8)
    model = mind.MINDConfig(
        num_interests=num_interests, hidden_dims=(32,), output_dim=3
    ).make(spec)  # fmt: skip

    def draw_users(key, size):
        keys = jax.random.split(key, 4)
        N = planted_clicks.NUM_GROUPS
        first_B = jax.random.randint(keys[0], (size,), 0, N)
        second_B = (first_B + jax.random.randint(keys[1], (size,), 1, N)) % N
        liked_B2 = jnp.stack([first_B, second_B], axis=1)
        order_BL = jax.random.permutation(
            keys[2], jnp.tile(liked_B2, (1, 4)), axis=1, independent=True
        )
        history_BL = planted_clicks.draw_items(keys[3], order_BL)
        return planted_clicks.make_users(jnp.full(size, -1), history_BL), liked_B2

    def draw_batch(key, size=64):
        keys = jax.random.split(key, 3)
        users, liked_B2 = draw_users(keys[0], size)
        group_B = jnp.where(jax.random.bernoulli(keys[1], shape=(size,)), *liked_B2.T)
        item_B = planted_clicks.draw_items(keys[2], group_B)
        return batch_lib.Batch(users, jnp.zeros(size, jnp.int32), item_B)

    frozen = planted_clicks.fit(model, draw_batch, steps=400, learning_rate=1e-2)
    users, liked_B2 = draw_users(jax.random.key(1), 200)
    liked_BG = np.asarray(jax.nn.one_hot(liked_B2, planted_clicks.NUM_GROUPS).sum(axis=1) > 0)
    scenario_B = jnp.zeros(200, jnp.int32)
    return planted_clicks.share_found(model, frozen, users, scenario_B, liked_BG)


def test_two_tastes_that_one_vector_cannot_serve_are_served_by_several():
    several, one = share_found(3), share_found(1)
    assert several > 0.85 and one < 0.7, (several, one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_interests": 0}, r"model.num_interests: expected a number >= 1, got 0"),
        ({"routing_iterations": 0}, r"model.routing_iterations: expected a number >= 1, got 0"),
        ({"sequence": "likes"}, r"model.sequence: expected one of \('history', .*, got 'likes'"),
        ({"hidden_dims": ()}, r"model.hidden_dims: expected at least one width, got none"),
        ({"hidden_dims": (0,)}, r"model.hidden_dims: expected widths >= 1, got \(0,\)"),
        ({"output_dim": 0}, r"model.output_dim: expected a number >= 1, got 0"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"norm": "ln"}, r"model.norm: expected one of .*, got 'ln'"),
        ({"bn_momentum": 0.0}, r"model.bn_momentum: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mind.MINDConfig(**changes).make(SPEC)
