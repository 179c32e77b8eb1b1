"""Updates of large embedding tables that touch the rows of a batch and no other.

Owns which rows a batch touches, how a model is shown those rows in place of the tables, and their
update. The model does not know: it gets tables of the touched rows and ids that point into them.
The cost of a step depends on the batch, not on the tables.

A table that several features index (a history and the item tower, say) is gathered and updated
once, with the sum of their gradients.

Letters: B examples, V rows of a table, E one field's embedding, T touched rows of a batch, counted
once per occurrence, id 0 first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features, optim
from dsmoe_jax.nn import large_tables

# Smaller tables cost less than a batch of histories when they are updated whole.
MIN_ROWS = 16_384


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
    """State of the optimiser.

    Attributes:
      dense: Of the parameters that are updated whole.
      rows: Of the tables.
    """

    dense: Any
    rows: dict[str, RowState]


class Touched(NamedTuple):
    """The rows of one table that a batch touches.

    Attributes:
      id_T: Row of every occurrence.
      stands_T: Whether an occurrence stands for its row.
    """

    id_T: Int[jax.Array, "T"]
    stands_T: Bool[jax.Array, "T"]


@dataclasses.dataclass(frozen=True)
class RowSparse:
    """Adam or Adagrad on the touched rows of the large tables, Adam with L2 on all else.

    Rows are treated as if the steps that did not touch them had not been: their moments do not
    decay and L2 does not move them, where dense Adam would move both. Where every row is touched in
    every step the two are equal. Adam's bias correction counts all steps.

    **Deviation:** the paper's recipe is dense Adam; this is for tables far larger than a batch.

    Attributes:
      spec: The features, which say what the large tables are.
      learning_rate: Step size > 0.
      weight_decay: L2, added to the gradient.
      method: "adam", or "adagrad" with one accumulator per row.
      min_rows: Smaller tables are updated whole: they cost less than a batch of histories.
    """

    spec: features.FeatureSpec
    learning_rate: float
    weight_decay: float
    method: str = "adam"
    min_rows: int = MIN_ROWS

    @functools.cached_property
    def names(self) -> list[str]:
        """The large tables."""
        return large_tables.names(self.spec, self.min_rows)

    @property
    def dense(self) -> optax.GradientTransformation:
        """The optimiser of everything but the large tables."""
        return optim.make_optimizer(self.learning_rate, self.weight_decay)

    def init(self, params: Any) -> OptState:
        """Moments of 0."""
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

    def show(
        self, params: Any, opt_state: OptState, users: batch_lib.Users, items: batch_lib.Items
    ) -> optim.Shown:
        """Parameters with the touched rows in place of the tables, and ids that point into them."""
        tables, rest = large_tables.split(params, self.names)
        used = large_tables.read_ids(self.spec, users, items, self.names)
        shown, touched, written = {}, {}, dict(opt_state.rows)
        slots: dict[str, Callable[[jax.Array], jax.Array]] = {}
        for name, table_VE in tables.items():
            parts = [ids.reshape(-1) for ids in used[name]]
            id_T = jnp.concatenate([jnp.zeros(1, jnp.int32), *parts])
            position_T = jnp.arange(id_T.shape[0], dtype=jnp.int32)
            slot_V = written[name].slot_V.at[id_T].set(position_T)
            # Padding stays 0, which is what a model knows it by.
            slot_V = slot_V.at[0].set(0)
            written[name] = written[name]._replace(slot_V=slot_V)
            touched[name] = Touched(id_T, slot_V[id_T] == position_T)
            shown[name] = table_VE[id_T]
            slots[name] = slot_V.__getitem__
        users, items = large_tables.map_ids(self.spec, users, items, slots)
        return optim.Shown(
            large_tables.join(shown, rest), users, items, opt_state._replace(rows=written), touched
        )

    def update(
        self, gradient: Any, params: Any, shown: optim.Shown, step: Int[jax.Array, ""]
    ) -> tuple[Any, OptState]:
        """The next parameters and state.

        Args:
          gradient: With respect to what the model was shown.
          params: Before the step, whole.
          shown: From `show`.
          step: Steps taken before this one.
        """
        opt_state = shown.opt_state
        gradients, rest_gradient = large_tables.split(gradient, self.names)
        tables, rest = large_tables.split(params, self.names)
        updates, dense = self.dense.update(rest_gradient, opt_state.dense, rest)
        rest = optax.apply_updates(rest, updates)
        rows = {}
        for name, table_VE in tables.items():
            tables[name], rows[name] = self._update_rows(
                table_VE, opt_state.rows[name], gradients[name], shown.touched[name], step
            )
        return large_tables.join(tables, rest), OptState(dense, rows)

    def average(self, average: Any, params: Any, shown: optim.Shown, share: jax.Array) -> Any:
        """As `optim.Dense.average`, but rows that the batch does not touch keep their average."""
        old, old_rest = large_tables.split(average, self.names)
        new, new_rest = large_tables.split(params, self.names)
        rest = optim.move_towards(old_rest, new_rest, share)
        for name, touched in shown.touched.items():
            old_TE, new_TE = old[name][touched.id_T], new[name][touched.id_T]
            old[name] = _write(old[name], touched, optim.move_towards(old_TE, new_TE, share))
        return large_tables.join(old, rest)

    def _update_rows(
        self,
        table_VE: Float[jax.Array, "V E"],
        state: RowState,
        gradient_TE: Float[jax.Array, "T E"],
        touched: Touched,
        step: Int[jax.Array, ""],
    ) -> tuple[Float[jax.Array, "V E"], RowState]:
        value_TE = table_VE[touched.id_T]
        gradient_TE = gradient_TE + self.weight_decay * value_TE
        square_TE = state.square_VE[touched.id_T]
        mean_TE = state.mean_VE[touched.id_T]
        if self.method == "adagrad":
            square_TE = square_TE + jnp.square(gradient_TE).mean(axis=1, keepdims=True)
            move_TE = gradient_TE / (jnp.sqrt(square_TE) + optim.EPSILON)
        else:
            count = step + 1
            mean_TE = optim.BETA_1 * mean_TE + (1 - optim.BETA_1) * gradient_TE
            square_TE = optim.BETA_2 * square_TE + (1 - optim.BETA_2) * jnp.square(gradient_TE)
            corrected_mean_TE = mean_TE / (1 - optim.BETA_1**count)
            corrected_square_TE = square_TE / (1 - optim.BETA_2**count)
            move_TE = corrected_mean_TE / (jnp.sqrt(corrected_square_TE) + optim.EPSILON)
        return _write(table_VE, touched, value_TE - self.learning_rate * move_TE), RowState(
            mean_VE=_write(state.mean_VE, touched, mean_TE),
            square_VE=_write(state.square_VE, touched, square_TE),
            slot_V=state.slot_V,
        )


def _write(
    whole_VE: Float[jax.Array, "V E"], touched: Touched, values_TE: Float[jax.Array, "T E"]
) -> Float[jax.Array, "V E"]:
    """Replaces the touched rows; padding, and what does not stand for its row, writes nowhere."""
    writes_T = touched.stands_T & (touched.id_T > 0)
    row_T = jnp.where(writes_T, touched.id_T, whole_VE.shape[0])
    return whole_VE.at[row_T].set(values_TE, mode="drop")
