import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.models.matching import m5
from dsmoe_jax.nn import embed
from dsmoe_jax.training import losses

B, G, S, L, E, W, K = 12, 3, 4, 3, 4, 6, 3
JOINED = features.SequenceFeature(
    features.SCENARIO_HISTORIES, ("item_id",), S * L, per_scenario=True
)
PLAIN = tiny_features.make_spec()
SPEC = dataclasses.replace(PLAIN, sequences=(*PLAIN.sequences, JOINED))
V = SPEC.num_items
USERS = tiny_features.make_users(SPEC, B)
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
CORPUS = tiny_features.make_items(SPEC, (V,), seed=7)
CORPUS = CORPUS._replace(sparse_VF=CORPUS.sparse_VF.at[:, 0].set(jnp.arange(V)))
ITEM_BG = jnp.asarray(np.random.default_rng(1).integers(1, V, (B, G)), jnp.int32)
ITEMS = batch_lib.take_items(CORPUS, ITEM_BG)


def item_fields(corpus=CORPUS):
    """The constants that hold a corpus."""
    return {
        "sparse_category_V": corpus.sparse_VF[:, 1],
        "sparse_kind_V": corpus.sparse_VF[:, 2],
        "dense_duration_V": corpus.dense_VF[:, 0],
        "bag_tag_VP": corpus.bags["tag"],
    }


@functools.cache
def make(**changes):
    fields = {
        "attention_dim": W, "num_experts": K, "expert_dims": (8, 7), "output_dim": 10,
        "mask_negatives": 5,
    }  # fmt: skip
    model = m5.M5Config(**{**fields, **changes}).make(SPEC)
    variables = tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)
    return model, {**variables, "constants": item_fields()}


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def run(model, variables, *inputs, method=None, train=False, key=None):
    output, _ = model.apply(
        variables, *inputs, train=train, method=method, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0) if key is None else key} if train else None,
    )  # fmt: skip
    return output


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def softmax(x):
    weight = np.exp(x - x.max())
    return weight / weight.sum()


class Naive:
    """The model at evaluation, one user and one item at a time, in NumPy.

    Histories are read by `m5.Interests`, which has such a test of its own.
    """

    def __init__(self, variables):
        self.variables = variables
        self.params, self.stats = (
            jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats")
        )
        self.embedder = embed.Embedder(SPEC).bind({"params": variables["params"]["embedder"]})

    def channels(self, item):
        """Embeddings of one item."""
        tables, dense_FE = (self.params["embedder"][n] for n in ("item_tables", "item_dense"))
        category, kind = (int(i) for i in CORPUS.sparse_VF[item, 1:])
        tags = [tables["small_fields"][t] for t in np.asarray(CORPUS.bags["tag"])[item] if t]
        side = [
            tables["category"][category] * (category > 0),
            tables["kind"][kind] * (kind > 0),
            np.mean(tags, axis=0) if tags else np.zeros(E),
            np.asarray(CORPUS.dense_VF)[item, 0] * dense_FE[0],
        ]
        content = dense(self.params["content"], np.concatenate(side))
        return {"id": tables["item_id"][item] * (item > 0), "content": content}

    def item(self, item):
        found = self.channels(item)
        return {c: dense(self.params[f"item_heads_{c}"], found[c]) for c in m5.CHANNELS}

    def interests(self, b, channel):
        """Of every scenario in turn, from the events in reverse."""
        layer = m5.Interests(E, W, 2, L)
        ids = np.asarray(USERS.sequences[features.SCENARIO_HISTORIES].ids_BLF)[b, :, 0]
        for s in range(S):
            events = [i for i in ids[s * L : (s + 1) * L] if i][::-1]
            rows = [self.channels(i)[channel] for i in events] + [np.zeros(E)] * (L - len(events))
            params = {"params": self.variables["params"][f"interests_{channel}"]}
            mask_NL = jnp.arange(L)[None] < len(events)
            event_NLE = jnp.asarray(np.stack(rows)[None], jnp.float32)
            found, _ = layer.apply(params, event_NLE, mask_NL, jnp.zeros((1, L), bool))
            yield np.asarray(found)[0]

    def user(self, b, s):
        """The vectors of both channels, and their weights."""
        params = self.params
        x_u = np.asarray(self.embedder.users(USERS).input_BI)[b]
        e_s = params["embedder"]["scenario_table"][s]
        parts = [x_u]
        for channel in m5.CHANNELS:
            parts.extend(self.interests(b, channel))
        parts.append(dense(params["cross_user"], x_u) * dense(params["cross_scenario"], e_s))
        x = np.concatenate(parts)
        logit = dense(params["gates"], np.concatenate([x, e_s]))
        experts = []
        for k in range(K):
            h = self.block("blocks_0", dense(params["first"], x), k, 8)
            layer = {
                "kernel": params["layers_0"]["kernel"][k],
                "bias": params["layers_0"]["bias"][7 * k : 7 * k + 7],
            }
            every = np.concatenate([np.zeros(7 * k), dense(layer, h), np.zeros(7 * (K - 1 - k))])
            experts.append(self.block("blocks_1", every, k, 7))
        vectors = {}
        for c, channel in enumerate(m5.CHANNELS):
            gate = softmax(logit[c * K : (c + 1) * K])
            mixed = sum(weight * expert for weight, expert in zip(gate, experts, strict=True))
            vectors[channel] = dense(params[f"user_heads_{channel}"], mixed)
        return vectors, softmax(logit[2 * K :])

    def block(self, name, x, k, width):
        affine, moments = self.params[name]["norm"], self.stats[name]["norm"]
        x = affine["scale"][0] * (x - moments["mean"][0]) / np.sqrt(moments["var"][0] + 1e-5)
        return np.maximum(x + affine["bias"][0], 0)[k * width : (k + 1) * width]


