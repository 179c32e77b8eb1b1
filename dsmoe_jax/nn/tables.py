"""Embedding tables of categorical fields.

Owns which fields share a table, how tables are laid out and how ids become vectors. Id 0 of every
field is unknown and embeds to 0.

Letters: B rows (users or items, any leading axes), F fields, E one field's width, L positions,
P ids in a padded bag, V rows of a table.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dsmoe_jax import features

# A field with fewer ids shares one fused table with the other small fields of its side.
LARGE_TABLE_IDS = 4_096
# Rows of a large table are padded to a multiple of this, whatever the device count; devices that
# do not divide it pad further, in training alone (`training/sharding.py`).
TABLE_ROW_MULTIPLE = 1_024
TABLE_STD = 0.02

# Lookups in a table from this many rows on are masked one by one: masking all of it would cost
# more than a batch.
MASKED_LOOKUP_ROWS = 16_384

SMALL_FIELDS = "small_fields"

AnyFeature = features.SparseFeature | features.BagFeature


def padded_rows(num_ids: int) -> int:
    """Rows of a table for `num_ids` ids: a large one is padded to a multiple of 1,024."""
    if num_ids < LARGE_TABLE_IDS:
        return num_ids
    return -(-num_ids // TABLE_ROW_MULTIPLE) * TABLE_ROW_MULTIPLE


def masks_lookups(rows: int) -> bool:
    """Whether unknown ids are masked in what is looked up, not in a table of so many rows."""
    return rows >= MASKED_LOOKUP_ROWS


def has_own_table(feature: AnyFeature, own: tuple[str, ...]) -> bool:
    """Whether a field is kept out of its side's fused table."""
    return feature.num_ids >= LARGE_TABLE_IDS or feature.name in own


def masked_mean(
    value_BLE: Float[jax.Array, "... L E"], mask_BL: Bool[jax.Array, "... L"]
) -> Float[jax.Array, "... E"]:
    """Mean over the positions in the mask; 0 where there is none.

    `value_BLE` is 0 outside the mask already, so that the sum needs no mask of its own.
    """
    count_B1 = jnp.maximum(mask_BL.sum(axis=-1, keepdims=True), 1).astype(value_BLE.dtype)
    return value_BLE.sum(axis=-2) / count_B1


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


class Slot(NamedTuple):
    """Where E entries of an input come from, for readers that hold no model."""

    # "sparse": a row of the table; "bag": the mean of the rows of the ids above 0; "sequence": the
    # same over the events; "dense": the value times the row; "pooled": what a linear form beside
    # the tower makes of a sequence; "encoded": a field's share of what an encoder makes of one.
    kind: str
    name: str  # Of the feature
    column: int  # Of the sparse or dense matrix, or the field of the sequence's events; 0 for a bag
    table: str  # Name of the array
    first_row: int  # Row of id 0, or of the dense feature


class FieldTables(nn.Module):
    """The tables of one side's categorical fields.

    Small fields share one fused table, each with an offset: one gather forward and one scatter
    backward for all of them, sparse fields and bags alike. A field has a table of its own when it
    is large, when a history is pooled with it, or when it is an id that rankers cross.
    """

    sparse: tuple[features.SparseFeature, ...]  # The categorical columns
    bags: tuple[features.BagFeature, ...]  # The multi-valued columns
    own: tuple[str, ...]  # Names of the fields that have a table of their own beside the large ones
    dim: int  # Width E

    def setup(self) -> None:
        all_fields, offsets = self._features, self.offsets
        sizes: dict[str, tuple[int, ...]] = {
            f.name: (f.num_ids,) for f in all_fields if f.name not in offsets
        }
        if offsets:
            sizes[SMALL_FIELDS] = tuple(f.num_ids for f in all_fields if f.name in offsets)
        self.tables = {name: self._read(name, num_ids) for name, num_ids in sizes.items()}
        # Their own height: in training, devices may pad them further.
        self.rows = {name: padded_rows(sum(num_ids)) for name, num_ids in sizes.items()}
        self.masked = {name for name, rows in self.rows.items() if masks_lookups(rows)}

    def _read(self, name: str, num_ids: tuple[int, ...]) -> Float[jax.Array, "V E"]:
        rows = padded_rows(sum(num_ids))
        if self.has_variable("params", name):
            # Not `param`, which insists on the height: a step may show the model the rows of a
            # batch in place of a table.
            table_VE: jax.Array = self.get_variable("params", name)
        else:
            table_VE = self.param(name, _init_table, num_ids, rows, self.dim)
        if masks_lookups(rows):
            return table_VE
        # Masking the table keeps gradients away from the rows of unknown ids: a lookup then is a
        # bare gather, and such a table is smaller than a batch of histories.
        if table_VE.shape[0] != rows:
            num_ids = (table_VE.shape[0],)
        return table_VE * _known_rows(num_ids, table_VE.shape[0])

    @property
    def _features(self) -> list[AnyFeature]:
        return [*self.sparse, *self.bags]

    @property
    def offsets(self) -> dict[str, int]:
        """Row of id 0 in the fused table, by the name of each small field."""
        small = [f for f in self._features if not has_own_table(f, self.own)]
        first = np.cumsum([0, *(f.num_ids for f in small)])
        return {f.name: int(row) for f, row in zip(small, first[:-1], strict=True)}

    def slots(self) -> list[Slot]:
        """The input that `__call__` makes, E entries at a time."""
        column = {f.name: n for n, f in enumerate(self.sparse)}
        offsets = self.offsets

        def slot(kind: str, name: str) -> Slot:
            table = SMALL_FIELDS if name in offsets else name
            return Slot(kind, name, column.get(name, 0), table, offsets.get(name, 0))

        def group(kind: str, side: tuple[AnyFeature, ...], own: bool) -> list[Slot]:
            return [slot(kind, f.name) for f in side if (f.name not in offsets) == own]

        return [
            *group("sparse", self.sparse, False),
            *group("sparse", self.sparse, True),
            *group("bag", self.bags, True),
            *group("bag", self.bags, False),
        ]

    def field(self, name: str, ids: Int[jax.Array, "..."]) -> Float[jax.Array, "... E"]:
        """Embeddings of ids of one table; 0 for unknown ids."""
        # Data preparation validates ids; "clip" only spares the wrap of negative indices.
        value = self.tables[name].at[ids].get(mode="clip")
        if name in self.masked:
            value = value * (ids > 0)[..., None].astype(value.dtype)
        return value

    def __call__(
        self, sparse_BF: Int[jax.Array, "... F"], bags: dict[str, Int[jax.Array, "... P"]]
    ) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """All fields as blocks [..., width], and the fields with own tables by name."""
        blocks, rows = [], []
        own = {}
        offsets = self.offsets
        for column, feature in enumerate(self.sparse):
            ids = sparse_BF[..., column]
            if feature.name in offsets:
                rows.append(ids[..., None] + offsets[feature.name])
            else:
                own[feature.name] = self.field(feature.name, ids)
        num_small = len(rows)
        pooled, small_bags = [], []
        for bag in self.bags:
            ids = bags[bag.name]
            if bag.name in offsets:
                small_bags.append(bag)
                rows.append(ids + offsets[bag.name])
            else:
                pooled.append(masked_mean(self.field(bag.name, ids), ids > 0))
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
