import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax import features
from dsmoe_jax.data import statistics
from dsmoe_jax.models.matching import dsmoe_plus, fism

D, B, G = 5, 7, 4
BASE = tiny_features.make_spec()
S, V = BASE.num_scenarios, BASE.num_items
SPEC = dataclasses.replace(
    BASE,
    sequences=(
        features.SequenceFeature("history", ("item_id",), 6),
        features.SequenceFeature("exposures", ("item_id",), 4),
        features.SequenceFeature("scenario_histories", ("item_id",), 3 * S, per_scenario=True),
    ),
)
CONFIG = dsmoe_plus.DSMOEPlusConfig(output_dim=D, tower_dim=3, hidden_dim=4, input_dropout=0.0)
MODEL = CONFIG.make(SPEC)
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
VARIABLES = tiny_features.make_variables(MODEL, USERS, ITEMS, SCENARIO_B)
# The last entries of a vector before the towers': the prior's.
PRIOR = D + 1


@functools.partial(jax.jit, static_argnames=("method", "model", "train"))
def apply(variables, *args, method, model=MODEL, train=False):
    mutable = ["batch_stats"] if train else []
    rngs = {"dropout": jax.random.key(0)}
    found, _ = model.apply(variables, *args, train=train, method=method, rngs=rngs, mutable=mutable)
    return found[0]


def vectors(variables=VARIABLES, model=MODEL):
    user_BMD = apply(variables, USERS, SCENARIO_B, method="embed_user", model=model)
    item_BGD = apply(variables, ITEMS, SCENARIO_B, method="embed_item", model=model)
    return np.asarray(user_BMD)[:, 0], np.asarray(item_BGD)


def with_params(**changes):
    params = {**VARIABLES["params"], **{name: jnp.asarray(v) for name, v in changes.items()}}
    return {**VARIABLES, "params": params}


def test_at_the_start_a_score_is_that_of_fism():
    initial = MODEL.init(jax.random.key(0), USERS, ITEMS, SCENARIO_B, train=False)["params"]
    assert not initial["gain"].any() and not initial["log_scale"].any()
    started = with_params(gain=np.zeros(3), log_scale=np.zeros(S))
    user_BD, item_BGD = vectors(started)
    values = {field.name for field in dataclasses.fields(fism.FISMConfig)}
    linear = fism.FISMConfig(**{n: v for n, v in vars(CONFIG).items() if n in values}).make(SPEC)
    wanted = {"params": started["params"], "constants": started["constants"]}
    wanted_BD, wanted_BGD = vectors(wanted, linear)
    np.testing.assert_array_equal(user_BD[:, : PRIOR + 1], wanted_BD)
    np.testing.assert_array_equal(item_BGD[..., : PRIOR + 1], wanted_BGD)
    assert not item_BGD[..., PRIOR + 1 :].any()


def test_towers_and_the_scenarios_scale_add_to_it():
    user_BD, item_BGD = vectors(with_params(gain=[1.0, 2.0, 0.5], log_scale=[0.1, 0.2, 0.3, 0.4]))
    plain_BD, plain_BGD = vectors(with_params(gain=np.ones(3), log_scale=np.zeros(S)))
    scale_B = np.exp(0.1 * (1 + np.asarray(SCENARIO_B)))
    np.testing.assert_allclose(
        user_BD[:, :PRIOR], scale_B[:, None] * plain_BD[:, :PRIOR], rtol=1e-5
    )
    np.testing.assert_array_equal(user_BD[:, PRIOR:], plain_BD[:, PRIOR:])
    np.testing.assert_array_equal(user_BD[:, PRIOR], np.ones(B))
    np.testing.assert_allclose(
        item_BGD[..., PRIOR + 1 :], plain_BGD[..., PRIOR + 1 :] * [1.0, 2.0, 0.5], rtol=1e-5
    )
    np.testing.assert_array_equal(item_BGD[..., : PRIOR + 1], plain_BGD[..., : PRIOR + 1])
    assert np.abs(plain_BD[:, PRIOR + 1 :]).max() > 0.01


def test_scenarios_share_items_but_for_the_prior_and_not_users():
    one, other = (apply(VARIABLES, ITEMS, jnp.full(B, s), method="embed_item") for s in (0, 1))
    same = np.arange(one.shape[-1]) != PRIOR
    np.testing.assert_array_equal(one[..., same], other[..., same])
    prior_SV = np.asarray(VARIABLES["constants"][statistics.KNOWN_PRIOR])
    ids_BG = np.asarray(ITEMS.sparse_VF[..., 0])
    np.testing.assert_array_equal(one[..., PRIOR], prior_SV[0][ids_BG])
    users = [apply(VARIABLES, USERS, jnp.full(B, s), method="embed_user") for s in (0, 1)]
    assert np.abs(users[0][..., PRIOR + 1 :] - users[1][..., PRIOR + 1 :]).min() > 0


