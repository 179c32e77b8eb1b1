import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import pipeline
from dsmoe_jax.models.matching import adin
from dsmoe_jax.training import losses, row_sparse, sharding, train_state, train_step
from dsmoe_jax.training import optimizer as optim

B, G, D, E, S, L = 16, 3, 5, 4, 4, 3
HISTORIES = features.SequenceFeature(
    features.SCENARIO_HISTORIES, ("item_id",), S * L, per_scenario=True
)
SPEC = tiny_features.make_spec(sequences=(*tiny_features.make_spec().sequences, HISTORIES))
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
SMALL = {"num_shared": 2, "hidden_dims": (8, 6), "output_dim": D, "reduction": 2}


@functools.cache
def make(spec=SPEC, **changes):
    model = adin.ADINConfig(**{**SMALL, **changes}).make(spec)
    users = tiny_features.make_users(spec, B)
    scenario_B = tiny_features.make_scenarios(spec, B)
    return model, tiny_features.make_variables(model, users, ITEMS, scenario_B)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def run(model, variables, *inputs, method=None):
    return model.apply(variables, *inputs, train=False, method=method)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def train(model, variables, *inputs, method=None, unlabelled=None):
    extra = {} if unlabelled is None else {"unlabelled": unlabelled}
    return model.apply(
        variables, *inputs, train=True, mutable=["batch_stats"], method=method,
        rngs={"dropout": jax.random.key(1)}, **extra,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def embed(model, variables):
    """What the towers of all users and all items are given."""
    user = model.apply(variables, USERS, method=lambda m, users: m.embedder.users(users))
    item = model.apply(variables, ITEMS, method=lambda m, items: m.embedder.items(items))
    return user.input_BI, item.input_BI


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalise(x, scenario_N, params, stats, train):
    mean, var = np.array(stats["norm"]["mean"]), np.array(stats["norm"]["var"])
    if train:
        for s in range(len(mean)):
            rows = x[scenario_N == s]
            mean[s], var[s] = rows.mean(axis=0), rows.var(axis=0)
    s = scenario_N
    scale, bias = np.asarray(params["norm"]["scale"]), np.asarray(params["norm"]["bias"])
    return np.maximum((x - mean[s]) / np.sqrt(var[s] + 1e-5) * scale[s] + bias[s], 0)


def write_out(variables, side, input_NI, scenario_N, fusion, train):
    """A tower on rows [N, I], every row with the matrices of its scenario."""
    params = jax.tree.map(np.asarray, variables["params"][f"{side}_tower"])
    stats = variables["batch_stats"][f"{side}_tower"]
    e_SC = np.asarray(variables["params"]["embedder"]["scenario_table"])

    def of_own(layer, x):
        kernel, bias = layer["kernel"][scenario_N], layer["bias"][scenario_N]
        return np.einsum("ni,nio->no", x, kernel) + bias

    field_NFE = input_NI.reshape(len(input_NI), -1, E)
    squeezed = np.maximum(of_own(params["adaptation"]["squeeze"], field_NFE.mean(axis=2)), 0)
    gate_NF = 2 * sigmoid(of_own(params["adaptation"]["excite"], squeezed))
    adapted = (field_NFE * gate_NF[..., None]).reshape(input_NI.shape)

    first = params["shared_first"]
    hidden = adapted @ first["kernel"] + first["bias"]
    hidden = normalise(
        hidden, scenario_N, params["shared_blocks_0"], stats["shared_blocks_0"], train
    )
    second = params["shared_layers_0"]
    bias = second["bias"].reshape(2, 6)
    parts = [hidden[:, 8 * k : 8 * k + 8] @ second["kernel"][k] + bias[k] for k in range(2)]
    hidden = normalise(
        np.concatenate(parts, axis=1), scenario_N, params["shared_blocks_1"],
        stats["shared_blocks_1"], train,
    )  # fmt: skip
    weight_SK = np.exp(e_SC @ params["shared_weight"])
    weight_NK = (weight_SK / weight_SK.sum(axis=1, keepdims=True))[scenario_N]
    shared = weight_NK[:, :1] * hidden[:, :6] + weight_NK[:, 1:] * hidden[:, 6:]

    specific = adapted
    for n in range(2):
        specific = of_own(params[f"specific_layers_{n}"], specific)
        name = f"specific_blocks_{n}"
        specific = normalise(specific, scenario_N, params[name], stats[name], train)

    def gate(name):
        return sigmoid(np.einsum("nc,nch->nh", e_SC[scenario_N], params[name][scenario_N]))

    first, second = gate("specific_gate"), gate("shared_gate")
    if fusion == "concat":
        fused = np.concatenate(
            [first * specific, first * specific * second * shared, second * shared], axis=1
        )
    else:
        fused = first * specific + second * shared
    return of_own(params["forward"], fused)


@pytest.mark.parametrize(
    ("fusion", "training"), [("concat", False), ("concat", True), ("sum", True)]
)
def test_both_towers_are_the_written_out_equations(fusion, training):
    model, variables = make(fusion=fusion)
    scenario_B = np.asarray(SCENARIO_B)
    user_BI, item_BGI = embed(model, variables)
    user_BD = write_out(variables, "user", np.asarray(user_BI), scenario_B, fusion, training)
    item_ND = write_out(
        variables, "item", np.asarray(item_BGI).reshape(B * G, -1),
        np.repeat(scenario_B, G), fusion, training,
    )  # fmt: skip
    if training:
        (logit_BG, aux), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    else:
        logit_BG, aux = run(model, variables, USERS, ITEMS, SCENARIO_B)
        got, _ = run(model, variables, USERS, SCENARIO_B, method="embed_user")
        np.testing.assert_allclose(got[:, 0], user_BD, rtol=1e-4, atol=1e-4)
    expected = np.einsum("bd,bgd->bg", user_BD, item_ND.reshape(B, G, D))
    assert aux == {} and np.abs(expected).mean() > 0.1
    np.testing.assert_allclose(logit_BG, expected, rtol=1e-3, atol=1e-3)


def test_histories_of_all_scenarios_are_no_input():
    model, variables = make()
    empty = jax.tree.map(jnp.zeros_like, USERS.sequences[HISTORIES.name])
    users = USERS._replace(sequences={**USERS.sequences, HISTORIES.name: empty})
    np.testing.assert_array_equal(
        run(model, variables, users, ITEMS, SCENARIO_B)[0],
        run(model, variables, USERS, ITEMS, SCENARIO_B)[0],
    )


def test_gates_on_fields_start_near_one():
    layer = adin.InterestAdaptation(S, num_fields=8, reduction=4)
    one_hot_BS = jax.nn.one_hot(SCENARIO_B, S)
    input_BI = 0.02 * jax.random.normal(jax.random.key(0), (B, 8 * 16))
    variables = jax.jit(layer.init)(jax.random.key(1), input_BI, one_hot_BS)
    np.testing.assert_allclose(
        layer.apply(variables, input_BI, one_hot_BS) / input_BI, 1, atol=0.02
    )
    gate = layer.apply(variables, 500 * input_BI, one_hot_BS) / (500 * input_BI)
    assert gate.min() < 0.7 and gate.max() > 1.3 and gate.max() < 2
    np.testing.assert_allclose(gate.reshape(B, 8, 16).std(axis=2), 0, atol=1e-5)


def test_one_scenario_is_a_network_without_any():
    spec = dataclasses.replace(SPEC, scenarios=("A",), sequences=SPEC.sequences[:-1])
    model, variables = make(spec, num_shared=1)
    plain, _ = make(spec, num_shared=1, norm="bn")
    none_B = jnp.zeros(B, jnp.int32)
    for apply in (run, train):
        own, shared = (apply(m, variables, USERS, ITEMS, none_B) for m in (model, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), own, shared)
    # A softmax over one network is 1 whatever its logit is.
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 1 if path[-1].key == "shared_weight" else leaf, variables
    )
    np.testing.assert_allclose(
        run(model, moved, USERS, ITEMS, none_B)[0],
        run(model, variables, USERS, ITEMS, none_B)[0],
        atol=1e-5,
    )
    # Scenarios that hold the same parameters are one.
    several, shapes = make(SPEC, num_shared=1)
    tied = jax.tree.map(lambda one, many: jnp.broadcast_to(one, many.shape), variables, shapes)
    np.testing.assert_allclose(
        run(several, tied, USERS, ITEMS, SCENARIO_B)[0],
        run(model, variables, USERS, ITEMS, none_B)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize(("norm", "apart"), [("dsbn", True), ("bn", False)])
def test_rows_of_a_scenario_change_no_other_scenarios_outputs(norm, apart):
    model, variables = make(norm=norm)
    changed_B = SCENARIO_B == 1
    users = USERS._replace(
        dense_BF=jnp.where(changed_B[:, None], USERS.dense_BF + 2, USERS.dense_BF)
    )
    dense_VF = jnp.where(changed_B[:, None, None], ITEMS.dense_VF + 2, ITEMS.dense_VF)
    items = ITEMS._replace(dense_VF=dense_VF)
    (before, _), _ = train(model, variables, USERS, ITEMS, SCENARIO_B)
    (after, _), _ = train(model, variables, users, items, SCENARIO_B)
    moved_B = np.abs(after - before).max(axis=1)
    assert moved_B[changed_B].min() > 1e-3
    assert bool(moved_B[~np.asarray(changed_B)].max() < 1e-6) == apart


def test_number_of_parameters():
    spec = tiny_features.make_spec(embedding_dim=16)
    model = adin.ADINConfig().make(spec)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0),
        tiny_features.make_users(spec, B), ITEMS, SCENARIO_B,
    )  # fmt: skip
    h, d, K = 256, 128, 2
    for side, fields in (("user", 10), ("item", 5)):
        r = fields // 4
        expected = S * (fields * r + r + r * fields + fields)
        expected += (16 * fields + 1) * K * h + S * (16 * fields + 1) * h
        expected += 2 * S * (K + 1) * h
        expected += 16 * K + 2 * S * 16 * h
        expected += S * (3 * h + 1) * d
        params = shapes["params"][f"{side}_tower"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected, side


def draw(model, key=0, users=USERS, scenario_B=SCENARIO_B):
    return np.asarray(model.draw_unlabelled(users, scenario_B, jax.random.key(key)))


def test_unlabelled_items_are_those_of_other_scenarios_histories():
    model, _ = make(self_training_weight=1.0, self_training_items=400)
    item_BX = draw(model)
    ids_BSL = np.asarray(USERS.sequences[HISTORIES.name].ids_BLF).reshape(B, S, L)
    assert item_BX.shape == (B, 400) and not ids_BSL[0].any()
    for b in range(B):
        others = np.delete(ids_BSL[b], int(SCENARIO_B[b]), axis=0).reshape(-1)
        others = others[others > 0]
        if not len(others):
            np.testing.assert_array_equal(item_BX[b], 0)
            continue
        share = np.bincount(item_BX[b], minlength=20) / 400
        np.testing.assert_allclose(share, np.bincount(others, minlength=20) / len(others), atol=0.1)
    assert (draw(model, key=1) != item_BX).any()


def test_nothing_is_drawn_without_self_training():
    model, _ = make()
    assert not adin.ADINConfig().scenario_histories
    assert adin.ADINConfig(self_training_weight=0.1).scenario_histories
    assert model.draw_unlabelled(USERS, SCENARIO_B, jax.random.key(0)) is None


def test_self_training_adds_the_loss_of_confident_items_and_changes_nothing_else():
    model, variables = make(self_training_weight=0.5, self_training_threshold=0.4)
    item_BX = tiny_features.make_items(SPEC, (B, 4), seed=3)
    ids = item_BX.sparse_VF.at[:3, :, 0].set(0)
    unlabelled = item_BX._replace(sparse_VF=ids)
    inputs = USERS, ITEMS, SCENARIO_B
    (plain_BG, nothing), plain = train(model, variables, *inputs)
    (logit_BG, aux), updated = train(model, variables, *inputs, unlabelled=unlabelled)
    assert nothing == {} and set(aux) == {"self_training"}
    # The compiler may order the sums of two programs differently.
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(same, (logit_BG, updated), (plain_BG, plain))
    (user_BMD, _), _ = train(model, variables, USERS, SCENARIO_B, method="embed_user")
    item_BXD, _ = run(model, variables, unlabelled, SCENARIO_B, method="embed_item")
    probability = sigmoid(np.einsum("bd,bxd->bx", user_BMD[:, 0], item_BXD))
    chosen = (probability > 0.4) & (np.arange(B)[:, None] >= 3)
    assert chosen.any() and not chosen[3:].all()
    expected = 0.5 * -np.log(probability[chosen]).sum() / (B * G)
    np.testing.assert_allclose(aux["self_training"], expected, rtol=1e-4, atol=1e-7)


class Steps:
    """Training steps of small ADINs on the tiny store."""

    def __init__(self, store, devices):
        self.mesh, self.started, self.done = sharding.make_mesh(devices), {}, {}
        self.spec = features.select(
            store.spec, exclude=("age", "activity", "author", "duration", "tag"), history_length=6,
            scenario_history_length=4, embedding_dim=4, scenario_histories=True,
        )  # fmt: skip
        self.corpus = sharding.put_replicated(self.mesh, pipeline.read_corpus(store, self.spec))
        source = pipeline.BatchSource(store, self.spec, seed=0, batch_size=64, max_epochs=1)
        self.batches = [sharding.put_batch(self.mesh, source[i]) for i in range(2)]

    def run(self, in_rows=False, **changes):
        """The state after two steps and the metrics of both."""
        key = in_rows, tuple(changes.items())
        if key not in self.done:
            self.done[key] = self._run(in_rows, changes)
        return self.done[key]

    def _run(self, in_rows, changes):
        updater = optim.Dense(optim.make_optimizer(1e-2, 0.0))
        if in_rows:
            updater = row_sparse.RowSparse(self.spec, 1e-2, 0.0, min_rows=1)
        fields = {**SMALL, "num_shared": 1, "hidden_dims": (6,), **changes}
        model = adin.ADINConfig(**fields).make(self.spec)
        if in_rows not in self.started:
            self.started[in_rows] = train_state.init_state(
                model, updater, key=jax.random.key(0), mesh=self.mesh
            )
        state = self.started[in_rows]
        step = jax.jit(
            train_step.make_train_step(
                model, updater, num_items=self.spec.num_items, num_negatives=3
            )
        )
        found = []
        for batch in self.batches:
            state, metrics = step(
                state, None, self.corpus, batch, jnp.float32(0), jax.random.key(3)
            )
            found.append(jax.device_get(metrics))
        return jax.device_get(state), found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("adin") / "store")


