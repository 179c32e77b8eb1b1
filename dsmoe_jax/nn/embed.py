"""Embedding of features: tables, dense fields, bags and pooled histories.

Owns every table of a model, shared by its towers: a history is pooled with the item tower's own
tables, or encoded as `features.history_encoder` says, for any tower. Does not own what towers do
with the result, nor encoders that a matcher trains on the next item.

Letters: B examples (items may have more leading axes), F fields, E one field's width, L history
length, P ids in a padded bag, V rows of a table, S scenarios, I the width of a tower's input.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.nn import causal, fuxi_encoder, hstu_encoder, tables

# The scenario embedding is what coefficients and gates are maps of: at the fields' 0.02 these are
# the same in all scenarios at the start, and the tail scenario is long in leaving it.
SCENARIO_STD = 1.0
# Of the history encoder "fuxi_mme".
FUXI_MME_SIZES = {"num_subspaces": 2, "num_experts": 4, "experts_per_token": 2}


class Events(NamedTuple):
    """The embedded events of one history."""

    # Embeddings of the events, its fields concatenated; 0 at padding.
    event_BLE: Float[jax.Array, "B L E"]
    mask_BL: Bool[jax.Array, "B L"]  # Whether a position holds an event


class Embedded(NamedTuple):
    """One side's embedded features."""

    input_BI: Float[jax.Array, "... I"]  # All fields concatenated: a tower's input
    # The embeddings [..., E] of single fields that have a table of their own.
    fields: dict[str, jax.Array]
    # The mean of every history's events, [B, E x its fields], or of the history of all scenarios
    # what the spec's encoder makes of it; empty on the item side, and without the histories of
    # every scenario.
    pooled: dict[str, jax.Array]
    events: dict[str, Events]  # The events themselves, of all histories; empty on the item side


def own_tables(spec: features.FeatureSpec, side: str) -> tuple[str, ...]:
    """Fields of a side, "user" or "item", that have a table of their own whatever their size."""
    if side == "user":
        return ("user_id",)
    return ("item_id", *sorted({name for s in spec.sequences for name in s.fields}))


def recent_first(sequence: batch_lib.Sequence) -> batch_lib.Sequence:
    """The same events in reverse order, so that the most recent ones are a static slice."""
    count_B1 = (sequence.ids_BLF[..., 0] > 0).sum(axis=-1, keepdims=True)
    position_BL = count_B1 - 1 - jnp.arange(sequence.ids_BLF.shape[1])[None]
    mask_BL = position_BL >= 0
    position_BL = jnp.maximum(position_BL, 0)
    ids_BLF = jnp.take_along_axis(sequence.ids_BLF, position_BL[..., None], axis=1)
    time_BL = jnp.take_along_axis(sequence.time_BL, position_BL, axis=1)
    return batch_lib.Sequence(
        jnp.where(mask_BL[..., None], ids_BLF, 0), jnp.where(mask_BL, time_BL, 0)
    )


class HistoryEncoder(nn.Module):
    """The last position's output of two blocks with one head, without dropout.

    **Deviation:** ours, the encoders' papers know no other features. The tower drops its inputs
    out, this one among them; experts are not balanced. The output is divided by sqrt(E), which the
    encoder's input was multiplied with, so that it is of the size of other fields.
    """

    kind: str  # "hstu", "fuxi" or "fuxi_mme"
    dim: int  # E
    max_len: int  # Positions of the longest history

    def setup(self) -> None:
        sizes: dict[str, int] = {"max_len": self.max_len}
        if self.kind == "fuxi_mme":
            sizes |= FUXI_MME_SIZES
            if self.dim % sizes["num_subspaces"]:
                raise ValueError(
                    f"features.embedding_dim: expected a multiple of {sizes['num_subspaces']} with "
                    f"features.history_encoder='fuxi_mme', got {self.dim}"
                )
        encoder: Any = hstu_encoder.Encoder if self.kind == "hstu" else fuxi_encoder.Encoder
        self.encoder: causal.Encoder = encoder(self.dim, **sizes)

    def __call__(
        self,
        event_BLE: Float[jax.Array, "B L E"],
        sequence: batch_lib.Sequence,
        time_B: jax.Array,
    ) -> Float[jax.Array, "B E"]:
        """One vector per user; an empty history has a learned one. `time_B` is the request's."""
        timeline = causal.make_timeline(sequence.ids_BLF[..., 0] > 0, sequence.time_BL, time_B)
        state_BLE, _ = self.encoder(event_BLE, timeline, train=False)
        scale: float = self.dim**0.5
        return causal.last_position(state_BLE, timeline.mask_BL) / scale


