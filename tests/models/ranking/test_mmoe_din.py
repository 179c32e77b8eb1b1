import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.ranking import mmoe_din
from dsmoe_jax.training import losses
from tests.models.ranking import joint_reference as reference

B, G = 12, 3
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)


@functools.cache
def make(spec=SPEC, **changes):
    """A small teacher with every part, all parameters and constants away from their start."""
    fields = {
        "num_experts": 3, "expert_dims": (8, 6), "tower_dims": (5,), "attention_length": 4,
        "attention_sequences": ("history", "behavior"), "attention_hidden": (4, 3),
        "use_log_prior": True, "collaborative": True, "collaborative_dim": 3,
    }  # fmt: skip
    model = mmoe_din.MMoEDINConfig(**{**fields, **changes}).make(spec)
    users = tiny_features.make_users(spec, B)
    return model, tiny_features.make_variables(model, users, ITEMS, SCENARIO_B)


def evaluate(model, variables, items, users=USERS, scenario_B=SCENARIO_B):
    return _score(model, variables, users, items, scenario_B)[0]


@functools.partial(jax.jit, static_argnums=0)
def _score(model, variables, users, items, scenario_B):
    return model.apply(variables, users, items, scenario_B, train=False)


@functools.partial(jax.jit, static_argnums=0)
def encode(model, variables, users):
    return model.apply(variables, users, SCENARIO_B, train=False, method="encode_user")


@pytest.mark.parametrize("norm", ["dsbn", "bn", "none"])
def test_forward_is_that_of_gated_experts_on_the_whole_input(norm):
    model, variables = make(norm=norm)
    ref = reference.Reference(model, variables)
    joint, expected = ref.inputs(USERS, ITEMS, SCENARIO_B)
    for b, s in enumerate(np.asarray(SCENARIO_B)):
        hidden, gate = np.split(ref.dense("first", joint[b]), [3 * 8], axis=-1)
        hidden = ref.stack("", hidden, s, 3, (8, 6))
        weight = reference.softmax(gate[:, 3 * s : 3 * s + 3])
        expected[b] += ref.tower("", reference.mix(hidden, weight), s, (5,))
    np.testing.assert_allclose(evaluate(model, variables, ITEMS), expected, rtol=1e-3, atol=1e-3)


def test_parameters_lie_where_checkpoints_hold_them():
    _, variables = make()
    assert set(variables["params"]) == {
        "embedder", "first", "attention_history", "attention_behavior", "expert_layers_0",
        "expert_blocks_0", "expert_blocks_1", "tower_layers_0", "tower_layers_1", "tower_blocks_0",
        "prior_weight", "collaborative_weight",
    }  # fmt: skip
    assert set(variables["batch_stats"]) == {
        "expert_blocks_0", "expert_blocks_1", "tower_blocks_0"
    }  # fmt: skip
    assert set(variables["constants"]) == {"log_prior_SV", "item_vector_VC"}


def test_shared_candidates_equal_repeated_ones():
    model, variables = make()
    shared = tiny_features.make_items(SPEC, (1, 7))
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, B, axis=0), shared)
    np.testing.assert_allclose(
        evaluate(model, variables, shared), evaluate(model, variables, repeated), atol=2e-4
    )


def test_every_leaf_is_strong_float32():
    _, variables = make()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert leaf.dtype == jnp.float32 and not leaf.weak_type, jax.tree_util.keystr(path)


