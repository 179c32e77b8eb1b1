"""Warm start: the state of an earlier run as that of a new one, whose rows stand for other ids.

Owns which rows of which parameters belong to which vocabulary, in every kind of tables, and the way
of parameters, moments, averages and running statistics from one state into another. What the ids of
a vocabulary stand for, the caller says.

Letters: V rows of a table, N ids of a feature.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from dsmoe_jax.nn import tables
from dsmoe_jax.training import large_tables, optimizer, train_state

# Where an optimiser keeps what it knows of a parameter: the kind of moment and the parameter.
_MOMENT = re.compile(r"opt_state/(?:.*/)?(mu|nu)/(.+)")
_ROW_MOMENT = re.compile(r"opt_state/rows/(.+)/(mean|square)_VE")
_KINDS = {"mean": "mu", "square": "nu"}
_PARAMETER = re.compile(r"(params|average/params)/(.+)")
# What is made anew: of the new data, or scratch of a single batch.
_ANEW = re.compile(r"model_state/constants/|opt_state/rows/.+/slot_V$")


class Block(NamedTuple):
    """The rows of a feature in a table.

    Attributes:
      leaf: Path of the table among the parameters.
      feature: The feature, whose vocabulary the rows follow.
      first_row: Row of id 0.
      num_ids: N, id 0 included.
      copies: How often ids from 1 on are there: once, or once per scenario, one copy after another.
    """

    leaf: str
    feature: str
    first_row: int
    num_ids: int
    copies: int = 1


# Row of an earlier table for every row of a table, by the earlier table's path; -1 for none.
Sources = dict[str, Int[np.ndarray, "_"]]


def find_blocks(model: nn.Module) -> dict[str, Block]:
    """Every feature's rows in the tables of a model, by table module and feature.

    They are in the order that a tower's input has them in.

    A method with tables of items of its own names them, see `two_tower.Matcher.own_item_tables`.
    """
    found: dict[str, Block] = {}
    num_ids = _count_ids(model)

    def look(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        is_used = context.method_name in ("__call__", "field")
        if is_used and isinstance(module, tables.FieldTables):
            path = "/".join(module.path)
            side = module.path[-1].partition("_")[0]
            every: list[tables.AnyFeature] = [*module.sparse, *module.bags]
            total = {feature.name: feature.num_ids for feature in every}
            for slot in module.slots():
                N = num_ids[side, slot.name]
                copies = (total[slot.name] - 1) // max(N - 1, 1)
                found[f"{path}:{slot.name}"] = Block(
                    f"{path}/{slot.table}", slot.name, slot.first_row, N, max(copies, 1)
                )
        return call(*args, **kwargs)

    users, items, scenario_B = train_state.example_inputs(model.spec)
    with nn.intercept_methods(look):
        jax.eval_shape(
            lambda key: model.init({"params": key}, users, items, scenario_B, train=False),
            jax.random.key(0),
        )
    for name in getattr(model, "own_item_tables", ()):
        found[name] = Block(name, "item_id", 0, model.spec.num_items)
    return found


def _count_ids(model: nn.Module) -> dict[tuple[str, str], int]:
    spec = model.spec
    return {
        (side, feature.name): feature.num_ids
        for side in large_tables.SIDES
        for feature in (*getattr(spec, f"{side}_sparse"), *getattr(spec, f"{side}_bags"))
    }


def count_rows(model: nn.Module, updater: optimizer.Updater) -> dict[str, int]:
    """Rows of every parameter that has some, by path."""
    shapes = jax.eval_shape(train_state.make_init(model, updater, False), jax.random.key(0)).params
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if leaf.ndim
    }


def find_sources(
    old: Mapping[str, Block],
    new: Mapping[str, Block],
    old_ids: Mapping[str, Int[np.ndarray, "_"]],
    rows: Mapping[str, int],
) -> dict[str, Sources]:
    """Where every row of the new tables was, by path of the table.

    Args:
      old: `find_blocks` of the earlier model.
      new: The same of the new one.
      old_ids: By feature, the earlier id of every new id; 0 from 1 on where there was none.
      rows: Rows of the new tables by path; tables that are not named are left out.

    Raises:
      ValueError: When a feature outgrew the table that it shared, and its place in the input.
    """
    for name, former in zip(new, old, strict=False):
        if name != former:
            grown = min((name, former), key=lambda name: new[name].leaf == old[name].leaf)
            raise ValueError(
                f"warm start: expected the features in the order that the earlier model reads them "
                f"in, got {new[grown].feature!r} in another place, as it now has a table of its "
                f"own, from {tables.LARGE_TABLE_IDS:,} ids on; train anew once"
            )
    found: dict[str, Sources] = {}
    for name, block in new.items():
        if name not in old or block.leaf not in rows:
            continue
        before = old[name]
        known = old_ids[block.feature]
        row_V = found.setdefault(block.leaf, {}).setdefault(
            before.leaf, np.full(rows[block.leaf], -1, np.int32)
        )
        row_V[block.first_row] = before.first_row
        new_id, old_id = np.flatnonzero(known[1:] > 0) + 1, known[1:][known[1:] > 0]
        for copy in range(block.copies):
            there = block.first_row + copy * (block.num_ids - 1) + new_id
            row_V[there] = before.first_row + copy * (before.num_ids - 1) + old_id
    return found


def carry_over(
    old: train_state.TrainState,
    fresh: train_state.TrainState,
    sources: Mapping[str, Sources],
    *,
    keeps_fresh: bool = True,
) -> train_state.TrainState:
    """An initial state with all that an earlier one learned, in the initial one's layout.

    It takes arrays of both, which are not to be used any more.

    Rows of tables that were there before keep their values and moments; the others keep the
    initial ones, or are 0 unless `keeps_fresh`: what an earlier model makes of ids that it does not
    know. Constants and the position of a learning rate's schedule are the initial ones.

    Raises:
      ValueError: When a parameter that is no table has another shape than before.
    """
    before = {_place(path, leaf): leaf for path, leaf in _flatten(old).items()}
    flat = _flatten(fresh)
    copied: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        kind, name = place = _place(path, leaf)
        if kind == "params/average" and place not in before:
            place = ("params", name)
        if name in sources and kind:
            there = {table: before.get((place[0], table)) for table in sources[name]}
            parts[path] = {
                table: value
                for table, value in there.items()
                if value is not None and value.shape[1:] == leaf.shape[1:]
            }
        elif not _ANEW.match(path) and not _is_schedule(path, flat):
            copied[path] = _same_shape(path, leaf, before.get(place))
    rows = {
        path: {table: sources[_place(path, flat[path])[1]][table] for table in found}
        for path, found in parts.items()
    }

    def move(values: Any, parts: Any, rows: Any) -> Any:
        moved = {}
        for path, value in values.items():
            for table, old_VE in parts[path].items():
                row_V = rows[path][table]
                # Rows that pad a table to a number of devices come from none.
                padding = value.shape[0] - len(row_V)
                row_V = jnp.pad(row_V, (0, padding), constant_values=-1)
                known = (row_V >= 0).reshape(-1, *(1,) * (value.ndim - 1))
                value = jnp.where(known, old_VE[jnp.maximum(row_V, 0)], value)
            moved[path] = value
        return moved

    values = {path: flat[path] for path in parts}
    layout = {path: value.sharding for path, value in values.items()}
    if not keeps_fresh:
        values = jax.tree.map(jnp.zeros_like, values)
    moved = jax.jit(move, out_shardings=layout)(values, parts, rows)
    merged = {**flat, **copied, **moved}
    state: train_state.TrainState = jax.tree.unflatten(
        jax.tree.structure(fresh), [merged[path] for path in flat]
    )
    return state


def known_rows(sources: Sources) -> np.ndarray:
    """Which rows of a table were there before, bool [V]."""
    return np.asarray(np.stack([row_V >= 0 for row_V in sources.values()]).any(axis=0))


def _flatten(state: train_state.TrainState) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _place(path: str, leaf: Any) -> tuple[str, str]:
    """The kind of a leaf that belongs to a parameter, and the parameter; else "" and its path."""
    if match := _ROW_MOMENT.fullmatch(path):
        return _KINDS[match[2]], f"{large_tables.ROOT}/{match[1]}"
    if match := _MOMENT.fullmatch(path):
        return match[1], match[2]
    if match := _PARAMETER.fullmatch(path):
        return ("params" if match[1] == "params" else "params/average"), match[2]
    return "", path


def _is_schedule(path: str, flat: Mapping[str, Any]) -> bool:
    """Whether a leaf counts the steps of a learning rate's schedule, and not those of moments."""
    if not path.endswith("/count"):
        return False
    start = path.removesuffix("count") + "mu"
    return not any(other.startswith(start) for other in flat)


def _same_shape(path: str, leaf: Any, old: Any) -> Any:
    """The earlier value of a leaf; the leaf itself where an optimiser or an average had none."""
    if old is None and not path.startswith(("params/", "model_state/")):
        return leaf
    if old is None or old.shape != leaf.shape:
        before = "none" if old is None else f"{list(old.shape)}"
        raise ValueError(
            f"warm start: expected {path} of shape {list(leaf.shape)} as before, got {before}; a "
            "parameter with a row per item is named in the method's own_item_tables"
        )
    return old
