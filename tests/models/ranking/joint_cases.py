"""Small rankers on the joint input, rows for them, and what their tests do with both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_features

from dsmoe_jax.training import losses

B, G, S = 12, 3, 4
SPEC = tiny_features.make_spec()
USERS = tiny_features.make_users(SPEC, B)
ITEMS = tiny_features.make_items(SPEC, (B, G))
SCENARIO_B = tiny_features.make_scenarios(SPEC, B)
# Every part of the input.
INPUTS = {
    "attention_length": 4,
    "attention_sequences": ("history", "behavior"),
    "attention_hidden": (4, 3),
    "use_log_prior": True,
    "collaborative": True,
    "collaborative_dim": 3,
}


def make(config):
    """The ranker and random variables for it, all away from their start."""
    model = config.make(SPEC)
    return model, tiny_features.make_variables(model, USERS, ITEMS, SCENARIO_B)


@functools.partial(jax.jit, static_argnums=0)
def _score(model, variables, users, items, scenario_B):
    return model.apply(variables, users, items, scenario_B, train=False)


def evaluate(model, variables, items=ITEMS, users=USERS, scenario_B=SCENARIO_B):
    logit_BG, aux = _score(model, variables, users, items, scenario_B)
    assert aux == {}
    return np.asarray(logit_BG)


def initialise(model):
    return jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), USERS, ITEMS, SCENARIO_B
    )


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, variables, weight_BG):
    """With respect to all parameters, of a weighted sum of BCE terms, in training."""

    def loss(params):
        (logit_BG, _), _ = model.apply(
            {**variables, "params": params}, USERS, ITEMS, SCENARIO_B, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        label_BG = jnp.zeros_like(logit_BG).at[:, 0].set(1.0)
        return (losses.bce_with_logits(logit_BG, label_BG) * weight_BG).sum()

    return jax.grad(loss)(variables["params"])


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_input(model, variables):
    """Parameters of the embedder and of attention, and the two linear weights."""
    params = variables["params"]
    names = [
        name for name in params
        if name.startswith(("embedder", "attention_", "prior_weight", "collaborative_weight"))
    ]  # fmt: skip
    return count({"params": {name: params[name] for name in names}})


def accuracy_on_scenario_tastes(config, steps=60):
    """Share of right answers about new rows of what is learned from the following rule.

    An item is liked where its category and the scenario are both even or both odd: neither tells
    anything alone.
    """
    spec = tiny_features.make_spec(
        user_sparse=tiny_features.make_spec().user_sparse[:1],
        user_dense=(),
        user_bags=(),
        item_dense=(),
        item_bags=(),
        sequences=(),
    )
    model = dataclasses.replace(config, attention_sequences=()).make(spec)
    rows, candidates = 64, 4

    def draw(seed):
        users = tiny_features.make_users(spec, rows, seed)
        items = tiny_features.make_items(spec, (rows, candidates), seed)
        scenario_B = tiny_features.make_scenarios(spec, rows)
        label_BG = (items.sparse_VF[..., 1] + scenario_B[:, None]) % 2
        return users, items, scenario_B, label_BG.astype(jnp.float32)

    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(variables, state, key, users, items, scenario_B, label_BG):
        def loss(params):
            (logit_BG, _), updated = model.apply(
                {**variables, "params": params}, users, items, scenario_B, train=True,
                mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            return losses.bce_with_logits(logit_BG, label_BG).mean(), updated

        gradients, updated = jax.grad(loss, has_aux=True)(variables["params"])
        moves, state = optimiser.update(gradients, state)
        params = optax.apply_updates(variables["params"], moves)
        return {**variables, **updated, "params": params}, state

    users, items, scenario_B, _ = draw(0)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), users, items, scenario_B)
    state = optimiser.init(variables["params"])
    for n in range(steps):
        variables, state = step(variables, state, jax.random.key(n), *draw(n + 1))
    users, items, scenario_B, label_BG = draw(steps + 1)
    logit_BG = evaluate(model, variables, items, users, scenario_B)
    return float(((logit_BG > 0) == (label_BG > 0)).mean())
