"""How the axes of an equation's operands and results correspond, for `macs.py`.

Owns what each kind of equation does with axes: which it moves unchanged, and what a demand on part
of a result's axis asks of its operands. An equation that is not known here asks for all of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Part(NamedTuple):
    """The part of an axis that is asked for.

    Attributes:
      share: In (0, 1).
      by: Axes whose position says which part.
    """

    share: float
    by: frozenset[int]


# Parts by axis; an axis without an entry is asked for as a whole. None: nothing is asked for.
Demand = dict[int, Part] | None


class Known(NamedTuple):
    """What is known of an array's values.

    Attributes:
      constant: Axes along which nothing changes.
      counts: The axis along which the values are 0, 1, 2, ...; None where they are not.
      one_hot: The axis along which one value is 1 and the others are 0; None where not so.
    """

    constant: frozenset[int]
    counts: int | None = None
    one_hot: int | None = None


_UNCHANGED = ("convert_element_type", "copy", "stop_gradient", "reduce_precision")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax")
# Of one result along an axis only the axis itself is mixed.
_ALONG_AXIS = {
    "concatenate": "dimension",
    "split": "axis",
    "cumsum": "axis",
    "cumlogsumexp": "axis",
    "cummax": "axis",
    "sort": "dimension",
}


def follow(eqn: Any) -> dict[int, int] | None:
    """Axis of the result by axis of the operand, of an equation that only moves values.

    Axes that are merged or split are left out. None for an equation that computes.
    """
    name, shape = eqn.primitive.name, eqn.invars[0].aval.shape if eqn.invars else ()
    if name in _UNCHANGED:
        return {axis: axis for axis in range(len(shape))}
    if name == "broadcast_in_dim":
        out = eqn.outvars[0].aval.shape
        to = eqn.params["broadcast_dimensions"]
        return {axis: to[axis] for axis in range(len(shape)) if out[to[axis]] == shape[axis]}
    if name == "transpose":
        return {axis: place for place, axis in enumerate(eqn.params["permutation"])}
    if name == "squeeze":
        kept = [axis for axis in range(len(shape)) if axis not in eqn.params["dimensions"]]
        return {axis: place for place, axis in enumerate(kept)}
    if name == "reshape":
        groups = group_axes(shape, eqn.outvars[0].aval.shape)
        return {ins[0]: outs[0] for ins, outs in groups if len(ins) == len(outs) == 1}
    return None


def group_axes(
    shape: tuple[int, ...], new_shape: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The axes of an array before and after a reshape, in the least groups of equal size.

    Axes of size 1 belong to no group.
    """
    before = [axis for axis, size in enumerate(shape) if size != 1]
    after = [axis for axis, size in enumerate(new_shape) if size != 1]
    groups = []
    while before and after:
        ins, outs = [before.pop(0)], [after.pop(0)]
        size, new_size = shape[ins[0]], new_shape[outs[0]]
        while size != new_size:
            if size < new_size:
                ins.append(before.pop(0))
                size *= shape[ins[-1]]
            else:
                outs.append(after.pop(0))
                new_size *= new_shape[outs[-1]]
        groups.append((tuple(ins), tuple(outs)))
    return groups


def ask(eqn: Any, known: list[Known], outs: list[Demand]) -> list[Demand]:
    """What an equation without a matrix product asks of its operands.

    Args:
      eqn: The equation.
      known: What is known of its operands.
      outs: What is asked of its results; None for a result that nobody reads.
    """
    name = eqn.primitive.name
    if name == "reshape":
        return [_ask_reshape(eqn, outs[0] or {})]
    moved = follow(eqn)
    if moved is not None:
        back = {place: axis for axis, place in moved.items()}
        return [carry(outs[0] or {}, back)]
    if name in _REDUCTIONS:
        gone = eqn.params["axes"]
        kept = [axis for axis in range(eqn.invars[0].aval.ndim) if axis not in gone]
        return [carry(outs[0] or {}, dict(enumerate(kept)))]
    shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
    if name in ("slice", "pad", "rev", *_ALONG_AXIS):
        mixed = {eqn.params[_ALONG_AXIS[name]]} if name in _ALONG_AXIS else set()
        return _ask_along(shapes, len(eqn.invars), outs, mixed)
    if len(eqn.outvars) == 1 and _is_elementwise(shapes):
        return _ask_elementwise(name, shapes, known, outs[0] or {})
    return [{} for _ in eqn.invars]


