import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsmoe_jax.training import digest, sharding

MASK = 2**32 - 1


def mix(word: int) -> int:
    word = (word ^ word >> 16) * 0x85EBCA6B & MASK
    word = (word ^ word >> 13) * 0xC2B2AE35 & MASK
    return word ^ word >> 16


def by_hand(array: np.ndarray) -> str:
    """The digest in plain integers."""
    words = np.ascontiguousarray(array).view(f"uint{8 * array.dtype.itemsize}").ravel().tolist()
    sums = [
        sum(mix(mix(place + seed & MASK) ^ word) for place, word in enumerate(words)) & MASK
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    return "".join(f"{total:08x}" for total in sums)


ARRAYS = {
    "table": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32),
    "count": np.array(7, np.int32),
    "mask": np.array([True, False, True]),
    "half": np.arange(5, dtype=jnp.bfloat16),
    "none": np.zeros((0, 2), np.float32),
}


def test_a_digest_is_type_shape_and_two_sums():
    found = digest.of_tree({"a": [jnp.asarray(ARRAYS["table"])], "b": jnp.asarray(ARRAYS["count"])})
    assert found == {
        "a/0": f"float32[16,3] {by_hand(ARRAYS['table'])}",
        "b": f"int32[] {by_hand(ARRAYS['count'])}",
    }


@pytest.mark.parametrize("name", ARRAYS)
def test_every_type_has_a_digest(name):
    [found] = digest.of_tree({"x": jnp.asarray(ARRAYS[name])}).values()
    assert found.split()[1] == by_hand(ARRAYS[name])


def test_every_flipped_bit_changes_the_digest():
    table = ARRAYS["table"][:2]
    before = digest.of_tree(jnp.asarray(table))
    for bit in range(8 * table.nbytes):
        content = bytearray(table.tobytes())
        content[bit // 8] ^= 1 << bit % 8
        flipped = np.frombuffer(bytes(content), np.float32).reshape(table.shape)
        assert digest.of_tree(jnp.asarray(flipped)) != before


@pytest.mark.parametrize("name", ARRAYS)
def test_the_host_and_the_devices_find_the_same(name, monkeypatch):
    tree = {"x": jnp.asarray(ARRAYS[name])}
    monkeypatch.setattr(digest, "_CHUNK", 7)
    on_host = digest.of_tree(tree)
    monkeypatch.setattr(digest, "_is_on_host", lambda leaf: False)
    assert digest.of_tree(tree) == on_host


def test_elements_that_change_places_change_the_digest():
    table = ARRAYS["table"]
    assert digest.of_tree(jnp.asarray(table)) != digest.of_tree(jnp.asarray(table[::-1]))
    assert digest.of_tree(jnp.asarray(table)) != digest.of_tree(jnp.asarray(table.reshape(3, 16)))


def test_a_digest_does_not_depend_on_the_layout():
    rows = sharding.MIN_SHARDED_ROWS
    table = np.random.default_rng(1).normal(size=(rows, 2)).astype(np.float32)
    tree, found = {"item_table": jnp.asarray(table)}, []
    for count in (1, 4, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        placed = jax.device_put(tree, sharding.state_sharding(mesh, tree))
        found.append(digest.of_tree(placed))
    assert placed["item_table"].sharding.shard_shape((rows, 2))[0] == rows // 8
    assert found[0] == found[1] == found[2]


def test_nothing_has_no_digest():
    assert digest.of_tree({}) == {}


@pytest.mark.parametrize("on_host", [True, False])
def test_rows_of_padding_do_not_count(on_host, monkeypatch):
    if not on_host:
        monkeypatch.setattr(digest, "_is_on_host", lambda leaf: False)
    table = ARRAYS["table"]
    padded = jnp.pad(table, ((0, 2), (0, 0)), constant_values=3.0)
    found = digest.of_tree({"x": padded}, lambda path, leaf: (16, 3))
    assert found == digest.of_tree({"x": jnp.asarray(table)})
    assert digest.of_tree({"x": padded.at[15, 2].set(0.5)}, lambda path, leaf: (16, 3)) != found
