import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_features

from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.models.matching import sass
from dsmoe_jax.nn import embed
from dsmoe_jax.training import losses

B, G, S, L, D = 12, 3, 4, 3, 5
JOINED = features.SequenceFeature(
    features.SCENARIO_HISTORIES, ("item_id",), S * L, per_scenario=True
)
PLAIN = tiny_features.make_spec()
SPEC = dataclasses.replace(PLAIN, sequences=(*PLAIN.sequences, JOINED))
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@functools.cache
def make(**changes):
    fields = {"hidden_dims": (8, 6), "output_dim": D, "bias_dim": 4, "pretrain_epochs": 2}
    model = sass.SASSConfig(**{**fields, **changes}).make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def run(model, variables, *inputs, method=None, train=False, key=None):
    output, _ = model.apply(
        variables, *inputs, train=train, method=method, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0) if key is None else key} if train else None,
    )  # fmt: skip
    return output


def contrast(model, variables, users=USERS, items=ITEMS, scenario_B=SCENARIO_B, **kwargs):
    method = "contrastive_loss"
    return run(model, variables, users, items, scenario_B, method=method, **kwargs)[0]


def with_clicks(variables, clicked_SV):
    constants = {"clicked_SV": jnp.asarray(clicked_SV, jnp.float32)}
    return {**variables, "constants": constants}


def clicked(seed=3):
    return np.random.default_rng(seed).random((S, SPEC.num_items)) < 0.5


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_vector_is_the_tower_on_the_embedded_fields(side):
    model, variables = make()
    params, stats = variables["params"], variables["batch_stats"]
    embedder = embed.Embedder(PLAIN)
    inputs = {"user": USERS, "item": ITEMS}[side]
    bound = embedder.bind({"params": params["embedder"]})
    input_BI = getattr(bound, f"{side}s")(inputs).input_BI
    tower = sass.AdaptiveTower(input_BI.shape[-1], SPEC, model.cfg)
    name = f"{side}_tower"
    expected = tower.apply(
        {"params": params[name], "batch_stats": stats[name]},
        input_BI, bound.scenarios(), jax.nn.one_hot(SCENARIO_B, S), train=False,
    )  # fmt: skip
    got, aux = run(model, variables, inputs, SCENARIO_B, method=f"embed_{side}")
    expected = expected[:, None] if side == "user" else expected
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert aux == {}


def test_number_of_parameters_is_that_of_the_equations():
    user_sparse = tuple(features.SparseFeature(f"user_{n}", 9) for n in range(32))
    item_sparse = tuple(
        features.SparseFeature("item_id" if not n else f"i{n}", 9) for n in range(8)
    )
    spec = features.FeatureSpec(
        PLAIN.scenarios, user_sparse, (), (), item_sparse, (), (), (JOINED,), embedding_dim=16
    )
    model = sass.SASSConfig().make(spec)
    inputs = (
        tiny_features.make_users(spec, 2),
        tiny_features.make_items(spec, (2, 1)),
        tiny_features.make_scenarios(spec, 2),
    )
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]

    def tower(inputs):
        total, C = 0, 16
        for width in (256, 128):
            paths = (1 + S) * (inputs * width + width) + 2 * 2 * width
            gates = (2 * width + C) * 2 * width + 2 * width
            total += paths + gates + 2 * width * width + width
            inputs = width
        return total + (128 * 128 + 128) + (C * 64 + 64) + (64 * 128 + 128)

    towers = {name: part for name, part in params.items() if name != "embedder"}
    assert count(towers) == tower(32 * 16) + tower(8 * 16) == pytest.approx(2.2e6, rel=0.02)


def test_only_pretraining_needs_more_than_the_towers():
    base, variables = make(pretrain_epochs=0)
    assert base.constant_shapes == {} and "constants" not in variables
    assert sass.SASSConfig().pretraining() == ()
    model, pretrained = make()
    assert model.constant_shapes == {"clicked_SV": (S, SPEC.num_items)}
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(pretrained["params"])
    (stage,) = sass.SASSConfig(pretrain_epochs=3).pretraining()
    assert isinstance(stage, schema.Pretraining)
    assert (stage.epochs, stage.loss_method) == (3, "contrastive_loss")
    assert callable(getattr(model, stage.loss_method))
    sass.SASSConfig().make(PLAIN)


