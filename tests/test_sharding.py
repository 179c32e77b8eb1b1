import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dsmoe_jax import sharding


def test_only_large_tables_are_sharded_and_their_moments_with_them():
    mesh = sharding.make_mesh()
    rows = sharding.MIN_SHARDED_ROWS
    tree = {
        "params": {
            "user_table": jnp.zeros((rows, 2)),
            "small_table": jnp.zeros((1024, 2)),
            "kernel": jnp.zeros((rows, 2)),
        },
        "mu": {"user_table": jnp.zeros((rows, 2))},
        "step": jnp.zeros(()),
    }
    specs = jax.tree.map(lambda place: place.spec, sharding.state_sharding(mesh, tree))
    assert specs["params"] == {"user_table": P("data"), "small_table": P(), "kernel": P()}
    assert specs["mu"]["user_table"] == P("data")
    assert specs["step"] == P()


def test_a_table_whose_rows_the_devices_do_not_divide_is_replicated():
    mesh = sharding.make_mesh(jax.devices()[:3])
    table = {"user_table": jnp.zeros((sharding.MIN_SHARDED_ROWS, 2))}
    assert sharding.state_sharding(mesh, table)["user_table"].spec == P()


def test_a_batch_is_split_by_examples():
    mesh = sharding.make_mesh()
    placed = sharding.put_batch(mesh, {"item": np.arange(16)})["item"]
    assert placed.sharding.shard_shape(placed.shape) == (2,)
    np.testing.assert_array_equal(placed, np.arange(16))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    mesh = sharding.make_mesh()
    with pytest.raises(
        ValueError, match=r"train.batch_size: expected a multiple of the 8 devices, got 12"
    ):
        sharding.put_batch(mesh, np.arange(12))


def test_replicated_arrays_are_whole_on_every_device():
    placed = sharding.put_replicated(sharding.make_mesh(), np.arange(5))
    assert placed.sharding.is_fully_replicated
    assert len(placed.addressable_shards) == 8
    np.testing.assert_array_equal(placed, np.arange(5))
