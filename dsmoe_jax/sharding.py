"""Where arrays live: one mesh over all devices, batches by examples, large tables by rows.

Owns the layout rules. A table is sharded over every device of the mesh, so that a lookup moves
bytes in proportion to the batch and not to the table; everything else is replicated.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"

# Tables below this many rows cost less replicated than gathered from.
MIN_SHARDED_ROWS = 16_384


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis over `devices`, all devices of all processes by default."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, P(AXIS))


def state_sharding(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each leaf of a training state, parameters or optimiser moments alike.

    A leaf is sharded by rows when `table` is part of its path, it has at least `MIN_SHARDED_ROWS`
    rows and the devices divide them (tables are padded to a multiple of 1,024 rows).
    """

    def rule(path: tuple, leaf: Any) -> NamedSharding:
        rows = leaf.shape[0] if leaf.ndim else 0
        is_table = "table" in jax.tree_util.keystr(path)
        if is_table and rows >= MIN_SHARDED_ROWS and rows % mesh.size == 0:
            return by_rows(mesh)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(rule, tree)


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """A host batch, of which each process holds its slice, as one global array per leaf.

    Raises:
      ValueError: When the devices do not divide the batch.
    """
    local_devices = mesh.local_mesh.size

    def put(leaf: np.ndarray) -> jax.Array:
        if leaf.shape[0] % local_devices:
            raise ValueError(
                f"train.batch_size: expected a multiple of the {mesh.size} devices, got "
                f"{leaf.shape[0] * mesh.size // local_devices}"
            )
        return jax.make_array_from_process_local_data(by_rows(mesh), leaf)

    return jax.tree.map(put, batch)


def put_replicated(mesh: Mesh, tree: Any) -> Any:
    """Host arrays, equal in every process, on every device."""

    def put(leaf: np.ndarray) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_process_local_data(replicated(mesh), leaf, leaf.shape)

    return jax.tree.map(put, tree)