def carry(demand: Mapping[int, Part], place: Mapping[int, int]) -> dict[int, Part]:
    """A demand on a result, on the axes of an operand that it has them from.

    A part that an operand without the deciding axes shares among all examples is asked for whole.

    Args:
      demand: On the result.
      place: The operand's axis by the result's.
    """
    return {
        place[axis]: Part(part.share, frozenset(place[by] for by in part.by))
        for axis, part in demand.items()
        if axis in place and part.by <= place.keys()
    }


def join(parts: list[Part]) -> Part:
    """What several readers of an axis, each of a part of it, ask for together."""
    return Part(max(part.share for part in parts), frozenset().union(*(part.by for part in parts)))


def _ask_reshape(eqn: Any, out: dict[int, Part]) -> Demand:
    place: dict[int, tuple[int, ...]] = {}
    groups = group_axes(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape)
    for ins, outs in groups:
        place.update(dict.fromkeys(outs, ins))
    found: dict[int, Part] = {}
    for ins, outs in groups:
        parts = [out[axis] for axis in outs if axis in out]
        by = frozenset().union(*(part.by for part in parts))
        if not parts or len(ins) > 1 or not by <= place.keys():
            continue
        share = 1.0
        for part in parts:
            share *= part.share
        found[ins[0]] = Part(share, frozenset(axis for old in by for axis in place[old]))
    return found


def _ask_along(
    shapes: list[tuple[int, ...]], operands: int, outs: list[Demand], mixed: set[int]
) -> list[Demand]:
    """Equations that keep every axis of equal size in its place but mix one."""
    asked = [out for out in outs if out is not None]
    common = set.intersection(*(set(out) for out in asked)) - mixed
    found: list[Demand] = []
    for shape in shapes[:operands]:
        if len(shape) != len(shapes[-1]):  # a scalar operand
            found.append({})
            continue
        same = {
            axis: axis
            for axis, size in enumerate(shape)
            if axis not in mixed and all(size == other[axis] for other in shapes[operands:])
        }
        joint = {axis: join([out[axis] for out in asked]) for axis in common}
        found.append(carry(joint, same))
    return found


def _is_elementwise(shapes: list[tuple[int, ...]]) -> bool:
    """Whether operands and result agree in every axis, but for sizes of 1 and scalars."""
    out = shapes[-1]
    return all(
        not shape
        or (
            len(shape) == len(out)
            and all(size in (1, full) for size, full in zip(shape, out, strict=True))
        )
        for shape in shapes[:-1]
    )


def _ask_elementwise(
    name: str, shapes: list[tuple[int, ...]], known: list[Known], out: dict[int, Part]
) -> list[Demand]:
    found: list[Demand] = []
    for shape in shapes[:-1]:
        same = {axis: axis for axis, size in enumerate(shape) if size == shapes[-1][axis]}
        found.append(carry(out, same))
    for own, entry in enumerate(known):
        hot = entry.one_hot
        if name not in ("mul", "and", "select_n") or hot is None:
            continue
        selecting = frozenset(range(len(shapes[own]))) - entry.constant - {hot}
        # Of `select_n` the last operand is kept where the first is true.
        others = [len(known) - 1] if name == "select_n" else [n for n in (0, 1) if n != own]
        for other in others:
            shape = shapes[other]
            if shape and shape[hot] > 1 and all(shape[axis] > 1 for axis in selecting):
                found[other] = {**(found[other] or {}), hot: Part(1 / shape[hot], selecting)}
    return found
