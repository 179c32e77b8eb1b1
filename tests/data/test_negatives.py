import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.data import negatives
from dsmoe_jax.training import sharding


def test_negatives_are_uniform_over_every_item_but_the_positive():
    positive_B = jnp.repeat(jnp.array([1, 3, 5], jnp.int32), 4000)
    candidate_BG = np.asarray(
        negatives.draw_candidates(jax.random.key(0), positive_B, num_items=6, num_negatives=4)
    )
    np.testing.assert_array_equal(candidate_BG[:, 0], positive_B)
    for positive in (1, 3, 5):
        drawn = candidate_BG[candidate_BG[:, 0] == positive, 1:]
        share = np.bincount(drawn.ravel(), minlength=6) / drawn.size
        expected = np.array([0, *[0.25 if i != positive else 0 for i in range(1, 6)]])
        # 16,000 draws: a standard error of 0.0034.
        np.testing.assert_allclose(share, expected, atol=0.017)


def test_draws_do_not_depend_on_the_number_of_devices():
    positive_B = np.arange(1, 65, dtype=np.int32)

    def draw(devices):
        mesh = sharding.make_mesh(devices)
        sharded_B = sharding.put_batch(mesh, positive_B)
        function = jax.jit(
            lambda ids: negatives.draw_candidates(
                jax.random.key(7), ids, num_items=1000, num_negatives=3
            )
        )
        return np.asarray(function(sharded_B))

    np.testing.assert_array_equal(draw(jax.devices()[:1]), draw(jax.devices()))
