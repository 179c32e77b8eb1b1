"""The large tables of a model's parameters, and the ids of a batch that index them.

Owns the way from a feature to its table in the tree of parameters and to its ids in a batch, for
what handles tables beside the model: updates of single rows. Does not own the tables.

Letters: as the caller's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from dsmoe_jax import batch as batch_lib
from dsmoe_jax import features
from dsmoe_jax.nn import embed, tables

# Of `embed.Embedder` in a model's tree of parameters.
ROOT = "embedder"
SIDES = ("user", "item")


def names(spec: features.FeatureSpec, min_rows: int) -> list[str]:
    """`<side>_tables/<feature>` of every field's own table with at least so many rows."""
    found = []
    for side in SIDES:
        own = embed.own_tables(spec, side)
        for feature in (*getattr(spec, f"{side}_sparse"), *getattr(spec, f"{side}_bags")):
            rows = tables.padded_rows(feature.num_ids)
            if tables.has_own_table(feature, own) and rows >= min_rows:
                found.append(f"{side}_tables/{feature.name}")
    return found


def split(tree: Any, names: list[str]) -> tuple[dict[str, jax.Array], Any]:
    """Takes the named tables out of a tree of parameters, or of one shaped like it.

    Returns:
      The tables by name, and a new tree without them.

    Raises:
      ValueError: When the model has tables of its own making, whose rows are not the batch's ids,
        or members that each have tables.
    """
    if not names:
        return {}, tree
    if ROOT not in tree:
        raise ValueError(
            "optim.embedding: expected 'dense' for a model whose tables the batch's ids do not "
            "index, such as one per scenario or one of each member of an ensemble, got "
            f"'row_sparse' and parameters {sorted(tree)}"
        )
    rest = {**tree, ROOT: {**tree[ROOT]}}
    found = {}
    for name in names:
        side, table = name.split("/")
        rest[ROOT][side] = dict(rest[ROOT][side])
        found[name] = rest[ROOT][side].pop(table)
    return found, rest


def join(found: Mapping[str, jax.Array], rest: Any) -> Any:
    """The inverse of `split`."""
    if not found:
        return rest
    tree = {**rest, ROOT: {**rest[ROOT]}}
    for name, value in found.items():
        side, table = name.split("/")
        tree[ROOT][side] = {**tree[ROOT][side], table: value}
    return tree


def read_ids(
    spec: features.FeatureSpec,
    users: batch_lib.Users,
    items: batch_lib.Items,
    names: list[str],
) -> dict[str, list[jax.Array]]:
    """All ids that index each of the named tables."""
    found: dict[str, list[jax.Array]] = {name: [] for name in names}

    def collect(name: str) -> Callable[[jax.Array], jax.Array]:
        def keep(ids: jax.Array) -> jax.Array:
            found[name].append(ids)
            return ids

        return keep

    map_ids(spec, users, items, {name: collect(name) for name in found})
    return found


def map_ids(
    spec: features.FeatureSpec,
    users: batch_lib.Users,
    items: batch_lib.Items,
    change: Mapping[str, Callable[[jax.Array], jax.Array]],
) -> tuple[batch_lib.Users, batch_lib.Items]:
    """Applies a function to the ids of each named table; all other ids stay."""
    sequences = {}
    for sequence in spec.sequences:
        entry = users.sequences[sequence.name]
        ids_BLF = _map_columns("item", sequence.fields, entry.ids_BLF, change)
        sequences[sequence.name] = entry._replace(ids_BLF=ids_BLF)
    sparse_BF = _map_columns("user", [f.name for f in spec.user_sparse], users.sparse_BF, change)
    sparse_VF = _map_columns("item", [f.name for f in spec.item_sparse], items.sparse_VF, change)
    user_bags, item_bags = (
        {
            name: change[f"{side}_tables/{name}"](ids) if f"{side}_tables/{name}" in change else ids
            for name, ids in bags.items()
        }
        for side, bags in (("user", users.bags), ("item", items.bags))
    )
    return (
        users._replace(sparse_BF=sparse_BF, bags=user_bags, sequences=sequences),
        items._replace(sparse_VF=sparse_VF, bags=item_bags),
    )


def _map_columns(
    side: str,
    fields: Sequence[str],
    ids: jax.Array,
    change: Mapping[str, Callable[[jax.Array], jax.Array]],
) -> jax.Array:
    """Ids of several fields, [..., F], of which those with a changed table are mapped."""
    for column, field in enumerate(fields):
        mapped = change.get(f"{side}_tables/{field}")
        if mapped is not None:
            ids = ids.at[..., column].set(mapped(ids[..., column]))
    return ids
