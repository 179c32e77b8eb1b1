import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.nn import embed

B = 6
SPEC = tiny_features.make_spec()
E = SPEC.embedding_dim
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, 2))
EMBEDDER = embed.Embedder(SPEC)


def init(seed=0):
    return jax.jit(functools.partial(EMBEDDER.init, method="users"))(jax.random.key(seed), USERS)


@functools.partial(jax.jit, static_argnames="method")
def run(variables, rows, *, method):
    return EMBEDDER.apply(variables, rows, method=method)


@functools.cache
def variables():
    return tiny_features.randomise(jax.eval_shape(init))


def stored():
    return jax.tree.map(np.asarray, variables()["params"])


def mean_rows(table, ids):
    """Mean of the rows of the ids above 0; zeros where there is none."""
    rows = [table[i] for i in ids if i > 0]
    return np.mean(rows, axis=0) if rows else np.zeros(E, np.float32)


def row(table, offset, i):
    return table[offset + i] * (i > 0)


def test_user_input_concatenates_fields_in_order():
    got = run(variables(), USERS, method="users")
    p, users = stored(), jax.tree.map(np.asarray, USERS)
    small = p["user_tables"]["small_fields"]
    assert small.shape == (5 + 6, E)
    history = {name: s.ids_BLF for name, s in users.sequences.items()}
    for b in range(B):
        user_id, age, city = users.sparse_BF[b]
        expected = [
            row(small, 0, age),
            row(p["user_tables"]["user_id"], 0, user_id),
            row(p["user_tables"]["city"], 0, city),
            mean_rows(small[5:], users.bags["interest"][b]),
            *(users.dense_BF[b][:, None] * p["user_dense"]),
            mean_rows(p["item_tables"]["item_id"], history["history"][b, :, 0]),
            mean_rows(p["item_tables"]["item_id"], history["scenario_history"][b, :, 0]),
            mean_rows(p["item_tables"]["category"], history["behavior"][b, :, 0]),
            mean_rows(p["item_tables"]["kind"], history["behavior"][b, :, 1]),
        ]
        np.testing.assert_allclose(got.input_BI[b], np.concatenate(expected), atol=1e-5)
    assert got.input_BI.shape == (B, EMBEDDER.user_dim)


def test_item_input_concatenates_fields_in_order():
    got = run(variables(), ITEMS, method="items")
    p, items = stored(), jax.tree.map(np.asarray, ITEMS)
    for b in range(B):
        for g in range(2):
            item_id, category, kind = items.sparse_VF[b, g]
            expected = [
                row(p["item_tables"]["item_id"], 0, item_id),
                row(p["item_tables"]["category"], 0, category),
                row(p["item_tables"]["kind"], 0, kind),
                mean_rows(p["item_tables"]["small_fields"], items.bags["tag"][b, g]),
                items.dense_VF[b, g, 0] * p["item_dense"][0],
            ]
            np.testing.assert_allclose(got.input_BI[b, g], np.concatenate(expected), atol=1e-5)
    assert got.input_BI.shape == (B, 2, EMBEDDER.item_dim)


def test_empty_history_is_the_zero_vector():
    pooled = run(variables(), USERS, method="users").pooled
    for name, pooled_BE in pooled.items():
        np.testing.assert_array_equal(pooled_BE[0], np.zeros(pooled_BE.shape[1]), err_msg=name)
        assert np.abs(pooled_BE[1:]).max() > 0


def test_padding_never_changes_the_input():
    sequences = {
        name: batch_lib.Sequence(
            jnp.pad(s.ids_BLF, ((0, 0), (0, 3), (0, 0))), jnp.pad(s.time_BL, ((0, 0), (0, 3)))
        )
        for name, s in USERS.sequences.items()
    }
    padded = run(variables(), USERS._replace(sequences=sequences), method="users")
    plain = run(variables(), USERS, method="users")
    np.testing.assert_allclose(padded.input_BI, plain.input_BI, atol=1e-6)


def test_no_gradient_reaches_the_row_of_an_unknown_id():
    def total(params):
        user = EMBEDDER.apply({"params": params}, USERS, method="users").input_BI
        item = EMBEDDER.apply({"params": params}, ITEMS, method="items").input_BI
        return jnp.square(user - 1).sum() + jnp.square(item - 1).sum()

    gradient = jax.jit(jax.grad(total))(variables()["params"])
    first_rows = {"user_tables": {"small_fields": [0, 5]}, "item_tables": {"small_fields": [0]}}
    for side in ("user_tables", "item_tables"):
        for name, table in gradient[side].items():
            unknown = first_rows[side].get(name, [0])
            np.testing.assert_array_equal(np.asarray(table)[unknown], 0, err_msg=name)
            assert np.abs(table).max() > 0


