import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.models.matching import perscen, perscen_graph
from dsmoe_jax.nn import embed
from dsmoe_jax.training import losses

B, G, H, D = 12, 3, 6, 5
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@functools.cache
def make(**changes):
    fields = {"hidden_dim": H, "output_dim": D, "num_codes": 8}
    model = perscen.PERSCENConfig(**{**fields, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)[0]


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, users, items, scenario_B):
    return model.apply(
        variables, users, items, scenario_B, train=True,
        mutable=["batch_stats", "codes"], rngs={"dropout": jax.random.key(1)},
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="method")
def embed_raw(variables, inputs, method):
    """Has tests of its own."""
    params = {"params": variables["params"]["embedder"]}
    return embed.Embedder(SPEC).apply(params, inputs, method=method)


class Naive:
    """The towers in NumPy, one row at a time, as the docstrings print them."""

    def __init__(self, variables):
        self.variables = variables
        self.params = jax.tree.map(np.asarray, variables["params"])
        self.stats = jax.tree.map(np.asarray, variables.get("batch_stats", {}))
        self.scenario_SC = self.params["embedder"]["scenario_table"]

    def dense(self, name, x):
        layer = self.params[name]
        return x @ layer["kernel"] + layer["bias"]

    def block(self, name, x):
        if name in self.params:
            x = self.norm(self.params[name], self.stats[name], x)
        return np.maximum(x, 0)

    def norm(self, params, stats, x):
        stats, params = stats.get("norm", stats), params.get("norm", params)
        normal = (x - stats["mean"][0]) / np.sqrt(stats["var"][0] + 1e-5)
        return normal * params["scale"][0] + params["bias"][0]

    def encode_scenario(self, s):
        hidden = np.maximum(self.dense("scenario_hidden", self.scenario_SC[s]), 0)
        return self.dense("scenario_out", hidden)

    def encode_preference(self, pooled):
        hidden = self.block("preference_block", self.dense("preference_hidden", pooled))
        return self.dense("preference_out", hidden)

    def quantise(self, z):
        """The nearest code and the squared distance to it."""
        distance_N = np.square(self.params["codes"]["codebook"] - z).sum(axis=1)
        return self.params["codes"]["codebook"][distance_N.argmin()], distance_N.min()

    def tower(self, side, interactions, seed):
        params, stats = self.params[f"{side}_tower"], self.stats[f"{side}_tower"]
        gated, fused = seed, 0
        share = 1 / (1 + np.exp(-params["fusion"][0]))
        for layer, interaction in enumerate(interactions):
            read = interaction @ params[f"read_{layer}"]["kernel"]
            read = self.norm(params[f"norms_{layer}"], stats[f"norms_{layer}"], read)
            gate = gated @ params[f"gate_{layer}"]["kernel"]
            gated = (read @ params[f"value_{layer}"]["kernel"]) / (1 + np.exp(-gate))
            fused = fused + share * read + (1 - share) * gated
        return fused @ params["out"]["kernel"]

    def interactions(self, side, x_BI, layers):
        """Has tests of its own against a loop."""
        graph = perscen_graph.FeatureGraph(
            x_BI.shape[1] // SPEC.embedding_dim, SPEC.embedding_dim, layers
        )
        params = self.params[f"{side}_tower"]["graph"]
        products = [x_BI, *graph.apply({"params": params}, x_BI)]
        return np.stack([np.asarray(x) for x in products], axis=1)

    def embed_users(self, users, scenario_B, layers):
        embedded = embed_raw(self.variables, users, "users")
        interactions = self.interactions("user", embedded.input_BI, layers)
        found = []
        for b, s in enumerate(np.asarray(scenario_B)):
            z = self.encode_preference(np.asarray(embedded.pooled["scenario_history"])[b])
            joint = np.concatenate([z + self.quantise(z)[0], self.encode_scenario(s)])
            hidden = self.block("seed_block", self.dense("seed_hidden", joint))
            found.append(self.tower("user", interactions[b], self.dense("seed_out", hidden)))
        return np.stack(found)

    def embed_items(self, items, scenario_B, layers):
        embedded = embed_raw(self.variables, items, "items")
        interactions = self.interactions("item", embedded.input_BI, layers)
        rows = zip(interactions, np.asarray(scenario_B), strict=True)
        return np.stack([self.tower("item", row, self.encode_scenario(s)) for row, s in rows])


