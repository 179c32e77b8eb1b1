"""Row-sparse optimizer: updates of large embedding tables by the rows of a batch.

Owns which rows a batch touches, how they are gathered for the model in place of the tables, and
their update. The model does not know: it gets tables of the touched rows and ids that point into
them. The cost of a step depends on the batch, not on the tables.

A table that several features index (a history and the item tower, say) is gathered and updated
once, with the sum of their gradients.

Where tables are split over devices, a step moves the batch's ids, the touched rows and their
gradients, each once; every device then updates the rows it owns, and moments never travel.

Letters: B examples, V rows of a table, E one field's embedding, T touched rows of a batch, counted
once per occurrence, id 0 first, W rows of a device's share of a table.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.config import schema
from dsmoe_jax.training import large_tables, optimizer, sharding

# Smaller tables cost less than a batch of histories when they are updated whole.
MIN_ROWS = 16_384
ITEM_TABLE = "item_tables/item_id"


class RowState(NamedTuple):
    """What is kept of one table beside its values.

    Attributes:
      mean_VE: Adam's first moment; [V, 0] with Adagrad.
      square_VE: Adam's second moment, or Adagrad's sum of squares per row, [V, 1].
      slot_V: Scratch: where in the last batch that touched it a row was. Never cleared, since a
        batch writes what it reads.
    """

    mean_VE: Float[jax.Array, "V _"]
    square_VE: Float[jax.Array, "V _"]
    slot_V: Int[jax.Array, "V"]


class OptState(NamedTuple):
    """State of the optimiser: of the parameters that are updated whole, and of the tables' rows."""

    dense: Any
    rows: dict[str, RowState]


class TouchedRows(NamedTuple):
    """The rows of one table that a batch touches.

    Attributes:
      id_T: Row of every occurrence.
      unique_T: Whether it is the one occurrence of its row that is written back.
    """

    id_T: Int[jax.Array, "T"]
    unique_T: Bool[jax.Array, "T"]


