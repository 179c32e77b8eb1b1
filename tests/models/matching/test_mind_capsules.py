import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.models.matching import mind
from dsmoe_jax.nn import embed

B, L, M, E = 9, 20, 4, 3
LENGTH_B = np.array([0, 1, 2, 3, 6, 7, 14, 15, 20])


def make_events(length_B=LENGTH_B, max_len=L, seed=0):
    rng = np.random.default_rng(seed)
    value_BLE = rng.normal(size=(len(length_B), L, E)).astype(np.float32)
    value_BLE = np.pad(value_BLE, ((0, 0), (0, max_len - L), (0, 0)))
    mask_BL = np.arange(max_len)[None] < length_B[:, None]
    return embed.Events(jnp.asarray(value_BLE * mask_BL[..., None]), jnp.asarray(mask_BL))


MODULE = mind.DynamicRouting(E, M, 3)
BILINEAR_EE = np.random.default_rng(1).normal(size=(E, E)).astype(np.float32)
VARIABLES = {"params": {"bilinear": jnp.asarray(BILINEAR_EE)}}


@functools.partial(jax.jit, static_argnames=("method", "iterations"))
def route(events, method=None, iterations=3, variables=VARIABLES):
    module = MODULE.clone(iterations=iterations)
    return module.apply(variables, events, method=method)


def routed_by_loops(events, iterations):
    """Interests of every history, one event and one interest at a time."""
    noise_LM = np.asarray(mind.routing_noise(L, M))
    found = np.zeros((B, M, E))
    for b, length in enumerate(LENGTH_B):
        active = max(1, min(M, int(math.log2(1 + length) + 1e-9)))
        mapped = np.asarray(events.event_BLE[b, :length], np.float64) @ BILINEAR_EE
        logit = noise_LM[:length, :active].astype(np.float64)
        for r in range(iterations):
            weight = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
            for m in range(active):
                z = sum((weight[i, m] * mapped[i] for i in range(length)), np.zeros(E))
                norm = np.linalg.norm(z)
                if norm:
                    found[b, m] = norm**2 / (1 + norm**2) * z / norm
            if r < iterations - 1:
                logit = logit + mapped @ found[b, :active].T
    return found


@pytest.mark.parametrize("iterations", [1, 3])
def test_interests_equal_those_of_loops(iterations):
    events = make_events()
    interest_BME, _ = route(events, iterations=iterations)
    np.testing.assert_allclose(interest_BME, routed_by_loops(events, iterations), atol=1e-4)


def test_number_of_interests_is_the_logarithm_of_the_length_between_one_and_all():
    active_BM = mind.active_interests(jnp.asarray(LENGTH_B), M)
    assert active_BM.sum(axis=1).tolist() == [1, 1, 1, 2, 2, 3, 3, 4, 4]
    # The first ones, of which there is one at least; no power of two is missed by rounding.
    assert active_BM[:, 0].all() and (active_BM[:, 1:] <= active_BM[:, :-1]).all()
    length_B = jnp.asarray([2**n - 1 for n in range(1, 24)])
    assert mind.active_interests(length_B, 30).sum(axis=1).tolist() == list(range(1, 24))
    assert mind.active_interests(length_B, 1).sum(axis=1).tolist() == [1] * 23


def test_weights_of_an_event_sum_to_one_over_interests_and_to_zero_at_padding():
    events = make_events()
    weight_BLM = np.asarray(route(events, method="weights"))
    expected = np.asarray(events.mask_BL).astype(np.float32)
    np.testing.assert_allclose(weight_BLM.sum(axis=2), expected, atol=1e-6)
    active_BM = np.asarray(mind.active_interests(jnp.asarray(LENGTH_B), M))
    assert (weight_BLM[~np.broadcast_to(active_BM[:, None], weight_BLM.shape)] == 0).all()
    assert (weight_BLM >= 0).all()


def test_interests_that_a_history_does_not_support_are_zero():
    interest_BME, active_BM = route(make_events())
    inactive = ~np.asarray(active_BM)
    assert (np.asarray(interest_BME)[inactive] == 0).all()
    assert (np.abs(interest_BME[1:]).max(axis=2)[np.asarray(active_BM)[1:]] > 0).all()
    assert (interest_BME[0] == 0).all()  # an empty history


@pytest.mark.parametrize("method", [None, "weights"])
def test_more_padding_changes_nothing(method):
    short, long = (
        jax.tree.leaves(route(make_events(max_len=max_len), method=method)) for max_len in (L, 33)
    )
    longer = np.asarray(long[0])
    if method:
        assert (longer[:, L:] == 0).all()
        longer = longer[:, :L]
    np.testing.assert_allclose(short[0], longer, atol=1e-6)


def test_noise_is_one_standard_normal_buffer():
    noise_LM = np.asarray(mind.routing_noise(5000, M))
    np.testing.assert_array_equal(noise_LM[:7], mind.routing_noise(7, M))
    assert abs(noise_LM.mean()) < 0.03 and abs(noise_LM.std() - 1) < 0.03
    assert 3 < np.abs(noise_LM).max() < 6
    assert np.abs(np.corrcoef(noise_LM.T) - np.eye(M)).max() < 0.05
    # Trained models mean these values: they may not change.
    expected = [-0.826238, -0.124815, 1.828135, -0.861837]
    np.testing.assert_allclose(noise_LM[0], expected, atol=1e-5)


def test_gradient_is_that_of_the_last_sum_with_constant_weights():
    events = make_events()
    weight_BLM = route(events, method="weights")
    pull_BME = jnp.asarray(np.random.default_rng(2).normal(size=(B, M, E)), jnp.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def routed(bilinear_EE, event_BLE):
        variables = {"params": {"bilinear": bilinear_EE}}
        interest_BME, _ = MODULE.apply(variables, events._replace(event_BLE=event_BLE))
        return (interest_BME * pull_BME).sum()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def fixed(bilinear_EE, event_BLE):
        z_BME = jnp.einsum("blm,ble->bme", weight_BLM, event_BLE @ bilinear_EE)
        return (mind.squash(z_BME) * pull_BME).sum()

    arguments = jnp.asarray(BILINEAR_EE), events.event_BLE
    for found, expected in zip(routed(*arguments), fixed(*arguments), strict=True):
        assert np.isfinite(found).all() and np.abs(found).max() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_squash_keeps_the_direction_and_is_flat_at_zero():
    z = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [0.06, -0.08]], jnp.float32)
    length = np.linalg.norm(np.asarray(mind.squash(z)), axis=1)
    np.testing.assert_allclose(length, [25 / 26, 0, 0.01 / 1.01], rtol=1e-4)
    np.testing.assert_allclose(mind.squash(z)[0] / length[0], [0.6, 0.8], rtol=1e-5)
    gradient = jax.grad(lambda z: mind.squash(z).sum())(jnp.zeros(2))
    np.testing.assert_array_equal(gradient, [0.0, 0.0])
