import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.nn import attention, embed

B, G, L, E = 3, 4, 5, 2


def make(hidden, seed=0):
    rng = np.random.default_rng(seed)
    mask_BL = jnp.asarray([[False] * 5, [True] * 2 + [False] * 3, [True] * 5])
    event_BLE = jnp.asarray(rng.normal(size=(B, L, E)), jnp.float32) * mask_BL[..., None]
    query_BGE = jnp.asarray(rng.normal(size=(B, G, E)), jnp.float32)
    unit = Whole(attention.DINAttention(E, hidden))
    events = embed.Events(event_BLE, mask_BL)
    variables = unit.init(jax.random.key(0), events, query_BGE)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        variables["params"],
    )
    return unit, {"params": params}, events, query_BGE


class Whole(attention.nn.Module):
    unit: attention.DINAttention

    def __call__(self, events, candidate_BGE):
        return self.unit(self.unit.encode(events), candidate_BGE)


def naive(params, event_LE, length, query_E, hidden):
    """The unit as printed, on the concatenated input, for one candidate, in NumPy."""
    if not length:
        return np.zeros(E)
    h = event_LE[:length]
    q = np.broadcast_to(query_E, h.shape)
    x = np.concatenate([q, h, q - h, q * h], axis=1)
    for n in range(len(hidden)):
        x = x @ params[f"kernel_{n}"] + params[f"bias_{n}"]
        x = np.where(x >= 0, x, params["prelu_slope"][n] * x)
    logit = (x @ params[f"kernel_{len(hidden)}"])[:, 0]
    weight = np.exp(logit - logit.max())
    return (weight / weight.sum()) @ h


@pytest.mark.parametrize("hidden", [(3,), (6, 3)])
def test_factored_unit_equals_the_printed_one(hidden):
    unit, variables, events, query_BGE = make(hidden)
    got_BGE = unit.apply(variables, events, query_BGE)
    params = jax.tree.map(np.asarray, variables["params"]["unit"])
    for b, length in enumerate((0, 2, 5)):
        for g in range(G):
            expected = naive(
                params, np.asarray(events.event_BLE)[b], length, np.asarray(query_BGE)[b, g], hidden
            )
            np.testing.assert_allclose(got_BGE[b, g], expected, rtol=1e-4, atol=1e-5)


def test_shared_candidates_equal_repeated_ones():
    unit, variables, events, query_BGE = make((3,))
    repeated = unit.apply(variables, events, jnp.repeat(query_BGE[:1], B, axis=0))
    shared = unit.apply(variables, events, query_BGE[:1])
    np.testing.assert_allclose(shared, repeated, atol=1e-6)


def test_softmax_weights_sum_to_one_inside_the_mask_only():
    logit_BLG = jnp.asarray([[[0.0, 5.0], [1.0, -100.0], [90.0, 3.0]]] * 2, jnp.float32)
    mask_BL1 = jnp.asarray([[[True], [True], [False]], [[False], [False], [False]]])
    weight = attention.masked_softmax(logit_BLG, mask_BL1)
    np.testing.assert_allclose(weight[0, :, 0], [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-6)
    np.testing.assert_allclose(weight[0].sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_array_equal(weight[1], np.zeros((3, 2)))


def test_gradient_is_finite_with_an_empty_history():
    unit, variables, events, query_BGE = make((3,))

    def total(params, query_BGE):
        return jnp.square(unit.apply({"params": params}, events, query_BGE)).sum()

    params_gradient, query_gradient = jax.jit(jax.grad(total, argnums=(0, 1)))(
        variables["params"], query_BGE
    )
    for leaf in jax.tree.leaves(params_gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    np.testing.assert_array_equal(query_gradient[0], np.zeros((G, E)))
