import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dsmoe_jax.training import sharding


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


def test_large_tables_of_fields_are_padded_until_the_devices_divide_them():
    mesh = sharding.make_mesh(jax.devices()[:6])
    rows = sharding.MIN_SHARDED_ROWS
    tree = {
        "user_tables": {"large": jnp.ones((rows, 2)), "small": jnp.ones((1024, 2))},
        "moments": {"user_tables/large": jnp.ones(rows, jnp.int32)},
        "own_table": jnp.ones((rows, 2)),
        "step": jnp.zeros(()),
    }
    padded = sharding.pad_tables(mesh, tree)
    large = padded["user_tables"]["large"]
    assert large.shape == (rows + 2, 2)  # 16,386 is 6 x 2,731
    assert padded["moments"]["user_tables/large"].shape == (rows + 2,)
    np.testing.assert_array_equal(large[:rows], 1)
    np.testing.assert_array_equal(large[rows:], 0)
    assert padded["user_tables"]["small"].shape == (1024, 2)
    assert padded["own_table"].shape == (rows, 2)
    specs = sharding.state_sharding(mesh, padded)
    assert specs["user_tables"]["large"].spec == P("data")
    assert specs["own_table"].spec == P()
    eight = sharding.make_mesh()
    assert sharding.pad_tables(eight, tree)["user_tables"]["large"].shape == (rows, 2)


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


def test_rows_of_a_large_corpus_are_read_where_they_stay(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED_ROWS", 16)
    mesh = sharding.make_mesh()
    whole = {"id": np.arange(1, 21), "tag": np.arange(40.0, dtype=np.float32).reshape(20, 2)}
    asked = []

    def read(rows):
        asked.append(range(20)[rows])
        return jax.tree.map(lambda leaf: leaf[rows], whole)

    placed = sharding.put_rows(mesh, read, 20)
    # Three rows on each of eight devices: 24, of which the last four are padding.
    assert [list(rows) for rows in asked] == [list(range(20))[3 * d : 3 * d + 3] for d in range(8)]
    for name, leaf in placed.items():
        assert leaf.sharding.spec == P("data")
        assert leaf.sharding.shard_shape(leaf.shape)[0] == 3
        np.testing.assert_array_equal(np.asarray(leaf)[:20], whole[name])
        np.testing.assert_array_equal(np.asarray(leaf)[20:], 0)


def test_rows_of_a_small_corpus_are_whole_on_every_device():
    placed = sharding.put_rows(sharding.make_mesh(), lambda rows: np.arange(20)[rows], 20)
    assert placed.sharding.is_fully_replicated
    np.testing.assert_array_equal(placed, np.arange(20))


def test_bytes_per_device_are_those_of_its_shards():
    mesh = sharding.make_mesh()
    rows = sharding.MIN_SHARDED_ROWS
    tree = {"user_table": jnp.zeros((rows, 2)), "bias": jnp.zeros(3, jnp.int32)}
    layout = sharding.state_sharding(mesh, tree)
    placed = jax.device_put(tree, layout)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert sharding.bytes_per_device(placed) == held == rows * 2 * 4 // 8 + 12
    planned = sharding.state_sharding(sharding.abstract_mesh(8), tree)
    assert sharding.bytes_per_device(sharding.abstract(tree, planned)) == held
