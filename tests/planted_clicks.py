"""Small worlds whose clicks follow a known rule, and training in them by the package's own step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.training import optimizer, sharding, train_state, train_step

NUM_GROUPS = 8
ITEMS_PER_GROUP = 4
NUM_ITEMS = NUM_GROUPS * ITEMS_PER_GROUP + 1


def make_spec(scenarios, history_length, **changes):
    """Users with a group, items with an id, and a history where a length is given."""
    fields = {
        "scenarios": tuple("ABCD"[:scenarios]),
        "user_sparse": (features.SparseFeature("group", NUM_GROUPS + 1),),
        "user_dense": (),
        "user_bags": (),
        "item_sparse": (features.SparseFeature("item_id", NUM_ITEMS),),
        "item_dense": (),
        "item_bags": (),
        "sequences": (features.SequenceFeature("history", ("item_id",), history_length),)
        if history_length
        else (),
        "embedding_dim": 8,
    }
    return features.FeatureSpec(**{**fields, **changes})


def make_corpus():
    """All items; those of group g have the ids from 1 + g * ITEMS_PER_GROUP on."""
    return batch_lib.Items(
        jnp.arange(NUM_ITEMS, dtype=jnp.int32)[:, None], jnp.zeros((NUM_ITEMS, 0)), {}
    )


def draw_items(key, group_B):
    """An item of each group, uniformly."""
    offset_B = jax.random.randint(key, group_B.shape, 0, ITEMS_PER_GROUP)
    return 1 + group_B * ITEMS_PER_GROUP + offset_B


def make_users(group_B, history_BL=None):
    """Users of these groups (-1: unknown) with these events."""
    sequences = {}
    if history_BL is not None:
        sequences["history"] = batch_lib.Sequence(history_BL[..., None], 0 * history_BL)
    return batch_lib.Users(
        (group_B + 1)[:, None], jnp.zeros((len(group_B), 0)), {}, sequences, 0 * group_B
    )


def fit(model, draw_batch, *, steps, learning_rate, seed=0):
    """The model after so many steps on batches `draw_batch(key)`."""
    updater = optimizer.Dense(optax.adam(learning_rate))
    init_key, key = jax.random.split(jax.random.key(seed))
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = train_state.init_state(model, updater, key=init_key, mesh=mesh)
    step = train_step.make_train_step(model, updater, num_items=NUM_ITEMS, num_negatives=4)

    @jax.jit
    def run(state, corpus):
        def body(state, step_key):
            batch = draw_batch(step_key)
            return step(state, None, corpus, batch, jnp.float32(0), key)[0], None

        return jax.lax.scan(body, state, jax.random.split(key, steps))[0]

    return train_state.freeze(run(state, make_corpus()))


@functools.partial(jax.jit, static_argnums=0)
def _embed(model, frozen, users, scenario_B):
    variables = frozen.variables
    user_BMD, _ = model.apply(variables, users, scenario_B, train=False, method="embed_user")
    everywhere = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf[None], (len(scenario_B), *leaf.shape)), make_corpus()
    )
    item_BVD, _ = model.apply(variables, everywhere, scenario_B, train=False, method="embed_item")
    return user_BMD, item_BVD


def share_found(model, frozen, users, scenario_B, liked_BG):
    """Share of the best items that belong to the groups each user likes, as many as are liked."""
    user_BMD, item_BVD = _embed(model, frozen, users, scenario_B)
    score_BV = np.einsum("bmd,bvd->bmv", user_BMD, item_BVD).max(axis=1)[:, 1:]
    liked_BV = np.repeat(liked_BG, ITEMS_PER_GROUP, axis=1)
    found = []
    for score_V, liked_V in zip(score_BV, liked_BV, strict=True):
        found.append(liked_V[np.argsort(-score_V)[: liked_V.sum()]].mean())
    return float(np.mean(found))


def fit_opposite_taste(model, *, steps=400, learning_rate=1e-2):
    """Share found after training where users click their group in one scenario, and in the other
    the group opposite to it.
    """

    def clicked(group_B, scenario_B):
        return (group_B + scenario_B * (NUM_GROUPS // 2)) % NUM_GROUPS

    def draw_batch(key, B=64):
        keys = jax.random.split(key, 3)
        group_B = jax.random.randint(keys[0], (B,), 0, NUM_GROUPS)
        scenario_B = jax.random.randint(keys[1], (B,), 0, 2)
        item_B = draw_items(keys[2], clicked(group_B, scenario_B))
        return batch_lib.Batch(make_users(group_B), scenario_B, item_B)

    frozen = fit(model, draw_batch, steps=steps, learning_rate=learning_rate)
    group_B = jnp.tile(jnp.arange(NUM_GROUPS), 2)
    scenario_B = jnp.repeat(jnp.arange(2), NUM_GROUPS)
    liked_BG = np.arange(NUM_GROUPS)[None] == np.asarray(clicked(group_B, scenario_B))[:, None]
    return share_found(model, frozen, make_users(group_B), scenario_B, liked_BG)