def test_every_scenarios_history_is_read_only_where_users_are_contrasted():
    assert sass.SASSConfig(pretrain_epochs=3).scenario_histories
    assert not sass.SASSConfig().scenario_histories
    assert not sass.SASSConfig(pretrain_epochs=3, contrastive_sides="item").scenario_histories


def test_the_other_scenario_is_one_where_something_is_present():
    rng = np.random.default_rng(0)
    present_BS = rng.random((200, S)) < 0.5
    scenario_B = rng.integers(0, S, 200)
    drawn = []
    for key in (None, jax.random.key(0), jax.random.key(1)):
        other_B, paired_B = map(
            np.asarray,
            sass.draw_other(jnp.asarray(present_BS), jnp.asarray(scenario_B, jnp.int32), key),
        )
        for b in range(200):
            possible = [s for s in range(S) if present_BS[b, s] and s != scenario_B[b]]
            assert paired_B[b] == bool(possible)
            if key is None and possible:
                assert other_B[b] == possible[0]
            assert other_B[b] in (possible or [scenario_B[b]])
        drawn.append(other_B)
    assert (drawn[1] != drawn[2]).sum() > 20
    # Each of three possible scenarios is as likely as the others.
    everywhere = jnp.ones((3000, S), bool)
    other_B, _ = sass.draw_other(everywhere, jnp.zeros(3000, jnp.int32), jax.random.key(2))
    np.testing.assert_allclose(
        np.bincount(other_B, minlength=S) / 3000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.04
    )


def literal_info_nce(pairs):
    """Loss of each of `(row, entity, a, b)` among all of them, by row."""
    unit = [(row, who, a / np.linalg.norm(a), b / np.linalg.norm(b)) for row, who, a, b in pairs]
    found = {}
    for row, who, a, b in unit:
        rivals = [(c, d) for _, other, c, d in unit if other != who]
        own = np.exp(10 * a @ b)
        forward = own + sum(np.exp(10 * a @ d) for _, d in rivals)
        backward = own + sum(np.exp(10 * c @ b) for c, _ in rivals)
        found[row] = -(np.log(own / forward) + np.log(own / backward)) / 2
    return found


def user_vector(model, variables, b, s):
    """Example b's user in scenario s, whose own history there is put in by hand."""
    one = jax.tree.map(lambda leaf: leaf[b : b + 1], USERS)
    if s != SCENARIO_B[b]:
        block = jax.tree.map(
            lambda leaf: leaf[:, s * L : (s + 1) * L], one.sequences[features.SCENARIO_HISTORIES]
        )
        one = one._replace(sequences={**one.sequences, "scenario_history": block})
    vector, _ = run(model, variables, one, jnp.asarray([s], jnp.int32), method="embed_user")
    return np.asarray(vector)[0, 0].astype(np.float64)


def item_vector(model, variables, b, s):
    """The positive of example b in scenario s."""
    one = jax.tree.map(lambda leaf: leaf[b : b + 1, 0], ITEMS)
    vector, _ = run(model, variables, one, jnp.asarray([s], jnp.int32), method="embed_item")
    return np.asarray(vector)[0].astype(np.float64)


def test_contrastive_loss_is_that_of_a_literal_loop():
    model, variables = make()
    clicked_SV = clicked()
    variables = with_clicks(variables, clicked_SV)
    loss_BX = contrast(model, variables)
    assert loss_BX.shape == (B, 2)
    item_B = np.asarray(ITEMS.sparse_VF)[:, 0, 0]
    active_BS = np.asarray(USERS.sequences[features.SCENARIO_HISTORIES].ids_BLF)
    active_BS = (active_BS.reshape(B, S, L) > 0).any(axis=2)
    assert len(set(item_B)) < B  # a repeated item is a case of its own
    for x, present_BS, who_B, embed_in in (
        (0, clicked_SV.T[item_B], item_B, item_vector),
        (1, active_BS, np.arange(B), user_vector),
    ):
        pairs = []
        for b in range(B):
            own = int(SCENARIO_B[b])
            others = [s for s in range(S) if present_BS[b, s] and s != own]
            if others:
                views = (embed_in(model, variables, b, s) for s in (own, others[0]))
                pairs.append((b, who_B[b], *views))
        assert 3 < len(pairs) < B
        expected = literal_info_nce(pairs)
        for b in range(B):
            # The mean over the batch is the mean over the pairs.
            scaled = expected.get(b, 0.0) * B / len(pairs)
            np.testing.assert_allclose(loss_BX[b, x], scaled, rtol=2e-3, atol=1e-4)


