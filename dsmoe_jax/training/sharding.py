"""Sharding: one mesh over all devices, batches by examples, large tables by rows.

Owns the layout rules. A table is sharded over every device of the mesh, so that a lookup moves
bytes in proportion to the batch and not to the table; so are the features of a large corpus;
everything else is replicated.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dsmoe_jax.nn import tables

AXIS = "data"

# Tables below this many rows cost less replicated than gathered from.
MIN_SHARDED_ROWS = 16_384
# In the path of every leaf that has a row for each of a table of `nn.tables`.
FIELD_TABLES = "_tables"


# Devices, or only their number: layouts can be planned for machines that are not there.
AnyMesh = Mesh | AbstractMesh


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis over `devices`, all devices of all processes by default."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def abstract_mesh(devices: int) -> AbstractMesh:
    """The mesh that `make_mesh` makes of so many devices, without the devices."""
    return AbstractMesh((devices,), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_rows(mesh: AnyMesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def state_sharding(mesh: AnyMesh, tree: Any) -> Any:
    """The sharding of each leaf of a training state, parameters or optimiser moments alike.

    A leaf is sharded by rows when `table` is part of its path, it has at least `MIN_SHARDED_ROWS`
    rows and the devices divide them, which `pad_tables` sees to.
    """

    def rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        rows = leaf.shape[0] if leaf.ndim else 0
        is_table = "table" in jax.tree_util.keystr(path)
        if is_table and splits_table(mesh, rows):
            return by_rows(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(rule, tree)


def pad_tables(mesh: AnyMesh, tree: Any) -> Any:
    """A training state whose large tables, and what is kept of their rows, the devices divide.

    Tables of fields come with a multiple of 1,024 rows, whatever the devices; rows of zeros are
    added, fewer than there are devices, that no id points to and no step moves. Tables that a model
    makes itself stay as they are: it insists on their height. So do all on more than 1,024 devices
    that do not divide them.
    """

    def pad(path: tuple[Any, ...], leaf: Any) -> Any:
        rows = leaf.shape[0] if leaf.ndim else 0
        missing = -rows % mesh.size
        is_table = FIELD_TABLES in jax.tree_util.keystr(path)
        is_fitting = 0 < missing < tables.TABLE_ROW_MULTIPLE
        if not (is_fitting and is_table and rows >= MIN_SHARDED_ROWS):
            return leaf
        return jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))

    return jax.tree_util.tree_map_with_path(pad, tree)


def own_shape(path: str, leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf of a training state without the rows that `pad_tables` adds."""
    shape: tuple[int, ...] = tuple(leaf.shape)
    if FIELD_TABLES in path and shape and shape[0] >= MIN_SHARDED_ROWS:
        return (shape[0] - shape[0] % tables.TABLE_ROW_MULTIPLE, *shape[1:])
    return shape


def splits_table(mesh: AnyMesh, rows: int) -> bool:
    """Whether a table of so many rows is split over the devices."""
    return rows >= MIN_SHARDED_ROWS and rows % mesh.size == 0


def abstract(tree: Any, layout: Any) -> Any:
    """Shapes and types of the leaves in a layout: what can be compiled for, without the arrays.

    The layout is a sharding of every leaf, or one for all.
    """
    if isinstance(layout, jax.sharding.Sharding):
        layout = jax.tree.map(lambda _: layout, tree)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        layout,
    )


def bytes_per_device(tree: Any) -> int:
    """Bytes that one device holds of arrays, or of shapes with their layout."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """A host batch, of which each process holds its slice, as one global array per leaf.

    Raises:
      ValueError: When the devices do not divide the batch.
    """
    for leaf in jax.tree.leaves(batch):
        check_batch(mesh, leaf.shape[0])
    put = functools.partial(jax.make_array_from_process_local_data, by_rows(mesh))
    return jax.tree.map(put, batch)


def read_batch(array: jax.Array) -> np.ndarray:
    """This process's slice of an array in the layout of `put_batch`, whose inverse it is."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def check_batch(mesh: Mesh, rows: int) -> None:
    """Refuses a process's slice of a batch that its devices do not divide.

    Raises:
      ValueError: With the size of the whole batch.
    """
    local_devices = mesh.local_mesh.size
    if rows % local_devices:
        raise ValueError(
            f"train.batch_size: expected a multiple of the {mesh.size} devices, got "
            f"{rows * mesh.size // local_devices}"
        )


def put_batches(mesh: Mesh, batches: list[Any]) -> Any:
    """As `put_batch`, several stacked along a new first axis, which no device splits."""
    check_batch(mesh, jax.tree.leaves(batches[0])[0].shape[0])
    layout = NamedSharding(mesh, P(None, AXIS))

    def put(*leaves: np.ndarray) -> jax.Array:
        stacked = leaves[0][None] if len(leaves) == 1 else np.stack(leaves)
        placed: jax.Array = jax.make_array_from_process_local_data(layout, stacked)
        return placed

    return jax.tree.map(put, *batches)


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Host arrays, equal in every process, on every device."""
    put: Any = functools.partial(jax.make_array_from_process_local_data, replicated(mesh))
    host = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda leaf: put(leaf, leaf.shape), host)


def put_rows(mesh: Mesh, read: Callable[[slice], Any], num_rows: int) -> Any:
    """Host arrays with a common leading axis: every device gets its rows, and no host reads others.

    They are laid out as `rows_layout` says; rows past the last are zeros. `read` gives a tree of
    host arrays of a slice of the rows, once for each device of this process, one after the other.
    """
    layout, padded = rows_layout(mesh, num_rows)
    if layout.is_fully_replicated:
        return put_replicated(mesh, read(slice(0, num_rows)))
    size = padded // mesh.size
    places: Any = layout.addressable_devices_indices_map((padded,))
    shards = []
    for device, (rows,) in places.items():
        start, stop, _ = rows.indices(padded)
        shard = read(slice(min(start, num_rows), min(stop, num_rows)))
        shard = jax.tree.map(lambda leaf: _pad_rows(leaf, size), shard)
        shards.append(jax.device_put(shard, device))

    def join(*leaves: jax.Array) -> jax.Array:
        shape = (padded, *leaves[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, layout, list(leaves))

    return jax.tree.map(join, *shards)


def rows_layout(mesh: AnyMesh, num_rows: int) -> tuple[NamedSharding, int]:
    """Where the rows of a corpus lie and their padded number: a multiple of the devices if split.

    Few rows, below `MIN_SHARDED_ROWS`, are replicated.
    """
    if mesh.size == 1 or num_rows < MIN_SHARDED_ROWS:
        return replicated(mesh), num_rows
    return by_rows(mesh), shard_rows(num_rows, mesh.size) * mesh.size


def shard_rows(num_rows: int, devices: int) -> int:
    """Rows on each device of `num_rows` that are split over the devices."""
    return -(-num_rows // devices)


def _pad_rows(leaf: np.ndarray, rows: int) -> np.ndarray:
    missing = rows - leaf.shape[0]
    if not missing:
        return leaf
    return np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)])