class Embedder(nn.Module):
    """Turns the ids and numbers of users and items into tower inputs.

    A sparse field is a row of a table, whose id 0 (unknown) is the zero vector; a dense field is
    its value times a learned vector; a bag is the mean of its rows; a history is the mean of its
    events, embedded with the item side's tables, and 0 when empty.

    **Paper:** section "Feature embedding"; the paper allows max or average pooling.
    **Deviation:** initial values are unstated in the paper: a normal of 0.02 cut at two standard
    deviations for fields, a standard normal (PyTorch's default) for scenarios.
    """

    spec: features.FeatureSpec  # The features; what it leaves out has no table
    # Of the scenario embeddings' initial values: `tables.TABLE_STD` where they are one field of an
    # input among others, which a standard normal would drown; None for a model that has none.
    scenario_std: float | None = SCENARIO_STD

    def setup(self) -> None:
        spec, dim = self.spec, self.spec.embedding_dim
        self.user_tables = tables.FieldTables(
            spec.user_sparse, spec.user_bags, own_tables(spec, "user"), dim
        )
        self.item_tables = tables.FieldTables(
            spec.item_sparse, spec.item_bags, own_tables(spec, "item"), dim
        )
        if self.scenario_std is not None:
            normal, shape_SE = nn.initializers.normal(self.scenario_std), (spec.num_scenarios, dim)
            self.scenario_table_SE = self.param("scenario_table", normal, shape_SE, jnp.float32)
        if spec.history_encoder != "mean":
            clicks = next(s for s in spec.sequences if s.name == features.HISTORY)
            width = len(clicks.fields) * dim
            self.history_encoder = HistoryEncoder(spec.history_encoder, width, clicks.max_len)
        init = nn.initializers.truncated_normal(tables.TABLE_STD)
        for side in ("user", "item"):
            dense = getattr(spec, f"{side}_dense")
            if dense:
                shape_FE = (len(dense), dim)
                name = f"{side}_dense"
                setattr(self, name, self.param(name, init, shape_FE, jnp.float32))

    @property
    def user_dim(self) -> int:
        """I of the user side."""
        spec = self.spec
        fields = len(spec.user_sparse) + len(spec.user_dense) + len(spec.user_bags)
        return (fields + sum(len(s.fields) for s in spec.pooled_sequences)) * spec.embedding_dim

    @property
    def item_dim(self) -> int:
        """I of the item side."""
        spec = self.spec
        fields = len(spec.item_sparse) + len(spec.item_dense) + len(spec.item_bags)
        return fields * spec.embedding_dim

    def input_slots(self, side: str) -> list[tables.Slot]:
        """What `input_BI` of a side, "user" or "item", is made of, E entries at a time.

        Its tables are named as in `arrays`.
        """
        fields = getattr(self, f"{side}_tables")
        slots = [s._replace(table=f"{side}_table_{s.table}") for s in fields.slots()]
        for row, feature in enumerate(getattr(self.spec, f"{side}_dense")):
            slots.append(tables.Slot("dense", feature.name, row, f"{side}_dense", row))
        for sequence in self.spec.pooled_sequences if side == "user" else ():
            for column, field in enumerate(sequence.fields):
                table = f"item_table_{field}"
                is_mean = sequence.name != features.HISTORY or self.spec.history_encoder == "mean"
                kind = "sequence" if is_mean else "encoded"
                slots.append(tables.Slot(kind, sequence.name, column, table, 0))
        return slots

    def arrays(self) -> dict[str, Float[jax.Array, "V E"]]:
        """Every table and every matrix of dense features' vectors, by name."""
        found = {}
        for side, fields in (("user", self.user_tables), ("item", self.item_tables)):
            found.update(
                {f"{side}_table_{k}": v[: fields.rows[k]] for k, v in fields.tables.items()}
            )
            if getattr(self.spec, f"{side}_dense"):
                found[f"{side}_dense"] = getattr(self, f"{side}_dense")
        return found

    def history_form(self) -> dict[str, Any]:
        """What `history_arrays` means, for readers that hold no model; see `serving/histories.py`.

        Empty where histories are means.
        """
        if self.spec.history_encoder == "mean":
            return {}
        clicks = next(s for s in self.spec.sequences if s.name == features.HISTORY)
        encoder = self.history_encoder.encoder
        form: dict[str, Any] = {
            "kind": self.spec.history_encoder,
            "num_blocks": encoder.num_blocks,
            "max_len": encoder.max_len,
            "tables": [f"item_table_{field}" for field in clicks.fields],
        }
        if isinstance(encoder, fuxi_encoder.Encoder):
            form["num_subspaces"] = encoder.num_subspaces
            form["experts_per_token"] = encoder.experts_per_token
        return form

    def history_arrays(self) -> dict[str, jax.Array]:
        """Parameters of the history encoder by path."""
        if self.spec.history_encoder == "mean":
            return {}
        params = self.history_encoder.variables["params"]["encoder"]
        return {
            "_".join(["history", *(key.key for key in path)]): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }

    def scenarios(self) -> Float[jax.Array, "S E"]:
        """The scenario embeddings, shared by both towers; needs a `scenario_std`."""
        return self.scenario_table_SE

    def users(self, users: batch_lib.Users) -> Embedded:
        """Embeds the user side, histories included."""
        blocks, fields = self.user_tables(users.sparse_BF, users.bags)
        if self.spec.user_dense:
            blocks.append(_scale(users.dense_BF, self.user_dense))
        events = self._events(users.sequences)
        pooled = {
            sequence.name: tables.masked_mean(*events[sequence.name])
            for sequence in self.spec.pooled_sequences
        }
        if self.spec.history_encoder != "mean":
            pooled[features.HISTORY] = self.history_encoder(
                events[features.HISTORY].event_BLE, users.sequences[features.HISTORY], users.time_B
            )
        input_BI = jnp.concatenate([*blocks, *pooled.values()], axis=-1)
        return Embedded(input_BI, fields, pooled, events)

    def items(self, items: batch_lib.Items) -> Embedded:
        """Embeds items of any leading shape."""
        blocks, fields = self.item_tables(items.sparse_VF, items.bags)
        if self.spec.item_dense:
            blocks.append(_scale(items.dense_VF, self.item_dense))
        return Embedded(jnp.concatenate(blocks, axis=-1), fields, {}, {})

    def _events(self, sequences: dict[str, batch_lib.Sequence]) -> dict[str, Events]:
        """Histories that use the same table share one gather, hence one scatter backward."""
        users_of: dict[str, list[tuple[str, Int[jax.Array, "B L"]]]] = {}
        for sequence in self.spec.sequences:
            ids_BLF = sequences[sequence.name].ids_BLF
            for column, field in enumerate(sequence.fields):
                users_of.setdefault(field, []).append((sequence.name, ids_BLF[..., column]))
        found = {}
        for field, uses in users_of.items():
            joint_BLE = self.item_tables.field(field, _concatenate(ids_BL for _, ids_BL in uses))
            stops = np.cumsum([ids_BL.shape[1] for _, ids_BL in uses])[:-1]
            for (name, _), part_BLE in zip(uses, jnp.split(joint_BLE, stops, axis=1), strict=True):
                found[name, field] = part_BLE
        return {
            sequence.name: Events(
                _concatenate(found[sequence.name, field] for field in sequence.fields)
                if len(sequence.fields) > 1
                else found[sequence.name, sequence.fields[0]],
                sequences[sequence.name].ids_BLF[..., 0] > 0,
            )
            for sequence in self.spec.sequences
        }


def _scale(
    value_BF: Float[jax.Array, "... F"], vector_FE: Float[jax.Array, "F E"]
) -> Float[jax.Array, "... F*E"]:
    """Every dense value times its field's learned vector, concatenated."""
    vector = vector_FE.reshape(*(1,) * (value_BF.ndim - 1), *vector_FE.shape)
    return (value_BF[..., None] * vector).reshape(*value_BF.shape[:-1], -1)


def _concatenate(parts: Iterable[jax.Array]) -> jax.Array:
    """Joins ids along L, or embeddings along E."""
    return jnp.concatenate(list(parts), axis=-1)