def test_the_loss_is_a_softmax_with_uniform_negatives_that_stand_for_all_items():
    own_B = ITEMS.sparse_VF[:, 0, 0]
    # Where no own item is in its user's input, nothing is taken out of it.
    sequences = {
        name: sequence._replace(
            ids_BLF=jnp.where(sequence.ids_BLF == own_B[:, None, None], 0, sequence.ids_BLF)
        )
        for name, sequence in USERS.sequences.items()
    }
    users = USERS._replace(sequences=sequences)
    found_B1 = apply(VARIABLES, users, ITEMS, SCENARIO_B, method="softmax_loss")
    user_BMD = apply(VARIABLES, users, SCENARIO_B, method="embed_user")
    everything = jax.tree.map(lambda leaf: leaf[:, 1:].reshape(1, -1, *leaf.shape[2:]), ITEMS)
    for b in range(B):
        scenario_1 = SCENARIO_B[b : b + 1]
        own = jax.tree.map(lambda leaf, b=b: leaf[b : b + 1, :1], ITEMS)
        item_1GD = apply(VARIABLES, own, scenario_1, method="embed_item")
        other_1XD = apply(VARIABLES, everything, scenario_1, method="embed_item")
        score = float(user_BMD[b, 0] @ item_1GD[0, 0])
        other_X = np.asarray(other_1XD[0] @ user_BMD[b, 0], np.float64)
        other_X = other_X[np.asarray(everything.sparse_VF[0, :, 0]) != int(own_B[b])]
        rest = np.exp(other_X).sum() * (V - 2) / (B * (G - 1))
        expected = -np.log(np.exp(score) / (np.exp(score) + rest))
        np.testing.assert_allclose(found_B1[b, 0], expected, rtol=1e-4)


def test_the_target_is_no_part_of_its_own_input():
    own_B = ITEMS.sparse_VF[:, 0, 0]
    lengths = USERS.sequences["history"].ids_BLF[..., 0] > 0
    put = USERS.sequences["history"].ids_BLF.at[:, 0, 0].set(jnp.where(lengths[:, 0], own_B, 0))
    taken = put.at[:, 0, 0].set(0)
    losses = []
    for ids_BLF in (put, taken):
        history = USERS.sequences["history"]._replace(ids_BLF=ids_BLF)
        users = USERS._replace(sequences={**USERS.sequences, "history": history})
        losses.append(apply(VARIABLES, users, ITEMS, SCENARIO_B, method="softmax_loss"))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_every_parameter_learns_in_one_of_the_stages():
    inputs = (USERS, ITEMS, SCENARIO_B)
    started = with_params(gain=np.full(3, 0.1))

    @jax.jit
    def gradients(params):
        def total(params, method):
            found, _ = MODEL.apply(
                {**started, "params": params},
                *inputs,
                train=True,
                method=method,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats"],
            )
            return found[0].sum()

        return [jax.grad(total)(params, m) for m in ("pairwise_loss", "softmax_loss")]

    linear, whole = gradients(started["params"])
    for name, tree in whole.items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree)), name
    learned = {name for name, tree in linear.items() if np.abs(jax.tree.leaves(tree)[0]).max() > 0}
    assert learned == {"history_table", "exposure_table", "item_table", "bias_table", "kinds"}


def test_fism_is_trained_first_over_users():
    [stage] = CONFIG.pretraining()
    assert (stage.loss_method, stage.last_only, stage.decays) == ("pairwise_loss", True, True)
    assert stage.learning_rate == CONFIG.pretrain_rate
    assert stage.least_steps == CONFIG.pretrain_steps > 0
    assert CONFIG.objective().loss_method == "softmax_loss"
    assert not CONFIG.objective().last_only and not stage.is_teacher


def test_several_fisms_teach_and_the_towers_begin_where_the_first_ends():
    stages = dataclasses.replace(CONFIG, teachers=3).pretraining()
    assert [stage.name for stage in stages] == ["linear", "second", "third"]
    assert [stage.is_start for stage in stages] == [True, False, False]
    assert all(stage.is_teacher for stage in stages)
    assert len({dataclasses.replace(s, name="", is_start=True) for s in stages}) == 1
    [alone] = dataclasses.replace(CONFIG, teachers=1).pretraining()
    assert alone.name == "linear" and alone.is_teacher


def test_the_loss_is_the_cross_entropy_of_the_logits_that_are_taught():
    inputs = (USERS, ITEMS, SCENARIO_B)
    logit_BX = np.float64(apply(VARIABLES, *inputs, method="candidate_logits"))
    assert logit_BX.shape == (B, 1 + B * (G - 1))
    is_own = np.asarray(ITEMS.sparse_VF[:, 1:, 0]).reshape(1, -1) == ITEMS.sparse_VF[:, :1, 0]
    np.testing.assert_array_equal(np.isneginf(logit_BX[:, 1:]), is_own)
    expected = np.log(np.exp(logit_BX).sum(axis=1)) - logit_BX[:, 0]
    found = apply(VARIABLES, *inputs, method="softmax_loss")
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5)
    assert CONFIG.objective().logit_method == "candidate_logits"


def test_the_weight_of_its_score_is_chosen_before_the_towers_learn():
    assert VARIABLES["params"][CONFIG.calibrated()].shape == (S,)
    halved = np.asarray(VARIABLES["params"]["log_scale"]) + np.log(0.5)
    user_BD, _ = vectors(with_params(log_scale=halved))
    whole_BD, _ = vectors()
    np.testing.assert_allclose(user_BD[:, :PRIOR], 0.5 * whole_BD[:, :PRIOR], rtol=1e-6)
    np.testing.assert_array_equal(user_BD[:, PRIOR:], whole_BD[:, PRIOR:])


@pytest.mark.parametrize(
    "other", [{"norm": "bn"}, {"norm": "none"}, {"use_sap": False}, {"num_experts": 1}], ids=str
)
def test_towers_without_a_part_run_and_have_fewer_parameters(other):
    model = dataclasses.replace(CONFIG, **other).make(SPEC)
    variables = tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)
    user_BD, item_BGD = vectors(variables, model)
    assert np.isfinite(user_BD).all() and np.isfinite(item_BGD).all()
    whole = tiny_features.make_variables(CONFIG.make(SPEC), USERS, ITEMS, SCENARIO_B)
    sizes = [sum(x.size for x in jax.tree.leaves(v["params"])) for v in (variables, whole)]
    assert sizes[0] < sizes[1]
