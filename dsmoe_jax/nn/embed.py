"""Embedding of features: tables, dense fields, bags and pooled histories.

Owns every table of a model, shared by its towers: a history is pooled with the item tower's own
tables. Does not own what towers do with the result.

Letters: B examples (items may have more leading axes), F fields, E one field's width, L history
length, P ids in a padded bag, V rows of a table, S scenarios, I the width of a tower's input.
"""

from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features

# A field with fewer ids shares one fused table with the other small fields of its side.
LARGE_TABLE_IDS = 4_096
# Rows of a large table are padded to a multiple of this, whatever the device count, so that a
# checkpoint restores on any of them.
TABLE_ROW_MULTIPLE = 1_024
TABLE_STD = 0.02

SMALL_FIELDS = "small_fields"


class Events(NamedTuple):
    """The embedded events of one history.

    Attributes:
      event_BLE: Embeddings of the events, its fields concatenated; 0 at padding.
      mask_BL: Whether a position holds an event.
    """

    event_BLE: Float[jax.Array, "B L E"]
    mask_BL: Bool[jax.Array, "B L"]


class Embedded(NamedTuple):
    """One side's embedded features.

    Attributes:
      input_BI: All fields concatenated: a tower's input.
      fields: The embeddings [..., E] of single fields that have a table of their own.
      pooled: The mean of every history's events, [B, E x its fields]; empty on the item side.
      events: The events themselves; empty on the item side.
    """

    input_BI: Float[jax.Array, "... I"]
    fields: dict[str, jax.Array]
    pooled: dict[str, jax.Array]
    events: dict[str, Events]


