import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.nn import scenario

TABLE_SF = jnp.asarray([[1.1, -2.3], [3.7, 4.9], [1e-8, 1e8]], jnp.float32)


def test_pick_returns_each_examples_row_unchanged():
    one_hot_BS = scenario.one_hot(jnp.asarray([2, 0, 2, 1]), 3)
    picked = scenario.pick(TABLE_SF, one_hot_BS, 4)
    assert picked.shape == (4, 1, 1, 2)
    np.testing.assert_array_equal(picked[:, 0, 0], TABLE_SF[jnp.asarray([2, 0, 2, 1])])


def test_gradient_of_pick_sums_over_the_examples_of_a_scenario():
    one_hot_BS = scenario.one_hot(jnp.asarray([2, 0, 2]), 3)
    weight_BF = jnp.asarray([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]], jnp.float32)
    gradient = jax.grad(lambda table: (weight_BF * scenario.pick(table, one_hot_BS)).sum())(
        TABLE_SF
    )
    np.testing.assert_array_equal(gradient, [[4.0, 8.0], [0.0, 0.0], [17.0, 34.0]])


def test_append_gives_all_candidates_their_examples_row():
    one_hot_BS = scenario.one_hot(jnp.asarray([2, 0]), 3)
    x_BGF = jnp.arange(6, dtype=jnp.float32).reshape(2, 3, 1)
    joined = scenario.append(x_BGF, TABLE_SF, one_hot_BS)
    for b, s in enumerate((2, 0)):
        for g in range(3):
            np.testing.assert_array_equal(joined[b, g], [3 * b + g, *TABLE_SF[s]])
