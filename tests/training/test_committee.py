"""A committee of matchers: its logits are the mean of its members', and a step learns from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.data import negatives
from dsmoe_jax.models.matching import dsmoe_plus
from dsmoe_jax.nn import sampled_softmax
from dsmoe_jax.training import committee, losses, optimizer, sharding, train_state, train_step

B, N = 8, 3
BASE = tiny_features.make_spec()
SPEC = dataclasses.replace(
    BASE,
    sequences=(
        features.SequenceFeature("history", ("item_id",), 6),
        features.SequenceFeature("exposures", ("item_id",), 4),
    ),
)
CONFIG = dsmoe_plus.DSMOEPlusConfig(output_dim=4, tower_dim=3, hidden_dim=4, input_dropout=0.0)
MODEL = CONFIG.make(SPEC)
OBJECTIVE = CONFIG.objective()
USERS = tiny_features.make_users(SPEC, B)
SCENARIO_B = jnp.arange(B, dtype=jnp.int32) % SPEC.num_scenarios
CORPUS = jax.tree.map(lambda leaf: leaf[0], tiny_features.make_items(SPEC, (1, SPEC.num_items)))
CORPUS = CORPUS._replace(
    sparse_VF=CORPUS.sparse_VF.at[:, 0].set(jnp.arange(SPEC.num_items, dtype=jnp.int32))
)
MEMBERS = [
    train_state.Frozen(found["params"], {n: v for n, v in found.items() if n != "params"})
    for found in (
        tiny_features.make_variables(
            MODEL, USERS, batch_lib.take_items(CORPUS, jnp.ones((B, 1 + N), jnp.int32)), SCENARIO_B
        ),
    )
]
MEMBERS.append(MEMBERS[0]._replace(params=jax.tree.map(lambda p: 1.5 * p + 0.1, MEMBERS[0].params)))


@jax.jit
def judge(variables, items):
    return MODEL.apply(
        variables, USERS, items, SCENARIO_B, train=False, method=OBJECTIVE.logit_method
    )[0]


def logits(frozen, items):
    return np.asarray(judge(frozen.variables, items))


def test_its_logits_are_the_mean_of_its_members():
    items = batch_lib.take_items(CORPUS, jnp.arange(B * (1 + N)).reshape(B, -1) % 7 + 1)
    teacher = committee.Committee(MODEL, OBJECTIVE.logit_method)
    found, aux = teacher.apply(
        committee.join(MEMBERS).variables, USERS, items, SCENARIO_B, train=False
    )
    expected = np.mean([logits(member, items) for member in MEMBERS], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert aux == {} and np.ptp([logits(m, items)[:, 0] for m in MEMBERS], axis=0).min() > 0


def test_a_step_learns_from_labels_and_committee():
    mesh = sharding.make_mesh(jax.devices()[:1])
    updater = optimizer.Dense(optimizer.make_optimizer(1e-2, 0.0))
    constants = jax.tree.map(np.asarray, MEMBERS[0].model_state["constants"])
    state = train_state.init_state(
        MODEL, updater, key=jax.random.key(1), mesh=mesh, constants=constants
    )
    step = jax.jit(
        train_step.make_train_step(
            MODEL,
            updater,
            num_items=SPEC.num_items,
            num_negatives=N,
            teacher=committee.Committee(MODEL, OBJECTIVE.logit_method),
            loss_method=OBJECTIVE.loss_method,
            logit_method=OBJECTIVE.logit_method,
        )
    )
    item_B = jnp.arange(B, dtype=jnp.int32) % (SPEC.num_items - 1) + 1
    batch = batch_lib.Batch(USERS, SCENARIO_B, item_B)
    key, teacher = jax.random.key(2), committee.join(MEMBERS)
    own = train_state.freeze(state)
    after, metrics = step(state, teacher, CORPUS, batch, jnp.float32(3.0), key)
    drawn = negatives.draw(
        jax.random.split(jax.random.fold_in(key, 0), 3)[0],
        batch,
        num_items=SPEC.num_items,
        num_scenarios=SPEC.num_scenarios,
        num_negatives=N,
        kind="uniform",
        uniform_share=0.0,
    )
    items = batch_lib.take_items(CORPUS, drawn.item_BG)
    # The towers add nothing yet, so that statistics of the batch have no say.
    taught = np.mean([logits(member, items) for member in MEMBERS], axis=0)
    divergence = losses.listwise_kl(jnp.asarray(taught), jnp.asarray(logits(own, items)))
    rows = float(metrics["rows"].sum())
    found = {name: metrics[f"loss_{name}"].sum() / rows for name in ("task", "distill")}
    task = sampled_softmax.first_among(jnp.asarray(logits(own, items)))
    np.testing.assert_allclose(found["task"], task.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["distill"], divergence.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], task.mean() + 3.0 * divergence.mean(), rtol=1e-4)
    assert int(after.step) == 1