def padded_rows(num_ids: int) -> int:
    """Rows of a table for `num_ids` ids: a large one is padded to a multiple of 1,024."""
    if num_ids < LARGE_TABLE_IDS:
        return num_ids
    return -(-num_ids // TABLE_ROW_MULTIPLE) * TABLE_ROW_MULTIPLE


def masked_mean(
    value_BLE: Float[jax.Array, "... L E"], mask_BL: Bool[jax.Array, "... L"]
) -> Float[jax.Array, "... E"]:
    """Mean over the positions in the mask; 0 where there is none.

    `value_BLE` is 0 outside the mask already, so that the sum needs no mask of its own.
    """
    count_B1 = jnp.maximum(mask_BL.sum(axis=-1, keepdims=True), 1).astype(value_BLE.dtype)
    return value_BLE.sum(axis=-2) / count_B1


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


def _known_rows(num_ids: tuple[int, ...], rows: int) -> Bool[jax.Array, "V 1"]:
    """Which rows of a table hold known ids: not id 0 of a field, not padding."""
    row_V1 = jnp.arange(rows)[:, None]
    first_1F = np.cumsum((0, *num_ids[:-1]))[None]
    return (row_V1 < sum(num_ids)) & (row_V1 != first_1F).all(axis=1, keepdims=True)


def _init_table(
    key: jax.Array, num_ids: tuple[int, ...], rows: int, dim: int
) -> Float[jax.Array, "rows dim"]:
    """A normal of 0.02, cut at two standard deviations; id 0 of each field and padding are 0."""
    table_VE = nn.initializers.truncated_normal(TABLE_STD)(key, (rows, dim), jnp.float32)
    return table_VE * _known_rows(num_ids, rows)


class FieldTables(nn.Module):
    """The tables of one side's categorical fields.

    Small fields share one fused table, each with an offset: one gather forward and one scatter
    backward for all of them, sparse fields and bags alike. A field has a table of its own when it
    is large, when a history is pooled with it, or when it is an id that rankers cross.

    Attributes:
      sparse: The categorical columns.
      bags: The multi-valued columns.
      own: Names of the fields that have a table of their own beside the large ones.
      dim: Width E.
    """

    sparse: tuple[features.SparseFeature, ...]
    bags: tuple[features.BagFeature, ...]
    own: tuple[str, ...]
    dim: int

    def setup(self) -> None:
        """Creates the parameters."""
        every: list[features.SparseFeature | features.BagFeature] = [*self.sparse, *self.bags]
        small = [f for f in every if not self.has_own_table(f)]
        offsets = {}
        total = 0
        for feature in small:
            offsets[feature.name] = total
            total += feature.num_ids
        self.offsets = offsets
        sizes: dict[str, tuple[int, ...]] = {
            f.name: (f.num_ids,) for f in every if self.has_own_table(f)
        }
        if small:
            sizes[SMALL_FIELDS] = tuple(feature.num_ids for feature in small)
        # Masking the tables, not what is looked up, keeps gradients away from the rows of unknown
        # ids: a lookup then is a bare gather, and a table is smaller than a batch of histories.
        self.tables = {
            name: self.param(name, _init_table, num_ids, padded_rows(sum(num_ids)), self.dim)
            * _known_rows(num_ids, padded_rows(sum(num_ids)))
            for name, num_ids in sizes.items()
        }

    def has_own_table(self, feature: features.SparseFeature | features.BagFeature) -> bool:
        """Whether the field is kept out of the fused table."""
        return feature.num_ids >= LARGE_TABLE_IDS or feature.name in self.own

    def field(self, name: str, ids: Int[jax.Array, "..."]) -> Float[jax.Array, "... E"]:
        """Embeddings of ids of one table; 0 for unknown ids."""
        # Data preparation validates ids; "clip" only spares the wrap of negative indices.
        return self.tables[name].at[ids].get(mode="clip")

    def __call__(
        self, sparse_BF: Int[jax.Array, "... F"], bags: dict[str, Int[jax.Array, "... P"]]
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """All fields as blocks [..., width], and the fields with own tables by name."""
        blocks, rows = [], []
        own = {}
        for column, feature in enumerate(self.sparse):
            ids = sparse_BF[..., column]
            if self.has_own_table(feature):
                own[feature.name] = self.field(feature.name, ids)
            else:
                rows.append(ids[..., None] + self.offsets[feature.name])
        num_small = len(rows)
        pooled, small_bags = [], []
        for bag in self.bags:
            ids = bags[bag.name]
            if self.has_own_table(bag):
                pooled.append(masked_mean(self.field(bag.name, ids), ids > 0))
            else:
                small_bags.append(bag)
                rows.append(ids + self.offsets[bag.name])
        if rows:
            small = self.field(SMALL_FIELDS, jnp.concatenate(rows, axis=-1))
            if num_small:
                blocks.append(small[..., :num_small, :].reshape(*small.shape[:-2], -1))
            start = num_small
            for bag in small_bags:
                part = slice(start, start + bag.max_len)
                pooled.append(masked_mean(small[..., part, :], bags[bag.name] > 0))
                start += bag.max_len
        return [*blocks, *own.values(), *pooled], own


class Embedder(nn.Module):
    """Turns the ids and numbers of users and items into tower inputs.

    A sparse field is a row of a table, whose id 0 (unknown) is the zero vector; a dense field is
    its value times a learned vector; a bag is the mean of its rows; a history is the mean of its
    events, embedded with the item side's tables, and 0 when empty.

    **Paper:** section "Feature embedding"; the paper allows max or average pooling.
    **Deviation:** initial values, a normal of 0.02 cut at two standard deviations, are unstated in
    the paper.

    Attributes:
      spec: The features; what it leaves out has no table.
    """

    spec: features.FeatureSpec

    def setup(self) -> None:
        """Creates the parameters."""
        spec, dim = self.spec, self.spec.embedding_dim
        in_sequences = tuple(sorted({name for s in spec.sequences for name in s.fields}))
        self.user_tables = FieldTables(spec.user_sparse, spec.user_bags, ("user_id",), dim)
        self.item_tables = FieldTables(
            spec.item_sparse, spec.item_bags, ("item_id", *in_sequences), dim
        )
        init = nn.initializers.truncated_normal(TABLE_STD)
        shape_SE = (spec.num_scenarios, dim)
        self.scenario_table_SE = self.param("scenario_table", init, shape_SE, jnp.float32)
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
        return (fields + sum(len(s.fields) for s in spec.sequences)) * spec.embedding_dim

    @property
    def item_dim(self) -> int:
        """I of the item side."""
        spec = self.spec
        fields = len(spec.item_sparse) + len(spec.item_dense) + len(spec.item_bags)
        return fields * spec.embedding_dim

    def scenarios(self) -> Float[jax.Array, "S E"]:
        """The scenario embeddings, shared by both towers."""
        return self.scenario_table_SE

    def users(self, users: batch_lib.Users) -> Embedded:
        """Embeds the user side, histories included."""
        blocks, fields = self.user_tables(users.sparse_BF, users.bags)
        if self.spec.user_dense:
            blocks.append(_scale(users.dense_BF, self.user_dense))
        events = self._events(users.sequences)
        pooled = {name: masked_mean(*entry) for name, entry in events.items()}
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