def test_training_draws_anew():
    model, variables = make(norm="none")
    variables = with_clicks(variables, np.ones((S, SPEC.num_items)))
    first, again, other = (
        contrast(model, variables, train=True, key=jax.random.key(n)) for n in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_rows_of_one_user_are_not_each_others_negatives_without_an_id_too():
    spec = dataclasses.replace(SPEC, user_sparse=SPEC.user_sparse[1:])
    users = tiny_features.make_users(spec, 2, seed=4)
    full = jnp.ones((2, S * L, 1), jnp.int32)
    joined = users.sequences[features.SCENARIO_HISTORIES]._replace(ids_BLF=full)
    users = users._replace(sequences={**users.sequences, features.SCENARIO_HISTORIES: joined})
    items = tiny_features.make_items(spec, (2, G))
    scenario_B = jnp.asarray([0, 1], jnp.int32)
    model = sass.SASSConfig(hidden_dims=(8,), output_dim=D, pretrain_epochs=1).make(spec)
    variables = tiny_features.make_variables(model, users, items, scenario_B)
    assert contrast(model, variables, users, items, scenario_B)[:, 1].min() > 0
    twice = users._replace(
        sparse_BF=users.sparse_BF[jnp.array([0, 0])], dense_BF=users.dense_BF[jnp.array([0, 0])]
    )
    loss_BX = contrast(model, variables, twice, items, scenario_B)
    np.testing.assert_allclose(loss_BX[:, 1], np.zeros(2), atol=1e-5)


def test_nothing_is_contrasted_where_there_is_one_scenario():
    model, variables = make()
    variables = with_clicks(variables, np.eye(S)[:, :1] * np.ones(SPEC.num_items))
    empty = jax.tree.map(jnp.zeros_like, USERS.sequences[features.SCENARIO_HISTORIES])
    users = USERS._replace(sequences={**USERS.sequences, features.SCENARIO_HISTORIES: empty})
    loss_BX = contrast(model, variables, users, scenario_B=jnp.zeros(B, jnp.int32), train=True)
    np.testing.assert_array_equal(loss_BX, np.zeros((B, 2)))


def test_item_side_alone_needs_no_histories_and_leaves_the_user_tower_alone():
    model = sass.SASSConfig(
        hidden_dims=(8,), output_dim=D, pretrain_epochs=1, contrastive_sides="item"
    ).make(PLAIN)
    variables = tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)
    variables = with_clicks(variables, clicked())

    def mean(params):
        loss_BX = contrast(model, {**variables, "params": params}, train=True)
        assert loss_BX.shape == (B, 1)
        return loss_BX.mean()

    gradient = jax.grad(mean)(variables["params"])
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient["user_tower"]))
    assert np.abs(gradient["item_tower"]["output"]["kernel"]).max() > 0


