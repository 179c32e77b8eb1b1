"""Digests of a state's arrays, whatever devices hold their rows.

An array's digest is a sum over its elements, modulo 2**32, of each one's bits mixed with its place.
Mixing is one-to-one, so that one changed element always changes the sum, and a sum is the same for
every layout. Arrays on accelerators, or of several processes, are summed where they lie; those that
the host has in its memory are summed by NumPy, which compiles nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Two sums of 32 bits each.
_SEEDS = (0x9E3779B9, 0x7F4A7C15)
# Elements that the host mixes at once.
_CHUNK = 1 << 20


# The shape of a leaf, whose path is given, without the rows of padding at its end.
OwnShape = Callable[[str, Any], tuple[int, ...]]


def of_tree(tree: Any, own_shape: OwnShape = lambda path, leaf: leaf.shape) -> dict[str, str]:
    """Type, shape and digest of every leaf by its path, e.g. `float32[8,2] 0123456789abcdef`.

    Args:
      tree: Arrays.
      own_shape: Tells how many rows of a leaf count; what is below them may be anything.
    """
    leaves = _by_path(tree)
    if not leaves:
        return {}
    shapes = {path: own_shape(path, leaf) for path, leaf in leaves.items()}
    owned = [(leaf, shapes[path][0] if shapes[path] else 1) for path, leaf in leaves.items()]
    if all(_is_on_host(leaf) for leaf in leaves.values()):
        sums: Any = [_digest_on_host(np.asarray(leaf), rows) for leaf, rows in owned]
    else:
        sums = _sum_where_they_lie(owned)
    types = types_of(tree, own_shape)
    return {
        path: f"{types[path]} " + "".join(f"{int(word):08x}" for word in words)
        for path, words in zip(leaves, sums, strict=True)
    }


def types_of(tree: Any, own_shape: OwnShape) -> dict[str, str]:
    """Type and shape of every leaf by its path, as digests begin, e.g. `float32[8,2]`."""
    return {
        path: f"{leaf.dtype}[{','.join(map(str, own_shape(path, leaf)))}]"
        for path, leaf in _by_path(tree).items()
    }


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _sum_where_they_lie(owned: list[tuple[Any, int]]) -> Any:
    """The sums of the rows of leaves that count, uint32 [leaves, 2]."""
    leaves, rows = zip(*owned, strict=True)
    meshes = [
        leaf.sharding.mesh
        for leaf in leaves
        if isinstance(getattr(leaf, "sharding", None), jax.sharding.NamedSharding)
    ]
    # Every process reads the sums.
    whole = jax.sharding.NamedSharding(meshes[0], jax.sharding.PartitionSpec()) if meshes else None
    digest_all = jax.jit(_digest_all, static_argnums=1, out_shardings=whole)
    return jax.device_get(digest_all(leaves, rows))


def _is_on_host(leaf: Any) -> bool:
    """Whether NumPy reads the array without moving it."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())


def _digest_on_host(array: np.ndarray, rows: int) -> np.ndarray:
    """As `_digest`, of an array in the host's memory, chunk by chunk."""
    array = array[:rows] if array.ndim else array
    bits = array.astype(np.uint8) if array.dtype == np.bool_ else array
    width = min(bits.dtype.itemsize, 4)
    # An element of eight bytes becomes two, of places one after the other.
    bits = np.ascontiguousarray(bits).reshape(-1).view(f"uint{8 * width}")
    sums = np.zeros(len(_SEEDS), np.uint64)
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK].astype(np.uint32)
        place = np.arange(start, start + len(chunk)).astype(np.uint32)
        for n, seed in enumerate(_SEEDS):
            sums[n] += _mix(_mix(place + np.uint32(seed)) ^ chunk).sum(dtype=np.uint64)
    return sums.astype(np.uint32)


def _digest_all(leaves: tuple[jax.Array, ...], rows: tuple[int, ...]) -> jax.Array:
    return jnp.stack([_digest(*pair) for pair in zip(leaves, rows, strict=True)])


def _digest(leaf: jax.Array, rows: int) -> jax.Array:
    """The sums of a leaf's first rows, uint32 [2]."""
    bits = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    width = min(bits.dtype.itemsize, 4)
    # An element of eight bytes becomes two.
    bits = jax.lax.bitcast_convert_type(bits, np.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = np.uint32(math.prod(bits.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * stride
    mixed = [_mix(_mix(place + np.uint32(seed)) ^ bits) for seed in _SEEDS]
    if leaf.ndim and rows < leaf.shape[0]:
        # A slice would move rows between devices.
        counts = jax.lax.broadcasted_iota(jnp.int32, bits.shape, 0) < rows
        mixed = [jnp.where(counts, words, 0) for words in mixed]
    return jnp.stack([jnp.sum(words, dtype=jnp.uint32) for words in mixed])


def _mix(word: Any) -> Any:
    """MurmurHash3's finaliser: one-to-one on 32 bits."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
