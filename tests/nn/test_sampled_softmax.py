import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.nn import sampled_softmax


def loss(query, positive, negatives, positive_id, negative_ids):
    """Of one example with one position."""

    def array(value, shape):
        return jnp.asarray(value, jnp.float32).reshape(shape)

    loss_BL = sampled_softmax.sampled_softmax(
        array(query, (1, 1, 2)),
        array(positive, (1, 1, 2)),
        array(negatives, (1, -1, 2)),
        jnp.asarray([[positive_id]]),
        jnp.asarray([negative_ids]),
    )
    assert loss_BL.shape == (1, 1)
    return float(loss_BL[0, 0])


def test_loss_of_equal_logits_is_the_logarithm_of_their_number():
    assert np.isclose(loss([1, 0], [2, 5], [[2, 1], [2, 7]], 3, [1, 2]), np.log(3))


def test_loss_has_the_softmax_value():
    # Logits 1 (positive), 0 and 2.
    expected = -np.log(np.e / (np.e + 1 + np.exp(2)))
    assert np.isclose(loss([1, 1], [1, 0], [[0, 0], [1, 1]], 5, [6, 7]), expected)


def test_a_negative_that_is_the_positive_takes_no_part():
    alone = loss([1, 1], [1, 0], [[0, 0]], 5, [6])
    assert np.isclose(loss([1, 1], [1, 0], [[0, 0], [1, 0]], 5, [6, 5]), alone)
    # Only collisions: nothing to tell the positive from.
    assert loss([1, 1], [1, 0], [[1, 0]], 5, [5]) == 0


def test_collisions_are_each_positions_own_and_large_logits_stay_finite():
    query_BLD = jnp.full((1, 2, 1), 400.0)
    positive_BLD = jnp.asarray([[[1.0], [-1.0]]])
    negative_BND = jnp.asarray([[[-1.0], [1.0]]])

    def run(query_BLD):
        return sampled_softmax.sampled_softmax(
            query_BLD, positive_BLD, negative_BND, jnp.asarray([[1, 2]]), jnp.asarray([[2, 1]])
        )

    np.testing.assert_allclose(run(query_BLD), [[0, 800]])
    assert np.isfinite(jax.grad(lambda q: run(q).sum())(query_BLD)).all()