def test_score_is_the_weighted_sum_of_both_preferences():
    model, variables = make()
    logit_BG, aux = run(model, variables, USERS, ITEMS, SCENARIO_B)
    user_BMD, _ = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    item_BGD, _ = run(model, variables, ITEMS, SCENARIO_B, method="embed_item")
    assert aux == {}
    naive = Naive(variables)
    for b in (0, 1, 2, 7):  # the first has no history
        vectors, weights = naive.user(b, int(SCENARIO_B[b]))
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
        weighted = np.concatenate([w * u for w, u in zip(weights, vectors.values(), strict=True)])
        np.testing.assert_allclose(user_BMD[b, 0], weighted, rtol=1e-3, atol=1e-4)
        for g in range(G):
            found = naive.item(int(ITEM_BG[b, g]))
            both = np.concatenate(list(found.values()))
            np.testing.assert_allclose(item_BGD[b, g], both, rtol=1e-4, atol=1e-5)
            scores = [vectors[c] @ found[c] for c in m5.CHANNELS]
            np.testing.assert_allclose(logit_BG[b, g], weights @ scores, rtol=1e-3, atol=1e-3)


def test_content_of_a_history_is_that_of_the_candidates_by_either_way():
    """Few events are embedded one by one, many through the whole corpus."""
    model, variables = make()
    item_NL = jnp.asarray([[3, 5, 0], [1, 1, V - 1]], jnp.int32)
    assert item_NL.size < V
    apply = functools.partial(model.apply, variables, method="_embed_contents")
    few_NLE, many_NLE = apply(item_NL), apply(jnp.tile(item_NL, (V, 1)))
    np.testing.assert_allclose(many_NLE[:2], few_NLE, rtol=1e-5, atol=1e-6)
    candidates = batch_lib.take_items(CORPUS, item_NL)
    expected = model.apply(variables, candidates, method="_embed_channels")["content"]
    np.testing.assert_allclose(few_NLE, expected, rtol=1e-5, atol=1e-6)


def test_a_history_speaks_through_its_content():
    model, variables = make()
    other = CORPUS._replace(dense_VF=CORPUS.dense_VF + 1)
    changed = {**variables, "constants": item_fields(other)}
    first, second = (
        np.asarray(run(model, v, USERS, SCENARIO_B, method="embed_user")[0])[:, 0]
        for v in (variables, changed)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1:] - second[1:]).max(axis=1).min() > 1e-4