def test_initial_tables_are_zero_at_unknown_ids_and_padding_rows():
    params = init()["params"]
    small = np.asarray(params["user_tables"]["small_fields"])
    assert set(np.flatnonzero(~small.any(axis=1))) == {0, 5}
    city = np.asarray(params["user_tables"]["city"])
    assert city.shape == (5120, E)  # 5,000 ids, padded to a multiple of 1,024
    assert not city[0].any() and not city[5000:].any() and city[1:5000].any(axis=1).all()
    # A normal of 0.02 cut at two standard deviations keeps 0.8796 of its own.
    np.testing.assert_allclose(city[1:5000].std(), 0.02 * 0.8796, rtol=0.02)
    assert np.abs(city).max() <= 0.04


def test_history_shares_the_item_towers_table():
    params = variables()["params"]
    moved = params["item_tables"]["item_id"] + 1
    changed = {**params, "item_tables": {**params["item_tables"], "item_id": moved}}
    before, after = (
        run({"params": p}, USERS, method="users").pooled["history"] for p in (params, changed)
    )
    has_events_B = np.asarray(USERS.sequences["history"].ids_BLF)[:, 0, 0] > 0
    expected_BE = np.broadcast_to(has_events_B[:, None], before.shape)
    np.testing.assert_allclose(after - before, expected_BE, atol=1e-5)


def test_a_feature_that_is_left_out_has_no_table():
    spec = tiny_features.make_spec(
        user_sparse=(), user_bags=(), user_dense=(), sequences=(), item_dense=(), item_bags=(),
        item_sparse=(features.SparseFeature("item_id", 20),),
    )  # fmt: skip
    items = tiny_features.make_items(spec, (3,))
    shapes = jax.eval_shape(
        functools.partial(embed.Embedder(spec).init, method="items"), jax.random.key(0), items
    )
    assert jax.tree.map(lambda leaf: leaf.shape, shapes["params"]) == {
        "item_tables": {"item_id": (20, E)},
        "scenario_table": (4, E),
    }


def test_recent_first_reverses_the_events_and_keeps_padding_last():
    ids_BLF = jnp.asarray([[[1], [2], [3], [0]], [[0], [0], [0], [0]], [[4], [5], [6], [7]]])
    time_BL = ids_BLF[..., 0] * 10
    got = embed.recent_first(batch_lib.Sequence(ids_BLF, time_BL))
    expected = [[3, 2, 1, 0], [0, 0, 0, 0], [7, 6, 5, 4]]
    np.testing.assert_array_equal(got.ids_BLF[..., 0], expected)
    np.testing.assert_array_equal(got.time_BL, np.array(expected) * 10)


def test_histories_of_all_scenarios_are_embedded_and_no_part_of_the_input():
    joined = features.SequenceFeature(
        features.SCENARIO_HISTORIES, ("item_id",), 3 * SPEC.num_scenarios, per_scenario=True
    )
    spec = tiny_features.make_spec(sequences=(*SPEC.sequences, joined))
    ids_BL = np.arange(B * 12).reshape(B, 12) % 5
    ids_BLF, time_BL = (jnp.asarray(x, jnp.int32) for x in (ids_BL[..., None], 0 * ids_BL))
    sequence = batch_lib.Sequence(ids_BLF, time_BL)
    users = USERS._replace(sequences={**USERS.sequences, joined.name: sequence})
    embedder = embed.Embedder(spec)
    got = jax.jit(lambda v: embedder.apply(v, users, method="users"))(variables())
    np.testing.assert_array_equal(got.input_BI, run(variables(), USERS, method="users").input_BI)
    assert joined.name not in got.pooled
    table = stored()["item_tables"]["item_id"]
    expected = table[ids_BL] * (ids_BL > 0)[..., None]
    np.testing.assert_allclose(got.events[joined.name].event_BLE, expected, rtol=1e-6)
    np.testing.assert_array_equal(got.events[joined.name].mask_BL, ids_BL > 0)
