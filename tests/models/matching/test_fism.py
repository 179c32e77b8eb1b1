import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import statistics
from dsmoe_jax.models.matching import fism

D, B, G = 5, 7, 3
BASE = tiny_features.make_spec()
S, L = BASE.num_scenarios, 6
SPEC = dataclasses.replace(
    BASE,
    sequences=(
        features.SequenceFeature("history", ("item_id",), L),
        features.SequenceFeature("exposures", ("item_id",), 4),
        features.SequenceFeature("scenario_histories", ("item_id",), 3 * S, per_scenario=True),
    ),
)
CONFIG = fism.FISMConfig(
    output_dim=D,
    recency=0.5,
    recency_floor=0.3,
    exposure_recency=0.6,
    exposure_recency_floor=0.4,
    score_weight=1.7,
)
MODEL = CONFIG.make(SPEC)
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
VARIABLES = tiny_features.make_variables(MODEL, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnames=("method", "model"))
def apply(*args, method, variables=VARIABLES, model=MODEL):
    return apply_traced_anew(*args, method=method, variables=variables, model=model)


def apply_traced_anew(*args, method, variables=VARIABLES, model=MODEL):
    rngs = {"dropout": jax.random.key(0)}
    return model.apply(variables, *args, train=False, method=method, rngs=rngs)[0]


def table(name):
    return np.asarray(VARIABLES["params"][name], np.float64)


def ids_of(name, b):
    ids = np.asarray(USERS.sequences[name].ids_BLF[b, :, 0])
    return ids[ids > 0]


def user_by_hand(b, scenario):
    """The sum of a user's factors, event by event."""
    clicked, shown = ids_of("history", b), ids_of("exposures", b)
    weight = [max(0.5 ** (len(clicked) - 1 - n), 0.3) for n in range(len(clicked))]
    total = np.array(table("kinds")[scenario])
    for item, each in zip(clicked, weight, strict=True):
        total += each * table("history_table")[item] / np.sqrt(np.square(weight).sum() + 1)
    weight = [max(0.6 ** (len(shown) - 1 - n), 0.4) for n in range(len(shown))]
    for item, each in zip(shown, weight, strict=True):
        total += each * table("exposure_table")[item] / np.sqrt(np.square(weight).sum())
    return total


def test_a_score_is_the_standardised_sum_beside_the_prior():
    score_BG = np.einsum(
        "bmd,bgd->bg",
        apply(USERS, SCENARIO_B, method="embed_user"),
        apply(ITEMS, SCENARIO_B, method="embed_item"),
    )
    prior_SV = np.asarray(VARIABLES["constants"][statistics.KNOWN_PRIOR])
    for b, scenario in enumerate(np.asarray(SCENARIO_B)):
        raw_V = table("item_table") @ user_by_hand(b, scenario) + table("bias_table")
        standard_V = 1.7 * raw_V / raw_V[1 : SPEC.num_items].std()
        item_G = np.asarray(ITEMS.sparse_VF[b, :, 0])
        expected_G = standard_V[item_G] + prior_SV[scenario, item_G]
        np.testing.assert_allclose(score_BG[b], expected_G, rtol=2e-5, atol=2e-5)


def test_a_scenarios_items_differ_in_the_last_coordinate_alone():
    one, other = (apply(ITEMS, jnp.full(B, scenario), method="embed_item") for scenario in (0, 1))
    np.testing.assert_array_equal(one[..., :-1], other[..., :-1])
    assert np.abs(one[..., -1] - other[..., -1]).min() > 0


def test_what_a_bag_pools_to_without_an_item_is_the_bag_of_the_others():
    rng = np.random.default_rng(0)
    factor_VD = jnp.asarray(rng.normal(size=(20, D)), jnp.float32)
    ids_BL = jnp.array([[3, 8, 3, 5], [7, 2, 0, 0]])
    weight_BL = jnp.array([[0.4, 0.6, 0.8, 1.0], [0.7, 1.0, 0.0, 0.0]])
    bag = fism.Bag.make(ids_BL, weight_BL, factor_VD, extra=1.0)
    item_BT = jnp.array([[3, 5, 9], [2, 0, 7]])
    pooled_BTD, factor_BTD = bag.pool_without(item_BT)
    np.testing.assert_array_equal(factor_BTD, factor_VD[item_BT])
    for t in range(item_BT.shape[1]):
        others = weight_BL * (ids_BL != item_BT[:, t, None])
        expected_BD = fism.Bag.make(ids_BL, others, factor_VD, extra=1.0).pool()
        np.testing.assert_allclose(pooled_BTD[:, t], expected_BD, rtol=1e-5, atol=1e-6)


def test_negatives_are_targets_of_the_kind_by_their_popularity():
    item_BT = jnp.array([[1, 2, 2, 9], [2, 11, 12, 0]])
    kind_BT = jnp.array([[0, 0, 0, 1], [0, 3, 3, 3]])
    targets = fism.Targets(item_BT, kind_BT, (item_BT > 0).astype(jnp.float32))
    draw = {"num": 4000, "num_scenarios": 2}
    found_BTN = np.asarray(fism.draw_negatives(jax.random.key(1), targets, mixing=0.0, **draw))
    assert set(found_BTN[0, 3]) == {9}
    assert set(found_BTN[1, 1]) == {11, 12}
    values, counts = np.unique(found_BTN[0, 0], return_counts=True)
    assert values.tolist() == [1, 2]
    assert counts[1] / counts.sum() == pytest.approx(0.75, abs=0.03)


