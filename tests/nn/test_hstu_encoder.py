import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import causal, hstu_encoder
from tests.nn import histories

E = 6


@functools.cache
def make(num_heads=1, max_len=7):
    encoder = hstu_encoder.Encoder(E, num_blocks=2, num_heads=num_heads, max_len=max_len)
    event_BLE, timeline = histories.make(E)
    return encoder, histories.make_params(encoder, event_BLE, timeline), event_BLE, timeline


@functools.partial(jax.jit, static_argnums=0)
def run(encoder, variables, event_BLE, timeline):
    return encoder.apply(variables, event_BLE, timeline, train=False)[0]


def naive_block(params, x_LE, bucket_LL, num_heads, max_len):
    n = len(x_LE)
    joint = histories.silu(histories.layer_norm(x_LE) @ params["uvqk"])
    u, v, q, k = (joint[:, i * E : (i + 1) * E] for i in range(4))
    width = E // num_heads
    mixed = np.zeros((n, E))
    for h in range(num_heads):
        part = slice(h * width, (h + 1) * width)
        for i in range(n):
            for j in range(i + 1):
                bias = params["bias"]["position"][max_len - 1 + j - i]
                bias += params["bias"]["time"][bucket_LL[i, j]]
                weight = histories.silu(q[i, part] @ k[j, part] + bias) / max_len
                mixed[i, part] += weight * v[j, part]
    gated = u * histories.layer_norm(mixed)
    return x_LE + gated @ params["output"]["kernel"] + params["output"]["bias"]


@pytest.mark.parametrize("num_heads", [1, 2])
def test_encoder_equals_the_printed_block_position_by_position(num_heads):
    encoder, variables, event_BLE, timeline = make(num_heads)
    got_BLE = run(encoder, variables, event_BLE, timeline)
    params = jax.tree.map(np.asarray, variables["params"])
    for b, length in enumerate(histories.LENGTHS):
        n = max(length, 1)
        x = histories.start(params["input"], np.asarray(event_BLE)[b, :n])
        for block in ("block_0", "block_1"):
            x = naive_block(params[block], x, np.asarray(timeline.bucket_BLL)[b], num_heads, 7)
        np.testing.assert_allclose(got_BLE[b, :n], x, rtol=2e-4, atol=2e-5)


def test_an_event_changes_no_position_before_it():
    encoder, variables, event_BLE, timeline = make()
    before_BLE = run(encoder, variables, event_BLE, timeline)
    after_BLE = run(encoder, variables, event_BLE.at[:, 3].add(jnp.arange(E)), timeline)
    np.testing.assert_array_equal(after_BLE[3, :3], before_BLE[3, :3])
    assert (np.abs(after_BLE - before_BLE)[3, 3:].max(axis=-1) > 1e-3).all()


def test_padding_changes_nothing():
    encoder, variables, event_BLE, timeline = make()
    long_BLE, long_timeline = histories.make(E, length=7)
    short_BLE = run(encoder, variables, event_BLE, timeline)
    padded_BLE = run(encoder, variables, long_BLE, long_timeline)
    junk_BLE = run(
        encoder,
        variables,
        jnp.where(long_timeline.mask_BL[..., None], long_BLE, 9.0),
        long_timeline,
    )
    for b, length in enumerate(histories.LENGTHS):
        n = max(length, 1)
        np.testing.assert_allclose(padded_BLE[b, :n], short_BLE[b, :n], rtol=1e-5, atol=1e-6)
        if length:
            np.testing.assert_allclose(junk_BLE[b, :n], short_BLE[b, :n], rtol=1e-5, atol=1e-6)


def test_block_has_the_published_number_of_parameters():
    block = hstu_encoder.Block(dim=50, num_heads=1, max_len=211, dropout=0.0)
    timeline = causal.make_timeline(
        jnp.ones((1, 2), bool), jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32)
    )
    shapes = jax.eval_shape(
        lambda: block.init(jax.random.key(0), jnp.zeros((1, 2, 50)), timeline, train=False)
    )
    assert histories.count(shapes) == 50 * 200 + 50 * 50 + 50 + (2 * 211 - 1) + 129


def test_dropout_acts_in_training_only():
    encoder, variables, event_BLE, timeline = make()
    dropped = hstu_encoder.Encoder(E, max_len=7, dropout=0.5, input_dropout=0.5)
    plain_BLE = run(encoder, variables, event_BLE, timeline)
    np.testing.assert_array_equal(run(dropped, variables, event_BLE, timeline), plain_BLE)
    keys = {"dropout": jax.random.key(0)}
    trained_BLE, aux = dropped.apply(variables, event_BLE, timeline, train=True, rngs=keys)
    assert aux == {} and np.abs(trained_BLE - plain_BLE)[3].max() > 1e-3