def test_every_parameter_gets_a_gradient():
    model, variables = make()

    @jax.jit
    @jax.grad
    def gradient(params):
        (logit_BG, aux), _ = model.apply(
            {**variables, "params": params}, USERS, ITEMS, SCENARIO_B, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        assert aux == {}
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        return losses.bce_with_logits(logit_BG, label_BG).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_log_prior_shifts_the_logit_by_the_scenario_weight():
    model, variables = make()
    constants = variables["constants"]
    moved = {**constants, "log_prior_SV": constants["log_prior_SV"].at[1].add(2.0)}
    before = evaluate(model, variables, ITEMS)
    after = evaluate(model, {**variables, "constants": moved}, ITEMS)
    weight = variables["params"]["prior_weight"][1]
    expected = jnp.where(SCENARIO_B[:, None] == 1, 2.0 * weight, 0.0)
    np.testing.assert_allclose(after - before, jnp.broadcast_to(expected, (B, G)), atol=1e-4)


def test_uniform_prior_leaves_the_logit_alone():
    model, variables = make()
    uniform = jnp.full((4, SPEC.num_items), -np.log(SPEC.num_items - 1), jnp.float32)
    params = {**variables["params"], "prior_weight": jnp.full(4, 5.0, jnp.float32)}
    constants = {**variables["constants"], "log_prior_SV": uniform}
    got = evaluate(model, {**variables, "params": params, "constants": constants}, ITEMS)
    params = {**params, "prior_weight": jnp.zeros(4, jnp.float32)}
    expected = evaluate(model, {**variables, "params": params, "constants": constants}, ITEMS)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_collaborative_weight_multiplies_the_inner_product_of_pooled_history_and_candidate():
    model, variables = make()
    params = variables["params"]
    raised = {**params, "collaborative_weight": params["collaborative_weight"] + 1}
    difference = evaluate(model, {**variables, "params": raised}, ITEMS) - evaluate(
        model, variables, ITEMS
    )
    vector_VC = np.asarray(variables["constants"]["item_vector_VC"])
    for b in range(B):
        ids = np.asarray(USERS.sequences["history"].ids_BLF)[b, :, 0]
        events = vector_VC[ids[ids > 0]]
        pooled = events.mean(axis=0) if len(events) else np.zeros(3)
        expected = vector_VC[np.asarray(ITEMS.sparse_VF)[b, :, 0]] @ pooled
        np.testing.assert_allclose(difference[b], expected, atol=1e-3)


def test_sqrt_pooling_divides_by_the_root_of_the_length():
    model, variables = make()
    mean_BC = encode(model, variables, USERS).collaborative_BC
    model, variables = make(collaborative_pooling="sqrt")
    sqrt_BC = encode(model, variables, USERS).collaborative_BC
    length_B = (USERS.sequences["history"].ids_BLF[..., 0] > 0).sum(axis=1)
    np.testing.assert_allclose(sqrt_BC, mean_BC * np.sqrt(length_B)[:, None], atol=1e-5)


def test_attention_sees_the_most_recent_events_only():
    model, variables = make(attention_sequences=("history",))
    encoded = encode(model, variables, USERS)
    events = encoded.attended["history"].events
    assert events.event_BLE.shape == (B, 4, 4)
    table = variables["params"]["embedder"]["item_tables"]["item_id"]
    for b in range(B):
        ids = np.asarray(USERS.sequences["history"].ids_BLF)[b, :, 0]
        recent = ids[ids > 0][::-1][:4]
        np.testing.assert_array_equal(events.event_BLE[b, : len(recent)], table[recent])
        assert int(events.mask_BL[b].sum()) == len(recent)


def test_user_id_crosses_the_item_id_only_where_it_is_a_feature():
    spec = tiny_features.make_spec(user_sparse=SPEC.user_sparse[1:])
    model, variables = make(spec)
    users = tiny_features.make_users(spec, B)
    encoded = encode(model, variables, users)
    assert encoded.user_id_BE is None
    assert np.isfinite(evaluate(model, variables, ITEMS, users)).all()


def test_without_options_there_are_no_constants():
    model, variables = make(use_log_prior=False, collaborative=False)
    assert model.constant_shapes == {} and "constants" not in variables
    assert np.isfinite(evaluate(model, variables, ITEMS)).all()


def test_scenario_selects_gate_and_tower():
    model, variables = make(norm="bn", use_log_prior=False)
    other_B = (SCENARIO_B + 1) % 4
    difference = evaluate(model, variables, ITEMS) - evaluate(
        model, variables, ITEMS, scenario_B=other_B
    )
    assert float(jnp.abs(difference).min()) > 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "teacher.model.num_experts: expected a number >= 1, got 0"),
        ({"expert_dims": ()}, r"teacher.model.expert_dims: expected at least one width, got none"),
        ({"tower_dims": (4, 0)}, r"teacher.model.tower_dims: expected widths >= 1, got \(4, 0\)"),
        ({"dropout": 1.0}, r"teacher.model.dropout: expected a rate in \[0, 1\), got 1.0"),
        ({"norm": "ln"}, "teacher.model.norm: expected one of .*, got 'ln'"),
        ({"attention_sequences": ("likes",)}, r"expected names among .*, got 'likes'"),
        ({"collaborative_pooling": "max"}, r"expected one of \('mean', 'sqrt'\), got 'max'"),
    ],
)
def test_field_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mmoe_din.MMoEDINConfig(**changes).make(SPEC)


def test_collaborative_vectors_need_a_history_of_items():
    spec = tiny_features.make_spec(sequences=SPEC.sequences[1:])
    config = mmoe_din.MMoEDINConfig(collaborative=True, attention_sequences=("scenario_history",))
    with pytest.raises(ValueError, match=r"teacher.model.collaborative: expected a sequence"):
        config.make(spec)
