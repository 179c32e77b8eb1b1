import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax.models.matching import m5

N, L, E, W, H, X = 6, 5, 4, 6, 2, 7
RNG = np.random.default_rng(0)
LENGTH_N = np.array([0, 1, 5, 3, 2, 4])
MASK_NL = jnp.asarray(np.arange(L)[None] < LENGTH_N[:, None])
EVENT_NLE = jnp.asarray(RNG.normal(size=(N, L, E)), jnp.float32)
MASKED_NL = MASK_NL & jnp.asarray(RNG.random((N, L)) < 0.4)
ITEM_NL = jnp.asarray(RNG.integers(1, 9, (N, L)), jnp.int32) * MASK_NL


@functools.cache
def make():
    layer = m5.Interests(E, W, H, L)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), EVENT_NLE, MASK_NL, MASKED_NL)
    return layer, tiny_features.randomise(shapes)


def read(event_NLE=EVENT_NLE, mask_NL=MASK_NL, masked_NL=MASKED_NL):
    layer, variables = make()
    return layer.apply(variables, event_NLE, mask_NL, masked_NL)


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def normalise(params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return params["scale"] * centred / deviation + params["bias"]


def gelu(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x):
    weight = np.exp(x - x.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def naive(params, event_LE, masked_L):
    """One history without padding through the printed equations, in NumPy."""
    token = np.where(masked_L[:, None], params["masked_event"], event_LE)
    h = dense(params["project"], token + params["position"][: len(token)])
    block = params["block"]
    heads = []
    joint = dense(block["query_key_value"], normalise(block["attention_norm"], h))
    for head in range(H):
        size = W // H
        columns = slice(head * size, (head + 1) * size)
        q, k, v = (part[:, columns] for part in np.split(joint, 3, axis=1))
        heads.append(softmax(q @ k.T / np.sqrt(size)) @ v)
    h = h + dense(block["output"], np.concatenate(heads, axis=1))
    h = h + dense(block["ffn_down"], gelu(dense(block["ffn_up"], normalise(block["ffn_norm"], h))))
    score = dense(params["intensity"], np.tanh(dense(params["calibrate"], h)))[:, 0]
    return softmax(score) @ h, dense(params["predict"], h)


def test_interests_are_those_of_the_printed_equations():
    params = jax.tree.map(np.asarray, make()[1]["params"])
    interest_NW, predicted_NLE = read()
    np.testing.assert_array_equal(interest_NW[0], np.zeros(W))
    for n in range(1, N):
        length = LENGTH_N[n]
        events, masked = np.asarray(EVENT_NLE)[n, :length], np.asarray(MASKED_NL)[n, :length]
        interest, predicted = naive(params, events, masked)
        np.testing.assert_allclose(interest_NW[n], interest, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(predicted_NLE[n, :length], predicted, rtol=1e-4, atol=1e-4)


def test_padding_has_no_say():
    padding_NLE = jnp.where(MASK_NL[..., None], EVENT_NLE, 9.0)
    interest_NW, predicted_NLE = read(padding_NLE)
    expected_NW, expected_NLE = read()
    np.testing.assert_array_equal(interest_NW, expected_NW)
    kept = np.asarray(MASK_NL)
    np.testing.assert_array_equal(predicted_NLE[kept], expected_NLE[kept])


def test_a_masked_event_is_hidden():
    hidden_NLE = jnp.where(MASKED_NL[..., None], -3.0, EVENT_NLE)
    for got, expected in zip(read(hidden_NLE), read(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert np.abs(read(hidden_NLE, masked_NL=jnp.zeros_like(MASKED_NL))[0] - read()[0]).max() > 0.1


def masked_loss(predicted_NLE, event_NLE=EVENT_NLE, masked_NL=MASKED_NL):
    negative_XE, negative_X = draw_negatives()
    return m5.masked_item_loss(
        predicted_NLE, event_NLE, ITEM_NL, negative_XE, negative_X, masked_NL
    )


def draw_negatives():
    rng = np.random.default_rng(1)
    return (
        jnp.asarray(rng.normal(size=(X, E)), jnp.float32),
        jnp.asarray(rng.integers(1, 9, X), jnp.int32),
    )


def test_masked_item_loss_is_that_of_a_literal_loop():
    predicted_NLE = jnp.asarray(RNG.normal(size=(N, L, E)), jnp.float32)
    negative_XE, negative_X = map(np.asarray, draw_negatives())
    losses, hits = [], 0
    for n, t in np.argwhere(np.asarray(MASKED_NL)):
        prediction = np.asarray(predicted_NLE)[n, t].astype(np.float64)
        own = np.exp(prediction @ np.asarray(EVENT_NLE)[n, t])
        total = own
        for x in range(X):
            if negative_X[x] != ITEM_NL[n, t]:
                total += np.exp(prediction @ negative_XE[x])
            else:
                hits += 1
        losses.append(-np.log(own / total))
    assert len(losses) > 2 and hits > 0
    np.testing.assert_allclose(masked_loss(predicted_NLE), np.mean(losses), rtol=1e-5)


def test_masked_item_loss_reads_masked_positions_alone():
    gradient = jax.grad(masked_loss, argnums=(0, 1))
    predicted_NLE = jnp.asarray(RNG.normal(size=(N, L, E)), jnp.float32)
    for side_NLE in gradient(predicted_NLE, EVENT_NLE):
        moved_NL = np.abs(side_NLE).max(axis=-1) > 0
        np.testing.assert_array_equal(moved_NL, MASKED_NL)


def test_without_masked_events_there_is_no_loss():
    nothing_NL = jnp.zeros_like(MASKED_NL)
    value, gradient = jax.value_and_grad(masked_loss)(EVENT_NLE, masked_NL=nothing_NL)
    assert value == 0 and not np.asarray(gradient).any()