@dataclasses.dataclass(frozen=True)
class RowSparse:
    """Adam or Adagrad on the touched rows of the large tables, Adam with L2 on all else.

    Rows are treated as if the steps that did not touch them had not been: their moments do not
    decay and L2 does not move them, where dense Adam would move both. Where every row is touched in
    every step the two are equal. Adam's bias correction counts all steps.

    **Deviation:** the paper's recipe is dense Adam; this is for tables far larger than a batch.

    Attributes:
      spec: The features, which say what the large tables are.
      learning_rate: Step size > 0, or what gives it for a step.
      weight_decay: L2, added to the gradient.
      method: "adam", or "adagrad" with one accumulator per row.
      min_rows: Smaller tables are updated whole: they cost less than a batch of histories.
      mesh: The devices over which tables are split; None where there is one.
      beta_2: Decay of Adam's second moments.
    """

    spec: features.FeatureSpec
    learning_rate: optax.ScalarOrSchedule
    weight_decay: float
    method: str = "adam"
    min_rows: int = MIN_ROWS
    mesh: sharding.AnyMesh | None = None
    beta_2: float = optimizer.BETA_2

    @functools.cached_property
    def names(self) -> list[str]:
        """The large tables."""
        return large_tables.names(self.spec, self.min_rows)

    @property
    def dense(self) -> optax.GradientTransformation:
        """The optimiser of everything but the large tables."""
        return optimizer.make_optimizer(self.learning_rate, self.weight_decay, self.beta_2)

    def init(self, params: Any) -> OptState:
        """Moments of 0; raises as `large_tables.split` does."""
        rows = {}
        large, rest = large_tables.split(params, self.names)
        for name, table_VE in large.items():
            V, E = table_VE.shape
            adagrad = self.method == "adagrad"
            rows[name] = RowState(
                mean_VE=jnp.zeros((V, 0 if adagrad else E), jnp.float32),
                square_VE=jnp.zeros((V, 1 if adagrad else E), jnp.float32),
                slot_V=jnp.zeros(V, jnp.int32),
            )
        return OptState(self.dense.init(rest), rows)

    def gather(
        self,
        params: Any,
        opt_state: OptState,
        users: batch_lib.Users,
        items: batch_lib.Items,
        constants: dict[str, jax.Array],
    ) -> optimizer.Gathered:
        """Parameters with the touched rows in place of the tables, and ids that point into them.

        Raises:
          ValueError: When the model looks fields of items up in constants, whose rows of tables a
            batch does not touch.
        """
        tables, rest = large_tables.split(params, self.names)
        used = large_tables.read_ids(self.spec, users, items, self.names)
        gathered, touched, written = {}, {}, dict(opt_state.rows)
        slots: dict[str, Callable[[jax.Array], jax.Array]] = {}
        for name, table_VE in tables.items():
            parts = [ids.reshape(-1) for ids in used[name]]
            id_T = self._whole(jnp.concatenate([jnp.zeros(1, jnp.int32), *parts]))
            position_T = jnp.arange(id_T.shape[0], dtype=jnp.int32)
            # Padding is never written and stays 0, which is what a model knows it by. Written and
            # then set back, it would cost two copies of all slots.
            row_T = jnp.where(id_T > 0, id_T, table_VE.shape[0])
            slot_V = written[name].slot_V.at[row_T].set(position_T, mode="drop")
            written[name] = written[name]._replace(slot_V=slot_V)
            slot_T = self._whole(slot_V[id_T])
            touched[name] = TouchedRows(id_T, slot_T == position_T)
            gathered[name] = self._whole(table_VE[id_T])
            # The same order as the ids were read in; the first slot is padding's own.
            stops = np.cumsum([part.size for part in parts])[:-1]
            slots[name] = _deal([self._whole(part) for part in jnp.split(slot_T[1:], stops)])
        users, items = large_tables.map_ids(self.spec, users, items, slots)
        return optimizer.Gathered(
            large_tables.join(gathered, rest),
            users,
            items,
            self._gather_constants(constants, touched),
            opt_state._replace(rows=written),
            touched,
        )

    def _gather_constants(
        self, constants: dict[str, jax.Array], touched: dict[str, TouchedRows]
    ) -> dict[str, jax.Array]:
        """The touched items of every constant, where item ids become slots.

        A constant's name ends in its dimension letters, of which V are the items.
        """
        for name, value in constants.items():
            if jnp.issubdtype(value.dtype, jnp.integer) and any("item_" in n for n in self.names):
                raise ValueError(
                    "optim.embedding: expected 'dense' for a method that looks up fields of items "
                    f"({name}) beside those of the batch, got 'row_sparse'"
                )
        if ITEM_TABLE not in touched:
            return constants
        id_T = touched[ITEM_TABLE].id_T
        return {
            name: self._whole(jnp.take(value, id_T, axis=name.rpartition("_")[2].index("V")))
            for name, value in constants.items()
        }

    def update(
        self, gradient: Any, params: Any, gathered: optimizer.Gathered, step: Int[jax.Array, ""]
    ) -> tuple[Any, OptState]:
        """See `optimizer.Updater`."""
        opt_state = gathered.opt_state
        gradients, rest_gradient = large_tables.split(gradient, self.names)
        tables, rest = large_tables.split(params, self.names)
        updates, dense = self.dense.update(rest_gradient, opt_state.dense, rest)
        rest = optax.apply_updates(rest, updates)
        rows = {}
        taken = _count_taken(opt_state.dense, step)
        for name, table_VE in tables.items():
            state = opt_state.rows[name]
            tables[name], mean_VE, square_VE = self._on_owners(
                self._update_shard,
                (table_VE, state.mean_VE, state.square_VE),
                gathered.touched_rows[name],
                (gradients[name], step, taken),
            )
            rows[name] = RowState(mean_VE, square_VE, state.slot_V)
        return large_tables.join(tables, rest), OptState(dense, rows)

    def average(
        self, average: Any, params: Any, gathered: optimizer.Gathered, share: jax.Array
    ) -> Any:
        """As `optimizer.Dense.average`, but untouched rows keep their average."""
        old, old_rest = large_tables.split(average, self.names)
        new, new_rest = large_tables.split(params, self.names)
        rest = optimizer.move_towards(old_rest, new_rest, share)

        def move(
            first: jax.Array,
            tables: tuple[jax.Array, jax.Array],
            touched: TouchedRows,
            share: jax.Array,
        ) -> jax.Array:
            mine = _own(touched, first, tables[0].shape[0])
            old_TE, new_TE = (table_WE[mine.id_T] for table_WE in tables)
            return _write(tables[0], mine, optimizer.move_towards(old_TE, new_TE, share))

        for name, touched in gathered.touched_rows.items():
            old[name] = self._on_owners(move, (old[name], new[name]), touched, share)
        return large_tables.join(old, rest)

    def _update_shard(
        self,
        first: Int[jax.Array, ""],
        tables: tuple[jax.Array, jax.Array, jax.Array],
        touched: TouchedRows,
        gradient: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Values and moments of the rows from `first` on, after a step."""
        table_WE, mean_WE, square_WE = tables
        gradient_TE, step, taken = gradient
        mine = _own(touched, first, table_WE.shape[0])
        rate = self.learning_rate(taken) if callable(self.learning_rate) else self.learning_rate
        value_TE, mean_TE, square_TE = (whole_WE[mine.id_T] for whole_WE in tables)
        gradient_TE = gradient_TE + self.weight_decay * value_TE
        if self.method == "adagrad":
            square_TE = square_TE + jnp.square(gradient_TE).mean(axis=1, keepdims=True)
            move_TE = gradient_TE / (jnp.sqrt(square_TE) + optimizer.EPSILON)
        else:
            count = step + 1
            mean_TE = optimizer.BETA_1 * mean_TE + (1 - optimizer.BETA_1) * gradient_TE
            square_TE = self.beta_2 * square_TE + (1 - self.beta_2) * jnp.square(gradient_TE)
            corrected_mean_TE = mean_TE / (1 - optimizer.BETA_1**count)
            corrected_square_TE = square_TE / (1 - self.beta_2**count)
            move_TE = corrected_mean_TE / (jnp.sqrt(corrected_square_TE) + optimizer.EPSILON)
        return (
            _write(table_WE, mine, value_TE - rate * move_TE),
            _write(mean_WE, mine, mean_TE),
            _write(square_WE, mine, square_TE),
        )

    def _whole(self, array: jax.Array) -> jax.Array:
        """The array on every device."""
        if self.mesh is None:
            return array
        whole: jax.Array = jax.lax.with_sharding_constraint(array, sharding.replicated(self.mesh))
        return whole

    def _on_owners(
        self,
        function: Callable[..., Any],
        tables: tuple[jax.Array, ...],
        touched: TouchedRows,
        argument: Any,
    ) -> Any:
        """`function(first, tables, touched, argument)` on each device with the rows that it owns.

        `first` is the id of its tables' first row; `touched` and `argument` are whole.
        """
        rows = tables[0].shape[0]
        mesh = self.mesh
        if mesh is None or mesh.size == 1 or not sharding.splits_table(mesh, rows):
            return function(jnp.int32(0), tables, touched, argument)
        share = rows // mesh.size

        def run(tables: tuple[jax.Array, ...], touched: TouchedRows, argument: Any) -> Any:
            first = jax.lax.axis_index(sharding.AXIS) * share
            return function(first, tables, touched, argument)

        whole, by_rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(sharding.AXIS)
        return jax.shard_map(run, mesh=mesh, in_specs=(by_rows, whole, whole), out_specs=by_rows)(
            tables, touched, argument
        )


def make_updater(
    chosen: schema.OptimConfig,
    spec: features.FeatureSpec,
    mesh: sharding.AnyMesh,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float,
    beta_2: float = optimizer.BETA_2,
) -> optimizer.Updater:
    """The updater of a configuration; see `RowSparse` for its numbers."""
    if chosen.embedding == "dense":
        return optimizer.Dense(optimizer.make_optimizer(learning_rate, weight_decay, beta_2))
    return RowSparse(
        spec, learning_rate, weight_decay, chosen.row_method, chosen.min_rows, mesh, beta_2
    )


def _count_taken(dense: Any, step: Int[jax.Array, ""]) -> Int[jax.Array, ""]:
    """Steps of the learning rate's schedule, which starts anew where a run goes on from another."""

    def is_schedule(state: Any) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    states = [s for s in jax.tree.leaves(dense, is_leaf=is_schedule) if is_schedule(s)]
    taken: jax.Array = states[0].count if states else step
    return taken


def _deal(parts: list[jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Hands parts out in their order, in the shapes of what they replace."""
    left = iter(parts)
    return lambda ids: next(left).reshape(ids.shape)


def _own(touched: TouchedRows, first: Int[jax.Array, ""], rows: int) -> TouchedRows:
    """What is touched of the rows [first, first + rows), with ids that count from there.

    Padding, which is never written, and the rows of others are not unique here; their ids are 0.
    """
    id_T = touched.id_T - first
    owned_T = (id_T >= 0) & (id_T < rows)
    return TouchedRows(jnp.where(owned_T, id_T, 0), touched.unique_T & owned_T & (touched.id_T > 0))


def _write(
    whole_WE: Float[jax.Array, "W E"], mine: TouchedRows, values_TE: Float[jax.Array, "T E"]
) -> Float[jax.Array, "W E"]:
    """Replaces the touched rows, each once."""
    row_T = jnp.where(mine.unique_T, mine.id_T, whole_WE.shape[0])
    return whole_WE.at[row_T].set(values_TE, mode="drop")
