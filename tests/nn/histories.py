"""Right-padded histories and random parameters for the tests of causal encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny_features

from dsmoe_jax.nn import causal

LENGTHS = (0, 1, 3, 5)


def make(dim, length=5, seed=0):
    """Events [B, length, dim] and their timeline; histories of 0, 1, 3 and 5 events."""
    rng = np.random.default_rng(seed)
    B = len(LENGTHS)
    mask_BL = np.arange(length)[None] < np.asarray(LENGTHS)[:, None]
    event_BLE = np.zeros((B, length, dim))
    event_BLE[:, :5] = rng.normal(size=(B, 5, dim))
    time_BL = np.zeros((B, length), np.int64)
    time_BL[:, :5] = 1_000_000 + np.cumsum(rng.integers(1, 100_000, (B, 5)), axis=1)
    time_B = time_BL.max(axis=1) + 500
    timeline = causal.make_timeline(
        jnp.asarray(mask_BL),
        jnp.asarray(time_BL * mask_BL, jnp.int32),
        jnp.asarray(time_B, jnp.int32),
    )
    return jnp.asarray(event_BLE * mask_BL[..., None], jnp.float32), timeline


def make_params(encoder, event_BLE, timeline, seed=0):
    """Random parameters, so that nothing is at its start."""
    shapes = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), event_BLE, timeline, train=False)
    )
    return tiny_features.randomise(shapes, seed)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)


def layer_norm(x):
    return rms(x - x.mean(axis=-1, keepdims=True))


def start(params, event_LE):
    """x0 of one history in NumPy."""
    n, dim = event_LE.shape
    return event_LE * np.sqrt(dim) + params["position"][:n]