@pytest.mark.parametrize("layers", [1, 3])
def test_towers_equal_numpy_ones(layers):
    model, variables = make(num_layers=layers)
    naive = Naive(variables)
    user_BMD = run(model, variables, USERS, SCENARIO_B, method="embed_user")
    expected = naive.embed_users(USERS, SCENARIO_B, layers)
    np.testing.assert_allclose(user_BMD[:, 0], expected, rtol=1e-3, atol=1e-3)
    items = jax.tree.map(lambda leaf: leaf[:, 0], ITEMS)
    item_BD = run(model, variables, items, SCENARIO_B, method="embed_item")
    expected = naive.embed_items(items, SCENARIO_B, layers)
    np.testing.assert_allclose(item_BD, expected, rtol=1e-3, atol=1e-3)


def test_an_empty_history_pools_to_zeros():
    _, variables = make()
    pooled = embed_raw(variables, USERS, "users").pooled
    np.testing.assert_array_equal(pooled["scenario_history"][0], np.zeros(4))


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ((), "scenario_history"),
        (("scenario_history",), "history"),
        (("scenario_history", "history"), "behavior"),
    ],
)
def test_preference_is_read_from_the_first_history_there_is(left_out, expected):
    spec = dataclasses.replace(
        SPEC, sequences=tuple(s for s in SPEC.sequences if s.name not in left_out)
    )
    model = perscen.PERSCENConfig(hidden_dim=H, output_dim=D).make(spec)
    assert model.preference_history == expected
    users = tiny_features.make_users(spec, B)
    variables = tiny_features.make_variables(model, users, ITEMS, SCENARIO_B)
    width = 8 if expected == "behavior" else 4
    assert variables["params"]["preference_hidden"]["kernel"].shape == (width, H)
    # The tower reads the history too, so that the preference's part is told by its own gradient.
    gradient = jax.grad(
        lambda params: run(
            model, {**variables, "params": params}, users, SCENARIO_B, method="embed_user"
        ).sum()
    )(variables["params"])
    assert np.abs(gradient["preference_hidden"]["kernel"]).max() > 0


def test_longer_padding_changes_nothing():
    model, variables = make()
    longer = tuple(dataclasses.replace(s, max_len=s.max_len + 3) for s in SPEC.sequences)
    other = perscen.PERSCENConfig(hidden_dim=H, output_dim=D, num_codes=8).make(
        dataclasses.replace(SPEC, sequences=longer)
    )

    def pad(sequence):
        return batch_lib.Sequence(
            jnp.pad(sequence.ids_BLF, ((0, 0), (0, 3), (0, 0))),
            jnp.pad(sequence.time_BL, ((0, 0), (0, 3))),
        )

    users = USERS._replace(sequences={name: pad(s) for name, s in USERS.sequences.items()})
    np.testing.assert_allclose(
        run(other, variables, users, SCENARIO_B, method="embed_user"),
        run(model, variables, USERS, SCENARIO_B, method="embed_user"),
        rtol=1e-5,
        atol=1e-5,
    )


def test_number_of_parameters():
    model = perscen.PERSCENConfig(hidden_dim=H, output_dim=D, num_codes=8, num_layers=2).make(SPEC)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), USERS, ITEMS, SCENARIO_B
    )
    params = dict(shapes["params"])
    del params["embedder"]
    E, C, L = 4, 4, 2

    def tower(F):
        generators = F * ((F * E) * F + F + 2 * (F * F + F))
        read = F * E * H + 2 * H
        return generators + L * E * E + (L + 1) * (read + 2 * H * H) + 1 + H * D

    def perceptron(inputs, normalised):
        return inputs * H + H + H * H + H + 2 * H * normalised

    # Ten user fields: three sparse, two dense, a bag, two histories of ids and one of two fields.
    expected = tower(10) + tower(5) + 8 * H
    expected += perceptron(C, False) + perceptron(E, True) + perceptron(2 * H, True)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_quantisers_loss_is_a_weighted_mean_in_training_only():
    model, variables = make(vq_weight=1.0)
    (_, aux), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    halved, _ = make(vq_weight=0.5)
    (_, half), _ = train(halved, variables, USERS, ITEMS, SCENARIO_B)
    assert set(aux) == {"vq"} and aux["vq"].shape == () and aux["vq"] > 0
    np.testing.assert_allclose(half["vq"], aux["vq"] / 2, rtol=1e-6)
    _, evaluated = model.apply(variables, USERS, SCENARIO_B, train=False, method="embed_user")
    assert evaluated == {}


