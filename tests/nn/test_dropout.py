import jax
import jax.numpy as jnp
import numpy as np

from dsmoe_jax.nn import dropout

SHAPE = (400, 250)


def drop(rate, x, *, train=True, seed=0):
    layer = dropout.Dropout(rate)
    return np.asarray(layer.apply({}, x, train=train, rngs={"dropout": jax.random.key(seed)}))


def test_share_of_dropped_entries_is_the_rate_and_the_mean_stays():
    for rate in (0.1, 0.3, 0.5, 0.9):
        y = drop(rate, jnp.ones(SHAPE, jnp.float32))
        error = np.sqrt(rate * (1 - rate) / y.size)
        assert abs((y == 0).mean() - rate) < 4 * error
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_entries_are_dropped_independently():
    dropped = drop(0.3, jnp.ones(SHAPE, jnp.float32)) == 0
    error = 0.3 * 0.7 / np.sqrt(dropped.size)
    for other in (
        np.roll(dropped, 1, axis=1),
        np.roll(dropped, 1, axis=0),
        np.roll(dropped, 64, axis=1),
        np.roll(dropped, 128, axis=0),
        drop(0.3, jnp.ones(SHAPE, jnp.float32), seed=1) == 0,
    ):
        covariance = (dropped & other).mean() - dropped.mean() * other.mean()
        assert abs(covariance) < 5 * error
    for axis in (0, 1):
        share = dropped.mean(axis=axis)
        error = np.sqrt(0.21 / dropped.shape[axis])
        np.testing.assert_allclose(share.std(), error, rtol=0.2)


def test_bits_are_uniform():
    seed = jnp.asarray([123, 456], jnp.uint32)
    bits = np.asarray(dropout.hash_positions(seed, (1000, 100)))
    for shift in range(0, 32, 8):
        count = np.bincount(((bits >> shift) & 255).ravel(), minlength=256)
        chi_square = ((count - bits.size / 256) ** 2 / (bits.size / 256)).sum()
        assert 255 - 5 * np.sqrt(510) < chi_square < 255 + 5 * np.sqrt(510)


def test_outside_training_and_at_rate_0_the_input_passes():
    x = jnp.arange(6, dtype=jnp.float32).reshape(2, 3)
    np.testing.assert_array_equal(drop(0.5, x, train=False), x)
    np.testing.assert_array_equal(drop(0.0, x), x)


def test_mask_does_not_depend_on_the_sharding():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.ones((16, 5), jnp.float32)
    apply = jax.jit(
        lambda x: dropout.Dropout(0.4).apply({}, x, train=True, rngs={"dropout": jax.random.key(3)})
    )
    np.testing.assert_array_equal(apply(jax.device_put(x, rows)), apply(x))