def test_only_the_last_events_of_every_scenario_are_read():
    short, _ = make(attention_length=L - 1)
    init = jax.jit(functools.partial(short.init, train=False))
    variables = init(jax.random.key(0), USERS, ITEMS, SCENARIO_B)
    variables = {**variables, "constants": item_fields()}
    joined = USERS.sequences[features.SCENARIO_HISTORIES]
    full_BSL = jnp.asarray(np.random.default_rng(0).integers(1, V, (B, S, L)), jnp.int32)

    def read(ids_BSL):
        sequence = joined._replace(ids_BLF=ids_BSL.reshape(B, S * L, 1))
        users = USERS._replace(sequences={**USERS.sequences, features.SCENARIO_HISTORIES: sequence})
        return np.asarray(run(short, variables, users, SCENARIO_B, method="embed_user")[0])

    other_BSL = full_BSL % (V - 1) + 1
    found = read(full_BSL)
    np.testing.assert_array_equal(found, read(full_BSL.at[:, :, 0].set(other_BSL[:, :, 0])))
    for t in range(1, L):
        changed = read(full_BSL.at[:, :, t].set(other_BSL[:, :, t]))
        assert np.abs(found - changed).max(axis=(1, 2)).min() > 1e-5
    # A history that is shorter than what may be read.
    few_BSL = full_BSL.at[:, :, 1:].set(0)
    changed = read(few_BSL.at[:, :, 0].set(other_BSL[:, :, 0]))
    assert np.abs(read(few_BSL) - changed).max(axis=(1, 2)).min() > 1e-5


def test_the_masked_item_loss_is_of_training_alone_and_weighted():
    _, variables = make()
    found = []
    for weight in (0.1, 0.3):
        changed, _ = make(mask_weight=weight)
        _, aux = run(changed, variables, USERS, ITEMS, SCENARIO_B, train=True)
        assert set(aux) == {"masked_items"} and aux["masked_items"].shape == ()
        found.append(float(aux["masked_items"]))
    assert found[0] > 0
    np.testing.assert_allclose(found[1], 3 * found[0], rtol=1e-4)
    none, _ = make(mask_rate=0.0)
    assert run(none, variables, USERS, ITEMS, SCENARIO_B, train=True)[1]["masked_items"] == 0


def test_a_fifth_of_the_events_is_masked_and_no_padding():
    model, variables = make()
    mask_NL = jnp.asarray(np.random.default_rng(0).random((4000, L)) < 0.7)
    masked_NL = np.asarray(
        model.apply(variables, mask_NL, method="_draw_masked", rngs={"dropout": jax.random.key(0)})
    )
    assert not (masked_NL & ~np.asarray(mask_NL)).any()
    assert masked_NL.sum() / mask_NL.sum() == pytest.approx(0.2, abs=0.02)


def test_number_of_parameters_is_that_of_the_equations():
    spec = dataclasses.replace(SPEC, embedding_dim=16)
    model = m5.M5Config().make(spec)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), USERS, ITEMS, SCENARIO_B)["params"]
    embedder = embed.Embedder(spec)
    E, W, K, user, side = 16, 64, 4, embedder.user_dim, embedder.item_dim - 16
    width = user + 2 * S * W + W
    block = (W * 3 * W + 3 * W) + (W * W + W) + (W * 2 * W + 2 * W) + (2 * W * W + W) + 4 * W
    reader = L * E + E + (E * W + W) + block + (W * W + W) + W + (W * E + E)
    experts = K * ((width * 256 + 256) + (256 * 128 + 128) + 2 * (256 + 128))
    gates = (width + E) * (2 * K + 2) + (2 * K + 2)
    heads = 2 * ((128 * 64 + 64) + (E * 64 + 64))
    expected = (side * E + E) + 2 * reader + (user * W + E * W) + experts + gates + heads
    own = {name: part for name, part in params.items() if name != "embedder"}
    assert sum(leaf.size for leaf in jax.tree.leaves(own)) == expected


def test_constants_are_the_items_fields():
    model, _ = make()
    assert model.constant_shapes == {n: v.shape for n, v in item_fields().items()}
    spec = dataclasses.replace(SPEC, item_bags=(), item_dense=())
    assert set(m5.M5Config().make(spec).constant_shapes) == {"sparse_category_V", "sparse_kind_V"}