def test_quantisers_loss_is_that_of_the_preferences():
    # Without normalisation, which in training sees the batch.
    model, variables = make(norm="none")
    (_, aux), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    naive = Naive(variables)
    pooled_BE = np.asarray(embed_raw(variables, USERS, "users").pooled["scenario_history"])
    distance_B = [naive.quantise(naive.encode_preference(row))[1] for row in pooled_BE]
    np.testing.assert_allclose(aux["vq"], 1.25 * np.mean(distance_B), rtol=1e-4)


def test_end_of_an_epoch_re_seeds_unused_codes_alone():
    model, variables = make()
    init = jax.jit(functools.partial(model.init, train=False))
    codes = init(jax.random.key(0), USERS, ITEMS, SCENARIO_B)["codes"]
    _, updated = train(model, {**variables, "codes": codes}, USERS, ITEMS, SCENARIO_B)
    variables = {**variables, **updated}
    used_N = np.asarray(variables["codes"]["codes"]["count"]) > 0
    assert 0 < used_N.sum() < 8
    told, after = zip(
        *(
            model.apply(
                variables, method="end_epoch", mutable=True, rngs={"dropout": jax.random.key(key)}
            )
            for key in (0, 0)
        ),
        strict=True,
    )
    assert 1 <= told[0]["code_perplexity"] <= used_N.sum()
    jax.tree.map(np.testing.assert_array_equal, *after)
    old_NH = np.asarray(variables["params"]["codes"]["codebook"])
    new_NH = np.asarray(after[0]["params"]["codes"]["codebook"])
    np.testing.assert_array_equal(new_NH[used_N], old_NH[used_N])
    assert (new_NH[~used_N] != old_NH[~used_N]).any()
    assert not after[0]["codes"]["codes"]["count"].any()
    untouched = {name: leaf for name, leaf in after[0]["params"].items() if name != "codes"}
    jax.tree.map(
        np.testing.assert_array_equal,
        untouched,
        {name: leaf for name, leaf in variables["params"].items() if name != "codes"},
    )


def test_user_vectors_depend_on_the_scenario():
    model, variables = make()
    other_B = (SCENARIO_B + 1) % 4
    difference = run(model, variables, USERS, SCENARIO_B, method="embed_user") - run(
        model, variables, USERS, other_B, method="embed_user"
    )
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("changes", [{"norm": "dsbn"}, {"norm": "none"}, {"input_dropout": 0.5}])
def test_each_choice_trains(changes):
    model, variables = make(**changes)
    (logit_BG, _), updated = train(model, variables, USERS, ITEMS, SCENARIO_B)
    assert logit_BG.shape == (B, G) and np.isfinite(logit_BG).all()
    assert bool(updated.get("batch_stats")) == (changes.get("norm") != "none")


def test_dropout_acts_in_training_only():
    model, variables = make(input_dropout=0.5, norm="none")
    plain, _ = make(norm="none")
    evaluated = run(model, variables, USERS, ITEMS, SCENARIO_B)
    np.testing.assert_array_equal(evaluated, run(plain, variables, USERS, ITEMS, SCENARIO_B))
    (trained, _), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    assert np.abs(trained - evaluated).min() > 0