@pytest.fixture(scope="module")
def one(store):
    return Steps(store, tiny.one_device())


ON = {"self_training_weight": 0.5, "self_training_threshold": 0.45, "self_training_items": 2}


def test_weight_zero_is_training_without_self_training_bit_for_bit(one):
    off, metrics = one.run()
    zero, zero_metrics = one.run(**{**ON, "self_training_weight": 0.0})
    jax.tree.map(np.testing.assert_array_equal, (off, metrics), (zero, zero_metrics))
    assert all("loss_self_training" not in found for found in metrics)


def test_a_step_with_self_training_differs_by_its_loss_alone(one):
    _, metrics = one.run()
    _, with_loss = one.run(**ON)
    first, plain = with_loss[0], metrics[0]
    aux = first["loss_self_training"].sum() / first["rows"].sum()
    assert aux > 0
    np.testing.assert_allclose(first["loss"] - aux, plain["loss"], rtol=1e-5)
    np.testing.assert_allclose(first["loss_task"], plain["loss_task"], rtol=1e-5)
    assert abs(with_loss[1]["loss_task"] - metrics[1]["loss_task"]).max() > 1e-4


def test_self_training_learns_in_rows_of_large_tables_alike(one):
    _, expected = one.run(**ON)
    _, metrics = one.run(in_rows=True, **ON)
    for got, wanted in zip(metrics, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), got, wanted)