def test_a_share_of_a_scenarios_negatives_comes_from_all_scenarios():
    item_BT = jnp.array([[1, 9, 11, 21]])
    targets = fism.Targets(item_BT, jnp.array([[0, 1, 2, 3]]), jnp.ones((1, 4)))
    draw = {"num": 8000, "num_scenarios": 2, "mixing": 0.5}
    found_TN = np.asarray(fism.draw_negatives(jax.random.key(2), targets, **draw))[0]
    assert np.mean(found_TN[0] == 9) == pytest.approx(0.25, abs=0.02)
    # What is before the log or was shown is no scenario.
    assert set(found_TN[2]) == {11} and set(found_TN[3]) == {21}


def make_history(clicked, earlier, exposures, scenario):
    """One user: events from before the log, then clicks of one scenario."""

    def sequence(ids, times, length):
        ids, times = (np.pad(np.array(v, np.int32), (0, length - len(v))) for v in (ids, times))
        return batch_lib.Sequence(jnp.asarray(ids[None, :, None]), jnp.asarray(times[None]))

    times = [0] * len(earlier) + [5] * len(clicked)
    joined = np.zeros((S, 3), np.int32)
    joined[scenario, : len(clicked)] = clicked
    sequences = {
        "history": sequence([*earlier, *clicked], times, L),
        "exposures": sequence(exposures, [5] * len(exposures), 4),
        "scenario_histories": sequence(joined.ravel(), [5] * joined.size, 3 * S),
    }
    users = tiny_features.make_users(SPEC, 1)
    return users._replace(sequences=sequences)


def test_the_loss_is_that_of_every_target_written_out(monkeypatch):
    """Two clicks, one event before the log, one exposure and the example's own positive."""
    clicked, earlier, exposures, own, scenario = [4, 6], [8], [10], 3, 2
    kinds = {4: scenario, 6: scenario, 8: S, own: scenario, 10: S + 1}
    monkeypatch.setattr(
        fism, "draw_negatives", lambda key, t, **_: jnp.where(t.item_BT == 4, 6, 15)[..., None]
    )
    users = make_history(clicked, earlier, exposures, scenario)
    items = jax.tree.map(lambda leaf: leaf[:1], ITEMS)
    items = items._replace(sparse_VF=items.sparse_VF.at[0, 0, 0].set(own))
    # No trace from before the negatives were replaced, and none that outlives the test.
    loss = jax.jit(functools.partial(apply_traced_anew, method="pairwise_loss"))
    found = loss(users, items, jnp.array([scenario]))

    event, weight = [8, 4, 6], np.array([0.3, 0.5, 1.0])
    total, count = 0.0, 0.0
    for target, kind in kinds.items():
        kept = weight * (np.array(event) != target)
        user = kept @ table("history_table")[event] / np.sqrt(np.square(kept).sum() + 1)
        user += table("kinds")[kind] + table("exposure_table")[10] * (target != 10)
        # A negative that the user has is none.
        negative = 6 if target == 4 else 15
        score, other = (
            user @ table("item_table")[i] + table("bias_table")[i] for i in (target, negative)
        )
        loss = 0.0 if negative in event else np.log1p(np.exp(other - score))
        loss += CONFIG.l2 * sum(
            factor * np.square(table(name)[i]).sum()
            for factor, name, i in (
                (1.0, "item_table", target),
                (1.0, "item_table", negative),
                (0.5, "history_table", target),
                (0.5, "exposure_table", target),
            )
        )
        each = CONFIG.exposure_weight if kind == S + 1 else 1.0
        total, count = total + each * loss, count + each
    np.testing.assert_allclose(found, [[total / count]], rtol=1e-5)


def test_some_events_of_a_user_stand_for_all():
    item_BX = jnp.array([[1, 2, 3, 4, 5, 0], [7, 0, 0, 0, 0, 0]])
    drawn = [
        fism._sample(jax.random.key(n), item_BX, 0 * item_BX, jnp.array([0.5]), 2)
        for n in range(60)
    ]
    for targets in drawn:
        assert len(set(np.asarray(targets.item_BT[0]))) == 2
        np.testing.assert_allclose(targets.weight_BT, [[1.25, 1.25], [0.5, 0.0]])
    counts = np.bincount(np.concatenate([np.asarray(t.item_BT[0]) for t in drawn]), minlength=6)
    assert counts[0] == 0 and counts[1:].min() > 10


def test_a_store_without_exposures_has_no_table_of_them():
    spec = dataclasses.replace(SPEC, sequences=(SPEC.sequences[0], SPEC.sequences[2]))
    users = tiny_features.make_users(spec, B)
    model = CONFIG.make(spec)
    variables = tiny_features.make_variables(model, users, ITEMS, SCENARIO_B)
    assert "exposure_table" not in variables["params"]
    loss = apply(users, ITEMS, SCENARIO_B, method="pairwise_loss", variables=variables, model=model)
    assert loss.shape == (B, 1) and np.isfinite(loss).all()


def test_without_a_history_there_is_nothing_to_sum():
    spec = dataclasses.replace(BASE, sequences=BASE.sequences[1:])
    with pytest.raises(ValueError, match=r"features\.exclude.*'history'"):
        CONFIG.make(spec)