def test_pretraining_lowers_the_loss_on_others_and_leaves_a_sane_start():
    rows = 64
    model = sass.SASSConfig(hidden_dims=(16, 8), output_dim=8, pretrain_epochs=1).make(SPEC)
    seen, others = (
        (
            tiny_features.make_users(SPEC, rows, seed),
            tiny_features.make_items(SPEC, (rows, G), seed + 1),
            tiny_features.make_scenarios(SPEC, rows),
        )
        for seed in (10, 20)
    )
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), *seen)
    variables = with_clicks(variables, np.ones((S, SPEC.num_items)))
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, stats, opt_state, key):
        def mean(params):
            (loss_BX, aux), updated = model.apply(
                {**variables, "params": params, "batch_stats": stats}, *seen, train=True,
                method="contrastive_loss", mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            assert aux == {}
            return loss_BX.mean(), updated["batch_stats"]

        gradient, stats = jax.grad(mean, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state

    opt_state = optimizer.init(params)
    for n in range(40):
        params, stats, opt_state = step(params, stats, opt_state, jax.random.key(n))
    trained = {**variables, "params": params, "batch_stats": stats}

    def held_out(variables):
        # With the batch's own moments on both, since those of the start are no data's.
        return contrast(model, variables, *others, train=True).mean(axis=0)

    before_X, after_X = held_out(variables), held_out(trained)
    assert (after_X < 0.5 * before_X).all(), (before_X, after_X)
    settled_X = contrast(model, trained, *others).mean(axis=0)
    np.testing.assert_allclose(settled_X, after_X, rtol=0.5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stats):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        if path[-1].key == "var":
            assert (np.asarray(leaf) > 0).all()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables["batch_stats"], stats)
    assert all(jax.tree.leaves(moved))
    logit_BG, _ = run(model, trained, *others)
    assert np.isfinite(logit_BG).all() and np.std(logit_BG) > 1e-3


def test_tastes_that_change_with_the_scenario_are_learned():
    """A user likes one category, and in every scenario another one."""
    categories, rows, negatives = 4, 64, 3
    spec = features.FeatureSpec(
        scenarios=("A", "B"),
        user_sparse=(features.SparseFeature("age", categories + 1),),
        user_dense=(), user_bags=(),
        item_sparse=(
            features.SparseFeature("item_id", 41), features.SparseFeature("category", categories),
        ),
        item_dense=(), item_bags=(), sequences=(), embedding_dim=8,
    )  # fmt: skip
    model = sass.SASSConfig(hidden_dims=(16, 16), output_dim=8).make(spec)

    def draw(key):
        keys = jax.random.split(key, 4)
        age_B = jax.random.randint(keys[0], (rows,), 1, categories + 1)
        scenario_B = jax.random.randint(keys[1], (rows,), 0, 2)
        liked_B = (age_B + 2 * scenario_B) % categories
        item_B = 4 * jax.random.randint(keys[2], (rows,), 0, 10) + 1 + liked_B
        # Of another category, all of them equally often.
        shift_BN = jnp.arange(1, negatives + 1)[None] + 4 * jax.random.randint(
            keys[3], (rows, negatives), 0, 10
        )
        item_BG = jnp.concatenate([item_B[:, None], (item_B[:, None] + shift_BN - 1) % 40 + 1], 1)
        users = tiny_features.batch_lib.Users(
            age_B[:, None], jnp.zeros((rows, 0)), {}, {}, jnp.zeros(rows, jnp.int32)
        )
        fields = jnp.stack([item_BG, (item_BG - 1) % 4], axis=-1)
        items = tiny_features.batch_lib.Items(fields, jnp.zeros((rows, 1 + negatives, 0)), {})
        return users, items, scenario_B

    optimizer = optax.adam(1e-2)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), *draw(jax.random.key(0)))

    def step(carry, key):
        params, stats, opt_state = carry

        def loss(params):
            (logit_BG, _), updated = model.apply(
                {"params": params, "batch_stats": stats}, *draw(key), train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
            return losses.bce_with_logits(logit_BG, label_BG).mean(), updated["batch_stats"]

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), None

    start = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    (params, stats, _), _ = jax.jit(
        lambda carry: jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), 150))
    )(start)
    trained = {"params": params, "batch_stats": stats}
    users, items, scenario_B = draw(jax.random.key(2))

    def hits(scenario_B):
        logit_BG, _ = run(model, trained, users, items, scenario_B)
        return float((logit_BG.argmax(axis=1) == 0).mean())

    assert hits(scenario_B) > 0.95
    assert hits(1 - scenario_B) < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dims": ()}, "model.hidden_dims: expected at least one width, got none"),
        ({"hidden_dims": (4, 0)}, r"model.hidden_dims: expected widths >= 1, got \(4, 0\)"),
        ({"bias_dim": 0}, "model.bias_dim: expected a number >= 1, got 0"),
        ({"norm": "ln"}, r"model.norm: expected one of .*, got 'ln'"),
        ({"pretrain_epochs": -1}, "model.pretrain_epochs: expected a number >= 0, got -1"),
        ({"contrastive_sides": "user"}, r"expected one of \('both', 'item'\), got 'user'"),
        ({"contrastive_temperature": 0.0}, r"temperature: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sass.SASSConfig(**changes).make(SPEC)


def test_users_cannot_be_contrasted_without_every_scenarios_history():
    with pytest.raises(ValueError, match="'both' needs the sequence 'scenario_histories'"):
        sass.SASSConfig(pretrain_epochs=1).make(PLAIN)