def test_self_training_on_eight_devices_equals_one(store, one):
    _, expected = one.run(**ON)
    _, metrics = Steps(store, None).run(**ON)
    for got, wanted in zip(metrics, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, wanted)


def plant(key, examples):
    """Users of six kinds who like another kind of item in each of three scenarios.

    Returns users, scenarios, and per example an item liked in its scenario and one that is liked
    in another.
    """
    keys = jax.random.split(key, 4)
    kind_B = jax.random.randint(keys[0], (examples,), 0, 6)
    scenario_B = jax.random.randint(keys[1], (examples,), 0, 3)
    other_B = (scenario_B + jax.random.randint(keys[2], (examples,), 1, 3)) % 3
    within_BG = jax.random.randint(keys[3], (examples, 2), 0, 3)
    category_BG = (kind_B[:, None] + 2 * jnp.stack([scenario_B, other_B], axis=1)) % 6
    users = batch_lib.Users(
        kind_B[:, None] + 1, jnp.zeros((examples, 0), jnp.float32), {}, {}, jnp.zeros_like(kind_B)
    )
    return users, scenario_B, 1 + 3 * category_BG + within_BG


def take(item_BG):
    return batch_lib.Items(item_BG[..., None], jnp.zeros((*item_BG.shape, 0), jnp.float32), {})