def test_eight_devices_equal_one():
    model, variables = make()
    users = tiny_features.make_users(SPEC, 32)
    items = tiny_features.make_items(SPEC, (32, G))
    scenario_B = tiny_features.make_scenarios(SPEC, 32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    (logit_BG, aux), updated = train(model, variables, users, items, scenario_B)
    (sharded_BG, sharded_aux), sharded = train(
        model, variables, *jax.device_put((users, items, scenario_B), rows)
    )
    assert len(sharded_BG.sharding.device_set) == 8
    np.testing.assert_allclose(sharded_BG, logit_BG, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(sharded_aux["vq"], aux["vq"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), updated, sharded
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"model.num_layers: expected a number >= 1, got 0"),
        ({"num_codes": 0}, r"model.num_codes: expected a number >= 1, got 0"),
        ({"hidden_dim": 0}, r"model.hidden_dim: expected a number >= 1, got 0"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"bn_momentum": 0.0}, r"model.bn_momentum: expected a number in \(0, 1\], got 0.0"),
        ({"norm": "ln"}, r"model.norm: expected one of .*, got 'ln'"),
        ({"commitment": -0.1}, r"model.commitment: expected a number >= 0, got -0.1"),
        ({"vq_weight": -1.0}, r"model.vq_weight: expected a number >= 0, got -1.0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        perscen.PERSCENConfig(**changes).make(SPEC)


def test_features_without_a_history_are_refused():
    with pytest.raises(ValueError, match=r"expected features with at least one history, got none"):
        perscen.PERSCENConfig().make(dataclasses.replace(SPEC, sequences=()))


SIMULATED = features.FeatureSpec(
    scenarios=("A",),
    user_sparse=(features.SparseFeature("left", 9), features.SparseFeature("right", 9)),
    user_dense=(),
    user_bags=(),
    item_sparse=(features.SparseFeature("item_id", 21),),
    item_dense=(),
    item_bags=(),
    sequences=(features.SequenceFeature("history", ("item_id",), 1),),
    embedding_dim=4,
)


def plant(rng, rows):
    """A user likes odd items where one of its two ids is odd, and even ones otherwise."""
    ids_BF = rng.integers(1, 9, (rows, 2))
    odd_B = ids_BF.sum(axis=1) % 2
    pair_BG = 2 * rng.integers(1, 11, (rows, 2)) - np.stack([odd_B, 1 - odd_B], axis=1)
    users = tiny_features.make_users(SIMULATED, rows)
    empty = jax.tree.map(jnp.zeros_like, users.sequences)
    users = users._replace(sparse_BF=jnp.asarray(ids_BF, jnp.int32), sequences=empty)
    items = tiny_features.make_items(SIMULATED, (rows, 2))
    items = items._replace(sparse_VF=jnp.asarray(pair_BG[..., None], jnp.int32))
    return users, items, jnp.zeros(rows, jnp.int32)


class Linear(nn.Module):
    """Both towers linear in their embedded fields."""

    def setup(self):
        self.embedder = embed.Embedder(SIMULATED)
        self.user, self.item = nn.Dense(8), nn.Dense(8)

    def __call__(self, users, items, scenario_B, *, train):
        user_BD = self.user(self.embedder.users(users).input_BI)
        item_BGD = self.item(self.embedder.items(items).input_BI)
        return jnp.einsum("bd,bgd->bg", user_BD, item_BGD), {}


def learn(model, steps):
    """Share of fresh pairs in the right order after training."""
    rng = np.random.default_rng(0)
    optimizer = optax.adam(1e-2)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), *plant(rng, 2))
    mutable = [name for name in variables if name != "params"]

    @jax.jit
    def step(variables, moments, batch):
        def loss(params):
            (logit_BG, aux), updated = model.apply(
                {**variables, "params": params}, *batch, train=True, mutable=mutable
            )
            label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
            total = losses.bce_with_logits(logit_BG, label_BG).mean() + sum(aux.values())
            return total, updated

        gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradient, moments)
        params = optax.apply_updates(variables["params"], updates)
        return {**updated, "params": params}, moments

    moments = optimizer.init(variables["params"])
    for _ in range(steps):
        variables, moments = step(variables, moments, plant(rng, 64))
    logit_BG = jax.jit(functools.partial(model.apply, train=False))(variables, *plant(rng, 512))[0]
    return float((logit_BG[:, 0] > logit_BG[:, 1]).mean())


def test_interaction_of_two_fields_is_learned_which_no_linear_tower_can():
    config = perscen.PERSCENConfig(hidden_dim=16, output_dim=8, num_codes=4)
    assert learn(config.make(SIMULATED), steps=160) > 0.95
    assert learn(Linear(), steps=160) < 0.65