def make_planted():
    """What is liked has the category of the last click in the next scenario.

    A history's clicks are of one category each scenario, and every item's id is rare.
    """
    categories, items, length, rows, negatives = 4, 400, 4, 64, 3
    scenarios = ("A", "B", "C")
    spec = features.FeatureSpec(
        scenarios=scenarios,
        user_sparse=(features.SparseFeature("age", 3),), user_dense=(), user_bags=(),
        item_sparse=(
            features.SparseFeature("item_id", items + 1),
            features.SparseFeature("category", categories + 1),
        ),
        item_dense=(), item_bags=(),
        sequences=(dataclasses.replace(JOINED, max_len=3 * length),), embedding_dim=8,
    )  # fmt: skip
    category_V = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.arange(items) % categories + 1])

    def draw_items(key, category):
        return (
            categories * jax.random.randint(key, category.shape, 0, items // categories) + category
        )

    def draw(key):
        keys = jax.random.split(key, 5)
        category_BS = jax.random.randint(keys[0], (rows, 3), 1, categories + 1)
        scenario_B = jax.random.randint(keys[1], (rows,), 0, 3)
        ids_BL = draw_items(keys[2], jnp.repeat(category_BS, length, axis=1))
        liked_B = category_BS[jnp.arange(rows), (scenario_B + 1) % 3]
        category_BG = (liked_B[:, None] - 1 + jnp.arange(1 + negatives)[None]) % categories + 1
        item_BG = draw_items(keys[3], category_BG)
        joined = batch_lib.Sequence(ids_BL[..., None], jnp.zeros_like(ids_BL))
        users = batch_lib.Users(
            jnp.ones((rows, 1), jnp.int32), jnp.zeros((rows, 0)), {},
            {features.SCENARIO_HISTORIES: joined}, jnp.zeros(rows, jnp.int32),
        )  # fmt: skip
        fields = jnp.stack([item_BG, category_V[item_BG]], axis=-1)
        return users, batch_lib.Items(fields, jnp.zeros((rows, 1 + negatives, 0)), {}), scenario_B

    return spec, draw, {"sparse_category_V": category_V}


def test_what_another_scenarios_history_says_is_learned():
    spec, draw, constants = make_planted()
    model = m5.M5Config(
        attention_dim=16, num_experts=2, expert_dims=(32, 16), output_dim=16, mask_negatives=16
    ).make(spec)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), *draw(jax.random.key(0)))
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        params, stats, opt_state = carry

        def loss(params):
            (logit_BG, aux), updated = model.apply(
                {"params": params, "batch_stats": stats, "constants": constants}, *draw(key),
                train=True, mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
            task = losses.bce_with_logits(logit_BG, label_BG).mean()
            return task + aux["masked_items"], (updated["batch_stats"], aux["masked_items"])

        gradient, (stats, masked) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), masked

    start = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    keys = jax.random.split(jax.random.key(1), 100)
    (params, stats, _), masked_X = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(start)
    trained = {"params": params, "batch_stats": stats, "constants": constants}
    users, items, scenario_B = draw(jax.random.key(2))

    def hits(scenario_B):
        logit_BG, _ = run(model, trained, users, items, scenario_B)
        return float((logit_BG.argmax(axis=1) == 0).mean())

    assert hits(scenario_B) > 0.9
    assert hits((scenario_B + 1) % 3) < 0.5
    # The others of a history tell the category of what is masked.
    assert masked_X[-10:].mean() < 0.8 * masked_X[:10].mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "model.num_experts: expected a number >= 1, got 0"),
        ({"expert_dims": ()}, "model.expert_dims: expected at least one width, got none"),
        ({"attention_dim": 5}, "model.attention_dim: expected a multiple of num_heads, got 5"),
        ({"output_dim": 7}, "model.output_dim: expected an even number, got 7"),
        ({"mask_rate": 1.0}, r"model.mask_rate: expected a rate in \[0, 1\), got 1.0"),
        ({"mask_weight": -1.0}, "model.mask_weight: expected a number >= 0, got -1.0"),
        ({"norm": "ln"}, "model.norm: expected one of .*, got 'ln'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        m5.M5Config(**changes).make(SPEC)


def test_features_without_histories_or_content_are_refused():
    with pytest.raises(ValueError, match="expected the sequence 'scenario_histories'"):
        m5.M5Config().make(PLAIN)
    bare = dataclasses.replace(
        SPEC, item_sparse=SPEC.item_sparse[:1], item_dense=(), item_bags=(), sequences=(JOINED,)
    )
    with pytest.raises(ValueError, match="expected an item feature beside 'item_id', got none"):
        m5.M5Config().make(bare)
