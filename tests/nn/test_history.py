import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_features

from dsmoe_jax.models.matching import dsmoe
from dsmoe_jax.nn import causal, embed, fuxi_encoder, hstu_encoder

B = 6
SPEC = tiny_features.make_spec()
E = SPEC.embedding_dim
ENCODERS = {
    "hstu": hstu_encoder.Encoder(E, max_len=6),
    "fuxi": fuxi_encoder.Encoder(E, max_len=6),
    "fuxi_mme": fuxi_encoder.Encoder(
        E, num_subspaces=2, num_experts=4, experts_per_token=2, max_len=6
    ),
}


def make_users():
    """Random users whose histories have times."""
    users = tiny_features.make_users(SPEC, B)
    clicks = users.sequences["history"]
    time_BL = np.cumsum(np.random.default_rng(0).integers(1, 90_000, clicks.time_BL.shape), axis=1)
    time_BL = jnp.asarray(time_BL * (clicks.ids_BLF[..., 0] > 0), jnp.int32)
    sequences = {**users.sequences, "history": clicks._replace(time_BL=time_BL)}
    return users._replace(sequences=sequences, time_B=jnp.full(B, 10**6, jnp.int32))


USERS = make_users()


@functools.cache
def make(name):
    embedder = embed.Embedder(dataclasses.replace(SPEC, history_encoder=name))
    init = functools.partial(embedder.init, method="users")
    return embedder, tiny_features.randomise(jax.eval_shape(init, jax.random.key(0), USERS))


@functools.partial(jax.jit, static_argnums=0)
def run(embedder, variables, users):
    return embedder.apply(variables, users, method="users")


@pytest.mark.parametrize("name", ENCODERS)
def test_the_last_output_of_the_encoder_stands_where_the_mean_stood(name):
    embedder, variables = make(name)
    got = run(embedder, variables, USERS)
    params = dict(variables["params"])
    of_encoder = params.pop("history_encoder")["encoder"]
    plain = run(embed.Embedder(SPEC), {"params": params}, USERS)
    clicks = USERS.sequences["history"]
    mask_BL = clicks.ids_BLF[..., 0] > 0
    timeline = causal.make_timeline(mask_BL, clicks.time_BL, USERS.time_B)
    state_BLE, _ = ENCODERS[name].apply(
        {"params": of_encoder}, plain.events["history"].event_BLE, timeline, train=False
    )
    last_B = np.maximum(np.asarray(mask_BL).sum(axis=1) - 1, 0)
    expected_BE = np.asarray(state_BLE)[np.arange(B), last_B] / np.sqrt(E)
    np.testing.assert_allclose(got.pooled["history"], expected_BE, rtol=1e-5, atol=1e-6)
    # All else is as it was, and the input is as wide.
    assert embedder.user_dim == plain.input_BI.shape[1] == got.input_BI.shape[1]
    changed = (np.abs(got.input_BI - plain.input_BI) > 1e-6).any(axis=0)
    places = [s.name for s in make_slots() for _ in range(E)]
    assert {name for name, moved in zip(places, changed, strict=True) if moved} == {"history"}


def make_slots():
    embedder = embed.Embedder(SPEC)
    variables = embedder.init(jax.random.key(0), USERS, method="users")
    return embedder.apply(variables, "user", method="input_slots")


def test_order_matters_to_an_encoder_and_not_to_the_mean():
    clicks = USERS.sequences["history"]
    turned = embed.recent_first(clicks)._replace(time_BL=clicks.time_BL)
    users = USERS._replace(sequences={**USERS.sequences, "history": turned})
    embedder, variables = make("fuxi")
    first, second = (run(embedder, variables, u).pooled["history"] for u in (USERS, users))
    assert np.abs(first - second).max() > 1e-2
    params = {k: v for k, v in variables["params"].items() if k != "history_encoder"}
    means = [
        run(embed.Embedder(SPEC), {"params": params}, u).pooled["history"] for u in (USERS, users)
    ]
    np.testing.assert_allclose(*means, rtol=1e-4, atol=1e-6)


def test_a_method_trains_the_encoder_with_its_own_loss():
    spec = dataclasses.replace(SPEC, history_encoder="fuxi_mme")
    model = dsmoe.DSMOEConfig(num_experts=2, rank=2, hidden_dim=6, output_dim=5).make(spec)
    items = tiny_features.make_items(spec, (B, 3))
    scenario_B = tiny_features.make_scenarios(spec, B)
    variables = tiny_features.make_variables(model, USERS, items, scenario_B)

    def loss(params):
        (logit_BG, _), _ = model.apply(
            {**variables, "params": params}, USERS, items, scenario_B,
            train=True, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.square(logit_BG - 1).mean()

    gradient = jax.jit(jax.grad(loss))(variables["params"])["embedder"]["history_encoder"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_sub_spaces_that_do_not_divide_the_width_are_refused():
    encoder = embed.HistoryEncoder("fuxi_mme", 5, 6)
    with pytest.raises(ValueError, match=r"embedding_dim: expected a multiple of 2 with .* got 5"):
        encoder.init(
            jax.random.key(0), jnp.zeros((B, 6, 5)), USERS.sequences["history"], USERS.time_B
        )