def test_learns_tastes_that_scenarios_turn():
    spec = features.FeatureSpec(
        scenarios=("A", "B", "C"),
        user_sparse=(features.SparseFeature("kind", 7),),
        user_dense=(), user_bags=(),
        item_sparse=(features.SparseFeature("item_id", 19),),
        item_dense=(), item_bags=(), sequences=(), embedding_dim=8,
    )  # fmt: skip
    model = adin.ADINConfig(num_shared=1, hidden_dims=(16,), output_dim=8).make(spec)
    optimizer = optax.adam(1e-2)

    def step(carry, key):
        variables, opt_state = carry
        users, scenario_B, item_BG = plant(key, 64)
        negative_BN = jax.random.randint(jax.random.fold_in(key, 1), (64, 3), 1, 19)
        items = take(jnp.concatenate([item_BG[:, :1], negative_BN], axis=1))

        def loss(params):
            (logit_BG, _), updated = model.apply(
                {**variables, "params": params}, users, items, scenario_B, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1)
            return losses.bce_with_logits(logit_BG, label_BG).mean(), updated

        gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(gradient, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **updated}, opt_state), None

    @jax.jit
    def fit(key):
        users, scenario_B, item_BG = plant(key, 64)
        variables = model.init(key, users, take(item_BG), scenario_B, train=False)
        carry = variables, optimizer.init(variables["params"])
        return jax.lax.scan(step, carry, jax.random.split(key, 150))[0][0]

    variables = fit(jax.random.key(0))
    users, scenario_B, item_BG = plant(jax.random.key(2), 500)
    logit_BG, _ = run(model, variables, users, take(item_BG), scenario_B)
    # Towers blind to the scenario would be right for half of them.
    assert np.mean(logit_BG[:, 0] > logit_BG[:, 1]) > 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shared": 0}, "model.num_shared: expected a number >= 1, got 0"),
        ({"hidden_dims": ()}, "model.hidden_dims: expected at least one width, got none"),
        ({"hidden_dims": (4, 0)}, r"model.hidden_dims: expected widths >= 1, got \(4, 0\)"),
        ({"reduction": 0}, "model.reduction: expected a number >= 1, got 0"),
        ({"fusion": "max"}, r"model.fusion: expected one of \('concat', 'sum'\), got 'max'"),
        ({"norm": "ln"}, "model.norm: expected one of .*, got 'ln'"),
        ({"bn_momentum": 0.0}, r"model.bn_momentum: expected a number in \(0, 1\], got 0.0"),
        ({"input_dropout": 1.0}, r"model.input_dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"self_training_weight": -1.0}, "self_training_weight: expected a number >= 0, got -1.0"),
        (
            {"self_training_threshold": 0.0},
            r"self_training_threshold: expected a number in \(0, 1\], got 0.0",
        ),
        ({"self_training_items": 0}, "self_training_items: expected a number >= 1, got 0"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        adin.ADINConfig(**{**SMALL, **changes}).make(SPEC)


def test_self_training_needs_the_histories_of_all_scenarios():
    config = adin.ADINConfig(self_training_weight=1.0)
    with pytest.raises(ValueError, match="expected 0 without a sequence 'scenario_histories'"):
        config.make(tiny_features.make_spec())
